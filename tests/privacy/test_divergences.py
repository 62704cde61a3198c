"""Divergences of Gaussian pairs against closed forms, quadrature, noncentral chi-squares and simulation (THEORY T2)."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import multivariate_normal, ncx2, norm

from noise_models.errors import UsageError
from privacy.accounting.divergences import GaussianPair, batch_pair
from privacy.accounting.gdp import gaussian_delta

seeds = st.integers(0, 2**32 - 1)
levels = st.floats(0.0, 5.0)


def loss(pair: GaussianPair, x: np.ndarray) -> np.ndarray:
    """ln dN1/dN2 at x, shape (..., n)."""
    per = x**2 / 2 - (x - pair.shifts) ** 2 / (2 * pair.ratios) - 0.5 * np.log(pair.ratios)
    return np.asarray(per.sum(axis=-1))


def random_pair(rng: np.random.Generator, n: int, spread: float = 1.0) -> GaussianPair:
    return GaussianPair(np.exp(rng.normal(0, spread, n)), rng.normal(0, 1, n))


def random_covariances(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Means and covariances of a random pair on all of R^n."""
    factors = rng.standard_normal((2, n, 2 * n))
    return (
        rng.standard_normal(n),
        factors[0] @ factors[0].T,
        rng.standard_normal(n),
        factors[1] @ factors[1].T,
    )


def one_dimension(ratio: float, shift: float, epsilon: float) -> float:
    """The positive part of the densities' difference, integrated between its zeros."""
    pair = GaussianPair(np.asarray([ratio]), np.asarray([shift]))
    a, b = 0.5 - 0.5 / ratio, shift / ratio
    c = -0.5 * shift**2 / ratio - 0.5 * math.log(ratio) - epsilon
    zeros = sorted(float(z.real) for z in np.roots([a, b, c]) if abs(z.imag) < 1e-9)
    reach = 12 * max(1.0, math.sqrt(ratio))
    inner = [z for z in (*zeros, 0.0, shift) if -reach - abs(shift) < z < reach + abs(shift)]
    edges = sorted([-reach - abs(shift), *inner, reach + abs(shift)])

    def excess(x: float) -> float:
        first = norm.pdf(x, shift, math.sqrt(ratio))
        return float(first * -math.expm1(min(0.0, epsilon - float(loss(pair, np.asarray([x]))))))

    return sum(
        quad(excess, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for low, high in pairwise(edges)
    )


@given(st.floats(-2.0, 2.0), st.floats(-3.0, 3.0), levels)
@settings(max_examples=25, deadline=None)
def test_one_coordinate_against_quadrature(log_ratio: float, shift: float, epsilon: float) -> None:
    if abs(log_ratio) < 1e-3:
        return
    pair = GaussianPair(np.asarray([math.exp(log_ratio)]), np.asarray([shift]))
    exact = one_dimension(math.exp(log_ratio), shift, epsilon)
    assert pair.hockey_stick(epsilon) == pytest.approx(exact, abs=1e-9)
    twin = GaussianPair(np.append(pair.ratios, 1.0), np.append(pair.shifts, 1e-9))  # by inversion
    assert twin.hockey_stick(epsilon) == pytest.approx(exact, abs=1e-8)


@given(seeds, st.integers(2, 8), st.floats(0.2, 5.0), levels)
@settings(max_examples=60, deadline=None)
def test_equal_ratios_against_the_noncentral_chi_square(
    seed: int, n: int, ratio: float, epsilon: float
) -> None:
    """The loss is then a quadratic of |x + b|²: a reference implementation of every dimension."""
    if abs(ratio - 1) < 1e-2:
        return
    shift = np.random.default_rng(seed).normal(0, 1, n)
    a, b = 0.5 - 0.5 / ratio, shift / ratio
    centre = b / (2 * a)
    constant = -0.5 * shift @ shift / ratio - 0.5 * n * math.log(ratio) - a * centre @ centre
    threshold = (epsilon - constant) / a  # of |x + centre|²
    tail = ncx2.sf if a > 0 else ncx2.cdf
    if threshold <= 0:
        exact = 0.0
    else:
        first = tail(threshold / ratio, n, float((shift + centre) @ (shift + centre)) / ratio)
        exact = float(first - math.exp(epsilon) * tail(threshold, n, float(centre @ centre)))
    pair = GaussianPair(np.full(n, ratio), shift)
    assert pair.hockey_stick(epsilon) == pytest.approx(max(0.0, exact), abs=1e-7)


@given(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5), st.floats(-2, 2), st.floats(-2, 2), st.floats(0.0, 3.0))
@settings(max_examples=12, deadline=None)
def test_two_coordinates_against_quadrature(r: float, s: float, a: float, b: float, epsilon: float) -> None:
    """delta of a product: one coordinate integrated, the other by its one-dimensional delta."""
    if abs(r) < 0.05 or abs(s) < 0.05:
        return
    one, other = (GaussianPair(np.exp([x]), np.asarray([y])) for x, y in ((r, a), (s, b)))
    width, mean = math.exp(s / 2), b

    def given_other(x: float) -> float:
        density = norm.pdf(x, mean, width)
        rest = epsilon - float(loss(other, np.asarray([x])))
        return float(density * one.hockey_stick(max(-600.0, rest))) if density > 0 else 0.0

    # Where the other coordinate's loss leaves exactly the extreme loss of the first, the integrand has a kink.
    extreme = a**2 / (2 * (1 - math.exp(r))) - 0.5 * r
    quadratic = [0.5 - 0.5 / width**2, mean / width**2, -0.5 * mean**2 / width**2 - s / 2 - epsilon + extreme]
    kinks = [float(z.real) for z in np.roots(quadratic) if abs(z.imag) < 1e-9]
    edges = sorted([mean - 10 * width, mean + 10 * width, *(k for k in kinks if abs(k - mean) < 10 * width)])
    pieces = (quad(given_other, x, y, epsabs=1e-11, epsrel=1e-9, limit=200)[0] for x, y in pairwise(edges))
    together = GaussianPair.product(one, other)
    assert together.hockey_stick(epsilon) == pytest.approx(sum(pieces), abs=1e-7)


