"""Direct feedback alignment before the activation, with public gates in place of its derivative (THEORY T5).

    delta_l = B_l (r(x) ⊗ e),    r(x) in {0, 1}^G,    B_l of shape (n_l, G c)

so that the layer's update `B_l Σ_i (r(x_i) ⊗ e_i) h_i^T` is linear in a sum over the records that is small: that sum
may be clipped, noised and sent through the device column by column (release `aggregate`). The gates are public
functions of the input alone: r_1 = 1, and the others tell on which side of a random hyperplane the input lies, as in
gated linear networks (Veness et al. 2019, arXiv 1910.01526).

- A network with `PublicGates` of its own (`optical_dfa.networks.gated`): the gates are the network's. The row of B_l of
  unit k is 0 outside the block of its gate, `delta_k = r_g(k)(x) B_k e` with B_l of shape (n_l, c): exactly DFA.
- Any other: the derivative φ' is dropped, B_l is dense, and G is the option `gates`; 1 is no gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import ForwardPass, Point
from optical_dfa.feedback.rule import ProjectingState, Taught
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.feedback.state import Placement
from optical_dfa.networks.gated import GatedNetwork, PublicGates

MOST_GATES = 4096
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@RuleCard(summary="Direct Feedback Alignment before the activations, with public gates", projects=True)
class GatedFeedbackAlignment(DirectFeedbackAlignment):
    """`gated-dfa`: each layer is cut before its activation and taught by a projection of `r(x) ⊗ e`.

    The device projects G·c components, or c where the network has gates of its own. Entries of B_l have standard
    deviation `scale / sqrt(n_l (G + 1) / 2)`, so that |delta_l| ~ scale |e| for any G (half of the gates beside the
    first are open on average); where the network has gates, `scale / sqrt(n_l)`, as for `dfa`.
    """

    name = "gated-dfa"
    taught = Taught.LAYER

    def __init__(self, scale: float | None = None, gates: int = 1, gate_seed: int = 0) -> None:
        """
        Args:
            scale: as for `dfa`.
            gates: G, 1 to 4096.
            gate_seed: public seed of the gates' hyperplanes.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale)
        if isinstance(gates, bool) or not isinstance(gates, int) or not 1 <= gates <= MOST_GATES:
            raise UsageError(f"rule option gates={gates!r}: it must be a whole number from 1 to {MOST_GATES}")
        if isinstance(gate_seed, bool) or not isinstance(gate_seed, int) or not 0 <= gate_seed < 2**63:
            raise UsageError(
                f"rule option gate_seed={gate_seed!r}: it must be a whole number from 0 to 2^63 - 1"
            )
        self.gates = gates
        self.gate_seed = gate_seed

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        return [name for name, part in module.named_modules() if isinstance(part, _WEIGHTED)]

    def device_inputs(self, components: int) -> int:
        return self.gates * components

    def context(self, passed: ForwardPass) -> Tensor | None:
        """The gates of each record, shape (m, G); None where there is but the first, which is always open."""
        if self.gates == 1:
            return None
        x, output = next(iter(passed.args), None), passed.output
        if not isinstance(x, Tensor) or not x.is_floating_point() or output.ndim > 2 or len(x) != len(output):
            raise UsageError(
                f"rule {self.name} with gates={self.gates} takes one floating-point input and one output a record; "
                "use gates=1"
            )
        flat = x.detach().flatten(1)
        open_ = flat @ hyperplanes(self.gates - 1, flat.shape[1], self.gate_seed).to(flat).T > 0
        return torch.cat([open_.new_ones(len(flat), 1), open_], dim=1).to(flat.dtype)

    def state(self, placed: Placement) -> ProjectingState:
        """
        Raises:
            UsageError: gates were asked for where the network has its own, or it has several sets of them, or a point
                is no layer that they let through.
        """
        own = _own_gates(placed.module)
        if own is None:
            return super().state(placed)
        if self.gates > 1 or self.gate_seed:
            raise UsageError(
                f"rule options gates={self.gates}, gate_seed={self.gate_seed}, but the network has {own.gates} public "
                f"gates of its own, which rule {self.name} takes; leave the options out"
            )
        layers = _gated_layers(placed.module)
        other = next((point.name for point in placed.points if point.name not in layers), None)
        if other is not None:
            raise UsageError(
                f"feedback point {other} is no layer whose units the network's own gates let through; rule {self.name} "
                f"teaches {', '.join(layers) or 'those of a GatedNetwork'}, which it finds where no points are given"
            )
        return GatedState(self, placed.points, own)

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return error
        return (context.to(error.dtype).unsqueeze(2) * error.unsqueeze(1)).flatten(1)

    def entry_scale(self, addends: int, backend: ProjectionBackend) -> float:
        return super().entry_scale(addends, backend) / math.sqrt((self.gates + 1) / 2)


