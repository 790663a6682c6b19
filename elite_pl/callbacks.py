"""What a run tells while it goes: its curves, how long it will take, and that it has collapsed."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from elite_pl.detector import collapsed
from elite_pl.files import atomic_write
from elite_pl.progress import Estimate

log = logging.getLogger("elite_pl")


class History(pl.Callback):
    """Writes `history.csv`, a row an epoch of all that was logged; a checkpoint keeps the rows.

    Args:
        path: The file.

    Attributes:
        seconds: What preparation and training took, in all the pieces that the run was made in.
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
        """Notes that this epoch has a test metric of its own."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file anew with the epoch's row."""
        values = {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}
        if not self.validated:  # Lightning keeps an old one
            values = {key: value for key, value in values.items() if not key.startswith("test/")}
        self.validated = False
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values})
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
        steps = trainer.max_epochs * int(trainer.num_training_batches) - trainer.global_step
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
