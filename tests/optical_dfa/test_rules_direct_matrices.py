"""Laws of the feedback matrix, how layers share it, and how convolutions read it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import EXACT, normal
from torch import Tensor, nn
from torch.nn.functional import conv_transpose1d, conv_transpose2d, cross_entropy

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import AlignedModule, align
from optical_dfa.backends import create
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.rules import shared_kernel

C = 4


def digital(n_in: int, n_out: int, seed: int = 0, **options: Any) -> ProjectionBackend:
    noise = NoiseGenerator.secure("device")
    return create("digital", in_features=n_in, out_features=n_out, seed=seed, noise=noise, options=options)


def exact(device: ProjectionBackend) -> Tensor:
    """B in float64, shape (out, in), from what the device answers."""
    return device.project(torch.eye(device.in_features, dtype=torch.float64)).T


def net(*widths: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in zip((5, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], C)).double()


def signals(aligned: AlignedModule, error: Tensor) -> list[Tensor]:
    found = aligned.rule.feedback(error, aligned.points, aligned.backend)
    assert all(signal is not None for signal in found)
    return [signal for signal in found if signal is not None]


# ---- laws


@given(
    n_in=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_orthogonal_slices(n_in: int, sizes: list[int], seed: int) -> None:
    device = digital(n_in, sum(sizes), seed, distribution="orthogonal", slices=sizes)
    matrix = device.matrix()
    assert matrix is not None
    for part in matrix.double().split(sizes):
        n = len(part)
        gram = part.T @ part / n if n >= n_in else part @ part.T / n_in
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0.0, atol=1e-5)


def test_orthogonal_matrices_are_spread_evenly() -> None:
    """Haar: a fixed entry is as often positive as negative, of mean square 1, over the seeds."""
    entries = torch.stack([digital(3, 3, s, distribution="orthogonal").matrix() for s in range(400)])  # type: ignore[misc]
    assert entries.mean(0).abs().max() < 4 / math.sqrt(400)
    assert (entries.square().mean(0) - 1).abs().max() < 0.25


def test_orthogonal_feedback_keeps_the_errors_size() -> None:
    aligned = align(net(16, 9, 4), rule_options={"law": "orthogonal", "scale": 1.5}, show=None)
    error = normal(20, C)
    for signal in signals(aligned, error):
        torch.testing.assert_close(signal.norm(dim=1), 1.5 * error.norm(dim=1), rtol=1e-6, atol=0.0)


def test_binary_is_the_sign_of_normal() -> None:
    device = digital(6, 50, 3, distribution="binary")
    assert set(exact(device).unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(exact(device), exact(digital(6, 50, 3)).sign())


def test_laws_have_variance_one() -> None:
    for law in ("normal", "uniform", "binary", "orthogonal"):
        values = exact(digital(10, 4000, 1, distribution=law))
        assert abs(float(values.mean())) < 0.02, law
        assert float(values.square().mean()) == pytest.approx(1.0, abs=0.02), law
    assert float(exact(digital(10, 4000, 1, distribution="uniform")).abs().max()) <= math.sqrt(3)


@given(
    n_in=st.integers(1, 12), n_out=st.integers(1, 40), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_sparse_row_has_exactly_so_many(n_in: int, n_out: int, seed: int, data: st.DataObject) -> None:
    nonzeros = data.draw(st.integers(1, n_in))
    device = digital(n_in, n_out, seed, distribution="sparse", nonzeros=nonzeros)
    matrix = exact(device)
    assert (matrix != 0).sum(1).tolist() == [nonzeros] * n_out
    assert matrix.abs().max() <= math.sqrt(3)
    e = normal(7, n_in, seed=seed)
    torch.testing.assert_close(device.project(e), e @ matrix.T, **EXACT)
    torch.testing.assert_close(device.matrix(), matrix.float())
    assert device._matrix.products == nonzeros * n_out  # type: ignore[attr-defined]


@given(
    n_in=st.integers(2, 12), size=st.integers(24, 60), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_sparse_matrix_of_low_rank(n_in: int, size: int, seed: int, data: st.DataObject) -> None:
    nonzeros = data.draw(st.integers(1, n_in))
    rank = data.draw(st.integers(-(-n_in // nonzeros), 12))
    options = {"distribution": "sparse", "nonzeros": nonzeros, "rank": rank, "slices": [size, 2 * size]}
    device = digital(n_in, 3 * size, seed, **options)
    matrix = exact(device)
    for part in matrix.split([size, 2 * size]):
        assert ((part != 0).sum(1) == nonzeros).all()
        assert (part != 0).any(0).all()  # every component teaches somebody
        assert torch.linalg.matrix_rank(part) <= min(rank, n_in)
        assert float(part.std(correction=0)) == pytest.approx(math.sqrt(nonzeros / n_in), rel=1e-5)
    e = normal(7, n_in, seed=seed)
    torch.testing.assert_close(device.project(e), e @ matrix.T, **EXACT)
    assert device._matrix.products == 2 * rank * nonzeros + 3 * size  # type: ignore[attr-defined]


def test_a_rank_that_is_reached() -> None:
    matrix = exact(digital(10, 300, 1, distribution="sparse", nonzeros=3, rank=4))
    assert int(torch.linalg.matrix_rank(matrix)) == 4


@pytest.mark.parametrize("k", [1, 2, C])
def test_the_published_size_of_sparse_feedback(k: int) -> None:
    """r = 1/sqrt(n / sqrt(c k)); of standard deviation r (zeros counted) where a rank is given."""
    width = 4000
    reach = 1 / math.sqrt(width / math.sqrt(C * k))
    eye = torch.eye(C, dtype=torch.float64)
    (found,) = signals(align(net(width), rule="ssdfa", rule_options={"nonzeros": k}, show=None), eye)
    assert 0.999 * reach < float(found.abs().max()) <= reach * (1 + 1e-6)
    options = {"nonzeros": k, "rank": C}
    (found,) = signals(align(net(width), rule="ssdfa", rule_options=options, show=None), eye)
    assert float(found.std(correction=0)) == pytest.approx(reach, rel=1e-5)


def test_laws_show_in_fingerprints_and_slices_where_they_matter() -> None:
    plain = digital(3, 9, 1)
    assert plain.fingerprint() == digital(3, 9, 1, slices=[4, 5]).fingerprint()
    others = [
        digital(3, 9, 1, distribution="binary"),
        digital(3, 9, 1, distribution="orthogonal"),
        digital(3, 9, 1, distribution="orthogonal", slices=[4, 5]),
        digital(3, 9, 1, distribution="sparse"),
        digital(3, 9, 1, distribution="sparse", nonzeros=2),
        digital(3, 9, 1, distribution="sparse", nonzeros=2, rank=2),
    ]
    assert len({plain.fingerprint(), *(device.fingerprint() for device in others)}) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonzeros": 2}, "nonzeros is 2 but distribution is normal"),
        ({"rank": 2, "distribution": "binary"}, "rank is 2 but distribution is binary"),
        ({"slices": [3, 3]}, "slices is .3, 3.; .* 9 together"),
        ({"slices": "9"}, "slices is '9'"),
        ({"distribution": "sparse", "nonzeros": 4}, "nonzeros is 4"),
        ({"distribution": "cauchy"}, "cauchy.*normal, uniform, binary, orthogonal, sparse"),
    ],
)
def test_wrong_device_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        digital(3, 9, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        ("dfa", {}, (30_000, 30_000)),
        ("dfa", {"slices": "shared"}, (10_000, 30_000)),
        ("bdfa", {}, (30_000, 30_000)),
        ("ssdfa", {}, (3_000, 3_000)),
        ("ssdfa", {"nonzeros": 3}, (9_000, 9_000)),
        ("ssdfa", {"nonzeros": 2, "rank": 5}, (3_030, 3_030)),
        ("drtp", {}, (0, 3_000)),
    ],
)
def test_work_of_three_layers_of_a_thousand(
    rule: str, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    """Multiply-adds and words of one record's signals, of ten classes; ssdfa's are those its device does."""
    layers = [part for _ in range(3) for part in (nn.Linear(1000, 1000), nn.Tanh())]
    aligned = align(nn.Sequential(*layers, nn.Linear(1000, 10)), rule=rule, rule_options=options, show=None)
    assert aligned.state.work(10, 1) == expected
    if rule == "ssdfa":
        assert aligned.backend._matrix.products == expected[0]  # type: ignore[union-attr]


def test_work_of_a_shared_kernel() -> None:
    x = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    aligned = align(cnn(), rule_options={"conv": "shared-kernel"}, example=x, show=None)
    sums = 3 * (9 * 8 + 3 * 64) + 4 * (9 * 2 + 3 * 4)
    assert aligned.state.work(C, 1) == (
        C * (7 * 9 + 6) + sums, C * (7 * 9 + 6) + 3 * 64 + 4 * 4
    )  # fmt: skip


# ---- layers that share one matrix


@pytest.mark.parametrize("normalisation", ["layer", "widest"])
@pytest.mark.parametrize("slices", ["separate", "shared"])
def test_slices_and_normalisation(slices: str, normalisation: str) -> None:
    aligned = align(
        net(6, 10, 3), rule_options={"slices": slices, "normalisation": normalisation}, seed=2, show=None
    )
    assert aligned.backend is not None
    assert aligned.backend.out_features == (10 if slices == "shared" else 19)
    matrix = exact(aligned.backend)
    e = normal(7, C)
    start = 0
    for width, signal in zip((6, 10, 3), signals(aligned, e), strict=True):
        rows = matrix[start : start + width]
        torch.testing.assert_close(
            signal, e @ rows.T / math.sqrt(width if normalisation == "layer" else 10), **EXACT
        )
        start += 0 if slices == "shared" else width


def test_shared_slices_are_not_scaled_twice() -> None:
    """What one layer does to its signal in place must not reach another's."""
    aligned = align(net(6, 10, 3), rule_options={"slices": "shared"}, loss_reduction="mean", show=None)
    e = normal(7, C)
    _, mean = aligned.teach(e / 7, None)
    for taught, exact_ in zip(mean, signals(aligned, e), strict=True):
        torch.testing.assert_close(taught, exact_ / 7, **EXACT)


