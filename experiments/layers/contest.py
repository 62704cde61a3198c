"""Two workers, a thread each, which take turns at training steps of the same network: of direct feedback and of
backpropagation, each by one process (the first, while the other waits) and by both.

Printed by the first, one JSON object a sample.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.functional import cross_entropy

from optical_dfa.aligning import align
from optical_dfa.feedback.stages import Passed, stages
from optical_dfa.networks.building import mlp
from optical_dfa.training.layers import LayerParallel
from privacy.workers import Workers, joined

INPUTS: Final = 784
CLASSES: Final = 10
PARTS: Final = (1, 2, 4)
STEPS: Final = 2  # timed of a sample, after one that fills the pipeline
ROUNDS: Final = 4
RATE: Final = 0.01


class Size(NamedTuple):
    """Of the network, and of a batch."""

    layers: int
    width: int
    batch: int


WHOLE: Final = Size(6, 4096, 512)
QUICK: Final = Size(3, 128, 64)


class Contestant(ABC):
    """A way to train the network.

    Attributes:
        rule, workers, parts: dfa or bp, by how many workers, in how many parts of a batch.
        spans: (what, when it began, when it ended) of all that this worker computed.
    """

    def __init__(self, rule: str, workers: int, parts: int) -> None:
        self.rule, self.workers, self.parts = rule, workers, parts
        self.spans: list[tuple[str, float, float]] = []

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one."""

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """Do what is to be done, and note when."""
        began = time.monotonic()
        done = work()
        self.spans.append((what, began, time.monotonic()))
        return done


class OneProcess(Contestant):
    """The usual loop; `module` is aligned under dfa, plain under bp."""

    def __init__(self, rule: str, module: nn.Module) -> None:
        super().__init__(rule, 1, 1)
        self.module, self.optimizer = module, sgd(module)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        output = self.timed("forward", lambda: self.module(x))
        self.timed("teach", lambda: cross_entropy(output, y).backward())  # type: ignore[no-untyped-call]
        self.timed("update", self.optimizer.step)


class ByLayers(Contestant):
    """The workers own layers, under direct feedback."""

    def __init__(self, layers: _Noted, parts: int) -> None:
        super().__init__("dfa", 2, parts)
        self.layers = layers

    def step(self, x: Tensor, y: Tensor) -> None:
        self.layers.parts, self.layers.timed = self.parts, self.timed
        self.layers.step(x, y)


class _Noted(LayerParallel):
    """Says when it computes."""

    timed: Callable[[str, Callable[[], Any]], Any]

    def _forward(self, given: Tensor) -> Passed:
        made: Passed = self.timed("forward", lambda: super(_Noted, self)._forward(given))
        return made

    def _teach(self, *given: Any) -> None:
        self.timed("teach", lambda: super(_Noted, self)._teach(*given))

    def _update(self) -> None:
        self.timed("update", super()._update)


class Pipeline(Contestant):
    """Backpropagation through torch's pipeline, GPipe's schedule: all parts forward, then all of them back."""

    def __init__(self, module: nn.Module, parts: int, first: bool) -> None:
        super().__init__("bp", 2, parts)
        self.first, self.optimizer = first, sgd(module)
        noted = self.timed

        class Stage(PipelineStage):
            def forward_one_chunk(self, *given: Any, **named: Any) -> Any:
                return noted("forward", lambda: super(Stage, self).forward_one_chunk(*given, **named))

            def backward_one_chunk(self, *given: Any, **named: Any) -> Any:
                return noted("teach", lambda: super(Stage, self).backward_one_chunk(*given, **named))

        stage = Stage(module, int(not first), 2, torch.device("cpu"))
        self.schedule = ScheduleGPipe(stage, parts, loss_fn=cross_entropy)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        if self.first:
            self.schedule.step(x)
        else:
            self.schedule.step(target=y, losses=[])
        self.timed("update", self.optimizer.step)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=RATE)


