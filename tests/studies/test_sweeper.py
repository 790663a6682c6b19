"""Studies through the command: what a restart runs, what two processes share, what fails, what is taken over."""

import csv
import errno
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from test_bad_input import refused

from elite_pl import config, train
from elite_pl.errors import TrainingError
from elite_pl.report import __main__ as report
from elite_pl.runs import identity, launch, run, run_together
from elite_pl.studies.cells import claim
from elite_pl.studies.sweeper import Sweep

PROJECT = Path(__file__).parents[2]
TINY = ("epochs=1", "method.pretrain_epochs=0", "threads=1", "logger=none")


def results(place="outputs"):
    """What each finished run says, by its run directory."""
    return {path.parent: json.loads(path.read_text()) for path in sorted(Path(place).rglob("metrics.json"))}


def written(place="outputs"):
    """When each finished run was finished."""
    return {path: path.stat().st_mtime_ns for path in Path(place).rglob("metrics.json")}


@contextmanager
def sweep_of(*typed):
    """A sweep as the command makes it, and the overrides of its cells."""
    config.register()
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        hydra = GlobalHydra.instance()
        master = hydra.hydra.compose_config(
            "train", list(typed), run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        made = Sweep(None, master.hydra.sweeper.params)
        context = HydraContext(hydra.config_loader(), Callbacks())
        made.setup(hydra_context=context, task_function=print, config=master)
        swept = [f"{key}={value}" for key, value in made.params.items()]
        yield made, made.combinations([*swept, *typed])


def directories_of(*typed):
    """The run directories of a sweep."""
    with sweep_of(*typed) as (made, combinations):
        return [made.cell(overrides, set(), {}).directory for overrides in combinations]


def counts(err):
    """The last line's numbers, such as `{"cells": 6, "run": 4, "done already": 2}`."""
    (line,) = re.findall(r"^\d+ cells: .+$", err, re.MULTILINE)
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z ]+)", line)}


# ------------------------------------------------------------------------------------------------------------ restarts


def child(arguments, errors):
    """The command in a process that is forked from this one, for PyTorch is loaded here."""
    sys.argv = ["elite_pl.train", *arguments]
    with open(errors, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        train.main()


def start(*arguments, errors="errors"):
    process = multiprocessing.get_context("fork").Process(target=child, args=(arguments, errors))
    process.start()
    return process


def kill(process, finished, after):
    """Kills a study as soon as so many cells are finished, and a moment later."""
    deadline = time.monotonic() + 300
    while len(written()) < finished and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)


def check_restart(before, after):
    """Nothing that was finished is lost or made again."""
    assert before.items() <= after.items()


