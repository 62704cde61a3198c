"""What the documents say is there is there: their Python runs, their commands parse, tables are files, tests exist."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer import BadParameter
from typer.main import get_command

from experiments.__main__ import names as experiments
from experiments.harness.readme import DOCUMENTS as WITH_TABLES
from experiments.harness.readme import with_tables
from noise_models.calibration.photon_transfer import calibrate
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends import BACKENDS, create
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.cli.app import _application, with_values
from optical_dfa.config import TrainConfig
from optical_dfa.feedback import RULES
from optical_dfa.report.statement import NOT_COVERED
from optical_dfa.training.trainer import train
from privacy.engine import PrivacyEngine
from privacy.releases import RELEASES
from privacy.releases.source import Parts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OWN_PARTS = ROOT / "examples" / "own_parts"
THREATS = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {document: document.read_text(encoding="utf-8") for document in DOCUMENTS}
CALLED = r"optical-dfa|make|python -m (?:experiments|optical_dfa)"


# click's class, which typer vendors.
NOT_GIVEN = next(kind for kind in BadParameter.__subclasses__() if kind.__name__ == "MissingParameter")


def run(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A page's names after its Python, block by block, in an empty folder."""
    monkeypatch.chdir(folder)
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # its classes are pickled by name
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXTS[document], re.DOTALL | re.MULTILINE)
    for number, code in enumerate(blocks):
        exec(compile(code, f"{document.name}, block {number}", "exec", dont_inherit=True), vars(page))
    return vars(page)


def test_the_readmes_python_runs_and_every_assumption_it_prints_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarantee = run(README, tmp_path, monkeypatch)["guarantee"].to_dict()
    assert guarantee["kind"] == "record-dp"
    assert 2.5 < guarantee["epsilon"] <= 3.0
    assert guarantee["device_share"] > 0.85
    assert_explained(guarantee["assumptions"])


