"""`gradient-inversion`: one record's input from a single released step, as a picture (THEORY T1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks.records import load_records
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import NEGLIGIBLE, Worlds, claimed, claimed_kind
from optical_dfa.networks import building as models
from privacy.attacks.finding import Finding
from privacy.attacks.row_solving import Inverted, invert

Array = NDArray[np.float64]

BATCH = 32
WIDTH = 512
EPSILON = 4.0
# Beside what is attacked, the same step of these is drawn.
COMPARED = "dark-frame"


def run(setting: Setting) -> Finding:
    """The attack's finding: correlations of the reconstructions with the record, and no epsilon.

    Raises:
        UsageError: too few records.
    """
    setting.progress.start(2)
    records = load_records(setting.dataset, setting.data_dir)
    batch = min(BATCH, records.width // 2)
    x, y = records.batch(batch, setting.seed)
    inverted: dict[str, Inverted] = {}
    claim, name = 0.0, ""
    compared = [setting.release, *([COMPARED] if setting.release != COMPARED and setting.out else [])]
    for number, release in enumerate(compared):
        worlds = Worlds(
            release=release,
            backend=setting.backend if release == setting.release else None,
            rule=setting.rule,
            max_grad_norm=1.0,
            dark_pixels=1 << 17,
            net=lambda: models.build(f"mlp:{WIDTH}", (records.width,), records.classes, setting.seed),
            others=(x[:-1], y[:-1]),
            target=(x[-1:], y[-1:]),
        )
        sigma = worlds.calibrated(setting.epsilon or EPSILON, setting.delta)
        sums, engine = worlds.make(True, sigma, derive_seed(setting.seed, f"inverted {release}"))
        inverted[release] = _invert(worlds, sums.take(1)[0, 0], records.width)
        if release == setting.release:
            claim, name = claimed(engine, 1, setting.delta), worlds.backend_name
        setting.progress.update(number + 1, {})
    original = x[-1].double().numpy()
    if setting.out is not None:
        _draw(setting, original, inverted, records.shape)
    found = inverted[setting.release]
    return Finding(
        attack="gradient-inversion",
        release=setting.release,
        backend=name,
        epsilon_lower=None,
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=1,
        claim=f"one released step of {batch} records, all of which take part (q = 1)",
        details={
            "dataset": records.name,
            "correlation_off_span": abs(_correlation(found.off_span[:-1], original)),
            "correlation_record": abs(_correlation(found.record[:-1], original)),
            "share_in_one_direction": found.share,
        },
        notes=("a reconstruction is no test of a claim, so there is no lower bound; attack span gives one",),
    )


def _invert(worlds: Worlds, released: Array, width: int) -> Inverted:
    """From one release's first layer, and the adversary's own noiseless run of the others."""
    x = worlds.others[0].double().numpy()
    others = np.concatenate((x, np.ones((len(x), 1))), 1)
    split = WIDTH * width
    update = np.concatenate((released[:split].reshape(WIDTH, -1), released[split : split + WIDTH, None]), 1)
    return invert(update, others, _expected_deltas(worlds, others))


def _expected_deltas(worlds: Worlds, others: Array) -> Array:
    """δ of each other record without the device's noise, shape (m, n): the noiseless sum in the others' basis."""
    width = others.shape[1] - 1
    split = WIDTH * width
    total = worlds.readable.make(False, NEGLIGIBLE, 900, 1.0)[0].take(1)[0, 0]
    update = np.concatenate((total[:split].reshape(WIDTH, -1), total[split : split + WIDTH, None]), 1)
    # U = δ^T H, with fewer records than inputs: least squares gives δ back.
    found: Array = np.linalg.lstsq(others.T, update.T, rcond=1e-9)[0]
    return found


def _correlation(image: Array, original: Array) -> float:
    if image.std() == 0:
        return 0.0
    return float(np.corrcoef(image, original)[0, 1])


def _draw(
    setting: Setting, original: Array, inverted: dict[str, Inverted], shape: tuple[int, int] | None
) -> None:
    from optical_dfa.report.attacks import draw_inversion

    if shape is None or setting.out is None:
        raise UsageError(
            "the data set's records are no images of one channel, so there is no picture; leave out --out"
        )
    shown = {}
    for release, found in inverted.items():
        shown[f"{release}: off the span"] = found.off_span[:-1]
        shown[f"{release}: whole"] = found.record[:-1]
    draw_inversion(original, shown, shape, setting.out / "gradient-inversion.png")
