"""How the steps of a private run are drawn, from public numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from noise_models.errors import UsageError
from privacy.records import map_style, tell_unused
from privacy.releases.clipped import SIZE_SLACK


def refuse_types(real: Mapping[str, object], whole: Mapping[str, object]) -> None:
    """One line for a value of another type, such as a number in quotes."""
    for name, value in {**real, **whole}.items():
        fits = isinstance(value, int) or (name in real and isinstance(value, float))
        if not fits or isinstance(value, bool):
            kind = "a whole number" if name in whole else "a number"
            shown = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            raise UsageError(f"{name} is {shown}; it must be {kind}")


class SamplingPlan:
    """How steps are drawn: sample rate, expected batch size and steps an epoch, all from the public N."""

    def __init__(
        self,
        loader: DataLoader[Any],
        poisson_sampling: bool,
        public_size: int | None,
        max_physical_batch_size: int | None,
    ) -> None:
        if poisson_sampling is not True:
            raise UsageError(
                f"poisson_sampling is {poisson_sampling!r:.20}; shuffled batches have no subsampling guarantee, leave "
                "it True"
            )
        whole = {"public_size": public_size, "max_physical_batch_size": max_physical_batch_size}
        refuse_types({}, {name: value for name, value in whole.items() if value is not None})
        data = map_style(loader)
        self.loader = loader
        self.size = len(data) if public_size is None else public_size
        batch = loader.batch_size or 0
        if not 1 <= batch <= self.size:
            raise UsageError(
                f"the expected batch size is {batch} and the public size {self.size}; need 1 <= batch <= N"
            )
        self.sample_rate = batch / self.size
        if len(data) > max(SIZE_SLACK * self.size, self.size + 1):
            raise UsageError(
                f"the public size is {self.size}, far below the number of records; declare one that is not below it"
            )
        self.expected_batch_size = batch
        self.steps = max(1, round(self.size / batch))
        self.max_physical_batch_size = max_physical_batch_size
        tell_unused(loader)
