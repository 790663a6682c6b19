"""`last.ckpt`, from which an interrupted run goes on: written as a whole, and set aside where it does not fit."""

import copy
import itertools
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.migration import migrate_checkpoint

from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import one_line
from elite_pl.files import atomic_write
from elite_pl.methods.base import BaseDetector, Detector

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically in their own folder; Lightning would go through the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `atomic_write`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)


def checkpoint(path: Path, detector: BaseDetector, data: PollutedData, trainer: pl.Trainer) -> Path | None:
    """The checkpoint that a run goes on from, None if there is none or none that fits.

    One that does not fit is kept under another name. A detector without a gradient leaves none.

    Args:
        path: Where it would be, in the run directory.
        detector: A fresh one; it stays as it is.
        data: Its training data.
        trainer: Not yet used.
    """
    if not isinstance(detector, Detector):
        return None
    try:
        if (reason := _misfit(path, detector, data, trainer)) is None:
            return path
    except FileNotFoundError:  # or the first of several processes has just set it aside
        return None
    if trainer.is_global_zero:
        names = itertools.chain([f"{path.name}.unusable"], (f"{path.name}.unusable-{i}" for i in itertools.count(2)))
        aside = next(place for place in map(path.with_name, names) if not os.path.lexists(place))
        path.rename(aside)
        log.warning("%s %s: kept as %s, training starts anew", path, reason, aside.name)
    return None


def _misfit(path: Path, detector: Detector, data: PollutedData, trainer: pl.Trainer) -> str | None:
    """Returns why a run cannot go on from a file, tried on copies; None if it can.

    Raises:
        OSError: If there is no file, or it may not be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        return "is not a file"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # whatever the unpacking of half a file stumbles over
        return "is damaged"
    try:
        migrate_checkpoint(found)
        keeper: Any = trainer.checkpoint_callback
        run = Path(found["callbacks"][keeper.state_key]["dirpath"]).name
        if run != path.parent.name:
            return f"is of another run ({run})"
        made_on = found.get("PollutedData", data.state_dict())
        if made_on != data.state_dict():
            return f"was made on other data ({made_on})"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_dict():
                copy.deepcopy(callback).load_state_dict(found["callbacks"][callback.state_key])
        twin = copy.deepcopy(detector)
        twin.trainer = trainer
        trainer.datamodule, data.trainer = data, trainer  # type: ignore[attr-defined]  # as `Trainer.fit` will do
        twin.setup("fit")
        twin.on_load_checkpoint(found)
        twin.load_state_dict(found["state_dict"])
        configured = twin.configure_optimizers()
        optimizers, schedules = configured if isinstance(configured, tuple) else ([configured], [])
        for optimizer, state in zip(optimizers, found["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            if optimizer.state and not state["state"] and found["global_step"] >= len(optimizers):
                return "has no state of an optimizer that has made steps"
        for schedule, state in zip(schedules, found["lr_schedulers"], strict=True):
            schedule.load_state_dict(state)
        loop = type(trainer.fit_loop)(trainer)
        loop.load_state_dict(found["loops"]["fit_loop"])
        if absent := loop.state_dict().keys() - found["loops"]["fit_loop"].keys():
            return f"has no {min(absent)}"
    except Exception as error:  # whatever an object stumbles over in the state of another one
        return f"does not fit ({type(error).__name__}: {one_line(error)})"
    return None
