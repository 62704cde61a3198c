"""Training in several processes that own layers: direct feedback's own parallelism, over torch.distributed.

A step: what the layers put out goes forward from worker to worker, a part of the batch at a time; the last one forms
the error of each part at the output and hands it out to all; from it every worker teaches its own layers, with
no backward pass from one to another, and begins its next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noise_models.errors import UsageError
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.stages import Passed, stages
from optical_dfa.feedback.state import components
from optical_dfa.training.holdings import Holdings
from privacy.workers import Handed, Workers, bits


class LayerParallel(nn.Module):
    """An aligned chain of layers, whose stages the processes of torch.distributed's default group train together.

    Every process makes the same aligned module and optimizer, over all parameters, and loads what is to be loaded. From
    the first `step` on it holds parameters, optimizer state and feedback matrices of its own stage alone (the others'
    parameters are NaN); `whole` brings them together. Called, without gradients, it evaluates the network. With one
    part a step the weights are those of one process, to the bit.

    A layer that draws (dropout) draws from its own process's generator, and batch normalisation normalises parts.

    Attributes:
        aligned: the whole module.
        optimizer: the given one.
        stage: of this process.
        parts: of a batch, that are on their way at the same time.
    """

    def __init__(
        self,
        aligned: AlignedModule,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        parts: int | None = None,
    ) -> None:
        """
        Args:
            aligned: an nn.Sequential under a rule that teaches each layer from the output's error alone.
            optimizer: over its parameters, of torch's kind: a parameter's state is of tensors and numbers.
            loss: of (outputs, targets), one number; it averages over the records, or adds up, as `align` was told.
            parts: of a batch; None is as many as processes, with which none of them waits for another.
        Raises:
            UsageError: what `stages` refuses, a private module, a device that is one machine, or no parts.
        """
        super().__init__()
        if parts is not None and parts < 1:
            raise UsageError(f"parts is {parts}; a batch has at least 1")
        self.workers = Workers.here()
        device = aligned.backend
        if aligned._capture is not None:
            raise UsageError(
                "the module is private: a record's update is clipped over all layers, which no worker has; use one "
                "process, or share the records out (torchrun without --parallel layers)"
            )
        if device is not None and device.physical and self.workers.count > 1:
            raise UsageError(
                f"backend {device.name} is one machine, which {self.workers.count} workers cannot each use; use a "
                "computed or simulated one, or one process"
            )
        self._stages = stages(aligned, self.workers.count)
        self.stage = self._stages[self.workers.rank]
        self.aligned, self.optimizer, self.loss = aligned, optimizer, loss
        self.parts = self.workers.count if parts is None else parts
        self._holdings = Holdings(aligned.module, optimizer, self._stages, self.workers)
        self._alone = self.workers.count == 1  # nothing to leave to others

    # ---- a step

    def step(self, x: Tensor, y: Tensor, said: Sequence[int] = ()) -> tuple[Tensor | None, list[int]]:
        """Take one training step.

        Args:
            x, y: the batch, records first; of `x` the first worker needs the values, of `y` the last, others their
                numbers of records alone.
            said: whole numbers, as many on every worker.
        Returns:
            the loss, on the last worker; and the greatest of all workers' numbers, heard by all at the same step.
        Raises:
            WorkerLostError: another one is gone.
            UsageError: errors at the output that the rule cannot read; at the first step, workers whose modules differ.
        """
        self._settle()
        self.optimizer.zero_grad()
        workers, stage, records = self.workers, self.stage, len(x)
        sent: list[Handed] = []
        agreed = self._agreed(said, sent) if said else None
        taught: list[tuple[Passed, Handed, Tensor | None]] = []
        losses: list[Tensor] = []
        for given, targets in zip(self._inputs(x), torch.split(y, self._sizes(records)), strict=True):
            passed = self._forward(given.wait())
            grad, error = None, self._unknown_error(targets)
            if stage.last:
                loss, grad = self._gradient(passed.output, targets, records)
                error = self._error(grad, records)
                losses.append(loss)
            else:
                sent.append(workers.pass_on(passed.output, stage.number + 1))
            taught.append((passed, workers.spread(error, self._end), grad))
        for passed, handed, grad in taught:
            self._teach(passed, handed.wait(), self._averaged(records), grad)
        self._update()
        for each in sent:
            each.wait()
        heard = [] if agreed is None else agreed.wait().tolist()
        return (torch.stack(losses).sum() if losses else None), heard

    def _agreed(self, said: Sequence[int], sent: list[Handed]) -> Handed:
        """The greatest of all workers' numbers: they go forward ahead of the batch, and back with its error."""
        heard, number = torch.tensor(said, dtype=torch.int64), self.stage.number
        if number:
            heard = torch.maximum(heard, self.workers.take(heard.clone(), number - 1).wait())
        if not self.stage.last:
            sent.append(self.workers.pass_on(heard, number + 1))
        return self.workers.spread(heard, self._end)

    def _forward(self, given: Tensor) -> Passed:
        return self.stage.forward(given)

    def _teach(self, passed: Passed, error: Tensor, records: int, grad: Tensor | None) -> None:
        self.stage.teach(passed, error, records, grad)

    def _update(self) -> None:
        self.optimizer.step()

    def _gradient(self, output: Tensor, targets: Tensor, records: int) -> tuple[Tensor, Tensor]:
        """Of a part's outputs: its share of the batch's loss, and that one's gradient."""
        leaf = output.detach().requires_grad_()
        loss = self.loss(leaf, targets)
        if self._averaged(records) != 1 and len(targets) != records:
            loss = loss * (len(targets) / records)
        (grad,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), grad

    def _error(self, grad: Tensor, records: int) -> Tensor:
        """Of single records, a row each (or each position): a mean over the batch is undone."""
        averaged = self._averaged(records)
        error = grad if averaged == 1 else grad * averaged
        rows = error.reshape(-1, components(error)).to(self._error_type)
        if self.aligned.points:
            self.aligned.rule.check_error(rows)
        return rows

    def _unknown_error(self, targets: Tensor) -> Tensor:
        """Of its shape and type."""
        shape = self._stages[-1].output.shape or (1,)
        return torch.empty(
            len(targets) * math.prod(shape[:-1]), shape[-1], dtype=self._error_type, device=targets.device
        )

    def _averaged(self, records: int) -> int:
        """Over how many records the loss averages."""
        return records if self.aligned.loss_reduction == "mean" else 1

    @property
    def _error_type(self) -> torch.dtype:
        given = self._stages[-1].output.dtype
        return given if given in (torch.float32, torch.float64) else torch.float32

    @property
    def _end(self) -> int:
        """The worker that has the network's output."""
        return self.workers.count - 1

    def _sizes(self, records: int) -> list[int]:
        """Records of each part of a batch, as equal as can be."""
        parts = min(self.parts, max(1, records))
        return [records * (n + 1) // parts - records * n // parts for n in range(parts)]

    def _inputs(self, x: Tensor) -> list[Handed]:
        """What the stage is given of each part: the records, or what the stage before passes on."""
        sizes, number = self._sizes(len(x)), self.stage.number
        if number == 0:
            return [Handed(None, part, x.device) for part in torch.split(x, sizes)]
        before = self._stages[number - 1].output
        return [
            self.workers.take(
                torch.empty(size, *before.shape, dtype=before.dtype, device=x.device), number - 1
            )
            for size in sizes
        ]

    # ---- without gradients

    def forward(self, x: Tensor) -> Tensor:
        """The network's output, on every worker.

        Args:
            x: as for `step`.
        Raises:
            UsageError: gradients are enabled, which are formed by `step`.
            WorkerLostError: another worker is gone.
        """
        if torch.is_grad_enabled():
            raise UsageError(
                "layers of several processes are trained by step(); evaluate under torch.no_grad()"
            )
        found, sent = [], []
        for given in self._inputs(x):
            found.append(self.stage.evaluate(given.wait()))
            if not self.stage.last:
                sent.append(self.workers.pass_on(found[-1], self.stage.number + 1))
        end = self._stages[-1].output
        whole = (
            torch.cat(found)
            if self.stage.last
            else torch.empty(len(x), *end.shape, dtype=end.dtype, device=x.device)
        )
        output = self.workers.spread(whole, self._end).wait()
        for each in sent:
            each.wait()
        return output

    # ---- whose is what

    def _settle(self) -> None:
        """Leave to the others what is theirs."""
        if self._alone:
            return
        weights = bits([*self.aligned.module.parameters(), *self.aligned.module.buffers()])
        said = self.workers.gather([weights, self.aligned.describe()])
        other = next((number for number, each in enumerate(said) if each != said[0]), None)
        if other is not None:
            what = "weights" if said[other][1] == said[0][1] else "rule, points or device"
            raise UsageError(
                f"worker {other} has other {what} than worker 0; make the module alike on all workers, from the same "
                "seeds"
            )
        self._alone = True
        self._holdings.leave_others()
        self.stage.keep_own_feedback()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Module and optimizer are whole on the first worker inside, as one process has them; for all workers at once.

        Raises:
            WorkerLostError: another worker is gone.
        """
        if not self._alone or self.workers.count == 1:
            yield
            return
        self._holdings.collect()
        try:
            yield
        finally:
            self._holdings.leave_others()