@pytest.mark.parametrize("n", [2, 3, 6, 20, 200])
def test_random_covariances_within_the_monte_carlo_interval(n: int) -> None:
    """1e6 draws a case, three cases a dimension; each interval is missed by chance with probability 1e-6."""
    rng = np.random.default_rng(1000 + n)
    draws = 1_000_000 if n <= 6 else 100_000
    for epsilon in (0.0, 0.5, 2.0):
        pair = random_pair(rng, n, 1 / math.sqrt(n))
        pair = GaussianPair(pair.ratios, pair.shifts / math.sqrt(n))
        x = pair.shifts + np.sqrt(pair.ratios) * rng.standard_normal((draws, n))
        value = np.clip(-np.expm1(epsilon - loss(pair, x)), 0.0, None)
        error = float(value.std()) / math.sqrt(draws)
        assert abs(float(value.mean()) - pair.hockey_stick(epsilon)) <= float(norm.isf(5e-7)) * error


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_diagonalising_keeps_the_privacy_loss(seed: int, n: int) -> None:
    """D_1 and D_2 of the diagonal pair are those of the densities as given."""
    rng = np.random.default_rng(seed)
    m1, s1, m2, s2 = random_covariances(rng, n)
    pair = GaussianPair.of(m1, s1, m2, s2)
    inverse = np.linalg.inv(s2)
    kullback = 0.5 * (
        np.trace(inverse @ s1) + (m1 - m2) @ inverse @ (m1 - m2) - n
        + np.linalg.slogdet(s2)[1] - np.linalg.slogdet(s1)[1]
    )  # fmt: skip
    assert pair.renyi(1.0) == pytest.approx(kullback, rel=1e-6, abs=1e-9)
    mixed = 2 * s2 - s1
    if np.linalg.eigvalsh(mixed)[0] > 1e-3:
        d = m1 - m2
        logs = [np.linalg.slogdet(s)[1] for s in (mixed, s1, s2)]
        assert pair.renyi(2.0) == pytest.approx(
            d @ np.linalg.solve(mixed, d) - 0.5 * (logs[0] + logs[1] - 2 * logs[2]), rel=1e-5, abs=1e-8
        )
    elif np.linalg.eigvalsh(mixed)[0] < -1e-3:
        assert pair.renyi(2.0) == math.inf


