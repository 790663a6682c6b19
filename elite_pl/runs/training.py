"""The training of a detector, however it learns."""

import time
from pathlib import Path

import pytorch_lightning as pl

from elite_pl import distributed
from elite_pl.algorithm import metrics
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import InputError
from elite_pl.methods.base import BaseDetector, Detector
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.runs.callbacks import History

ENDS_EARLY = "trainer: ends before its first epoch does; give max_steps or max_time more room"


def fit(
    detector: BaseDetector, data: PollutedData, trainer: pl.Trainer, history: History, going_on: Path | None = None
) -> None:
    """Fits a detector: by Lightning, from a checkpoint if there is one, or all at once.

    Args:
        detector: The detector.
        data: What it learns from.
        trainer: Trains it by gradient; a method that has none only logs to its logger.
        history: Gets a row an epoch; one in all from a method without a gradient.
        going_on: The checkpoint of a run that was interrupted.

    Raises:
        InputError: If the trainer's settings let it end before its first epoch does.
    """
    if isinstance(detector, Detector):
        trainer.fit(detector, datamodule=data, ckpt_path=going_on, weights_only=True)
        trainer.strategy.barrier()
        distributed.leave_group()
        if not history.rows:
            raise InputError(ENDS_EARLY)
        return
    assert isinstance(detector, ShallowDetector)
    start = time.monotonic()
    detector.fit(data)
    note(detector, data, trainer, history, time.monotonic() - start)


def note(detector: BaseDetector, data: PollutedData, trainer: pl.Trainer, history: History, seconds: float) -> None:
    """Adds to the curves the one row of a detector that has not been trained epoch by epoch; arguments as of `fit`."""
    history.seconds = seconds
    row: dict[str, float] = {}
    if len(data.test):
        row["test/auroc"] = metrics.roc_auc(detector.score_samples(data.test), data.anomalous("test"))
        for logger in trainer.loggers:
            logger.log_metrics(row, step=1)
    history.add({"epoch": 1, "step": 1, **row})
