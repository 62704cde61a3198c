"""The wrapped optimizer: `p.grad` is filled with the released step here, and nowhere else."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from noise_models.errors import UsageError
from privacy.contributions.protocols import Contributions
from privacy.fixed import Fixed

# What a schedule would write, and what a schedule of ours could be.
_SCHEDULED = {
    "noise_multiplier": "a schedule of the noise needs an accountant that was told of it in advance",
    "max_grad_norm": "the noise is calibrated to it",
    "expected_batch_size": "steps are averaged over it",
}


class PrivateOptimizer(Fixed, Optimizer):
    """Any torch optimizer, stepping on released gradients only.

    Parameter groups and state are the original's own, so learning-rate schedulers work on either. Momentum, Adam
    and weight decay are post-processing of what was released. Other attributes are read-only.

    Attributes:
        original: the optimizer that moves the weights.
        noise_multiplier, max_grad_norm, expected_batch_size: as `make_private` settled them.
    """

    # `_opt_called` is what a learning-rate scheduler looks at.
    _changing = frozenset({"_views", "_opt_called"})

    def __init__(
        self,
        original: Optimizer,
        contributions: Contributions,
        module: nn.Module,
        step: Callable[[], Tensor | None],
        *,
        noise_multiplier: float,
        max_grad_norm: float | None,
        expected_batch_size: float,
    ) -> None:
        """
        Args:
            original: its `step` raises from now on.
            contributions: of the batches; its parameters are released, in the order of the flat stack.
            module: the private module; the optimizer may hold no other parameters.
            step: takes in the current batch; returns the flat released average, or None before the last part of
                a logical batch.
            noise_multiplier, max_grad_norm, expected_batch_size: of the release, to be read.
        Raises:
            UsageError: an optimizer that needs a closure, parameters outside the module, or released ones missing
                from the optimizer.
        """
        if not isinstance(original, Optimizer):
            raise UsageError(
                f"optimizer is {type(original).__name__}; give a torch optimizer over the module's parameters"
            )
        if isinstance(original, LBFGS):
            raise UsageError("LBFGS evaluates the loss several times a step, each a release; use SGD or Adam")
        self.original = original
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm
        self.expected_batch_size = expected_batch_size
        self._contributions = contributions
        self._parameters = parameters = dict(contributions.parameters)
        self._module = module
        held = self._held()
        missing = [name for name, p in parameters.items() if id(p) not in held]
        if missing:
            raise UsageError(f"the optimizer lacks {missing[0]}, which is trained; add it, or freeze it")
        self._take = step
        self._step_original, self._add_original = original.step, original.add_param_group
        self._views: list[Tensor] = []
        self._types = {name: p.dtype for name, p in parameters.items()}
        for p in module.parameters():
            p.grad = None  # a gradient from before is no release
        original.step = _refusing(original)  # type: ignore[method-assign]
        original.add_param_group = self.add_param_group  # type: ignore[method-assign]
        self._fix()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SCHEDULED and self._fixed:
            raise UsageError(
                f"{name} of the private optimizer is {getattr(self, name)} to the end of the run: "
                f"{_SCHEDULED[name]}; leave its scheduler out"
            )
        super().__setattr__(name, value)

    def hand_back(self) -> None:
        """Let the original step again: the private run could not begin."""
        self.original.step = self._step_original  # type: ignore[method-assign]
        self.original.add_param_group = self._add_original  # type: ignore[method-assign]

    # Deliberately no Optimizer.__init__: groups, state and defaults are the original's.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.original.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.original.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.original.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the original's: backward passes over the batch now handed out are forgotten.

        Earlier parts of a logical batch, on which `step` was called, stay.
        """
        self._contributions.forget_passes()
        self.original.zero_grad(set_to_none)
        if set_to_none:
            self._views = []  # their memory is free, as that of plain gradients

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Release the step and let the original optimizer move the weights.

        Raises:
            UsageError: a closure, no batch to step on, or gradients formed outside the release.
        """
        if closure is not None:
            raise UsageError(
                "a private step takes no closure: evaluating the loss again would be another release"
            )
        self._held()
        self._refuse_foreign_gradients()
        flat = self._take()
        if flat is None:
            return
        start = 0
        for p in self._parameters.values():
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        self._views = [p.grad for p in self._parameters.values() if p.grad is not None]
        self._step_original()
        self.original._opt_called = True  # type: ignore[attr-defined]  # what a scheduler built on it looks at

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # it tells a scheduler of its call itself

    def _held(self) -> set[int]:
        """The parameters the optimizer moves, which must all be frozen by a private pass: the module's own."""
        own = {id(p) for p in self._module.parameters()}
        held = {id(p) for group in self.original.param_groups for p in group["params"]}
        if held - own:
            raise UsageError(
                "the optimizer holds parameters that are not the private module's; give them another one"
            )
        return held

    def _refuse_foreign_gradients(self) -> None:
        released = {id(view) for view in self._views}
        for name, p in self._module.named_parameters():
            if p.grad is not None and id(p.grad) not in released:
                raise UsageError(
                    f"{name}.grad was filled outside the release (a penalty on the weights in the loss, or a plain "
                    "backward pass); use weight_decay, and let the private step fill the gradients"
                )
            p.grad = None  # a view of the sum that the step is about to reuse
        for name, p in self._parameters.items():
            if p.dtype != self._types[name]:
                raise UsageError(f"{name} became {p.dtype} after make_private; convert the module before")
            if not p.requires_grad:
                raise UsageError(f"{name} was frozen after make_private, but is released; freeze it before")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise UsageError("parameters cannot be added to a private optimizer; make the module private again")

    def state_dict(self) -> dict[str, Any]:
        """The original's."""
        return self.original.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The original's."""
        self.original.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        if name == "original":  # asked for by copies before there is one
            raise AttributeError(name)
        return getattr(self.original, name)

    @property
    def _step_supports_amp_scaling(self) -> NoReturn:
        """What a GradScaler looks at before it steps.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a GradScaler looks for gradients that a private step has not formed yet; leave it out (clipping scales "
            "every record anyway), and use bfloat16 where you use autocast"
        )

    def __repr__(self) -> str:
        return f"PrivateOptimizer({self.original!r})"


def _refusing(original: Optimizer) -> Callable[..., Any]:
    """A bound `step` that raises (bound, because schedulers look at the method's function)."""

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> None:
        raise UsageError(
            "this optimizer was made private; step the one that make_private returned (this one would train on "
            "gradients that were neither clipped nor noised)"
        )

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # a scheduler built on it must not warn
    return types.MethodType(step, original)
