"""What the README says works as it says."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

import elite_pl
from elite_pl.algorithm.metrics import roc_auc
from elite_pl.data import digits

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_a_method_a_score_and_a_backbone_of_your_own(command, monkeypatch, tmp_path):
    section = README.split("## A method of your own")[1].split("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "yaml", "sh", "python", "yaml", "python", "yaml", "sh"]
    assert all(sum(len(text.splitlines()) for _, text in blocks[i : i + 2]) <= 17 for i in (0, 3, 5))
    monkeypatch.syspath_prepend(tmp_path / "mine")
    found, detectors = [], []
    for kind, text in blocks:
        if kind != "sh":
            path = tmp_path / text.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            continue
        variable, *program = text.split()
        assert variable == "PYTHONPATH=mine" and program[:3] == ["python", "-m", "elite_pl.train"]
        outcome = command(*program[3:], "logger=none", "epochs=3")
        assert outcome.code == 0, outcome.err
        metrics = json.loads((outcome.directory / "metrics.json").read_text())
        found.append((metrics["method"], metrics["backbone"]))
        assert metrics["test/auroc"] > 0.5
        detectors.append(outcome.directory / "detector.pt")
    mine = {
        f"{name}.{part}": getattr(sys.modules[name], part)
        for name, part in (("cosine", "Cosine"), ("linear", "linear"))
    }
    assert [elite_pl.load(path, constructors=mine).method for path in detectors] == ["trimmed", "elite_cosine"]
    assert elite_pl.load(detectors[0]).method == "trimmed", "its score and network are ours"
    for path in (tmp_path / "mine").glob("*.py"):
        sys.modules.pop(path.stem, None)
    assert found == [("trimmed", "mlp"), ("elite_cosine", "linear")]


def test_from_python(monkeypatch, tmp_path):
    section = README.split("## From Python")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    data = digits()
    y = np.where(data.y_train[:200] == 3, 1, -1) * (np.arange(200) < 40)
    names = {"x": data.x_train[:200], "y": y, "x_new": data.x_test}
    exec(block, names)
    detector = names["detector"]
    assert len(detector.training_scores) == 200 and detector.method == "elite_svdd"
    assert roc_auc(torch.as_tensor(detector.score(data.x_test)), torch.as_tensor(data.y_test != 3)) > 0.7


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_its_commands_compose(command):
    lines = re.findall(r"^    python -m elite_pl\.train (.+)$", README, re.MULTILINE)
    assert lines
    for line in lines:
        arguments = [part.strip("'") for part in line.split() if part != "-m"]
        swept = [a.replace("range(10)", "0").split(",")[0] for a in arguments]
        outcome = command("--cfg", "job", "--resolve", *swept)
        assert outcome.code == 0, (line, outcome.err)


def test_the_map_names_every_package_and_command():
    named = set(re.findall(r"\b(\w+/|\w+\.py)(?=\s)", README.split("## Map")[1]))
    packages = {f"{path.parent.name}/" for path in (ROOT / "elite_pl").glob("*/__init__.py")}
    assert packages <= named and {"train.py", "search.py"} <= named
