"""What to write instead, where a module cannot be cut as it is: the lines for the case at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.autograd.graph import Node

# The activation module of what autograd calls an operation; its arguments are read off the operation's node.
_MODULES = {
    "Celu": "CELU", "Elu": "ELU", "Gelu": "GELU", "Hardsigmoid": "Hardsigmoid", "Hardswish": "Hardswish",
    "Hardtanh": "Hardtanh", "LeakyRelu": "LeakyReLU", "LogSigmoid": "LogSigmoid", "Mish": "Mish",
    "PreluKernel": "PReLU", "Relu": "ReLU", "RreluWithNoise": "RReLU", "Sigmoid": "Sigmoid", "Silu": "SiLU",
    "Softplus": "Softplus", "Softshrink": "Softshrink", "Tanh": "Tanh",
}  # fmt: skip
_ARGUMENTS = ("negative_slope", "min_val", "max_val", "scale", "approximate", "min", "max")
_BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def activation(node: Node) -> str | None:
    """The module that does what an operation of the graph did, as one writes it; None where torch has none."""
    operation = node.name().split("Backward")[0]
    saved = {key: getattr(node, f"_saved_{key}", None) for key in _ARGUMENTS}
    if operation == "Hardtanh" and (saved["min_val"], saved["max_val"]) == (0, 6):
        return "nn.ReLU6()"
    if operation == "Hardtanh" and (saved["min_val"], saved["max_val"]) != (-1, 1):
        return f"nn.Hardtanh({saved['min_val']:g}, {saved['max_val']:g})"
    if operation == "LeakyRelu" and saved["negative_slope"] not in (None, 0.01):
        return f"nn.LeakyReLU({saved['negative_slope']:g})"
    if operation == "Elu" and saved["scale"] not in (None, 1):
        return "nn.SELU()"
    if operation == "Gelu" and saved["approximate"] not in (None, "none"):
        return f"nn.GELU(approximate={saved['approximate']!r})"
    if operation in ("Clamp", "ClampMin") and saved["min"] == 0 and saved["max"] is None:
        return "nn.ReLU()"
    if operation == "Clamp" and saved["min"] is not None and saved["max"] is not None:
        return f"nn.Hardtanh({saved['min']:g}, {saved['max']:g})"
    return f"nn.{_MODULES[operation]}()" if operation in _MODULES else None


def rewritten(module: nn.Module, found: Sequence[tuple[str, Node]]) -> str:
    """The lines that make activation modules of functions.

    Args:
        module: in whose `forward` they are.
        found: names of the layers, each with the operation that is applied to what it returns.
    """
    taken = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    made, called, own = [], [], []
    number = 0
    for layer, node in found:
        number += 1
        while f"act{number}" in taken:
            number += 1
        operation = node.name().split("Backward")[0].lower()
        new = activation(node)
        if new is None:
            new = f"{operation.capitalize()}()"
            own.append(f"class {operation.capitalize()}(nn.Module) whose forward(x) is that {operation} of x")
        owner, path = _owner(module, layer)
        inside = f" of {owner}" if owner else ""
        made.append(f"self.act{number} = {new}{inside}")
        called.append(f"x = self.act{number}({path}(x))")
    needed = (
        f"write {' and '.join(dict.fromkeys(own))}, whose names align() is given as points=; " if own else ""
    )
    return f"{needed}in __init__ {', '.join(made)}, in forward {', '.join(called)}"


def instead(module: nn.Module, first: str | None, second: str | None, points: Sequence[str]) -> str | None:
    """What to do about two matrices in one segment that belong to a kind of layer which no default point cuts.

    Args:
        module: the plain module.
        first, second: names of the two parameters.
        points: the feedback points as they are.
    """
    parts = dict(module.named_modules())
    owners = [name.rpartition(".")[0] for name in (first, second) if name is not None]
    blocks = [name for name, part in parts.items() if isinstance(part, _BLOCKS)]
    if any(owner == b or owner.startswith(f"{b}.") for owner in owners for b in blocks):
        outside = [p for p in points if not any(p.startswith(f"{b}.") for b in blocks)]
        return (
            f"cut at the blocks' outputs, points={[*outside, *blocks]!r}, and let each be backpropagated within, or "
            "use optical_dfa.networks.text.Block, which can be cut inside too"
        )
    for owner in owners:
        part = parts.get(owner)
        if isinstance(part, nn.RNNBase | nn.RNNCellBase):
            return (
                f"{owner} is nn.{type(part).__name__}, one operation that nothing is cut inside; use "
                f"{own_class(part)}, and is cut at each"
            )
        if isinstance(parts.get(owner), nn.MultiheadAttention) or isinstance(
            parts.get(owner.rpartition(".")[0]), nn.MultiheadAttention
        ):
            name = owner if isinstance(parts.get(owner), nn.MultiheadAttention) else owner.rpartition(".")[0]
            return (
                f"{name} is nn.MultiheadAttention, which returns two tensors and so is no point: in __init__ "
                f"self.attended = nn.Identity(), in forward h = self.attended(self.{name}(q, k, v)[0]), and "
                f"points={[*points, 'attended']!r} (it is backpropagated within); or use {own_class(parts[name])}"
            )
    return None


def own_class(part: nn.Module) -> str | None:
    """Our class that does what one of torch's fused layers does, made of layers that every rule and release takes.

    Returns:
        what to write in its place; None where we have none.
    """
    if isinstance(part, nn.RNNBase | nn.RNNCellBase):
        gated = {"LSTM": nn.LSTM | nn.LSTMCell, "GRU": nn.GRU | nn.GRUCell}
        kind = next((name for name, kinds in gated.items() if isinstance(part, kinds)), "RNN")
        return (
            f"optical_dfa.networks.recurrent.{kind}(inputs, units) in its place, a layer each, which takes (records, "
            "times, inputs), returns h_t of every time alone"
        )
    if isinstance(part, nn.MultiheadAttention):
        return "optical_dfa.networks.text.Attention in its place"
    if isinstance(part, nn.TransformerEncoderLayer):
        return "optical_dfa.networks.text.Block in its place"
    return None


def point_between(module: nn.Module, first: str | None, second: str | None, points: Sequence[str]) -> str:
    """The lines that cut between two matrices that nothing stands between.

    Args:
        module: the plain module.
        first, second: names of the two parameters, the lower one first.
        points: the feedback points as they are.
    """
    layer, upper = (name.rpartition(".")[0] if name is not None else "" for name in (first, second))
    above, _, last = layer.rpartition(".")
    parts = dict(module.named_modules())
    around = parts.get(above)
    if layer and isinstance(around, nn.Sequential) and type(around).forward is nn.Sequential.forward:
        place = list(around._modules).index(last) + 1
        inside = f"{above}." if above else ""
        if last.isdigit():
            write = f"{_path('module', '', above, parts)}.insert({place}, {{}}) before align()"
            moved = [_moved(name, inside, place) for name in points]
            cut = [*moved, f"{inside}{place}"]
        else:
            write = f"('point', {{}}) after {layer!r} in its nn.Sequential"
            cut = [*points, f"{inside}point"]
        return (
            f"no activation module stands between them: {write.format('nn.Tanh()')}, or "
            f"{write.format('nn.Identity()')} and points={cut!r}"
        )
    owner, path = _owner(module, layer) if layer and layer != upper else (layer, "")
    inside = f"{owner}." if owner else ""
    where = f"of {owner} " if owner else ""
    call = f"x = self.point({path}(x))" if path else f"h = self.point(h), h being what {first} alone makes,"
    return (
        f"no activation module stands between them: in __init__ {where}self.point = nn.Tanh(), in forward {call}, or "
        f"self.point = nn.Identity() likewise and points={[*points, f'{inside}point']!r}"
    )


def _moved(name: str, inside: str, place: int) -> str:
    """A part's name once another was inserted at `place` of the nn.Sequential that `inside` is the prefix of."""
    number, dot, rest = name.removeprefix(inside).partition(".")
    if not name.startswith(inside) or not number.isdigit() or int(number) < place:
        return name
    return f"{inside}{int(number) + 1}{dot}{rest}"


def _path(root: str, owner: str, name: str, parts: Mapping[str, nn.Module]) -> str:
    """A part as one writes it where `root` is what it belongs to, such as `self.blocks[0]`."""
    path, reached = root, owner
    below = name.removeprefix(f"{owner}.") if owner else name
    for step in below.split(".") if below else ():
        listed = step.isdigit() and isinstance(parts.get(reached), _LISTS)
        path += f"[{step}]" if listed else f".{step}"
        reached = f"{reached}.{step}" if reached else step
    return path


def _owner(module: nn.Module, layer: str) -> tuple[str, str]:
    """The part whose `forward` calls a layer ("" is the module itself), and the layer as it is written there."""
    parts = dict(module.named_modules())
    owner = layer.rpartition(".")[0]
    while owner and isinstance(parts[owner], _LISTS):
        owner = owner.rpartition(".")[0]
    return owner, _path("self", owner, layer, parts)
