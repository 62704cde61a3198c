"""What can be set of a training run: `optical-dfa train` has a flag, and `TrainConfig` a field, for every line here.

Importing this imports neither torch nor pydantic, so that `--help` is quick. The annotations are
read as values, once: this file does not put them off by `from __future__ import annotations`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args

from annotated_types import Interval, MinLen

from optical_dfa.backends import BACKENDS
from optical_dfa.data import choices
from optical_dfa.feedback import RULES
from privacy.releases import RELEASES

T = TypeVar("T")


@dataclass(frozen=True)
class Values:
    """What the values of a setting are.

    Attributes:
        allowed: which ones may be given, in words.
        metavar: what a help text calls one; None: by its type.
        given: its type on the command line, where that is another one.
    """

    allowed: str
    metavar: str | None = None
    given: Any = None


class _NoneOr(Collection[str]):
    """ "none", and the names of a registry as they are when asked: a package may come later than this file."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name == "none" or name in self._names

    def __iter__(self) -> Iterator[str]:
        return chain(("none",), self._names)

    def __len__(self) -> int:
        return 1 + len(self._names)


@dataclass(frozen=True)
class Says:
    """What a help text says of a setting, and the names it is one of, where they are known."""

    help: str
    names: Collection[str] = ()


Positive = Annotated[float, Interval(gt=0), Values("a finite number above 0")]
Probability = Annotated[float, Interval(gt=0, lt=1), Values("a number strictly between 0 and 1")]
Fraction = Annotated[float, Interval(ge=0, lt=1), Values("a number from 0 up to, not including, 1")]
# Steps above this overflow single precision at once, and a weight decay above it never was meant.
_LARGEST_RATE = 1e6
Rate = Annotated[float, Interval(gt=0, le=_LARGEST_RATE), Values("a number above 0 and at most 10^6")]
Decay = Annotated[float, Interval(ge=0, le=_LARGEST_RATE), Values("a number from 0 to 10^6")]
Count = Annotated[int, Interval(ge=1, le=10**9), Values("a whole number from 1 to 10^9")]
Seed = Annotated[int, Interval(ge=0, lt=2**63), Values("a whole number from 0 to 2^63 - 1")]
Flag = Annotated[bool, Values("true or false")]
Text = Annotated[str, Values("text in quotes")]
Folder = Annotated[Path, Values("the path of a folder", "DIR")]
File = Annotated[Path, Values("the path of a file", "FILE")]
Options = Annotated[dict[str, Any], Values("a table of name = value", "NAME=VALUE", given=list[str])]
Points = Annotated[
    Literal["macro", "micro"] | Annotated[list[str], MinLen(1)],
    Values("macro, micro, or a list of modules' names", "NAME,...", given=str),
]


@dataclass_transform(kw_only_default=True)
def _fields(cls: type[T]) -> type[T]:
    """For the type checker alone: what a pydantic model (`TrainConfig`) makes of them, without importing pydantic."""
    return cls


