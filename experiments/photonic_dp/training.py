"""One training of the study: accuracy and second-layer alignment by epoch, with and without the published noise."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa import PrivacyEngine, align
from optical_dfa.data.dataset import Dataset
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.measure.alignment import direction, exact_gradients
from optical_dfa.networks.building import build
from optical_dfa.progress import Progress, SilentProgress
from optical_dfa.training.evaluation import accuracy_and_loss
from optical_dfa.training.loss import cross_entropy, private_loss
from privacy.accounting import published
from privacy.notions import Adjacency, Kind
from privacy.releases.per_record import PerRecordRelease

DELTA = 1e-5
MAX_GRAD_NORM = 1.0
THRESHOLD = 0.15  # of an entry of the error; above the 1/10 where those of a network that knows nothing lie
LOOKED = 4  # last steps of an epoch whose update is compared with backpropagation's
PROBED = 256  # errors that are shown to the device twice, for its own noise


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        dataset, rule, backend: by name.
        lr: learning rate of SGD.
        noise_multiplier: z of release `per-record`, whose noise stands inside each record's projection; None trains
            without clipping, and without noise but the device's own.
    """

    dataset: str
    rule: str
    backend: str
    lr: float
    noise_multiplier: float | None = None
    seed: int = 0
    model: str = "mlp:512,512"
    batch_size: int = 1024
    epochs: int = 10
    momentum: float = 0.9


def measure(setting: Training, data: Dataset, progress: Progress | None = None) -> dict[str, Any]:
    """Train, and look at the network after every epoch.

    Alignments are computed from records, which voids what a private run claims (`unsafe_diagnostics`): epsilon is the
    published reading of what was released, and would be no guarantee without them either.

    Returns:
        JSON types: the setting; by epoch test accuracy, and mean cosine of the second layer's update and
        backpropagation's gradient of the same batch; the standard deviation of the noise on an entry of a record's
        projected error; epsilon at DELTA for adding or removing one record, None without a noise multiplier; seconds.
    """
    begun = time.perf_counter()
    aligned = _aligned(setting, data)
    second = [name for name, part in aligned.module.named_modules() if isinstance(part, nn.Linear)][1]
    optimizer: Any = torch.optim.SGD(aligned.parameters(), setting.lr, setting.momentum)
    found: dict[str, list[float]] = {"test_accuracy": [], "alignment": []}
    claim: dict[str, Any] = {"epsilon": None, "kind": "none"}
    if setting.noise_multiplier is None:
        noise_std = own_noise(aligned, data)
        _train(setting, data, (aligned, optimizer, _Shuffled(setting, data)), second, found, progress)
    else:
        engine = PrivacyEngine(unsafe_diagnostics=True)
        loader = DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=setting.batch_size)
        made = engine.make_private(
            module=aligned,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=setting.noise_multiplier,
            max_grad_norm=MAX_GRAD_NORM,
            release="per-record",
        )
        assert isinstance(engine.step, PerRecordRelease)
        noise_std = engine.step.noise_std(setting.noise_multiplier)
        _train(setting, data, made, second, found, progress)
        assert engine.ledger is not None
        tally = Counter(engine.ledger.releases())
        claim = {
            "epsilon": published.epsilon(tally, DELTA, Adjacency.ADD_REMOVE, "published"),
            "kind": Kind.CONDITIONAL.value,
        }
        engine.close()
    if aligned.backend is not None:
        aligned.backend.close()
    seconds = round(time.perf_counter() - begun, 1)
    return {"setting": asdict(setting), **found, "noise_std": noise_std, **claim, "seconds": seconds}


def _aligned(setting: Training, data: Dataset) -> AlignedModule:
    private = setting.noise_multiplier is not None
    return align(
        build(setting.model, data.input_shape, data.classes, setting.seed),
        rule=setting.rule,
        backend=setting.backend,
        example=data.x_train[:1],
        seed=setting.seed,
        rule_options={"threshold": THRESHOLD} if setting.rule == "ternary" else None,
        noise=NoiseGenerator.secure("device") if private else NoiseGenerator.seeded(setting.seed, "device"),
        loss_reduction="sum" if private else "mean",
        show=None,
    )


class _Shuffled:
    """Batches of a run without privacy, every epoch in an order of its own."""

    def __init__(self, setting: Training, data: Dataset) -> None:
        self._x, self._y, self._size = data.x_train, data.y_train, setting.batch_size
        self._order = torch.Generator().manual_seed(derive_seed(setting.seed, "order"))

    def __len__(self) -> int:
        return math.ceil(len(self._x) / self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.split(torch.randperm(len(self._x), generator=self._order), self._size):
            yield self._x[batch], self._y[batch]


def _train(
    setting: Training,
    data: Dataset,
    made: tuple[Any, Any, Any],
    second: str,
    found: dict[str, list[float]],
    progress: Progress | None,
) -> None:
    """All epochs of a module, its optimizer and its batches; what each epoch shows is put into `found`."""
    module, optimizer, loader = made
    loss = cross_entropy if setting.noise_multiplier is None else private_loss
    weight = module.module.get_submodule(second).weight
    shown = progress or SilentProgress()
    shown.start(setting.epochs)
    for epoch in range(setting.epochs):
        cosines = []
        for step, (x, y) in enumerate(loader, start=1):
            looked = len(x) > 0 and step > len(loader) - LOOKED
            exact = (
                exact_gradients(module, x, partial(cross_entropy, targets=y))[f"{second}.weight"]
                if looked
                else None
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss(module(x), y))
            optimizer.step()
            if exact is not None:
                # The release took the gradient's place; a frozen layer has none, which points nowhere.
                update = torch.zeros_like(exact) if weight.grad is None else weight.grad
                way = direction(update, exact).cosine
                cosines.append(0.0 if math.isnan(way) else way)
        found["alignment"].append(math.fsum(cosines) / max(1, len(cosines)))
        found["test_accuracy"].append(accuracy_and_loss(module, data.x_test, data.y_test)[0])
        shown.update(epoch + 1, {"test accuracy": found["test_accuracy"][-1]})


def own_noise(aligned: AlignedModule, data: Dataset) -> float:
    """Standard deviation of the device's own noise on an entry of a record's projected error.

    Of the first records at the initial weights, whose errors are shown twice: the difference has twice the variance.
    """
    if aligned.backend is None:
        return 0.0
    with torch.no_grad():
        logits = aligned.module(data.x_train[:PROBED])
        error = logits.softmax(1) - nn.functional.one_hot(data.y_train[:PROBED], data.classes)
        once, again = (
            torch.cat([signal for signal in aligned.signals(error) if signal is not None], 1) for _ in "12"
        )
    return float((once - again).double().square().mean().div(2).sqrt())
