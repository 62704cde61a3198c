"""`validate`: every way in which one record shows in another's contribution is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import CLASSES, D, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa.aligning import align
from optical_dfa.feedback.aligned import AlignedModule
from privacy.engine import PrivacyEngine
from privacy.validation import Validation, validate


def aligned(module: nn.Module | None = None, **options: Any) -> AlignedModule:
    settings: dict[str, Any] = {"rule": "dfa", "backend": "digital", "show": None, **options}
    return align(module or network(), **settings)


# ---- sound pairs


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (nn.CrossEntropyLoss(), "mean"),
        (nn.CrossEntropyLoss(reduction="sum"), "sum"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "mean"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), reduction="sum"), "sum"),
        (lambda z, y: nn.functional.mse_loss(z, y, reduction="sum") / 7, "sum"),
        (lambda z, y: nn.functional.binary_cross_entropy_with_logits(z, y) * CLASSES, "mean"),
    ],
    ids=["mean", "sum", "smoothing", "weights summed", "squares", "binary"],
)
def test_sound_losses_have_no_findings(loss: Any, reduction: Any) -> None:
    module = aligned(loss_reduction=reduction)
    found = PrivacyEngine().validate(module, loss)
    assert found == Validation((), sizes=(4, 256))
    found.raise_if_broken()
    assert "no record was seen" in str(found)
    assert "batches of 4 and 256" in str(found)


@pytest.mark.parametrize(("rule", "dtype"), [("bp", torch.float32), ("shallow", torch.float64)])
def test_other_rules_and_precisions(rule: str, dtype: torch.dtype) -> None:
    assert validate(aligned(network(dtype=dtype), rule=rule), cross_entropy).findings == ()
    mixed = validate(aligned(network(dtype=dtype), rule=rule), centred_a_little)
    assert any("others contribute to" in line for line in mixed.findings)


def test_dropout_is_tried_with_the_same_masks_and_said() -> None:
    found = validate(aligned(network(nn.Dropout(0.5))), cross_entropy)
    assert found.findings == ()
    assert any("random masks" in note for note in found.notes)


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (
            nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)
            ),
            torch.zeros(1, 1, 6, 6),
        ),
        (
            nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, CLASSES)),
            torch.zeros(1, 3, dtype=torch.long),
        ),
    ],
    ids=["convolution", "embedding"],
)
def test_other_layers_and_inputs(module: nn.Module, example: Tensor) -> None:
    assert validate(aligned(module, example=example), cross_entropy).findings == ()


def test_records_and_targets_of_ones_own() -> None:
    x, y = torch.randn(9, D), torch.randn(9, CLASSES)

    def pinned(z: Tensor, t: Tensor) -> Tensor:
        assert t.shape[1:] == (CLASSES,)
        return (z - t).square().sum()

    module = aligned(loss_reduction="sum")
    assert validate(module, pinned, inputs=x, targets=y).findings == ()
    assert validate(module, pinned, inputs=[x], targets=y).findings == ()


def test_the_module_is_left_as_it_was() -> None:
    module = aligned(network(nn.Dropout(0.5)))
    module.eval()
    before = {name: value.clone() for name, value in module.module.state_dict().items()}
    validate(module, cross_entropy)
    assert not module.training
    assert all(torch.equal(before[name], value) for name, value in module.module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert module._capture is None


# ---- broken losses


def centred(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z - z.mean(0), y)


def centred_a_little(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z - 1e-2 * z.detach().amax(0), y)


def contrastive(z: Tensor, y: Tensor) -> Tensor:
    similar = z @ z.mT
    return cross_entropy(similar, torch.arange(len(z))) if len(z) else similar.sum()


def hardest(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="none").max() if len(z) else z.sum()


def ranked(z: Tensor, y: Tensor) -> Tensor:
    return (cross_entropy(z, y, reduction="none") * torch.arange(1, len(z) + 1)).mean()


def balanced(z: Tensor, y: Tensor) -> Tensor:
    counts = torch.bincount(y, minlength=CLASSES).clamp_min(1)
    return cross_entropy(z, y, weight=1.0 / counts)


@pytest.mark.parametrize(
    ("loss", "reduction", "action"),
    [
        (centred, "mean", "input"),
        (centred_a_little, "mean", "input"),
        (contrastive, "mean", "input"),
        (hardest, "sum", "input"),
        (ranked, "mean", "another order"),
        (balanced, "mean", "target"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0])), "mean", "target"),
        (nn.CrossEntropyLoss(ignore_index=1), "mean", "target"),
        (nn.CrossEntropyLoss(), "sum", "leaving one record out"),
        (nn.CrossEntropyLoss(reduction="sum"), "mean", "leaving one record out"),
        (lambda z, y: cross_entropy(z, y, reduction="sum") / 256, "mean", "leaving one record out"),
    ],
    ids=[
        "batch-centred",
        "detached maximum",
        "contrastive",
        "hardest record",
        "weighted by place",
        "class balance of the batch",
        "mean with class weights",
        "mean with ignore_index",
        "mean declared as sum",
        "sum declared as mean",
        "expected size declared as mean",
    ],
)
def test_losses_that_mix_records_are_found(loss: Any, reduction: Any, action: str) -> None:
    found = validate(aligned(loss_reduction=reduction), loss)
    assert any(action in line and "others contribute to" in line for line in found.findings), found
    with pytest.raises(UsageError, match="cannot be trained privately"):
        found.raise_if_broken()


# ---- what begins at a size


def mined(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="none").topk(min(64, len(z))).values.sum()


def divided_by_groups(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="sum") / max(1, len(z) // 8)


def divided_above_four(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="sum") / (len(z) / 4 if len(z) > 4 else 1)


class GhostCentred(nn.Module):
    """In groups of 8, as ghost batch normalisation has them; the rest is left alone."""

    def forward(self, x: Tensor) -> Tensor:
        whole = len(x) // 8 * 8
        groups = x[:whole].reshape(len(x) // 8, 8, x.shape[1])
        return torch.cat(((groups - groups.mean(1, keepdim=True)).flatten(0, 1), x[whole:]))


class CentredAbove16(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if len(x) > 16 else x


class CentredBetween(nn.Module):
    """Neither the small batch nor the large one shows it by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if 16 < len(x) < 128 else x


