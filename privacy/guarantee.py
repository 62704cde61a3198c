"""A privacy guarantee: epsilon and delta never travel without their adjacency, kind and assumptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noise_models.errors import UsageError
from privacy.mechanisms import MECHANISMS
from privacy.notions import Adjacency
from privacy.notions import Kind as Kind
from privacy.releases import RELEASES

# Why a run has no guarantee, where a nominal epsilon says what it would have had; part of the stored assumptions.
_SEEDED = "the generators were seeded (--reproducible): whoever knows the seed knows the noise"
_SHOWN = "figures computed from private records were shown (--unsafe-diagnostics)"
_OTHERWISE = {_SEEDED: "with secret noise", _SHOWN: "without the diagnostics"}


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy together with everything it depends on.

    Attributes:
        epsilon: privacy loss bound; `inf` is allowed and is the only value of kind `none`.
        delta: failure probability, in [0, 1].
        adjacency: which data sets are neighbours.
        kind: `record-dp` and `label-dp` are worst-case statements; `conditional` is not; `none` promises
            nothing.
        accountant: name of the accountant that computed epsilon.
        assumptions: what has to hold; printed with every epsilon.
        nominal_epsilon: kind `none` only: the epsilon that the run would have had (`otherwise`).
        nominal_kind: the kind that it would then have had, None where there is no nominal epsilon.
        device_share: fraction of the noise variance that the device supplied (0 to 1), None where not
            applicable.

    Raises:
        UsageError: a NaN or negative epsilon, a delta outside [0, 1], a finite epsilon of kind `none`,
            a device share outside [0, 1].
    """

    epsilon: float
    delta: float
    adjacency: Adjacency
    kind: Kind
    accountant: str
    assumptions: tuple[str, ...] = ()
    nominal_epsilon: float | None = None
    device_share: float | None = None
    nominal_kind: Kind | None = None

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise UsageError(f"epsilon = {self.epsilon!r} is not a guarantee: it must be >= 0 or inf")
        if not 0 <= self.delta <= 1:
            raise UsageError(f"delta = {self.delta!r} is not a probability: give a value from 0 to 1")
        if self.kind is Kind.NONE and not math.isinf(self.epsilon):
            raise UsageError(
                f"kind none with epsilon = {self.epsilon!r}: it promises nothing, so epsilon must be inf "
                "(put the value into nominal_epsilon)"
            )
        if self.device_share is not None and not 0 <= self.device_share <= 1:
            raise UsageError(
                f"device_share = {self.device_share!r}: it is a fraction of variance, from 0 to 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; an infinite epsilon is the string "inf"."""
        return {
            "epsilon": _to_json(self.epsilon),
            "delta": self.delta,
            "kind": self.kind.value,
            "adjacency": self.adjacency.value,
            "accountant": self.accountant,
            "assumptions": list(self.assumptions),
            "nominal_epsilon": _to_json(self.nominal_epsilon),
            "nominal_kind": None if self.nominal_kind is None else self.nominal_kind.value,
            "device_share": self.device_share,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Guarantee:
        """The inverse of `to_dict`. Raises UsageError where `values` is not a guarantee.

        Guarantees stored before there was a nominal kind get the one that their accountant speaks of.
        """
        try:
            nominal, kind = values.get("nominal_epsilon"), values.get("nominal_kind")
            if nominal is not None and "nominal_kind" not in values:
                kind = _accounted_kind(str(values["accountant"]), str(values["adjacency"]))
            return cls(
                epsilon=float(values["epsilon"]),
                delta=float(values["delta"]),
                adjacency=Adjacency(values["adjacency"]),
                kind=Kind(values["kind"]),
                accountant=str(values["accountant"]),
                assumptions=tuple(values["assumptions"]),
                nominal_epsilon=None if nominal is None else float(nominal),
                device_share=values.get("device_share"),
                nominal_kind=None if kind is None else Kind(kind),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"not a stored guarantee ({error!r}): give what Guarantee.to_dict returned"
            ) from error

    @classmethod
    def of_run(
        cls,
        header: Mapping[str, Any],
        epsilon: float,
        delta: float,
        accountant: str,
        void: tuple[str, ...] = (),
    ) -> Guarantee:
        """The statement that a ledger's header and a computed epsilon make.

        A run without release, a reproducible one, one that shows figures of private records, and one that is
        `void` for other reasons have kind `none`; `epsilon` is then the nominal one.

        Raises:
            UsageError: the header names a release, or an adjacency, that there is no statement for.
        """
        kind, adjacency = Kind.NONE, header.get("adjacency", Adjacency.ADD_REMOVE)
        if header["release"] == "none":
            void = ("nothing was protected (release none)", *void)
        elif header["release"] not in RELEASES:
            raise UsageError(
                f"release {header['release']!r} has no known guarantee: it must be one of "
                f"none, {', '.join(RELEASES)}"
            )
        else:
            kind = RELEASES[header["release"]].kind
            if adjacency != RELEASES[header["release"]].adjacency:
                raise UsageError(
                    f"release {header['release']} has no guarantee of adjacency {adjacency!r}: its own is "
                    f"{RELEASES[header['release']].adjacency}"
                )
        if header["reproducible"]:
            void = (_SEEDED, *void)
        if header.get("unsafe_diagnostics"):
            void = (_SHOWN, *void)
        nominal = bool(void) and header["release"] != "none"
        return cls(
            epsilon=math.inf if void else epsilon,
            delta=delta,
            adjacency=Adjacency(adjacency),
            kind=Kind.NONE if void else kind,
            accountant=accountant,
            assumptions=(*void, *(header.get("assumptions") or ())),
            nominal_epsilon=epsilon if nominal else None,
            device_share=header.get("device_share") or None,
            nominal_kind=kind if nominal else None,
        )

    @property
    def otherwise(self) -> str:
        """What the nominal epsilon supposes: secret noise, no diagnostics, or both."""
        supposed = [words for text, words in _OTHERWISE.items() if text in self.assumptions]
        return " and ".join(supposed) or "nominally"

    def headline(self) -> str:
        """One line; a conditional or absent guarantee says so before any number."""
        pair = f"(ε, δ) = ({rounded_up(self.epsilon)}, {self.delta:g})"
        if self.kind is Kind.NONE:
            line = "no privacy guarantee (kind none)"
            if self.nominal_epsilon is not None:
                conditional = self.nominal_kind is Kind.CONDITIONAL
                line += (
                    f"; {self.otherwise} it would have had {'a conditional ' if conditional else ''}"
                    f"ε = {rounded_up(self.nominal_epsilon)}, δ = {self.delta:g}"
                    f"{', NOT a worst-case guarantee' if conditional else ''}"
                )
            return line
        if self.kind is Kind.CONDITIONAL:
            return f"conditional, NOT a worst-case guarantee: {pair} only while every assumption below holds"
        return f"{pair}, {self.kind.value}, adjacency {self.adjacency.value}"

    def __str__(self) -> str:
        lines = [self.headline(), f"  accountant: {self.accountant}"]
        if self.device_share is not None:
            lines.append(f"  noise variance supplied by the device: {100 * self.device_share:.1f} %")
        lines += ["  assumptions:", *(f"    - {text}" for text in self.assumptions or ("none stated",))]
        return "\n".join(lines)

    def words(self) -> str:
        """A paragraph that says what the guarantee means, for a report's reader."""
        if self.kind is Kind.NONE:
            text = "This run carries no privacy guarantee."
            if self.nominal_epsilon is None:
                return text
            pair = f"({rounded_up(self.nominal_epsilon)}, {self.delta:g})"
            supposed = self.otherwise[0].upper() + self.otherwise[1:]
            if self.nominal_kind is Kind.CONDITIONAL:
                return (
                    f"{text} {supposed} it would have had the conditional figure {pair} for data sets that differ "
                    f"by {self.adjacency.words}, which is NOT a worst-case guarantee either."
                )
            return (
                f"{text} {supposed} it would have been {pair}-differentially private with respect to "
                f"{self.adjacency.words}."
            )
        if math.isinf(self.epsilon):
            bound = "the released weights may reveal everything: epsilon is infinite."
        else:
            bound = (
                f"no test of the released weights changes its odds by more than a factor of "
                f"e^{rounded_up(self.epsilon)} = {_factor(self.epsilon)}, except with probability {self.delta:g}."
            )
        text = f"For data sets that differ by {self.adjacency.words}, {bound}"
        if self.kind is Kind.CONDITIONAL:
            text = (
                "NOT a worst-case guarantee; it stands and falls with the assumptions named. Under them: "
                + text
            )
        if self.device_share is not None:
            text += f" The device supplied {100 * self.device_share:.1f} % of the noise variance."
        return (
            text
            + f" Computed by the accountant {self.accountant!r} under {len(self.assumptions)} assumption(s)."
        )


def rounded_up(epsilon: float) -> str:
    """Epsilon to four significant digits, rounded UP: what is shown must still hold."""
    if epsilon == 0 or math.isinf(epsilon):
        return f"{epsilon:g}"
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 3)
    return f"{math.ceil(epsilon / unit * (1 - 1e-12)) * unit:.4g}"


def _factor(epsilon: float) -> str:
    return rounded_up(math.exp(epsilon)) if epsilon < 700 else "more than 1e304"


def _accounted_kind(accountant: str, adjacency: str) -> Kind | None:
    """The kind of the releases that this accountant answers for; None where they differ, or there are none."""
    kinds = {
        terms.kind
        for terms in (RELEASES[name] for name in RELEASES.built_in)
        if accountant in MECHANISMS[terms.mechanism].accountants
        and (terms.kind is Kind.LABEL_DP) == (adjacency == Adjacency.LABEL)
    }
    return kinds.pop() if len(kinds) == 1 else None


def _to_json(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value
