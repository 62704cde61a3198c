"""The report page: one self-contained HTML file per run, or one comparing several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from noise_models.drafts import replacing
from noise_models.errors import UsageError
from optical_dfa.report import plots, statement
from optical_dfa.report.diagnosis import diagnosis_html
from optical_dfa.report.style import CSS
from optical_dfa.runs.reading import Run, flatten, number, read_runs
from privacy.guarantee import Guarantee, Kind, rounded_up


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write one HTML page about one run, or comparing several, from the files of their folders alone.

    The page needs no network, no script and no other file. It is written whole or not at all.

    Raises:
        UsageError: a folder is no finished run, a file in it is damaged, or `out` cannot be written.
    """
    runs = read_runs(run_dirs)
    html = single_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    try:
        with replacing(out) as draft:
            draft.write_text(html, encoding="utf-8", errors="backslashreplace")  # a folder that is no UTF-8
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


def single_page(run: Run) -> str:
    """HTML of the report about one run."""
    parts = [
        '<p class="eyebrow">optical-dfa · run report</p>',
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="lead">{escape(statement.trained(run))}</p>',
        f'<p class="note">{escape(statement.device(run))}</p>',
        _key_figures(run),
        _curves([run]),
        diagnosis_html(run),
        _calibration(run),
        _privacy(run.guarantee),
        _settings("Configuration", flatten(run.config) or _configuration_of(run.summary)),
        _settings("Versions", _versions(run.summary)),
    ]
    return _document(f"{run.name} · optical-dfa", parts)


def comparison_page(runs: Sequence[Run]) -> str:
    """HTML of the report comparing several runs."""
    parts = [
        '<p class="eyebrow">optical-dfa · comparison</p>',
        f"<h1>{len(runs)} runs</h1>",
        _comparison_table(runs),
        _curves(runs),
        "<h2>Guarantees in words</h2>",
    ]
    for run in runs:
        parts.append(
            f'<div class="card spaced"><h3>{escape(run.name)} {_chip(run.guarantee)}</h3>'
            f"<p>{escape(run.guarantee.words())}</p>"
            f'<p class="note">{escape(statement.trained(run))} {escape(statement.device(run))}</p></div>'
        )
    parts += [
        "<h2>What the guarantees do not cover</h2>",
        f'<div class="card text">{_list(statement.NOT_COVERED)}</div>',
    ]
    differing = _differences(runs)
    if differing:
        parts += ["<h2>Settings that differ</h2>", differing]
    return _document(f"{len(runs)} runs · optical-dfa", parts)


def _document(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Written by optical-dfa from the files of the run folder alone. Check the privacy budget "
        "with <code>optical-dfa audit</code>.</footer>\n</main>\n</body>\n</html>\n"
    )


def _key_figures(run: Run) -> str:
    summary, guarantee = run.summary, run.guarantee
    accuracy, seconds = number(summary.get("test_accuracy")), number(summary.get("seconds"))
    share = guarantee.device_share
    tiles = [
        _tile(
            "Test accuracy",
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            "of the test set, last weights",
        ),
        _tile(
            "Privacy guarantee",
            statement.headline(guarantee),
            _chip(guarantee) + _under_guarantee(guarantee),
            wide=True,
        ),
    ]
    if share is not None:
        tiles.append(_tile("Device's share", f"{100 * share:.1f} %", "of the noise variance"))
    if seconds is not None:
        per_step = number(summary.get("seconds_per_step"))
        below = "" if per_step is None else f"{1000 * per_step:.3g} ms a step"
        tiles.append(_tile("Training time", _duration(seconds), below))
    return f'<dl class="figures">{"".join(tiles)}</dl>'


def _under_guarantee(guarantee: Guarantee) -> str:
    if guarantee.nominal_epsilon is not None:
        nominal = rounded_up(guarantee.nominal_epsilon)
        conditional = "conditional " if guarantee.nominal_kind is Kind.CONDITIONAL else ""
        return f" nominal {conditional}ε = {nominal}, which does not hold for this run"
    if guarantee.kind is Kind.NONE:
        return " anything about the records may be read off the weights"
    return f" {escape(guarantee.adjacency.value)}, accountant {escape(guarantee.accountant)}"


def _tile(label: str, value: str, below: str, *, wide: bool = False) -> str:
    """`label` and `value` are escaped here; `below` is HTML."""
    classes = ' class="wide"' if wide else ""
    return (
        f"<div{classes}><dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        + (f'<dd class="small">{below}</dd>' if below else "")
        + "</div>"
    )


def _chip(guarantee: Guarantee) -> str:
    return f'<span class="chip {guarantee.kind.value}">{guarantee.kind.value}</span>'


