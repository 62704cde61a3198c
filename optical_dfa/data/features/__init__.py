"""Features: what is computed of a data set's inputs before a network sees them.

Importing this package loads no torch. A new kind is one new file and one line here, or an entry point of another
package: a function `(data, argument, progress)` that returns a `Dataset`; the argument stands after the colon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noise_models.cards import Registry
from noise_models.errors import UsageError
from optical_dfa.data.features.card import FeaturesCard

if TYPE_CHECKING:
    from optical_dfa.data.dataset import Dataset

FEATURES: Registry[FeaturesCard] = Registry(
    "features",
    FeaturesCard,
    {
        "pca": "optical_dfa.data.features.principal_components:principal_components",
        "scattering": "optical_dfa.data.features.scattering:scattering",
    },
    group="optical_dfa.features",
)


def grammar() -> str:
    """What may be asked for, in words."""
    return ", or ".join(card.grammar for card in FEATURES.values())


def card_of(spec: str) -> FeaturesCard:
    """The card of the kind that `name[:argument]` names; UsageError if there is none, or it wants another argument."""
    name, _, argument = spec.partition(":")
    if name not in FEATURES or (":" in spec and not argument):
        raise UsageError(f"features is {spec!r}; it must be {grammar()}")
    FEATURES[name].check(spec, argument or None)
    return FEATURES[name]


def with_features(data: Dataset, spec: str, progress: bool = False) -> Dataset:
    """The data set with its inputs replaced by features of them.

    Args:
        data: as loaded; inputs of any shape that the kind takes.
        spec: `name[:argument]`, such as `pca:64` or `scattering`.
        progress: show a bar where it takes long, if standard error is a terminal.
    Raises:
        UsageError: no such features, or the data set's records have none.
    """
    card_of(spec)
    if data.text:
        raise UsageError(f"features is {spec!r}, but {data.name} is text; drop features")
    name, _, argument = spec.partition(":")
    computed: Any = FEATURES.load(name)
    found: Dataset = computed(data, argument or None, progress)
    return found
