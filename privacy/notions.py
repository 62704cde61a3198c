"""The notions that a guarantee speaks in: which data sets are neighbours, and what kind of statement it is."""

from __future__ import annotations

from enum import StrEnum


class Adjacency(StrEnum):
    """The neighbouring relation of a guarantee: separate notions with their own dominating pairs."""

    ADD_REMOVE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"
    LABEL = "label"

    @property
    def words(self) -> str:
        """The relation as a phrase that completes "data sets that differ by ..."."""
        return _WORDS[self]


_WORDS = {
    Adjacency.ADD_REMOVE: "the presence or absence of one record",
    Adjacency.REPLACE_ONE: "the content of one record",
    Adjacency.LABEL: "the label of one record",
}


class Kind(StrEnum):
    """`record-dp` and `label-dp` are worst-case statements; `conditional` is not; `none` promises nothing."""

    RECORD_DP = "record-dp"
    LABEL_DP = "label-dp"
    CONDITIONAL = "conditional"
    NONE = "none"
