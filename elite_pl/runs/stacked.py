"""Several detectors that differ in their data and their seed, trained as one: a step costs little more than one's.

Each has the order of batches, the labels, the margin, the center, the statistics and the moments of the optimizer that
it has alone, and ends up equal to rounding. The steps are not logged: there are no curves and no checkpoints.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from elite_pl.data.datamodule import Batch, PollutedData, TrainingBatches
from elite_pl.errors import InputError
from elite_pl.methods.base import BaseDetector, Detector
from elite_pl.methods.ensemble import Ensemble
from elite_pl.models.scores import Score
from elite_pl.models.stacked import UnstackableError, stacked, unstack
from elite_pl.runs.build import make_trainer
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.training import ENDS_EARLY

# Optimizers that treat each weight by itself, so that one step for all is a step for each.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)

# Values of the trainer's keys that suit several detectors; its other keys do to all what they do to one.
TRAINER: dict[str, tuple[object, ...]] = {
    "_target_": ("pytorch_lightning.Trainer",),
    "strategy": (None, "auto"),
    "plugins": (None, []),
    "max_time": (None,),
    "deterministic": (None, False),  # a GPU adds up along the second axis in no fixed order
    "gradient_clip_val": (None,),
    "accumulate_grad_batches": (None, 1),
    "precision": (None, 32, 64, "32", "64", "32-true", "64-true"),
}
CALLBACKS = ("elite_pl.runs.LabeledLoss", "elite_pl.runs.TimeLeft", "elite_pl.runs.CollapseWarning")  # only watch


class StackedData(pl.LightningDataModule):
    """The training sets of several detectors, alike in all numbers; a batch has one of each, stacked.

    Args:
        data: The training sets.
        detectors: Change the batches, each its own, as alone.
    """

    def __init__(self, data: Sequence[PollutedData], detectors: Sequence[Detector]) -> None:
        super().__init__()
        self.data, self.detectors = data, detectors
        self.unlabeled, self.labeled = data[0].unlabeled, data[0].labeled  # of which the numbers count
        self.arrays, self.batch_size = data[0].arrays, data[0].batch_size

    def in_random_order(self, *purpose: object) -> Iterator[Tensor]:
        """Yields batches as in `PollutedData`, of shape (k, n, ...)."""
        for batches in zip(*(data.in_random_order(*purpose) for data in self.data), strict=True):
            yield torch.stack(batches)

    def train_dataloader(self) -> "StackedBatches":
        """The training batches of the trainer's current epoch."""
        trainer = self.trainer
        assert trainer is not None
        return StackedBatches(self.data, self.detectors, lambda: trainer.current_epoch)

    def val_dataloader(self) -> list[Any]:
        """Returns no loader: no test set is looked at."""
        return []

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Returns the batch as it is: it is there already."""
        return batch


class StackedBatches:
    """The batches of one epoch; arguments as in `StackedData` and `TrainingBatches`."""

    def __init__(self, data: Sequence[PollutedData], detectors: Sequence[Detector], epoch: Callable[[], int]) -> None:
        self.each, self.detectors = [TrainingBatches(own, epoch) for own in data], detectors

    def __len__(self) -> int:
        return len(self.each[0])

    def __iter__(self) -> Iterator[Batch]:
        for batches in zip(*self.each, strict=True):
            own: list[Any] = [
                detector.augmented(batch) for detector, batch in zip(self.detectors, batches, strict=True)
            ]
            yield cast(Batch, {key: torch.stack([batch[key] for batch in own]) for key in own[0]})


def together(detectors: Sequence[Detector]) -> Detector:
    """Makes one detector of several: its weights, its margin and the losses of its steps have an axis of them.

    Args:
        detectors: Prepared detectors of one class and one configuration but for the seed; they stay as they are.

    Raises:
        UnstackableError: If a layer has no stacked form.
    """
    whole = deepcopy(detectors[0])
    whole.stack = (len(detectors),)
    whole.score = cast(Score, stacked([detector.score for detector in detectors]))
    if whole.averaged is not None:
        each = [cast(torch.nn.Module, detector.averaged).module for detector in detectors]
        whole.averaged.module = stacked(cast(list[torch.nn.Module], each))
    whole.margin = torch.stack([detector.margin for detector in detectors])[:, None]
    whole.balanced_labels, whole.labeled_copies = False, 1  # the batches come as they are to be
    return whole


def why_not(spec: RunSpec, detector: BaseDetector) -> str:
    """Returns the reason why a detector cannot be trained together with others of its kind, empty if it can.

    Args:
        spec: Its run.
        detector: The detector, before its training.
    """
    settings, callbacks = spec.plain["trainer"], (spec.plain["callbacks"] or {}).values()
    strange = [key for key, values in TRAINER.items() if settings.get(key) not in values]
    if isinstance(detector, Ensemble):
        return f"ensemble={detector.seeds} has its own members to train together"
    if not isinstance(detector, Detector) or not type(detector).__dict__.get("stackable"):
        return f"method {detector.name} has no stacked form"
    if strange:
        return f"trainer.{strange[0]}={settings[strange[0]]} is for one detector"
    if foreign := [node["_target_"] for node in callbacks if node and node["_target_"] not in CALLBACKS]:
        return f"the callback {foreign[0]} is for one detector"
    if detector.augmentation is not None:
        return "each detector augments by itself"
    if type(optimizer := detector.make_optimizer(detector.score.parameters())) not in ELEMENTWISE:
        return f"{type(optimizer).__name__} may not treat each weight by itself"
    try:
        together([detector])
    except UnstackableError as error:
        return str(error)
    return ""


def fit_together(spec: RunSpec, detectors: Sequence[Detector], data: Sequence[PollutedData]) -> tuple[int, int]:
    """Fits detectors, each to its own data, in the steps that one would take.

    Args:
        spec: The run of one of them; those of the others have other seeds.
        detectors: Fresh detectors that can be trained together, see `why_not`.
        data: The training data of each, of the same `counts`.

    Returns:
        The numbers of epochs and of steps.

    Raises:
        InputError: If the trainer's settings let it end before its first step.
        TrainingError: If a loss is not finite.
    """
    trainer = make_trainer(spec, None)
    device = trainer.strategy.root_device
    with trainer.precision_plugin.tensor_init_context():
        for detector, own in zip(detectors, data, strict=True):
            own.place(device)
            detector.to(device)
            detector.prepare(own)
            detector.prepared.fill_(True)
        whole = together(detectors)
        trainer.fit(whole, datamodule=StackedData(data, detectors))
    if trainer.global_step == 0:
        raise InputError(ENDS_EARLY)
    unstack(whole.state_dict(), [detector.state_dict() for detector in detectors])
    for name, of_all in whole.named_buffers(recurse=False):  # and what was learned of each sample, in `setup`
        if not hasattr(detectors[0], name):
            for detector, own in zip(detectors, of_all, strict=True):
                detector.register_buffer(name, own)
    return trainer.current_epoch, trainer.global_step
