"""Which modules `align` takes: those whose hooks run in every pass, and whose weights are there to be copied."""

from __future__ import annotations

from typing import Any

from torch import jit, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from noise_models.errors import UsageError

# Containers of other processes or devices, and of functions: what they call is a replica or a copy of the module.
_CONTAINERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "FSDPModule": "module",
    "PipelineStage": "submod",
    "FunctionalModule": "stateless_model",
    "FunctionalModuleWithBuffers": "stateless_model",
}
_QUANTISED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized", "torch.nn.quantized",
    "torchao.",
)  # fmt: skip


def refuse_foreign(module: object) -> None:
    """Refuse modules that a rule cannot cut by hooks, or that cannot be tried on copies.

    Compiled code may leave out hooks that were put on after it was made (`torch.compile` does not look for them by
    default): the gradient would silently be backpropagation's.

    Raises:
        UsageError: naming the part, and what to do.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"align() takes a torch.nn.Module, not {type(module).__name__}; of a compiled or wrapped function, give "
            "the module itself"
        )
    for name, part in module.named_modules():
        where = name or "the module"
        if isinstance(part, jit.ScriptModule):
            raise UsageError(
                f"{where} is a TorchScript module ({type(part).__name__}), which takes no hooks; align the Python "
                "module that was scripted or traced"
            )
        if _compiled(part):
            raise UsageError(
                f"{where} is compiled already, and compiled code may leave out the rule's hooks; align the plain "
                "module (before torch.compile), then compile the aligned one: torch.compile(align(module, ...))"
            )
        inside = next((attribute for kind, attribute in _CONTAINERS.items() if _is_a(part, kind)), None)
        if inside is not None:
            raise UsageError(
                f"{where} is wrapped in {type(part).__name__}, which runs replicas or shards that the rule's hooks are "
                f"not on; align the module inside (its .{inside})"
            )
        if type(part).__module__.startswith(_QUANTISED):
            raise UsageError(
                f"{where} is quantised ({type(part).__module__}.{type(part).__name__}), which no gradient passes; "
                "train the float module, then quantise it"
            )
        for key, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if isinstance(value, UninitializedParameter | UninitializedBuffer):
                raise UsageError(
                    f"{key} of {where} ({type(part).__name__}) has no shape yet; run the module on one batch under "
                    "torch.no_grad() first, then align it"
                )


def _compiled(part: nn.Module) -> bool:
    """Whether `torch.compile` has made code of a part: around it, in place, or of the function that is its forward."""
    if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
        return True
    forward: Any = vars(part).get("forward", type(part).forward)
    while forward is not None:
        if hasattr(forward, "_torchdynamo_orig_callable") or hasattr(forward, "get_compiler_config"):
            return True
        forward = getattr(forward, "__wrapped__", None) or getattr(forward, "func", None)
    return False


def _is_a(part: nn.Module, kind: str) -> bool:
    return any(base.__name__ == kind for base in type(part).__mro__)
