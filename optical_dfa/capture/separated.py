"""Separated capture: after the backward pass, each layer's inputs, gated teaching signal and gate, record by record.

For releases that put noise inside each record's projection (`privacy.contributions.separated`). The network is a
chain of linear layers, each followed at once by an elementwise activation that is a feedback point, the last one by
nothing: then the teaching signal s of a layer reaches its output as `φ'(a) ⊙ s` and as nothing else. That this is so
is not taken from the module's looks: the activation must receive the very tensor the layer returned, its Jacobian is
probed to be diagonal, and every backward pass is compared with `gate ⊙ s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.base import NoNoise
from noise_models.errors import UsageError
from optical_dfa.capture.following import Following
from optical_dfa.capture.records import Capture
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import PointHook, take_off
from optical_dfa.feedback.rules.augmented import AugmentedState
from optical_dfa.networks.markers import ACTIVATIONS
from privacy.contributions.separated import SeparatedLayer, joined

# RReLU draws its slopes: its gate is not a function of the pre-activation.
ELEMENTWISE = tuple(kind for kind in ACTIVATIONS if kind is not nn.RReLU)
PASSING = (nn.Flatten, nn.Identity)
_AGREEMENT = 1e-4  # relative; the same product in another order of float32 operations


class _OutputHook:
    """Forward hook of a trained layer, after the one that records it: notes which tensor goes on."""

    def __init__(self, capture: SeparatedCapture, layer: str) -> None:
        self.capture = capture
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.capture.active and torch.is_grad_enabled():
            self.capture.note_output(self.layer, output)


class _GateHook:
    """Forward hook of an activation, before the cut: notes φ' and the signal that comes back."""

    def __init__(self, capture: SeparatedCapture, name: str) -> None:
        self.capture = capture
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.capture.active and torch.is_grad_enabled():
            following = self.capture.following
            with nullcontext() if following is None else following.off():
                self.capture.note_gate(self.name, args[0], output)


