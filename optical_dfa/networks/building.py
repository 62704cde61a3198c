"""Reference networks in which every feedback point is an activation MODULE that nothing skips.

A functional activation after a feedback point would drop φ' from DFA's update, and a point inside a residual
branch would let back-propagation leak through the skip (both tested); here neither can occur. Those for text are in
`optical_dfa.networks.text`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.networks.gated import GatedNetwork, PublicGates
from optical_dfa.networks.markers import ACTIVATIONS as CUT_ACTIVATIONS
from optical_dfa.networks.recurrent import GRU, LSTM, RNN, Unrolled
from optical_dfa.networks.scattering import Scattering
from optical_dfa.networks.skip import SkipNetwork
from optical_dfa.networks.tables import ColumnEmbeddings, embed
from optical_dfa.networks.text import RecurrentNetwork, Transformer, transformer

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
MAX_WIDTH = 65536
MAX_PARAMETERS = 2 * 10**8  # 0.8 GB of weights, and several times that while training
GRAMMAR = (
    "mlp[:WIDTH,...], cnn[:CHANNELS,...[+WIDTH,...]], resmlp[:WIDTH,WIDTH,...], skip[:WIDTH,...] or "
    "embed[:DIM,WIDTH,...], or for text transformer[:WIDTH,BLOCKS], then /tanh or /relu if wanted; or "
    "gated[:WIDTH,...], gru, lstm or rnn[:UNITS,...]"
)


class ResidualBlock(nn.Module):
    """h -> φ(h + W h + b): the activation stands AFTER the addition, so a cut at it cuts the skip as well."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation()

    def forward(self, h: Tensor) -> Tensor:
        """Shape (m, width) -> (m, width)."""
        out: Tensor = self.activation(h + self.linear(h))
        return out


def usual(*, text: bool, cardinalities: Sequence[int]) -> str:
    """The specification of the network for a kind of data: text, a table with categorical columns, or another."""
    return "gru" if text else "embed" if any(cardinalities) else "mlp"


def mlp(
    input_shape: Sequence[int], classes: int, widths: Sequence[int], activation: type[nn.Module]
) -> nn.Sequential:
    """Flatten, then a hidden layer for each width, then logits."""
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [math.prod(input_shape), *widths]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def cnn(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int],
    activation: type[nn.Module],
    hidden: Sequence[int] = (),
) -> nn.Module:
    """A block of 3x3 convolution, GroupNorm, 2x2 max-pooling and activation for each width, `mlp` of `hidden` on top.

    A monotone activation (both are) commutes with max-pooling; it comes last so that the feedback to a block
    has a quarter of the components. GroupNorm, because it treats each record alone.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** len(widths):
        raise UsageError(
            f"model cnn with {len(widths)} blocks cannot take records of shape {tuple(input_shape)}; "
            f"it needs images (channels, height, width) of {2 ** len(widths)} pixels a side or more: use mlp"
        )
    layers: list[nn.Module] = []
    channels, height, width = input_shape
    for wanted in widths:
        layers += [
            nn.Conv2d(channels, wanted, kernel_size=3, padding=1),
            nn.GroupNorm(math.gcd(4, wanted), wanted),
            nn.MaxPool2d(2),
            activation(),
        ]
        channels, height, width = wanted, height // 2, width // 2
    return nn.Sequential(*layers, *mlp((channels, height, width), classes, hidden, activation))


def resmlp(
    input_shape: Sequence[int], classes: int, widths: Sequence[int], activation: type[nn.Module]
) -> nn.Module:
    """A first hidden layer, then a `ResidualBlock` for each further width, then logits."""
    if len(set(widths)) != 1:
        raise UsageError(
            f"model resmlp has widths {', '.join(map(str, widths))}; they must be equal for the sums to exist"
        )
    width = widths[0]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        activation(),
        *(ResidualBlock(width, activation) for _ in widths[1:]),
        nn.Linear(width, classes),
    )


Builder = Callable[[Sequence[int], int, Sequence[int], type[nn.Module]], nn.Module]


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        builder: of (shape of a record, classes, widths, activation).
        widths: default ones.
        activation: the default one; None where the network has none to choose.
        text: whether its records are text.
    """

    builder: Builder
    widths: tuple[int, ...]
    activation: str | None = "tanh"
    text: bool = False


def _recurrent(cell: type[Unrolled]) -> Family:
    def network(
        shape: Sequence[int], characters: int, units: Sequence[int], activation: type[nn.Module]
    ) -> nn.Module:
        return RecurrentNetwork(characters, units, cell)

    return Family(network, (128,), activation=None, text=True)


def _gated(
    shape: Sequence[int], classes: int, widths: Sequence[int], activation: type[nn.Module]
) -> nn.Module:
    return GatedNetwork(shape, classes, widths)


MODELS: dict[str, Family] = {
    "mlp": Family(mlp, (512,)),
    "cnn": Family(cnn, (16, 32)),
    "resmlp": Family(resmlp, (256, 256, 256)),
    "skip": Family(SkipNetwork, (256,)),
    "embed": Family(embed, (8, 128, 128)),
    "gated": Family(_gated, (512,), activation=None),
    "gru": _recurrent(GRU),
    "lstm": _recurrent(LSTM),
    "rnn": _recurrent(RNN),
    "transformer": Family(transformer, (128, 2), activation="relu", text=True),
}


