"""No message of a private run carries a figure of its records: a refusal is an observable that nobody noises."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import optical_dfa
import privacy
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.digital import DigitalBackend
from privacy.engine import PrivacyEngine
from privacy.releases.clipped import record_cap, refuse_excess

# What speaks while a private batch is handed out.
SPOKEN = [
    *(
        Path(privacy.__file__).parent / name
        for name in ("engine.py", "optimizer.py", "sampling.py", "records.py")
    ),
    *(Path(privacy.__file__).parent / name for name in ("arguments.py", "empty_batch.py", "fixed.py")),
    *(Path(privacy.__file__).parent / "releases").glob("*.py"),
    *(Path(privacy.__file__).parent / "contributions").glob("*.py"),
    *(
        path
        for path in (Path(optical_dfa.__file__).parent / "capture").rglob("*.py")
        if path.name not in ("probing.py", "trying.py")  # which see random records alone
    ),
    Path(optical_dfa.__file__).parent / "backends" / "base.py",
]
# Lists that are as long as the code says, not as the batch is.
PUBLIC = {"operator_norms", "stds", "layers", "self.layers", "self.hidden", "self.uses", "called"}


def told(path: Path) -> list[str]:
    """What the file's messages fill in that counts something: `len(x)`, or a shape other than a record's own."""
    found = []
    for raised in ast.walk(ast.parse(path.read_text())):
        if not isinstance(raised, ast.Raise | ast.Call) or (
            isinstance(raised, ast.Call) and "warn" not in ast.unparse(raised.func)
        ):
            continue
        for part in ast.walk(raised):
            if not isinstance(part, ast.FormattedValue):
                continue
            text = ast.unparse(part.value)
            counts = [name for name in re.findall(r"\blen\(([\w.]+)", text) if name not in PUBLIC]
            if counts or re.search(r"\.shape(?!\[1)|\.numel\(|\.records\b|_records\b", text):
                found.append(f"{path.name}: {text}")
    return found


@pytest.mark.parametrize("path", SPOKEN, ids=lambda path: path.name)
def test_no_message_fills_in_the_size_of_a_batch(path: Path) -> None:
    assert told(path) == []


def test_the_search_for_sizes_finds_them(tmp_path: Path) -> None:
    """As messages of this project once were."""
    for number, message in enumerate(
        [
            'f"a step has {len(errors)} records"',
            'f"of shape {tuple(e.shape)}"',
            'f"{x.shape[0]} rows"',
            'f"{batch.records} here"',
        ]
    ):
        file = tmp_path / f"said_{number}.py"
        file.write_text(f"def f(errors, e, x, batch):\n    raise ValueError({message})\n")
        assert len(told(file)) == 1
    file = tmp_path / "public.py"
    file.write_text('def f(p, cap):\n    raise ValueError(f"{p.shape[1:]} of {cap}")\n')
    assert told(file) == []


def numbers(text: str) -> set[int]:
    return {int(digits) for digits in re.findall(r"\d+", text)}


def test_a_step_that_is_too_large_says_only_what_is_public() -> None:
    cap = record_cap(8.0)
    said = []
    for records in (cap + 1, cap + 17, 4321):
        with pytest.raises(UsageError) as error:
            refuse_excess(records, cap, 8.0)
        said.append(str(error.value))
    assert len(set(said)) == 1
    assert numbers(said[0]) <= {8}


def test_a_device_does_not_count_the_rows_it_refuses() -> None:
    device = DigitalBackend(4, 6, seed=0, noise=NoiseGenerator.secure("unused"))
    said = set()
    for rows in (37, 1234):
        for given in (torch.ones(rows, 5), torch.ones(rows, 4, dtype=torch.float16), torch.ones(rows, 4, 1)):
            with pytest.raises(UsageError) as error:
                device.project(given)
            said.add(str(error.value))
    assert len(said) == 3
    assert not {37, 1234} & {number for text in said for number in numbers(text)}


def test_a_public_size_does_not_give_the_real_one_away() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    x, y = torch.ones(4321, 5), torch.zeros(4321, dtype=torch.long)
    with pytest.raises(UsageError, match="public size is 40") as error:
        PrivacyEngine().make_private(
            module=align(net, rule="dfa", show=None), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=8), noise_multiplier=1.0, max_grad_norm=0.5,
            public_size=40,
        )  # fmt: skip
    assert 4321 not in numbers(str(error.value))


def misuses(optimizer: Any, loader: Any, module: Any, x: Tensor, y: Tensor) -> list[Any]:
    return [
        optimizer.step,  # no backward pass
        lambda: next(iter(loader)),
        lambda: optimizer.step(lambda: 0.0),
        lambda: setattr(loader, "current", None),
        lambda: (cross_entropy(module(x), y).backward(), net_penalty(module), optimizer.step()),
    ]


def net_penalty(module: nn.Module) -> None:
    torch.stack([p.square().sum() for p in module.parameters()]).sum().backward()


def test_refusals_of_a_loop_do_not_depend_on_the_batch() -> None:
    """The same misuse of batches of different sizes is refused in the same words."""
    x, y = torch.randn(600, 5), torch.zeros(600, dtype=torch.long)
    said: list[list[str]] = []
    for _ in range(3):
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        module, optimizer, loader = PrivacyEngine().make_private(
            module=align(net, rule="dfa", show=None), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=150), noise_multiplier=1.0, max_grad_norm=0.5,
        )  # fmt: skip
        batch = next(iter(loader))
        said.append([])
        for misuse in misuses(optimizer, loader, module, *batch):
            with pytest.raises(UsageError) as error:
                misuse()
            said[-1].append(str(error.value))
            assert len(batch[0]) not in numbers(str(error.value))
    assert said[0] == said[1] == said[2]
