"""Workers that own layers train what one process trains, to the bit; what they cannot is refused; none waits in vain.

Two workers (gloo, in processes of their own) go through all scenes in one group, as in test_workers.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st
from processes import together
from safetensors.torch import load_file
from test_workers import command, rank
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.config import merge
from optical_dfa.feedback import RULES, make_rule
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.stages import _dealt
from optical_dfa.networks.building import build
from optical_dfa.training.layers import LayerParallel

RECORDS, BATCHES = 50, 4
FROM_ERROR = ("bdfa", "cdfa", "dfa", "drtp", "sign-dfa", "ssdfa", "ternary")


def made(
    rule: str = "dfa",
    backend: str = "digital",
    optimizer: str = "sgd",
    net: nn.Module | None = None,
    shape: tuple[int, ...] = (64,),
    **options: Any,
) -> tuple[AlignedModule, torch.optim.Optimizer]:
    torch.manual_seed(0)
    if net is None:
        net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 32)),
            *(nn.Tanh(), nn.Linear(32, 10)),
        )
    noise = NoiseGenerator.seeded(0, "device")
    example = torch.zeros(1, *shape)
    aligned = align(
        net, rule=rule, backend=backend, rule_options=options, example=example, noise=noise, show=None
    )
    parameters = aligned.parameters()
    if optimizer == "adam":
        return aligned, torch.optim.Adam(parameters, lr=1e-2)
    return aligned, torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batches(shape: tuple[int, ...] = (64,), **_: Any) -> Iterator[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(3)
    for _ in range(BATCHES):
        yield torch.randn(RECORDS, *shape, generator=drawn), torch.randint(0, 10, (RECORDS,), generator=drawn)


def held(aligned: AlignedModule, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a checkpoint has."""
    state = optimizer.state_dict()["state"]
    kept = {f"{i} {name}": torch.as_tensor(v) for i, entries in state.items() for name, v in entries.items()}
    return {name: value.clone() for name, value in (*aligned.state_dict().items(), *kept.items())}


