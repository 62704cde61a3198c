"""Learning from a stream, a few records at a time: predict first, then learn from the frame and from some of the past.

[R] The online use of direct feedback of Han and Yoo 2019 (arXiv 1901.01986), who updated the fully connected part of a
tracker frame by frame, reconstructed from the abstract; no code of the authors is known. Any rule of `align` may teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.aligning import align


class Reservoir:
    """A uniform sample of fixed size, without replacement, of all records so far (Vitter 1985, Algorithm R).

    Attributes:
        size: records kept at most.
        seen: records offered so far.
    """

    def __init__(self, size: int, seed: int) -> None:
        """
        Args:
            size: 0 keeps nothing.
            seed: of what is kept and of what is drawn.
        """
        self.size = size
        self.seen = 0
        self._kept: tuple[Tensor, Tensor] | None = None
        self._keeping = torch.Generator().manual_seed(derive_seed(seed, "reservoir"))
        self._drawing = torch.Generator().manual_seed(derive_seed(seed, "replay"))

    def __len__(self) -> int:
        return min(self.size, self.seen)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer records of shapes (m, ...) and (m,): the n-th of all is kept with probability size/n."""
        if self._kept is None:
            self._kept = x.new_empty(self.size, *x.shape[1:]), y.new_empty(self.size)
        counts = torch.arange(self.seen + 1, self.seen + len(x) + 1, dtype=torch.float64)
        places = (counts * torch.rand(len(x), generator=self._keeping, dtype=torch.float64)).long()
        filling = counts <= self.size
        places = torch.where(filling, counts.long() - 1, places)
        for record in (places < self.size).nonzero().flatten().tolist():  # in order: a later one may push out
            for kept, given in zip(self._kept, (x, y), strict=True):
                kept[places[record]] = given[record]
        self.seen += len(x)

    def draw(self, records: int) -> tuple[Tensor, Tensor] | None:
        """So many of the kept records at random, or all where there are fewer; None where there are none."""
        if self._kept is None or not len(self) or not records:
            return None
        chosen = torch.randperm(len(self), generator=self._drawing)[:records]
        return self._kept[0][chosen], self._kept[1][chosen]


class OnlineLearner:
    """A classifier that learns as it goes; everything it does follows from one seed, its module and its stream.

    Attributes:
        aligned: the module under its rule.
        reservoir: its memory.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rule: str = "dfa",
        lr: float = 0.03,
        momentum: float = 0.9,
        steps: int = 3,
        replay: int = 32,
        reservoir: int = 512,
        seed: int = 0,
        example: Tensor | None = None,
        rule_options: Mapping[str, Any] | None = None,
        backend: str = "digital",
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            module: logits from records; it is trained in place.
            lr, momentum: of SGD.
            steps: taken for each frame.
            replay: earlier records that join the frame's own in every step.
            reservoir: earlier records kept, a uniform sample of all.
            seed: of feedback, memory and random masks.
            rule, example, rule_options, backend, backend_options: as for `align`.
        Raises:
            UsageError: a size or rate that cannot be, or what `align` refuses.
        """
        for name, value, least in (("steps", steps, 1), ("replay", replay, 0), ("reservoir", reservoir, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} is {value!r}; it must be a whole number from {least}")
        if not 0 < lr < float("inf") or not 0 <= momentum < 1:
            raise UsageError(
                f"lr is {lr!r} and momentum {momentum!r}; they must be above 0, and from 0 to below 1"
            )
        self.aligned = align(
            module,
            rule=rule,
            backend=backend,
            example=example,
            seed=seed,
            rule_options=rule_options,
            backend_options=backend_options,
            show=None,
        )
        self.steps = steps
        self.replay = replay
        self.reservoir = Reservoir(reservoir, seed)
        self._seed = seed
        self._frames = 0
        self._optimizer = torch.optim.SGD(self.aligned.parameters(), lr=lr, momentum=momentum)

    def predict(self, x: Tensor) -> Tensor:
        """Logits, shape (m, classes); nothing changes."""
        self.aligned.eval()
        with torch.no_grad():
            logits: Tensor = self.aligned(x)
        return logits

    def learn(self, x: Tensor, y: Tensor, steps: int | None = None) -> None:
        """Take steps on the frame's records beside earlier ones, then offer the frame's to the reservoir.

        Args:
            x, y: records of the frame, shapes (m, ...) and (m,); none is a frame without any.
            steps: for this frame, where not the usual number.
        Raises:
            UsageError: not one label a record.
        """
        if y.shape != (len(x),):
            raise UsageError(
                f"a frame has {len(x)} records and labels of shape {tuple(y.shape)}; give one a record"
            )
        self.aligned.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, f"masks of frame {self._frames}"))
            for _ in range(self.steps if steps is None else steps):
                earlier = self.reservoir.draw(self.replay)
                records, labels = x, y
                if earlier is not None:
                    records, labels = torch.cat([x, earlier[0]]), torch.cat([y, earlier[1]])
                if not len(records):
                    break
                self._optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(self.aligned(records), labels))
                self._optimizer.step()
        self.reservoir.add(x, y)
        self._frames += 1

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Prequential: the logits of a frame's records before anything is learned from them; then learn."""
        logits = self.predict(x)
        self.learn(x, y)
        return logits
