"""What README and the documentation say works as they say it."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import elite_pl
import elite_pl.methods
import elite_pl.models
from elite_pl import audit, export, score, search
from elite_pl.algorithm.metrics import roc_auc
from elite_pl.data import digits
from elite_pl.report import __main__ as report
from elite_pl.report.statistics import mean_std
from elite_pl.report.tables import plus_minus
from elite_pl.studies.read import Run, read_studies

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.md"))
PARSERS: dict[str, Callable] = {
    "audit": audit.parser,
    "export": export.parser,
    "report": report.parser,
    "score": score.parser,
    "search": search.parser,
}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[list[str]]:
    """The words of each `python -m elite_pl.COMMAND ...` that a page shows as a block, from COMMAND on."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.fullmatch(r"\s*(?:[A-Z_]+=\S+ )?python -m elite_pl\.(.+)", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def of_one_run(word: str) -> str:
    """An override of a sweep with the first of its values, and a placeholder with one that exists."""
    key, typed, value = word.partition("=")
    if not typed:  # one that takes a key away
        return word
    value = {"…": "anywhere", "NAME": "deep_svdd", "range(10)": "0"}.get(value, value)
    return f"{key}={value if value.startswith(('[', '{')) else value.split(',')[0]}"


def test_pages_show_commands():
    assert all(map(commands, (README, *(ROOT / "docs" / f"{page}.md" for page in ("data", "studies", "extending")))))
    assert sum(len(commands(page)) for page in RESULTS) > 30


@pytest.mark.parametrize("page", [page for page in GUIDE + RESULTS if commands(page)], ids=name)
def test_its_commands_are_understood(page, command, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "8")
    for program, *words in commands(page):
        if program != "train":
            PARSERS[program]().parse_args([os.path.expandvars(word) for word in words])
        elif "--config-dir" not in words:  # those are run below
            overrides = [of_one_run(word) for word in words if word != "-m"]
            outcome = command("--cfg", "job", "--resolve", *overrides)
            assert outcome.code == 0, (words, outcome.err)


