"""Aggregated capture: what records contribute BEFORE it is projected, so that the projection comes last (THEORY T5).

Under rule `gated-dfa` the update of hidden layer l is `B_l A_l` with `A_l = Σ_i (r(x_i) ⊗ e_i) (h_i, 1)^T` of shape
(p, d_l + 1), p = G c. This capture hands out A: the stack that is clipped record by record and noised holds the A of
every hidden layer and the gradient of the output layer. `unpack` sends the columns of the noised A through the device:
frames, digitisation, saturation and the device's own noise are post-processing of what is already released. It is the
`B B^+`-denoised form besides: the noise of a layer has p, not n_l, components a column. Where the network has gates of
its own a column goes through in G blocks of c, each for the units of its gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.capture.following import Following
from optical_dfa.capture.pending import Use
from optical_dfa.capture.records import Capture
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.cuts import OUTPUT, Cut
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rules.gated import GatedFeedbackAlignment, GatedState

_COLUMNS = 4096  # projected at a time


class AggregatedCapture(Capture):
    """The contributions of a network under `gated-dfa` as they are before the projection.

    Exactly one forward and one backward pass go over a batch. Every hidden layer is an nn.Linear on flat records, cut
    at its own output; the output layer may be anything that can be trained privately.

    Attributes:
        hidden: point of each hidden layer, by the layer's name.
    """

    def __init__(self, aligned: AlignedModule) -> None:
        """
        Args:
            aligned: under rule gated-dfa.
        Raises:
            UsageError: as for `Capture`, another rule, or a hidden layer that is not as said above, naming it.
        """
        rule, backend, state = aligned.rule, aligned.backend, aligned.state
        if type(rule) is not GatedFeedbackAlignment or backend is None:
            raise UsageError(
                f"rule {rule.name} does not project a sum over the records; release aggregate needs rule gated-dfa "
                "and a hidden layer"
            )
        self._rule, self._backend, self._points = rule, backend, aligned.points
        self._blocks = state.blocks if isinstance(state, GatedState) else 1
        self._inputs = self._blocks * backend.in_features  # p
        self._lifted: dict[int, Tensor] = {}
        self._placed = False
        trained = aligned.trained_parameters()
        _check_hidden(aligned.module, trained, aligned.points, aligned.cuts, aligned.uses)
        self.hidden = {point.name: point for point in aligned.points if _own(point.name, trained)}
        super().__init__(aligned)
        self.sizes = {name: self._size(name) for name in self.parameters}
        self.dimension = sum(self.sizes.values())

    def _size(self, name: str) -> int:
        """Entries of a parameter's block in the stack."""
        p = self.parameters[name]
        if name.rpartition(".")[0] not in self.hidden:
            return p.numel()
        return self._inputs * (p.shape[1] if p.ndim == 2 else 1)

    @property
    def projects(self) -> bool:
        return True

    @property
    def stacked(self) -> list[Sequence[int]]:
        return [
            p.shape
            if name.rpartition(".")[0] not in self.hidden
            else (self._inputs, self.sizes[name] // self._inputs)
            for name, p in self.parameters.items()
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lifted": {}, "_placed": False}

    # ---- during the passes

    def teach(self, rows: Tensor, noted: tuple[int, Tensor | None]) -> list[Tensor | None]:
        """No record goes through the device: zeros come back to the points, and `r ⊗ e` is what the release sums.

        Raises:
            UsageError: a second backward pass over the batch.
        """
        block, observed = noted
        if block in self._lifted:
            raise UsageError(
                "a second backward pass went over this batch; a projected sum takes one forward and one backward "
                "pass a step"
            )

        def lift(_: Following, *given: Any) -> list[Tensor | None]:
            return [self._rule.lift(*given)]

        (lifted,) = self._followed("signals", lift, (rows, observed))
        assert lifted is not None
        self._lifted[block] = lifted
        return [lifted.new_zeros(1, 1).expand(len(lifted), point.width) for point in self._points]

    def forget_passes(self) -> None:
        super().forget_passes()
        self._lifted, self._placed = {}, False

    def _prepare(self) -> None:
        if not self._placed:
            for block, lifted in self._lifted.items():
                self._place(lifted, [use for use in self.uses if use.block == block])
            self._placed = bool(self._lifted)

    def _place(self, lifted: Tensor, uses: Sequence[Use]) -> None:
        """Put `r ⊗ e` in place of the zeros that came back to each hidden layer."""
        layers = [use.layer for use in uses if use.layer in self.hidden]
        if sorted(layers) != sorted(self.hidden):
            raise UsageError(
                f"teaching signals reached {len(layers)} hidden layers of {len(self.hidden)}; a projected sum takes "
                "one forward and one backward pass a step"
            )
        for use in uses:
            if use.layer in self.hidden:
                if use.x.ndim != 2 or len(use.x) != len(lifted):
                    raise UsageError(
                        f"layer {use.layer} sees {use.x.ndim - 1} axes a record; a projected sum takes flat records"
                    )
                use.delta = lifted

    # ---- after the release

    def projections(self, records: int) -> int:
        """The columns of the stack, in blocks, whatever the number of records."""
        return sum(
            self.sizes[name] // self._backend.in_features
            for name in self.parameters
            if name.rpartition(".")[0] in self.hidden
        )

    def unpack(self, released: Tensor) -> Tensor:
        """The flat gradient: the columns of the hidden layers' blocks through the device, the rest as it is.

        Args:
            released: the noised stack, shape (dimension,).
        Returns:
            shape (parameters,), in the order of `parameters`.
        Raises:
            DeviceError: the device failed.
        """
        blocks = dict(zip(self.parameters, torch.split(released, list(self.sizes.values())), strict=True))
        columns = {
            name: block.view(self._inputs, -1).T
            for name, block in blocks.items()
            if self._point(name) is not None
        }
        stacked = torch.cat(list(columns.values())) if columns else released.new_zeros(0, self._inputs)
        projected: list[list[Tensor]] = [[] for _ in self._points]
        for chunk in torch.split(stacked, max(1, _COLUMNS // self._blocks)):
            for part, one in zip(projected, self._project(chunk.contiguous()), strict=True):
                part.append(one)
        answer = {
            point.name: torch.cat(part) for point, part in zip(self._points, projected, strict=True) if part
        }
        gradient, start = [], 0
        for name, block in blocks.items():
            point = self._point(name)
            if point is None:
                gradient.append(block)
                continue
            stop = start + len(columns[name])
            gradient.append(answer[point.name][start:stop].T.reshape(-1))
            start = stop
        return torch.cat(gradient)

    def _project(self, columns: Tensor) -> list[Tensor]:
        """What released columns, one a row, are worth to the units of each point."""
        state = self.aligned.state
        if isinstance(state, GatedState):
            return state.of_sums(columns, self._projection())
        return self._rule.feedback(columns, self._points, self._projection())

    def _projection(self) -> ProjectionBackend:
        """What projects the released columns."""
        return self._backend

    def _point(self, parameter: str) -> Point | None:
        return self.hidden.get(parameter.rpartition(".")[0])


class LightCapture(AggregatedCapture):
    """As `AggregatedCapture`, of columns that the medium itself carried and that were read back: B is known there.

    `B B⁺` of what the light answered is the update: nothing is exposed a second time.
    """

    def __init__(self, aligned: AlignedModule) -> None:
        """
        Raises:
            UsageError: as for `AggregatedCapture`, or B is not known.
        """
        super().__init__(aligned)
        matrix = self._backend.matrix()
        if matrix is None:
            raise UsageError(
                f"the matrix of backend {self._backend.name} is not known, so that what its light carried cannot be "
                "read back; calibrate its response, or use release aggregate"
            )

    def projections(self, records: int) -> int:
        return 0  # the release shows the columns

    def _projection(self) -> ProjectionBackend:
        return cast(ProjectionBackend, _Known(self._backend))


class _Known:
    """A device whose answers are computed from its matrix."""

    def __init__(self, device: ProjectionBackend) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def project(self, e: Tensor) -> Tensor:
        """`B e` for each row."""
        matrix = self._device.matrix()
        assert matrix is not None  # looked at when the run began
        return e @ matrix.to(e).T


def carried_by_light(aligned: AlignedModule) -> Capture:
    """What a release takes whose sum light carries: under `gated-dfa` before the projection, else the update itself."""
    return LightCapture(aligned) if type(aligned.rule) is GatedFeedbackAlignment else Capture(aligned)


def _own(layer: str, trained: Mapping[str, nn.Parameter]) -> bool:
    """Whether a layer has trained parameters."""
    return any(name.rpartition(".")[0] == layer for name in trained)


def _check_hidden(
    module: nn.Module,
    trained: Mapping[str, nn.Parameter],
    points: Sequence[Point],
    cuts: Sequence[Cut],
    graph_uses: Mapping[str, int],
) -> None:
    """Each point is a linear layer's own output, and trains that layer alone, used once.

    Raises:
        UsageError: naming the layer.
    """
    names = {point.name for point in points}
    for cut in cuts:
        for name in cut.parameters:
            if cut.root == OUTPUT or name not in trained:
                continue
            if name.rpartition(".")[0] != cut.root:
                raise UsageError(
                    f"{name} is taught through {cut.root}, another layer; a projected sum takes hidden layers that "
                    "are nn.Linear, each cut at its own output"
                )
            if graph_uses.get(name, 0) > 1:
                raise UsageError(
                    f"{name} is used several times a record; a projected sum takes layers used once"
                )
    for name, part in module.named_modules():
        if name in names and _own(name, trained) and type(part) is not nn.Linear:
            raise UsageError(
                f"hidden layer {name} is a {type(part).__name__}; a projected sum takes nn.Linear (freeze the "
                "others, or use release digital)"
            )
