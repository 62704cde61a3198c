"""The picture of a camera's calibration: photon transfer, its residuals, the converter's codes, the verdict."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from noise_models.calibration.document import Calibration
from optical_dfa.report.plots import COLOURS, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour, marker and line alike; the pair differs in lightness too (colour-blind safe).
_SETTINGS = {"dark": ("accent", "o", "-", "dark setting"), "data": ("second", "s", "--", "data setting")}
_VERDICT_WIDTH = 76
_ROW = 0.053


def draw_calibration_picture(calibration: Calibration, path: Path) -> None:
    """One PNG of 11 × 7.4 inches: four panes."""
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(11.0, 7.4), dpi=150, layout=engine, facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, calibration)
        figure.savefig(path, format="png")


def _draw(figure: Figure, calibration: Calibration) -> None:
    panes: Any = figure.subplots(2, 2, width_ratios=[1.1, 1], height_ratios=[1.35, 1])
    draw_photon_transfer(panes[0, 0], calibration)
    draw_transfer_residuals(panes[1, 0], calibration)
    draw_code_widths(panes[1, 1], calibration)
    _draw_verdict(panes[0, 1], calibration)


def draw_photon_transfer(axes: Axes, calibration: Calibration) -> None:
    """Temporal variance over mean signal of both settings, with the line whose slope is the gain."""
    for setting, (colour, marker, line, label) in _SETTINGS.items():
        x, y = _curve(calibration, f"{setting}_signal_dn"), _curve(calibration, f"{setting}_variance_dn2")
        if not x.size:
            continue
        axes.set_xscale("log")
        axes.set_yscale("log")
        name = "gain_dn_per_electron" if setting == "dark" else "data_gain_dn_per_electron"
        if name in calibration.parameters:
            gain = calibration.parameters[name].value
            label += f": {gain:.4g} DN/e⁻"
            smooth = np.geomspace(x.min() / 6, x.max() * 1.15, 200)
            floor = _floor(calibration, setting, x, y, gain)
            axes.plot(smooth, floor + gain * smooth, color=COLOURS[colour], linestyle=line, linewidth=1.3)
        axes.plot(x, y, color=COLOURS[colour], linestyle="", marker=marker, markersize=5.5, label=label)
    floor = calibration.curves.get("dark_floor_dn2", [0.0])[0]
    if floor > 0:
        axes.axhline(floor, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
        axes.annotate(
            f"dark frames: {floor:.3g} DN²",
            (0.99, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=COLOURS["muted"],
            fontsize=8.5,
        )
    axes.set_title("Photon transfer: temporal variance of a pixel over its mean signal")
    axes.set_xlabel("mean signal above the dark level (DN)")
    axes.set_ylabel("variance (DN²)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", handlelength=1.4)
    else:
        _say(axes, "light changes nothing: no photon-transfer line")


def draw_transfer_residuals(axes: Axes, calibration: Calibration) -> None:
    """Residuals of the dark setting's line in standard errors, with their ±2 band."""
    axes.set_title("Residuals of the dark setting's line (standard errors)")
    axes.set_xlabel("mean signal above the dark level (DN)")
    residual = _curve(calibration, "dark_residual_dn2")
    errors = _curve(calibration, "dark_variance_error_dn2")
    if not residual.size:
        _say(axes, "no line to compare with")
        return
    x = _curve(calibration, "dark_signal_dn")
    shown = residual[-len(x) :] / np.maximum(errors, 1e-12)
    axes.axhspan(-2, 2, color=COLOURS["rule"], alpha=0.6, linewidth=0)
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.vlines(x, 0, shown, color=COLOURS["accent"], linewidth=1.2)
    axes.plot(x, shown, linestyle="", marker="o", markersize=5.5, color=COLOURS["accent"])
    limit = max(3.5, 1.2 * float(np.abs(shown).max()))
    axes.set_ylim(-limit, limit)
    axes.set_xlim(left=0)


