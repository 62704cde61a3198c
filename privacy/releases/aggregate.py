"""`aggregate`: clip and noise what the records contribute, then project the sum (THEORY T5).

Under rule `gated-dfa` a layer's update is `B_l A_l`, A_l = Σ_i (r(x_i) ⊗ e_i) (h_i, 1)^T. Each record's joint stack (A
of every hidden layer, the output layer's gradient, biases included) is clipped to C, the sum gets Z ~ N(0, sigma² C² I)
from a cryptographic generator, and only then do its columns go through the device. That is the clipped Gaussian release
(T3) of another stack, with noise multiplier sigma exactly; the device sees nothing but what is released already, so
several frames a column, their digitisation and saturation, amplitudes chosen by a column's own maximum and the device's
noise are post-processing, and any backend will do. Nor need a contribution be quantised before it is clipped: it never
meets a grid before the noise.

The other order, with noise N that the DEVICE adds to B A, is a Gaussian mechanism too if every column is one analog
frame (`noise_multiplier`); no backend here is: each takes several frames a column and digitises them, and then the
sensitivity of the vector of frames is not C's.
"""

from __future__ import annotations

from collections.abc import Sequence

from noise_models.errors import UsageError
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.digital import DigitalNoise
from privacy.releases.source import Parts


class SumNoise(DigitalNoise):
    """Z on the sum, before the projection."""

    name = "aggregate"


def noise_multiplier(
    max_grad_norm: float, operator_norms: Sequence[float], stds: Sequence[float], output_std: float
) -> float:
    """Noise multiplier of `(B_l A_l + N_l for every l, A_0 + N_0)` where the device itself supplies the noise.

        1 / (C max(max_l |B_l|_op / nu_l, 1 / nu_0))

    Proof. Divide block l by nu_l: the noise is N(0, I) on the whole vector, and a record with the stack a = (a_0, a_1,
    ...), |a| <= C, moves its mean by (a_0 / nu_0, B_1 a_1 / nu_1, ...), of squared norm at most
    Σ_l |B_l|_op² |a_l|² / nu_l² + |a_0|² / nu_0² <= max(...)² |a|². A record along the largest factor's singular vector
    attains it, so the bound is tight. It holds for ONE analog frame a column; of several it says nothing.

    Args:
        max_grad_norm: C, bound on a record's joint stack.
        operator_norms: UPPER confidence limit of |B_l|_op, the device's gain included, for each hidden layer.
        stds: LOWER confidence limit nu_l of the Gaussian noise in every component of layer l's readout.
        output_std: nu_0, of the noise added to the output layer's gradient and to what is not projected.
    Returns:
        the multiplier, > 0.
    Raises:
        UsageError: a number that is not positive, or lists of different lengths.
    """
    if len(operator_norms) != len(stds):
        raise UsageError(
            f"there are {len(operator_norms)} operator norms and {len(stds)} noise levels; give one of each a layer"
        )
    for value in (max_grad_norm, *operator_norms, *stds, output_std):
        if not 0 < value < float("inf"):
            raise UsageError(f"{value} is no norm or noise level; give positive numbers")
    factors = [norm / std for norm, std in zip(operator_norms, stds, strict=True)]
    return 1 / (max_grad_norm * max([*factors, 1 / output_std]))


@ReleaseCard(
    summary="noise from a cryptographic generator, on the sum that the device then projects",
    statement="{coins}What a drawn record contributes BEFORE the projection (in every hidden layer its errors times its"
    " inputs, and the output layer's own update, all together) was clipped to Euclidean norm {clip}. To the "
    "sum over the records, normal noise {size} from a cryptographic generator{each} of it. Only that noised "
    "sum went through the projection, and what came out of it reached the weights.",
    workers=True,
    sum_projected="gated-dfa",
    rule="gated-dfa",
)
def make(parts: Parts) -> ClippedRelease:
    """This release."""
    return ClippedRelease.of(parts, SumNoise(parts.generator("noise")), "aggregate")
