"""Forward-Forward (Hinton 2022, arXiv 2212.13345): each layer tells records with their label from ones with another.

    x+ = x with onehot(t) written over its first c numbers,    x- likewise with another label, drawn evenly
    G_l = mean_j h_{l,j}^2,    L_l = log(1 + exp(theta - G_l(x+))) + log(1 + exp(G_l(x-) - theta))

Each layer descends its own L_l, its input taken as given. The output layer learns from the exact error of the record as
it is, which is the paper's quick way to classify: a softmax of the hidden activities, without trying every label.
Published (MNIST, four layers of 2000 ReLU): 1.36 % errors with labels in the input, trying every label.

What the next layer reads must not have the goodness as its length, or there is nothing left for it to learn: put a
normalisation (`nn.LayerNorm`) after each activation. The mean of squares in place of their sum is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

from noise_models.errors import UsageError
from noise_models.places import RandomState
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.feedback.rules.drtp import check_targets, onehot_targets
from optical_dfa.feedback.state import FeedbackState, GradientState, Placement


@RuleCard(
    summary="Forward-Forward (forward passes over records with their label and with another; no backward pass)",
    projects=False,
    refused=Refusal.OWN_PASSES,
)
class ForwardForward(Rule):
    """`forward-forward`: h_l is a feedback point's output.

    The target t is read off the error at the output, as `drtp` does and for the same losses; a record without one
    teaches nothing. A step makes the pass that the output layer learns from again, and two more.
    """

    name = "forward-forward"
    requires = frozenset({Requires.ROOT_ERROR, Requires.SECOND_FORWARD})

    def __init__(self, threshold: float = 0.5, label: float = 1.0) -> None:
        """
        Args:
            threshold: theta, positive; below 1 for units that do not leave -1 to 1.
            label: the number that is written for the label (the others are 0): about the largest of an input.
        Raises:
            UsageError: an option out of its range.
        """
        for option, value in (("threshold", threshold), ("label", label)):
            if not 0 < value < math.inf:
                raise UsageError(f"rule option {option}={value!r}: it must be a positive number")
        self.threshold, self.label = float(threshold), float(label)

    def state(self, placed: Placement) -> FeedbackState:
        example, c = placed.example, placed.components
        if len(example) != 1 or not example[0].is_floating_point() or placed.output.ndim > 2 or c < 2:
            raise UsageError(
                f"rule {self.name} writes labels into the input: it takes modules of one floating-point input and one "
                "output a record, of two components or more; use rule mono-forward"
            )
        if example[0][0].numel() < c:
            raise UsageError(
                f"rule {self.name} writes one of {c} labels over an input of {example[0][0].numel()} numbers; give it "
                f"{c} or more"
            )
        return ForwardForwardState(self, placed)

    def check_error(self, error: Tensor) -> None:
        check_targets(error, self.name)


class ForwardForwardState(GradientState):
    """Draws the wrong labels."""

    extra_passes = 3

    def __init__(self, rule: ForwardForward, placed: Placement) -> None:
        super().__init__(placed.points, placed.seed)
        self.rule = rule

    def observe(self, passed: ForwardPass) -> tuple[ForwardPass, RandomState, Tensor]:
        """The pass, torch's random state before it, and how far each record's wrong label is from its own."""
        if len(passed.args) != 1 or passed.kwargs:
            raise UsageError(f"rule {self.rule.name} takes the input as the module's one positional argument")
        output = passed.output
        stream = self.draws()
        self.get_buffer("passes").add_(1)
        steps = torch.randint(1, output.shape[1], (len(output),), generator=stream).to(output.device)
        return passed, self._random or RandomState(), steps

    def teach(
        self,
        error: Tensor,
        noted: tuple[ForwardPass, RandomState, Tensor],
        device: ProjectionBackend | None,
    ) -> list[Tensor | None]:
        passed, random, steps = noted
        x = passed.args[0].detach()
        target = onehot_targets(error)
        counted = target.sum(1)
        wrong = torch.stack([row.roll(int(step)) for row, step in zip(target, steps, strict=True)])
        theta = self.rule.threshold
        with torch.enable_grad(), random.again():
            output, _ = self._pass(passed, x)
            good = self._pass(passed, self._labelled(x, target))[1]
            bad = self._pass(passed, self._labelled(x, wrong))[1]
            losses = [
                ((softplus(theta - a) + softplus(b - theta)) * counted.to(a)).sum()
                for a, b in zip(good, bad, strict=True)
            ]
        roots = [output, *losses]
        signals = [error.view_as(output).to(output.dtype), *(torch.ones_like(loss) for loss in losses)]
        trained = [p for p in passed.module.parameters() if p.requires_grad]
        return list(torch.autograd.grad(roots, trained, signals, allow_unused=True))

    def _labelled(self, x: Tensor, onehot: Tensor) -> Tensor:
        written = x.flatten(1).clone()
        written[:, : onehot.shape[1]] = onehot.to(x.dtype) * self.rule.label
        return written.view_as(x)

    def _pass(self, passed: ForwardPass, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the goodness of each call of a point, shape (m,); cut at the points."""
        module, tape = passed.module, passed.tape
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        tape.kept = []
        try:
            output: Tensor = functional_call(module, buffers, (x,))
            goodness = [h.flatten(1).square().mean(1) for _, h in tape.kept]
        finally:
            tape.kept = None
        return output, goodness
