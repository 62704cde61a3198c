"""What a planned privacy budget says: its guarantee, a JSON document, and the picture of one quantity over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noise_models.errors import UsageError
from optical_dfa.report.plots import COLOURS, drawing_style
from privacy.accounting.planning import Plan, complete
from privacy.accounting.poisson_frames import least_rate_of
from privacy.guarantee import Guarantee, Kind
from privacy.releases import RELEASES

_CURVE = 25  # points of epsilon over steps

_SAMPLED = (
    "every step samples each record independently at the sample rate (Poisson), with coins that stay secret"
)
_ASSUMPTIONS = {
    "gaussian": (
        _SAMPLED,
        "one record's whole update is clipped to the norm that the noise multiplier refers to",
        "the noise is Gaussian, secret, fresh at every step, and covers every released coordinate",
    ),
    "skellam": (
        _SAMPLED,
        "one record's whole update is rounded to integers and kept within the sensitivity given",
        "the noise is Skellam, drawn exactly, secret, fresh at every step, and covers every released coordinate",
    ),
    "label-gaussian": (
        "inputs and batches are public, every record takes part once an epoch, its label acts through the error only",
        "in every step of an epoch each record's Gaussian-DP parameter is at most 1 / noise multiplier",
        "every layer's projections carry secret, fresh, un-rounded Gaussian noise, the output layer's too",
    ),
    "poisson": (
        _SAMPLED,
        "a step releases counts of photo-electrons, independent Poisson ones; what a camera adds to them does not "
        "depend on records",
        "with or without a record, no pixel's expected count is below the least rate",
        "one record changes the expected counts of all frames of a step, taken together, by no more than the "
        "sensitivity (l2) and the largest change of a pixel: upper limits, in photo-electrons",
        "no release of this program relies on shot noise: this plans a device of your own",
    ),
    "photon": (
        _SAMPLED,
        "one record's whole update is clipped, in whole numbers, to the norm that the noise multiplier refers to: "
        "twice the most that one record moves the amplitudes (roots of expected counts) of all pixels by, inverted",
        "counts of photo-electrons are independent Poisson ones; what a camera adds to them does not depend on records",
        "one record changes no pixel's amplitude by more than the sensitivity's share of it",
    ),
    "published": (
        _SAMPLED,
        "NOT a worst-case guarantee: noise inside each record's projection is taken for isotropic noise on the sum",
    ),
}


def guarantee_of(plan: Plan) -> Guarantee:
    """The statement that a plan makes, with the assumptions of its mechanism."""
    scheme = plan.scheme
    ours = (RELEASES[name] for name in RELEASES.built_in)
    kinds = [terms.kind for terms in ours if terms.mechanism == scheme.mechanism]
    assumptions = _ASSUMPTIONS[scheme.mechanism]
    if scheme.beta:
        assumptions += (
            f"the device's calibration holds, but for a probability of {scheme.beta:g} within delta",
        )
    return Guarantee(
        epsilon=plan.epsilon,
        delta=scheme.delta,
        adjacency=scheme.adjacency,
        kind=kinds[0] if kinds else Kind.RECORD_DP,
        accountant=scheme.accountant,
        assumptions=assumptions,
    )


def epsilon_label(plan: Plan) -> str:
    """What a column or axis of its epsilon is called: never bare where it is no guarantee."""
    kind = guarantee_of(plan).kind
    return "epsilon" if kind in (Kind.RECORD_DP, Kind.LABEL_DP) else f"epsilon ({kind.value})"


def document_of(plan: Plan) -> dict[str, Any]:
    """The plan in JSON types."""
    scheme = plan.scheme
    document = guarantee_of(plan).to_dict() | {
        "mechanism": scheme.mechanism,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": scheme.sample_rate,
        "steps": plan.steps,
        "calibration_beta": scheme.beta,
    }
    if plan.capped:  # as many fit, perhaps more
        document["steps_capped"] = True
    if scheme.mechanism == "skellam":
        document |= {"sensitivity": scheme.sensitivity, "dimension": scheme.dimension}
    if scheme.mechanism == "poisson":
        document |= {
            "sensitivity": scheme.sensitivity,
            "largest": min(scheme.largest, scheme.sensitivity),
            "least_rate": least_rate_of(plan.noise_multiplier, scheme.sensitivity),
        }
    return document


def draw_steps(plan: Plan, path: Path) -> None:
    """Epsilon over the steps up to the plan's, as one PNG.

    Raises:
        UsageError: epsilon is infinite from the first step on.
    """
    counts = sorted({round(count) for count in np.geomspace(max(1, plan.steps / 1000), plan.steps, _CURVE)})
    curve = [complete(plan.scheme, noise_multiplier=plan.noise_multiplier, steps=count) for count in counts]
    points = [(float(at.steps), at.epsilon) for at in curve if math.isfinite(at.epsilon)]
    if not points:
        raise UsageError(f"--plot {path}: epsilon is infinite from the first step on; give more noise")
    title = title_of(plan, without=("steps", "epsilon"))
    marked = (float(plan.steps), plan.epsilon) if math.isfinite(plan.epsilon) else None
    draw_budget(points, path, labels=("steps", epsilon_label(plan)), title=title, plan=marked)


def draw_budget(
    points: Sequence[tuple[float, float]],
    path: Path,
    *,
    labels: tuple[str, str],
    title: str,
    plan: tuple[float, float] | None = None,
) -> None:
    """One PNG with the points joined by a line; a wide range of the horizontal axis is drawn logarithmically.

    Args:
        points: (horizontal, vertical), at least one, finite.
        path: to write; its folder must exist.
        labels: of the two axes.
        title: over the axes.
        plan: a point to mark and to write the value of.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.8), dpi=160, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        across, up = zip(*sorted(points), strict=True)
        axes.plot(across, up, color=COLOURS["accent"], marker="o", markersize=3.5)
        if across[0] > 0 and across[-1] > 20 * across[0]:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.12 * max(up))
        if plan is not None:
            axes.plot(*plan, color=COLOURS["second"], marker="o", markersize=7)
            axes.annotate(
                f"{plan[1]:.4g}",
                plan,
                xytext=(-8, 6),
                textcoords="offset points",
                ha="right",
                color=COLOURS["second"],
                fontweight="bold",
            )
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title)
        figure.savefig(path, format="png")


def title_of(plan: Plan, without: tuple[str, ...]) -> str:
    """The settings of a plan, but for those named `without`."""
    scheme = plan.scheme
    parts = {
        "noise_multiplier": f"noise multiplier {plan.noise_multiplier:.4g}",
        "sample_rate": f"sample rate {scheme.sample_rate:.4g}",
        "steps": f"{plan.steps:,} steps",
        "epsilon": f"ε {plan.epsilon:.4g}",
        "delta": f"δ {scheme.delta:g}",
    }
    if "epochs" in without:
        parts.pop("steps")
    return f"{scheme.mechanism}: " + ", ".join(text for key, text in parts.items() if key not in without)