def test_a_study_that_is_killed_goes_on(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = ("-m", "seed=0,1", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    before = {}
    for finished in (1, 3):
        process = start(*typed)
        kill(process, finished, random.uniform(0, 0.4))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        check_restart(before, written())
        before = written()
    outcome = command(*typed)
    assert outcome.code == 0, outcome.err
    assert counts(outcome.err) == {"cells": 6, "run": 6 - len(before), "done already": len(before)}
    check_restart(before, written())
    assert len(written()) == 6
    assert not [path for path in Path("outputs").rglob(".*")], "neither locks nor halves of files"


@pytest.mark.slow
def test_a_study_of_30_cells_killed_at_five_random_moments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = ("-m", "seed=0,1,2", "normal_class=range(10)", "method=deep_svdd", *TINY)
    real = [sys.executable, "-m", "elite_pl.train", *typed]
    before, in_flight = {}, 0
    for finished in sorted(random.sample(range(1, 29), 5)):
        process = subprocess.Popen(real, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kill(process, finished, random.uniform(0, 1))
        process.wait()
        check_restart(before, written())
        before = written()
        started = {path.parent for path in Path("outputs").rglob("config.yaml")}
        unfinished = started - {path.parent for path in before}
        assert len(unfinished) <= 1, "the cell in flight alone"
        in_flight += len(unfinished)
        print(f"killed with {len(before)} cells finished, {len(unfinished)} in flight")
    last = subprocess.run(real, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert counts(last.stderr) == {"cells": 30, "run": 30 - len(before), "done already": len(before)}
    check_restart(before, written())
    assert len(written()) == 30


def test_two_processes_on_one_study_share_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    both_have_a_cell = multiprocessing.get_context("fork").Barrier(2)
    write, entered = run.write_results, []

    def meet(*arguments, **named):
        if not entered:
            entered.append(True)
            both_have_a_cell.wait(timeout=120)
        return write(*arguments, **named)

    monkeypatch.setattr(run, "write_results", meet)
    typed = ("-m", "seed=0,1", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    processes = [start(*typed, errors=f"errors{i}") for i in range(2)]
    for process in processes:
        process.join()
    both = [Path(f"errors{i}").read_text() for i in range(2)]
    assert [process.exitcode for process in processes] == [0, 0], both
    assert sum(counts(err).get("run", 0) for err in both) == 6, both
    assert all(counts(err)["run"] >= 1 for err in both), both
    assert len(results()) == 6
    assert not [path for path in Path("outputs").rglob(".*")]


def hold(directory, held):
    with claim(directory) as ours:
        held.put(ours)
        time.sleep(600)


def test_a_cell_of_another_process_is_left_to_it_until_it_dies(command):
    typed = ("-m", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    directories = directories_of(*typed[1:])
    context = multiprocessing.get_context("fork")
    held = context.Queue()
    other = context.Process(target=hold, args=(directories[1], held))
    other.start()
    assert held.get(timeout=60) is True

    outcome = command(*typed)
    assert outcome.code == 0
    assert counts(outcome.err) == {"cells": 3, "run": 2, "being run by another process": 1}
    assert f"{directories[1]} is being run by another process" in outcome.err
    alone = command("normal_class=1", "method=deep_svdd", *TINY)
    assert alone.code == 1 and alone.err == f"error: {directories[1]} is being run by another process\n"

    os.kill(other.pid, signal.SIGKILL)
    other.join()
    again = command(*typed)
    assert counts(again.err) == {"cells": 3, "run": 1, "done already": 2}


def test_what_another_process_leaves_is_run_at_the_end(command, monkeypatch):
    """The other process dies while we run the cells that it had not begun."""
    typed = ("-m", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    first, second, third = directories_of(*typed[1:])
    other = FileLock(second.with_name(f".{second.name}.lock"))
    original = launch.launch

    def meanwhile(spec):
        if spec.directory == first:
            other.acquire()
        if spec.directory == third:
            other.release()
        return original(spec)

    monkeypatch.setattr(launch, "launch", meanwhile)
    outcome = command(*typed)
    assert counts(outcome.err) == {"cells": 3, "run": 3}
    assert outcome.out.splitlines()[1::2] == [str(first), str(third), str(second)]


def test_a_working_directory_that_has_gone_is_not_waited_for(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError), claim(Path("outputs/run")):
        pass


def test_a_file_system_without_locks_costs_a_warning(command, monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOSYS, "not there")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    outcome = command("method=deep_svdd", *TINY)
    assert outcome.code == 0 and "has no locks" in outcome.err


def test_a_changed_config_is_another_cell(command):
    typed = ("-m", "seed=0", "method=deep_svdd", *TINY)
    assert counts(command(*typed).err) == {"cells": 1, "run": 1}
    (path,) = written()
    alone = command(*typed[1:])
    assert alone.code == 0 and alone.err == "done before: nothing to run\n"
    assert logging.getLogger("elite_pl.runs.run").level == logging.NOTSET, "a study's quiet does not outlive it"
    assert counts(command(*typed, "method.optimizer.lr=0.002").err) == {"cells": 1, "run": 1}
    assert counts(command(*typed, "trainer.check_val_every_n_epoch=2").err) == {"cells": 1, "done already": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": "0" * 10}))
    assert counts(command(*typed).err) == {"cells": 1, "run": 1}, "the stored hash counts, not the name"
    assert all(directory.name.endswith(found["config_hash"]) for directory, found in results().items())


# ------------------------------------------------------------------------------------------------- cells trained as one

STACK = "hydra.sweeper.stack=8"


def column(path, name):
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_cells_that_are_trained_as_one_are_those_that_are_trained_one_by_one(command):
    typed = ("-m", "normal_class=0,7", "method=elite_svdd", "trainer.precision=64")
    typed += ("trainer.max_steps=20", "method.pretrain_epochs=1", "threads=1", "logger=none")
    assert counts(command(*typed).err) == {"cells": 2, "run": 2}
    stacked = command(*typed, "output_dir=stacked", STACK)
    assert stacked.code == 0 and counts(stacked.err) == {"cells": 2, "run": 2}
    assert "one by one" not in stacked.err
    alone = results()
    assert [path.relative_to("stacked") for path in results("stacked")] == [
        path.relative_to("outputs") for path in alone
    ]
    for directory, metrics in alone.items():
        other = "stacked" / directory.relative_to("outputs")
        found = json.loads((other / "metrics.json").read_text())
        assert found.pop("train/stacked") == 2 and found["train/seconds"] > 0
        assert found.keys() == metrics.keys()
        for key in ("test/auroc", "audit/auroc", "audit/auroc_meta_gradient", "threshold", "train/margin"):
            assert found[key] == pytest.approx(metrics[key], abs=1e-6), key
        for name, of in (("scores.csv", "score"), ("audit.csv", "meta_gradient")):
            assert column(other / name, of) == pytest.approx(column(directory / name, of), rel=1e-6, abs=1e-9)
        files, those = ({path.name for path in place.iterdir()} for place in (other, directory))
        assert those - files == {"last.ckpt"} and not files - those
        assert column(other / "history.csv", "step") == [20]
    again = command(*typed, "output_dir=stacked", STACK)
    assert counts(again.err) == {"cells": 2, "done already": 2}


def test_a_stack_that_is_killed_leaves_its_cells_to_the_next(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = ("-m", "seed=0,1,2,3,4", "method=deep_svdd", STACK, *TINY)
    process = start(*typed)
    kill(process, 1, 0)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = written()
    outcome = command(*typed)
    assert counts(outcome.err) == {"cells": 5, "run": 5 - len(before), "done already": len(before)}
    check_restart(before, written())


def test_a_cell_of_another_process_is_left_out_of_a_stack(command):
    typed = ("-m", "seed=0,1,2", "method=deep_svdd", *TINY)
    first, second, third = directories_of(*typed[1:])
    other = FileLock(second.with_name(f".{second.name}.lock"))
    second.parent.mkdir(parents=True)
    with other:
        outcome = command(*typed, STACK)
        assert counts(outcome.err) == {"cells": 3, "run": 2, "being run by another process": 1}
    assert {place: found["train/stacked"] for place, found in results().items()} == {first: 2, third: 2}


def test_cells_that_cannot_be_trained_as_one_are_trained_one_by_one(command, monkeypatch):
    typed = ("-m", "seed=0,1", "method=devnet,deep_svdd", *TINY, STACK)

    def diverges(*_):
        raise TrainingError("step 3: the loss is nan")

    monkeypatch.setattr(run_together, "fit_together", diverges)
    outcome = command(*typed)
    assert outcome.code == 0 and counts(outcome.err) == {"cells": 4, "run": 4}
    told = [line.split("one by one: ")[1] for line in outcome.err.splitlines() if "one by one: " in line]
    assert told == [
        "method devnet has no stacked form",
        "together, step 3: the loss is nan",
    ]
    assert not any("train/stacked" in found for found in results().values())


def test_an_error_of_one_cell_of_a_stack_loses_no_other(command, monkeypatch):
    original = run_together.write_results

    def fails(spec, *rest):
        if spec.config.seed == 1:
            raise TrainingError("a score is not finite")
        return original(spec, *rest)

    monkeypatch.setattr(run_together, "write_results", fails)
    outcome = command("-m", "seed=0,1,2", "normal_class=0,10", "method=deep_svdd", *TINY, STACK)
    assert outcome.code == 2
    assert counts(outcome.err) == {"cells": 6, "run": 2, "failed": 1, "refused": 3}
    assert [found["train/stacked"] for found in results().values()] == [3, 3]
    (failed,) = Path("outputs").rglob("failed.json")
    assert json.loads(failed.read_text())["error"] == "a score is not finite"


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_failed_cell_stops_no_other_is_listed_and_is_tried_again(command, monkeypatch):
    typed = ("-m", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    original = run.write_results

    def out_of_disk(spec, *arguments):
        if spec.config.normal_class == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(spec, *arguments)

    monkeypatch.setattr(run, "write_results", out_of_disk)
    outcome = command(*typed)
    assert outcome.code == 1
    assert counts(outcome.err) == {"cells": 3, "run": 2, "failed": 1}
    (path,) = Path("outputs").rglob("failed.json")
    *_, summary, error = outcome.err.splitlines()
    assert summary.startswith("3 cells") and error.startswith(f"error: {path.parent}: the disk ")
    failure = json.loads(path.read_text())
    assert "is full; make room" in failure["error"] and failure["time"].endswith("+00:00")
    assert (failure["dataset"], failure["method"], failure["normal_class"]) == ("digits", "deep_svdd", 1)
    assert path.parent.name.endswith(failure["config_hash"])
    assert not any(isinstance(value, dict | list) for value in failure.values())

    monkeypatch.setattr(run, "write_results", original)
    again = command(*typed)
    assert again.code == 0 and counts(again.err) == {"cells": 3, "run": 1, "done already": 2}
    assert not list(Path("outputs").rglob("failed.json")) and len(results()) == 3


def test_training_that_fails_says_why(command):
    outcome = command("-m", "method.optimizer.lr=1e-3,1e30", *TINY[1:], "epochs=3")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    (path,) = Path("outputs").rglob("failed.json")
    assert json.loads(path.read_text())["error"] in outcome.err.splitlines()[-1]


def test_bad_input_leaves_no_failure(command):
    outcome = command("-m", "normal_class=0,77", "method=deep_svdd", *TINY)
    assert outcome.code == 2 and counts(outcome.err) == {"cells": 2, "run": 1, "refused": 1}
    assert not list(Path("outputs").rglob("failed.json"))


def test_a_launcher_that_fails_loses_nothing(command, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    original = BasicLauncher.launch

    def half(self, overrides, initial_job_idx):
        if initial_job_idx == 0:
            original(self, overrides, initial_job_idx)
        raise MemoryError("a worker was killed")

    monkeypatch.setattr(BasicLauncher, "launch", half)
    outcome = command("-m", "normal_class=0,1,2", "method=deep_svdd", *TINY)
    assert outcome.code == 1 and "a worker was killed" in outcome.err
    assert counts(outcome.err) == {"cells": 3, "run": 1, "not run": 2}


# ---------------------------------------------------------------------------------------------------------------- reuse


@pytest.fixture
def never(monkeypatch):
    """Nothing may be run."""

    def forbid():
        def refuse(*arguments):
            raise AssertionError("this was finished already")

        monkeypatch.setattr(launch, "launch", refuse)

    return forbid


def without(metrics, *keys):
    return {key: value for key, value in metrics.items() if key not in keys}


def test_finished_cells_of_another_study_are_taken_over(command, never):
    typed = ("-m", "normal_class=0,1", "method=deep_svdd", *TINY)
    command(*typed, "study=first")
    originals = results("outputs/first")
    never()
    outcome = command(*typed, "study=second", "reuse=[outputs/first]")
    assert outcome.code == 0 and counts(outcome.err) == {"cells": 2, "reused": 2}
    for original, (directory, metrics) in zip(originals, results("outputs/second").items(), strict=True):
        assert without(metrics, "reused_from") == originals[original], "its commit and its seconds too"
        assert metrics["reused_from"] == original.as_posix()
        assert {p.name for p in directory.iterdir()} == {p.name for p in original.iterdir()} - {"last.ckpt"}
        for name in ("scores.csv", "splits.npz", "history.csv"):
            assert (directory / name).read_bytes() == (original / name).read_bytes()
    third = command("normal_class=1", "method=deep_svdd", *TINY, "study=third", "reuse=[outputs/second]")
    assert results("outputs/third")[third.directory]["reused_from"].startswith("outputs/first/"), "where it was run"


def test_finished_cells_of_a_file_are_taken_over_with_nothing_made_up(command, never):
    typed = ("-m", "normal_class=0,1", "method=deep_svdd", *TINY)
    command(*typed, "study=first")
    originals = list(results("outputs/first").values())
    report.main(["outputs/first", "--cells", "kept/first/cells.jsonl"])
    shutil.rmtree("outputs")
    never()
    outcome = command(*typed, "study=second", "reuse=[kept/*/cells.jsonl]")
    assert counts(outcome.err) == {"cells": 2, "reused": 2}
    found = results("outputs/second")
    assert [without(metrics, "reused_from") for metrics in found.values()] == originals
    for directory in found:
        assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "metrics.json"]
    report.main(["outputs/second"])
    assert counts(command(*typed, "study=second").err) == {"cells": 2, "done already": 2}


def test_cells_of_another_config_are_not_taken_over(command):
    typed = ("-m", "normal_class=0", "method=deep_svdd", *TINY)
    command(*typed, "study=first")
    outcome = command(*typed, "study=second", "reuse=[outputs/first]", "seed=1")
    assert counts(outcome.err) == {"cells": 1, "run": 1}


@pytest.mark.parametrize("typed, words", [("reuse=[nowhere]", "no such file"), ("reuse=[file]", "cells")])
def test_what_cannot_be_reused_is_bad_input(command, typed, words):
    Path("file").write_text("{}\n")
    for how in ((), ("-m", "seed=0,1")):
        outcome = command(*how, typed, *TINY)
        assert outcome.code == 2 and outcome.err.startswith("error: reuse=") and words in outcome.err
        assert outcome.err.count("\n") == 1 and not Path("outputs").exists()


# ------------------------------------------------------------------------------------------------------------- progress


def test_progress_is_one_line_a_run(command):
    outcome = command("-m", "method=deep_svdd,elite_svdd", "seed=0,1", *TINY)
    *lines, last = outcome.err.splitlines()
    assert last == "4 cells: 4 run"
    shape = r"{} of 4  method={} seed={}: ROC AUC 0\.\d{{4}}{}"
    time_left = r"; about [\d.]+ (s|min|h) left"
    means = r", mean 0\.\d{4} \(n = 2\)"
    for line, expected in zip(
        lines,
        [
            shape.format(1, "deep_svdd", 0, time_left),
            shape.format(2, "deep_svdd", 1, means + time_left),
            shape.format(3, "elite_svdd", 0, time_left),
            shape.format(4, "elite_svdd", 1, means),
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, line), line
    found = [metrics["test/auroc"] for directory, metrics in results().items() if "elite" in str(directory)]
    assert f"mean {sum(found) / 2:.4f} (n = 2)" in lines[-1]


def test_progress_is_one_line_a_run_of_several_trainings_with_a_threshold_from_labels(command):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, -1], [60, 5, 5])
    np.savez("own.npz", x_train=rng.normal(size=(70, 3)) + (y < 0)[:, None], y_train=y)
    data = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "n_train=null", "threads=1", "logger=none")
    slow = [f"~method.candidates.vectors.{name}" for name in ("elite_tabular", "elite_on_a_center", "extra_trees")]
    for typed in (["method=extra_trees", "ensemble=2", "method.trees=10"], ["method=auto", *slow]):
        outcome = command("-m", *data, *typed, "pictures=false")
        assert outcome.code == 0 and len(outcome.err.splitlines()) == 2, outcome.err


@pytest.mark.parametrize(
    "typed", [["experiment=fig3_pollution"], ["experiment=demo", "epochs=3", "+trainer.log_every_n_steps=7"]]
)
def test_cells_are_composed_as_hydra_does(typed):
    with sweep_of(*typed) as (made, combinations):
        for overrides in (combinations[0], combinations[len(combinations) // 2], combinations[-1]):
            plain = config.plain(made.loader.load_sweep_config(made.master, overrides))
            plain.pop("hydra")
            cell = made.cell(overrides, set(), {})
            assert config.plain(made.compose(overrides)) == plain
            assert cell.hash == identity.config_hash(plain)
            assert cell.directory == identity.run_directory(plain, cell.hash)


# ------------------------------------------------------------------------------------------------- engines, experiments


@pytest.mark.parametrize(
    "launcher, swept",
    [
        ("submitit_local", "0,1"),  # one job: each has to load PyTorch
        pytest.param("joblib", "0,1,2,77", marks=pytest.mark.slow),
    ],
)
def test_a_launcher_runs_a_study(command, launcher, swept):
    command("-m", "normal_class=0", "method=deep_svdd", *TINY)
    outcome = command("-m", f"hydra/launcher={launcher}", "method=deep_svdd", *TINY, f"normal_class={swept}")
    ran = 2 if "2" in swept else 1
    expected = {"cells": ran + 1, "run": ran, "done already": 1}
    if "77" in swept:
        expected |= {"cells": ran + 2, "refused": 1}
        assert "error: normal_class=77" in outcome.err
    assert counts(outcome.err) == expected and outcome.code == 2 * ("77" in swept), outcome.err
    assert "normal_class=1: ROC AUC" in outcome.err
    assert len(results()) == ran + 1


FIGURES = sorted(path.stem for path in (PROJECT / "conf" / "experiment").glob("fig*.yaml"))
ONE_OF_TWINS = [
    pytest.param(figure, marks=[pytest.mark.slow] * figure.endswith("cifar10"))  # as on MNIST
    for figure in FIGURES
]


@pytest.mark.parametrize("figure", ONE_OF_TWINS)
def test_every_figure_runs_on_digits_within_seconds(command, figure):
    text = (PROJECT / "conf" / "experiment" / f"{figure}.yaml").read_text()
    ends = ["pollution=0.5"] * ("      pollution:" in text)  # of five
    outcome = command(f"experiment=[{figure},smoke]", *ends)
    assert outcome.code == 0, outcome.err
    assert counts(outcome.err)["run"] == len(results("outputs/smoke")) == counts(outcome.err)["cells"] > 1
    assert not list(Path("outputs").glob("fig*")), "apart from the study itself"


def test_a_key_that_the_default_method_lacks_can_be_set_for_several_that_have_it(command):
    typed = ("method=extra_trees,label_spreading", "method.augmented_copies=2", "augmentation=noise", "epochs=1")
    assert command("-m", *typed).code == 0
    kept = {path.parent.parent.name: path for path in Path("outputs").rglob("config.yaml")}
    assert kept.keys() == {"extra_trees", "label_spreading"}
    assert all(OmegaConf.load(path).method.augmented_copies == 2 for path in kept.values())
    shutil.rmtree("outputs")
    refused(command("-m", "method=extra_trees,deep_sad", "method.trees=2"), "method.trees: no such key")
    for shown in (["--help"], ["--cfg", "job"]):
        assert command("experiment=demo", "method.name=other", *shown).code == 0


def test_a_key_of_a_group_can_be_null_in_a_sweep_and_a_cell_that_is_typed_twice_is_one(command):
    typed = ("method=labels_only_augmented", "augmentation=noise", "method.average_decay= null", "epochs=1")
    outcome = command("-m", *typed, "seed=3,3")
    assert outcome.code == 0 and "1 cells: 1 run" in outcome.err, outcome.err
    (kept,) = Path("outputs").rglob("config.yaml")
    assert OmegaConf.load(kept).method.average_decay is None


def test_any_key_of_an_experiment_can_be_narrowed(command):
    outcome = command("experiment=[fig3_pollution,smoke]", "pollution=0.5", "method=deep_svdd", "seed=3")
    assert outcome.code == 0, outcome.err
    ((directory, metrics),) = results("outputs/smoke").items()
    assert (metrics["pollution"], metrics["seed"]) == (0.5, 3) and directory.parent.name == "deep_svdd"