def build(
    spec: str,
    input_shape: Sequence[int],
    classes: int,
    seed: int,
    *,
    cardinalities: Sequence[int] = (),
    text: bool = False,
) -> nn.Module:
    """A network with PyTorch's default initialisation, a larger one in the hidden layers of `gated` and none in the
    logits of `skip`, drawn from the stream "weights" of `seed`.

    The weights depend on (spec, input_shape, classes, seed, cardinalities) alone: the same for every rule, backend and
    release, and torch's global generator is neither read nor moved.

    Args:
        spec: name[:widths][/activation], such as "mlp", "mlp:512,512", "cnn:16,32/relu", "gru:128"; after the channels
            of a cnn, + and the widths of fully connected hidden layers, such as "cnn:16,32+256,128".
        input_shape: shape of one record.
        classes: number of logits, 2 or more.
        seed: of the run.
        cardinalities: number of categories of every column of a table, 0 for a numeric one (`Dataset.cardinalities`).
        text: whether records are sequences of whole numbers below `classes`.
    Returns:
        a float32 module on the CPU that maps (m, *input_shape) to (m, classes), any m including 0; of text, (m, T) to
        (m, T, classes).
    Raises:
        UsageError: unknown specification, or one that does not fit the records.
    """
    kind, widths, hidden, activation = parse(spec)
    if kind.text is not text:
        fitting = ", ".join(name for name, other in MODELS.items() if other.text is text)
        records = "text" if text else "no text"
        raise UsageError(f"model is {spec!r}, but the records are {records}; it must be one of {fitting}")
    builder = kind.builder
    if builder is embed:
        builder = partial(embed, cardinalities=cardinalities)
    elif builder is cnn:
        builder = partial(cnn, hidden=hidden)
    if classes < 2:
        raise UsageError(f"the data set has {classes} class; a classifier needs 2 or more")
    if not input_shape or min(input_shape) < 1:
        raise UsageError(f"records have shape {tuple(input_shape)}; every dimension must be 1 or more")
    with torch.device("meta"):
        net = builder(input_shape, classes, widths, activation)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    if parameters > MAX_PARAMETERS:
        raise UsageError(
            f"model {spec!r} has {parameters:,} parameters for records of shape {tuple(input_shape)}; at most "
            f"{MAX_PARAMETERS:,} are allowed: choose fewer or narrower layers"
        )
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights"))
    for module in net.modules():
        _draw(module, generator)
    if isinstance(net, GatedNetwork):
        net.enlarge()
    elif isinstance(net, SkipNetwork):
        net.begin_at_zero()
    return net


def feedback_points(network: nn.Module, level: str | None) -> list[str] | None:
    """Where a rule cuts a network that `build` made: names for `align`, None for the rule's own choice.

    Args:
        network: the plain module.
        level: `macro` or `micro`, of a Transformer's blocks (None is macro there) or of a table's embeddings: by
            macro they learn through the first layer (None is micro there).
    Raises:
        UsageError: another network, which has no such choice.
    """
    if isinstance(network, Transformer):
        return network.points_of(level or Transformer.LEVELS[0])
    if level is None:
        return None
    if not any(isinstance(part, ColumnEmbeddings) for part in network.modules()):
        raise UsageError(
            f"points is {level!r}, a choice of transformer and embed alone; name the modules to cut at, or drop points"
        )
    cut = [name for name, part in network.named_modules() if isinstance(part, CUT_ACTIVATIONS)]
    return cut if level == Transformer.LEVELS[0] else None


def parse(spec: str) -> tuple[Family, tuple[int, ...], tuple[int, ...], type[nn.Module]]:
    """(kind, widths, hidden widths of a cnn, activation) of a specification; UsageError if it is none."""
    shape, slash, activation = spec.partition("/")
    name, colon, listed = shape.partition(":")
    if name not in MODELS or (slash and activation not in ACTIVATIONS):
        raise UsageError(f"model is {spec!r}; it must be {GRAMMAR}, for example mlp:512,512/relu")
    kind = MODELS[name]
    widths = kind.widths
    hidden: tuple[int, ...] = ()
    if slash and kind.activation is None:
        raise UsageError(f"model is {spec!r}, but {name} has no activation to choose; drop /{activation}")
    if colon:
        listed, plus, above = listed.partition("+")
        if plus and kind.builder is not cnn:
            raise UsageError(
                f"model is {spec!r}; a + is for cnn alone, whose fully connected layers follow it, for example "
                f"cnn:16,32+128: separate the widths of {name} by commas"
            )
        example = "cnn:16,32+128" if kind.builder is cnn else "mlp:512,512"
        widths = _widths(listed, spec, example)
        hidden = _widths(above, spec, example) if plus else ()
    return kind, widths, hidden, ACTIVATIONS[activation or kind.activation or "tanh"]


def _widths(listed: str, spec: str, example: str) -> tuple[int, ...]:
    parts = listed.split(",")
    if not all(
        part.isascii() and part.isdigit() and len(part) < 9 and 1 <= int(part) <= MAX_WIDTH for part in parts
    ):
        raise UsageError(
            f"model is {spec!r}, but {listed!r} is no list of widths; widths must be whole numbers from 1 to "
            f"{MAX_WIDTH} separated by commas, for example {example}"
        )
    return tuple(int(part) for part in parts)


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """The module's own parameters by PyTorch's default laws (those of its `reset_parameters`)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, generator=generator)
    elif isinstance(module, PublicGates):
        module.draw(generator)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm | Scattering):
        module.reset_parameters()
