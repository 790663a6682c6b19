"""Callbacks that report on a run: its curves, the time left, and a warning when the network collapses."""

import csv
import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from elite_pl import distributed
from elite_pl.algorithm.losses import hinge
from elite_pl.errors import TrainingError
from elite_pl.files import atomic_write
from elite_pl.methods.base import collapsed
from elite_pl.progress import Estimate

log = logging.getLogger("elite_pl")


class SameRun(pl.Callback):
    """Stops a fit whose processes were started for different runs, or do not all see the same checkpoint.

    The SIGTERM handler of `launch` stays: with Lightning's a process tells the others, which may be waiting for it.

    Args:
        directory: The run directory, which has the hash of the configuration in its name.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the runs of all processes."""
        start = "resumed" if trainer.ckpt_path else "from the start"
        runs = distributed.all_gather_objects(f"{self.directory} {start}")
        if len(set(runs)) > 1:
            raise TrainingError("the processes do not belong to one run: " + "; ".join(sorted(set(runs))))
        self.at_sigterm = signal.getsignal(signal.SIGTERM)  # before Lightning sets its own

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the SIGTERM handler, which only the main thread can set."""
        if callable(self.at_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.at_sigterm)


class History(pl.Callback):
    """Writes `history.csv`, a row per epoch of all that was logged; a checkpoint keeps the rows.

    Args:
        path: The file.

    Attributes:
        seconds: The time of preparation and training, summed over interruptions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.validated = False
        self.seconds = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.clock = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that this epoch has a test metric."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file anew with the epoch's row."""
        values = {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}
        if not self.validated:  # Lightning keeps an old one
            values = {key: value for key, value in values.items() if not key.startswith("test/")}
        self.validated = False
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        self.add({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values})

    def add(self, row: dict[str, float]) -> None:
        """Writes the file anew with one more row; of several processes the first does."""
        self.rows.append(row)
        if distributed.rank() > 0:
            return
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in self.rows for key in row)))
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows and the time so far."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]


class LabeledLoss(pl.Callback):
    """Logs `labeled/loss`: L_v (Eq. 6), the mean hinge (Eq. 4) of all labeled samples, whatever the method learns from.

    Of the weights that the epoch ends with, in evaluation mode: so it is the loss of the detector that scores the test
    part, the passes move no running statistics, and it does not matter which labeled samples training drew. It is in
    units of the score: only divided by C does it compare methods whose scores differ. Must come before `History`.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Scores the labeled samples, if there are any and the hinge is a loss of theirs."""
        data = pl_module.data
        if len(data.labeled) == 0 or not pl_module.hinge_applies:
            return
        score = pl_module.score_samples(data.labeled)
        pl_module.train()
        pl_module.log("labeled/loss", hinge(score, data.labeled_y.cpu(), pl_module.margin.cpu()).mean(), batch_size=1)


class TimeLeft(pl.Callback):
    """Says after the first steps how long a long run will take; see `Estimate`.

    Args:
        **settings: Of `Estimate`.
    """

    def __init__(self, **settings: float) -> None:
        self.settings = settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the steps that are left."""
        assert trainer.max_epochs is not None
        steps = (trainer.max_epochs - trainer.current_epoch) * int(trainer.num_training_batches)
        if trainer.max_steps >= 0:
            steps = min(steps, trainer.max_steps - trainer.global_step)
        self.estimate = Estimate("training", steps, **self.settings)

    def on_train_batch_end(self, *_: Any) -> None:
        """Counts a step."""
        self.estimate.step()


class CollapseWarning(pl.Callback):
    """Warns once when all unlabeled samples get nearly the same score: the network maps everything to one point."""

    def __init__(self) -> None:
        self.said = False

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Looks at the scores of a few unlabeled samples, in evaluation mode."""
        if self.said:
            return
        pl_module.eval()
        few = pl_module(pl_module.data.unlabeled[:256])
        pl_module.train()
        if collapsed(few):
            self.said = True
            log.warning(
                "step %d: the scores have collapsed to %.3g; likely causes: too high a learning rate, pollution that "
                "nothing pushes back, or a network with biases",
                trainer.global_step,
                few.mean(),
            )
