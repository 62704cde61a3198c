"""Passes that are not cut: how the output moves when the feedback points' outputs do, forwards and backwards."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from noise_models.errors import UsageError
from noise_models.places import RandomState
from optical_dfa.feedback.points import ForwardPass, Tape, install


def directional_derivative(
    passed: ForwardPass, directions: Sequence[Tensor | None], random: RandomState | None = None
) -> Tensor:
    """d = sum_k J_k u_k, with J_k the derivative of the output by the k-th call of a point; the module is not cut.

    Buffers stay as they are, and the stream of random numbers where it was.

    Args:
        passed: the pass that is repeated.
        directions: u_k, shaped like the point's output, in call order; None does not move that call.
        random: where random numbers stood before the pass whose masks (dropout) this one repeats; None draws others.
    Returns:
        shaped like the output.
    """
    module, tape = passed.module, passed.tape
    moved = [u for u in directions if u is not None]

    def displaced(*additions: Tensor) -> Tensor:
        given = iter(additions)
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        tape.added = [None if u is None else next(given) for u in directions]
        output: Tensor = functional_call(module, buffers, tuple(passed.args), dict(passed.kwargs))
        return output

    with torch.no_grad(), (random or RandomState()).again():
        try:
            derivative = jvp(displaced, tuple(torch.zeros_like(u) for u in moved), tuple(moved))[1]
        finally:
            tape.added = None
    found: Tensor = derivative
    return found


def exact_signals(passed: ForwardPass, error: Tensor, random: RandomState | None = None) -> list[Tensor]:
    """dL/dh_k at the k-th call of a point, by reverse mode through a second pass that is not cut.

    Args:
        passed: the pass that is repeated; buffers stay as they are.
        error: dL/dz, of as many numbers as the output.
        random: as above.
    Returns:
        one tensor a call, shaped like the point's output, in call order.
    """
    module, tape = passed.module, passed.tape
    additions = [torch.zeros_like(h).requires_grad_() for _, h in passed.kept]
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
    with torch.enable_grad(), (random or RandomState()).again():
        try:
            tape.added = [*additions]
            output = functional_call(module, buffers, tuple(passed.args), dict(passed.kwargs))
        finally:
            tape.added = None
        return list(torch.autograd.grad(output, additions, error.reshape(output.shape).to(output.dtype)))


def parameter_derivative(
    passed: ForwardPass, directions: Mapping[str, Tensor], random: RandomState | None = None
) -> Tensor:
    """d = J v, with J the derivative of the output by the named parameters; shaped like the output.

    Args:
        passed: the pass that is repeated; buffers stay as they are.
        directions: v by the parameter's name.
        random: as above.
    """
    module = passed.module
    parameters = dict(module.named_parameters())

    def displaced(moved: dict[str, Tensor]) -> Tensor:
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        output: Tensor = functional_call(
            module, {**buffers, **moved}, tuple(passed.args), dict(passed.kwargs)
        )
        return output

    with torch.no_grad(), (random or RandomState()).again():
        primals = {name: parameters[name].detach() for name in directions}
        derivative: Tensor = jvp(displaced, (primals,), (dict(directions),))[1]
    return derivative


def check_forward_mode(
    module: nn.Module, names: Sequence[str], example: Sequence[Tensor], rule: str, once: bool = False
) -> None:
    """A forward-mode pass must be possible.

    Args:
        module: the plain module; a copy is run.
        names: its feedback points; none where parameters are moved instead.
        example: random inputs.
        rule: its name.
        once: whether every point must be called once.
    Raises:
        UsageError: a layer has no forward-mode derivative, or a point is called several times.
    """
    twin, tape = copy.deepcopy(module), Tape()
    install(twin, names, tape)
    with torch.random.fork_rng(devices=[]):
        tape.kept = []
        with torch.enable_grad():
            output = twin(*[x.clone() for x in example])
        kept, tape.kept = tape.kept, None
        passed = ForwardPass(twin, tape, example, {}, kept or (), output)
        calls = [index for index, _ in passed.kept]
        for index in calls:
            if once and calls.count(index) > 1:
                raise UsageError(
                    f"feedback point {names[index]} is called {calls.count(index)} times in a forward pass; rule "
                    f"{rule} takes points that are called once"
                )
        try:
            if passed.kept:
                directional_derivative(passed, [torch.zeros_like(h) for _, h in passed.kept])
            else:
                moved = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
                parameter_derivative(passed, moved)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"rule {rule} needs a forward-mode pass, which a layer here cannot make ({reason[:120]}); write that "
                "layer out (LSTM: cells, attention: products), or use rule dfa"
            ) from None