def test_the_published_variants() -> None:
    """Nøkland: U[±1/sqrt(n)]. Launay 2019: standard deviation 1/sqrt(n c). DFA scales: U[±1]/sqrt(widest)."""
    eye = torch.eye(C, dtype=torch.float64)
    root = 1 / math.sqrt(3)
    widths = (500, 2000)

    def matrices(**options: Any) -> list[Tensor]:
        return signals(align(net(*widths), rule_options=options, show=None), eye)

    for width, b in zip(widths, matrices(law="uniform", scale=root), strict=True):
        assert 0.99 / math.sqrt(width) < float(b.abs().max()) <= (1 + 1e-6) / math.sqrt(width)
    launay = matrices(slices="shared", scale=1 / math.sqrt(C))
    for width, b in zip(widths, launay, strict=True):
        assert float(b.std()) == pytest.approx(1 / math.sqrt(width * C), rel=0.06)
    torch.testing.assert_close(launay[0] * math.sqrt(500), launay[1][:, :500] * math.sqrt(2000), **EXACT)
    scales = matrices(law="uniform", slices="shared", normalisation="widest", scale=root)
    torch.testing.assert_close(scales[0], scales[1][:, :500], **EXACT)
    assert 0.99 / math.sqrt(2000) < float(scales[1].abs().max()) <= (1 + 1e-6) / math.sqrt(2000)


