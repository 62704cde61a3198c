"""`label` (THEORY T7): the published per-record mechanism, completed: noise in every record's projection, output too.

Inputs are public, labels are private. Given the weights before a step, its inputs h, pre-activations a, gates φ'(a)
and predictions p are public, and a label y acts only through the error `e = p − onehot(y)`. What is released is

    U_l = Σ_i φ'(a_i,l) ⊙ (c_i B_l e_i + g_i,l) (h_i,l, 1)^T,    g_i,lk ~ N(0, (ν S_l)²),    B_out = I, φ'_out = 1

divided by the expected batch size. A change Δ = onehot(y') − onehot(y) moves row k of U_l by
`c_i (b_k·Δ) φ'_ik (h_i, 1)`, and its noise has covariance `(ν S_l)² H_k^T H_k` (`leverage`), whatever the
labels are. Rows and layers have independent noise, so the step is exactly μ_i-Gaussian-DP for record i's label:

    μ_i = c_i M_i / ν,    M_i² = max_{y,y'} Σ_l Σ_k (b_lk·Δ)² τ_i,lk / S_l².

The public weight `c_i = min(1, 1/M_i)` on the SIGNAL alone makes this at most 1/ν for every record, fixed in advance:
no figure that is adapted to the data enters the account. S_l is chosen anew in each step from public figures alone
(the M_i of this batch), so that COVERAGE of the records keep weight 1. Every record takes part in one step an epoch.

T7's conditions, and where each is met:
    (a) the output layer is noised: `_layers` refuses a network whose output layer is not among the noised ones;
    (b) the error is projected unquantised, at a public scale: B e is formed here in float64 from the matrix itself, and
        the loop's own error and signals must agree with `softmax(z) − onehot` and `B e` record by record (`_errors`,
        `_refuse_other_signals`): no class weights, no label smoothing, no rescaling, no other loss;
    (c) the maximum over all pairs of labels: `shifts`;
    (d) public batches: `Terms.public_batches`; printed, because a caller could order his data set by label;
    (e) every layer's noise is drawn for itself: `add_noise`;
    (f) leverage without truncation, 1 where it is ill-conditioned: `privacy.releases.leverage`;
    (g) fixed B, no forward noise, no random masks: other rules are refused (`SeparatedCapture.matrices`), other layers
        by the separated capture;
    (h) no denoising by B⁺: nothing is done to the noised rows but the sum with their inputs;
    (i) shot noise depends on e: devices with noise of their own are refused, `digital` projects exactly;
    (j) g is un-rounded Gaussian noise added to real numbers after the readout; that arithmetic is exact is printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NORMAL_TAIL_MASS
from privacy.contributions.separated import SeparatedContributions, SeparatedLayer, joined
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency, Kind
from privacy.releases.card import ReleaseCard
from privacy.releases.leverage import leverages
from privacy.releases.source import Parts, SecretNormals, add_secret_normals
from privacy.releases.step import StepRelease

COVERAGE = 0.95  # share of a batch's records whose signal keeps its full weight
_TOLERANCE = 1e-3  # of probabilities; far above float32's rounding, far below any other loss's error
_LEAST_SQUARE = 1e-250  # of a noise scale
_MARGIN = 1e-9  # relative, on M_i: rounding of sums in float64

ASSUMPTIONS = (
    "inputs and their order in the data set are public and do not depend on the labels; labels alone are protected, "
    "each by itself (a person with several records needs a group notion)",
    "the loss is the cross-entropy of each record with its own label; a label is used nowhere else in training, "
    "neither to augment, weigh or select records nor to choose settings",
    "batches are a public shuffle, every record once an epoch: what is trained on is the batch that was handed out, "
    "row i being record i, and nothing in the loop depends on the loss; the module's code and settings stay as they "
    "were probed",
    "the number of records and of steps is public; the noise is secret",
    "arithmetic is exact: sums of noised rows, taken in float64, are taken for sums of real numbers",
    "timing, memory and power are side channels outside the guarantee",
)


class LabelNoise(SecretNormals):
    """g from a generator keyed by the operating system."""

    name = "label"

    def __init__(self, parts: Parts, credit: dict[str, Any]) -> None:
        super().__init__(parts.generator("noise"))
        self._credit = credit

    def describe(self) -> dict[str, Any]:
        return self._credit

    def add_rows(self, rows: Tensor, std: float) -> None:
        """`rows += std·N(0, 1)`, shape (m, n), contiguous."""
        add_secret_normals(rows, std, self._generator)


@dataclass
class _Batch:
    """One physical batch of a step: its layers' factors and the errors of its records."""

    layers: list[SeparatedLayer]
    errors: Tensor