class SeparatedCapture(Capture):
    """The contributions of a chain of linear layers and elementwise activations, factor by factor.

    Exactly one forward and one backward pass go over a batch: with several, a record would have several noises.
    """

    def __init__(self, aligned: AlignedModule) -> None:
        """
        Args:
            aligned: a chain, as said above.
        Raises:
            UsageError: as for `Capture`, or a part that is not nn.Linear, an elementwise activation or nn.Flatten,
                naming it.
        """
        self._outputs: dict[str, Tensor] = {}
        self._gates: dict[tuple[int, str], Tensor] = {}
        self._signals: dict[tuple[int, str], Tensor] = {}
        self._points: dict[str, str] = {}
        self._last: str | None = None
        self._logits: dict[int, Tensor] = {}
        if isinstance(aligned.state, AugmentedState):
            raise UsageError(
                f"rule option derivative={aligned.state.derivative!r} replaces the activations' derivatives, which "
                "this release needs as they are; leave the option out, or use release digital"
            )
        _check_parts(aligned.module)
        super().__init__(aligned)
        self.matrices = _matrices(aligned)
        try:
            for name, layer in self.layers.items():
                if type(layer) is not nn.Linear:
                    raise UsageError(
                        f"{name or 'the module'} ({type(layer).__name__}) has trained parameters of its own; this "
                        "release trains nn.Linear alone: freeze them, or use release digital"
                    )
            self._names = self._released_names()
            self.widths = {name: int(layer.out_features) for name, layer in self._linear()}
            for name, layer in self.layers.items():
                layer.register_forward_hook(_OutputHook(self, name))
            for name, part in self.module.named_modules():
                if isinstance(part, ELEMENTWISE):
                    part.register_forward_hook(_GateHook(self, name), prepend=True)
        except BaseException:
            self.remove()
            raise
        self._probed = self._parts()

    def __getstate__(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {
            "_outputs": {}, "_gates": {}, "_signals": {}, "_points": {}, "_last": None, "_logits": {},
        }  # fmt: skip
        return {**super().__getstate__(), **nothing}

    def remove(self) -> None:
        super().remove()
        take_off(self.module, lambda hook: isinstance(hook, _OutputHook | _GateHook) and hook.capture is self)

    # ---- during the passes

    def note_output(self, layer: str, output: Tensor) -> None:
        """A trained layer returned this tensor, to be followed by its activation or by nothing."""
        if self.block in self._logits:
            raise UsageError(
                "a second forward pass went over this batch; this release takes one a step (evaluate under "
                "torch.no_grad())"
            )
        if layer in self._outputs:
            raise UsageError(f"layer {layer} is called twice; this release takes each layer once a batch")
        if output.ndim != 2:
            raise UsageError(
                f"layer {layer} sees {output.ndim - 1} axes a record; this release takes flat records (nn.Flatten)"
            )
        self._outputs[layer] = output

    def note_gate(self, activation: str, given: Tensor, output: Tensor) -> None:
        """An activation made `output` from `given`, which is a trained layer's output or of no interest."""
        layer = next((name for name, tensor in self._outputs.items() if tensor is given), None)
        if layer is None:
            return
        place = self.block, layer
        if place in self._gates:
            raise UsageError(f"the output of layer {layer} goes to two activations; give it one")
        (gate,) = torch.autograd.grad(output, given, torch.ones_like(output), retain_graph=True)
        self._gates[place], self._points[layer] = gate.detach(), activation

        def note_signal(signal: Tensor) -> None:
            self._signals[place] = signal.detach()

        output.register_hook(note_signal)  # type: ignore[no-untyped-call]

    def check_pass(self, following: Following, output: Tensor, kept: Sequence[tuple[str, Tensor]]) -> None:
        """As for `Capture`; and every trained layer's output went to its activation, the last one's nowhere.

        Raises:
            UsageError: naming the layer of which this is not so, or a second pass over the batch.
        """
        super().check_pass(following, output, kept)
        for layer, tensor in self._outputs.items():
            if tensor is output:
                if (self.block, layer) in self._gates:
                    raise UsageError(
                        f"layer {layer} is the output and goes to an activation too; give it one"
                    )
                self._last = layer
            elif (self.block, layer) not in self._gates:
                raise UsageError(
                    f"layer {layer} is not followed at once by an activation that is a feedback point, nor is it the "
                    "output; use a chain of nn.Linear and activation modules, such as --model mlp:256"
                )
        self._outputs, self._logits[self.block] = {}, output.detach()

    def forget_passes(self) -> None:
        if self.uses:  # otherwise the forward pass still awaits its backward pass
            self._forget_gates()
        super().forget_passes()

    def clear(self) -> None:
        super().clear()
        self._forget_gates()

    def _forget_gates(self) -> None:
        self._outputs, self._gates, self._signals = {}, {}, {}
        self._last, self._logits = None, {}

    # ---- what a release takes

    def separated(self) -> list[SeparatedLayer]:
        """Every trained layer's factors (see `privacy.contributions.separated.SeparatedContributions`)."""
        records = self.expected_records()
        blocks = [self._separated(block) for block in sorted({0, *(use.block for use in self.uses)})]
        return [layer.mapped(lambda x: x[:records]) for layer in joined(blocks)]

    def _separated(self, block: int) -> list[SeparatedLayer]:
        """The same of one block."""
        called = [use for use in self.uses if use.block == block]
        uses = {use.layer: use for use in called}
        if len(uses) != len(called) or set(uses) != set(self.layers):
            raise UsageError(
                f"{len(called)} teaching signals reached {len(self.layers)} trained layers; this release takes "
                "one forward and one backward pass a batch"
            )
        found = []
        for name in sorted(
            self.layers, key=lambda layer: layer == self._last
        ):  # stable: the output goes last
            use, output = uses[name], name == self._last
            signal = use.delta
            if output:
                gate, given = torch.ones_like(signal), signal
            else:
                gate = self._gates[block, name]
                given = self._given_at_point(block, name, signal, gate)
            weight, bias = self._names[name]
            columns = [use.x] if weight is not None else []
            if bias is not None:
                columns.append(use.x.new_ones(len(use.x), 1))
            inputs = torch.cat([column.to(signal.dtype) for column in columns], dim=1)
            point = None if output else self._points[name]
            found.append(SeparatedLayer(name, weight, bias, inputs, given, signal, gate, point))
        return found

    def logits(self) -> Tensor:
        """The network's output for this batch (see `privacy.contributions.separated.SeparatedContributions`)."""
        if not self._logits:
            raise UsageError("no forward pass has been over this batch")
        return torch.cat([self._logits[block] for block in sorted(self._logits)])[: self.expected_records()]

    def _given_at_point(self, block: int, name: str, signal: Tensor, gate: Tensor) -> Tensor:
        """The signal at the layer's feedback point, which times the gate is the one at the layer, and nothing else."""
        taught = self._signals.get((block, name))
        if taught is None:
            raise UsageError(f"no teaching signal reached the activation after layer {name}; use rule dfa")
        expected = gate * taught
        slack = (
            _AGREEMENT * float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
        )
        if not torch.allclose(signal, expected, rtol=_AGREEMENT, atol=slack, equal_nan=True):
            raise UsageError(
                f"layer {name} is taught by more than its own feedback point (a skip past the activation, or a "
                "backward pass through it); use a chain of nn.Linear and activation modules"
            )
        return taught

    def _linear(self) -> list[tuple[str, nn.Linear]]:
        """The trained layers; others are refused."""
        return [(name, layer) for name, layer in self.layers.items() if isinstance(layer, nn.Linear)]

    def _released_names(self) -> dict[str, tuple[str | None, str | None]]:
        """Names of each layer's trained weight and bias; a shared one is refused."""
        names = {id(p): name for name, p in self.parameters.items()}
        seen: set[int] = set()
        found: dict[str, tuple[str | None, str | None]] = {}
        for name, layer in self._linear():
            both = [p for p in (layer.weight, layer.bias) if p is not None and id(p) in names]
            if any(id(p) in seen for p in both):
                raise UsageError(f"layer {name} shares a parameter with another layer; give it its own")
            seen |= {id(p) for p in both}
            bias = None if layer.bias is None else names.get(id(layer.bias))
            found[name] = (names.get(id(layer.weight)), bias)
        return found


def _matrices(aligned: AlignedModule) -> dict[str, Tensor] | None:
    """B_l as the rule scales it, by feedback point, where it is fixed and known exactly: no device noise."""
    if aligned.backend is None or not isinstance(aligned.backend.noise, NoNoise):
        return None
    card: RuleCard | None = vars(type(aligned.rule)).get("card")  # not that of what it derives from
    if card is None or not card.fixed_matrix:
        return None
    signals = aligned.signals(torch.eye(aligned.backend.in_features))
    return {p.name: s.T.double() for p, s in zip(aligned.points, signals, strict=True) if s is not None}


def _check_parts(module: nn.Module) -> None:
    """Only linear layers, elementwise activations and flattening; every cut is at an activation.

    Raises:
        UsageError: naming the part.
    """
    for name, part in module.named_modules():
        cut = any(isinstance(hook, PointHook) for hook in part._forward_hooks.values())
        if cut and type(part) not in ELEMENTWISE:
            raise UsageError(
                f"feedback point {name} is a {type(part).__name__}; this release needs the points at elementwise "
                "activation modules (leave points= out)"
            )
        if next(part.children(), None) is not None:
            continue
        if type(part) in ELEMENTWISE:
            if getattr(part, "inplace", False):
                raise UsageError(f"{name} works in place, which loses its gate; give it inplace=False")
            _probe_elementwise(name, part)
        elif type(part) not in (nn.Linear, *PASSING):
            raise UsageError(
                f"{name or 'the module'} is a {type(part).__name__}; this release takes chains of nn.Linear, "
                "elementwise activation modules and nn.Flatten, such as --model mlp:256"
            )


def _probe_elementwise(name: str, activation: nn.Module) -> None:
    """J^T c = (J^T 1) ⊙ c for a random c: the Jacobian is diagonal.

    Raises:
        UsageError: it is not.
    """
    generator = torch.Generator().manual_seed(0)
    width = max((p.numel() for p in activation.parameters()), default=5)
    with torch.enable_grad():
        a = torch.randn(3, width, generator=generator, dtype=torch.float64).requires_grad_()
        c = torch.randn(3, width, generator=generator, dtype=torch.float64)
        # forward(), not a call: a hook of the feedback point would take the probe for a pass
        output = activation.forward(a.to(next(activation.parameters(), a).dtype))
        (gate,) = torch.autograd.grad(output, a, torch.ones_like(output), retain_graph=True)
        (pulled,) = torch.autograd.grad(output, a, c.to(output.dtype))
    if not torch.allclose(pulled, gate * c, rtol=1e-5, atol=1e-6):
        raise UsageError(f"{name} mixes its components; this release takes elementwise activations")
