"""What the Lightning loop costs over a bare PyTorch loop that makes the same ELITE steps.

    python benchmarks/loop_overhead.py

Both loops start from one network and see the same batches; they take turns, an epoch each, on one thread of one
process, so that whatever else the machine does hits both. An epoch of the Lightning loop is all that happens between
two of its epoch starts: callbacks, curves, history.csv and the checkpoint included, validation off. The bare loop does
nothing but steps. The first epochs are not counted. At the end both must hold the same weights, to the last bit.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module

from elite_pl import config, seeding
from elite_pl.algorithm import alice
from elite_pl.algorithm.losses import hinge
from elite_pl.cli import silence_advice
from elite_pl.data import Arrays
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.elite import Elite
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.callbacks import History
from elite_pl.runs.spec import RunSpec

RESULTS = Path(__file__).parent / "results" / "loop_overhead.md"
NOT_COUNTED = 2  # epochs at the start
TARGET = 1.15  # of the MNIST LeNet


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
        self.lightning: list[float] = []  # seconds a step, by epoch
        self.bare: list[float] = []
        self.resumed = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The point between two epochs."""
        now = time.perf_counter()
        if trainer.current_epoch == 0:
            self.loop = BareLoop(pl_module, pl_module.data)
        else:
            self.lightning.append((now - self.resumed) / self.steps)
        start = time.perf_counter()
        self.steps = self.loop.epoch(trainer.current_epoch)
        self.resumed = time.perf_counter()
        self.bare.append((self.resumed - start) / self.steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compares the weights."""
        ours, bare = pl_module.score.state_dict(), self.loop.score.state_dict()
        different = [name for name in ours if not torch.equal(ours[name], bare[name])]
        assert not different, f"the loops did not make the same steps: {different}"


def pixels() -> Arrays:
    """Random pixels in the shape of MNIST."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12000, 1, 28, 28), dtype=np.uint8), np.arange(12000) % 2
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


def measure(case: str, epochs: int) -> tuple[list[float], list[float], int]:
    """Seconds a step of both loops, by epoch, and the steps of an epoch."""
    chosen = {"MNIST LeNet": ["dataset=mnist", "label_ratio=0.004"], "digits MLP": ["dataset=digits"]}[case]
    common = ["logger=none", "method=elite_svdd", "method.pretrain_epochs=0", f"epochs={epochs}", "threads=1"]
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        cfg = compose("train", [*chosen, *common, "trainer.limit_val_batches=0"])
    if case == "digits MLP":
        data = make_data(cfg)
    else:
        cfg.dataset.source = {"_target_": "__main__.pixels"}
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
    return turns.lightning[counted], turns.bare[counted], turns.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside the other results")
    parser.add_argument("--epochs", type=int, help="of each repetition, to try it out (default: 12 and 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    silence_advice()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    config.register()

    header = "| steps | a step, bare | a step, Lightning | ratio, median | quartiles | medians of the repetitions |"
    lines = [header, "|---|---|---|---|---|---|"]
    for case, epochs in {"MNIST LeNet": 12, "digits MLP": 100}.items():
        ratios: list[list[float]] = []
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(options.repetitions):
            a, b, steps = measure(case, options.epochs or epochs)
            ours, bare = ours + a, bare + b
            ratios.append([x / y for x, y in zip(a, b, strict=True)])
        flat = sorted(ratio for repetition in ratios for ratio in repetition)
        low, median, high = statistics.quantiles(flat, n=4)
        medians = sorted(statistics.median(repetition) for repetition in ratios)
        lines.append(
            f"| {case}, {steps} an epoch | {1e3 * statistics.median(bare):.2f} ms | "
            f"{1e3 * statistics.median(ours):.2f} ms | {median:.3f} | {low:.3f} to {high:.3f} | "
            f"{medians[0]:.3f} to {medians[-1]:.3f} |"
        )
        print(lines[-1], flush=True)
    text = f"""# The Lightning loop against a bare PyTorch loop

`make bench`, or `python benchmarks/loop_overhead.py --repetitions {options.repetitions} --write`.

Target: at most {TARGET} on the MNIST LeNet (batch 128, 20 labeled samples, random pixels). On digits (batch 32, 10
labeled samples) four steps carry all that an epoch costs. Both loops make the same `elite_svdd` steps and end with the
same weights, which is checked; they take turns, an epoch each, on one thread. A ratio is that of two neighboring
epochs.

{chr(10).join(lines)}

{machine.in_words(**{"pytorch-lightning": pl.__version__})}"""
    print(f"\n{text}")
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
