"""How far a rule's gradients are from backpropagation's, on the same weights and the same batch.

All of it works on copies: neither the module, nor its buffers, nor a seeded device's stream moves. Everything is
computed from records, so in a private run it may only be shown where the guarantee says so (`unsafe_diagnostics`).
Cosines are signed: Lillicrap-style absolute values would hide a rule that teaches the wrong way round.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import accelerators
from optical_dfa.aligning import unalign
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.points import call_order
from optical_dfa.feedback.rule import Taught
from optical_dfa.feedback.rules.layerwise import LayerwiseState
from optical_dfa.networks.markers import ACTIVATIONS, State

Loss = Callable[[Tensor], Tensor]
_PASSED_ON = (nn.Flatten, nn.Identity, nn.Dropout, *ACTIVATIONS)


@dataclass(frozen=True)
class PointAlignment:
    """The teaching signals at one hidden output, g_i of record i against BP's dL/dh_i.

    Of a rule that teaches the inputs of its points, those at such an input. At a recurrent state both are without what
    comes back along that which a cell carries over elementwise.

    Attributes:
        cosine: mean over the records of cos(g_i, dL/dh_i), signed.
        spread: their standard deviation.
        records: how many records both gradients are non-zero of; without any, the figures are NaN.
        norm_ratio: root mean square of g over that of BP's.
    """

    cosine: float
    spread: float
    records: int
    norm_ratio: float


@dataclass(frozen=True)
class GradientAlignment:
    """One parameter's gradient (or all of them together) against BP's: cosine and ratio of norms; NaN for zeros."""

    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Alignment:
    """What `alignment` found.

    Attributes:
        points: at every feedback point, activation and recurrent state, in the order of the forward pass.
        parameters: the summed gradient of every parameter.
        network: all parameters as one vector.
    """

    points: dict[str, PointAlignment]
    parameters: dict[str, GradientAlignment]
    network: GradientAlignment

    def to_dict(self) -> dict[str, Any]:
        """JSON types: [mean cosine, spread, norm ratio] a point; None where there is no number."""
        return {
            "points": {name: _numbers(p.cosine, p.spread, p.norm_ratio) for name, p in self.points.items()},
            "network": _numbers(self.network.cosine, self.network.norm_ratio),
        }


@dataclass(frozen=True)
class Estimate:
    """A rule's gradient as an estimator of BP's, from repeated estimates on one batch.

    Attributes:
        bias: |mean estimate - gradient| / |gradient|.
        variance: total variance of one estimate (sum over the entries) / |gradient|².
        repeats: k. The bias of an unbiased estimator shows as sqrt(variance / k).
    """

    bias: float
    variance: float
    repeats: int


@dataclass(frozen=True)
class FeedbackAngle:
    """B_l against the product of the forward weights above it: angle in degrees, and |B_l| / |product|."""

    degrees: float
    norm_ratio: float


def alignment(aligned: AlignedModule, inputs: Tensor | Sequence[Tensor], loss: Loss) -> Alignment:
    """Per-record alignment at every layer (Launay et al. 2019) and that of the summed gradients.

    Args:
        aligned: the module under its rule; a private one is looked at as it would learn without clipping and noise.
        inputs: a batch, records first.
        loss: from the output to the scalar that is differentiated, with `aligned`'s loss reduction.
    Raises:
        UsageError: there is no hidden output to compare at.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    taught, plain = _copies(aligned)
    names = _observed(aligned, plain, given)
    at_inputs = {point.name for point in aligned.points} if aligned.rule.taught is Taught.INPUT else set()
    with _unmoved(aligned.backend):
        found, gradients = _gradients(taught, taught.module, names, given, loss, at_inputs)
    exact, expected = _gradients(plain, plain, names, given, loss, at_inputs)
    points = {name: _compare(found.get(name), exact[name]) for name in names if name in exact}
    pairs = {
        name: (gradients.get(name, torch.zeros_like(g)).double().flatten(), g.double().flatten())
        for name, g in expected.items()
    }
    if not points:
        raise UsageError(
            "no hidden output of the module can be compared; it needs an activation module (e.g. nn.Tanh)"
        )
    whole = (torch.cat([g for g, _ in pairs.values()]), torch.cat([g for _, g in pairs.values()]))
    return Alignment(points, {name: direction(*pair) for name, pair in pairs.items()}, direction(*whole))


