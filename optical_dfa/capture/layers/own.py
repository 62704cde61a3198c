"""A module with parameters of its own, whatever its forward does with them: its gradient, record by record.

The module is called again with one record at a time (`torch.func`, several at once by vmap), so that what a record
contributes is a function of that record alone, and of what is the same for all. The call takes in all that is below the
module. Chunks have one size, and are filled up: how a product is rounded depends on its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from noise_models.errors import UsageError
from optical_dfa.capture.contributions import Contribution
from optical_dfa.capture.layers.pairs import Common, Pairs
from optical_dfa.feedback.cuts import nodes
from privacy.norms import vector_norms

_RECORDS = 32  # called at once
_ELEMENTS = 1 << 22  # of their gradients
_OWN = "put it into a small module of its own, whose forward(x) uses it and calls no other trained layer"


class _Bare(nn.Module):
    """A module's own forward, without the hooks around it."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, *args: Any) -> Any:
        return self.own.forward(*args)


class _Certain(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that draw at random."""

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UsageError(
                f"{self.kind}, which has parameters of its own, draws at random "
                f"({func._schema.name.removeprefix('aten::')}), and is called again for each record, when it would "
                "draw anew; put the parameters and what draws into modules of their own"
            )
        return func(*args, **(kwargs or {}))


def refuse_own(name: str, module: nn.Module) -> None:
    """Refuse a module with trained parameters of its own whose forward is not all that is done with them.

    Args:
        name: of the module.
    Raises:
        UsageError: saying what to write instead.
    """
    whose = f"{name or 'the module'} ({type(module).__name__})"
    first = next(key for key, p in module.named_parameters() if p.requires_grad)
    if type(module).forward is nn.Module.forward:
        raise UsageError(
            f"parameter {first} of {whose} cannot be trained privately, as another module's forward uses it; freeze "
            f"it, or {_OWN}"
        )
    for inner, part in module.named_modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if part is not module and any(hooks):
            raise UsageError(
                f"parameter {first} of {whose} cannot be trained privately, as the same forward calls {inner}, which a "
                f"rule cuts or changes; freeze it, or {_OWN}"
            )


def own_parameters(module: nn.Module, x: Tensor, delta: Tensor, rest: Sequence[Tensor | Common]) -> Pairs:
    """The gradient of every trained parameter at or below `module`, record by record.

    Args:
        x, rest: what it was called with; what has no row a record is marked.
        delta: at its output.
    """
    gradients = _Gradients(module, x, delta, rest)
    return [(p, _Own(gradients, name)) for name, p in gradients.parameters.items()]


class _Own(Contribution):
    """What records contribute to one of the parameters; formed when it is asked for."""

    def __init__(self, gradients: _Gradients, name: str) -> None:
        self._gradients, self._name = gradients, name

    def norms(self) -> Tensor:
        records, width = len(self._gradients.given[0]), self._gradients.parameters[self._name].numel()
        return torch.cat([vector_norms(self._rows(*block)) for block in self._chunks(records, width)])

    def absolute(self) -> Tensor:
        return self.norms()

    def explicit(self, start: int, stop: int) -> Tensor:
        return self._rows(start, stop).double()

    def _rows(self, start: int, stop: int) -> Tensor:
        return self._gradients.block(start, stop)[self._name]


class _Gradients:
    """The gradients of one call of a module, a run of records at a time.

    Attributes:
        parameters: the trained ones, by name.
        given: the first input, delta, and what else has a row a record.
    """

    def __init__(self, module: nn.Module, x: Tensor, delta: Tensor, rest: Sequence[Tensor | Common]) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.given = [x.detach(), delta, *(one.detach() for one in rest if isinstance(one, Tensor))]
        self._bare, self._rest = _Bare(module), [_as_precise(one) for one in rest]
        self._values = {name: p.detach() for name, p in self.parameters.items()}
        names = {id(p): name for name, p in self.parameters.items()}
        # Of a parameter that several parts hold, all places; of a part that has several names, one.
        self._places = {
            f"{path}.{key}": names[id(p)]
            for path, part in self._bare.named_modules()
            for key, p in part._parameters.items()
            if id(p) in names
        }
        self._size = max(1, min(_RECORDS, _ELEMENTS // sum(p.numel() for p in self.parameters.values())))
        self._chunk: tuple[int, dict[str, Tensor]] = -1, {}
        self._block: tuple[tuple[int, int], dict[str, Tensor]] = (0, 0), {}

    def block(self, start: int, stop: int) -> dict[str, Tensor]:
        """Of records start..stop-1, shapes (stop - start, numel). The last block is kept, as all parameters ask for it.

        Raises:
            UsageError: the module draws at random, or does not take one record alone.
        """
        if self._block[0] != (start, stop):
            first = start // self._size
            runs = [self._of_chunk(chunk) for chunk in range(first, -(-stop // self._size))]
            kept = slice(start - first * self._size, stop - first * self._size)
            # 0 times infinity is not 0: a record that is taught nothing contributes nothing, whatever it holds.
            taught = (self.given[1][start:stop] != 0).reshape(stop - start, -1).any(1, keepdim=True)
            found = {
                name: torch.cat([run[name] for run in runs])[kept].reshape(stop - start, -1)
                for name in self._values
            }
            found = {name: rows.where(taught, rows.new_zeros(())) for name, rows in found.items()}
            self._block = (start, stop), found
        return self._block[1]

    def _of_chunk(self, chunk: int) -> dict[str, Tensor]:
        if self._chunk[0] != chunk:
            given = [one[chunk * self._size : (chunk + 1) * self._size] for one in self.given]
            try:
                found = vmap(self._gradient)(*(_filled(one, self._size) for one in given))
            except RuntimeError:
                found = self._one_by_one(*given)
            self._chunk = chunk, found
        return self._chunk[1]

    def _gradient(self, x: Tensor, delta: Tensor, *each: Tensor) -> dict[str, Tensor]:
        args = _arguments(x.unsqueeze(0), [one.unsqueeze(0) for one in each], self._rest)
        called: Any = vjp(lambda values: self._call(values, args), self._values)
        output, pull = called
        (found,) = pull(delta.unsqueeze(0).to(output.dtype))
        return found  # type: ignore[no-any-return]

    def _call(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
        placed = {place: values[name] for place, name in self._places.items()}
        return functional_call(self._bare, placed, args, tie_weights=False)

    def _one_by_one(self, x: Tensor, delta: Tensor, *each: Tensor) -> dict[str, Tensor]:
        """Where vmap has no rule for an operation."""
        rows = []
        for one, taught, *others in zip(x, delta, *each, strict=True):
            args = _arguments(one.unsqueeze(0), [other.unsqueeze(0) for other in others], self._rest)
            free = {name: value.clone().requires_grad_() for name, value in self._values.items()}
            kind = type(self._bare.own).__name__
            try:
                with torch.enable_grad(), _Certain(kind):
                    output = self._call(free, args)
                found = torch.autograd.grad(
                    output, list(free.values()), taught.unsqueeze(0).to(output.dtype), allow_unused=True
                )
            except RuntimeError:
                raise UsageError(
                    f"{kind}, which has parameters of its own, is called again with one record alone and fails or "
                    "returns another shape; let its forward take a batch of any size"
                ) from None
            rows.append(
                [torch.zeros_like(p) if g is None else g for p, g in zip(free.values(), found, strict=True)]
            )
        columns = zip(*rows, strict=True)
        return {name: torch.stack(column) for name, column in zip(self._values, columns, strict=True)}


def uses_in_call(module: nn.Module, x: Tensor, rest: Sequence[Tensor | Common]) -> Counter[int]:
    """How often one call's graph uses each parameter at or below `module`, by the parameter's identity."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        args = _arguments(x.detach(), [one.detach() for one in rest if isinstance(one, Tensor)], rest)
        output = module.forward(*args)
    edges = [edge for node in nodes(output) for edge, _ in node.next_functions]
    return Counter(id(edge.variable) for edge in edges if edge is not None and hasattr(edge, "variable"))


def _arguments(x: Tensor, each: Sequence[Tensor], rest: Sequence[Tensor | Common]) -> tuple[Any, ...]:
    rows = iter(each)
    return (x, *(next(rows) if isinstance(one, Tensor) else one.value for one in rest))


def _as_precise(one: Tensor | Common) -> Tensor | Common:
    """What is common to all records, of the precision that records have (under autocast it has less)."""
    value: Any = one.value if isinstance(one, Common) else None
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return Common(value.float()) if half else one


def _filled(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
