"""The next word from the four before it: a text in numbers, a network, and how one device teaches it."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.harness.fresh import answer_of
from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.bench.memory import peak

CLASSES: Final = 50_000  # a public vocabulary: words that the text does not use are classes as well
CONTEXT: Final = 4
EMBEDDING: Final = 64
HIDDEN: Final = (2048, 256)
BATCH: Final = 128
STEPS: Final = 150
LEARNING_RATE: Final = 1e-3
TEST_PART: Final = 10  # the last 1/10
TESTED: Final = 2048  # records of it
_WORD: Final = re.compile(r"\w+|[^\w\s]")


class Way(NamedTuple):
    """How hidden layers are taught."""

    rule: str
    backend: str


WAYS: Final = (
    Way("dfa", "digital"),
    Way("dfa", "streamed"),
    Way("dfa", "structured"),
    Way("shallow", "digital"),
    Way("bp", "digital"),
)


class Records(NamedTuple):
    """Windows of a text: contexts, shape (m, CONTEXT), and the word after each, shape (m,).

    Attributes:
        known: different words that the text has.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    known: int


def records(text: str) -> Records:
    """The text's words, in lower case, and its punctuation marks, numbered as they appear.

    Raises:
        UsageError: the text has more different words than there are classes, or too few to test on.
    """
    numbers: dict[str, int] = {}
    places = torch.tensor(
        [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(text.lower())], dtype=torch.int64
    )
    if len(numbers) > CLASSES or len(places) < 100 * CONTEXT:
        raise UsageError(
            f"the text has {len(numbers)} different words of {len(places)}; it must have {100 * CONTEXT} or more, at "
            f"most {CLASSES} of them different"
        )
    windows = places.unfold(0, CONTEXT + 1, 1)
    cut = len(windows) - len(windows) // TEST_PART
    train, test = windows[:cut], windows[cut:][:TESTED]
    return Records((train[:, :-1], train[:, -1]), (test[:, :-1], test[:, -1]), len(numbers))


def network() -> nn.Sequential:
    """Embedded words side by side, two hidden layers of tanh, logits of every class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(CLASSES, EMBEDDING),
            nn.Flatten(),
            nn.Linear(CONTEXT * EMBEDDING, HIDDEN[0]),
            nn.Tanh(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.Tanh(),
            nn.Linear(HIDDEN[1], CLASSES),
        )


def trained(way: Way, found: Records) -> dict[str, Any]:
    """Losses on the test records in nats a word, before and after; processor seconds a step; and MiB by which aligning
    and training raise the process's memory."""
    net = network()
    x, y = found.train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    before, seconds = _loss(net, found.test), math.nan

    def train() -> None:
        nonlocal seconds
        module = align(net, rule=way.rule, backend=way.backend, seed=0, example=x[:1], show=None)
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
        started = time.process_time()
        for step in range(STEPS):
            chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
            optimizer.zero_grad()
            loss: Tensor = cross_entropy(module(x[chosen]), y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds = (time.process_time() - started) / STEPS

    risen = peak(train)
    return {
        **way._asdict(),
        "before": before,
        "after": _loss(net, found.test),
        "seconds": seconds,
        "peak": risen,
    }


def _loss(net: nn.Module, records: tuple[Tensor, Tensor]) -> float:
    contexts, following = records
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(contexts), BATCH):
            part = slice(start, start + BATCH)
            total += float(cross_entropy(net(contexts[part]), following[part], reduction="sum"))
    return total / len(contexts)


def in_a_fresh_process(way: Way, text: Path) -> dict[str, Any]:
    """`trained` on one thread, where nothing was trained before, on a file's text."""
    return answer_of("experiments.vocabulary.words", *way, str(text))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rule, backend, file = sys.argv[1:]
    print(json.dumps(trained(Way(rule, backend), records(Path(file).read_text(encoding="utf-8")))))