class LabelRelease(StepRelease):
    """The release of THEORY T7; a row's μ is 1/noise_multiplier."""

    mechanism = "label-gaussian"
    assumptions = ASSUMPTIONS
    _changing = StepRelease._changing | {"_batches", "_update"}

    def __init__(
        self,
        contributions: SeparatedContributions,
        source: LabelNoise,
        *,
        expected_batch_size: float,
        steps_an_epoch: int,
        leverage: bool = True,
    ) -> None:
        """
        Args:
            contributions: the trainer's, of kind "separated".
            source: where g comes from.
            expected_batch_size: N over the steps an epoch; the realised size is never used.
            steps_an_epoch: of the public batches.
            leverage: account by leverages; False takes τ = 1 instead, for comparison.
        """
        self.contributions: SeparatedContributions = contributions
        self.source: LabelNoise = source
        self.expected_batch_size = expected_batch_size
        self.dimension = contributions.dimension
        self.sensitivity = 1.0  # the row's noise multiplier is 1/μ itself
        self._steps = steps_an_epoch
        self._leverage = leverage
        self._most_records = math.ceil(2 * expected_batch_size + 2)  # N over a rounded number of steps
        self._most_draws = self._most_records * sum(contributions.widths.values())
        self._batches: list[_Batch] = []
        self._update: Tensor | None = None

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        mass = self._most_draws * NORMAL_TAIL_MASS
        return replace(super().event(sample_rate, noise_multiplier, epoch), mass=mass)

    def planned(
        self, sample_rate: float, noise_multiplier: float, steps: int, *, epoch: int = 0
    ) -> dict[ReleaseEvent, int]:
        """The rows of the next `steps` steps: epoch by epoch, because only epochs add up."""
        rows: dict[ReleaseEvent, int] = {}
        while steps > 0:
            count = min(steps, self._steps)
            rows[self.event(sample_rate, noise_multiplier, epoch)] = count
            steps, epoch = steps - count, epoch + 1
        return rows

    def _absorb(self, *, first: bool) -> None:
        """Keep the factors of the batch now handed out: leverage is of the whole step."""
        if first:
            self._batches = []
        self._update = None
        if self.contributions.expected_records():
            # The noise is drawn on the CPU, and the sums are taken there in float64.
            layers = [layer.mapped(_settled) for layer in self.contributions.separated()]
            errors = _errors(on_cpu(self.contributions.logits()), layers)
            _refuse_other_signals(layers, errors, self.contributions.matrices)
            self._batches.append(_Batch(layers, errors))

    def _add_noise(self, noise_multiplier: float) -> None:
        """Form the noised update of the step; UsageError where a public input, activation or gate is not finite."""
        found: dict[str, Tensor] = {}
        if self._batches:
            layers = joined([batch.layers for batch in self._batches])
            errors = torch.cat([batch.errors for batch in self._batches])
            if len(errors) > self._most_records:
                raise UsageError(
                    f"the data set is larger than its public size explains (steps of {self.expected_batch_size:g} "
                    "records are expected); declare the public size that it has"
                )
            matrices = [_matrix(layer, self.contributions.matrices) for layer in layers]
            scales, weights = self._public_scales(layers, matrices)
            for layer, matrix, scale in zip(layers, matrices, scales, strict=True):
                rows = (weights.unsqueeze(1) * errors) @ matrix.T
                self.source.add_rows(rows, noise_multiplier * scale)
                found.update(layer.parameters((rows * layer.gate.double()).T @ layer.inputs.double()))
        parts = []
        for name, p in self.contributions.parameters.items():
            parts.append(found[name].to(p) if name in found else torch.zeros_like(p).flatten())
        self._update = torch.cat(parts) / self.expected_batch_size
        self._batches = []

    def _public_scales(
        self, layers: list[SeparatedLayer], matrices: list[Tensor]
    ) -> tuple[list[float], Tensor]:
        """S_l and c_i: functions of inputs, weights and B, of no label.

        Returns:
            a scale a layer; the weights, shape (m,).
        """
        squares = []
        for layer, matrix in zip(layers, matrices, strict=True):
            tau = self._leverages(layer)
            squares.append(tau @ shifts(matrix).T)  # (m, pairs): Σ_k (b_k·Δ)² τ_ik
        # Each layer gets an equal part of μ², then all are scaled together, since no pair is the worst everywhere.
        scales = [_covering(square) * len(layers) for square in squares]
        joint = sum(square / scale for square, scale in zip(squares, scales, strict=True))
        whole = _covering(cast(Tensor, joint))
        largest = (cast(Tensor, joint) / whole).amax(1).sqrt() * (1 + _MARGIN)
        weights = 1 / largest.clamp_min(1.0)
        if not bool((weights * largest <= 1 + 1e-12).all()):  # NaN fails too
            raise UsageError(
                "the privacy loss of a record cannot be bounded: an activation is not finite, or the feedback matrix "
                "is beyond 1e150"
            )
        return [math.sqrt(scale * whole) for scale in scales], weights

    def _leverages(self, layer: SeparatedLayer) -> Tensor:
        for what in (layer.inputs, layer.gate):
            if not bool(what.isfinite().all()):
                raise UsageError(
                    f"an input or a gate of layer {layer.name} is not finite; normalise the inputs or lower the "
                    "learning rate"
                )
        if self._leverage:
            return leverages(layer.inputs, layer.gate)
        return (layer.gate != 0).double()

    def _released(self) -> Tensor:
        update, self._update = self._update, None
        assert update is not None  # formed by _add_noise
        return update

    def _forget(self) -> None:
        self._batches, self._update = [], None