class GatedState(ProjectingState):
    """The rule on a network with gates of its own.

    Attributes:
        blocks: G, of c components each that a column of the sum is projected in.
    """

    def __init__(self, rule: GatedFeedbackAlignment, points: Sequence[Point], own: PublicGates) -> None:
        """
        Args:
            rule: whose equation it is.
            points: the layers.
            own: the network's gates.
        """
        super().__init__(rule, points)
        self.blocks = own.gates
        for place, point in enumerate(points):
            opens = own.of_units(torch.eye(own.gates, device=own.normals.device), point.width)
            self.register_buffer(f"opens{place}", opens, persistent=False)

    def acting(self, options: dict[str, Any]) -> dict[str, Any]:
        """The network's gates in place of the rule's own, which were left out."""
        own = {name: value for name, value in options.items() if name not in ("gates", "gate_seed")}
        return {**own, "gates_of_the_network": self.blocks}

    def observe(self, passed: ForwardPass) -> Tensor | None:
        own = _own_gates(passed.module)
        assert own is not None  # the module is what the state was made for
        opened: Tensor = own(passed.args[0])
        return opened

    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        opened = noted.to(error.dtype)
        return [
            signal * (opened @ self._opens(place, signal))
            for place, signal in enumerate(self.signals(error, device))
            if signal is not None
        ]

    def of_sums(self, sums: Tensor, device: ProjectionBackend) -> list[Tensor]:
        """What sums over the records of r ⊗ e, shape (columns, G c), are worth to the units of each point.

        By one projection a block; a block moves the units of its gate.
        """
        answers = self.rule.feedback(sums.reshape(len(sums) * self.blocks, -1), self.points, device)
        return [
            (torch.unflatten(answer, 0, (-1, self.blocks)) * self._opens(place, answer)).sum(1)
            for place, answer in enumerate(answers)
        ]

    def _opens(self, place: int, like: Tensor) -> Tensor:
        """Which units of a point each gate opens, shape (blocks, n)."""
        return self.get_buffer(f"opens{place}").to(like)


def _own_gates(module: nn.Module) -> PublicGates | None:
    """The gates that a network has of its own.

    Raises:
        UsageError: it has several sets of them.
    """
    found = [part for part in module.modules() if isinstance(part, PublicGates)]
    if len(found) > 1:
        raise UsageError(
            f"the network has {len(found)} sets of public gates; give it one, of which all its layers take theirs"
        )
    return found[0] if found else None


def _gated_layers(module: nn.Module) -> list[str]:
    """Names of the layers whose units the network's own gates let through."""
    return [
        ".".join([*([path] if path else []), "layers", str(number)])
        for path, part in module.named_modules()
        if isinstance(part, GatedNetwork)
        for number in range(len(part.layers))
    ]


@cache  # a private pass that draws is none that does not
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a graph cannot draw them
def hyperplanes(count: int, width: int, seed: int) -> Tensor:
    """Normals of random hyperplanes through the origin, shape (count, width), float32; the same on every machine."""
    return NoiseGenerator.seeded(seed, "gates").normal_(torch.empty(count, width))
