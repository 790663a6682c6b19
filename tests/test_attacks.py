"""Bad input of every kind, through the real entry points: one clear line, exit code 2, and nothing written is lost.

What was found by attack, kept as cases; `test_bad_input.py` has the values of single keys.
"""

import contextlib
import csv
import errno
import html
import itertools
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_bad_input import refused

from elite_pl.report import __main__ as report
from elite_pl.runs import launch
from elite_pl.runs import run as run_module
from elite_pl.runs.results import check_writable
from elite_pl.studies import data_at_hand, read
from elite_pl.studies.cells import Outcome
from elite_pl.studies.sweeper import Sweep

TINY = ("method=deep_svdd", "epochs=1", "method.pretrain_epochs=0", "threads=1")

# ----------------------------------------------------------------------------------------------------- what is typed

TYPED = {
    "~dataset": "dataset: has no value",
    "~backbone": "backbone: has no value",
    "~method": "method: has no value",
    "~trainer": "trainer: has no value; give trainer=NAME",
    "~logger": "logger: has no value",
    "~callbacks": "callbacks: has no value",
    "method=true": "method=true: a group takes the name of one of its options",
    "dataset=mnist dataset.root=null": "dataset.root=null",
    "n_train=1000000000000000000000": "n_train=1000000000000000000000: must be from 2",
    "threads=100000000": "threads=100000000: must be at most",
    "reuse=outputs/x": "reuse=outputs/x: expected a list in brackets: 'reuse=[outputs/x]'",
    "study=1e5": "study=1e5: is read as a number, or as true or false; quote text: 'study=\"1e5\"'",
    "study=true": "quote text: 'study=\"true\"'",
    "-m study=a,1e5": "is read as a number",
    "output_dir=": "output_dir=: must be the path of a folder",
    "output_dir=true": "output_dir=True: must be the path of a folder",
    "trainer.max_steps=0": "trainer.max_steps=0: trains nothing",
    "trainer.max_time=abc": "trainer: `Timer(duration='abc')`",
    "trainer.limit_val_batches=abc": "trainer.limit_val_batches=abc",
    "trainer.accelerator=tpu": "trainer: Requirement 'torch_xla",
    "trainer.devices=1000": "trainer.devices=1000: must be from 1 to",
    "trainer.devices=0": "trainer.devices=0",
    "trainer.devices=[]": "trainer.devices=[]",
    "trainer.devices=abc": "trainer.devices=abc",
    "+trainer.num_nodes=abc": "trainer.num_nodes=abc: must be a number of machines",
    "+trainer.strategy=abc": "trainer: You selected an invalid strategy name",
    "+trainer.callbacks=[]": "trainer.callbacks: is a group of its own",
    "+callbacks.own={_target_: pytorch_lightning.callbacks.ModelCheckpoint}": "trainer: Found more than one stateful",
    "+callbacks.a={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: test/auroc}": "callbacks.a.monitor=",
    "-m seed=range(0)": "a sweep over no values",
    "-m hydra.sweeper.max_batch_size=-1": "hydra.sweeper.max_batch_size=-1: must be at least 1",
    "-m hydra.sweeper.stack=0": "hydra.sweeper.stack=0: must be at least 1, or null for one by one",
    "-m hydra.sweeper.stack=few": "hydra.sweeper.stack=few: ",
    "-m hydra.sweeper._target_=abc": "Invalid plugin 'abc'",
    "hydra.searchpath=[file:///nowhere]": "path=/nowhere is not available",
    "hydra.job.env_copy=[NOWHERE]": "KeyError: 'NOWHERE'",
    "epochs=1 --config-dir nowhere seed=1": "nowhere' not found",
    "--config-dir": "expected one argument; see --help",
    "epochs=1 -c": "expected one argument; see --help",
    "epochs=1 --bogus seed=1": "unrecognized arguments: --bogus",
    "--resolve": "can only be used in conjunction with --cfg",
    "-m --cfg job": "Only one of --run, --multirun, --cfg",
    "--experimental-rerun config.pickle": "a pickle, which can run code",
}


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed(command, typed):
    arguments = [typed] if "{" in typed else typed.split()
    refused(command(*arguments), TYPED[typed])


