"""Which two data sets count as neighbours. A guarantee under one notion says nothing under another."""

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
