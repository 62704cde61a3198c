import json
import math

import pytest

from noise_models.errors import UsageError
from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.mechanisms import MECHANISMS
from privacy.notions import Adjacency
from privacy.releases import RELEASES


def make(kind: Kind, epsilon: float = 2.5, nominal: float | None = None) -> Guarantee:
    return Guarantee(
        epsilon=epsilon,
        delta=1e-5,
        adjacency=Adjacency.ADD_REMOVE,
        kind=kind,
        accountant="pld",
        assumptions=("frames are independent", "the key is secret"),
        nominal_epsilon=nominal,
        device_share=0.873,
    )


@pytest.mark.parametrize("kind", [Kind.RECORD_DP, Kind.LABEL_DP, Kind.CONDITIONAL, Kind.NONE])
def test_json_round_trip(kind: Kind) -> None:
    none = kind is Kind.NONE
    guarantee = make(kind, math.inf if none else 2.5, 2.5 if none else None)
    stored = json.loads(json.dumps(guarantee.to_dict(), allow_nan=False))
    assert stored["epsilon"] == ("inf" if none else 2.5)
    assert Guarantee.from_dict(stored) == guarantee


def test_every_assumption_and_the_device_share_are_printed() -> None:
    text = str(make(Kind.RECORD_DP))
    assert "frames are independent" in text
    assert "the key is secret" in text
    assert "87.3 %" in text
    assert "add-or-remove-one" in text
    assert "record-dp" in text


@pytest.mark.parametrize("kind", [Kind.CONDITIONAL, Kind.NONE])
def test_no_bare_epsilon(kind: Kind) -> None:
    """A conditional or absent guarantee is disowned before, and on the same line as, its number."""
    guarantee = make(kind, math.inf if kind is Kind.NONE else 2.5, 2.5 if kind is Kind.NONE else None)
    disclaimer = "no privacy guarantee" if kind is Kind.NONE else "NOT a worst-case guarantee"
    lines = [line for line in str(guarantee).splitlines() if "2.5" in line]
    assert lines
    assert all(line.index(disclaimer) < line.index("2.5") for line in lines)
    assert "guarantee" in guarantee.words().split("2.5")[0]


SEEDED, SHOWN = {"reproducible": True}, {"unsafe_diagnostics": True}


@pytest.mark.parametrize(
    ("header", "supposes"),
    [(SEEDED, "with secret noise"), (SHOWN, "without the diagnostics"),
     (SEEDED | SHOWN, "with secret noise and without the diagnostics")],
    ids=["seeded", "shown", "both"],
)  # fmt: skip
@pytest.mark.parametrize("release", ["digital", "per-record", "label"])
def test_a_nominal_epsilon_says_what_it_supposes_and_of_which_kind_it_would_be(
    release: str, header: dict[str, bool], supposes: str
) -> None:
    terms = RELEASES[release]
    full = {"release": release, "reproducible": False, "adjacency": terms.adjacency.value, **header}
    accountant = MECHANISMS[terms.mechanism].accountants[0]
    guarantee = Guarantee.of_run(full, 2.5, 1e-5, accountant)
    assert guarantee.nominal_kind is terms.kind
    conditional = terms.kind is Kind.CONDITIONAL
    for text in (guarantee.headline(), guarantee.words()):
        assert supposes in text.lower()
        assert ("conditional" in text) == ("NOT a worst-case" in text) == conditional
    assert ("secret" in guarantee.headline()) == ("reproducible" in header)
    stored = guarantee.to_dict()
    assert Guarantee.from_dict(stored) == guarantee
    del stored["nominal_kind"]  # stored by an earlier program
    assert Guarantee.from_dict(stored) == guarantee


def test_words_name_the_neighbours_and_an_infinite_epsilon() -> None:
    assert "presence or absence of one record" in make(Kind.RECORD_DP).words()
    assert "may reveal everything" in make(Kind.RECORD_DP, math.inf).words()
    assert make(Kind.RECORD_DP, 1e4).words().count("1e304") == 1


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(3.0, "3"), (3.00049, "3.001"), (2.9991, "3"), (0.0012341, "0.001235"), (123.41, "123.5"), (0.0, "0"),
     (math.inf, "inf"), (9.9999, "10"), (12341.0, "1.235e+04")],
)  # fmt: skip
def test_the_epsilon_shown_is_never_below_the_epsilon_that_holds(epsilon: float, shown: str) -> None:
    assert rounded_up(epsilon) == shown
    assert float(shown) >= epsilon


@pytest.mark.parametrize(
    "change",
    [{"epsilon": -1.0}, {"epsilon": math.nan}, {"delta": 1.5}, {"delta": math.nan}, {"device_share": 1.2}],
)
def test_refuses_what_is_no_guarantee(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Guarantee(
            **{
                "epsilon": 1.0,
                "delta": 1e-5,
                "adjacency": Adjacency.ADD_REMOVE,
                "kind": Kind.RECORD_DP,
                "accountant": "pld",
                **change,
            }
        )


def test_kind_none_promises_nothing() -> None:
    with pytest.raises(UsageError, match="nominal_epsilon"):
        make(Kind.NONE, 3.0)


@pytest.mark.parametrize("stored", [{}, {"epsilon": None}, {"epsilon": 1, "delta": 1e-5, "kind": "strong"}])
def test_from_dict_refuses_other_things(stored: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="not a stored guarantee"):
        Guarantee.from_dict(stored)