def estimator(
    aligned: AlignedModule, inputs: Tensor | Sequence[Tensor], loss: Loss, repeats: int = 16
) -> Estimate:
    """Bias and variance of the rule's gradient over repeated backward passes on one batch and one dropout mask.

    A deterministic rule on a noiseless device has variance 0 and its whole error as bias.

    Args:
        aligned, inputs, loss: as for `alignment`.
        repeats: k, 2 or more.
    Raises:
        UsageError: fewer than two repeats, or a gradient that is zero.
    """
    if repeats < 2:
        raise UsageError(f"repeats is {repeats}; a variance needs 2 or more")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    taught, plain = _copies(aligned)
    expected = _gradients(plain, plain, [], given, loss)[1]
    gradient = torch.cat([g.double().flatten() for g in expected.values()])
    if not gradient.any():
        raise UsageError("the gradient is zero on this batch; there is nothing to estimate")
    mean, squares = torch.zeros_like(gradient), torch.zeros_like(gradient)
    with _unmoved(aligned.backend):
        for count in range(1, repeats + 1):  # Welford's recursion
            estimates = _gradients(taught, taught.module, [], given, loss)[1]
            once = torch.cat(
                [estimates.get(name, torch.zeros_like(g)).double().flatten() for name, g in expected.items()]
            )
            off = once - mean
            mean += off / count
            squares += off * (once - mean)
    scale = float(gradient.square().sum())
    bias = float((mean - gradient).norm()) / math.sqrt(scale)
    return Estimate(bias, float(squares.sum()) / (repeats - 1) / scale, repeats)


def feedback_angles(aligned: AlignedModule) -> dict[str, FeedbackAngle]:
    """angle(B_l, W_{l+1}^T ... W_L^T) at the points above which a Sequential has linear layers alone.

    Activations between them count as the identity, as in the linear theory of alignment. B_l is what the device
    answers to the unit errors, so a device's noise widens the angle. Points below anything else are left out.

    Of a layer-wise rule (feedback alignment, sign symmetry) angle(B, W) of every layer that hands errors down, whatever
    the network is made of.
    """
    if isinstance(aligned.state, LayerwiseState):
        return _layer_angles(aligned)
    plain, rule = aligned.module, aligned.rule
    if not isinstance(plain, nn.Sequential) or not aligned.points or not rule.teaches_hidden:
        return {}
    products: dict[str, Tensor] = {}
    product: Tensor | None = None
    for name, part in reversed(list(plain.named_children())):
        if product is not None:
            products[name] = product
        if isinstance(part, nn.Linear):
            weight = part.weight.detach().double()
            product = weight if product is None else product @ weight
        elif not isinstance(part, _PASSED_ON):
            break
    located = [point for point in aligned.points if point.name in products]
    if not located:
        return {}
    units = torch.eye(products[located[0].name].shape[0], device=products[located[0].name].device)
    with _unmoved(aligned.backend):
        signals = aligned.signals(units)
    angles = {}
    for point, signal in zip(aligned.points, signals, strict=True):
        if signal is not None and point in located and signal.shape == products[point.name].shape:
            way = direction(signal, products[point.name])
            angles[point.name] = FeedbackAngle(math.degrees(math.acos(way.cosine)), way.norm_ratio)
    return angles


def _layer_angles(aligned: AlignedModule) -> dict[str, FeedbackAngle]:
    """By layer, without the one that is called first: it hands down nothing."""
    state = copy.deepcopy(aligned.state)
    assert isinstance(state, LayerwiseState)
    called = dict.fromkeys(call_order(unalign(aligned.twin()), aligned.example(2), nn.Module))
    angles = {}
    for name in [name for name in called if name in state.layers][1:]:
        weight = aligned.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        matrix = state.matrix(name, weight.detach())
        way = direction(matrix, weight)
        angles[name] = FeedbackAngle(math.degrees(math.acos(way.cosine)), way.norm_ratio)
    return angles


def exact_gradients(
    aligned: AlignedModule, inputs: Tensor | Sequence[Tensor], loss: Loss
) -> dict[str, Tensor]:
    """Backpropagation's gradient of every parameter that the loss depends on, by name.

    Args:
        aligned, inputs, loss: as for `alignment`.
    """
    plain = _copies(aligned)[1]
    return _gradients(plain, plain, [], [inputs] if isinstance(inputs, Tensor) else list(inputs), loss)[1]