def contestants(size: Size, workers: Workers) -> list[Contestant]:
    """All of them; those of one process on the first worker alone."""

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return mlp((INPUTS,), CLASSES, [size.width] * size.layers, nn.Tanh)

    def aligned() -> Any:
        return align(network(), rule="dfa", backend="digital", show=None)

    own = aligned()
    found: list[Contestant] = []
    if workers.first:
        found += [OneProcess("dfa", aligned()), OneProcess("bp", network())]
    cuts = [len(stage.layers) for stage in stages(own, workers.count)]
    begins = sum(cuts[: workers.rank])
    half = network()[begins : begins + cuts[workers.rank]]
    layers = _Noted(own, sgd(own), cross_entropy)
    return [
        *found,
        *(ByLayers(layers, parts) for parts in PARTS),
        *(Pipeline(half, parts, workers.first) for parts in PARTS),
    ]


class Sent:
    """Bytes that this worker sent: to the next or the one before, and the error at the output, to all."""

    def __init__(self) -> None:
        self.bytes = {"forward": 0, "back": 0, "error": 0}

    @contextmanager
    def counting(self, rank: int) -> Iterator[None]:
        """Count what torch.distributed is given meanwhile."""
        isend, broadcast = distributed.isend, distributed.broadcast

        def counted(tensor: Tensor, *given: Any, **named: Any) -> Any:
            self.bytes["back" if rank else "forward"] += tensor.numel() * tensor.element_size()
            return isend(tensor, *given, **named)

        def handed_out(tensor: Tensor, src: int, **named: Any) -> Any:
            if src == rank:
                self.bytes["error"] += tensor.numel() * tensor.element_size()
            return broadcast(tensor, src, **named)

        places: list[Any] = [distributed, distributed_c10d]
        for place in places:
            place.isend, place.broadcast = counted, handed_out
        try:
            yield
        finally:
            for place in places:
                place.isend, place.broadcast = isend, broadcast


def sampled(contestant: Contestant, x: Tensor, y: Tensor, rank: int) -> dict[str, Any]:
    """What this worker saw of `STEPS` steps: when it began and ended them, processor time, bytes, spans."""
    contestant.step(x, y)
    contestant.spans.clear()
    began, busy, sent = time.monotonic(), time.process_time(), Sent()
    with sent.counting(rank):
        for _ in range(STEPS):
            contestant.step(x, y)
    return {
        "began": began,
        "ended": time.monotonic(),
        "cpu": (time.process_time() - busy) / STEPS,
        "bytes": {name: count // STEPS for name, count in sent.bytes.items()},
        "spans": list(contestant.spans),
    }


def joint(contestant: Contestant, seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One sample of all its workers: a step's seconds, processor seconds and bytes, and which share of it they idled.

    A step takes as long as from one's end to the next one's, for the worker that ends it last.
    """
    last = max(seen, key=lambda each: each["ended"])
    seconds = (last["ended"] - last["began"]) / STEPS
    busy = sum(end - begin for each in seen for _, begin, end in each["spans"]) / STEPS
    start = min(each["began"] for each in seen)
    return {
        "rule": contestant.rule,
        "workers": contestant.workers,
        "parts": contestant.parts,
        "seconds": seconds,
        "cpu": sum(each["cpu"] for each in seen),
        "idle": 1 - busy / (seconds * len(seen)),
        "bytes": {name: sum(each["bytes"][name] for each in seen) for name in seen[0]["bytes"]},
        "spans": [
            [worker, what, round(begin - start, 6), round(end - start, 6)]
            for worker, each in enumerate(seen)
            for what, begin, end in each["spans"]
        ],
    }


def contest(size: Size, rounds: int, show: Callable[[dict[str, Any]], None]) -> None:
    """All contestants in turn, round by round."""
    workers = Workers.here()
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(size.batch, INPUTS, generator=drawn)
    y = torch.randint(CLASSES, (size.batch,), generator=drawn)
    found = contestants(size, workers)
    alone = [each for each in found if each.workers == 1]
    both = [each for each in found if each.workers == 2]
    for each in (*alone, *both):  # memory that is new makes a first step longer
        each.step(x, y)
    for number in range(rounds):
        for each in alone:
            show({"round": number, **joint(each, [sampled(each, x, y, 0)])})
        for each in both:
            workers.meet()
            seen = workers.gather(sampled(each, x, y, workers.rank))
            if workers.first:
                show({"round": number, **joint(each, seen)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    size, rounds = (QUICK, 1) if parser.parse_args().quick else (WHOLE, ROUNDS)
    torch.set_num_threads(1)
    with joined():
        contest(size, rounds, lambda sample: print(json.dumps(sample), flush=True))


if __name__ == "__main__":
    main()
