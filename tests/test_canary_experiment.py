"""The canary experiment: what its table says follows from its findings, and a weak release gives a bound above 0."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.canary.study import FOLDER, as_expected, table
from experiments.harness.experiment import TABLE
from optical_dfa.attacks import attack
from optical_dfa.attacks.setting import Setting
from privacy.attacks.finding import Finding


@pytest.fixture(scope="module")
def weak() -> Finding:
    """Digits, ε = 64: the scores of 120 canaries are far enough apart that of 24 guesses nearly all are right."""
    setting = Setting(dataset="digits", epsilon=64.0, delta=1e-4, confidence=0.9, trials=120)
    return attack("canary", setting)


@pytest.mark.slow
def test_canaries_show_a_weak_run_end_to_end(weak: Finding) -> None:
    assert weak.epsilon_lower is not None
    assert 0 < weak.epsilon_lower < weak.epsilon_claimed
    assert weak.consistent is True


@pytest.mark.slow
def test_the_table_says_what_was_found(weak: Finding) -> None:
    text = table([(weak, 12.4)])
    assert f"| {weak.epsilon_lower:.3f} | yes | 24 | {weak.details['right']} | 12 |" in text
    assert as_expected(weak, 12.4)
    assert not as_expected(weak, 601.0)
    assert not as_expected(replace(weak, epsilon_lower=0.0), 12.4)
    assert not as_expected(replace(weak, epsilon_claimed=0.01), 12.4)


def test_the_kept_table_shows_a_bound_below_the_claim() -> None:
    cells = (FOLDER / TABLE).read_text(encoding="utf-8").splitlines()[2].split("|")
    release, claimed, lower, stands, *_, seconds = (cell.strip() for cell in cells[1:-1])
    assert (release, claimed, stands) == ("digital", "8", "yes")
    assert 0 < float(lower) < 8
    assert float(seconds) < 600
