"""The search over settings: what it finds, what it must not see, and how it goes on."""

import csv
import os
import shlex
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from elite_pl import search

QUICK = ["method=labels_only", "method.pretrain_epochs=0", "label_ratio=0.2", "normal_class=3", "logger=none"]
RATES = "method.optimizer.lr=1e-9,1e-2"


@pytest.fixture
def searched(call):
    """Runs `python -m elite_pl.search ARGUMENTS` in this process: exit code, standard output, standard error."""
    return lambda *arguments: astuple(call(search.main, *arguments))


def trials(study: str = "runs") -> list[dict[str, str]]:
    with open(Path("outputs", study, "search.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_it_finds_the_better_setting_and_goes_on(searched):
    code, out, err = searched(*QUICK, RATES, "epochs=10", "--folds", "3", "--trials", "1")
    assert (code, len(trials())) == (0, 1), err
    code, out, err = searched(*QUICK, RATES, "epochs=10", "--folds", "3", "--trials", "2")
    assert code == 0 and err.count("held out") == 1  # the first is known
    value = {row["method.optimizer.lr"]: float(row["auroc"]) for row in trials()}
    assert value["0.01"] > 0.9 > 0.75 > value["1e-09"]
    best = shlex.split(out.splitlines()[-1])
    assert best[:3] == ["python", "-m", "elite_pl.train"] and best[-1] == "method.optimizer.lr=0.01"
    assert subprocess.run([sys.executable, *best[1:], "--cfg", "job"], capture_output=True).returncode == 0


def test_what_goes_on_draws_nothing_twice(searched):
    typed = [*QUICK, "method.optimizer.lr=tag(log,interval(1e-5,1e-2))", "epochs=1", "--folds", "2"]
    for count in ("2", "4"):
        code, _, err = searched(*typed, "--trials", count)
        assert code == 0, err
    assert len({row["method.optimizer.lr"] for row in trials()}) == 4


def test_it_never_sees_the_test_part(searched, images, tmp_path):
    path = images()
    with np.load(path) as arrays:
        x, y = arrays["x"], arrays["y"]
    rng = np.random.default_rng(0)
    found = []
    for study, x_test, y_test in (("a", x[::3], y[::3]), ("b", 255 - x[::3], rng.permutation(y[::3]))):
        np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        typed = ["dataset=npz", f"dataset.path={path}", "label_ratio=0.1", "n_train=60", "batch_size=32", "logger=none"]
        code, _, err = searched(*typed, f"study={study}", RATES, "epochs=2", "--folds", "2", "--trials", "2")
        assert code == 0, err
        found.append([{**row, "search": ""} for row in trials(study)])
    assert found[0] == found[1]


def test_searches_of_one_study_are_kept_side_by_side(searched):
    for values in ("epochs=1,2", "batch_size=16,32"):
        code, _, err = searched(*QUICK, values, "--folds", "2", "--trials", "2")
        assert code == 0, err
    found = [(row["search"].split("logger=none ")[1], row["epochs"], row["batch_size"]) for row in trials()]
    assert sorted(found) == [
        *(("batch_size=16,32 --folds=2", "", size) for size in ("16", "32")),
        *(("epochs=1,2 --folds=2", epochs, "") for epochs in ("1", "2")),
    ]


def test_the_best_of_a_config_of_ones_own_is_trained_with_it(searched, tmp_path):
    (tmp_path / "mine/method").mkdir(parents=True)
    (tmp_path / "mine/method/own.yaml").write_text("defaults: [labels_only]\nname: own")
    typed = ["method=own", *QUICK[1:], "epochs=1,2", "--folds", "2", "--trials", "1", "--config-dir", "mine"]
    code, out, err = searched(*typed)
    assert code == 0, err
    best = shlex.split(out.splitlines()[-1])
    printed = subprocess.run([sys.executable, *best[1:], "--cfg", "job"], capture_output=True, text=True)
    assert printed.returncode == 0 and "name: own" in printed.stdout, printed.stderr


def test_a_trial_that_fails_is_told(searched):
    code, out, err = searched(*QUICK, "method.optimizer.lr=1e30,1e-3", "epochs=2", "--folds", "2", "--trials", "2")
    assert code == 0 and "lr=1e+30: failed" in err
    assert {row["method.optimizer.lr"]: row["state"] for row in trials()} == {"1e+30": "fail", "0.001": "complete"}
    assert out.splitlines()[-1].endswith("lr=0.001")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["epochs=2"], "nothing to search"),
        (["pollution=0.1,0.5"], "pollution: is not a setting to search"),
        (["method.optimizer.rate=1,2"], "method.optimizer.rate"),
        (["epochs=1,2", "--folds", "1"], "two folds"),
        (["epochs=1,2", "--trials", "0"], "at least one setting"),
        (["label_noise=0,0.1"], "label_noise: is not a setting to search"),
        (["epochs=1,2", "label_ratio=0.02"], "label_ratio=0.02: 1 labeled samples of a kind are too few for 5 folds"),
        (["epochs=1,2", "trainer=ddp", "trainer.devices=2"], "trainer.devices=2: a search takes one process"),
        (["method=auto", "method.pollution=0.1,0.2"], "method=auto: is made of several trainings"),
        (["method=elite_svdd,auto"], "method=auto: is made of several trainings"),
        (["ensemble=1,2"], "ensemble: is not a setting to search"),
        (["epochs=1,2", "ensemble=2"], "ensemble=2: is made of several trainings"),
        (["epochs=1,2", "--config-dir", "nowhere"], "nowhere is not available"),
        (["epochs=1,2", "--trials"], "argument --trials: expected one argument; see --help"),
        (["epochs=1,2", "--trial", "few"], "argument --trials: invalid int value: 'few'"),
        (["--bogus", "epochs=1,2"], "unrecognized arguments: --bogus"),
        (["epochs=range(0)"], "epochs=range(0): has no values"),
        (["epochs=1,2", "dataset.path=[x].csv"], """quotes; as text: 'dataset.path="[x].csv"'"""),
        (["method.optimizer.lr=interval(1e-3,inf)"], "from a lower to a higher number"),
        (["epochs=1,2", "threads=100000000"], "threads=100000000: must be at most"),
    ],
)
def test_bad_input(searched, typed, said):
    code, out, err = searched(*typed)
    assert code == 2 and said in err and err.startswith("error: ") and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda journal: journal.write_bytes(b"\xff\0half\n{"), "is damaged (UnicodeDecodeError"),
        (lambda journal: journal.write_text('{"op_code": 77}\n'), "is damaged (AssertionError"),
        (Path.mkdir, "is not a file; remove it"),
        (os.mkfifo, "is not a file; remove it"),
    ],
)
def test_a_journal_that_is_none(searched, make, said):
    journal = Path("outputs/runs/search.journal")
    journal.parent.mkdir(parents=True)
    make(journal)
    code, out, err = searched(*QUICK, RATES, "--folds", "2")
    assert code == 2 and err.startswith(f"error: {journal}: {said}") and err.count("\n") == 1 and not out


def test_that_every_trial_fails_is_a_failure(searched):
    code, _, err = searched(*QUICK, "method.optimizer.lr=1e30,1e31", "epochs=1", "--folds", "2", "--trials", "2")
    assert code == 1 and err.splitlines()[-1] == "error: every trial failed: nothing can be said"


def test_without_optuna(searched, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert searched("epochs=1,2") == (2, "", "error: elite_pl.search needs Optuna: pip install 'elite_pl[search]'\n")