def by_one_process(**given: Any) -> tuple[dict[str, Tensor], Tensor, list[float]]:
    aligned, optimizer = made(**given)
    losses = []
    for x, y in batches(**given):
        optimizer.zero_grad()
        loss = cross_entropy(aligned(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return held(aligned, optimizer), aligned(x), losses


# ---- scenes of two workers


def by_layers(parts: int, **given: Any) -> Any:
    """What is there after some steps, outputs, losses; and what this worker holds of the others'."""
    aligned, optimizer = made(**given)
    layers = LayerParallel(aligned, optimizer, cross_entropy, parts=parts)
    losses, heard = [], []
    for x, y in batches(**given):
        loss, said = layers.step(x, y, [3 * rank(), 7 - rank()])
        losses.append(loss)
        heard.append(said)
    assert all((loss is None) != layers.stage.last for loss in losses)
    others = [p for name, p in aligned.module.named_parameters() if name not in layers.stage.names]
    foreign = (
        [bool(p.isnan().all()) and p.untyped_storage().nbytes() for p in others],
        any(p in optimizer.state for p in others),
        sum(len(group["params"]) for group in optimizer.param_groups),
    )
    with torch.no_grad():
        output = layers(x)
    with layers.whole():
        whole = held(aligned, optimizer)
    layers.step(x, y)
    matrix = None if aligned.backend is None else aligned.backend.matrix()
    rows = None if matrix is None else len(matrix)
    own = [len(stage.layers) for stage in layers._stages]
    return (
        whole,
        output,
        [None if loss is None else float(loss) for loss in losses],
        heard,
        foreign,
        rows,
        own,
    )


SAME: dict[str, dict[str, Any]] = {
    "digital": {},
    "simulated-opu": {"backend": "simulated-opu"},
    "streamed, adam": {"backend": "streamed", "optimizer": "adam"},
    "widest": {"normalisation": "widest", "slices": "shared"},
}
SIZES = ("--dataset", "digits", "--model", "mlp:24,16", "--batch-size", "300", "--release", "none")
BEGIN = ("train", *SIZES, "--backend", "simulated-opu", "--epochs", "1", "--out")
LAYERS = ("--parallel", "layers", "--micro-batches", "1")
GO_ON = ("train", "--resume", "auto", "--out")


def a_signal(folder: Path) -> Any:
    """Worker 1 is asked to end in its fourth step."""
    step, seen = LayerParallel.step, []

    def counted(self: LayerParallel, *given: Any) -> Any:
        seen.append(1)
        if len(seen) == 4 and rank():
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerParallel, "step", counted)
        return (*command(folder, *BEGIN, "signal", *LAYERS, "--epochs", "9"), len(seen))


def a_worker_is_killed() -> Any:
    aligned, optimizer = made()
    layers = LayerParallel(aligned, optimizer, cross_entropy)
    for number, (x, y) in enumerate(batches()):
        if number == 2 and rank():
            os.kill(os.getpid(), signal.SIGKILL)
        layers.step(x, y)


def refused(**given: Any) -> Any:
    aligned, optimizer = made(**given)
    try:
        LayerParallel(aligned, optimizer, cross_entropy)
    except UsageError as error:
        return str(error)


def unlike(**given: Any) -> Any:
    """What is said at the first step where the last worker has something else."""
    aligned, optimizer = made(**(given if rank() else {}))
    layers = LayerParallel(aligned, optimizer, cross_entropy)
    if rank() and not given:
        with torch.no_grad():
            next(aligned.module.parameters())[0, 0] += 1.0
    try:
        layers.step(*next(batches()))
    except UsageError as error:
        return str(error)


def all_scenes(folder: Path) -> Any:
    found: dict[str, Any] = {name: by_layers(1, **options) for name, options in SAME.items()}
    found["parts"] = by_layers(3)
    found["other weights"], found["other rule"] = unlike(), unlike(rule="sign-dfa")
    found["goes on"] = command(folder, *GO_ON, "run", *LAYERS, "--epochs", "2")
    found["bp"] = command(folder, *BEGIN, "bp", *LAYERS, "--rule", "bp")
    found["signal"] = a_signal(folder)
    (folder / f"scenes {rank()}").write_bytes(pickle.dumps(found))
    return a_worker_is_killed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run that one process began."""
    folder = tmp_path_factory.mktemp("layers")
    code, _, errors = command(folder, *BEGIN, "run")
    assert code == 0, errors
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each of two workers saw; "killed" is what the first did as the other was."""
    killed, gone = together(all_scenes, 2, folder / "together", folder)
    assert gone is None
    found = [pickle.loads((folder / f"scenes {number}").read_bytes()) for number in range(2)]
    found[0]["killed"] = killed
    return found


# ---- what is seen


@pytest.mark.parametrize("scene", list(SAME))
def test_two_workers_train_what_one_process_does_to_the_bit(scene: str, seen: list[dict[str, Any]]) -> None:
    """Weights, optimizer state, description, outputs and losses."""
    state, output, losses = by_one_process(**SAME[scene])
    whole, *_ = seen[0][scene]
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[name], state[name]) for name in state)
    assert seen[1][scene][2] == losses
    for found in seen:
        assert torch.equal(found[scene][1], output)
        assert found[scene][3] == [[3, 7]] * BATCHES  # the greater of both workers' numbers


def test_a_batch_in_parts_differs_by_rounding_alone(seen: list[dict[str, Any]]) -> None:
    state, *_ = by_one_process()
    whole, *_ = seen[0]["parts"]
    weights = [name for name in state if state[name].is_floating_point()]
    assert all(torch.allclose(whole[name], state[name], rtol=0, atol=1e-6) for name in weights)
    assert any(not torch.equal(whole[name], state[name]) for name in weights)  # or parts were not taken