@pytest.mark.parametrize(
    "document",
    [page for page, text in TEXTS.items() if "```python" in text and page != README],
    ids=lambda path: path.name,
)
def test_a_pages_python_runs_from_top_to_bottom(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(document, tmp_path, monkeypatch)


def test_the_files_that_a_page_shows_are_the_files() -> None:
    shown = re.findall(
        r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", "".join(TEXTS.values()), re.DOTALL | re.MULTILINE
    )
    assert {path for path, _ in shown} == {
        str(path.relative_to(ROOT)) for path in OWN_PARTS.glob("own_parts/[a-z]*.py")
    }
    for path, code in shown:
        assert code == (ROOT / path).read_text(encoding="utf-8"), path


def test_the_entry_points_that_a_page_shows_are_those_of_the_package() -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", "".join(TEXTS.values()), re.DOTALL | re.MULTILINE)
    package = tomllib.loads((OWN_PARTS / "pyproject.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(shown)["project"]["entry-points"] == package["project"]["entry-points"]


def quoted(text: str) -> list[str]:
    """What stands between backticks in running text."""
    running = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", running)]


def commands(text: str) -> list[list[str]]:
    """The words of every command of this project in a document, from blocks and from running text."""
    lines = re.findall(rf"^(?: {{4,}})(?:\.venv/bin/)?((?:{CALLED})\b.*)$", text, re.MULTILINE)
    lines += [code for code in quoted(text) if re.match(rf"(?:{CALLED}) ", code)]
    return [
        [word for word in shlex.split(line, comments=True) if word not in ("...", "--help")] for line in lines
    ]


def test_commands_are_found_in_blocks_and_in_running_text() -> None:
    text = (
        "a `make x`\n\n    optical-dfa train --out a  # why\n    .venv/bin/optical-dfa audit a ...\n\n"
        "```python\na\n```\n`python -m\nexperiments b`"
    )
    assert commands(text) == [
        ["optical-dfa", "train", "--out", "a"], ["optical-dfa", "audit", "a"], ["make", "x"],
        ["python", "-m", "experiments", "b"],
    ]  # fmt: skip
    assert sum(len(commands(text)) for text in TEXTS.values()) > 60


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_is_one(document: Path) -> None:
    program = get_command(_application())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in commands(TEXTS[document]):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:3] == ["python", "-m", "experiments"]:
            known_experiment(words[3:])
        else:
            name, *given = words[1:] if words[0] == "optical-dfa" else words[3:]
            parse(program.commands[name], name, given)  # type: ignore[attr-defined]


def parse(command: Any, name: str, given: list[str]) -> None:
    """Read the words as the command would; in running text, what it needs besides may be left out."""
    with suppress(NOT_GIVEN):
        command.make_context(name, with_values(given))
    for flag, known in (("--rule", RULES), ("--release", [*RELEASES, "none"]), ("--backend", BACKENDS)):
        for word, value in pairwise(given):
            assert word != flag or value == "NAME" or value in known, f"{name} {given}"


def known_experiment(words: list[str]) -> None:
    """The name of an experiment, with flags that it or the common runner has."""
    name, *given = words
    assert name in [*experiments(), "tables", "NAME"], name
    places = [ROOT / "experiments" / "harness" / "runner.py", ROOT / "experiments" / name / "study.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in places if path.is_file())
    for flag in (word for word in given if word.startswith("--")):
        assert f'add_argument("{flag}"' in code or f'"{flag}",' in code, words


def test_every_flag_in_a_document_is_one() -> None:
    program = get_command(_application())
    known = {
        flag
        for command in program.commands.values()  # type: ignore[attr-defined]
        for option in command.params
        for flag in option.opts
    }
    known |= {"--help", "--no-deps", "--pictures"}  # of pip, and of an experiment
    for document, text in TEXTS.items():
        named = re.findall(r"(?<=\s)--[a-z][a-z-]+", "  ".join(["", *quoted(text)]))
        assert set(named) <= known, document


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "command-line.md"], ids=lambda path: path.name)
def test_the_tables_of_flags_have_every_name_and_no_other(document: Path) -> None:
    shown: dict[str, list[str]] = {}
    names: list[str] = []
    for line in TEXTS[document].splitlines():
        cells = [cell for cell in line.split("|") if cell.strip()]
        if cells and (flag := re.fullmatch(r" `--(backend|release|rule)` ", cells[0])):
            names = shown.setdefault(flag[1], [])
            cells = cells[1:]
        if not line.startswith("|"):
            names = []
        elif cells:
            names += re.findall(r"`([\w-]+)`", cells[0])
    assert {flag: sorted(names) for flag, names in shown.items()} == {
        "backend": sorted(BACKENDS), "release": sorted(["none", *RELEASES]), "rule": sorted(RULES)
    }  # fmt: skip


def test_the_rooms_of_the_architecture_are_those_of_the_contracts() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    text = TEXTS[ROOT / "docs" / "how-it-works.md"]
    for contract in settings["contracts"]:
        if package := "".join(contract.get("containers", ())):
            table = text.split(f"Rooms of `{package}`")[1].split("\n\n")[1]
            shown = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
            assert shown == [
                ", ".join(f"`{room}`" for room in layer.split(" : ")) for layer in contract["layers"]
            ]


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
        dataset="digits",
        model="mlp:16",
        backend=backend,
        rule=rule,
        release=release,
        epochs=1,
        batch_size=700,
    )
    stated = train(config)["guarantee"]
    assert stated["kind"] == RELEASES[release].kind
    assert_explained(text for text in stated["assumptions"] if not text.startswith("FAILS"))


def test_the_documents_tables_are_the_experiments() -> None:
    marked = {document for document, text in TEXTS.items() if "<!-- table: " in text}
    assert marked == {ROOT / name for name in WITH_TABLES}
    shown = {path for text in TEXTS.values() for path in re.findall(r"<!-- table: (\S+) -->", text)}
    assert shown == {str(path.relative_to(ROOT)) for path in (ROOT / "experiments").glob("*/table.md")}
    for document in marked:
        assert with_tables(TEXTS[document], ROOT) == TEXTS[document], "run: python -m experiments tables"


def test_tables_are_put_between_their_markers_only(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("| new |\n")
    text = "before\n<!-- table: a.md -->\n| old |\n<!-- end -->\nbetween\n<!-- end -->\n"
    once = with_tables(text, tmp_path)
    assert once == "before\n<!-- table: a.md -->\n\n| new |\n\n<!-- end -->\nbetween\n<!-- end -->\n"
    assert with_tables(once, tmp_path) == once
    with pytest.raises(UsageError, match=r"b\.md"):
        with_tables(text.replace("a.md", "b.md"), tmp_path)


def test_the_tests_that_a_document_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", "".join(TEXTS.values())))
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
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[document]):
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