def draw_code_widths(axes: Axes, calibration: Calibration) -> None:
    """Width error of every code that dark frames reach, with three standard errors, over their histogram."""
    axes.set_title("Converter: width of each code over the ideal one, less 1 (%)")
    axes.set_xlabel("code of dark frames (DN)")
    codes, errors = _curve(calibration, "codes"), _curve(calibration, "width_errors")
    if not codes.size:
        _say(axes, "too few codes came to say anything")
        return
    bars = 300 * _curve(calibration, "width_standard_errors")
    sharp = bars <= max(3.0, 1.5 * float(bars.min()))
    codes, errors, bars = codes[sharp], 100 * errors[sharp], bars[sharp]
    counts = dict(zip(_curve(calibration, "histogram_codes"), _curve(calibration, "histogram"), strict=True))
    share = np.array([counts.get(code, 0.0) for code in codes])
    behind = axes.twinx()
    behind.bar(codes, share / share.max(), width=0.82, color=COLOURS["bars"], alpha=0.55, linewidth=0)
    behind.set_ylim(0, 1.15)
    behind.set_axis_off()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.errorbar(
        codes,
        errors,
        yerr=bars,
        color=COLOURS["accent"],
        linestyle="",
        marker="o",
        markersize=3.4,
        linewidth=1.0,
    )
    limit = 1.4 * max(0.5, float((np.abs(errors) + bars).max()))
    axes.set_ylim(-limit, limit)
    axes.annotate(
        "bars: three standard errors; shaded: how often each code came",
        (0.01, 0.93),
        xycoords="axes fraction",
        color=COLOURS["muted"],
        fontsize=8.5,
    )


def _draw_verdict(axes: Axes, calibration: Calibration) -> None:
    axes.set_axis_off()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        drawn = axes.text(x, y, text, transform=axes.transAxes, va="top", **style)
        drawn.set_in_layout(False)  # long lines do not narrow the panes

    colour, word = ("accent", "Passed") if calibration.passed else ("second", "Not passed: no credit")
    write(0, 1.0, word, fontsize=15, fontweight="bold", color=COLOURS[colour])
    head = (
        f"{calibration.camera}, camera {calibration.camera_fingerprint}, {calibration.frames:,} frames",
        f"taken {_minute(calibration.taken_at)}, holds until {_minute(calibration.expires_at)}",
        f"credit: {calibration.credit_lower_dn:.4g} of {calibration.credit_dn:.4g} DN Gaussian noise; wrong with "
        f"probability {calibration.beta:g}",
    )
    y = 0.895
    for text in head:
        write(0, y, text)
        y -= _ROW
    limits = f"limits, {100 * calibration.confidence:g} % together"
    rows = [("quantity", "value", "unit", limits)]
    for name, text, unit in _QUANTITIES:
        found = calibration.parameters.get(name)
        if found is not None:
            span = f"{_figures(found.lower)} … {_figures(found.upper)}"
            rows.append((text, _figures(found.value), unit, span))
    y -= 0.02
    for row in rows:
        for x, align, cell in zip(
            (0.0, 0.53, 0.55, 0.67), ("left", "right", "left", "left"), row, strict=True
        ):
            write(x, y, cell, ha=align, color=COLOURS["muted" if row is rows[0] else "ink"])
        y -= _ROW
    lines: list[str] = []
    for text in calibration.findings:
        lines += textwrap.wrap(f"finding: {text}", _VERDICT_WIDTH)
    room = max(2, int((y + 0.02) / _ROW))
    if len(lines) > room:
        lines = [*lines[: room - 1], "… (the rest is in the calibration)"]
    for text in lines:
        y -= 0.9 * _ROW
        write(0, y + 0.5 * _ROW, text, fontsize=8.5, color=COLOURS["second"])


def _figures(value: float) -> str:
    """Four significant figures, or the whole number above that."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}" if abs(value) >= 10 else f"{value:.4g}"


_QUANTITIES = (
    ("gain_dn_per_electron", "gain, dark setting", "DN/e⁻"),
    ("read_noise_electrons", "read noise", "e⁻"),
    ("dark_level_dn", "dark level", "DN"),
    ("dark_current_electrons_per_second", "dark current", "e⁻/s"),
    ("dsnu_electrons", "dark pattern (DSNU)", "e⁻"),
    ("data_gain_dn_per_electron", "gain, data setting", "DN/e⁻"),
    ("data_full_well_electrons", "saturation, data setting", "e⁻"),
    ("prnu", "response pattern (PRNU)", ""),
    ("dnl_codes", "largest code-width error", "codes"),
)


def _floor(
    calibration: Calibration,
    setting: str,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    gain: float,
) -> float:
    """Variance without light: fitted for the dark setting, what the brightest point leaves for the other."""
    if setting == "dark" and "dark_line" in calibration.curves:
        return calibration.curves["dark_line"][0]
    return max(1e-3, float(np.median(y - gain * x)))


def _curve(calibration: Calibration, name: str) -> npt.NDArray[np.float64]:
    return np.array(calibration.curves.get(name, []), dtype=np.float64)


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ") + " UTC"


def _say(axes: Axes, text: str) -> None:
    """In place of a curve."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.minorticks_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=COLOURS["muted"])
