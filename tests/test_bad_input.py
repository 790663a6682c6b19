"""Bad input through the command: one clear line that names the key or file, exit code 2, nothing left behind."""

import shlex
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch import nn


def refused(outcome, *words):
    """Checks the contract of bad input, and returns the line."""
    assert outcome.code == 2, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert not Path("outputs").exists(), "no directory left behind"
    return lines[0]


TYPED = {
    "polution=0.5": ("polution", "did you mean pollution"),
    "seed=0,1": ("seed=0,1: is a sweep; add -m",),
    "~augmentatio": ("~augmentatio: no such key; did you mean augmentation?",),
    "~method.trees": ("~method.trees: no such key of the chosen method",),
    "ensemble=0": ("ensemble=0", "from 1 to 100"),
    "score=readout": ("score: no such key; did you mean score@method.score?",),
    "score@method.score=read": ("score@method.score=read: no such option; did you mean readout?",),
    "method.meta_scle=3": ("method.meta_scle", "no such key"),
    "datset=mnist": ("datset", "dataset"),
    "dataset=mnst": ("mnst", "mnist"),
    "method=elite": ("elite", "elite_svdd"),
    "experiment=none_such": ("experiment=none_such: no such option; expected one of", "demo, digits"),
    "dataset=imagefolder": ("dataset=imagefolder: no such option; did you mean image_folder?",),
    "hydra/launcher=jobli": ("hydra/launcher=jobli: no such option; did you mean joblib?",),
    "dataset.pth=rows.csv": ("dataset.pth: no such key; did you mean dataset.path?",),
    "method.optimizr.lr=1": ("method.optimizr.lr: no such key; did you mean method.optimizer.lr?",),
    "method.trees=3": ("method.trees: no such key of the chosen method",),
    "normal_class=range(10": ("normal_class=range(10: has a bracket without its counterpart; as text: '",),
    "seed=rnge(3)": ("seed=rnge(3): there is no rnge(...); did you mean range(...)?",),
    "seed=interval(1)": ("seed=interval(1): missing a required argument: 'end'; as text: ",),
    "rows.csv": ("rows.csv: expected KEY=VALUE",),
    "pollution=1": ("pollution=1.0", "[0, 1)"),
    "pollution=-0.1": ("pollution=-0.1", "[0, 1)"),
    "pollution=much": ("pollution", "much"),
    "label_ratio=1.5": ("label_ratio=1.5", "[0, 1)"),
    "n_train=1": ("n_train=1",),
    "n_train=many": ("n_train", "many"),
    "batch_size=1": ("batch_size=1", "at least 2"),
    "epochs=0": ("epochs=0", "at least 1"),
    "seed=-1": ("seed=-1",),
    "threads=0": ("threads=0",),
    "study=../elsewhere": ("study=../elsewhere", "folder name"),
    "study=": ("study",),
    "method.weights=some": ("method.weights=some", "raw", "mean"),
    "method.meta_gradient=magic": ("method.meta_gradient=magic", "jvp"),
    "method.meta_scale=0": ("method.meta_scale=0", "positive"),
    "method.margin=large": ("method.margin=large", "mean_initial"),
    "method.margin=-1": ("method.margin=-1", "positive"),
    "method.labeled_statistics=none": ("method.labeled_statistics=none", "running"),
    "method.labeled_statistics=joint": ("method.labeled_statistics=joint", "batch or running"),
    "method._target_=elite_pl.methods.nothing.Nothing": ("elite_pl.methods.nothing",),
    "method.pretrain_epochs=-1": ("method.pretrain_epochs=-1", "negative"),
    "method.pretrain_learning_rate=0": ("method.pretrain_learning_rate=0", "positive"),
    "method.supervised=-1": ("method.supervised=-1", "negative"),
    "method.optimizer.lr=-1": ("method.optimizer", "-1"),
    "+method.optimizer.foo=3": ("method.optimizer", "foo"),
    "+method.foo=3": ("method", "foo"),
    "method.pretrain_epochs=1.5": ("method.pretrain_epochs=1.5", "whole number"),
    "method.pretrain_milestone=1.5": ("method.pretrain_milestone=1.5", "whole number of at least 1, or null"),
    "method.supervised=abc": ("method.supervised=abc", "number, not negative"),
    "method.margin=null": ("method.margin=null", "mean_initial, max_labeled or a positive, finite number"),
    "method.margin=true": ("method.margin=true", "mean_initial"),
    "method.meta_scale=inf": ("method.meta_scale=inf", "finite"),
    "method.score.squared=abc": ("method.score.squared=abc", "true or false"),
    "method.optimizer=adam": ("method.optimizer=adam", "_target_"),
    "method.optimizer.lr=abc": ("method.optimizer.lr=abc", "a number"),
    "method.scheduler=cosine": ("method.scheduler=cosine", "_target_, or null"),
    "method.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true}": ("scheduler", "step_size"),
    "method.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}": ("scheduler", "metric"),
    "dataset.size=20.5": ("dataset.size=20.5", "pixels"),
    "dataset.scaling=[a,b]": ("dataset.scaling", "mean"),
    "dataset.scaling=null": ("dataset.scaling", "unit"),
    "trainer.max_epochs=abc": ("trainer.max_epochs=abc", "whole number"),
    "trainer.check_val_every_n_epoch=null": ("trainer.check_val_every_n_epoch", "whole number"),
    "trainer.limit_train_batches=0": ("trainer.limit_train_batches=0", "above 0"),
    "+trainer.benchmark=abc": ("trainer.benchmark=abc", "true or false"),
    "logger=null": ("logger=null", "--help"),
    "method=null": ("method=null", "--help"),
    "backbone=lenet": ("backbone: lenet needs images",),
    "trainer.devices=2": ("trainer.devices=2", "trainer=ddp"),
    "trainer.max_epochs=0": ("trainer.max_epochs=0", "at least 1"),
    "trainer.check_val_every_n_epoch=0": ("trainer.check_val_every_n_epoch=0", "at least 1"),
    "trainer.gradient_clip_val=-1": ("trainer.gradient_clip_val=-1", "positive", "null"),
    "trainer.gradient_clip_algorithm=none": ("trainer.gradient_clip_algorithm=none", "norm or value"),
    "trainer.accumulate_grad_batches=0": ("trainer.accumulate_grad_batches=0", "at least 1"),
    "trainer.precision=16": ("trainer.precision", "bf16-mixed"),
    "+trainer.sync_batchnorm=true": ("trainer.sync_batchnorm", "per process"),
    'output_dir="~/x"': ("output_dir=~/x", "path of a folder"),
    "seed=1e3": ("seed=1e3", "Integer"),
    "output_dir=~/x": ("output_dir=", "quotes"),
    "logger._target_=elite_pl.runs.paper": ("logger._target_=elite_pl.runs.paper", "imported"),
    "trainer.devices=none": ("trainer", "devices"),
    "dataset.labeled_from=somewhere": ("dataset.labeled_from=somewhere", "outside"),
    "pollution": ("pollution",),
    "dataset=npz": ("dataset.path",),
    "~method.name": ("method.name: is required", "--help"),
    "~method._target_": ("method._target_: is required",),
    "~dataset.name": ("dataset.name: is required",),
    "~dataset.source": ("dataset.source._target_: is required",),
    "~dataset.scaling": ("scaling",),
    "~backbone._target_": ("backbone._target_: is required",),
    "dataset.source=null": ("dataset.source._target_: is required",),
    "dataset.source=5": ("dataset.source",),
    "method=shared/budget": ("method._target_: is required", "--help"),
    "method._target_=os.getcwd": ("method._target_=os.getcwd", "BaseDetector"),
    "method._target_=elite_pl.models.mlp": ("method._target_=elite_pl.models.mlp", "BaseDetector"),
    "dataset.source._target_=builtins.list": ("dataset.source._target_=builtins.list", "Arrays"),
    "dataset.source._target_=platform.python_version": ("dataset.source._target_", "makes a str", "Arrays"),
    "backbone._target_=builtins.print": ("backbone._target_=builtins.print", "Backbone"),
    "backbone._target_=math.pi": ("backbone._target_=math.pi", "Backbone"),
    "method.score._target_=builtins.dict": ("method.score._target_=builtins.dict", "Score"),
    "method.score._target_=elite_pl.models.RobustSubspace": ("method.score: ", "squared"),
    "method.optimizer._target_=builtins.list": ("method.optimizer._target_=builtins.list", "Optimizer"),
    "+method.optimizer.betas=[2,3]": ("method.optimizer: ", "beta", "2"),
    "+method.optimizer.betas=abc": ("method.optimizer.betas=abc", "a list"),
    "dataset.size=5000": ("dataset.size=5000", "4096"),
}
TYPED |= {
    f"method.scheduler={{_target_: torch.optim.lr_scheduler.{schedule}, _partial_: true}}": ("method.scheduler: ", word)
    for schedule, word in {
        "StepLR, step_size: 0": "StepLR",
        "CosineAnnealingLR, T_max: 0": "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts, T_0: 0": "T_0",
        "CyclicLR, base_lr: 0.1, max_lr: 1, step_size_up: 0, cycle_momentum: false": "zero",
        "OneCycleLR, max_lr: 1, total_steps: 3": "3",
        "MultiplicativeLR, lr_lambda: 3": "lr_lambda",
    }.items()
}


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed(command, typed):
    refused(command(typed), *TYPED[typed])


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
@pytest.mark.parametrize("name", ["rows(1).csv", "rows=1.csv", "[x].csv", "{a}.csv", "rows (1", 'O\'Neil "x".csv'])
def test_text_that_needs_quotes_is_shown_with_them(command, name, sweep):
    line = refused(command("dataset=table", f"dataset.path={name}", *sweep), f"error: dataset.path={name}: has ")
    (quoted,) = shlex.split(line.split("; as text: ")[1])
    refused(command("dataset=table", quoted), f"dataset.path={name}: no such file")


