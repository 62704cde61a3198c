"""What scripts written for Opacus ask for: done, or refused in one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa import align
from privacy import BatchMemoryManager, PrivacyEngine
from privacy.weights import ROW

N, BATCH = 48, 12
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))


def arguments(net: nn.Module, module: Any = None, **given: Any) -> dict[str, Any]:
    return {
        "module": align(net, rule="dfa", show=None) if module is None else module,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        "data_loader": DataLoader(TensorDataset(X, Y), batch_size=BATCH),
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.5,
        **given,
    }


def made(engine: PrivacyEngine | None = None, **given: Any) -> tuple[Any, Any, Any]:
    return (engine or PrivacyEngine()).make_private(**arguments(plain(), **given))


def with_epsilon(engine: PrivacyEngine | None = None, **given: Any) -> tuple[Any, Any, Any]:
    wanted = arguments(plain(), **given)
    del wanted["noise_multiplier"]
    return (engine or PrivacyEngine()).make_private_with_epsilon(
        **{"target_epsilon": 5.0, "target_delta": 1e-3, "epochs": 1, **wanted}
    )


def train(module: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ---- keywords


HARMLESS = {
    "clipping": "flat", "grad_sample_mode": "hooks", "batch_first": True, "loss_reduction": "mean", "criterion": None,
    "noise_generator": None, "poisson_sampling": True,
}  # fmt: skip
ASKING = [
    ({"clipping": "per_layer"}, "one max_grad_norm"), ({"clipping": "adaptive"}, "one max_grad_norm"),
    ({"grad_sample_mode": "ghost"}, "leave it out"), ({"grad_sample_mode": "functorch"}, "leave it out"),
    ({"batch_first": False}, "first dimension"), ({"loss_reduction": "sum"}, "align(module, loss_reduction=)"),
    ({"criterion": nn.CrossEntropyLoss()}, "the loop's own loss"), ({"noise_generator": torch.Generator()}, "secrecy"),
    ({"poisson_sampling": False}, "poisson_sampling"), ({"alphas": [2, 3]}, "has no argument 'alphas'"),
    ({"max_grad_norm": [0.1, 0.2]}, "must be a number"), ({"total_steps": 7}, "has no argument"),
    ({"maxgradnorm": 1.0}, "max_grad_norm"), ({"secure_mode": "yes"}, "cryptographic"),
]  # fmt: skip


@pytest.mark.parametrize("make", [made, with_epsilon])
def test_arguments_that_ask_for_nothing_else_are_taken(make: Any) -> None:
    _, _, loader = make(**HARMLESS)
    assert len(loader) == N // BATCH


@pytest.mark.parametrize("make", [made, with_epsilon])
@pytest.mark.parametrize(
    ("given", "words"), ASKING, ids=lambda value: value if isinstance(value, str) else ""
)
def test_arguments_that_ask_for_something_else_say_what_to_do(
    make: Any, given: dict[str, Any], words: str
) -> None:
    refused(lambda: make(**given), words, next(iter(given)))


def test_arguments_of_the_engine() -> None:
    for secure in (True, False):
        made(PrivacyEngine(secure_mode=secure, accountant="prv"))
    refused(lambda: PrivacyEngine(secure_mode=3), "secure_mode=3", "cryptographic")
    refused(lambda: PrivacyEngine(noise_seed=3), "has no argument 'noise_seed'", "reproducible_seed")
    refused(lambda: made(PrivacyEngine(accountant="moments")), "moments")


def test_a_loss_that_adds_up_agrees_with_the_module() -> None:
    net = plain()
    module = align(net, rule="dfa", show=None, loss_reduction="sum")
    PrivacyEngine().make_private(**arguments(net, module, loss_reduction="sum"))
    net = plain()
    module = align(net, rule="dfa", show=None, loss_reduction="sum")
    refused(lambda: PrivacyEngine().make_private(**arguments(net, module, loss_reduction="mean")), "'sum'")


@pytest.mark.parametrize("delta", [0.5, 1.0, 1 / N, 0.0, -1e-6, float("nan")])
def test_a_delta_that_would_let_whole_records_out_is_refused(delta: float) -> None:
    refused(lambda: made(target_epsilon=5.0, target_delta=delta), "target_delta", "1/N")
    refused(lambda: made(target_delta=delta), "target_delta")
    refused(lambda: with_epsilon(target_delta=delta), "target_delta")
    made(target_delta=0.99 / N)


def test_a_public_size_decides_about_delta() -> None:
    made(public_size=2 * N, target_delta=0.9 / (2 * N))
    refused(lambda: made(public_size=2 * N, target_delta=0.9 / N), "1/N")


# ---- modules


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile()
    return align(net, rule="dfa", show=None)


def wrapped(name: str) -> Callable[[nn.Module], nn.Module]:
    """In a class of this name, whose own takes a process group to make."""
    return lambda net: type(name, (nn.Sequential,), {})(align(net, rule="dfa", show=None))  # type: ignore[no-any-return]


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(4)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.compile, "compiled"),
        (lambda net: torch.compile(align(net, rule="dfa", show=None)), "compiled"),
        (compiled_in_place, "compiled"),
        (torch.jit.script, "torch.jit"),
        (lambda net: torch.jit.trace(net, X[:2]), "torch.jit"),
        (lambda net: nn.DataParallel(align(net, rule="dfa", show=None)), "DataParallel"),
        (wrapped("DistributedDataParallel"), "neither clipped nor noised"),
        (wrapped("DifferentiallyPrivateDistributedDataParallel"), "every worker noised by itself"),
        (wrapped("FullyShardedDataParallel"), "no norm of a whole one is known"),
        (wrapped("FSDPModule"), "no norm of a whole one is known"),
        (lambda net: align(nn.DataParallel(net), rule="dfa", show=None), "DataParallel"),
        (lambda net: nn.LazyLinear(4), "lazy LazyLinear"),
        (lambda net: Lazy(), "lazy LazyLinear"),
        (lambda net: net, "align(module"),
        (lambda net: torch.fx.symbolic_trace(net), "align(module"),
        (lambda net: net.forward, "method"),
        (lambda net: "mlp", "str"),
    ],
)
def test_modules_that_cannot_be_made_private_get_one_line(
    wrap: Callable[[nn.Module], Any], words: str
) -> None:
    net = plain()
    refused(lambda: PrivacyEngine().make_private(**arguments(net, wrap(net))), words)


# ---- gradient scalers


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_is_refused_in_one_line(unscaled: bool) -> None:
    module, optimizer, loader = made()
    scaler = torch.amp.GradScaler("cpu")
    x, y = next(iter(loader))
    scaler.scale(cross_entropy(module(x), y)).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    refused(lambda: scaler.step(optimizer), "GradScaler", "leave it out")


def test_a_gradient_scaler_that_is_switched_off_is_no_harm() -> None:
    module, optimizer, loader = made()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = [p.clone() for p in module.parameters()]
    for x, y in loader:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(module(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert not all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# ---- memory managers


def sizes(loader: Any, step: Callable[[Tensor, Tensor], None]) -> list[int]:
    found = []
    for x, y in loader:
        step(x, y)
        found.append(len(x))
    return found


def test_a_memory_manager_hands_out_parts_and_releases_whole_steps() -> None:
    engine = PrivacyEngine()
    module, optimizer, loader = made(engine, max_physical_batch_size=4)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()

    for size in (4, 7):
        with BatchMemoryManager(
            data_loader=loader, max_physical_batch_size=size, optimizer=optimizer
        ) as parts:
            assert max(sizes(parts, step)) <= 4
    assert engine.ledger is not None
    assert engine.ledger.count() == 2 * len(loader)


@pytest.mark.parametrize(("size", "words"), [(None, "without"), (9, "max_physical_batch_size=9")])
def test_a_memory_manager_that_make_private_was_not_told_of(size: int | None, words: str) -> None:
    _, optimizer, loader = made(max_physical_batch_size=size)
    refused(
        lambda: BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer),
        words, "give make_private max_physical_batch_size=4",
    )  # fmt: skip


def test_a_memory_manager_takes_what_make_private_returned() -> None:
    _, optimizer, loader = made(max_physical_batch_size=4)
    ordinary = DataLoader(TensorDataset(X, Y), batch_size=4)
    for pair in ((ordinary, optimizer), (loader, optimizer.original)):
        refused(
            lambda pair=pair: BatchMemoryManager(
                data_loader=pair[0], max_physical_batch_size=4, optimizer=pair[1]
            ),
            "make_private returned",
        )


def test_opacus_own_memory_manager_is_refused_in_one_line() -> None:
    opacus = pytest.importorskip("opacus.utils.batch_memory_manager")
    _, optimizer, loader = made()

    def enter() -> None:
        with opacus.BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer):
            pass

    refused(enter, "max_physical_batch_size= to make_private", "privacy.BatchMemoryManager")
    refused(lambda: loader.sampler, "max_physical_batch_size")


# ---- checkpoints


def test_a_checkpoint_goes_on_with_weights_optimizer_and_ledger(tmp_path: Path) -> None:
    file, ledger = tmp_path / "run.safetensors", tmp_path / "ledger.sqlite"
    engine = PrivacyEngine(ledger=ledger)
    module, optimizer, loader = made(engine)
    train(module, optimizer, loader)
    engine.save_checkpoint(path=file, module=module, optimizer=optimizer)
    kept = [p.detach().clone() for p in module.parameters()]
    momentum = optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    train(module, optimizer, loader)  # lost: it counts all the same
    engine.close()

    engine = PrivacyEngine(ledger=ledger, resume=True)
    module, optimizer, loader = made(engine)
    engine.load_checkpoint(path=str(file), module=module, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(kept, module.parameters(), strict=True))
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    assert engine.ledger is not None
    assert engine.ledger.count() == 2 * len(loader)
    train(module, optimizer, loader)
    assert engine.ledger.count() == 3 * len(loader)
    assert len(engine.ledger.events(ROW)) == 1


REOPENED = "PrivacyEngine(ledger=FILE, resume=True)"


@pytest.mark.parametrize("document", ["README.md", "docs/threat-model.md"])
def test_the_documents_say_how_a_ledger_is_reopened(document: str) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    assert re.search(r"PrivacyEngine\(ledger=\S+ resume=True\)", text)
    assert "load_checkpoint" in text


def test_a_run_with_a_budget_goes_on_as_the_refusal_says(tmp_path: Path) -> None:
    file, ledger = tmp_path / "run.safetensors", tmp_path / "ledger.sqlite"

    engine = PrivacyEngine(ledger=ledger)
    module, optimizer, loader = with_epsilon(engine, epochs=2)
    train(module, optimizer, loader)
    engine.save_checkpoint(path=file, module=module, optimizer=optimizer)
    engine.close()
    refused(lambda: with_epsilon(PrivacyEngine(ledger=ledger), epochs=2), REOPENED)
    engine = PrivacyEngine(ledger=ledger, resume=True)
    module, optimizer, loader = with_epsilon(engine, epochs=2)
    engine.load_checkpoint(path=file, module=module, optimizer=optimizer)
    assert engine.steps_left() == len(loader)


def test_a_checkpoint_of_another_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    engine = PrivacyEngine(ledger=tmp_path / "one.sqlite")
    module, optimizer, loader = made(engine)
    train(module, optimizer, loader)
    engine.save_checkpoint(path=file, module=module, optimizer=optimizer)
    other = PrivacyEngine(ledger=tmp_path / "two.sqlite")
    module, optimizer, _ = made(other)
    refused(
        lambda: other.load_checkpoint(path=file, module=module, optimizer=optimizer), "newer than", REOPENED
    )
    refused(
        lambda: other.load_checkpoint(path=tmp_path / "none", module=module, optimizer=optimizer),
        "cannot be read",
    )


def test_checkpoints_need_a_ledger_that_is_kept(tmp_path: Path) -> None:
    engine = PrivacyEngine()
    module, optimizer, _ = made(engine)
    for call in (engine.save_checkpoint, engine.load_checkpoint):
        refused(lambda call=call: call(path=tmp_path / "x", module=module, optimizer=optimizer), "in memory")
    kept = PrivacyEngine(ledger=tmp_path / "ledger.sqlite")
    refused(lambda: kept.save_checkpoint(path="x", module=module, optimizer=optimizer), "make_private")
    module, optimizer, _ = made(kept)
    refused(
        lambda: kept.save_checkpoint(path="x", module=module, optimizer=optimizer, checkpoint_dict={}),
        "no argument",
    )
    refused(
        lambda: kept.save_checkpoint(path="x", module=module, optimizer=optimizer.original), "make_private"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"poisson_sampling": "no"}, "poisson_sampling"), ({"poisson_sampling": 1}, "poisson_sampling"),
        ({"release_options": 3}, "release_options"), ({"release_options": ["leverage"]}, "release_options"),
        ({"release": ["digital"]}, "unknown release"), ({"noise_multiplier": torch.ones(3, 3)}, "a Tensor"),
        ({"optimizer": None}, "NoneType"), ({"data_loader": [X]}, "list"), ({"public_size": 2.5}, "public_size"),
    ],
)  # fmt: skip
def test_values_of_another_type_get_one_line(given: dict[str, Any], words: str) -> None:
    refused(lambda: made(**given), words)


def test_the_accountant_of_a_script_points_at_the_ledger() -> None:
    engine = PrivacyEngine()
    made(engine)
    refused(lambda: engine.accountant, "engine.get_epsilon(delta)")
    refused(lambda: setattr(engine, "accountant", None), "accountant")


def test_a_seed_is_a_whole_number() -> None:
    refused(lambda: PrivacyEngine(reproducible_seed="seven"), "reproducible_seed")  # type: ignore[arg-type]
    refused(lambda: PrivacyEngine(reproducible_seed=1.5), "reproducible_seed")  # type: ignore[arg-type]
