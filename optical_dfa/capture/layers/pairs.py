"""The form in which a layer says what one call of it contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optical_dfa.capture.contributions import Contribution

# A parameter, None where the layer has none, and what each record contributes to it.
Pairs = Sequence[tuple[Tensor | None, Contribution]]


@dataclass(frozen=True)
class Common:
    """An argument of a layer's call that is the same for all records; any other has a row a record."""

    value: Any