def test_of_a_list_what_needs_quotes_is_shown_with_them(command):
    line = refused(command("dataset=table", 'dataset.drop_columns=[Amount (USD), "Net, (b)", c]'), "need quotes")
    assert line.endswith("""as text: 'dataset.drop_columns=["Amount (USD)", "Net, (b)", c]'"""), line


SPLITS = {
    ("pollution=0.01",): ("label_ratio=0.085", "pollution"),  # fewer anomalies than are to be labeled
    ("pollution=0",): ("pollution=0", "label_ratio=0", "outside"),
    ("dataset=npz", "augmentation=auto"): ("augmentation=auto: none is known for dataset=npz, only for cifar10",),
    ("n_train=121", "label_ratio=0.999"): ("label_ratio=0.999", "unlabeled"),  # leaves no unlabeled sample
    ("n_train=1000", "pollution=0.1"): ("n_train=1000", "125"),  # says how many there are
    ("normal_class=10",): ("normal_class=10", "0", "9"),
    ("normal_class=ten",): ("normal_class=ten", "9"),
    ("label_ratio=0",): ("label_ratio=0", "elite_svdd"),
    ("method=deep_sad", "method.eta=-1"): ("method.eta=-1", "negative"),
    ("method=deep_sad", "method.average=all"): ("method.average=all", "parts"),
    ("~method.optimizer.weight_decay", "method.optimizer._target_=torch.optim.LBFGS"): (
        "method.optimizer: LBFGS",
        "closure",
    ),
    ("~method.optimizer.weight_decay", "method.optimizer._target_=torch.optim.SparseAdam"): ("SparseAdam", "dense"),
    ("backbone=mlp", "backbone.outputs=1e9"): ("backbone.outputs=1000000000.0", "whole number from 1 to 1048576"),
    ("backbone=mlp", "backbone.hidden=[1000000,1000000]"): ("backbone: mlp would have", "1e+09"),
    ("backbone=mlp", "backbone.hidden=[100000000]"): ("backbone.hidden=[100000000]",),
    ("method=auto", "score@method.score=readout"): ("score@method.score: the chosen method has no other scores",),
    ("method=auto", "ensemble=2"): ("ensemble=2", "method=auto is a mean of several trainings"),
    ("method=rsrae", "score@method.score=readout"): ("score@method.score: the chosen method has no other scores",),
    ("method=rsrae", "method.score.dimension=99"): ("method.score.dimension=99", "at most 32"),
    ("method=rsrae", "method.score.distance=far"): ("method.score.distance=far", "cosine or norm"),
    ("method=rsrae", "method.score={_target_: elite_pl.models.ScalarHead, _partial_: true}"): ("method.score: Scalar",),
    ("backbone=mlp", "backbone.outputs=0"): ("backbone.outputs=0", "from 1"),
    ("backbone=mlp", "backbone.outputs=1.5"): ("backbone.outputs=1.5", "whole number"),
    ("backbone=mlp", "backbone.hidden=64"): ("backbone.hidden=64", "a list"),
    ("backbone=mlp", "backbone.hidden=[a]"): ("backbone.hidden=['a']", "a list"),
    ("backbone=mlp", "backbone.norm=abc"): ("backbone.norm=abc", "layer"),
    ("trainer=ddp", "trainer.num_nodes=2"): ("trainer.num_nodes=2", "MASTER_ADDR, MASTER_PORT, NODE_RANK"),
    ("label_ratio=0", "method=deep_svdd", "method.margin=max_labeled"): ("method.margin=max_labeled",),
}


