"""Gated contributions given outright, for tests of the releases that put noise inside a record's projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from privacy.contributions.separated import SeparatedLayer


def layers(
    records: int, inputs: int = 5, units: int = 3, classes: int = 2, seed: int = 0, scale: float = 1.0
) -> list[SeparatedLayer]:
    """A hidden and an output layer with random factors, both with a bias."""
    source = torch.Generator().manual_seed(seed)
    h, hidden = torch.randn(records, inputs, generator=source), torch.randn(records, units, generator=source)
    gate = torch.rand(records, units, generator=source) + 0.1
    taught = scale * torch.randn(records, units, generator=source)
    signal = taught * gate
    error = scale * torch.randn(records, classes, generator=source)
    ones = torch.ones(records, 1)
    return [
        SeparatedLayer("1", "1.weight", "1.bias", torch.cat([h, ones], 1), taught, signal, gate, "2"),
        SeparatedLayer(
            "3",
            "3.weight",
            "3.bias",
            torch.cat([hidden, ones], 1),
            error,
            error,
            torch.ones_like(error),
            None,
        ),
    ]


class Gated:
    """What `start_capture("separated")` gives, with the batch set by the test."""

    def __init__(self, batch: list[SeparatedLayer]) -> None:
        self.batch: list[SeparatedLayer] | None = batch
        self.parameters: dict[str, nn.Parameter] = {}
        for layer in batch:
            units, inputs = layer.signal.shape[1], layer.inputs.shape[1] - 1
            self.parameters[f"{layer.name}.weight"] = nn.Parameter(torch.zeros(units, inputs))
            self.parameters[f"{layer.name}.bias"] = nn.Parameter(torch.zeros(units))
        self.widths = {layer.name: layer.signal.shape[1] for layer in batch}
        self.matrices: dict[str, Tensor] | None = None
        self.dimension = sum(p.numel() for p in self.parameters.values())
        self.expected_records: Callable[[], int | None] = lambda: (
            0 if self.batch is None else len(self.batch[0].inputs)
        )
        self.mask_seed: Callable[[], int] = lambda: 0

    @property
    def taught(self) -> bool:
        return self.batch is not None

    def separated(self) -> list[SeparatedLayer]:
        assert self.batch is not None
        return self.batch

    def logits(self) -> Tensor:
        raise NotImplementedError

    def clear(self) -> None:
        self.batch = None

    def norms(self) -> Tensor:
        raise NotImplementedError

    def add_clipped(self, factors: Tensor, out: Tensor) -> None:
        raise NotImplementedError

    def rounding(self, records: int, batches: int = 1) -> float:
        raise NotImplementedError

    def unpack(self, released: Tensor) -> Tensor:
        raise NotImplementedError


def updates(flat: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Each layer's update with its bias as last column, from the flat gradient."""
    blocks = dict(zip(parameters, torch.split(flat, [p.numel() for p in parameters.values()]), strict=True))
    return {
        name.removesuffix(".weight"): torch.cat(
            [block.view_as(parameters[name]), blocks[name.replace("weight", "bias")].unsqueeze(1)], 1
        )
        for name, block in blocks.items()
        if name.endswith("weight")
    }


def part(batch: list[SeparatedLayer], records: slice | list[int]) -> list[SeparatedLayer]:
    """Some records of a batch."""
    names = ("inputs", "taught", "signal", "gate")
    return [replace(layer, **{name: getattr(layer, name)[records] for name in names}) for layer in batch]