# ---- convolutions


@given(
    channels=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 6), half=st.integers(0, 3),
    rows=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_shared_kernel_is_a_transposed_convolution(
    channels: int, height: int, width: int, half: int, rows: int
) -> None:
    """Against torch's own transposed convolution of the error broadcast over space."""
    kernel = 2 * half + 1
    weight, e = normal(C, channels, kernel, kernel), normal(rows, C, seed=1)
    projected = torch.einsum("rc,ckde->rkde", e, weight).flatten(1)
    found = shared_kernel.spread(projected, (channels, height, width), kernel)
    broadcast = e[:, :, None, None].expand(rows, C, height, width)
    torch.testing.assert_close(found, conv_transpose2d(broadcast, weight, padding=half), **EXACT)
    line = shared_kernel.spread(projected[:, : channels * kernel], (channels, width), kernel)
    taken = projected[:, : channels * kernel].view(rows, channels, kernel)
    ones = torch.ones(rows * channels, 1, width, dtype=torch.float64)
    by_record = conv_transpose1d(
        ones.view(1, rows * channels, width), taken.reshape(rows * channels, 1, kernel), padding=half,
        groups=max(1, rows * channels),
    ) if rows else line  # fmt: skip
    torch.testing.assert_close(line, by_record.view(rows, channels, width), **EXACT)