@pytest.mark.parametrize("typed", SPLITS, ids=" ".join)
def test_a_split_that_cannot_be_made(command, typed):
    refused(command(*typed), *SPLITS[typed])


X, Y = np.random.default_rng(0).random((60, 5)), np.arange(60) % 3
FILES = {
    "a missing array": ({"x_train": X, "y_train": Y, "x_test": X}, "y_test"),
    "no labels": ({"x": X}, "y"),
    "object arrays": ({"x": X.astype(object), "y": Y}, "object"),
    "nan": ({"x": np.where(X > 0.99, np.nan, X), "y": Y}, "NaN"),
    "lengths": ({"x": X, "y": Y[:-1]}, "59"),
    "shape": ({"x": np.zeros((60, 5, 6, 7), np.uint8), "y": Y}, "(60, 5, 6, 7)"),
    "both axes": ({"x": np.zeros((60, 3, 6, 3), np.uint8), "y": Y}, "(60, 3, 6, 3)"),
}


@pytest.mark.parametrize("what", FILES)
def test_an_npz_file(command, what):
    arrays, word = FILES[what]
    np.savez("own.npz", **arrays)
    refused(command("dataset=npz", "dataset.path=own.npz", "label_ratio=0.1", "n_train=20"), "own.npz", word)


@pytest.mark.parametrize("y, shown", [([1, -1, 0], "1, -1 and 0"), ([0, -1, 0], "-1 and 0")])
def test_known_labels_that_are_read_as_classes(command, y, shown):
    np.savez("own.npz", x=X, y=np.tile(y, 20))
    right = "dataset.labels=known reads them so; classes need names, or ids from 0"
    line = refused(
        command("dataset=npz", "dataset.path=own.npz"), f"own.npz: y holds {shown}, as known labels do", right
    )
    np.savez("own.npz", x_train=X, y_train=np.tile(y, 20), x_test=X, y_test=Y)
    assert refused(command("dataset=npz", "dataset.path=own.npz")) == line.replace("y holds", "y_train holds")