def test_options_stand_anywhere(command, untrained):
    asked = untrained()
    assert command("seed=1", "-m", "study=a", "epochs=1").code == 0 and "a" in asked[0][0].parts
    outcome = command("seed=1", "--cfg", "job", "study=5")
    assert outcome.code == 0 and "seed: 1\n" in outcome.out and "study: 5\n" in outcome.out


ENVIRONMENTS = {
    ("RANK", "abc"): "RANK=abc: must be the number of a process",
    ("WANDB_MODE", "abc"): "WANDB_MODE=abc: no such mode",
    ("WANDB_BASE_URL", "abc"): "logger: W&B's setting base_url=abc",
    ("WANDB_TAGS", "x" * 99): "logger: W&B's setting run_tags",
}
LOGGERS = {
    "logger.project=a/b": "logger: Invalid project name 'a/b'",
    f"logger.project={'a' * 300}": "logger: Invalid project name",
    "logger.project=": "logger.project=: must be a name",
}


@pytest.mark.parametrize("variable", ENVIRONMENTS, ids=lambda variable: variable[0])
def test_what_the_environment_says(command, offline, monkeypatch, variable):
    monkeypatch.setenv(*variable)
    refused(command("logger=wandb", *TINY), ENVIRONMENTS[variable])


@pytest.mark.parametrize("typed", LOGGERS, ids=lambda typed: typed[:20])
def test_a_name_that_the_tracker_refuses(command, offline, typed):
    refused(command("logger=wandb", typed, *TINY), LOGGERS[typed])


def test_an_argument_that_the_tracker_refuses(command):
    refused(command("logger=tensorboard", "+logger.foo=3", *TINY), "logger: ", "foo")


def test_a_callback_that_monitors_what_is_not_logged(command):
    stop = "+callbacks.stop={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: labeled/los}"
    outcome = command(stop, *TINY)
    assert outcome.code == 2 and "Traceback" not in outcome.err and not Path("outputs").exists()
    said = "error: callbacks: EarlyStopping monitors labeled/los, which is not logged; must be one of labeled/loss, "
    assert outcome.err.splitlines()[-1].startswith(said) and "test/auroc" not in outcome.err


def test_training_that_ends_before_it_begins(command):
    outcome = command("trainer.max_time=00:00:00:00", *TINY)
    assert outcome.code == 2 and "Traceback" not in outcome.err and not Path("outputs").exists()
    assert outcome.err.splitlines()[-1].startswith("error: trainer: stops before the first epoch ends")


def test_a_working_directory_that_has_been_removed(command):
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()
    assert command().err == "error: the working directory has been removed; go to one that is there\n"


def test_a_reader_that_has_gone(command, untrained, monkeypatch):
    asked = untrained()
    ends = []
    for typed, code, runs in ((["-m", "seed=0,1"], 0, 2), (["seed=5"], 0, 1)):
        reader, writer = os.pipe()
        os.close(reader)
        ends.append(os.fdopen(writer, "w"))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", ends[-1])
            outcome = command(*typed)
        assert outcome.code == code and "rror" not in outcome.err and len(asked) == runs
        asked.clear()
        with contextlib.suppress(BrokenPipeError):
            ends[-1].close()


# ------------------------------------------------------------------------------------------- files that a run goes on


def without(*keys):
    """A checkpoint less one of its parts."""

    def change(state, name):
        node = state
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        return state

    return change


def cut(state, name):
    return state | {"state_dict": {key: tensor.flatten()[:1] for key, tensor in state["state_dict"].items()}}


def forgetful(state, name):
    (optimizer,) = state["optimizer_states"]
    return state | {"optimizer_states": [optimizer | {"state": {}}]}


def of_another_run(state, name):
    (keeper,) = (value for value in state["callbacks"].values() if "dirpath" in value)
    keeper["dirpath"] += "0"
    return state


CHECKPOINTS = {
    "nothing": lambda state, name: {},
    "a list": lambda state, name: [1],
    "another run": of_another_run,
    "other data": lambda state, name: state | {"PollutedData": {"fingerprint": "0"}},
    "other shapes": cut,
    "no optimizer": without("optimizer_states"),
    "no state of the optimizer": forgetful,
    "no curves": without("callbacks", "History"),
    "no progress": without("loops", "fit_loop", "epoch_progress"),
    "no version": without("pytorch-lightning_version"),
}


