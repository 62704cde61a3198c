"""Proof that the cuts cut: what each root of the backward pass reaches, read from autograd's own graph."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from noise_models.errors import UsageError
from optical_dfa.feedback.advice import instead, point_between, rewritten
from optical_dfa.feedback.points import Tape, install
from optical_dfa.networks.markers import ACTIVATIONS

OUTPUT = ""  # the name of the module itself, which no point has; shown as "output"

# Nodes that apply a nonlinearity element by element, and nodes that end the search for one after a point.
_NONLINEAR = (
    "Abs", "Celu", "Clamp", "ClampMax", "ClampMin", "Cos", "Elu", "Erf", "Exp", "Expm1", "Gelu", "Hardshrink",
    "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log1P", "LogSigmoid", "Maximum", "Minimum", "Mish",
    "Pow", "PreluKernel", "Relu", "RreluWithNoise", "Sigmoid", "Silu", "Sin", "Softmax", "Softplus", "Softshrink",
    "Sqrt", "Tanh", "Threshold",
)  # fmt: skip
_ADDITION = ("Add", "Sub", "Cat", "Stack")  # what is added passes no gradient on to the other terms
# Where a parameter of several axes enters without mixing what passes: an addition, a gain, a table of embeddings.
_PASSES_BY = (
    *_ADDITION,
    "Embedding",
    "Mul",
    "Div",
    "NativeLayerNorm",
    "NativeGroupNorm",
    "NativeBatchNorm",
    "PreluKernel",
)
_NORMS = (
    "NativeLayerNorm",
    "NativeGroupNorm",
    "NativeBatchNorm",
    "CudnnBatchNorm",
    "FusedRmsNorm",
    "RmsNorm",
)
_MATRIX = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Embedding", "Linear", "Mv", "Addmv")


def shown(root: str) -> str:
    """A root's name in messages."""
    return root or "output"


@dataclass(frozen=True)
class Cut:
    """One root of the backward pass.

    Attributes:
        root: the feedback point's name, or `OUTPUT`.
        shape: shape of the tensor at the root, without the record axis.
        parameters: names of the parameters this root trains.
        teacher: what the root's signal is formed from: `OUTPUT`, the network's error; or another root, that one's.
    """

    root: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    teacher: str = OUTPUT

    def __str__(self) -> str:
        source = f" (taught from {self.teacher})" if self.teacher != OUTPUT else ""
        return f"{shown(self.root)} {list(self.shape)}{source} <- {', '.join(self.parameters) or 'nothing to train'}"


@dataclass(frozen=True)
class Below:
    """What stands right below a feedback point.

    Attributes:
        places: how many places of a record share the weights: the point's units a row of them, 1 if that is no number.
        normalised: whether there is a normalisation between the weights and the point.
    """

    places: int
    normalised: bool


@dataclass
class Trace:
    """One traced forward pass.

    Attributes:
        output: the module's output.
        kept: (index of the point, its output), in call order.
        cuts: what every root trains.
        uses: how often the graph uses each parameter.
        ends: points that are the output itself: nothing between them and it is trained or multiplies by a matrix.
        below: of each point, what stands between it and its weights.
    """

    output: Tensor
    kept: list[tuple[int, Tensor]]
    cuts: list[Cut]
    uses: dict[str, int]
    ends: frozenset[str]
    below: dict[str, Below]