@pytest.mark.parametrize("typed", ["dataset.labels=guess", "dataset.test_fraction=1"])
def test_settings_of_an_npz_file(command, typed):
    np.savez("own.npz", x=X, y=Y)
    right = "must be known or classes" if "labels" in typed else "must be a number between 0 and 1"
    refused(command("dataset=npz", "dataset.path=own.npz", typed), f"{typed}: {right}")


def test_an_npz_file_whose_parts_are_no_arrays(command):
    with zipfile.ZipFile("own.npz", "w") as file:
        file.writestr("x.npy", "no array")
        file.writestr("y.npy", "no array")
    refused(command("dataset=npz", "dataset.path=own.npz"), "own.npz", "x is no array", "numpy.savez")


def test_a_file_that_is_not_there(command):
    refused(command("dataset=npz", "dataset.path=nowhere.npz"), "dataset.path=nowhere.npz", "no such file")


def test_no_files_and_no_network(command, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    line = refused(command("dataset=mnist", "dataset.root=empty"), "dataset.root=empty", "train-images-idx3-ubyte")
    assert not Path("empty").exists(), line


def test_an_output_directory_that_cannot_be_written(command):
    Path("file").write_text("")
    refused(command("output_dir=file/outputs"), "output_dir=file/outputs")
    assert Path("file").read_text() == ""
    refused(command("-m", "seed=0,1", "output_dir=file/outputs"), "file")


def test_a_sweep_of_bad_input_only_leaves_nothing(command):
    outcome = command("-m", "pollution=2,3")
    first, *errors = outcome.err.splitlines()
    assert outcome.code == 2 and first == "2 cells: 2 refused" and all(line.startswith("error: ") for line in errors)
    assert not Path("outputs").exists()


def test_hydra_needs_no_page_of_advice(command):
    assert "HYDRA_FULL_ERROR" not in command("pollution=abc").err


def test_a_backbone_whose_normalization_the_meta_gradient_cannot_pass(command, monkeypatch):
    monkeypatch.setattr(nn, "BatchNorm1d", nn.SyncBatchNorm)
    refused(command(), "backbone=mlp", "SyncBatchNorm")
