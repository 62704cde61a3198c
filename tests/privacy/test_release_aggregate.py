"""The noise multiplier of a device that noises the projected sum itself (THEORY T5): one analog frame a column."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.errors import UsageError
from privacy.accounting.divergences import GaussianPair
from privacy.releases.aggregate import noise_multiplier

sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=0, max_size=3)
levels = st.floats(0.05, 20.0)


def exact_mu(
    matrices: list[np.ndarray], stds: list[float], output_std: float, stack: list[np.ndarray]
) -> float:
    """sqrt(2 KL) of the whole released vector, with and without a record, from its covariance."""
    blocks = [(matrix @ part).T.ravel() for matrix, part in zip(matrices, stack[1:], strict=True)]
    shift = np.concatenate([stack[0], *blocks])
    variances = [np.full(stack[0].size, output_std**2)]
    variances += [np.full(block.size, std**2) for block, std in zip(blocks, stds, strict=True)]
    covariance = np.diag(np.concatenate(variances))
    pair = GaussianPair.of(shift, covariance, np.zeros_like(shift), covariance)
    return math.sqrt(2 * pair.renyi(1.0))


@settings(max_examples=60, deadline=None)
@given(sizes, levels, st.integers(0, 10**6), st.data())
def test_no_record_is_worse_than_the_multiplier_says(
    layers: list[tuple[int, int]], clip: float, seed: int, data: st.DataObject
) -> None:
    source = np.random.default_rng(seed)
    matrices = [source.normal(size=(n, p)) for n, p in layers]
    stds = [data.draw(levels) for _ in layers]
    output_std = data.draw(levels)
    norms = [float(np.linalg.norm(matrix, 2)) for matrix in matrices]
    mu = 1 / noise_multiplier(clip, norms, stds, output_std)
    stack = [source.normal(size=3), *(source.normal(size=(p, 2)) for _, p in layers)]
    norm = math.sqrt(sum(float((part**2).sum()) for part in stack))
    stack = [part * clip / norm for part in stack]
    assert exact_mu(matrices, stds, output_std, stack) <= mu * (1 + 1e-6)


@pytest.mark.parametrize("worst", ["layer", "output"])
def test_it_is_attained(worst: str) -> None:
    """A record along the leading singular vector of the worst layer, or in the output layer alone."""
    source = np.random.default_rng(1)
    matrices = [source.normal(size=(5, 3)), source.normal(size=(4, 3))]
    norms = [float(np.linalg.norm(matrix, 2)) for matrix in matrices]
    stds = [norms[0], norms[1] / (3.0 if worst == "layer" else 1.0)]
    output_std = 1.0 if worst == "layer" else 0.2
    stack = [np.zeros(2), np.zeros((3, 1)), np.zeros((3, 1))]
    if worst == "layer":
        stack[2] = 0.7 * np.linalg.svd(matrices[1])[2][:1].T
    else:
        stack[0] = np.array([0.7, 0.0])
    mu = exact_mu(matrices, stds, output_std, stack)
    assert mu == pytest.approx(1 / noise_multiplier(0.7, norms, stds, output_std), rel=1e-9)


def test_it_does_not_hold_for_several_digitised_frames() -> None:
    """THEORY T5: the readout post-processes the VECTOR of bit planes; 15 -> 16 flips five of them.

    Claimed: the sum moves by 1 of C = 1 under noise that gives total variation 0.058 for one analog frame. Actual: of
    five frames with that noise each, whose weighted sum has the claimed noise, each moves by a whole bit.
    """
    claimed_sigma = 0.5 / 0.0728  # total variation 2 Phi(1 / (2 sigma)) - 1 = 0.058
    weights = 2.0 ** np.arange(5)
    per_frame = claimed_sigma / float(np.linalg.norm(weights))  # Σ w_k N_k has std claimed_sigma
    fifteen, sixteen = (np.array([level >> k & 1 for k in range(5)], float) for level in (15, 16))
    cover = np.eye(5) * per_frame**2
    actual = GaussianPair.of(fifteen, cover, sixteen, cover).hockey_stick(0.0)
    frame = GaussianPair.of([0.0], [[claimed_sigma**2]], [1.0], [[claimed_sigma**2]]).hockey_stick(0.0)
    assert frame == pytest.approx(0.058, abs=5e-4)
    assert actual > 10 * frame


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, [1.0], [1.0], 1.0), "0.0 is no norm"),
        ((1.0, [math.inf], [1.0], 1.0), "inf is no norm"),
        ((1.0, [1.0], [-1.0], 1.0), "-1.0 is no norm"),
        ((1.0, [1.0], [1.0], math.nan), "nan is no norm"),
        ((1.0, [1.0, 2.0], [1.0], 1.0), "2 operator norms and 1 noise levels"),
    ],
)
def test_numbers_that_are_none_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        noise_multiplier(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
