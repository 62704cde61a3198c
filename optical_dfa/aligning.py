"""`align`: where a module is cut, what of a device's frame each feedback point reads, and the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import place_of
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.backends import create
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.capture.opening import open_capture
from optical_dfa.feedback import make_rule
from optical_dfa.feedback.admission import refuse_foreign
from optical_dfa.feedback.aligned import (
    AlignedModule,
    LossReduction,
    called_at_positions,
    random_inputs,
)
from optical_dfa.feedback.cuts import check_steps, trace
from optical_dfa.feedback.gains import gains
from optical_dfa.feedback.outlook import outlook
from optical_dfa.feedback.points import Point, refuse_computed, refuse_no_names, remove
from optical_dfa.feedback.records import check_record_axis
from optical_dfa.feedback.rule import ProjectingRule, Rule, Taught
from optical_dfa.feedback.state import FeedbackState, Placement, components
from optical_dfa.feedback.trial import runs_again, try_step

__all__ = ["AlignedModule", "align", "unalign"]


def align(
    module: nn.Module,
    *,
    rule: Rule | str = "dfa",
    backend: ProjectionBackend | str = "digital",
    example: Tensor | Sequence[Tensor] | None = None,
    points: Sequence[str] | None = None,
    loss_reduction: LossReduction = "mean",
    seed: int = 0,
    rule_options: Mapping[str, Any] | None = None,
    backend_options: Mapping[str, Any] | None = None,
    noise: NoiseGenerator | None = None,
    show: Callable[[str], None] | None = print,
) -> AlignedModule:
    """Train `module` with a feedback rule instead of backpropagation.

    Args:
        module: any module with one output tensor of shape (records, [positions,] components).
        rule: a rule, or its registered name.
        backend: a device, or its registered name. One device serves all points; each reads its slice of one frame.
        example: inputs with records first, for their shapes only. May be left out where the first layer is linear.
        points: names of the modules to cut at; by default what the rule cuts, mostly the activation
            modules and embeddings.
        loss_reduction: "mean" if the loss averages over the records, "sum" if it adds them.
        seed: seeds the device's transmission matrix (only where `backend` is a name), and what the rule draws.
        rule_options, backend_options: options of a rule or device given by name.
        noise: generator of a simulated device's noise; by default a cryptographic one.
        show: is given the list of cuts, a line each, and a note where direct feedback will probably teach nothing; None
            keeps quiet.
    Returns:
        the aligned module; `unalign` gives the plain one back.
    Raises:
        UsageError: unknown names or options, a graph that the points do not cut, a device of the wrong size.
    """
    if isinstance(module, AlignedModule):
        raise UsageError("the module is already aligned; unalign() it first")
    if loss_reduction not in ("mean", "sum"):
        raise UsageError(f"loss_reduction is {loss_reduction!r}; it must be 'mean' or 'sum'")
    refuse_foreign(module)
    refuse_computed(module)
    chosen = make_rule(rule, rule_options) if isinstance(rule, str) else rule
    inputs = _example_inputs(module, example)
    if points is not None:
        refuse_no_names(module, points)
    names = list(points) if points is not None else chosen.default_points(module, inputs)
    if not chosen.cuts:
        names = []
    before = chosen.taught is Taught.LAYER
    traced = trace(module, names, inputs, strict=False, before_activation=before)
    if points is None and names:
        # The last activation may be the output itself, and one above frozen layers teaches nobody.
        useful = {cut.root for cut in traced.cuts if cut.parameters}
        names = [name for name in names if name in useful and name not in traced.ends]
    if chosen.cuts:
        traced = trace(
            module,
            names,
            inputs,
            strict=points is None,
            before_activation=before,
            meant=chosen.backpropagates,
        )

    def some(records: int) -> list[Tensor]:
        return random_inputs(module, _shapes(inputs), records)

    try:
        all_points = _locate(names, traced.output, traced.kept)
    except UsageError:
        check_record_axis(module, names, some)  # the better reason, where there is no record axis
        raise
    stepwise = [names[i] for i in _stepwise(traced.kept, traced.output)]
    if stepwise:
        check_steps(module, stepwise, inputs, traced.output.shape[1])
    called = list(dict.fromkeys(names[index] for index, _ in traced.kept))
    gain = gains(module, called, traced.below)
    all_points = [replace(point, gain=gain[point.name]) for point in all_points]
    state = chosen.state(
        Placement(module, all_points, traced.output, inputs, derive_seed(seed, "feedback state"))
    )
    if not isinstance(state, FeedbackState):
        raise UsageError(
            f"rule {chosen.name} must return a FeedbackState from state(), not a {type(state).__name__}"
        )
    state.to(place_of(module))
    untaught = set(names) - {point.name for point in state.points} - state.teachers.keys()
    if untaught:
        raise UsageError(
            f"rule {chosen.name} says nothing of what teaches its feedback point {min(untaught)}"
        )
    device: ProjectionBackend | None = None
    if isinstance(chosen, ProjectingRule) and state.points:
        slices = chosen.layout([point.shape for point in state.points])
        state.points = tuple(
            replace(p, start=start, outputs=size)
            for p, (start, size) in zip(state.points, slices, strict=True)
        )
        device = _device(
            chosen, state.points, components(traced.output), backend, backend_options, seed, noise
        )
    check_record_axis(module, names, some)
    # Before the hooks are on.
    again = (chosen.cuts or type(state) is not FeedbackState) and runs_again(module, inputs)
    aligned = AlignedModule(
        module, chosen, device, state, traced, loss_reduction, inputs, opener=open_capture
    )
    if again:
        try_step(aligned)
    if show is not None:
        found = outlook(aligned, traced.below)
        show("\n".join([*(str(cut) for cut in aligned.cuts), *([found] if found else [])]))
    return aligned


def unalign(aligned: AlignedModule) -> nn.Module:
    """The plain module, without hooks, trained as it is."""
    remove(aligned.module, aligned._tape)
    aligned.state.remove(aligned.module)
    aligned.stop_capture()
    aligned._unaligned = True
    return aligned.module


def _example_inputs(module: nn.Module, example: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """Two random records of the example's shapes (never the example itself, which may be private)."""
    if example is None:
        first = next(
            (part for part in module.modules() if next(part.parameters(recurse=False), None) is not None),
            None,
        )
        if not isinstance(first, nn.Linear):
            raise UsageError(
                "the shape of the inputs cannot be told from the module; pass example=a batch of inputs"
            )
        given = [torch.empty(1, first.in_features, dtype=first.weight.dtype)]
    else:
        given = [example] if isinstance(example, Tensor) else list(example)
    return random_inputs(module, _shapes(given), 2)


