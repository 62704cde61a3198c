"""How each operation of a forward pass treats the records' axis: one rule an operation, anything else is refused.

A rule is told where the records are in each of the operation's tensors and says where they are in what it returns. It
looks at shapes and arguments alone, never at values, so that what it accepts is separate on ALL data. The operations
are PyTorch's own (ATen), as a dispatch mode sees them below autograd; composite ones arrive taken apart.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload

from optical_dfa.capture.operations import elements, functional, indexing, products, shapes
from optical_dfa.capture.operations.call import base_name
from optical_dfa.capture.operations.rules import RowRule

_RULES = {**elements.RULES, **shapes.RULES, **indexing.RULES, **products.RULES, **functional.RULES}


def rule_of(func: OpOverload) -> RowRule | None:
    """The rule of an operation; None where there is none."""
    found = _RULES.get(base_name(func))
    tagged = func.namespace == "aten" and torch.Tag.pointwise in func.tags  # others may say so and not be
    return elements.pointwise if found is None and tagged else found