@_fields
class Settings:
    """The settings, in the order in which they are shown. None: what `optical_dfa.data.defaults` ships for this data
    set and release, or nothing.
    """

    dataset: Annotated[Text, Says(f"{choices()}.")] = "digits"
    data_dir: Annotated[Folder | None, Says("Folder with the data set's files.")] = None
    features: Annotated[
        Text | None,
        Says("Computed of the inputs first: pca:K (inputs must be public) or scattering[:GROUPS]."),
    ] = None
    model: Annotated[Text, Says("Network, such as mlp:512,512 or cnn:16,32+128; for text gru:128.")] = "mlp"
    transfer: Annotated[Folder | None, Says("Freeze the convolutions of this run; not private.")] = None
    rule: Annotated[Text, Says(f"Training rule: {', '.join(RULES)}.", RULES)] = "dfa"
    rule_options: Annotated[Options, Says("Repeatable.")] = {}  # noqa: RUF012  (pydantic copies it)
    # A Transformer's blocks at their outputs (macro, its default) or inside; a table's network at its activations
    # (macro) or at its embeddings too (micro, its default).
    points: Annotated[
        Points | None,
        Says(
            "Modules to teach directly, or macro or micro (transformer, embed); default: mostly activations."
        ),
    ] = None
    backend: Annotated[
        Text, Says(f"Projection device: {', '.join(BACKENDS)}; see `optical-dfa backends`.", BACKENDS)
    ] = "simulated-opu"
    backend_options: Annotated[Options, Says("Repeatable.")] = {}  # noqa: RUF012  (pydantic copies it)
    release: Annotated[Text, Says(f"Privacy release: none, {', '.join(RELEASES)}.", _NoneOr(RELEASES))] = (
        "dark-frame"
    )
    release_options: Annotated[Options | None, Says("Repeatable.")] = None
    calibration: Annotated[File | None, Says("The device's, from `calibrate --out`; for dark-frame.")] = None
    epsilon: Annotated[Positive | None, Says("Privacy budget; sets the noise.")] = None
    delta: Annotated[Probability | None, Says("Failure probability of the guarantee.")] = None
    noise_multiplier: Annotated[Positive | None, Says("Noise over clipping norm; instead of --epsilon.")] = (
        None
    )
    # Of the Frobenius norm over all layers (THEORY T3).
    max_grad_norm: Annotated[Positive | None, Says("Clipping norm of one record's update.")] = None
    batch_size: Annotated[Count | None, Says("Expected number of records a step.")] = None
    # A limit of memory, without effect on the result.
    max_physical_batch_size: Annotated[Count | None, Says("Records in memory at once.")] = None
    # None is records, which are shared out in private runs alone.
    parallel: Annotated[
        Text | None,
        Says(
            "What torchrun's workers share out: records (the default), or layers, without privacy.",
            ("records", "layers"),
        ),
    ] = None
    micro_batches: Annotated[
        Count | None, Says("Parts of a batch that are on their way at once; default: as many as workers.")
    ] = None
    # None: the actual number (docs/threat-model.md).
    public_size: Annotated[Count | None, Says("Number of records that is declared public.")] = None
    # In expectation: the run has epochs * N / batch_size steps.
    epochs: Annotated[Count | None, Says("Passes over the data.")] = None
    lr: Annotated[Rate | None, Says("Learning rate.")] = None
    lr_schedule: Annotated[
        Text | None, Says("constant, or cosine: falls to 0 over the run.", ("constant", "cosine"))
    ] = None
    momentum: Annotated[Fraction | None, Says("Momentum of SGD.")] = None
    weight_decay: Annotated[Decay, Says("Weight decay.")] = 0.0
    optimizer: Annotated[Text, Says("sgd or adam.", ("sgd", "adam"))] = "sgd"
    seed: Annotated[Seed, Says("Seed of weights and feedback; never of privacy noise.")] = 0
    device: Annotated[Text, Says("cpu, cuda, cuda:N or mps.")] = "cpu"
    reproducible: Annotated[Flag, Says("Seeded noise: repeatable, and NO guarantee.")] = False
    unsafe_diagnostics: Annotated[Flag, Says("Keep training loss and batch size too: NO guarantee.")] = False
    diagnose: Annotated[Flag, Says("Compare the rule with backpropagation; needs no privacy.")] = False


class Declared(NamedTuple):
    """One of them.

    Attributes:
        flag: on the command line; an option table is given entry by entry.
        given: its type there.
        metavar, allowed: of its `Values`.
        help, names: of its `Says`.
    """

    flag: str
    given: Any
    metavar: str | None
    allowed: str
    help: str
    names: Collection[str]


def _setting(name: str, hint: Any) -> Declared:
    """Of `X | None`, the kind is X's."""
    says: Says = hint.__metadata__[-1]
    value = next(one for one in (*get_args(hint.__origin__), hint) if hasattr(one, "__metadata__"))
    kind: Values = next(note for note in value.__metadata__ if isinstance(note, Values))
    flag = f"--{name.removesuffix('s') if name.endswith('_options') else name}".replace("_", "-")
    return Declared(flag, kind.given or value.__origin__, kind.metavar, kind.allowed, says.help, says.names)


SETTINGS = {name: _setting(name, hint) for name, hint in Settings.__annotations__.items()}
PATHS = [name for name, setting in SETTINGS.items() if setting.given is Path]
