"""Runs through the command: what they leave, that they repeat, and that they are not repeated."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from wandb_tools import read_run

from elite_pl import train as train_command
from elite_pl.algorithm import alice, metrics
from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.data import digits
from elite_pl.methods.deep_sad import DeepSad
from elite_pl.methods.elite import Elite
from elite_pl.runs.trained import load

METHODS = ("elite_svdd", "elite_ae", "autoencoder", "deep_svdd", "deep_sad", "labels_only", "oracle")
SHORT = ("epochs=3", "method.pretrain_epochs=1")


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_files(command, request, method):
    if method == "elite_svdd":
        request.getfixturevalue("rendered")
    outcome = command(f"method={method}", "normal_class=3", *SHORT)
    assert outcome.code == 0, outcome.err
    directory = outcome.directory
    assert directory.parts[:4] == ("outputs", "runs", "digits", method)
    expected = "audit.csv config.yaml curves.png detector.pt history.csv last.ckpt "
    expected += "meta_gradient.npz meta_gradient.png " * method.startswith("elite")
    expected += "metrics.json roc.png scores.csv scores.png splits.npz" + " suspicion.png" * method.startswith("elite")
    assert sorted(p.name for p in directory.iterdir()) == expected.split()

    found = json.loads((directory / "metrics.json").read_text())
    rows = read_csv(directory / "scores.csv")
    scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    is_anomaly = torch.tensor([row["is_anomaly"] == "1" for row in rows])
    assert metrics.roc_auc(scores, is_anomaly) == found["test/auroc"]
    assert found["test/base_rate"] == is_anomaly.double().mean().item()
    assert sum(key.startswith("test/auroc_class/") for key in found) == 9

    splits = np.load(directory / "splits.npz")
    assert len(splits["unlabeled"]) == found["data/unlabeled"] == 110 and len(splits["labeled"]) == 10
    audit = read_csv(directory / "audit.csv")
    assert [int(row["rank"]) for row in audit] == list(range(1, 111))
    assert sorted(int(row["index"]) for row in audit) == splits["unlabeled"].tolist()
    assert sum(int(row["is_anomaly"]) for row in audit) == found["data/hidden_anomalies"] == 55
    assert [row["epoch"] for row in read_csv(directory / "history.csv")] == ["1", "2", "3"]
    assert OmegaConf.load(directory / "config.yaml").method.name == method


def test_kinds_of_anomalies_with_and_without_a_label_count_apart(command):
    def measured(*typed):
        return json.loads((command(*SHORT, "pictures=false", *typed).directory / "metrics.json").read_text())

    some = measured("labeled_anomaly_classes=[1,7]", "label_ratio=0.1")
    by_kind = {key.rpartition("/")[2]: area for key, area in some.items() if key.startswith("test/auroc_class/")}
    assert some["test/auroc_seen"] == pytest.approx((by_kind["1"] + by_kind["7"]) / 2)
    assert some["test/auroc_unseen"] == pytest.approx(np.mean([by_kind[kind] for kind in "2345689"]))
    every = measured("label_ratio=0.8")
    assert "test/auroc_seen" in every and "test/auroc_unseen" not in every


def test_without_pictures_it_is_the_same_run(command):
    plain = command(*SHORT, "pictures=false").directory
    assert not list(plain.glob("*.png")) and (plain / "meta_gradient.npz").is_file()
    drawn = command(*SHORT, "output_dir=drawn").directory
    assert plain.name == drawn.name and results(plain) == results(drawn)


def test_the_detector_file_scores_as_the_run_did(command):
    directory = command(*SHORT).directory
    detector = load(directory / "detector.pt")
    expected = [float(row["score"]) for row in read_csv(directory / "scores.csv")]
    assert detector.score(digits().x_test).tolist() == expected
    split = np.load(directory / "splits.npz")
    index = np.sort(np.concatenate([split["unlabeled"], split["labeled"]]))
    np.testing.assert_allclose(detector.training_scores, detector.score(digits().x_train[index]), rtol=1e-5)
    torch.load(directory / "last.ckpt", weights_only=True)


def results(directory):
    """All numbers of a run that must repeat."""
    found = json.loads((directory / "metrics.json").read_text())
    found.pop("train/seconds")
    recording = directory / "meta_gradient.npz"
    recorded = {key: a.tobytes() for key, a in np.load(recording).items()} if recording.exists() else {}
    return found, *((directory / name).read_text() for name in ("scores.csv", "audit.csv", "history.csv")), recorded


def test_same_seed_same_numbers_to_the_last_bit(command):
    first = results(command(*SHORT, "output_dir=a").directory)
    torch.manual_seed(999)  # the global generator has no part in it
    np.random.seed(999)
    second = results(command(*SHORT, "output_dir=b", "study=other").directory)
    assert first == second
    assert results(command(*SHORT, "seed=1").directory)[1] != first[1]


def test_the_split_does_not_depend_on_the_method(command):
    splits = [np.load(command(f"method={m}", *SHORT).directory / "splits.npz") for m in ("elite_svdd", "deep_svdd")]
    assert all((splits[0][key] == splits[1][key]).all() for key in splits[0].files)


def test_pretrained_weights_are_shared_and_change_nothing(command):
    alone = results(command("method=deep_sad", *SHORT, "output_dir=alone").directory)
    command("method=deep_svdd", *SHORT)
    after_another = results(command("method=deep_sad", *SHORT).directory)
    assert alone == after_another


def test_a_finished_run_is_skipped_and_another_config_is_not(command):
    first = command(*SHORT)
    written = (first.directory / "metrics.json").stat().st_mtime_ns
    again = command(*SHORT)
    assert again.code == 0 and again.out == first.out
    assert (first.directory / "metrics.json").stat().st_mtime_ns == written
    other = command(*SHORT, "method.optimizer.lr=0.002")
    assert other.directory != first.directory and other.directory.name[:-10] == first.directory.name[:-10]


def test_a_sweep_runs_every_combination(command):
    outcome = command("-m", "normal_class=0,1", "seed=range(2)", *SHORT)
    assert outcome.code == 0, outcome.err
    directories = [line for line in outcome.out.splitlines() if line.startswith("outputs")]
    assert len(set(directories)) == 4


def test_a_sweep_goes_on_after_a_job_that_fails(command):
    outcome = command("-m", "normal_class=0,77,1", *SHORT)
    assert outcome.code == 2
    assert "normal_class=77" in outcome.err and "Traceback" not in outcome.err
    assert len([line for line in outcome.out.splitlines() if line.startswith("outputs")]) == 2


def test_both_meta_gradients_give_the_same_run(command):
    found = [
        results(command(f"method.meta_gradient={how}", "backbone=mlp", "backbone.norm=none", *SHORT).directory)[0]
        for how in ("jvp", "virtual_step")
    ]
    assert found[0]["test/auroc"] == pytest.approx(found[1]["test/auroc"], abs=1e-3)


@pytest.mark.parametrize(
    "shape, backbone", [((28, 28, 1), "lenet_mnist"), ((32, 32, 3), "lenet_cifar10"), ((12, 15, 1), "lenet")]
)
def test_auto_picks_the_backbone_by_the_shape(command, images, shape, backbone):
    path = images(*shape)
    outcome = command(
        "dataset=npz", f"dataset.path={path}", "epochs=1", "batch_size=64", "pollution=0.2", "label_ratio=0.1"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads((outcome.directory / "metrics.json").read_text())["backbone"] == backbone


def test_known_labels_need_no_normal_class(command, tmp_path):
    data = digits()
    y = np.where(data.y_train[:400] == 3, 1, -1)
    y[20:] = 0
    np.savez(tmp_path / "own.npz", x_train=data.x_train[:400], y_train=y)
    outcome = command("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threshold=fitted", *SHORT)
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.directory / "metrics.json").read_text())
    assert found["data/labeled"] == 20 and found["data/unlabeled"] == 380 and "test/auroc" not in found
    assert len(read_csv(outcome.directory / "audit.csv")) == 380
    assert not (outcome.directory / "scores.csv").exists()


def test_no_labels_and_no_pollution_suit_a_method_without_labels(command):
    outcome = command("method=deep_svdd", "pollution=0", "label_ratio=0", *SHORT)
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.directory / "metrics.json").read_text())
    assert found["data/hidden_anomalies"] == found["data/labeled"] == 0 and found["data/unlabeled"] == 120


def test_training_that_turns_non_finite_stops(command):
    outcome = command("method.optimizer.lr=1e30", "method.pretrain_epochs=0", "epochs=3")
    assert outcome.code == 1
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: step ") and "learning rate" in error and "Traceback" not in outcome.err
    assert not list(Path("outputs").rglob("metrics.json"))


def test_collapse_is_warned_of(command):
    decay = (
        "method.optimizer._target_=torch.optim.SGD",
        "method.optimizer.lr=0.01",
        "method.optimizer.weight_decay=90",
    )
    outcome = command("method=deep_svdd", *decay, *SHORT)
    assert outcome.code == 0
    assert "collapsed" in outcome.err and "step" in outcome.err


def test_an_offline_wandb_run_holds_the_numbers(command, offline):
    directory = command("logger=wandb", "study=mine", *SHORT).directory
    found = json.loads((directory / "metrics.json").read_text())
    recorded = read_run(directory)
    assert recorded["exit_code"] == 0
    assert recorded["summary"]["test/auroc"] == found["test/auroc"], "a plain number, to the last digit"
    assert (recorded["run"].run_group, recorded["run"].job_type) == ("mine", "elite_svdd")
    assert "digits" in recorded["run"].tags and "pollution=0.5" in recorded["run"].tags
    assert recorded["config"]["method"]["optimizer"]["lr"] == 1e-3
    curve = [row["train/labeled_loss"] for row in recorded["history"] if "train/labeled_loss" in row]
    assert curve == [pytest.approx(float(r["train/labeled_loss"])) for r in read_csv(directory / "history.csv")]
    charts = {key for row in recorded["history"] for key in row}
    assert {"meta_gradient/normal", "meta_gradient/anomaly", "score/normal", "score/anomaly"} <= charts
    assert {"labeled/loss", "pictures/curves", "pictures/meta_gradient"} <= charts


def test_each_job_of_a_sweep_has_its_wandb_run_and_a_failed_one_is_marked(command, offline):
    outcome = command("-m", "logger=wandb", "method.optimizer.lr=1e-3,1e30", "method.pretrain_epochs=0", "epochs=3")
    assert outcome.code == 1
    codes = sorted(read_run(path)["exit_code"] for path in Path("outputs/runs/digits/elite_svdd").iterdir())
    assert codes == [0, 1]


def test_a_long_run_says_how_long_it_will_take(command, monkeypatch):
    outcome = command(*SHORT, "+callbacks.time_left.after=0", "+callbacks.time_left.long=0")
    assert re.search(r"about \d+ s of training left \(10 of 12 steps\)", outcome.err)


def test_nothing_but_our_own_words_is_printed(command):
    outcome = command(*SHORT)
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("digits, normal class 0: 110 unlabeled")
    assert outcome.out.count("\n") == 2


def test_a_damaged_checkpoint_costs_a_warning(command):
    whole = command("output_dir=whole", *SHORT)
    again = command(*SHORT)
    (again.directory / "metrics.json").unlink()
    (again.directory / "last.ckpt").write_bytes(b"half")
    for kept in Path("outputs/pretrained").iterdir():
        kept.write_bytes(b"half")
    again = command(*SHORT)
    assert again.code == 0 and again.err.count("damaged") == 2
    assert results(again.directory) == results(whole.directory)


def test_a_run_that_only_lacks_its_results_writes_them(command):
    first = command(*SHORT)
    expected = results(first.directory)
    (first.directory / "metrics.json").unlink()
    assert results(command(*SHORT).directory) == expected


@pytest.mark.parametrize(
    "typed", ["pollution=0.1", "label_ratio=0.1", "n_train=100", "normal_class=3", "labeled_anomaly_classes=[1]"]
)
def test_known_labels_are_split_by_nobody(command, tmp_path, typed):
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.repeat([1, -1, 0], [5, 5, 50])
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
    outcome = command("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", typed)
    expected = f"error: {typed}: dataset.labels=known takes samples and labels as they are; it is for "
    assert outcome.code == 2 and outcome.err.startswith(expected) and outcome.err.count("\n") == 1, outcome.err


def test_known_labels_with_a_test_part(command):
    data = digits()
    y_train, y_test = (np.where(y == 3, 1, -1) for y in (data.y_train, data.y_test))
    y_train[np.random.default_rng(0).random(len(y_train)) < 0.9] = 0
    np.savez("own.npz", x_train=data.x_train, y_train=y_train, x_test=data.x_test, y_test=y_test)
    outcome = command("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threshold=fitted", *SHORT)
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.directory / "metrics.json").read_text())
    assert found["test/auroc"] > 0.8 and found["pollution"] is None
    assert "train/pseudo_label_accuracy" not in read_csv(outcome.directory / "history.csv")[0], "nobody knows it"
    refused = command("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "method=oracle", *SHORT)
    assert refused.code == 2 and "oracle" in refused.err


def test_the_labeled_loss_in_the_update_has_the_gradient_of_another_pass(command, monkeypatch):
    """ELITE adds L_v to its loss without a second pass: its gradient must be v all the same."""
    checked = []
    original = Elite.labeled_loss

    def compare(self, inference):
        loss = original(self, inference)
        theta = alice.trainable(self.score)
        gradients = torch.autograd.grad(loss, list(theta.values()), retain_graph=True)
        checked.extend(g.equal(inference.labeled_gradient[name]) for name, g in zip(theta, gradients, strict=True))
        checked.append(loss.item() == pytest.approx(inference.labeled_loss.item()))
        return loss

    monkeypatch.setattr(Elite, "labeled_loss", compare)
    assert command(*SHORT).code == 0
    assert checked and all(checked)


@pytest.mark.parametrize("average", ["samples", "parts"])
@pytest.mark.parametrize("statistics", ["batch", "joint"])
def test_deep_sad_is_equation_3(command, monkeypatch, average, statistics):
    checked = []
    original = DeepSad.loss

    def compare(self, batch):
        loss = original(self, batch)
        passes = [batch["unlabeled"], batch["labeled"]]
        with torch.no_grad(), frozen_statistics(self.score):
            both = self.score(torch.cat(passes)) if statistics == "joint" else torch.cat([*map(self.score, passes)])
        unlabeled, labeled = both.split([len(x) for x in passes])
        n, m, y = len(self.data.unlabeled), len(labeled), batch["labeled_y"]
        loss_of_label = (labeled + 1e-6) ** y
        if average == "samples":
            expected = n / (n + m) * unlabeled.mean() + 2 / (n + m) * loss_of_label.sum()
        else:
            expected = unlabeled.mean() / 2 + loss_of_label.mean()
        checked.append(loss.item() == pytest.approx(expected.item(), rel=1e-4))
        return loss

    monkeypatch.setattr(DeepSad, "loss", compare)
    how = ("method.eta=2", f"method.average={average}", f"method.labeled_statistics={statistics}")
    assert command("method=deep_sad", *how, *SHORT).code == 0
    assert checked and all(checked)


def test_labels_only_is_scored_with_statistics_of_all_training_samples(command):
    directory = command("method=labels_only", *SHORT).directory
    encoder = load(directory / "detector.pt").model.encoder
    split = np.load(directory / "splits.npz")
    x = torch.as_tensor(digits().x_train[np.concatenate([split["unlabeled"], split["labeled"]])])
    first, norm = encoder[1], encoder[2]
    mean = (x.flatten(1) @ first.weight.T).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)


def test_a_command_does_not_import_what_metrics_of_sound_and_images_and_plots_need():
    imports = "from elite_pl.runs import startup; startup.import_lightning(); import elite_pl.runs.launch, sys"
    heavy = "assert not {'scipy.signal', 'torchvision', 'matplotlib'} & set(sys.modules); import scipy, torchvision"
    subprocess.run([sys.executable, "-c", f"{imports}; {heavy}"], check=True)


COMPILE = """\
import importlib, sys
from elite_pl.runs import startup
startup.import_lightning()
import torch
from pytorch_lightning.utilities.compile import OptimizedModule
linear = torch.nn.Linear(2, 2)
def step(network):
    optimizer = torch.optim.Adam(linear.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
step(linear)
[hasattr(module, "__file__") for module in list(sys.modules.values())]  # as inspect does
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
if sys.argv[1:]: importlib.import_module(*sys.argv[1:])
compiled = torch.compile(linear, backend="eager")
step(compiled)
assert isinstance(compiled, OptimizedModule) and not isinstance(linear, OptimizedModule)
from torch._dynamo import eval_frame
assert torch._dynamo is sys.modules["torch._dynamo"] and type(compiled) is eval_frame.OptimizedModule
"""


@pytest.mark.parametrize("first", [[], ["torch._dynamo.eval_frame"]])
def test_the_compiler_is_imported_when_somebody_compiles(first):
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE, *first], check=True)


def begin(arguments):
    """The command in a process that is forked from this one, slowed down from the seventh epoch on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind & ignores it
    original = Elite.training_step

    def slow(self, batch, batch_idx):
        time.sleep(0.05 * (self.current_epoch > 5))
        original(self, batch, batch_idx)

    Elite.training_step = slow
    sys.argv = ["elite_pl.train", *arguments]
    train_command.main()


def interrupted(tmp_path, sent, typed):
    """Starts a run, sends it a signal in the middle of training, and returns its process and directory."""
    arguments = ["logger=none", *typed, f"output_dir={tmp_path}/out"]
    process = multiprocessing.get_context("fork").Process(target=begin, args=(arguments,))
    process.start()
    deadline = time.monotonic() + 120
    history = []
    while time.monotonic() < deadline and process.is_alive():
        history = list((tmp_path / "out").rglob("history.csv"))
        if history and len(history[0].read_text().splitlines()) > 6:
            break
        time.sleep(0.01)
    assert process.is_alive()
    os.kill(process.pid, sent)
    process.join(60)
    return process, history[0].parent


@pytest.mark.parametrize(
    "sent, scored_every",
    [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1), (signal.SIGKILL, 12)],
)
def test_an_interrupted_run_is_not_finished_and_goes_on_to_the_same_result(command, tmp_path, sent, scored_every):
    typed = ("threads=1", "epochs=12", f"trainer.check_val_every_n_epoch={scored_every}")
    process, directory = interrupted(tmp_path, sent, typed)
    assert process.exitcode != 0
    assert not (directory / "metrics.json").exists()
    assert sent == signal.SIGKILL or not list(directory.glob(".*")), "no half-written file"
    assert (directory / "last.ckpt").exists()
    epoch = torch.load(directory / "last.ckpt", weights_only=True)["epoch"]
    assert epoch + 3 >= len((directory / "history.csv").read_text().splitlines()), "the last epoch, or the one before"
    resumed = command(*typed, f"output_dir={tmp_path}/out")
    assert resumed.code == 0 and resumed.directory == directory, resumed.err
    assert not list(directory.glob(".*")), "what was half written when it was killed is gone"
    whole = command(*typed, "output_dir=whole")
    assert results(resumed.directory) == results(whole.directory)