def cnn() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(),
            nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, C),
        ).double()  # fmt: skip


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_shared_kernels_in_a_network(kernel: int) -> None:
    """The gradient of a convolution, written out: delta = convT(e 1, K) * phi', dW by autograd of that convolution."""
    model = cnn()
    x, y = normal(6, 2, 8, 8), torch.arange(6) % C
    aligned = align(model, rule_options={"conv": "shared-kernel", "kernel": kernel}, example=x, show=None)
    taps = kernel**2
    assert [p.outputs for p in aligned.points] == [3 * taps, 4 * taps, 6]
    assert aligned.backend is not None
    assert aligned.backend.out_features == 7 * taps + 6
    matrix = exact(aligned.backend)
    cross_entropy(aligned(x), y).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    twin = cnn()
    h1 = twin[:2](x)
    h2 = twin[2:5](h1.detach())
    h3 = twin[5:8](h2.detach())
    z = twin[8](h3.detach())
    e = (torch.softmax(z, 1) - nn.functional.one_hot(y, C)).detach() / 6
    kernels = matrix[: 3 * taps], matrix[3 * taps : 7 * taps]
    taught = []
    for k, (channels, side) in zip(kernels, ((3, 8), (4, 2)), strict=True):
        weight = k.T.reshape(C, channels, kernel, kernel) / math.sqrt(channels * side**2 * taps)
        broadcast = e[:, :, None, None].expand(6, C, side, side)
        taught.append(conv_transpose2d(broadcast, weight, padding=(kernel - 1) // 2))
    taught.append(e @ matrix[7 * taps :].T / math.sqrt(6))
    torch.autograd.backward([h1, h2, h3, z], [*taught, e])
    for g, p in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, **EXACT)


def test_dense_and_shared_kernels_are_different_rules() -> None:
    x, y = normal(6, 2, 8, 8), torch.arange(6) % C
    grads = []
    for conv in ("dense", "shared-kernel"):
        model = cnn()
        aligned = align(model, rule_options={"conv": conv, "kernel": 1}, example=x, show=None)
        cross_entropy(aligned(x), y).backward()
        grads.append(model[0].weight.grad)
        (signal, *_) = signals(aligned, normal(50, C))
        places = signal.view(50, 3, 64)
        assert (conv == "shared-kernel") == bool(torch.allclose(places, places[:, :, :1]))
    assert abs(torch.cosine_similarity(grads[0].flatten(), grads[1].flatten(), dim=0)) < 0.95


@pytest.mark.parametrize("conv", ["dense", "shared-kernel"])
def test_teaching_signals_keep_the_errors_size(conv: str) -> None:
    """|g_l| is about |e| inside the image; border places miss taps of the kernel."""
    model = nn.Sequential(nn.Conv2d(1, 600, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(600 * 400, C))
    aligned = align(model, rule_options={"conv": conv}, example=torch.zeros(1, 1, 20, 20), show=None)
    e = normal(200, C).float()
    (signal,) = signals(aligned, e)
    ratio = (signal.norm(dim=1) / e.norm(dim=1)).square().mean()
    assert 0.8 < float(ratio) < 1.1


def test_light_teaches_through_a_shared_kernel() -> None:
    """A device projects channels k² components a convolution, not one a unit."""
    x = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    aligned = align(
        cnn(), rule_options={"conv": "shared-kernel"}, backend="simulated-opu", example=x, show=None
    )
    assert aligned.backend is not None
    assert aligned.backend.out_features == 7 * 9 + 6
    assert [tuple(s.shape) for s in signals(aligned, normal(5, C))] == [(5, 192), (5, 16), (5, 6)]