def prose(page: Path) -> str:
    """A page without its blocks of code, in which `#` begins a comment."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """What a page links to in the repository."""
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", prose(page))


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them: on GitHub, and to the third level in our site."""
    headings = re.findall(r"^#{1,3} (.+)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def files() -> set[Path]:
    """The files of the repository: what is committed, and what is about to be."""
    git = shutil.which("git")
    assert git
    listing = [git, "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    found = subprocess.run(listing, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return {ROOT / name for name in found.stdout.split("\0") if name}


@pytest.mark.parametrize("page", GUIDE + RESULTS, ids=name)
def test_its_links_lead_somewhere(page, files):
    for link in links(page):
        place, _, heading = link.partition("#")
        target = Path(os.path.normpath(page.parent / place)) if place else page
        assert target in files and target.exists(), link  # what `make docs` writes is not in a clone
        assert not heading or heading in anchors(target), link


def test_pages_show_links():
    assert all(map(links, (README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("own_*.md"))))
    assert sum("#" in link for page in GUIDE + RESULTS for link in links(page)) > 15


@functools.cache
def cells(study: str) -> list[Run]:
    runs, _ = read_studies([ROOT / "benchmarks" / "results" / study / "cells.jsonl"])
    return runs


def measured(what: str, command: str) -> tuple[str, list[str]]:
    """The method of a row of README's first table, and the studies whose cells its numbers come from."""
    if page := re.search(r"\]\(benchmarks/results/(\w+)/README\.md\)", command):
        return what.split(",")[0].lower().replace(" ", "_"), [page[1]]
    method = re.search(r"method=(\w+)", command)[1]
    if "feature_map=oriented_gradients" in command or method == "auto":
        return method, ["mnist_gradients"]
    augmented = "augmentation=" in command or method.endswith("_augmented")
    return method, ["mnist_augmented"] if augmented else ["mnist_20_labels", "mnist_classical"]


def test_the_numbers_of_readme_are_those_of_the_cells():
    header, _, *rows = re.findall(r"^\|.*\|$", README.read_text(), re.MULTILINE)
    pollutions = re.findall(r"pollution (\S+)", header)
    for row in rows:
        what, command, *shown = (cell.strip(" *") for cell in row.strip("|").split("|"))
        method, studies = measured(what, command)
        for pollution, text in zip(pollutions, shown, strict=True):
            cell = {"dataset": "mnist", "method": method, "pollution": float(pollution), "seed": 0, "data/labeled": 20}
            runs = [run for study in studies for run in cells(study)]
            found = [run for run in runs if all(run[key] == value for key, value in cell.items())]
            assert sorted(run["normal_class"] for run in found) == list("0123456789"), row
            assert text == plus_minus(*mean_std([run.auroc for run in found])), row
    assert len(rows) > 15 and len(re.findall(r"\d ± \d", README.read_text())) == 2 * len(rows), "there are others"


def test_from_python(monkeypatch, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block in (ROOT / "docs" / "quick_start.md").read_text(), "the same on both pages"
    monkeypatch.chdir(tmp_path)
    data = digits()
    y = np.where(data.y_train[:120] == 3, 1, -1) * (np.arange(120) < 40)
    names = {"x": data.x_train[:120], "y": y, "x_new": data.x_test}
    exec(block, names)
    detector = names["detector"]
    assert len(detector.training_scores) == 120 and detector.method == "auto"
    assert roc_auc(torch.as_tensor(detector.score(data.x_test)), torch.as_tensor(data.y_test != 3)) > 0.7


def test_a_method_a_score_a_backbone_and_a_source_of_your_own(command, monkeypatch, tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks].count("sh") == 3
    monkeypatch.syspath_prepend(tmp_path / "mine")
    found, detectors = [], []
    for kind, content in blocks:
        if kind != "sh":
            path = tmp_path / content.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            continue
        variable, *program = shlex.split(content)
        assert variable == "PYTHONPATH=mine" and program[:3] == ["python", "-m", "elite_pl.train"]
        outcome = command(*program[3:], "logger=none", "epochs=3")
        assert outcome.code == 0, outcome.err
        metrics = json.loads((outcome.directory / "metrics.json").read_text())
        found.append((metrics["dataset"], metrics["method"], metrics["backbone"]))
        assert metrics["test/auroc"] > 0.5
        detectors.append(outcome.directory / "detector.pt")
    assert found == [
        ("digits", "trimmed", "mlp"),
        ("digits", "elite_cosine", "linear"),
        ("waves", "elite_svdd", "mlp"),
    ]
    mine = {
        f"{module}.{part}": getattr(sys.modules[module], part)
        for module, part in (("cosine", "Cosine"), ("linear", "linear"))
    }
    assert [elite_pl.load(path, constructors=mine).method for path in detectors[:2]] == ["trimmed", "elite_cosine"]
    assert elite_pl.load(detectors[0]).method == "trimmed", "its score and network are ours"
    for path in (tmp_path / "mine").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_map_names_every_package_and_command():
    named = set(re.findall(r"\b(\w+/|\w+\.py)(?=\s)", README.read_text().split("## Map")[1]))
    packages = {f"{path.parent.name}/" for path in (ROOT / "elite_pl").glob("*/__init__.py")}
    assert packages <= named and {"train.py", "search.py"} <= named


def test_the_reference_names_everything_public():
    named = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    for package in (elite_pl, elite_pl.data, elite_pl.methods, elite_pl.models):
        assert set(dir(package)) <= named, package


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<math" in (tmp_path / "method.html").read_text()
    assert "Posterior.hidden" in (tmp_path / "api" / "elite_pl.algorithm.calibration.html").read_text()
    assert not re.findall(r'(?:src|href)="http[^"]+\.(?:js|css)', (tmp_path / "index.html").read_text())
