"""What a record contributes does not depend on how many others there are: batches go through the module in blocks.

Kernels of matrix products go another way for few rows than for many, so the same record's numbers differ in their last
bits; one that stands at a kink (of an activation, of a gate) then teaches something else. The old step, which gave the
module the batch as it was, is what the attack breaks.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.rules.gated import hyperplanes
from privacy import PrivacyEngine
from privacy.contributions.protocols import Contributions
from privacy.contributions.rounding import _Lane
from privacy.releases.clipped import ClippedRelease

INPUTS, UNITS, CLASSES = 784, 256, 10
RELEASES = ["digital", "device-entropy", "aggregate", "dark-frame"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES))


def switch(x: Tensor, gated: bool) -> int:
    """So many equal rows that one more sends them through another kernel, on this machine: those of the gates, or of
    the first layer."""
    weight = hyperplanes(7, INPUTS, 0) if gated else net()[0].get_parameter("weight")
    answers = [(x.expand(rows, -1).contiguous() @ weight.T)[0] for rows in range(2, 200)]
    for rows, (before, after) in enumerate(pairwise(answers), start=2):
        if not torch.equal(before, after):
            return rows
    pytest.skip("on this machine a record's product is the same among 2 to 200 rows")


def at_the_kink(x: Tensor, rows: int) -> nn.Module:
    """Every pre-activation of `x` among so many rows is exactly 0."""
    made = net()
    bias = made[0].get_parameter("bias")
    with torch.no_grad():
        bias.zero_()
        bias.copy_(-made[0](x.expand(rows, -1).contiguous())[0])
    return made


def at_every_gate() -> Tensor:
    """An input that lies in the planes at which the gates of rule gated-dfa switch, up to rounding."""
    x = torch.rand(1, INPUTS, generator=torch.Generator().manual_seed(1))
    planes = hyperplanes(7, INPUTS, 0).double()
    basis = torch.linalg.qr(planes.T).Q
    return (x.double() - (x.double() @ basis) @ basis.T).float()


def sums(release: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, float]:
    """How far an all-zero record moves a step's sum, and D: the production loop, with the same coins in both worlds."""
    monkeypatch.setattr(_Lane, "_drawn", lambda self, count: torch.full((count, 1), 4660.0))
    camera = release in ("device-entropy", "dark-frame")
    gated = release == "aggregate"
    x = at_every_gate()
    most = switch(x, gated)
    totals: list[Tensor] = []
    steps = 1
    monkeypatch.setattr(ClippedRelease, "_add_noise", lambda self, _: totals.append(self._sum.total.clone()))
    for records in (most, most + 1):
        aligned = align(
            at_the_kink(x, most),
            rule="gated-dfa" if gated else "dfa",
            rule_options={"gates": 8, "gate_seed": 0} if gated else None,
            points=["0"] if gated else None,
            backend="simulated-opu" if camera else "digital",
            backend_options={"dark_pixels": 1 << 15} if camera else None,
            noise=NoiseGenerator.seeded(3, "device"),
            loss_reduction="sum",
            show=None,
        )
        given = torch.cat([x.expand(most, -1), torch.zeros_like(x)])[:records]
        engine = PrivacyEngine(reproducible_seed=3)
        module, optimizer, loader = engine.make_private(
            module=aligned,
            optimizer=torch.optim.SGD(aligned.parameters(), lr=0.1),
            data_loader=DataLoader(
                TensorDataset(given, torch.zeros(records, dtype=torch.int64)), batch_size=most
            ),
            noise_multiplier=1.0,
            max_grad_norm=0.1,
            public_size=most,
            release=release,
        )
        for batch, y in loader:
            assert len(batch) == records
            nn.functional.cross_entropy(module(batch), y, reduction="sum").backward()
            optimizer.step()
        assert isinstance(engine.step, ClippedRelease)
        steps = engine.step.steps
    return float(torch.linalg.vector_norm((totals[1] - totals[0]).double())), float(steps)


@pytest.mark.parametrize("release", RELEASES)
def test_a_record_moves_the_sum_by_no_more_than_its_own_contribution(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, bound = sums(release, monkeypatch)
    assert 0 < moved <= bound


@pytest.mark.parametrize("release", ["digital", "aggregate"])
def test_a_batch_that_goes_through_as_it_is_tells_its_size(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old step: a record of zeros moves the sum by more than any record may."""
    start = AlignedModule.start_capture

    def without_blocks(self: AlignedModule, kind: str = "records", rows: int | None = None) -> Contributions:
        return start(self, kind)

    monkeypatch.setattr(AlignedModule, "start_capture", without_blocks)
    moved, bound = sums(release, monkeypatch)
    print(moved / bound)
    assert moved > 1.2 * bound