@given(seeds, st.floats(1.1, 3.0))
@settings(max_examples=20, deadline=None)
def test_renyi_against_quadrature(seed: int, order: float) -> None:
    rng = np.random.default_rng(seed)
    ratio, shift = float(rng.uniform(0.4, 1.3)), float(rng.normal())
    pair = GaussianPair(np.asarray([ratio]), np.asarray([shift]))

    def integrand(x: float) -> float:
        exponent = order * norm.logpdf(x, shift, math.sqrt(ratio)) + (1 - order) * norm.logpdf(x)
        return math.exp(exponent)

    centre = order * shift / (order + (1 - order) * ratio)
    width = math.sqrt(ratio / (order + (1 - order) * ratio)) * 12
    value, _ = quad(integrand, centre - width, centre + width, epsabs=0, epsrel=1e-10, limit=300)
    assert pair.renyi(order) == pytest.approx(math.log(value) / (order - 1), rel=1e-7, abs=1e-9)


@given(seeds, st.integers(1, 5), levels)
@settings(max_examples=40, deadline=None)
def test_rotation_and_units_do_not_matter_and_both_directions_belong_together(
    seed: int, n: int, epsilon: float
) -> None:
    rng = np.random.default_rng(seed)
    m1, s1, m2, s2 = random_covariances(rng, n)
    pair = GaussianPair.of(m1, s1, m2, s2)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.exp(rng.normal(0, 1))
    moved = GaussianPair.of(turn @ m1 + 3, turn @ s1 @ turn.T, turn @ m2 + 3, turn @ s2 @ turn.T)
    assert moved.hockey_stick(epsilon) == pytest.approx(pair.hockey_stick(epsilon), abs=1e-7)
    back = GaussianPair.of(m2, s2, m1, s1)
    assert pair.reversed().hockey_stick(epsilon) == pytest.approx(back.hockey_stick(epsilon), abs=1e-7)
    assert pair.reversed().hockey_stick(0.0) == pytest.approx(
        pair.hockey_stick(0.0), abs=1e-7
    )  # total variation


@given(seeds, st.integers(2, 5), levels, st.floats(1.1, 8.0))
@settings(max_examples=40, deadline=None)
def test_data_processing(seed: int, n: int, epsilon: float, order: float) -> None:
    """A linear image, independent noise, or fewer coordinates never tell more."""
    rng = np.random.default_rng(seed)
    m1, s1, m2, s2 = random_covariances(rng, n)
    pair = GaussianPair.of(m1, s1, m2, s2)
    part = rng.standard_normal((int(rng.integers(1, n + 1)), n))
    image = GaussianPair.of(part @ m1, part @ s1 @ part.T, part @ m2, part @ s2 @ part.T)
    noisy = GaussianPair.of(m1, s1 + np.eye(n), m2, s2 + np.eye(n))
    for less in (image, noisy):
        assert less.hockey_stick(epsilon) <= pair.hockey_stick(epsilon) + 1e-7
        assert less.renyi(order) <= pair.renyi(order) * (1 + 1e-6) + 1e-9


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_delta_falls_with_epsilon_and_the_inverse_finds_it(seed: int, n: int) -> None:
    pair = random_pair(np.random.default_rng(seed), n, 0.4)
    grid = [pair.hockey_stick(e) for e in np.linspace(-1.0, 6.0, 15)]
    assert all(b <= a + 1e-9 for a, b in pairwise(grid))
    assert all(0.0 <= value <= 1.0 for value in grid)
    for delta in (1e-5, 1e-2):
        epsilon = pair.epsilon(delta)
        assert pair.hockey_stick(epsilon) == pytest.approx(delta, rel=1e-3) or epsilon == 0.0


