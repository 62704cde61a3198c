"""The projection as a matrix product: no device, no noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from torch import Tensor

from noise_models.base import NoNoise
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.matrix import DISTRIBUTIONS, RandomMatrix
from optical_dfa.backends.sparse_matrix import SparseMatrix

SPARSE: Final = "sparse"
_NARROW: Final = 64  # outputs: products with fewer may be rounded otherwise than those with more


@BackendCard(
    summary="a matrix product on the computer, without noise",
    part="No optical device took part: the projection is a matrix product in software.",
    camera=False,
)
class DigitalBackend(ProjectionBackend):
    """Exact `B e` with a seeded B of unit-variance entries (Nøkland 2016, arXiv:1609.01596), or a sparse one."""

    name: ClassVar[str] = "digital"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        noise: NoiseGenerator,
        distribution: str = "normal",
        nonzeros: int | None = None,
        rank: int | None = None,
        slices: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, there is none.
            distribution: law of B, "normal", "uniform", "binary", "orthogonal" (`RandomMatrix`) or "sparse"
                (`SparseMatrix`).
            nonzeros: of each row of a sparse B; None is 1.
            rank: of each slice of a sparse B; None is unrestricted.
            slices: numbers of outputs that are drawn together where the law is of a whole matrix (orthogonal, and
                sparse of a rank); `align` gives those of the layers. None is all outputs together.

        Raises:
            UsageError: sizes or distribution are not allowed.
        """
        super().__init__(in_features, out_features)
        if distribution != SPARSE:
            for option, value in (("nonzeros", nonzeros), ("rank", rank)):
                if value is not None:
                    raise UsageError(
                        f"{option} is {value} but distribution is {distribution}; it is of distribution=sparse"
                    )
            if distribution not in DISTRIBUTIONS:
                raise UsageError(
                    f"distribution of the feedback matrix is {distribution!r}; "
                    f"it must be one of: {', '.join((*DISTRIBUTIONS, SPARSE))}"
                )
        self.noise = NoNoise()
        self.distribution = distribution
        self._seed = seed
        self._generator = noise
        self._options: dict[str, Any] = {
            "distribution": distribution,
            "nonzeros": 1 if nonzeros is None and distribution == SPARSE else nonzeros,
            "rank": rank,
            "slices": _slices(slices, out_features),
        }
        self._matrix: RandomMatrix | SparseMatrix
        if distribution == SPARSE:
            sparse = SparseMatrix(
                in_features, out_features, seed, self._options["nonzeros"], rank, self._options["slices"]
            )
            self._matrix, self.std = sparse, sparse.std
        else:
            self._matrix = RandomMatrix(
                in_features, out_features, seed, distribution, self._options["slices"]
            )

    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def keep(self, components: range) -> range:
        if isinstance(self._matrix, SparseMatrix):
            return super().keep(components)
        end = min(self.out_features, max(components.stop, components.start + _NARROW))
        kept = range(max(0, min(components.start, end - _NARROW)), end)
        self._matrix.keep(kept)
        return kept

    def matrix(self) -> Tensor:
        return self._matrix.values

    def describe(self) -> dict[str, Any]:
        described = {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": self.distribution,
            "std": self.std,
            "noise": self.noise.describe(),
        }
        rank = self._options["rank"]
        if self.distribution == SPARSE:
            described.update(nonzeros=self._options["nonzeros"], rank=rank)
        if self.distribution == "orthogonal" or rank is not None:
            described["slices"] = self._options["slices"]
        return described

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (
            type(self), self.in_features, self.out_features, self._seed, self._generator, self._options,
        )  # fmt: skip


def _slices(slices: Sequence[int] | None, out_features: int) -> list[int]:
    if slices is None:
        return [out_features]
    sizes = list(slices) if isinstance(slices, list | tuple) else []
    if not all(type(size) is int and size > 0 for size in sizes) or sum(sizes) != out_features:
        raise UsageError(
            f"slices is {slices!r}; it must be a list of positive numbers of outputs, {out_features} together"
        )
    return sizes


def _restore(
    cls: type[DigitalBackend],
    n_in: int,
    n_out: int,
    seed: int,
    noise: NoiseGenerator,
    options: dict[str, Any],
) -> DigitalBackend:
    return cls(n_in, n_out, seed=seed, noise=noise, **options)