def trace(
    module: nn.Module,
    names: Sequence[str],
    example: Sequence[Tensor],
    *,
    strict: bool,
    before_activation: bool = False,
    meant: Callable[[Tensor, Tensor], bool] = lambda upper, lower: False,
) -> Trace:
    """Run a copy of `module` on `example` with hooks at `names`, and check every root's graph.

    Args:
        module: the module to cut; it is copied, so its buffers and its graph stay as they are.
        names: feedback points.
        example: inputs, records in the first dimension.
        strict: refuse two weight matrices in series under one root (backpropagation between them).
        before_activation: points before a nonlinearity are meant so.
        meant: whether backpropagation through one matrix into another below it is what the rule is about.
    Raises:
        UsageError: the graph still connects two roots (a skip around a point), or a nonlinearity after the point
            of a layer drops its derivative, or (strict) a root backpropagates through a second matrix.
    """
    try:
        twin = copy.deepcopy(module)
    except Exception as error:  # whatever its attributes say about being copied
        line = next(iter(str(error).splitlines()), "")[:160]
        raise UsageError(
            f"the module cannot be copied ({type(error).__name__}: {line}), and is tried on a copy; take what cannot "
            "be copied out of it (a lock, an open file)"
        ) from None
    tape = Tape()
    install(twin, names, tape)
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in example]
    given = _mark_what_is_given(twin)
    made = _note_what_layers_make(twin)
    tape.kept, tape.markers = [], []
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = run(twin, [x.clone() for x in inputs])
    if not isinstance(output, Tensor):
        raise UsageError(f"the module returns {type(output).__name__}; it must return one tensor of outputs")
    roots = [(OUTPUT, output), *((names[index], h) for index, h in tape.kept)]
    graph = _Graph([h for _, h in roots], [*tape.markers, *given, *(x for x in inputs if x.requires_grad)])
    owners = {id(p): name for name, p in twin.named_parameters()}

    if names:
        for _, h in roots:
            refuse_hidden(h)
    _refuse_foreign_weights(graph, module)
    _check_separate(graph, roots)
    functions = graph.functions(made, parts=dict(twin.named_modules()))
    parts = dict(twin.named_modules())
    for (index, _), marker in zip(tape.kept, tape.markers, strict=True):
        layer = parts[names[index]]
        if before_activation:
            continue
        if next(layer.children(), None) is None and next(layer.parameters(recurse=False), None) is not None:
            _check_derivative_kept(graph, marker, names[index], module)
    trained: dict[str, dict[str, None]] = {OUTPUT: {}, **{name: {} for name in names}}
    for root, h in roots:
        reached = {id(p) for p in graph.parameters(h)}
        trained[root].update((name, None) for known, name in owners.items() if known in reached)
        if strict:
            _check_one_matrix(graph, h, root, owners, meant, _Advice(module, names, functions))
    shapes = {root: tuple(h.shape[1:]) for root, h in roots}
    cuts = [Cut(root, shapes[root], tuple(params)) for root, params in trained.items() if root in shapes]
    uses = {
        owners[id(variable)]: len(graph.consumers[node])
        for node in graph.below
        if (variable := _variable(node)) is not None and id(variable) in owners
    }
    ends = [
        names[index]
        for (index, _), marker in zip(tape.kept, tape.markers, strict=True)
        if not trained[OUTPUT] and graph.ends_in(marker, output)
    ]
    below = {names[index]: graph.weights_below(h) for index, h in tape.kept}
    return Trace(output.detach(), tape.kept, cuts, uses, frozenset(ends), below)