def test_equal_covariances_are_the_gaussian_mechanism() -> None:
    rng = np.random.default_rng(5)
    shift, factor = rng.standard_normal(4), rng.standard_normal((4, 8))
    covariance = factor @ factor.T
    pair = GaussianPair.of(shift, covariance, np.zeros(4), covariance)
    mu = math.sqrt(shift @ np.linalg.solve(covariance, shift))
    for epsilon in (0.0, 0.7, 3.0):
        assert pair.hockey_stick(epsilon) == pytest.approx(gaussian_delta(mu, epsilon), rel=1e-5)
        assert pair.hockey_stick(-epsilon) == pytest.approx(gaussian_delta(mu, -epsilon), rel=1e-5)
    assert pair.renyi(5.0) == pytest.approx(2.5 * mu**2, rel=1e-6)


def test_tiny_deltas_keep_their_digits() -> None:
    """Against the closed form on two coordinates that differ by 1e-7 in variance: inversion, not the shortcut."""
    pair = GaussianPair(np.asarray([1 + 1e-7, 1 - 1e-7]), np.asarray([0.3, 0.4]))
    for epsilon in (1.0, 3.0, 5.0):
        assert pair.hockey_stick(epsilon) == pytest.approx(gaussian_delta(0.5, epsilon), rel=1e-4)
    assert gaussian_delta(0.5, 5.0) < 1e-20


def test_different_supports_hide_nothing() -> None:
    line, plane = np.diag([1.0, 0.0]), np.eye(2)
    for first, second in ((line, plane), (plane, line), (line, np.diag([0.0, 1.0]))):
        pair = GaussianPair.of(np.zeros(2), first, np.zeros(2), second)
        assert pair.singular
        assert pair.hockey_stick(20.0) == 1.0
        assert pair.renyi(1.5) == math.inf
        assert pair.epsilon(0.5) == math.inf
        assert pair.reversed().epsilon(0.5) == math.inf
    beside = GaussianPair.of(np.asarray([0.0, 1.0]), line, np.zeros(2), line)
    assert beside.epsilon(0.5) == math.inf
    along = GaussianPair.of(np.asarray([1.0, 0.0]), line, np.zeros(2), line)
    assert along.hockey_stick(1.0) == pytest.approx(gaussian_delta(1.0, 1.0), rel=1e-9)
    assert GaussianPair.product(along, beside).singular
    point = GaussianPair.of(np.zeros(2), np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2)))
    assert point.hockey_stick(0.0) == 0.0
    assert not point.singular


