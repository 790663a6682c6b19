"""The report of a study: its numbers, recomputed by hand, and its errors."""

import json
import statistics
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from elite_pl import report


@pytest.fixture
def study(tmp_path):
    """Writes finished runs, as far as the report reads them."""

    def add(auroc: float, *, rate: float = 0.1, directory: Path = tmp_path / "study", **metrics: object) -> Path:
        facts = {
            "dataset": "digits",
            "method": "elite_svdd",
            "pollution": 0.5,
            "label_ratio": 0.02,
            "normal_class": "0",
            "seed": 0,
            "data/hidden_anomalies": 55,
            "data/unlabeled": 110,
            **metrics,
        }
        names = [f"{facts[key]}" for key in ("pollution", "label_ratio", "method", "normal_class", "seed")]
        run = directory / "-".join([*names, f"{rate:g}"])
        run.mkdir(parents=True, exist_ok=True)
        content = {"config_hash": run.name, "test/auroc": auroc, **facts}
        (run / "metrics.json").write_text(json.dumps(content))
        OmegaConf.save({"study": directory.name, "method": {"optimizer": {"lr": rate}}}, run / "config.yaml")
        return directory

    return add


def cells(text: str) -> list[list[str]]:
    """The table in a text: header, then rows."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shown(capfd, *arguments: object) -> str:
    report.main([str(argument) for argument in arguments])
    return capfd.readouterr().out


def refused(capfd, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit:
        report.main([str(argument) for argument in arguments])
    streams = capfd.readouterr()
    assert exit.value.code == 2 and streams.out == ""
    assert streams.err.startswith("error: ") and streams.err.count("\n") == 1
    return streams.err


ELITE = {("0", 0): 0.9, ("0", 1): 0.8, ("3", 0): 0.7, ("3", 1): 0.95}
RIVAL = {("0", 0): 0.6, ("0", 1): 0.7, ("3", 0): 0.5, ("3", 1): 0.5}


@pytest.fixture
def two_methods(study):
    for method, aurocs in (("elite_svdd", ELITE), ("deep_svdd", RIVAL)):
        for (normal_class, seed), auroc in aurocs.items():
            place = study(auroc, method=method, normal_class=normal_class, seed=seed)
    return place


def test_means_deviations_and_paired_differences(capfd, two_methods):
    out = shown(capfd, two_methods, "--columns", "normal_class")
    assert cells(out) == [
        ["method", "normal_class 0", "normal_class 3", "all", "runs", "elite_svdd ahead by"],
        ["deep_svdd", "65.0 ± 7.1", "50.0 ± 0.0", "57.5 ± 9.6", "4", "+26.2 ± 7.5 (n = 4)"],
        ["elite_svdd", "85.0 ± 7.1", "82.5 ± 17.7", "83.8 ± 11.1", "4", ""],
    ]
    differences = [100 * (ELITE[cell] - RIVAL[cell]) for cell in ELITE]
    assert statistics.fmean(differences) == pytest.approx(26.25)
    assert statistics.stdev(differences) / 2 == pytest.approx(7.5, abs=0.05)
    assert "dataset digits, pollution 0.5, label_ratio 0.02, 55 hidden anomalies among 110 unlabeled" in out
    assert f"picture  {two_methods / 'comparison.png'}" in out and f"runs     {two_methods}" in out
    assert (two_methods / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (two_methods / "table.md").read_text() in out


def test_settings_are_not_averaged_over(capfd, study):
    for pollution, hidden in ((0.1, 8), (0.5, 55)):
        for seed in range(2):
            counts = {"pollution": pollution, "seed": seed, "data/hidden_anomalies": hidden + seed}
            place = study(0.9 - pollution + seed / 10, **counts)
    assert cells(shown(capfd, place)) == [
        ["pollution", "method", "ROC AUC (%)", "runs", "hidden anomalies"],
        ["0.1", "elite_svdd", "85.0 ± 7.1", "2", "8.5"],
        ["0.5", "elite_svdd", "45.0 ± 7.1", "2", "55.5"],
    ]
    assert cells(shown(capfd, place, "--columns", "pollution"))[0][:3] == ["method", "pollution 0.1", "pollution 0.5"]


def test_a_difference_needs_the_same_split(capfd, study):
    study(0.9, seed=0)
    study(0.8, seed=1)
    study(0.7, seed=1, method="deep_svdd")
    study(0.1, seed=2, method="deep_svdd")
    rows = cells(shown(capfd, study(0.6, seed=9, method="oracle")))
    assert [row[-1] for row in rows] == ["elite_svdd ahead by", "+10.0 (n = 1)", "", ""]


def test_runs_that_differ_in_more_are_not_averaged(capfd, study):
    study(0.9, rate=0.1)
    place = study(0.8, rate=0.2)
    assert "differ in method.optimizer.lr;" in refused(capfd, place)
    rows = cells(shown(capfd, place, "--rows", "method,method.optimizer.lr"))
    assert [row[:3] for row in rows[1:]] == [["elite_svdd", "0.1", "90.0"], ["elite_svdd", "0.2", "80.0"]]


def test_studies_are_put_together_and_a_run_counts_once(capfd, study, tmp_path):
    first = study(0.9)
    second = study(0.9, directory=tmp_path / "second")
    study(0.7, directory=second, seed=1)
    assert cells(shown(capfd, first, second))[1] == ["elite_svdd", "80.0 ± 14.1", "2"]


def test_cells_say_what_the_runs_said(capfd, two_methods, tmp_path):
    kept = tmp_path / "kept" / "cells.jsonl"
    table = cells(shown(capfd, two_methods, "--cells", kept, "--rows", "method,method.optimizer.lr"))
    assert (kept.parent / "table.md").exists() and len(kept.read_text().splitlines()) == 8
    assert cells(shown(capfd, kept, "--rows", "method,method.optimizer.lr")) == table
    kept.write_text("{}\n")
    assert "cells.jsonl" in refused(capfd, kept)


def test_errors(capfd, study, tmp_path):
    assert "no such directory" in refused(capfd, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no finished run" in refused(capfd, tmp_path / "empty")
    place = study(0.9)
    assert "colour" in refused(capfd, place, "--rows", "colour,method")
    assert "--help" in refused(capfd)
    (place / "half").mkdir()
    (place / "half" / "metrics.json").write_text('{"test/auroc": 0.')
    assert "half/metrics.json" in refused(capfd, place)


def test_a_sweep_of_the_command(command, capfd):
    outcome = command("-m", "method=deep_svdd,elite_svdd", "normal_class=1", "epochs=1", "method.pretrain_epochs=0")
    assert outcome.code == 0, outcome.err
    out = shown(capfd, "outputs/runs", "--columns", "normal_class")
    rows = cells(out)
    assert rows[0][:2] == ["method", "normal_class 1"] and [row[0] for row in rows[1:]] == ["deep_svdd", "elite_svdd"]
    found = json.loads(next(Path("outputs").rglob("deep_svdd/*/metrics.json")).read_text())
    assert rows[1][1] == f"{100 * found['test/auroc']:.1f}"
