"""The training of a detector, however it learns."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from elite_pl import distributed
from elite_pl.algorithm import metrics
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import InputError
from elite_pl.methods.base import BaseDetector, Detector
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.runs.callbacks import History

ENDS_EARLY = "trainer: stops before the first epoch ends; increase max_steps or max_time"


def fit(
    detector: BaseDetector, data: PollutedData, trainer: pl.Trainer, history: History, going_on: Path | None = None
) -> None:
    """Fits a detector: by Lightning, from a checkpoint if there is one, or all at once.

    Args:
        detector: The detector.
        data: Its training data.
        trainer: Trains it by gradient; a method that has none only logs to its logger.
        history: Gets a row per epoch; one in all from a method without a gradient.
        going_on: The checkpoint of a run that was interrupted.

    Raises:
        InputError: If the trainer's settings let it end before its first epoch does, or a callback monitors what
            is not logged.
    """
    if isinstance(detector, Detector):
        with monitor_errors(trainer):
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


@contextmanager
def monitor_errors(trainer: pl.Trainer) -> Iterator[None]:
    """Turns the error of a callback whose metric is not logged into bad input: Lightning knows only after an epoch.

    Raises:
        InputError: Names the callback, its metric, and those that it could monitor.
    """
    try:
        yield
    except (RuntimeError, MisconfigurationException) as error:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if monitor and monitor in str(error) and monitor not in trainer.callback_metrics:
                logged = ", ".join(sorted(key for key in trainer.callback_metrics if not key.startswith("test/")))
                words = f"callbacks: {type(callback).__name__} monitors {monitor}, which is not logged"
                raise InputError(f"{words}; must be one of {logged}") from error
        raise


def note(
    detector: BaseDetector,
    data: PollutedData,
    trainer: pl.Trainer,
    history: History,
    seconds: float,
    epochs: int = 1,
    steps: int = 1,
) -> None:
    """Adds to the curves the one row of a detector whose epochs were not watched; other arguments as in `fit`.

    Args:
        detector: The detector, which is trained.
        data: Its training data.
        trainer: Logs to its logger.
        history: Gets the row.
        seconds: The time of the training.
        epochs: How many it was trained for.
        steps: How many optimizer steps.
    """
    history.seconds = seconds
    row: dict[str, float] = {}
    if len(data.test):
        row["test/auroc"] = metrics.roc_auc(detector.score_samples(data.test), data.anomalous("test"))
        for logger in trainer.loggers:
            logger.log_metrics(row, step=steps)
    history.add({"epoch": epochs, "step": steps, **row})
