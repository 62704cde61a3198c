"""The mechanisms that a ledger's rows name, and who can account for each. A new one is one line here."""

from __future__ import annotations

from dataclasses import dataclass

from privacy.notions import Adjacency


@dataclass(frozen=True)
class Mechanism:
    """How one kind of row is accounted for.

    Attributes:
        module: of `privacy.accounting`, whose `epsilon(tally, delta, adjacency, accountant)` composes such rows;
            None for the (Poisson-subsampled) Gaussian mechanism, whose accountants are modules each.
        accountants: names; the first is the default, the last shares no code with it and is what audits use. A
            mechanism that no release has, which is planned and not audited, may have one alone.
        adjacencies: which notions of neighbours it speaks of.
        epochs: whether a record takes part in one step of each epoch only, so that an epoch's steps compose in
            parallel.
    """

    module: str | None
    accountants: tuple[str, ...]
    adjacencies: tuple[Adjacency, ...]
    epochs: bool = False


_RECORDS = (Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE)

MECHANISMS: dict[str, Mechanism] = {
    "gaussian": Mechanism(None, ("pld", "rdp", "prv", "numerical"), _RECORDS),
    "skellam": Mechanism("skellam", ("skellam-rdp", "skellam-exact"), (Adjacency.ADD_REMOVE,)),
    "label-gaussian": Mechanism("gdp", ("gdp", "numerical"), (Adjacency.LABEL,), epochs=True),
    "poisson": Mechanism("poisson_frames", ("poisson-rdp",), (Adjacency.ADD_REMOVE,)),
    "photon": Mechanism("photon", ("photon-rdp", "photon-integral"), (Adjacency.ADD_REMOVE,)),
    "published": Mechanism("published", ("published", "published-rdp"), (Adjacency.ADD_REMOVE,)),
}