def _shapes(given: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape of a record, and type, of each input."""
    return [(tuple(x.shape[1:]), x.dtype) for x in given]


def _device(
    rule: ProjectingRule,
    points: Sequence[Point],
    components: int,
    backend: ProjectionBackend | str,
    options: Mapping[str, Any] | None,
    seed: int,
    noise: NoiseGenerator | None,
) -> ProjectionBackend:
    """The device that serves these points: built, where it is given by name; of the right size."""
    wanted = rule.device_inputs(components)
    needed = max(point.start + point.outputs for point in points)
    if isinstance(backend, str):
        backend = create(
            backend,
            in_features=wanted,
            out_features=needed,
            seed=derive_seed(seed, "feedback"),
            noise=noise or NoiseGenerator.secure("device"),
            options=rule.device_options(backend, options or {}, _layers(points)),
        )
    rule.check_device(backend)
    if backend.in_features != wanted or backend.out_features < needed:
        raise UsageError(
            f"the device projects {backend.in_features} -> {backend.out_features}, but the network needs "
            f"{wanted} -> {needed} (what its feedback points read of a frame)"
        )
    return backend


def _layers(points: Sequence[Point]) -> list[int]:
    """Sizes of the distinct parts of the frame; points that share their components share a part."""
    ends: dict[int, int] = {}
    for point in points:
        ends[point.start] = max(ends.get(point.start, 0), point.outputs)
    return list(ends.values())


def _locate(names: Sequence[str], output: Tensor, kept: Sequence[tuple[int, Tensor]]) -> list[Point]:
    """The points and their shapes: of the whole output, or per position where the network has positions."""
    shapes: dict[str, tuple[int, ...]] = {}
    called = [index for index, _ in kept]
    for index, h in kept:
        name = names[index]
        if output.ndim > 2 and not called_at_positions(h, output, called.count(index)):
            if h.shape[:-1] != output.shape[:-1]:
                raise UsageError(
                    f"feedback point {name} has shape {tuple(h.shape)} where the output has positions "
                    f"{tuple(output.shape[:-1])}; cut where the positions are the output's"
                )
            shape: tuple[int, ...] = (h.shape[-1],)
        else:
            shape = tuple(h.shape[1:])
        if shapes.setdefault(name, shape) != shape:
            raise UsageError(
                f"feedback point {name} is called with shapes {shapes[name]} and {shape}; it needs one"
            )
    for name in names:
        if name not in shapes:
            raise UsageError(f"feedback point {name} is never called in a forward pass")
    return [Point(name, shapes[name]) for name in names]


def _stepwise(kept: Sequence[tuple[int, Tensor]], output: Tensor) -> list[int]:
    """Indices of the points that are called once for each position, in call order."""
    called = [index for index, _ in kept]
    found = [i for i, h in kept if called_at_positions(h, output, called.count(i))]
    return list(dict.fromkeys(found))
