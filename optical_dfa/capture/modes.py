"""The modes of a followed pass: its operations, and what of torch's Python functions is no operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from noise_models.errors import UsageError
from optical_dfa.capture.program import Program
from optical_dfa.capture.rows import Rows


class Watcher(Protocol):
    """What is told of a pass (`following.Following`)."""

    program: Program | None

    def dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation."""

    def rows(self, x: Tensor) -> Rows | None:
        """Where `x` holds records."""

    def refusal(self, what: str) -> UsageError:
        """The error of what may not be done."""


class Modes:
    """The two modes of a pass: operations, and what of torch's Python functions is no operation."""

    def __init__(self, following: Watcher) -> None:
        self._operations, self._functions = _Operations(following), _Functions(following)

    def __enter__(self) -> None:
        self._operations.__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]
        self._operations.__exit__(*error)  # type: ignore[no-untyped-call]

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs more than a rule

    def __init__(self, following: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.following = following

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.following.dispatch(func, args, kwargs or {})


# Ways out of torch, or into autograd, that no operation shows.
_LEAVES: dict[Any, str] = {
    Tensor.numpy: "numpy()", Tensor.tolist: "tolist()", Tensor.data_ptr: "data_ptr()", Tensor.__array__: "numpy",
    Tensor.untyped_storage: "untyped_storage()", Tensor.storage: "storage()", Tensor.__dlpack__: "dlpack",
    Tensor.__reduce_ex__: "pickle", Tensor.__deepcopy__: "deepcopy",
    vars(torch._C.TensorBase)["grad_fn"].__get__: "grad_fn",
    Tensor.apply_: "apply_()", Tensor.map_: "map_()", Tensor.map2_: "map2_()",
    Tensor.__repr__: "printing", Tensor.__format__: "printing",
}  # fmt: skip


# Ways to the memory of a tensor, whatever it holds: what is written there no operation shows.
_SHARING = frozenset({
    Tensor.numpy, Tensor.__array__, Tensor.untyped_storage, Tensor.storage, Tensor.__dlpack__, Tensor.data_ptr,
})  # fmt: skip
_SET_DATA = vars(torch._C.TensorBase)["data"].__set__
_HOOKING = frozenset({Tensor.register_hook, Tensor.register_post_accumulate_grad_hook})


def _writes(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__set__"


class _Functions(TorchFunctionMode):
    def __init__(self, following: Watcher) -> None:
        super().__init__()
        self.following = following

    def _entered(self, value: Any) -> Any:
        """A function that torch is to call: this mode, which torch leaves for its own, watches it too."""
        if not isinstance(value, FunctionType):
            return value

        @wraps(value)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _Functions(self.following):
                return value(*args, **kwargs)

        return watched

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        following = self.following
        kwargs = kwargs or {}
        for x in (*args, *kwargs.values()) if kwargs else args:
            if type(x) is FunctionType:
                args = tuple(self._entered(x) for x in args)
                kwargs = {name: self._entered(x) for name, x in kwargs.items()}
                break
        if func in _HOOKING:
            raise following.refusal(
                "puts a hook of its own into the backward pass, which may mix records or keep what it sees; take it out"
            )
        if func is torch.nn.functional.one_hot:
            return _one_hot(following, *args, **kwargs)
        if func is torch.cdist:
            return _cdist(*args, **kwargs)
        if func is torch.normal and isinstance(args[0] if args else kwargs.get("mean"), int | float):
            return _normal(*args, **kwargs)
        if func == _SET_DATA:
            raise following.refusal("gives a tensor another one's memory in the pass (.data)")
        if following.program is not None:
            if _writes(func):
                if any(isinstance(x, Tensor) and following.rows(x) is not None for x in args[1:]):
                    raise following.refusal("puts records into another tensor by assignment (.data, .grad)")
            elif func in _SHARING:
                raise following.refusal(
                    f"takes a tensor's memory out of the operations that can be followed ({_LEAVES[func]})"
                )
            elif func is Tensor.detach_:
                raise following.refusal("cuts a history in place (detach_()); use detach()")
            elif func in _LEAVES and isinstance(args[0], Tensor) and following.rows(args[0]) is not None:
                raise following.refusal(
                    f"takes records out of the operations that can be followed ({_LEAVES[func]})"
                )
        return func(*args, **kwargs)


def _one_hot(following: Watcher, tensor: Tensor, num_classes: int = -1) -> Tensor:
    """one_hot looks at the values first, to see whether they are classes; here the comparison is all there is."""
    if num_classes < 1:
        raise following.refusal("counts classes in the records (one_hot); give num_classes")
    classes = torch.arange(num_classes, device=tensor.device)
    return tensor.unsqueeze(-1).eq(classes).to(torch.int64)


_IF_NECESSARY = "use_mm_for_euclid_dist_if_necessary"


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = _IF_NECESSARY) -> Tensor:
    """Above 25 rows, which may be records, cdist takes a faster and less exact way; here the exact one always."""
    exact = "donot_use_mm_for_euclid_dist" if compute_mode == _IF_NECESSARY else compute_mode
    return torch.cdist(x1, x2, p, exact)


def _normal(mean: float, std: float | Tensor, size: Any = None, **options: Any) -> Tensor:
    """torch.normal with a number as mean, made of operations whose rows are known."""
    if isinstance(std, Tensor):
        return torch.normal(torch.full_like(std, mean), std, **options)
    return torch.randn(size, **options) * std + mean