def shifts(matrix: Tensor) -> Tensor:
    """(b_k·Δ)² for every pair of labels, shape (c(c−1)/2, n).

    Args:
        matrix: B, shape (n, c).
    """
    pairs = list(combinations(range(matrix.shape[1]), 2))
    first, second = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    return (matrix[:, first] - matrix[:, second]).square().T


def _settled(x: Tensor) -> Tensor:
    """On the CPU, without subnormals: whether a product sees those or zero is up to the thread that computes it."""
    x = on_cpu(x)
    return torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0.0, x)


def _covering(square: Tensor) -> float:
    """A squared scale that COVERAGE of the records' squared losses do not exceed; 1 where nothing is lost at all.

    It is no smaller than _LEAST_SQUARE, beside which squares that underflow are nothing.
    """
    worst = square.amax(1)
    level = float(worst.kthvalue(max(1, math.ceil(COVERAGE * len(worst)))).values)
    return next((max(value, _LEAST_SQUARE) for value in (level, float(worst.max())) if value > 0), 1.0)


def _errors(logits: Tensor, layers: list[SeparatedLayer]) -> Tensor:
    """softmax(z) − onehot(y) in float64, with the labels that the loop's own errors show.

    Raises:
        UsageError: the loop's errors are those of another loss.
    """
    if layers[-1].point is not None:
        raise UsageError(
            f"the output layer is not trained (layer {layers[-1].name} is the last that is); release label trains it, "
            "with noise"
        )
    if logits.shape[1] < 2:
        raise UsageError(
            "the network has one output; release label takes the cross-entropy of two or more classes"
        )
    probabilities = torch.softmax(logits.double(), 1)
    labels = probabilities - layers[-1].taught.double()
    hot = labels.argmax(1)
    exact = torch.nn.functional.one_hot(hot, labels.shape[1]).double()
    if not bool(((labels - exact).abs() <= _TOLERANCE).all()):  # NaN fails too
        raise UsageError(
            "the error at the output is not softmax(z) - onehot(label): release label takes the plain cross-entropy "
            "(no class weights, label smoothing or ignored labels) with loss_reduction as it is, and finite outputs"
        )
    return probabilities - exact


def _refuse_other_signals(
    layers: list[SeparatedLayer], errors: Tensor, matrices: dict[str, Tensor] | None
) -> None:
    """The loop's own teaching signals are B e: no label reaches a layer in another way."""
    for layer in layers[:-1]:
        exact = errors @ _matrix(layer, matrices).T
        slack = _TOLERANCE * (1 + float(exact.abs().max()))
        if not torch.allclose(layer.taught.double(), exact, rtol=0.0, atol=slack):
            raise UsageError(f"layer {layer.name} is not taught by the projection of the error; use rule dfa")


def _matrix(layer: SeparatedLayer, matrices: dict[str, Tensor] | None) -> Tensor:
    """B_l; the identity of the output layer."""
    if layer.point is None:
        return torch.eye(layer.taught.shape[1], dtype=torch.float64)
    assert matrices is not None  # make() refuses
    return matrices[layer.point]


@ReleaseCard(
    summary="noise inside each record's projection, every layer's: protects labels, with public inputs",
    statement="Every record took part in one step of each pass over the data, in a public order. Normal noise was added"
    " inside every record's projected error, output layer included, and scaled by public numbers so that a "
    "change of one label is in no pass easier to tell than a shift of {shift} standard deviations of a normal"
    " law. Inputs are public; labels act through these errors only.",
    kind=Kind.LABEL_DP,
    adjacency=Adjacency.LABEL,
    mechanism="label-gaussian",
    public_batches=True,
    clips=False,
    noise_by_records=True,
    backend="digital",
    options=("leverage",),
)
def make(parts: Parts) -> LabelRelease:
    """This release.

    Raises:
        UsageError: a rule or a device that T7 does not cover here.
    """
    contributions = cast(SeparatedContributions, parts.start_capture("separated"))
    if contributions.matrices is None and len(contributions.widths) > 1:
        raise UsageError(
            "release label needs a fixed feedback matrix that is known exactly and a projection without noise of its "
            "own (a device's depends on the error that it projects); use --rule dfa with --backend digital"
        )
    leverage = parts.options.get("leverage", True)
    if not isinstance(leverage, bool):
        raise UsageError(f"release option leverage is {leverage!r}; it must be true or false")
    credit = {"leverage": leverage, "coverage": COVERAGE, "weights": "public, on the signal alone"}
    return LabelRelease(
        contributions,
        LabelNoise(parts, credit),
        expected_batch_size=parts.expected_batch_size,
        steps_an_epoch=parts.steps_an_epoch,
        leverage=leverage,
    )
