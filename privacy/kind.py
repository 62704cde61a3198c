"""What sort of statement a guarantee is."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """`record-dp` and `label-dp` are worst-case statements; `conditional` is not; `none` promises nothing."""

    RECORD_DP = "record-dp"
    LABEL_DP = "label-dp"
    CONDITIONAL = "conditional"
    NONE = "none"
