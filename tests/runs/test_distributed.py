"""Several gloo processes give the answer of one; what breaks that is seen; a process that dies takes its job along."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from wandb_tools import read_run

from elite_pl import distributed
from elite_pl import train as train_command
from elite_pl.algorithm import alice
from elite_pl.algorithm.batchnorm import batch_norms, running_statistics
from elite_pl.methods.base import Detector

NO_BATCH_NORM = ("backbone=mlp", "backbone.norm=none", "threads=1", "method.pretrain_epochs=1")
SGD = ("method.optimizer._target_=torch.optim.SGD", "method.optimizer.lr=0.01")
STEPS = ("epochs=4", "trainer.check_val_every_n_epoch=4")  # 4 steps an epoch


def train(command, processes, *arguments):
    """A run on so many processes: its directory."""
    trainer = ["trainer=ddp", f"trainer.devices={processes}"] if processes > 1 else []
    outcome = command(*trainer, *arguments, f"output_dir=on{processes}")
    assert outcome.code == 0, outcome.err
    return outcome.directory


def metrics(directory):
    return json.loads((directory / "metrics.json").read_text())


def difference(one, other):
    """The largest difference of any weight of two runs."""
    one, other = (torch.load(directory / "detector.pt", weights_only=True)["state"] for directory in (one, other))
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    "optimizer, precision, batch_size, bound, processes",
    [(SGD, 64, 32, 1e-9, (2,)), ((), 64, 30, 1e-9, (2, 4)), (SGD, 32, 30, 1e-6, (4,))],
    ids=["sgd-float64-32", "adam-float64-30", "sgd-float32-30"],
)
def test_the_number_of_processes_does_not_matter(command, optimizer, precision, batch_size, bound, processes):
    same = (*NO_BATCH_NORM, *optimizer, *STEPS, f"batch_size={batch_size}", f"trainer.precision={precision}")
    one = train(command, 1, *same)
    for several in (train(command, n, *same) for n in processes):
        assert difference(one, several) < bound
        assert metrics(several)["test/auroc"] == metrics(one)["test/auroc"]
        for name in ("audit.csv", "history.csv", "scores.csv"):
            rows, expected = (np.genfromtxt(run / name, delimiter=",", skip_header=1) for run in (several, one))
            np.testing.assert_allclose(rows, expected, rtol=1e-9 if precision == 64 else 1e-3, atol=1e-9)


def of_a_shard(original, score, d, *labeled, **rule):
    """An inference whose n is that of a shard."""
    return original(score, d, *labeled, **rule | {"learning_rate": rule["learning_rate"] * distributed.processes()})


def normalized_by_a_shard(original, score, d, *labeled, **rule):
    """An inference whose weights are divided by the mean of a shard."""
    mean = d[distributed.shard(len(d))].abs().mean()
    return original(score, d, *labeled, **rule)._replace(weight=d.abs() / mean)


@pytest.mark.parametrize(
    "module, name, broken, weights",
    [
        (alice, "infer", of_a_shard, "raw"),
        (alice, "infer", normalized_by_a_shard, "mean"),
        (distributed, "average_", lambda original, tensors: None, "mean"),
        (distributed, "gather", lambda original, own, n: original(own.detach(), n) + 0 * own.sum(), "mean"),
    ],
    ids=["n", "mean", "gradient", "graph"],
)
def test_the_comparison_sees_what_is_broken(command, monkeypatch, module, name, broken, weights):
    same = (*NO_BATCH_NORM, *SGD, "epochs=1", f"method.weights={weights}", "trainer.precision=64")
    one, original = train(command, 1, *same), getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **settings: broken(original, *args, **settings))
    assert difference(one, train(command, 2, *same)) > 1e-8


METHODS = {
    "elite_svdd": ("method.meta_gradient=virtual_step",),
    "elite_ae": ("method.weights=raw", "method.supervised=0"),
    "deep_sad": ("method.labeled_statistics=joint",),
    "labels_only": (),
    "loe_hard": ("method.warm_up=1",),
    "soel": ("method.warm_up=0", "method.contamination=estimated"),
    "pu_svdd": ("method.warm_up=0",),
    "devnet": (),
    "prenet": SGD,
    "rosas": ("method.labeled_statistics=batch",),
    "rsrae": ("method.updates_per_batch=3",),
    "oracle": (),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_loss_is_that_of_the_whole_batch(command, method):
    same = (f"method={method}", *METHODS[method], *NO_BATCH_NORM, "epochs=2", "batch_size=37", "trainer.precision=64")
    one, two = (train(command, processes, *same) for processes in (1, 2))
    assert difference(one, two) < 1e-12
    assert metrics(two)["test/auroc"] == metrics(one)["test/auroc"]
    assert metrics(two)["processes"] == 2


STEP = (
    "trainer.gradient_clip_val=0.1",
    "method.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1, gamma: 0.5}",
)


def test_every_test_sample_is_scored_once(command, monkeypatch):
    original = Detector.validation_step

    def counted(self, batch, batch_idx):
        shares = distributed.all_gather_objects(len(batch[0]))
        assert len(shares) == 2 and sum(shares) == len(batch[1]) and max(shares) - min(shares) <= 1
        original(self, batch, batch_idx)
        assert sum(len(scores) for scores in self.roc_auc.scores) == (500, 539)[batch_idx]

    monkeypatch.setattr(Detector, "validation_step", counted)
    history = (train(command, 2, *NO_BATCH_NORM, "epochs=2") / "history.csv").read_text()
    assert history.count("\n") == 3 and "test/auroc" in history


@pytest.mark.parametrize("method", ["elite_svdd", "loe_hard", "rsrae"])
def test_micro_batches_are_one_step_clipped_and_scheduled(command, method):
    same = (f"method={method}", *METHODS[method], *NO_BATCH_NORM, *SGD, *STEP, "epochs=2", "trainer.precision=64")
    whole = train(command, 1, *same, "batch_size=36")
    in_parts = [train(command, n, *same, "batch_size=12", "trainer.accumulate_grad_batches=3") for n in (1, 2)]
    assert all(difference(whole, parts) < 1e-9 for parts in in_parts)
    if method == "elite_svdd":
        without = train(command, 1, *same, "batch_size=36", "trainer.gradient_clip_val=100")
        assert difference(whole, without) > 1e-8, "clipping does something"


def test_micro_batches_share_one_gradient_of_the_labeled_loss(command, monkeypatch):
    taken, original = [], alice.hinge
    monkeypatch.setattr(alice, "hinge", lambda *arguments: taken.append(1) or original(*arguments))
    directory = train(command, 1, *NO_BATCH_NORM, "epochs=2", "batch_size=12", "trainer.accumulate_grad_batches=3")
    steps = int((directory / "history.csv").read_text().splitlines()[-1].split(",")[1])
    assert len(taken) == steps == 8


@pytest.mark.parametrize("processes", [1, 2])
def test_micro_batches_move_the_running_statistics_once(command, monkeypatch, processes):
    moved = []
    original = Detector.descend

    def compare(self, optimizer, loss):
        before = [tracked.clone() for name, tracked in self.score.named_buffers() if "tracked" in name]
        original(self, optimizer, loss)
        assert all(
            (layer.num_batches_tracked == b).all() for layer, b in zip(batch_norms(self.score), before, strict=True)
        )
        moved.append(before[0].item())
        mine = [s.tolist() for s in running_statistics(self.score)]
        assert all(other == mine for other in distributed.all_gather_objects(mine)), "the same on all processes"
        assert len(moved) in (1, 4) or moved[-1] == moved[-2] + 3  # the last batch has two samples

    monkeypatch.setattr(Detector, "descend", compare)
    train(command, processes, "epochs=1", "threads=1", "batch_size=12", "trainer.accumulate_grad_batches=3")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_meta_gradient_is_not_taken_in_half_precision(command, monkeypatch, processes):
    methods = ("elite_svdd", "deep_svdd")
    same = ("threads=1", "epochs=3")
    single = [metrics(train(command, 1, *same, f"method={method}"))["test/auroc"] for method in methods]

    def watched(original):
        def call(*args):
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
            found = original(*args)
            assert found[1].dtype == torch.float32
            return found

        return call

    def half(self, batch):
        assert torch.is_autocast_enabled("cpu")
        assert self.score.encoder(batch["unlabeled"]).dtype == torch.bfloat16
        return unlabeled_score(self, batch)

    unlabeled_score = Detector.unlabeled_score
    for name in ("labeled_gradient", "derivative"):
        monkeypatch.setattr(alice, name, watched(getattr(alice, name)))
    monkeypatch.setattr(Detector, "unlabeled_score", half)
    for method, expected in zip(methods, single, strict=True):
        low = train(command, processes, *same, f"method={method}", "trainer.precision=bf16-mixed")
        assert metrics(low)["test/auroc"] == pytest.approx(expected, abs=0.03)


# --------------------------------------------------------------------------------------------------- jobs and processes

SHORT = ("threads=1", "epochs=4", "method.pretrain_epochs=0", "batch_size=64")
DDP = ("trainer=ddp", *SHORT)


def fail_in_the_third_epoch(monkeypatch, fail, process=1):
    """Lets a process do something bad there, in the run of seed 0."""
    original = Detector.training_step

    def step(self, batch, batch_idx):
        if self.current_epoch == 2 and self.data.seed == 0 and distributed.rank() == process:
            fail()
        original(self, batch, batch_idx)

    monkeypatch.setattr(Detector, "training_step", step)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def results(directory):
    kept = {key: value for key, value in metrics(directory).items() if key != "train/seconds"}
    return kept, *((directory / name).read_text() for name in ("scores.csv", "audit.csv", "history.csv"))


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_dies_ends_its_job_alone_and_the_same_command_goes_on(command, monkeypatch, process):
    with monkeypatch.context() as patch:
        fail_in_the_third_epoch(patch, kill, process)
        outcome = command("-m", "seed=0,1", *DDP)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert f"process {process} of 2 died (SIGKILL)" in outcome.err
    assert not multiprocessing.active_children()
    assert [path.parent.name.split("_seed")[1][0] for path in Path("outputs").rglob("metrics.json")] == ["1"]
    resumed = command(*DDP)
    assert len(results(resumed.directory)[3].splitlines()) == 5
    if process == 1:
        whole = command(*DDP, "output_dir=whole")
        assert results(resumed.directory) == results(whole.directory)


@pytest.mark.parametrize("told", ["one process", "the command"])
def test_sigterm_ends_the_job_with_one_line(tmp_path, told):
    main, children = running_in_two(tmp_path)
    os.kill(main.pid if told == "the command" else children[1], signal.SIGTERM)
    main.join(60)
    assert main.exitcode == (143 if told == "the command" else 1)
    err = (tmp_path / "errors").read_text()
    last = err.splitlines()[-1]
    assert last.endswith("interrupted: the same command goes on, from the last checkpoint if there is one")
    assert not any(map(running, children)) and not list(tmp_path.rglob("*.lock")) and "Traceback" not in err


def test_the_next_job_of_a_sweep_starts_clean_whatever_its_number_of_processes(command):
    outcome = command("-m", "trainer.devices=1,2", "trainer=ddp", *NO_BATCH_NORM, *SGD, *STEPS)
    assert outcome.code == 0, outcome.err
    assert not multiprocessing.active_children() and "LOCAL_RANK" not in os.environ
    one, two = (metrics(path.parent)["test/auroc"] for path in Path("outputs").rglob("metrics.json"))
    assert one == pytest.approx(two, abs=1e-4)


def test_an_error_of_one_process_is_shown_once(command, monkeypatch):
    fail_in_the_third_epoch(monkeypatch, lambda: 1 / 0)
    outcome = command(*DDP)
    assert outcome.code == 1
    assert outcome.err.count("lambda: 1 / 0") == 1, "the line of the process, in its traceback"
    assert outcome.err.endswith("error: RuntimeError: process 1: ZeroDivisionError: division by zero\n")


def test_an_error_of_all_processes_is_one_line(command):
    outcome = command(*DDP, "method.optimizer.lr=1e30")
    assert outcome.code == 1 and outcome.err.count("error: step") == 1 and "Traceback" not in outcome.err
    refused = command(*DDP[:2], "method=ocsvm")
    assert refused.code == 2 and refused.err.startswith("error: trainer.devices=2") and refused.err.count("\n") == 1
    assert not any(Path("outputs").rglob("ocsvm"))


def test_one_process_speaks_and_writes(command, offline):
    outcome = command("logger=wandb", *DDP)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\n") == 2 and outcome.err.count("\n") == 2, "what one process says, and where W&B is"
    runs = list(outcome.directory.glob("wandb/offline-run-*"))
    recorded = read_run(outcome.directory)
    assert len(runs) == 1 and recorded["exit_code"] == 0
    assert recorded["summary"]["test/auroc"] == metrics(outcome.directory)["test/auroc"]
    assert len([row for row in recorded["history"] if "train/loss" in row]) == 4


def started_by_others(number, variable, port, arguments):
    """The command itself, as torchrun or SLURM start it for each process, or a person on each machine."""
    os.environ |= {variable: str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["elite_pl.train", "logger=none", *DDP, *arguments[number]]
    train_command.main()


def start_two(variable, arguments):
    """Two commands side by side, numbered by an environment variable: their exit codes."""
    context = torch.multiprocessing.start_processes(
        started_by_others, (variable, find_free_network_port(), arguments), 2, join=False, start_method="fork"
    )
    for process in context.processes:
        process.join()
    return [process.exitcode for process in context.processes]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_processes_that_others_start_make_one_run_or_none(command, capfd, seeds):
    arguments = [[f"seed={seed}"] for seed in seeds]
    codes, streams = start_two("LOCAL_RANK", arguments), capfd.readouterr()
    if seeds == (0, 0):
        assert codes == [0, 0], streams.err
        directory = Path(streams.out.splitlines()[-1])
        assert streams.out.count("\n") == 2 and metrics(directory)["processes"] == 2
        assert results(command(*DDP, "output_dir=ours").directory) == results(directory)
    else:
        assert (
            codes == [1, 1]
            and "do not belong to one run" in streams.err
            and not any(Path("outputs").rglob("metrics.json"))
        )


def test_two_machines_make_one_run(command, capfd):
    machine = ["trainer.num_nodes=2", "trainer.devices=1"]
    codes, streams = start_two("NODE_RANK", [machine, machine]), capfd.readouterr()
    assert codes == [0, 0], streams.err
    directory = Path(streams.out.splitlines()[-1])
    assert streams.out.count("\n") == 2 and metrics(directory)["processes"] == 2
    assert results(command(*DDP, "output_dir=ours").directory)[1:] == results(directory)[1:]


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    main, children = running_in_two(tmp_path)
    main.kill()
    main.join()
    deadline = time.monotonic() + 60
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, children))


def endless(place):
    """The command in a process of its own, which says in a file what goes wrong."""
    sys.argv = ["elite_pl.train", "logger=none", *DDP, "epochs=5000", f"output_dir={place}"]
    with open(place / "errors", "w", buffering=1) as sys.stderr:
        train_command.main()


def running_in_two(place):
    """A command that has begun to train, forked from here, and the numbers of its two processes."""
    main = multiprocessing.get_context("fork").Process(target=endless, args=(place,))
    main.start()
    deadline = time.monotonic() + 300
    while not list(place.rglob("last.ckpt")) and main.is_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    assert len(children) == 2
    return main, list(map(int, children))


def running(process):
    """Whether there is such a process that is not only waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
