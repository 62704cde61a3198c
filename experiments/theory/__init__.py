"""Theorems T1 to T9 (docs/theory.md) in numbers: one file a theorem, its conditions kept, and dropped one by one."""