def test_a_worker_holds_its_own_layers_alone(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        *_, (others, kept, trained), rows, own = found["digital"]
        assert set(others) == {4}  # bytes: one number, which is not one
        assert not kept
        assert len(others) + trained == 8
        assert own == [3, 5]
        assert rows == 64  # 40 of its own, or 62, and some that the bits take
        assert found["simulated-opu"][-2] == 40 + 30 + 32  # its noise is of whole frames


def test_a_run_moves_between_one_process_and_workers_that_own_layers(
    folder: Path, seen: list[dict[str, Any]]
) -> None:
    """Begun by one, taken on by two, and again by one: bit for bit the run of one."""
    assert [found["goes on"][0] for found in seen] == [0, 0], seen[0]["goes on"]
    assert "no privacy guarantee" in seen[0]["goes on"][1]
    assert seen[1]["goes on"][1:] == ("", "")
    for name in ("run", "alone"):
        code, _, errors = command(folder, *(GO_ON if name == "run" else BEGIN), name, "--epochs", "3")
        assert code == 0, errors
    one, moved = (load_file(folder / name / "checkpoint.safetensors") for name in ("alone", "run"))
    assert one.keys() == moved.keys()
    assert all(torch.equal(one[name], moved[name]) for name in one)
    rows = [(folder / name / "metrics.jsonl").read_text() for name in ("alone", "run")]
    assert rows[0] == rows[1]


def test_a_signal_to_one_worker_ends_all_at_the_same_step(folder: Path, seen: list[dict[str, Any]]) -> None:
    codes, outputs, errors, steps = zip(*(found["signal"] for found in seen), strict=True)
    assert codes == (143, 143)
    assert outputs == ("", "")
    assert "ended, as worker 1 was asked to; go on with" in errors[0]
    assert errors[1] == ""
    assert steps == (5, 5)  # the fourth was on its way
    code, out, errors = command(folder, *GO_ON, "signal", "--epochs", "2", "--json")
    assert code == 0, errors
    assert json.loads(out)["steps"] == 2 * 5


def test_a_worker_that_is_killed_ends_the_other_in_one_line(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["killed"].startswith("WorkerLostError: another worker is gone (")
    assert "\n" not in seen[0]["killed"]


def test_workers_whose_modules_differ_are_told_so(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        assert "worker 1 has other weights than worker 0" in found["other weights"]
        assert "worker 1 has other rule, points or device than worker 0" in found["other rule"]


def test_a_rule_whose_layers_do_not_learn_apart_is_refused_before_anything_is_written(
    folder: Path, seen: list[dict[str, Any]]
) -> None:
    for found in seen:
        code, _, errors = found["bp"]
        assert code == 2
        assert "error: rule bp does not teach every hidden layer from the output's error alone" in errors
        assert errors.count("\n") == 1
    assert not (folder / "bp").exists()


@pytest.fixture
def two() -> Iterator[None]:
    """A group of which the other worker is not there."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("two")
def test_what_cannot_be_dealt_out_is_refused() -> None:
    tied = nn.Linear(64, 64)
    for given_, words in (
        ({"rule": "dkp"}, "rule dkp does not teach"),
        ({"net": build("gated:16", (64,), 10, 0)}, "layers of GatedNetwork, which is no nn.Sequential"),
        ({"net": nn.Sequential(nn.Linear(64, 10))}, "2 workers for a network of 1 parts that learn apart"),
        (
            {"net": nn.Sequential(tied, nn.Tanh(), tied, nn.Tanh(), nn.Linear(64, 10))},
            "layers of two workers",
        ),
    ):
        line = refused(**given_)
        assert words in line
        assert "\n" not in line
    aligned, optimizer = made()
    assert aligned.backend is not None
    type(aligned.backend).physical = True  # type: ignore[misc]
    try:
        with pytest.raises(UsageError, match="backend digital is one machine"):
            LayerParallel(aligned, optimizer, cross_entropy)
    finally:
        del type(aligned.backend).physical
    aligned.start_capture()
    with pytest.raises(UsageError, match="clipped over all layers"):
        LayerParallel(aligned, optimizer, cross_entropy)


def test_gradients_are_not_for_the_evaluation() -> None:
    layers = LayerParallel(*made(), cross_entropy)
    with pytest.raises(UsageError, match=r"trained by step\(\)"):
        layers(torch.zeros(1, 64))
    with pytest.raises(UsageError, match="parts is 0"):
        LayerParallel(*made(), cross_entropy, parts=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parallel": "layers"}, "release is dark-frame: a record's update is clipped over all layers"),
        ({"parallel": "layers"}, "or add --release none"),
        ({"parallel": "columns"}, "must be one of records, layers"),
        ({"parallel": "layers", "release": "none", "diagnose": True}, "drop one of the two"),
        ({"micro_batches": 2}, "add --parallel layers"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        merge({}, settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_which_rules_let_layers_learn_apart() -> None:
    """As the page says; and what they teach is the same after any forward pass."""
    found = [name for name in RULES.built_in if make_rule(name).from_error]
    assert tuple(found) == FROM_ERROR
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "several-processes.md").read_text()
    assert all(f"`{name}`" in page for name in found)
    error = torch.randn(RECORDS, 10, generator=torch.Generator().manual_seed(1)).softmax(1)
    error -= nn.functional.one_hot(torch.arange(RECORDS) % 10, 10)
    for name in found:
        aligned, _ = made(name)
        taught = []
        for x, _ in batches():
            output = aligned(x)
            roots = [h for _, h in aligned._tape.kept or ()]
            assert roots == []
            output.backward(error / RECORDS)
            taught.append(aligned.module[-1].bias.grad.clone())  # type: ignore[union-attr]
            taught.append(aligned.teach(error / RECORDS, None)[1])
            aligned.zero_grad()
        first = taught[1]
        for signals in taught[1::2]:
            assert all(torch.equal(a, b) for a, b in zip(first, signals, strict=True))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_shares_are_as_equal_as_they_can_be(costs: list[int], data: st.DataObject) -> None:
    """Against all ways to cut the chain."""
    count = data.draw(st.integers(1, len(costs)))
    dealt = _dealt(costs, count)
    assert [i for share in dealt for i in share] == list(range(len(costs)))
    assert all(dealt)
    cuts = ([0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), count - 1))
    best = min(max(sum(costs[a:b]) for a, b in pairwise(cut)) for cut in cuts)
    assert max(sum(costs[i] for i in share) for share in dealt) == best


# ---- longer


def used_twice() -> nn.Module:
    """One layer in two places of the last stage."""
    torch.manual_seed(0)
    tied = nn.Linear(32, 32)
    lower = (nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    return nn.Sequential(*lower, tied, nn.Tanh(), tied, nn.Tanh(), nn.Linear(32, 10))


def chains() -> dict[str, dict[str, Any]]:
    """A rule or a network each, and what it is trained on."""
    return {
        **{name: {"rule": name} for name in FROM_ERROR},
        "cnn": {"net": build("cnn:4,8+16", (1, 8, 8), 10, 0), "shape": (1, 8, 8)},
        "resmlp": {"net": build("resmlp:16,16,16/relu", (64,), 10, 0)},
        "used twice": {"net": used_twice()},
        "embed": {"net": build("embed:4,16,12", (64,), 10, 0, cardinalities=(5, 7) + (0,) * 62)},
    }


def every_chain() -> Any:
    return {name: by_layers(1, **given_)[:2] for name, given_ in chains().items()}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_workers_trains_what_one_does(count: int, tmp_path: Path) -> None:
    """Under every rule that lets layers learn apart, and every kind of network that is a chain."""
    found = together(every_chain, count, tmp_path / "group")
    for name, given_ in chains().items():
        state, output, _ = by_one_process(**given_)
        whole, _ = found[0][name]
        assert all(torch.equal(whole[key], state[key]) for key in state), name
        assert all(torch.equal(each[name][1], output) for each in found)