def direction(found: Tensor, exact: Tensor) -> GradientAlignment:
    """Of two tensors with as many entries, as vectors."""
    a, b = (x.detach().double().flatten() for x in (found, exact))
    norms = float(a.norm()), float(b.norm())
    if not all(norms):
        return GradientAlignment(math.nan, norms[0] / norms[1] if norms[1] else math.nan)
    cosine = float((a / norms[0]) @ (b / norms[1]))
    return GradientAlignment(max(-1.0, min(1.0, cosine)), norms[0] / norms[1])


# ---- how it is measured


def _copies(aligned: AlignedModule) -> tuple[AlignedModule, nn.Module]:
    """The module under its rule, not private, and the plain one, on weights of their own."""
    taught = aligned.twin()
    taught.stop_capture()
    plain = unalign(copy.deepcopy(taught))
    for p in plain.parameters():
        p.grad = None
    return taught, plain


def _observed(aligned: AlignedModule, plain: nn.Module, given: Sequence[Tensor]) -> list[str]:
    """Feedback points, activations and states of recurrent cells, in call order."""
    wanted = {point.name for point in aligned.points}
    parts = dict(plain.named_modules())
    called = call_order(plain, [x[:2] for x in given], nn.Module)
    hidden = (*ACTIVATIONS, State)
    return [name for name in dict.fromkeys(called) if name in wanted or isinstance(parts[name], hidden)]


class _Observer:
    """Hook that lets a part's output, or its first input, keep its gradient."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        kept = self(module, args, args[0]) if args else None
        return None if kept is None else (kept, *args[1:])

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        kept = output.clone()  # what follows may work in place
        kept.retain_grad()
        self.outputs.append(kept)
        return kept


def _gradients(
    caller: nn.Module,
    module: nn.Module,
    names: Sequence[str],
    given: Sequence[Tensor],
    loss: Loss,
    at_inputs: Collection[str] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """dL/dh at the named outputs (or inputs), a record a row (calls side by side), and every parameter's gradient."""
    observers = {name: _Observer() for name in names}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(observer.before, prepend=True)
        if name in at_inputs
        else module.get_submodule(name).register_forward_hook(observer, prepend=True)
        for name, observer in observers.items()
    ]
    devices = accelerators(given)
    caller.zero_grad()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)  # one dropout mask for all
            torch.autograd.backward(loss(caller(*[x.clone() for x in given])))
    finally:
        for hook in hooks:
            hook.remove()
    signals: dict[str, list[Tensor]] = defaultdict(list)
    for name, observer in observers.items():
        for h in observer.outputs:
            g = h.grad if h.grad is not None else torch.zeros_like(h)
            signals[name].append(g.detach().double().reshape(len(g), -1))
    return (
        {name: torch.cat(calls, 1) for name, calls in signals.items()},
        {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None},
    )


def _compare(found: Tensor | None, exact: Tensor) -> PointAlignment:
    g = torch.zeros_like(exact) if found is None else found
    both = (g.norm(dim=1) > 0) & (exact.norm(dim=1) > 0)
    ratio = float(g.norm() / exact.norm()) if bool(exact.any()) else math.nan
    if not bool(both.any()):
        return PointAlignment(math.nan, math.nan, 0, ratio)
    # Scaled first: the products of small float64 errors would underflow.
    a, b = (x[both] / x[both].norm(dim=1, keepdim=True) for x in (g, exact))
    cosines = (a * b).sum(1).clamp(-1, 1)
    return PointAlignment(float(cosines.mean()), float(cosines.std(correction=0)), len(cosines), ratio)


@contextlib.contextmanager
def _unmoved(backend: ProjectionBackend | None) -> Iterator[None]:
    """Seeded generators of a simulated device go on where they were: to diagnose a run does not change it."""
    generators = [] if backend is None else [g for g in backend.generators if not g.secret]
    before = [generator.position for generator in generators]
    try:
        yield
    finally:
        for generator, position in zip(generators, before, strict=True):
            with contextlib.suppress(UsageError):  # a conditioned stream is never drawn twice
                generator.seek(position)


def _numbers(*values: float) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