def run(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """What a module returns for random records; what it raises for them becomes one line.

    Raises:
        UsageError: whatever the module raised.
    """
    try:
        return module(*inputs)
    except UsageError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise UsageError(
            f"the module does not run on {len(inputs[0])} random records like the example, of shape {shapes} "
            f"({type(error).__name__}: {reason}); align() tries it on batches of several sizes, so give an example "
            "of what it takes"
        ) from error


@dataclass(frozen=True)
class _Advice:
    """What a refusal needs to say what to write instead.

    Attributes:
        module: the plain module.
        points: names of its feedback points.
        functions: layers whose output goes to a nonlinear function, each with the function's node.
    """

    module: nn.Module
    points: Sequence[str]
    functions: Sequence[tuple[str, Node]]


def _note_what_layers_make(module: nn.Module) -> dict[Node, str]:
    """By the node that made it, the innermost part whose output a tensor is; filled as the module is run."""
    made: dict[Node, str] = {}

    def note(part: nn.Module, args: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None and name:
            made.setdefault(output.grad_fn, name)

    for name, part in module.named_modules():
        part.register_forward_hook(partial(note, name=name), prepend=True)
    return made


def refuse_hidden(output: Tensor) -> None:
    """A checkpoint that runs its part without gradients hides what it calls from the pass."""
    if any(node.name().startswith("CheckpointFunction") for node in nodes(output)):
        raise UsageError(
            "activation checkpointing with use_reentrant=True runs its part without gradients first, so that no point "
            "in it can be cut; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


def _refuse_foreign_weights(graph: _Graph, module: nn.Module) -> None:
    """A copy of the module must use the copy's own parameters."""
    originals = {id(p): name for name, p in module.named_parameters()}
    for node in graph.below:
        name = originals.get(id(_variable(node)))
        if name is not None:
            raise UsageError(
                f"a copy of the module still uses {name} of the module itself: a forward was replaced by a function "
                "that holds on to it; write it as a method of a subclass, so that the module can be copied and tried"
            )


def _mark_what_is_given(module: nn.Module) -> list[Tensor]:
    """Tensors without history that layers are given in the passes to come, such as characters one-hot: data as well.

    An integer input leaves no edge in the graph, so what is made of it must be marked where a layer takes it.
    """
    given: list[Tensor] = []

    def mark(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        marked = []
        for x in args:
            if isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad:
                given.append(x.detach().requires_grad_())
                x = given[-1].clone()
            marked.append(x)
        return tuple(marked)

    for part in module.modules():
        if next(part.children(), None) is None and next(part.parameters(recurse=False), None) is not None:
            part.register_forward_pre_hook(mark)
    return given


class _Graph:
    """Autograd's graph below some tensors, with the nodes that depend on data told from those that do not."""

    def __init__(self, roots: Sequence[Tensor], markers: Sequence[Tensor]) -> None:
        self.consumers: dict[Node, list[Node]] = defaultdict(list)
        self.below: dict[Node, tuple[Node, ...]] = {}
        todo = [root.grad_fn for root in roots if root.grad_fn is not None]
        while todo:
            node = todo.pop()
            if node in self.below:
                continue
            self.below[node] = tuple(edge[0] for edge in node.next_functions if edge[0] is not None)
            for child in self.below[node]:
                self.consumers[child].append(node)
                todo.append(child)
        marked = {id(m) for m in markers}
        # A node depends on data if it reaches an input or a cut copy; an embedding's integer input leaves no edge.
        self.data: set[Node] = set()
        todo = [n for n in self.below if id(_variable(n)) in marked or n.name().startswith("Embedding")]
        while todo:
            node = todo.pop()
            if node not in self.data:
                self.data.add(node)
                todo.extend(self.consumers[node])

    def reach(self, node: Node) -> set[Node]:
        """Every node at or below `node`."""
        seen: set[Node] = set()
        todo = [node]
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo.extend(self.below[current])
        return seen

    def parameters(self, h: Tensor) -> list[Tensor]:
        """The leaves `h` depends on, markers included."""
        found = [] if h.grad_fn is None else [_variable(node) for node in self.reach(h.grad_fn)]
        return [variable for variable in found if variable is not None]

    def weights_below(self, h: Tensor) -> Below:
        """What stands right below the point whose output `h` is."""
        uses = self.matrix_uses(h)
        todo, seen = [] if h.grad_fn is None else [h.grad_fn], set[Node]()
        places, normalised = 1, False
        while todo:
            node = todo.pop()
            if node in seen or node not in self.data:
                continue
            seen.add(node)
            normalised |= _operation(node) in _NORMS
            if node in uses and _operation(node) not in _PASSES_BY:
                rows = uses[node].shape[0]
                if h.ndim > 1 and h[0].numel() % rows == 0:
                    places = max(places, h[0].numel() // rows)
            else:
                todo.extend(self.below[node])
        return Below(places, normalised)

    def functions(self, made: Mapping[Node, str], parts: Mapping[str, nn.Module]) -> list[tuple[str, Node]]:
        """Layers with a weight matrix whose output goes to a nonlinear function outside any module, in call order."""
        found = []
        for maker, name in made.items():
            if not any(p.ndim > 1 for p in parts[name].parameters(recurse=False)):
                continue
            todo, seen = list(self.consumers.get(maker, ())), set[Node]()
            while todo:
                node = todo.pop()
                if node in seen or (node in made and isinstance(parts[made[node]], ACTIVATIONS)):
                    continue
                seen.add(node)
                operation = _operation(node)
                if operation in _NONLINEAR and node not in made:
                    found.append((name, node))
                elif operation not in _MATRIX:
                    todo.extend(self.consumers.get(node, ()))
        return found

    def ends_in(self, marker: Tensor, output: Tensor) -> bool:
        """Whether `marker` becomes the output without a matrix in between."""
        todo = [node for node in self.below if _variable(node) is marker]
        while todo:
            node = todo.pop()
            if node is output.grad_fn:
                return True
            todo.extend(parent for parent in self.consumers[node] if _operation(parent) not in _MATRIX)
        return False

    def matrix_uses(self, h: Tensor) -> dict[Node, Tensor]:
        """The data nodes below `h` at which a weight matrix enters, with that matrix."""
        uses: dict[Node, Tensor] = {}
        reached = self.reach(h.grad_fn) if h.grad_fn is not None else set[Node]()
        for node in (known for known in self.below if known in reached):  # in an order that does not change
            variable = _variable(node)
            if variable is None or variable.ndim < 2 or node in self.data:
                continue
            todo, seen = list(self.consumers[node]), set[Node]()
            while todo:
                consumer = todo.pop()
                if consumer in self.data:
                    uses[consumer] = variable
                elif consumer not in seen:
                    seen.add(consumer)
                    todo.extend(self.consumers[consumer])
        return uses


def nodes(h: Tensor) -> set[Node]:
    """Every node of autograd's graph that the gradient at `h` passes."""
    seen: set[Node] = set()
    todo = [] if h.grad_fn is None else [h.grad_fn]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(edge[0] for edge in node.next_functions if edge[0] is not None)
    return seen


def leaves(h: Tensor) -> list[Tensor]:
    """The leaves of autograd's graph that the gradient at `h` reaches."""
    found = [_variable(node) for node in nodes(h)]
    return [variable for variable in found if variable is not None]


def _variable(node: Node) -> Tensor | None:
    """The leaf an AccumulateGrad node accumulates into."""
    variable = getattr(node, "variable", None)
    return variable if isinstance(variable, Tensor) else None


def _operation(node: Node) -> str:
    return node.name().split("Backward")[0]


def _copies_a_leaf(graph: _Graph, node: Node) -> bool:
    """Whether this is trace's own clone of a cut copy or of an input."""
    return _operation(node) == "Clone" and all(_variable(child) is not None for child in graph.below[node])


def _check_separate(graph: _Graph, roots: Sequence[tuple[str, Tensor]]) -> None:
    """No node that carries data lies below two roots: otherwise one of them leaks backpropagation."""
    owner: dict[Node, str] = {}
    for root, h in roots:
        if h.grad_fn is None:
            continue
        reached = graph.reach(h.grad_fn) & graph.data
        for node in (known for known in graph.below if known in reached):  # in an order that does not change
            if _variable(node) is not None or _copies_a_leaf(graph, node):
                continue  # a cut copy or an input: gradients end there
            other = owner.setdefault(node, root)
            if other != root:
                raise UsageError(
                    f"autograd still connects {shown(other)} and {shown(root)} (through {_operation(node)}): a skip "
                    "connection goes around a feedback point; put the point after the addition, or cut the branch at "
                    "its start too: activate the sum, h = self.act(h + self.layer(h)), as "
                    "optical_dfa.networks.building.ResidualBlock does; or in __init__ self.sum = nn.Identity(), in "
                    "forward h = self.sum(h + ...), and as "
                    f"points= such sums, without {root if other == OUTPUT else other}"
                )


def _check_derivative_kept(graph: _Graph, marker: Tensor, name: str, module: nn.Module) -> None:
    """A layer's own output must not be cut before its nonlinearity, which would drop phi'."""
    todo = [node for node in graph.below if _variable(node) is marker]
    while todo:
        for consumer in graph.consumers[todo.pop()]:
            operation = _operation(consumer)
            if operation in _NONLINEAR:
                raise UsageError(
                    f"feedback point {name} is cut before its nonlinearity ({operation.lower()}), which drops the "
                    "derivative; make it an activation module (e.g. nn.Tanh) and cut there: "
                    f"{rewritten(module, [(name, consumer)])}"
                )
            if operation not in _MATRIX:
                todo.append(consumer)


def _check_one_matrix(
    graph: _Graph,
    h: Tensor,
    root: str,
    owners: dict[int, str],
    meant: Callable[[Tensor, Tensor], bool],
    advice: _Advice,
) -> None:
    """With default points, no root may backpropagate through one weight matrix into another unless that is meant."""
    uses = graph.matrix_uses(h)
    found = []
    for node, matrix in uses.items():
        if _operation(node) in _PASSES_BY:
            continue  # e.g. the recurrent weight at a constant first state, added to or gated
        for below in graph.reach(node) & uses.keys():
            if below is not node and not meant(matrix, uses[below]):
                found.append((owners.get(id(uses[below])), owners.get(id(matrix))))
    if not found:
        return
    order: dict[str | None, int] = {name: number for number, name in enumerate(owners.values())}
    # Always the same of several, and two matrices rather than one that is used twice.
    first, second = min(found, key=lambda pair: (pair[0] == pair[1], *(order.get(name, -1) for name in pair)))
    met = f"{first} and {second} are" if first != second else f"two uses of {first} are"
    raise UsageError(
        f"{met} in one segment below {shown(root)}: the gradient would be backpropagated between them; "
        f"{_remedy(advice, first, second)}"
    )


def _remedy(advice: _Advice, first: str | None, second: str | None) -> str:
    """What to write instead of two matrices in one segment."""
    kind = instead(advice.module, first, second, advice.points)
    if kind is not None:
        return kind
    if advice.functions:
        return (
            "use activation modules (nn.Tanh, not torch.tanh): "
            f"{rewritten(advice.module, advice.functions)}; or name the points= yourself"
        )
    return point_between(advice.module, first, second, advice.points)


def check_layerwise(
    module: nn.Module, example: Sequence[Tensor], layers: tuple[type[nn.Module], ...], rule: str
) -> None:
    """Every weight matrix that data passes must be a layer's own, called as such: only there is a rule's matrix used.

    Args:
        module: the plain module; a copy is run.
        example: inputs, records in the first dimension.
        layers: types of the layers that a rule gives another matrix.
        rule: its name.
    Raises:
        UsageError: naming the matrix through which the error would be backpropagated.
    """
    twin = copy.deepcopy(module)
    called: dict[int, int] = defaultdict(int)

    def count(layer: nn.Module, args: Any, output: Any) -> None:
        called[id(layer.weight)] += 1

    for part in twin.modules():
        if isinstance(part, layers):
            part.register_forward_hook(count)
    for p in twin.parameters():
        p.requires_grad_(p.is_floating_point())
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in example]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = twin(*[x.clone() for x in inputs])
    graph = _Graph([output], [x for x in inputs if x.requires_grad])
    owners = {id(p): name for name, p in twin.named_parameters()}
    for node, matrix in graph.matrix_uses(output).items():
        if _operation(node) in _PASSES_BY:
            continue
        called[id(matrix)] -= 1
        if called[id(matrix)] < 0:
            raise UsageError(
                f"{owners.get(id(matrix), 'a matrix')} is used outside {', '.join(t.__name__ for t in layers)}, where "
                f"rule {rule} would backpropagate through it; use those layers, or rule dfa"
            )


def check_steps(module: nn.Module, names: Sequence[str], example: Sequence[Tensor], positions: int) -> None:
    """Points that are called once for each position must be called in the order of the positions.

    The last position of the input is changed: of a network that reads forwards only the last call may notice.

    Args:
        module: the plain module; a copy is run.
        names: of such points.
        example: inputs, records first, then positions.
        positions: of the output.
    Raises:
        UsageError: another order, so that a call would be taught by another position's error; or no telling.
    """
    first, *others = example
    if first.ndim < 2 or first.shape[1] != positions:
        raise UsageError(
            f"feedback point {names[0]} is called {positions} times, as often as the output has positions, but the "
            "input has not as many; cut where the positions are the output's"
        )
    changed = first.clone()
    last = changed[:, -1]
    changed[:, -1] = last + 1 if last.is_floating_point() else (last == 0).to(last.dtype)
    seen: list[dict[str, list[Tensor]]] = []
    for given in (first, changed):
        twin = copy.deepcopy(module).eval()
        calls: dict[str, list[Tensor]] = {name: [] for name in names}
        for name, kept in calls.items():
            twin.get_submodule(name).register_forward_hook(lambda _, args, out, kept=kept: kept.append(out))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin(given.clone(), *(x.clone() for x in others))
        seen.append(calls)
    for name in names:
        before, after = (calls[name][:-1] for calls in seen)
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise UsageError(
                f"feedback point {name} sees the last position before its last call, so its calls are not in the order "
                "of the positions and would be taught by each other's errors; cut such a layer elsewhere"
            )
