"""What the documents say is there is there: README's example runs, its tables are the files, named tests exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.harness.readme import DOCUMENTS as WITH_TABLES
from experiments.harness.readme import with_tables
from noise_models.calibration.photon_transfer import calibrate
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends import create
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.config import TrainConfig
from optical_dfa.report.statement import NOT_COVERED
from optical_dfa.training.trainer import train
from privacy.engine import PrivacyEngine
from privacy.releases import RELEASES
from privacy.releases.source import Parts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
THREATS = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_python_runs_and_every_assumption_it_prints_is_explained(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    asked = code + "\nimport json\nprint(json.dumps(guarantee.to_dict()))\n"
    ran = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    guarantee = json.loads(ran.stdout.splitlines()[-1])
    assert guarantee["kind"] == "record-dp"
    assert 2.5 < guarantee["epsilon"] <= 3.0
    assert guarantee["device_share"] > 0.85
    assert_explained(guarantee["assumptions"])


def assert_explained(assumptions: Iterable[str]) -> None:
    """The threat model has the beginning of each."""
    explained = " ".join(THREATS.replace("`", "").split()).lower()
    for assumption in assumptions:
        beginning = re.split(r"[(:,]", assumption.lower())[0].strip()
        assert beginning in explained, f"docs/threat-model.md does not explain: {assumption}"


def test_every_assumption_of_a_device_is_explained() -> None:
    generator = NoiseGenerator.seeded(0, "documentation")
    options = {"dark_pixels": 4096, "fidelity": "physics"}
    with create(
        "simulated-opu", in_features=4, out_features=8, seed=0, noise=generator, options=options
    ) as device:
        calibration = calibrate(device, dark_frames=256)
        assert calibration.passed
        for release, known in (("dark-frame", calibration), ("device-entropy", None)):
            made = (
                import_module(f"privacy.releases.{release.replace('-', '_')}")
                .make(
                    Parts(
                        device,
                        lambda name: NoiseGenerator.seeded(0, name),
                        align(nn.Linear(4, 2), rule="bp", show=None).start_capture,
                        calibration=known,
                    )
                )
                .source
            )
            assert made.assumptions
            assert_explained(
                text for text in made.assumptions if not text.startswith("photon-transfer calibration")
            )


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_every_assumption_of_a_release_is_explained(release: str) -> None:
    backend, rule = {"label": ("digital", "dfa"), "aggregate": ("digital", "gated-dfa")}.get(
        release, ("simulated-opu", "dfa")
    )
    config = TrainConfig(
        dataset="digits", model="mlp:4", backend=backend, rule=rule, release=release, epochs=1, batch_size=700
    )
    stated = train(config)["guarantee"]
    assert stated["kind"] == RELEASES[release].kind
    assert_explained(text for text in stated["assumptions"] if not text.startswith("FAILS"))


def test_the_documents_tables_are_the_experiments() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in WITH_TABLES]
    shown = sum(text.count("<!-- table: ") for text in texts)
    assert shown == len(list((ROOT / "experiments").glob("*/table.md")))
    for text in texts:
        assert with_tables(text, ROOT) == text, "run: python -m experiments harness.readme"


def test_tables_are_put_between_their_markers_only(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("| new |\n")
    text = "before\n<!-- table: a.md -->\n| old |\n<!-- end -->\nbetween\n<!-- end -->\n"
    once = with_tables(text, tmp_path)
    assert once == "before\n<!-- table: a.md -->\n\n| new |\n\n<!-- end -->\nbetween\n<!-- end -->\n"
    assert with_tables(once, tmp_path) == once
    with pytest.raises(UsageError, match=r"b\.md"):
        with_tables(text.replace("a.md", "b.md"), tmp_path)


def test_the_tests_that_the_threat_model_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", THREATS))
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    code += (ROOT / "optical_dfa" / "testing" / "conformance.py").read_text(encoding="utf-8")
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_the_threat_model_lists_what_a_report_says_is_not_covered() -> None:
    flat = " ".join(THREATS.split())
    for text in NOT_COVERED:
        assert text.rstrip(".") in flat


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


class Foreign(DigitalBackend):
    """A device of another package."""

    name = "foreign"


def test_a_device_of_another_package_is_taken_at_its_word_and_the_statement_says_so() -> None:
    assumed = []
    for kind in (DigitalBackend, Foreign):
        device = kind(4, 6, seed=0, noise=NoiseGenerator.seeded(0, "documentation"))
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        engine = PrivacyEngine()
        engine.make_private(
            module=align(net, rule="dfa", backend=device, show=None),
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.randn(40, 5), torch.arange(40) % 4), batch_size=8),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            release="digital",
        )
        assumed.append(engine.get_guarantee(1e-5).assumptions)
    [told] = set(assumed[1]) - set(assumed[0])
    assert "foreign keeps its contract" in told
    assert_explained([told])


def test_every_theorem_that_is_cited_is_a_heading_of_the_theory() -> None:
    headings = re.findall(
        r"^## (T\d+)\.|^## ([A-Z][a-z ]+)$", (ROOT / "docs" / "theory.md").read_text("utf-8"), re.M
    )
    known = {number or words for number, words in headings}
    assert {f"T{number}" for number in range(1, 10)} | {"Setting", "Noise credit"} <= known
    sources = [path for folder in ("optical_dfa", "noise_models", "privacy", "experiments", "tests", "docs")
               for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".toml")]  # fmt: skip
    for path in [*sources, ROOT / "README.md"]:
        for cited in re.findall(
            r"THEORY,?\s+((?:T\d+|[A-Z][a-z]+(?: credit)?|§\S+))", path.read_text("utf-8")
        ):
            assert cited in known, f"{path} cites THEORY {cited}"