def test_a_checkpoint_that_does_not_fit(command, monkeypatch):
    directory = command(*TINY).directory
    last, metrics = directory / "last.ckpt", directory / "metrics.json"
    good, written = last.read_bytes(), json.loads(metrics.read_text())
    results = {path.name: path.read_bytes() for path in directory.glob("*.csv")}
    assert written["threads"] == 1
    metrics.unlink()

    started = []
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", lambda *arguments: started.append(arguments[-1]))
        patch.setattr(run_module, "run_directory", lambda *arguments: contextlib.nullcontext({}))
        patch.setattr(run_module, "write_results", lambda *arguments: {"test/auroc": 0.5})
        patch.setattr(run_module, "write_metrics", lambda *arguments: None)
        assert command(*TINY).err == "" and started == [last]
        bad = []
        for what, change in CHECKPOINTS.items():
            last.write_bytes(good)
            torch.save(change(torch.load(last, weights_only=True), directory.name), last)
            bad.append(last.read_bytes())
            outcome = command(*TINY)
            aside = "last.ckpt.unusable" + f"-{len(bad)}" * (len(bad) > 1)
            assert outcome.code == 0 and started.pop() is None, what
            assert outcome.err.count("\n") == 1 and f"{last} " in outcome.err, what
            assert f"kept as {aside}, training starts anew" in outcome.err, what
            assert (directory / aside).read_bytes() == bad[-1] and not last.exists()
        os.mkfifo(last)
        assert "is not a file: kept as" in command(*TINY).err
    last.mkdir()
    outcome = command(*TINY)
    assert outcome.code == 0 and "is not a file: kept as" in outcome.err
    assert {path.name: path.read_bytes() for path in directory.glob("*.csv")} == results
    assert torch.load(last, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize("name", ["config.yaml", "history.csv", "metrics.json"])
def test_a_directory_where_a_file_belongs(command, name):
    directory = command(*TINY).directory
    results = {path.name: path.read_bytes() for path in directory.glob("*.csv")}
    for file in ("last.ckpt", "metrics.json", name):
        (directory / file).unlink(missing_ok=True)
    (directory / name).mkdir()
    outcome = command(*TINY)
    assert outcome.code == 1 and outcome.err.splitlines()[-1] == f"error: {directory / name}: Is a directory"
    assert "Traceback" not in outcome.err and not list(directory.glob(".*"))
    assert json.loads((directory / "failed.json").read_text())["error"] == f"{directory / name}: Is a directory"
    (directory / name).rmdir()
    assert command(*TINY).code == 0 and not (directory / "failed.json").exists()
    assert {path.name: path.read_bytes() for path in directory.glob("*.csv")} == results


def test_a_directory_in_the_place_of_the_lock(command):
    directory = command(*TINY).directory
    (directory / "metrics.json").unlink()
    lock = directory.with_name(f".{directory.name}.lock")
    lock.mkdir()
    for sweep in ((), ("-m",)):
        outcome = command(*sweep, *TINY)
        assert outcome.code == 2 and f"{lock}: Is a directory" in outcome.err and "Traceback" not in outcome.err


def test_a_pipe_in_the_place_of_a_file(command):
    os.mkfifo("pipe")
    for dataset in ("npz", "npy", "table"):
        refused(command(f"dataset={dataset}", "dataset.path=pipe", *TINY), "dataset.path=pipe")
    refused(command("reuse=[pipe]", *TINY), "reuse=pipe")


def test_what_cannot_be_written_is_tried_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", None)
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; gives its folder, and what makes it large."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options], capture_output=True).returncode

    if not shutil.which("mount") or mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)):
        pytest.skip("nothing may be mounted here")
    yield place, lambda: mount("-o", "remount,size=64m", str(place))
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a file that is still open goes with its reader


def test_a_full_disk(command, small_disk):
    place, enlarge = small_disk
    expected = (command(*TINY).directory / "scores.csv").read_bytes()
    outcome = command(f"output_dir={place}", *TINY)
    error = outcome.err.splitlines()[-1]
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert re.fullmatch(
        rf"error: {place}/\S+: the disk {place} is full; make room, and the same command goes on", error
    )
    sweep = command("-m", "seed=0,1", f"output_dir={place}", *TINY)
    assert sweep.code == 1 and "Traceback" not in sweep.err
    enlarge()
    outcome = command(f"output_dir={place}", *TINY)
    assert outcome.code == 0 and (outcome.directory / "scores.csv").read_bytes() == expected
    assert not list(place.rglob(".*"))