@pytest.mark.parametrize("given", [None, 250])
@pytest.mark.parametrize(
    "loss",
    [
        mined,
        divided_by_groups,
        divided_above_four,
    ],
    ids=["hard examples", "groups", "above four"],
)
def test_losses_that_show_in_larger_batches_only_are_found(loss: Any, given: int | None) -> None:
    records: dict[str, Tensor] = {}
    if given is not None:
        records = {"inputs": torch.randn(given, D), "targets": torch.randint(CLASSES, (given,))}
    found = validate(aligned(loss_reduction="sum"), loss, **records)
    assert any("others contribute to" in line for line in found.findings), found
    assert all("in a batch of 4" not in line for line in found.findings)
    assert found.sizes == (4, given or 256)


def test_a_batch_that_cannot_be_stepped_on_is_found() -> None:
    def even(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z, y) + (z[: len(z) // 2] - z[len(z) // 2 :]).sum() * 0

    found = validate(aligned(), even)
    assert any(
        "without one of its records cannot be stepped on (RuntimeError" in line for line in found.findings
    )


def test_records_beyond_the_most_are_left_out_and_said() -> None:
    x, y = torch.randn(600, D), torch.randint(CLASSES, (600,))
    y[-1] = CLASSES  # no class, and not looked at
    found = validate(aligned(), cross_entropy, inputs=x, targets=y)
    assert found.sizes == (4, 512)
    assert found.notes == ("of 600 records the first 512 were tried",)


def test_wide_records_make_the_larger_batch_smaller() -> None:
    wide = nn.Sequential(nn.AvgPool2d(128), nn.Flatten(), nn.Linear(1, CLASSES))
    found = validate(aligned(wide, rule="bp", example=torch.zeros(1, 1, 128, 128)), cross_entropy)
    assert found == Validation((), sizes=(4, 16))


def test_an_empty_batch_that_cannot_be_stepped_on_is_found() -> None:
    def first_of_all(z: Tensor, y: Tensor) -> Tensor:
        z[0]
        return cross_entropy(z, y)

    (line,) = validate(aligned(), first_of_all).findings
    assert "empty Poisson batch" in line
    assert "IndexError" in line


def test_a_loss_that_learns_or_remembers_is_found() -> None:
    class Centres(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(torch.zeros(CLASSES, CLASSES))
            self.register_buffer("seen", torch.zeros(CLASSES))

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            self.seen += z.detach().sum(0)
            return cross_entropy(z, y) + (z - self.centres[y]).square().sum(1).mean()

    loss = Centres()
    found = validate(aligned(), loss)
    assert any("parameter centres of its own" in line for line in found.findings)
    assert any("the loss's seen changes" in line for line in found.findings)
    assert not loss.seen.any()


def test_a_penalty_on_the_weights_is_found_and_its_gradient_taken_back() -> None:
    module = aligned()

    def penalised(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z, y) + sum(p.square().sum() for p in module.parameters())

    found = validate(module, penalised)
    assert any("gradient of module.0.weight by itself" in line for line in found.findings)
    assert all(p.grad is None for p in module.parameters())


# ---- broken modules


class MixingBackward(torch.autograd.Function):
    """Harmless forwards; backwards it divides by the batch's largest gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad / (1e-9 + grad.abs().max() if len(grad) else 1.0)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return MixingBackward.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += x.mean().detach()
        return x


@pytest.mark.parametrize("rule", ["dfa", "bp"])
def test_a_backward_pass_that_mixes_records_is_found(rule: str) -> None:
    """The forward pass shows nothing."""
    (line,) = validate(aligned(network(Mixing()), rule=rule), cross_entropy).findings
    assert "may mix records in the backward pass" in line


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (Centred(), "mixes records"),
        (Counting(), "statistics"),
        *((layer, "mixes records") for layer in (GhostCentred(), CentredAbove16(), CentredBetween())),
    ],
    ids=["BatchNorm", "centred", "running statistics", "ghost norm", "above 16", "between"],
)
def test_what_make_private_refuses_is_a_finding(layer: nn.Module, word: str) -> None:
    (line,) = validate(aligned(network(layer)), cross_entropy).findings
    assert word in line


# ---- wrong use


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: validate(network(), cross_entropy), "aligned"),
        (lambda: validate(aligned(backend="simulated-opu"), cross_entropy), "without noise"),
        (lambda: validate(aligned(), lambda z, y: torch.rand(()) * z.sum()), "nothing can be compared"),
        (lambda: validate(aligned(), lambda z, y: y["label"]), "give targets="),
        (lambda: validate(aligned(), lambda z, y: z.sum(1)), "one number"),
        (lambda: validate(aligned(), cross_entropy, inputs=torch.zeros(1, D)), "at least 2"),
        (lambda: validate(aligned(), cross_entropy, inputs=torch.full((4, D), torch.inf)), "no finite"),
        (
            lambda: validate(
                aligned(), cross_entropy, inputs=torch.zeros(4, D), targets=torch.zeros(2, dtype=torch.long)
            ),
            "2 targets",
        ),
        (lambda: validate(aligned(), None), "loss is None"),  # type: ignore[arg-type]
        (
            lambda: validate(aligned(), cross_entropy, inputs=torch.zeros(4, D + 1)),
            "cannot take these inputs",
        ),
        (lambda: validate(aligned(), cross_entropy, inputs=[]), "no tensors"),
        (
            lambda: validate(aligned(), cross_entropy, inputs=torch.zeros(4, D), targets=[0, 1, 2, 0]),  # type: ignore[arg-type]
            "targets is a list",
        ),
        (
            lambda: validate(
                aligned(), cross_entropy, inputs=torch.zeros(4, D), targets=torch.tensor([0, 1, 2, 77])
            ),
            "fail on these 4 records",
        ),
    ],
    ids=[
        "plain",
        "noisy device",
        "random loss",
        "other targets",
        "vector",
        "one record",
        "not finite",
        "few targets",
        "no loss",
        "wrong width",
        "no inputs",
        "list of targets",
        "no such class",
    ],
)
def test_wrong_use_is_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        call()
    assert "\n" not in str(refusal.value)
