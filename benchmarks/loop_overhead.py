"""What the Lightning loop costs over a bare PyTorch loop that makes the same ELITE steps; part of `speed.py`.

Both loops start from one network and see the same batches; they take turns, an epoch each, on one thread of one
process, so that whatever else the machine does hits both. An epoch of the Lightning loop is all that happens between
two of its epoch starts: callbacks, curves, history.csv and the checkpoint included, validation off. The bare loop does
nothing but steps. The first epochs are not counted. At the end both must hold the same weights, to the last bit.
"""

import copy
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module

from elite_pl import seeding
from elite_pl.algorithm import alice
from elite_pl.algorithm.losses import hinge
from elite_pl.data import Arrays
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.elite import Elite
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.callbacks import History
from elite_pl.runs.spec import RunSpec

NOT_COUNTED = 2  # epochs at the start


class BareLoop:
    """ELITE in plain PyTorch, from a copy of a prepared detector's network."""

    def __init__(self, detector: Elite, data: PollutedData) -> None:
        self.score = copy.deepcopy(detector.score)
        self.margin, self.supervised, self.weights = detector.margin.clone(), detector.supervised, detector.weights
        self.optimizer = detector.make_optimizer(self.score.parameters())
        self.values, preprocessing = data.unlabeled.read(slice(None)), data.unlabeled.preprocessing
        self.shift, self.scale = preprocessing.shift, preprocessing.scale
        self.labeled, self.label = data.labeled[:], data.labeled_y
        self.batch_size, self.seed = data.batch_size, data.seed

    def epoch(self, number: int) -> int:
        """Makes the steps of an epoch, and returns their number."""
        order = torch.randperm(len(self.values), generator=seeding.generator(self.seed, "batches", number))
        batches = order.split(self.batch_size)
        parameters = alice.trainable(self.score)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        for index in batches:
            unlabeled = (self.values[index].float() - self.shift) / self.scale
            found = alice.jvp(
                self.score,
                unlabeled,
                self.labeled,
                self.label,
                self.margin,
                learning_rate=learning_rate,
                weights=self.weights,
            )
            loss = (found.weight * hinge(found.score, found.pseudo_label, self.margin)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            if self.supervised:
                for name, parameter in parameters.items():
                    assert parameter.grad is not None
                    parameter.grad.add_(found.labeled_gradient[name], alpha=self.supervised)
            self.optimizer.step()
        return len(batches)


class Turns(pl.Callback):
    """Lets the bare loop make its epoch before each epoch of the Lightning loop, and takes the times of both."""

    def __init__(self) -> None:
        self.lightning: list[float] = []  # CPU seconds a step, by epoch
        self.bare: list[float] = []
        self.resumed = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The point between two epochs."""
        now = time.process_time()
        if trainer.current_epoch == 0:
            self.loop = BareLoop(pl_module, pl_module.data)
        else:
            self.lightning.append((now - self.resumed) / self.steps)
        start = time.process_time()
        self.steps = self.loop.epoch(trainer.current_epoch)
        self.resumed = time.process_time()
        self.bare.append((self.resumed - start) / self.steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compares the weights."""
        ours, bare = pl_module.score.state_dict(), self.loop.score.state_dict()
        different = [name for name in ours if not torch.equal(ours[name], bare[name])]
        assert not different, f"the loops did not make the same steps: {different}"


def pixels() -> Arrays:
    """Random pixels in the shape of MNIST, with the strides of its images, by which PyTorch puts channels last."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12000, 28, 28), dtype=np.uint8)[:, None], np.arange(12000) % 2
    return Arrays(
        name="pixels",
        x_train=x,
        y_train=y,
        x_test=x[:100],
        y_test=y[:100],
        class_names=None,
        labels="classes",
        fingerprint="random",
    )


def measure(case: str, epochs: int) -> tuple[float, float]:
    """CPU time of a step of the Lightning loop over that of the bare loop, and the latter in ms: medians of epochs."""
    chosen = {"MNIST LeNet": ["dataset=mnist", "label_ratio=0.004"], "digits MLP": ["dataset=digits"]}[case]
    common = ["logger=none", "method=elite_svdd", "method.pretrain_epochs=0", f"epochs={epochs}", "threads=1"]
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        cfg = compose("train", [*chosen, *common, "trainer.limit_val_batches=0"])
    if case == "MNIST LeNet":
        cfg.dataset.source = {"_target_": "loop_overhead.pixels"}
    data = make_data(cfg)
    detector = make_detector(cfg, data.sample_shape)
    turns = Turns()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(
            replace(RunSpec.of(cfg), directory=Path(directory)), History(Path(directory) / "history.csv")
        )
        trainer.callbacks.insert(0, turns)  # type: ignore[attr-defined]
        trainer.fit(detector, datamodule=data)
    counted = slice(NOT_COUNTED, len(turns.lightning))
    lightning, bare = turns.lightning[counted], turns.bare[counted]
    return statistics.median(np.divide(lightning, bare).tolist()), 1e3 * statistics.median(bare)
