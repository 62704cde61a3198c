"""Opacus' BatchMemoryManager for scripts that use one: `make_private` itself cuts large steps into parts."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from noise_models.errors import UsageError
from privacy.optimizer import PrivateOptimizer
from privacy.sampling import PrivateLoader


class BatchMemoryManager:
    """`with BatchMemoryManager(data_loader=, max_physical_batch_size=, optimizer=) as loader:` as in Opacus.

    The size has to be known to `make_private` too, because how many parts a step has enters its sensitivity; here it
    is compared. `optimizer.step()` is called on every part, and releases on the last.
    """

    def __init__(
        self, *, data_loader: PrivateLoader, max_physical_batch_size: int, optimizer: PrivateOptimizer
    ) -> None:
        """
        Args:
            data_loader, optimizer: those that make_private returned.
            max_physical_batch_size: no more records than that are to be handed out at a time.
        Raises:
            UsageError: make_private was not told of this size, or of a larger one; or other objects.
        """
        if not isinstance(data_loader, PrivateLoader) or not isinstance(optimizer, PrivateOptimizer):
            raise UsageError(
                f"BatchMemoryManager was given a {type(data_loader).__name__} and a {type(optimizer).__name__}; give "
                "the loader and the optimizer that make_private returned"
            )
        size = data_loader.max_physical_batch_size
        if size is None or size > max_physical_batch_size:
            was = (
                "without max_physical_batch_size" if size is None else f"with max_physical_batch_size={size}"
            )
            raise UsageError(
                f"the module was made private {was}, and {max_physical_batch_size} is asked for now; give make_private "
                f"max_physical_batch_size={max_physical_batch_size}"
            )
        self._loader = data_loader

    def __enter__(self) -> PrivateLoader:
        return self._loader

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return None