def _curves(runs: Sequence[Run]) -> str:
    accuracy, epsilon = plots.accuracy_svg(runs, "accuracy"), plots.epsilon_svg(runs, "epsilon")
    figures = [
        _figure(
            accuracy, "Share of the public test set that is classified correctly, after each evaluation."
        ),
        _figure(
            epsilon,
            "ε at the run's δ after each evaluation, as the accountant composes it; dashed: the budget.",
        ),
    ]
    if not any(figures):
        return ""
    return f'<h2>Over the steps</h2><div class="plots">{"".join(figures)}</div>'


def _figure(svg: str | None, caption: str) -> str:
    if svg is None:
        return ""
    return f'<figure class="card">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _calibration(run: Run) -> str:
    measured = run.calibration
    if measured is None:
        return ""
    caption = (
        "Share of the readouts at each code, and the law that is credited."
        if measured.noisier
        else "Above: share of the readouts at each code. Below: (count − model) / √model, with its ±2 band."
    )
    figure = _figure(plots.calibration_svg(measured, "calibration"), caption)
    facts = _rows(
        {
            "black level": f"{measured.black_level:.3f} DN",
            "credited σ": f"{measured.sigma:.3f} DN",
            "one code": f"{measured.step:g} DN",
            "frames": f"{measured.frames:,}",
            "pixels a frame": f"{measured.pixels:,}",
        }
    )
    law = (
        "The frames are noisier than what is credited: of a calibration only the lower limit counts, and fixed "
        "patterns and dark current count for nothing. "
        if measured.noisier
        else "The model is a normal law rounded to the converter's codes; where it fits, the residuals scatter "
        "within the band. "
    )
    text = (
        f"<p>Frames taken with no data to test the noise. {law}They are never released, and the noise that was "
        "used is never shown.</p>"
    )
    note = f'<p class="note">{escape(measured.note)}</p>' if measured.note else ""
    side = (
        f'<div class="card"><h3>Start-up test</h3>{text}<table class="settings">{facts}</table>{note}</div>'
    )
    return f'<h2>The device\'s noise</h2><div class="plots">{figure}{side}</div>'


def _privacy(guarantee: Guarantee) -> str:
    assumptions = guarantee.assumptions or ("None were stated.",)
    return (
        f"<h2>The guarantee in words</h2>"
        f'<div class="card"><div class="text">{_paragraphs(guarantee.words())}</div></div>'
        '<div class="pair">'
        f'<div class="card"><h3>What it assumes</h3>{_list(assumptions)}</div>'
        f'<div class="card"><h3>What it does not cover</h3>{_list(statement.NOT_COVERED)}</div></div>'
    )


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(block)}</p>" for block in text.split("\n\n"))


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _settings(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    return (
        f'<h2>{escape(title)}</h2><div class="scroll"><table class="settings">{_rows(values)}</table></div>'
    )


def _rows(values: Mapping[str, Any]) -> str:
    """Table rows of names and values."""
    return "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_value(value))}</td></tr>'
        for key, value in values.items()
    )


def _comparison_table(runs: Sequence[Run]) -> str:
    heads = (
        "run",
        "data",
        "rule",
        "backend",
        "release",
        "test accuracy",
        "guarantee",
        "device share",
        "time",
    )
    rows = []
    for run in runs:
        summary, guarantee = run.summary, run.guarantee
        accuracy, share = number(summary.get("test_accuracy")), guarantee.device_share
        seconds = number(summary.get("seconds"))
        cells = [
            escape(run.name),
            *(escape(_value(summary.get(key))) for key in ("dataset", "rule", "backend", "release")),
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            f'{_chip(guarantee)} <span class="whole">{escape(statement.headline(guarantee))}</span>',
            "–" if share is None else f"{100 * share:.1f} %",
            "–" if seconds is None else f'<span class="whole">{escape(_duration(seconds))}</span>',
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return _table(head, rows)


def _table(head: str, rows: Iterable[str]) -> str:
    """A wide table that scrolls by itself; `head` and `rows` are HTML."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _differences(runs: Sequence[Run]) -> str:
    """Table of the configuration keys whose values are not the same in all runs; empty where all agree."""
    configs = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({_value(config.get(key)) for config in configs}) > 1]
    if not differing:
        return ""
    head = "<th></th>" + "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows = [
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{escape(_value(config.get(key)))}</td>" for config in configs)
        + "</tr>"
        for key in differing
    ]
    return _table(head, rows)


def _configuration_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary's own settings, for a folder without a configuration file."""
    return {
        key: value
        for key, value in summary.items()
        if key not in {"guarantee", "versions", "cost_per_record"}
    }


def _versions(summary: Mapping[str, Any]) -> dict[str, Any]:
    versions = summary.get("versions")
    return versions if isinstance(versions, dict) else {}


def _value(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
