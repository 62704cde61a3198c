"""Cards: what is known of a registered thing (a rule, a device, a release, a data set) before it is imported.

A card stands where the thing is defined, as a decorator with literal arguments:

    @RuleCard(summary="Direct Feedback Alignment", projects=True)
    class DirectFeedbackAlignment(ProjectingRule): ...

It is read from the source text, as build tools read a version, so that a list of names and sentences loads no torch.
Other packages register by entry points, in the same way.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum, EnumType
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import decode_source
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar

from noise_models.errors import DeviceError, UsageError

T = TypeVar("T")


# Of fields, as they are written; others are what their class says of them.
_TYPES: dict[str, Any] = {
    "str": str, "bool": bool, "bool | str": (bool, str), "str | None": (str, NoneType), "Kind": Enum, "Adjacency": Enum,
    "Refusal | None": (Enum, NoneType),
    "Mapping[str, Any]": dict,
}  # fmt: skip
_NAME = re.compile(r"[\w.-]+")  # of what is registered


@dataclass(frozen=True, kw_only=True)
class Card:
    """Base of the cards of a kind; its fields are literals, or members of enumerations.

    Attributes:
        summary: what it is, in a few words.
    """

    summary: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), _TYPES.get(str(field.type))
            if wanted is not None and not isinstance(value, wanted):
                raise TypeError(f"{field.name} is {value!r}; it must be of type {field.type}")

    def __call__(self, thing: T) -> T:
        """Decorate: the thing carries its card, too."""
        thing.card = self  # type: ignore[attr-defined]
        return thing


C = TypeVar("C", bound=Card)


class Registry(Mapping[str, C], Generic[C]):
    """The things of a kind by name, with their cards: the built-in ones, then those of installed packages.

    A new one is one new file and one line here, or one entry point of another package.
    """

    def __init__(self, kind: str, card: type[C], built_in: Mapping[str, str], group: str) -> None:
        """
        Args:
            kind: what it is called in messages, such as "rule".
            card: the class of its cards.
            built_in: "module:name" of each.
            group: of the entry points that other packages register in.
        """
        self.kind, self.card, self.built_in, self.group = kind, card, dict(built_in), group
        self._cards: dict[str, C] = {}

    def targets(self) -> dict[str, str]:
        """Every name -> "module:name"; a built-in name cannot be taken over."""
        found = dict(self.built_in)
        for point in entry_points(group=self.group):
            if _NAME.fullmatch(point.name):
                found.setdefault(point.name, point.value)
        return found

    def target(self, name: object) -> str:
        """
        Raises:
            UsageError: nothing is registered under `name`.
        """
        if isinstance(name, str) and name in self.built_in:
            return self.built_in[name]
        known = self.targets()
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"{self.kind} is {name!r}; it must be one of: {', '.join(known)}")
        return known[name]

    def __getitem__(self, name: str) -> C:
        """The card of `name`.

        Raises:
            KeyError: nothing is registered under it.
            UsageError: its card is absent, or lacks a field.
        """
        if name not in self:
            raise KeyError(name)
        if name not in self._cards:
            self._cards[name] = _read(f"{self.kind} {name}", self.target(name), self.card)
        return self._cards[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.built_in or name in self.targets())

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets())

    def __len__(self) -> int:
        return len(self.targets())

    def load(self, name: str) -> Any:
        """The thing itself, imported.

        Raises:
            UsageError: nothing is registered under `name`, or its card is absent or lacks a field.
            DeviceError: what is registered under it cannot be imported.
        """
        target = self.target(name)
        self[name]  # a card that lacks a field is refused before anything runs
        module, _, attribute = target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:  # whatever another package does when it is imported
            raise DeviceError(f"{self.kind} {name} cannot be loaded from {target}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def _value(node: ast.expr, kind: type[Card]) -> Any:
    """A literal, or a member of an enumeration that the cards' own module names."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        members = getattr(sys.modules[kind.__module__], node.value.id, None)
        if isinstance(members, EnumType) and node.attr in members.__members__:
            return members.__members__[node.attr]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is no literal") from None


def _source(module: str) -> str:
    """The text of a module, without running any of its packages."""
    path: Any = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        tried = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((one for one in tried if one is not None), None)
        if spec is None:
            raise ImportError(f"there is no module {name}")
        path = spec.submodule_search_locations
    source: str | None = None
    loader: Any = spec and spec.loader
    if hasattr(loader, "get_source"):
        source = loader.get_source(module)
    elif spec is not None and spec.origin is not None:
        source = decode_source(Path(spec.origin).read_bytes())
    if source is None:
        raise ImportError(f"module {module} has no source text")
    return source


def _read(what: str, target: str, kind: type[C]) -> C:
    """The card of what is defined at "module:name", from the source text.

    Raises:
        UsageError: there is no such card, or a field is missing, unknown or no literal.
        DeviceError: there is no such module.
    """
    module, _, name = target.partition(":")
    try:
        nodes = ast.parse(_source(module)).body
    except Exception as error:  # whatever is wrong with another package's files
        raise DeviceError(f"{what} cannot be read from {target}: {_line(error)}") from None
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            for made in node.decorator_list:
                if isinstance(made, ast.Call) and ast.unparse(made.func).rpartition(".")[2] == kind.__name__:
                    try:
                        return kind(**{str(k.arg): _value(k.value, kind) for k in made.keywords})
                    except (TypeError, ValueError) as error:
                        wrong = str(error).rpartition("__init__() ")[2]
                        raise UsageError(f"the {kind.__name__} of {what} ({target}): {wrong}") from None
    raise UsageError(
        f"{what} ({target}) has no card; put @{kind.__name__}(summary=..., ...) with literal values above {name}"
    )
