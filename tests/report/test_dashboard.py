"""A study in W&B: its report as a run of its own, the upload of what was offline, and W&B's agent (loopback only)."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_tools import MockServer, read_run

from elite_pl.report import __main__ as report

SWEEP = Path(__file__).parents[2] / "conf" / "wandb_sweep.yaml"
CELLS = Path(__file__).parents[2] / "benchmarks" / "results" / "mnist_20_labels" / "cells.jsonl"
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def server(nobody, monkeypatch):
    with MockServer() as mock:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", mock.url)
        yield mock


def test_the_report_is_a_run_with_a_chart_a_panel(offline, capfd, tmp_path):
    report.main([str(CELLS), "--output", str(tmp_path), "--wandb", "team/dirty"])
    (said,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("W&B"))
    run = read_run(Path(said.split()[-1]))
    facts = run["run"]
    assert (facts.entity, facts.project, facts.job_type) == ("team", "dirty", "report")
    assert run["exit_code"] == 0 and facts.run_group == "mnist_20_labels"
    (row,) = run["history"]
    charts = [name for name in row if name.startswith("charts/")]
    assert charts == ["charts/ROC AUC (%) over pollution (mnist)_table"]
    assert {"summary", "report", "pictures/pollution", "pictures/comparison"} <= row.keys()
    (place,) = run["file"].parent.glob("files/media/table/charts/*.json")
    table = OmegaConf.create(place.read_text())
    elite = {line[0]: line[2] for line in table.data if line[1] == "elite_svdd"}
    assert {x: round(y, 1) for x, y in elite.items()} == {0.1: 95.5, 0.3: 96.2, 0.5: 95.9}
    assert {line[1] for line in table.data} >= {"deep_sad", "ssad", "rsrae"}


def test_a_later_report_replaces_the_earlier_one(server, capfd, tmp_path):
    for _ in range(2):
        report.main([str(CELLS), "--output", str(tmp_path), "--wandb"])
    assert len(server.runs) == 1
    (sent,) = server.runs.values()
    assert (sent["groupName"], sent["jobType"], sent["project"]) == ("mnist_20_labels", "report", "elite_pl")
    assert "W&B      http" in capfd.readouterr().out


def test_an_offline_study_is_uploaded_as_the_page_says(command, offline, server, monkeypatch, tmp_path):
    short = ["epochs=1", "method.pretrain_epochs=0", "study=mine", "logger=wandb"]
    assert command("-m", *short, "method=deep_svdd", "seed=0,1").code == 0
    assert not server.runs
    page = (SWEEP.parents[1] / "docs" / "studies.md").read_text()
    (line,) = (line.strip() for line in page.splitlines() if "wandb sync" in line)
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(line.replace("STUDY", "mine"), shell=True, check=True, env=environment, timeout=60)
    assert sorted(run["displayName"][-5:] for run in server.runs.values()) == ["seed0", "seed1"]
    assert {run["groupName"] for run in server.runs.values()} == {"mine"}
    assert set(server.exit_codes.values()) == {0}


def arguments(sweep, **chosen):
    """What W&B's agent types for a cell, without the interpreter."""
    variables = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    typed = []
    for part in create_sweep_command(sweep["command"]):
        typed += variables.get(part[2:-1], []) if part.startswith("${") else [part]
    return typed


def test_the_agent_runs_a_cell(command, server, monkeypatch):
    sweep = yaml.safe_load(SWEEP.read_text())
    parameters = {name: choices["values"] for name, choices in sweep["parameters"].items()}
    first = {name: values[0] for name, values in parameters.items()} | {"dataset": "digits"}
    module, *typed = itertools.dropwhile(lambda part: part != "elite_pl.train", arguments(sweep, **first))
    assert module == "elite_pl.train"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")  # as the agent does
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    outcome = command(*typed, "label_ratio=0.085", "epochs=20", "logger=wandb")
    assert outcome.code == 0, outcome.err
    assert (server.runs["run1"]["sweep"], server.runs["run1"]["groupName"]) == ("sweep1", "fig3_pollution")
    assert 0.5 < server.summary["run1"][sweep["metric"]["name"]] <= 1


def test_the_sweep_file_is_figure_3(command):
    sweep = yaml.safe_load(SWEEP.read_text())
    figure = OmegaConf.load(SWEEP.parent / "experiment" / "fig3_pollution.yaml")
    for name, choices in sweep["parameters"].items():
        asked = [str(value) for value in choices["values"]]
        meant = str(figure.hydra.sweeper.params[name]).replace("range(10)", "0,1,2,3,4,5,6,7,8,9").split(",")
        assert asked == meant, name
    for method in sweep["parameters"]["method"]["values"]:
        _, *typed = itertools.dropwhile(lambda part: part != "elite_pl.train", arguments(sweep, method=method))
        assert command("--cfg", "job", *typed, "logger=none").code == 0