def test_a_file_that_cannot_be_written_to_its_end(command):
    name = "last.ckpt"
    size = (command(*TINY, "study=whole").directory / name).stat().st_size
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, allowed[1]))  # PyTorch's writer keeps the reason to itself
    try:
        outcome = command(*TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert re.search(rf"^error: \S*outputs/runs/.*/{name}: File too large$", outcome.err, re.MULTILINE)
    assert not list(Path("outputs").rglob(".*"))
    outcome = command(*TINY)
    assert outcome.code == 0 and (outcome.directory / "failed.json").exists() is False


# -------------------------------------------------------------------------------------------- what counts as finished


@pytest.fixture
def untrained(monkeypatch):
    """From its call on nothing is trained; gives the run directories of what would be, and whether they are there."""

    def begin() -> list[tuple[Path, bool]]:
        asked = []

        def pretend(spec):
            asked.append((spec.directory, spec.directory.exists()))
            return {"test/auroc": 0.5}

        monkeypatch.setattr(launch, "launch", pretend)
        return asked

    return begin


def changed(metrics: dict, changes: dict) -> str:
    """The text of a `metrics.json`; what is changed to ... is left out."""
    return json.dumps({key: value for key, value in (metrics | changes).items() if value is not ...})


NO_METRICS = {
    "NaN": {"test/auroc": math.nan},
    "missing": {"test/auroc": ...},
    "no share": {"test/auroc": 5},
    "truth value": {"test/auroc": True},
    "text": {"test/auroc": "0.9"},
    "null": {"test/auroc": None},
    "list": {"test/auroc": [0.9]},
    "huge": {"test/auroc": 10**400},
    "another metric": {"test/average_precision": -math.inf},
    "seconds": {"train/seconds": "two"},
    "pollution": {"data/pollution_unlabeled": "some"},
    "object": {"more": {"test/auroc": 0.9}},
}


NOT_READ = {
    "list": b"[1]",
    "binary": bytes(range(256)),
    "deep": b'{"a":' * 100_000,
    "cut off": b'{"test/auroc": 0.',
    "nothing": b"",
    "gigabyte": 2**30,
    "directory": None,
}


def put(path: Path, content: bytes | int | None) -> None:
    """Writes a file; that many zeros, or a directory in its place."""
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(b"" if isinstance(content, int) else content)
        os.truncate(path, content if isinstance(content, int) else len(content))


def test_what_holds_no_metrics_is_not_finished(command, monkeypatch):
    asked: list[Path] = []

    def pretend(self, cells):
        asked.extend(cell.directory for cell in cells)
        for cell in cells:
            cell.outcome = Outcome("run")

    monkeypatch.setattr(Sweep, "launch", pretend)
    typed = ("-m", "seed=range(24)", *TINY)
    command(*typed)
    directories, asked[:] = list(asked), []
    good = {"test/auroc": 0.9, "data/test": 100, "train/seconds": 1.5}
    contents = [good, good | {"test/auroc": 1}, {"data/test": 0}]  # without a test set there is no ROC AUC
    contents += [*({"test/auroc": ...} | good | changes for changes in NO_METRICS.values()), *NOT_READ.values()]
    for directory, content in zip(directories, contents, strict=False):
        directory.mkdir(parents=True)
        metrics = {"config_hash": directory.name[-10:]}
        put(directory / "metrics.json", changed(metrics, content).encode() if isinstance(content, dict) else content)
    directories[-1].mkdir()
    os.mkfifo(directories[-1] / "metrics.json")  # a pipe, whose writer would be waited for
    outcome = command(*typed)
    assert outcome.code == 0 and "24 cells: 21 run, 3 done already" in outcome.err
    assert asked == directories[3:]
    alone = command("seed=3", *TINY)
    assert alone.code == 0 and alone.directory == directories[3] and alone.err.count("done before") == 0
    assert command("seed=3", *TINY).err == "done before: nothing to run\n"


def test_a_cell_that_cannot_be_reused_stops_no_other(command, untrained):
    typed = ("-m", "seed=0,1", *TINY)
    assert command(*typed, "study=first").code == 0
    read.write_cells(Path("cells.jsonl"), read.read_studies([Path("outputs/first")])[0])
    lines = Path("cells.jsonl").read_text().splitlines()
    cell = json.loads(lines[0])
    cell["metrics"]["test/auroc"] = 5
    Path("cells.jsonl").write_text("\n".join(["[1]", json.dumps(cell), '{"a":' * 100_000, lines[1]]))
    bad = next(Path("outputs/first").rglob("metrics.json"))
    bad.write_text(changed(json.loads(bad.read_text()), {"test/auroc": "0.9"}))
    asked = untrained()
    for place, said in (("outputs/first", 1), ("cells.jsonl", 3)):
        outcome = command(*typed, f"study=of_{Path(place).stem}", f"reuse=[{place}]")
        assert outcome.code == 0 and "2 cells: 1 run, 1 reused" in outcome.err
        assert outcome.err.count("not reused: ") == said and f"not reused: {place}" in outcome.err
        assert len(asked) == 1
        asked.clear()


def test_a_run_that_cannot_be_copied_leaves_nothing(command, untrained, monkeypatch):
    original = command(*TINY, "study=first").directory
    copy = shutil.copyfile

    def broken(source, target):
        if source.name == "scores.csv":
            raise OSError(errno.EIO, "Input/output error")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", broken)
    asked = untrained()
    outcome = command(*TINY, "study=second", "reuse=[outputs/first]")
    assert f"not reused: {original}: " in outcome.err and "Input/output error" in outcome.err
    assert [there for _, there in asked] == [False], "it is made anew"


def idx(array: np.ndarray) -> bytes:
    """An array in MNIST's file format."""
    return np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Writes a small MNIST, and gives the command line of a run on it, and the folder of its files."""

    def write(train: tuple[int, ...] = (28, 28), test: tuple[int, ...] = (28, 28), labels: int = 10):
        folder = tmp_path / "sets" / "MNIST" / "raw"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part, size, n in (("train", train, 400), ("t10k", test, 100)):
            (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (n, *size))))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n) % labels))
        typed = ("dataset=mnist", f"dataset.root={tmp_path / 'sets'}", "n_train=20", "label_ratio=0.2", *TINY)
        return typed, folder

    return write


def test_a_run_on_other_files_is_not_taken_for_finished(command, untrained, mnist, monkeypatch):
    typed, folder = mnist()
    first = command(*typed)
    assert first.code == 0, first.err
    path = first.directory / "metrics.json"
    written = path.read_bytes()
    assert command(*typed).err == "done before: nothing to run\n"

    images = folder / "t10k-images-idx3-ubyte"
    original = images.read_bytes()
    images.write_bytes(original[:-1] + b"\0")
    for sweep in ((), ("-m",)):
        outcome = command(*sweep, *typed)
        assert outcome.code == 2 and outcome.out == ""
        here, recorded = re.fullmatch(
            rf"error: {first.directory}: the MNIST files in {folder} \(fingerprint (\w+)\) are not those that it was "
            r"made on \((\w+)\); give another study, or remove this run",
            outcome.err.splitlines()[-1],
        ).groups()
        assert here != recorded == json.loads(written)["data/fingerprint"]
        assert path.read_bytes() == written
    asked = untrained()
    outcome = command(*typed, "study=second", "reuse=[outputs/runs]")
    assert f"{first.directory} is not reused: the MNIST files in {folder}" in outcome.err and len(asked) == 1

    def check_done():
        data_at_hand._fingerprint.cache_clear()  # as in another process
        assert command(*typed).err == "done before: nothing to run\n"

    images.write_bytes(original)
    check_done()
    kept = Path("outputs/fingerprints.json")
    with monkeypatch.context() as patch:
        patch.setattr(data_at_hand, "torchvision_set", None)  # its import takes seconds
        check_done()
    for damaged in ("{" * 100_000, json.dumps({str(folder): {"files": [], "fingerprint": 5}})):
        kept.write_text(damaged)
        check_done()
    images.unlink()
    kept.unlink()
    check_done()
    assert not kept.exists() and not images.exists(), "nothing is loaded or downloaded to find out"


@pytest.mark.parametrize(
    "sizes, words",
    [
        (
            {"train": (14, 56)},
            r"uint8 \(1, 14, 56\) in x_train and uint8 \(1, 28, 28\) in x_test; expected both alike",
        ),
        ({"train": (14, 56), "test": (14, 56)}, r"images are uint8 \(1, 14, 56\), .*; expected uint8 \(1, 28, 28\)"),
        ({"test": (28, 28, 1)}, ""),
        ({"train": (0, 28)}, ""),
        ({"labels": 11}, "labels go beyond the 10 names"),
    ],
)
def test_images_of_another_size(command, mnist, sizes, words):
    typed, folder = mnist(**sizes)
    outcome = command(*typed)
    assert outcome.code == 2 and re.search(rf"the MNIST files in {folder} are damaged .*{words}", outcome.err)
    assert outcome.err.count("\n") == 1 and not Path("outputs").exists()


def test_classes_of_one_name(command, images):
    path = images()
    arrays = dict(np.load(path))
    np.savez(path, **arrays, classes=np.array(["cat", "dog", "cat", "emu"]))
    outcome = command("dataset=npz", f"dataset.path={path}", *TINY)
    assert outcome.code == 2 and not Path("outputs").exists()
    assert outcome.err == f"error: dataset.path={path}: cat is the name of two classes; expected a name for each\n"


# ------------------------------------------------------------------------------------------ files that a report reads


@pytest.fixture
def run(tmp_path):
    """Writes a finished run, as far as a report reads it, and gives its directory."""

    def write(name: str, auroc: float = 0.9, **metrics: object) -> Path:
        directory = tmp_path / "study" / name
        directory.mkdir(parents=True)
        facts = {"dataset": "digits", "method": "elite_svdd", "pollution": 0.1, "label_ratio": 0.02, "seed": 0}
        content = {"config_hash": name, "test/auroc": auroc, **facts, "normal_class": name, **metrics}
        (directory / "metrics.json").write_text(json.dumps(content))
        OmegaConf.save({"study": "study", "method": {"name": facts["method"]}}, directory / "config.yaml")
        return directory

    return write


def report_in_process(capfd, *arguments: object):
    report.main([str(argument) for argument in arguments])
    return capfd.readouterr()


def test_a_report_goes_on_without_what_cannot_be_read(run, tmp_path):
    for seed in (0, 1):
        run(f"good{seed}", normal_class="0", seed=seed)
    bad = {}
    for name, changes in NO_METRICS.items():
        path = bad[name] = run(f"metrics of {name}") / "metrics.json"
        path.write_text(changed(json.loads(path.read_text()), changes))
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghij"))
    configs = {
        "bomb": bomb.encode(),
        "itself": b"a: &a [*a]",
        "deep brackets": b"[" * 100_000,
        "deep dashes": b"- " * 100_000,
        "object": b"a: !!python/object/apply:os.system ['touch seen']",
    }
    for file, contents in {"metrics.json": NOT_READ, "config.yaml": NOT_READ | configs}.items():
        for name, content in contents.items():
            path = bad[f"{file} {name}"] = run(f"{file} {name}") / file
            put(path, content)
    command = [sys.executable, "-m", "elite_pl.report", tmp_path / "study"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == read.SHOWN + 1 and lines[-1] == f"left out: {len(bad) - read.SHOWN} more"
    table = (tmp_path / "study" / "table.md").read_text()
    assert (
        "| elite_svdd | 90.0 ± 0.0  | 2    |" in table
        and f"{len(bad)} cannot be read" in table
        and table in finished.stdout
    )
    page = html.unescape((tmp_path / "study" / "report.html").read_text())
    for what, path in bad.items():
        assert page.count(f"{path}: cannot be read (") == 1, what


CURVE = "epoch,step,labeled/loss,test/auroc\n1,4,1.5,0.7\n2,8,0.5,0.8\n"


@pytest.mark.usefixtures("rendered")
def test_curves_that_cannot_be_read(run, capfd):
    histories = {
        "good": CURVE,
        "text": CURVE.replace("1.5", "much"),
        "epoch": CURVE.replace("1,", "first,"),
        "cells": CURVE.replace("0.7", "0.7,0.8,0.9"),
        "long": CURVE + "x" * 200_000,
        "NaN": CURVE.replace("0.7", "nan").replace("1.5", "inf"),
        "huge": CURVE.replace("0.7", "-1e308").replace("0.8", "1e308").replace("1.5", "1e308"),
    }
    for name, text in histories.items():
        (run(name, **{"train/margin": 0.5}) / "history.csv").write_text(text)
    study = run("directory") / "history.csv"
    study.mkdir()
    lines = report_in_process(capfd, study.parents[1]).err.splitlines()
    warned = [re.search(r"study/(\w+)/history.csv: cannot be read", line)[1] for line in lines]
    assert sorted(warned) == ["cells", "epoch", "long", "text"], "once each"
    assert (study.parents[1] / "report" / "epochs_labeled_loss.svg").exists()


def test_cells_that_cannot_be_read(run, capfd, tmp_path):
    study = run("good").parent
    read.write_cells(tmp_path / "cells.jsonl", read.read_studies([study])[0])
    (line,) = (tmp_path / "cells.jsonl").read_text().splitlines()
    faults = [
        "[1]",
        "5",
        "{}",
        "",
        '{"a":' * 100_000,
        line.replace("0.9", "NaN"),
        line.replace('"config": {', '"config": 5, "c": {'),
    ]
    (tmp_path / "cells.jsonl").write_text("\n".join([*faults, line]))
    out, err = report_in_process(capfd, tmp_path / "cells.jsonl")
    assert "90.0" in out
    assert re.findall(r"cells.jsonl: line (\d) holds no cell", err) == list("1234567")
    with pytest.warns(UserWarning, match="left out: .*line 1 holds no cell"):
        assert len(read.data_frame(tmp_path / "cells.jsonl")) == 1
    for content in (b"\n".join(map(str.encode, faults)), b"\xff", b"\0" * 2**20, b""):
        (tmp_path / "cells.jsonl").write_bytes(content)
        with pytest.raises(SystemExit, match="2"):
            report.main([str(tmp_path / "cells.jsonl")])
        error = capfd.readouterr().err
        assert error.startswith(f"error: {tmp_path}/cells.jsonl: ") and error.count("\n") == 1


TEXTS = {
    "formula": "=cmd|' /C calc'!A0",
    "link": "[a](javascript:alert(1))",
    "html": '<script>alert("x")</script>',
    "lines": "a\nb | c\r\n\x1b[2J\u2028d",
    "escaped": r"a\| b",
    "formulas": r"$\frac$ 5 % #1 {x} ~ ^ \textbf",
    "surrogate": "\ud800",
}


@pytest.mark.usefixtures("rendered")
def test_texts_are_shown_and_nothing_else(run, capfd):
    for name, text in TEXTS.items():
        study = run(name, method=text, normal_class="0").parent
    out = report_in_process(capfd, study, "--rows", "method", "--against", TEXTS["html"]).out
    folder = study / "report"
    for path in (study / "table.md", folder / "summary.md"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
        assert (
            len(lines) == 2 + len(TEXTS) and len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
        )
    assert not re.search(r"(?<!\\)<script|\]\(|\x1b", out + (folder / "summary.md").read_text())
    assert "<script>" not in (study / "report.html").read_text()
    with open(folder / "summary.csv", newline="") as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    assert f"'{TEXTS['formula']}" in methods and not any(method.startswith(tuple("=+-@")) for method in methods)
    latex = (folder / "summary.tex").read_text()
    assert (
        r"\$\textbackslash{}frac\$ 5 \% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}textbf" in latex
    )
    assert "\n{[}a]" in latex and latex.count(r" \\") == 1 + len(TEXTS)


def test_runs_that_differ_beside_their_settings_are_named(run, capfd):
    for seed, facts in enumerate(({"threads": 1}, {"threads": 2}, {"threads": None}, {})):
        study = run(f"a{seed}", normal_class="0", seed=seed, **facts, **{"data/fingerprint": f"f{seed % 2}"}).parent
        run(f"b{seed}", normal_class="0", seed=seed, method="deep_svdd", threads=1)
    out = report_in_process(capfd, study).out
    assert "Runs with `threads` 1 and 2 are averaged: their last digits may differ (elite_svdd)." in out
    assert "Runs with `data/fingerprint` f0 and f1 are averaged: they are not of the same data (elite_svdd)." in out
    assert re.search(
        r"<td>threads</td><td[^>]*>1 \(5\), not known \(2\), 2 \(1\)<", (study / "report.html").read_text()
    )


@pytest.mark.parametrize("name", ["table.md", "comparison.png", "report.html", "report/summary.csv", "report"])
def test_a_directory_where_the_report_belongs(run, capfd, name):
    place = run("good").parent / name
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if "." in name else place.touch()
    with pytest.raises(SystemExit, match="2"):
        report.main([str(place.parents[name.count("/")])])
    streams = capfd.readouterr()
    assert streams.out == "" and streams.err.startswith("error: ") and streams.err.count("\n") == 1
    assert not list(place.parent.glob(".*"))