@given(seeds, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_common_singular_support_changes_nothing(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    m1, s1, m2, s2 = random_covariances(rng, n)
    into = np.linalg.qr(rng.standard_normal((n + 3, n)))[0]
    pair = GaussianPair.of(m1, s1, m2, s2)
    inside = GaussianPair.of(into @ m1, into @ s1 @ into.T, into @ m2, into @ s2 @ into.T)
    assert inside.hockey_stick(0.8) == pytest.approx(pair.hockey_stick(0.8), abs=1e-7)
    assert len(inside.ratios) == n


def test_renyi_is_infinite_where_the_first_world_is_too_wide() -> None:
    pair = GaussianPair(np.asarray([1.5]), np.asarray([0.0]))
    assert pair.renyi(2.9) < math.inf
    assert pair.renyi(3.0) == math.inf
    assert pair.reversed().renyi(50.0) < math.inf


def test_a_batchs_rows_against_their_covariances() -> None:
    """Leverage and rank-one update against the explicit Gaussian of every row (THEORY T1)."""
    rng = np.random.default_rng(11)
    records, columns, neurons, sigma = 12, 5, 3, 0.7
    inputs = np.hstack([rng.standard_normal((records, columns - 1)), np.ones((records, 1))])
    slope = rng.uniform(0.2, 1.0, (records, neurons))
    errors = rng.normal(0, 0.5, neurons)
    pair = batch_pair(slope, inputs, errors, 4, sigma)
    rows = []
    for k in range(neurons):
        factor = slope[:, k, None] * inputs
        others = np.delete(factor, 4, axis=0)
        mean = errors[k] * factor[4]
        rows.append(
            GaussianPair.of(
                mean, sigma**2 * factor.T @ factor, np.zeros(columns), sigma**2 * others.T @ others
            )
        )
    explicit = GaussianPair.product(*rows)
    for epsilon in (0.0, 1.0):
        assert pair.hockey_stick(epsilon) == pytest.approx(explicit.hockey_stick(epsilon), abs=1e-7)
        assert pair.reversed().hockey_stick(epsilon) == pytest.approx(
            explicit.reversed().hockey_stick(epsilon), abs=1e-7
        )
    assert pair.reversed().renyi(4.0) == pytest.approx(explicit.reversed().renyi(4.0), rel=1e-5)


def test_a_record_outside_the_others_span_is_seen_with_certainty() -> None:
    """A pixel that is lit in one record only: delta 1 at any epsilon and any noise (THEORY T1)."""
    inputs = np.asarray([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0], [0.3, 0.2, 1.0], [0.1, 0.0, 1.0]])
    slope = np.ones((4, 2))
    seen = batch_pair(slope, inputs, np.zeros(2), 2, 1e6)
    assert seen.singular
    assert seen.hockey_stick(50.0) == 1.0
    hidden = batch_pair(slope, inputs, np.full(2, 0.1), 0, 1.0)
    assert not hidden.singular
    slope[2] = 0.0  # its neurons are off: it contributes nothing
    silent = batch_pair(slope, inputs, np.ones(2), 2, 1.0)
    assert silent.hockey_stick(0.0) == 0.0


def test_densities_are_what_the_losses_say() -> None:
    rng = np.random.default_rng(3)
    m1, s1, m2, s2 = random_covariances(rng, 3)
    x = rng.multivariate_normal(m1, s1, 40_000)
    direct = multivariate_normal(m1, s1).logpdf(x) - multivariate_normal(m2, s2).logpdf(x)
    value = np.clip(-np.expm1(0.5 - direct), 0, None)
    error = float(value.std()) / 200
    exact = GaussianPair.of(m1, s1, m2, s2).hockey_stick(0.5)
    assert abs(float(value.mean()) - exact) <= float(norm.isf(5e-7)) * error


@pytest.mark.parametrize("variance", [1e-9, 1e-12, 1e-20, 1e-200])
def test_a_variance_along_an_axis_counts_whatever_its_size(variance: float) -> None:
    """In its own units it is like any other: THEORY T2 knows no smallest variance."""
    for scale in (0.5, 3.0):
        covariances = np.diag([1.0, variance]), np.diag([2.0, 1.5 * variance])
        shift = np.asarray([0.0, scale * math.sqrt(variance)])
        pair = GaussianPair.of(shift, covariances[0], np.zeros(2), covariances[1])
        plain = GaussianPair(np.asarray([0.5, 1 / 1.5]), np.asarray([0.0, scale / math.sqrt(1.5)]))
        assert pair.renyi(2.0) == pytest.approx(plain.renyi(2.0), rel=1e-9)
        assert pair.hockey_stick(0.5) == pytest.approx(plain.hockey_stick(0.5), abs=1e-8)


@given(seeds, st.floats(-11.0, -2.0), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_a_small_variance_across_the_axes_counts(seed: int, exponent: float, n: int) -> None:
    """To rounding over the variance: its entries hold no more."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    variances = np.append(np.ones(n - 1), 10.0**exponent)
    shift = 2 * np.sqrt(variances[-1]) * turn[:, -1]
    covariance = (turn * variances) @ turn.T
    pair = GaussianPair.of(shift, covariance, np.zeros(n), (covariance + covariance.T) / 2)
    assert pair.renyi(2.0) == pytest.approx(4.0, rel=1e-13 / variances[-1])


@pytest.mark.parametrize("shift", [2e-5, 9e-6, 1e-12, 1e-300])
def test_a_shift_where_there_is_no_noise_is_seen_whatever_its_size(shift: float) -> None:
    line = np.diag([1.0, 0.0])
    pair = GaussianPair.of([5.0, shift], line, [0.0, 0.0], line)
    assert pair.renyi(2.0) == math.inf
    assert pair.hockey_stick(1.0) == 1.0


@given(seeds, st.integers(1, 4), st.floats(-10.0, 0.0))
@settings(max_examples=60, deadline=None)
def test_a_shift_off_a_singular_support_is_seen(seed: int, n: int, exponent: float) -> None:
    """Above rounding; the same pair without it has a common support."""
    rng = np.random.default_rng(seed)
    m1, s1, m2, s2 = random_covariances(rng, n)
    frame = np.linalg.qr(rng.standard_normal((n + 3, n + 3)))[0]
    into, off = frame[:, :n], frame[:, n]
    covariances = into @ s1 @ into.T, into @ s2 @ into.T
    inside = GaussianPair.of(into @ m1, covariances[0], into @ m2, covariances[1])
    beside = GaussianPair.of(into @ m1 + 10.0**exponent * off, covariances[0], into @ m2, covariances[1])
    assert not inside.singular
    assert beside.singular


def test_what_is_no_covariance_at_its_own_scale_errs_towards_alarm() -> None:
    tiny = np.diag([1.0, 1e-10])
    for other in (np.diag([1.0, -1e-10]), [[1.0, 1e-10], [1e-10, 0.0]], [[1.0, 1e-10], [0.0, 1e-20]]):
        assert GaussianPair.of(np.zeros(2), tiny, np.zeros(2), other).singular
        assert GaussianPair.of(np.zeros(2), other, np.zeros(2), other).singular


@pytest.mark.parametrize("lit", [1e-3, 5e-6, 1e-12, 1e-300])
def test_a_pixel_lit_on_the_record_alone_is_seen_however_faint(lit: float) -> None:
    rng = np.random.default_rng(0)
    inputs = np.hstack([rng.standard_normal((20, 4)), np.zeros((20, 1))])
    inputs[7, 4] = lit
    pair = batch_pair(np.ones((20, 3)), inputs, np.ones(3), 7, 1.0)
    assert pair.epsilon(1e-5) == math.inf
    inputs[3, 4] = lit  # as faint on another one: it hides the record as well as a bright one would
    faint = batch_pair(np.ones((20, 3)), inputs, np.ones(3), 7, 1.0)
    inputs[[3, 7], 4] = 1.0
    bright = batch_pair(np.ones((20, 3)), inputs, np.ones(3), 7, 1.0)
    assert faint.renyi(1.0) == pytest.approx(bright.renyi(1.0), rel=1e-9)


@given(seeds, st.integers(1, 6), st.floats(-9.0, 0.0))
@settings(max_examples=60, deadline=None)
def test_a_record_is_inside_the_others_span_or_outside(seed: int, rank: int, exponent: float) -> None:
    """Records and columns of very different sizes; a step of 1e-9 of the record's size off the span is seen."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-6, 6, rank + 2)
    base = rng.standard_normal((rank + 1, rank + 2))
    inputs = rng.standard_normal((rank + 4, rank)) @ base[:rank]
    inside = batch_pair(np.ones((rank + 4, 1)), inputs * sizes, np.ones(1), 0, 1.0)
    assert not inside.singular
    inputs[0] += 10.0**exponent * base[rank]
    assert batch_pair(np.ones((rank + 4, 1)), inputs * sizes, np.ones(1), 0, 1.0).singular


@given(seeds, st.floats(-7.0, 7.0))
@settings(max_examples=25, deadline=None)
def test_odds_of_a_leverage_against_forty_digits(seed: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((7, 4)) * np.asarray([1.0, 10.0**exponent, 1e-9, 1e5])
    inputs[0] *= 10.0**exponent
    pair = batch_pair(np.ones((7, 1)), inputs, np.ones(1), 0, 0.5)
    with mpmath.workdps(40):
        own, others = mpmath.matrix(inputs[0].tolist()), mpmath.matrix(inputs[1:].tolist())
        odds = float((own.T * mpmath.lu_solve(others.T * others, own))[0])
    assert pair.ratios[0] - 1 == pytest.approx(odds, rel=1e-8, abs=1e-15)
    assert pair.shifts[0] == pytest.approx(2 * math.sqrt(odds), rel=1e-8)


@given(seeds, st.integers(1, 4), st.floats(0.0, 12.0), st.floats(0.0, 1e9))
@settings(max_examples=40, deadline=None)
def test_far_apart_is_certain_and_nothing_is_below_zero(
    seed: int, n: int, spread: float, epsilon: float
) -> None:
    """Without an overflow on the way."""
    rng = np.random.default_rng(seed)
    pair = GaussianPair(10.0 ** rng.uniform(-spread, spread, n), 10.0 ** rng.uniform(-3, spread, n))
    for way in (pair, pair.reversed()):
        found = [way.hockey_stick(level) for level in (0.0, 1.0, 1.0 + epsilon)]
        assert all(b <= a + 1e-8 for a, b in pairwise(found))
        assert all(math.copysign(1.0, value) == 1.0 and value <= 1.0 for value in found)
        if way.renyi(0.5) > 100:
            assert found[:2] == [1.0, 1.0]
    still = GaussianPair(np.ones(2), np.zeros(2)).hockey_stick(1.0)
    assert math.copysign(1.0, still) == 1.0


def test_total_variation_is_the_same_both_ways_where_the_integrand_is_high() -> None:
    """Its height at the saddle, above 1e5 here, must not multiply the stated error; 1e-6 apart before."""
    pair = GaussianPair(
        np.asarray([4520.8, 1.24, 8492.0, 3.4825e-4]), np.asarray([21.25, 0.4814, 517.07, 0.01752])
    )
    assert pair.hockey_stick(0.0) == pytest.approx(pair.reversed().hockey_stick(0.0), abs=1e-9)
    assert pair.hockey_stick(0.0) > pair.hockey_stick(1.0)
    assert pair.reversed().hockey_stick(0.0) > pair.reversed().hockey_stick(1.0)


def test_the_certain_is_continuous_with_the_computed() -> None:
    for mu in (17.7, 18.1):  # on either side of D_(1/2) = 80
        pair = GaussianPair(np.ones(1), np.asarray([mu]))
        assert pair.hockey_stick(0.0) == pytest.approx(gaussian_delta(mu, 0.0), abs=1e-15)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GaussianPair(np.ones(2), np.zeros(3)),
        lambda: GaussianPair(np.zeros(2), np.zeros(2)),
        lambda: GaussianPair.of([0.0], [[1.0]], [0.0, 1.0], [[1.0]]),
        lambda: GaussianPair.of([0.0], [[-1.0]], [0.0], [[1.0]]),
        lambda: GaussianPair.of([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], [0.0, 0.0], np.eye(2)),
        lambda: GaussianPair.of([math.nan], [[1.0]], [0.0], [[1.0]]),
        lambda: GaussianPair.of([0.0], [[1.0]], [0.0], [[1.0]], tolerance=0.0),
        lambda: GaussianPair(np.ones(1), np.ones(1)).renyi(0.0),
        lambda: GaussianPair(np.ones(1), np.ones(1)).hockey_stick(math.inf),
        lambda: GaussianPair(np.ones(1), np.ones(1)).epsilon(0.0),
        lambda: batch_pair(np.ones((3, 2)), np.ones((4, 2)), np.ones(2), 0, 1.0),
        lambda: batch_pair(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), 3, 1.0),
        lambda: batch_pair(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), 0, 0.0),
    ],
)
def test_wrong_values_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
