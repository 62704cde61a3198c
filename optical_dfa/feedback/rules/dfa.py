"""Direct feedback alignment (Nøkland 2016): g_l = B_l e, with B_l fixed and random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa import options as options_of
from optical_dfa.backends import BACKENDS, NO_OPTIONS
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rule import ProjectingRule, ProjectingState
from optical_dfa.feedback.rules import shared_kernel
from optical_dfa.feedback.rules.augmented import DERIVATIVES, AugmentedState
from optical_dfa.feedback.state import Placement

LAWS = ("normal", "uniform", "orthogonal")
MOST_TAPS = 31


@RuleCard(summary="Direct Feedback Alignment", projects=True, fixed_matrix=True)
class DirectFeedbackAlignment(ProjectingRule):
    """`dfa`: every hidden layer is taught by a fixed random projection of the output error.

    B_l is layer l's slice of ONE device frame, scaled to entries of standard deviation `scale / sqrt(n_l)`, so that
    |g_l| ~ scale |e|. Where no scale is given, each point has its own (`optical_dfa.feedback.gains`): 1 after
    activations that saturate or a normalisation, 3^(-1/2) 6^(-k/2) P^(-3/2) after ReLU and its kind, with k such points
    above and P places that share the weights. The published variants:

    - Nøkland 2016 (arXiv 1609.01596): `law="uniform"`, `scale=1/sqrt(3)`, that is U[±1/sqrt(n_l)].
    - Launay et al. 2019 (arXiv 1906.04554): `slices="shared"`, `scale=1/sqrt(c)`; without their constant 1/sqrt(c)
      the scale is 1.
    - Launay et al. 2020 ("DFA scales", arXiv 2006.12878): `law="uniform"`, `slices="shared"`,
      `normalisation="widest"`, `scale=1/sqrt(3)`: one matrix U[-1, 1] over sqrt(the widest layer) for every layer.
    - Nakajima et al. 2022 (Nat. Commun. 13:7847, augmented DFA): `derivative`, another function in place of φ'.
    """

    name = "dfa"
    laws: ClassVar[tuple[str, ...]] = LAWS

    def __init__(
        self,
        scale: float | None = None,
        law: str | None = None,
        slices: str = "separate",
        normalisation: str = "layer",
        conv: str = "dense",
        kernel: int = 3,
        derivative: str | None = None,
    ) -> None:
        """
        Args:
            scale: standard deviation of B_l's entries times sqrt(n_l), the same for all points; None derives one for
                each from its shape and activation.
            law: of B's entries, "normal", "uniform" or "orthogonal" (B_l's columns orthogonal); None is the
                device's own, which is normal for light.
            slices: "separate", every layer has components of the frame of its own; or "shared", layer l reads the
                first n_l of one frame as long as the widest layer needs.
            normalisation: "layer", entries of standard deviation scale/sqrt(n_l); or "widest", scale/sqrt(max n_l)
                in every layer, narrow ones included.
            conv: how points with space (channels, height, ...) are taught: "dense", every unit by a row of B_l; or
                "shared-kernel", every place by the same kernel (`optical_dfa.feedback.rules.shared_kernel`).
            kernel: side of that kernel, odd, 1 to 31.
            derivative: the function of a unit's input that stands in place of its activation's derivative
                (`optical_dfa.feedback.rules.augmented`): "one", "step", "tanh" (1 - tanh²), "gaussian" (exp(-a²)),
                "triangle" (1 - |a| where that is positive), "cosine" or "sine"; None is its own.
        Raises:
            UsageError: an option out of its range.
        """
        if scale is not None and not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise UsageError(f"rule option scale={scale!r}: it must be a positive number")
        for option, value, allowed in (
            ("law", law, (None, *self.laws)),
            ("slices", slices, ("separate", "shared")),
            ("normalisation", normalisation, ("layer", "widest")),
            ("conv", conv, ("dense", "shared-kernel")),
            ("derivative", derivative, (None, *DERIVATIVES)),
        ):
            if value not in allowed:
                names = ", ".join(name for name in allowed if name is not None)
                raise UsageError(f"rule option {option}={value!r}: it must be one of {names}")
        if type(kernel) is not int or kernel not in range(1, MOST_TAPS + 1, 2):
            raise UsageError(
                f"rule option kernel={kernel!r}: it must be an odd whole number from 1 to {MOST_TAPS}"
            )
        self.scale = 1.0 if scale is None else float(scale)
        self.derived = scale is None
        self.law = law
        self.slices = slices
        self.normalisation = normalisation
        self.conv = conv
        self.kernel = kernel
        self.derivative = derivative

    def state(self, placed: Placement) -> ProjectingState:
        """
        Raises:
            UsageError: a derivative was given for a point that has none, or one that cannot be replaced.
        """
        if self.derivative is None:
            return super().state(placed)
        return AugmentedState(self, placed, self.derivative)

    @property
    def apart(self) -> bool:
        return self.normalisation == "layer"

    # ---- the device

    def layout(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
        sizes = [self._outputs(shape) for shape in shapes]
        starts = [sum(sizes[:i]) if self.slices == "separate" else 0 for i in range(len(sizes))]
        return list(zip(starts, sizes, strict=True))

    def device_options(
        self, backend: str, given: Mapping[str, Any], outputs: Sequence[int]
    ) -> dict[str, Any]:
        known = options_of.names(BACKENDS.load(backend), NO_OPTIONS)
        chosen = dict(given)
        if self.law is not None and "distribution" not in known:
            raise UsageError(
                f"rule {self.name} wants a feedback matrix of law {self.law}, but that of backend {backend} cannot be "
                "chosen; use backend digital"
            )
        if self.law is not None:
            chosen.setdefault("distribution", self.law)
        if "slices" in known:
            chosen.setdefault("slices", list(outputs))
        return chosen

    def check_device(self, device: ProjectionBackend) -> None:
        if self.law is not None and device.distribution != self.law:
            raise UsageError(
                f"rule {self.name} wants a feedback matrix of law {self.law}, but that of backend {device.name} is "
                f"{device.distribution}; build it with distribution={self.law!r}, or leave one of the two out"
            )

    # ---- the equation

    def _spatial(self, shape: tuple[int, ...]) -> bool:
        return self.conv == "shared-kernel" and len(shape) > 1

    def _outputs(self, shape: tuple[int, ...]) -> int:
        """Components of the frame that a point of this shape reads."""
        if self._spatial(shape):
            return shape[0] * shared_kernel.taps(shape, self.kernel)
        return math.prod(shape)

    def _addends(self, point: Point) -> int:
        """Entries of B that make up g_l for one component of e: n_l, times the taps that a shared kernel adds up."""
        return point.width * (
            shared_kernel.taps(point.shape, self.kernel) if self._spatial(point.shape) else 1
        )

    def entry_scale(self, addends: int, backend: ProjectionBackend) -> float:
        """Factor from the device's answer to the teaching signal at a point of so many addends."""
        return self.scale / (backend.std * math.sqrt(addends))

    def gain(self, point: Point) -> float:
        """The scale derived for a point; 1 where one was given."""
        return point.gain if self.derived else 1.0

    def describe(self, points: Sequence[Point]) -> dict[str, Any]:
        """The options; where no scale was given, the derived one, or those of the points by name where they differ."""
        options = super().describe(points)
        gains = {point.name: point.gain for point in points}
        if options.pop("derived") and set(gains.values()) - {1.0}:
            options["scale"] = gains
        if self.derivative is None:
            del options["derivative"]  # as it was before there was the option
        return options

    def work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """c for each component of the frame, and the sums of a shared kernel's taps; a unit hears c errors.

        Under a shared kernel it is the kernel's taps that hear them, and each unit one sum.
        """
        heard = self.device_inputs(components)
        operations = heard * max((point.start + point.outputs for point in points), default=0)
        words = heard * sum(point.outputs for point in points)
        for point in points:
            if self._spatial(point.shape):
                operations += shared_kernel.additions(point.shape, self.kernel)
                words += point.width
        return operations, words

    def feedback(self, lifted: Tensor, points: Sequence[Point], device: ProjectionBackend) -> list[Tensor]:
        frame = device.project(lifted)
        addends = [self._addends(point) for point in points]
        signals = []
        for point, own in zip(points, addends, strict=True):
            factor = self.entry_scale(max(addends) if self.normalisation == "widest" else own, device)
            factor *= self.gain(point)
            signal = frame[:, point.start : point.start + point.outputs]
            # In place, but for components that other layers read as well.
            signal = signal.mul_(factor) if self.slices == "separate" else signal * factor
            if self._spatial(point.shape):
                signal = shared_kernel.spread(signal, point.shape, self.kernel).flatten(1)
            signals.append(signal)
        return signals
