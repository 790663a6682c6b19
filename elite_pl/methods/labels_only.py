"""The lower bound: what the labeled samples teach by themselves."""

from typing import Any

from torch import Tensor

from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.algorithm.losses import hinge
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector


class LabelsOnly(Detector):
    """Minimizes the hinge (Eq. 4) of the labeled samples, in as many steps as the other methods take.

    It never trains on an unlabeled sample, so its running statistics are measured over all training samples before it
    scores anything.
    """

    needs_labels = True
    stackable = True

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the labeled batch."""
        if self.labeled_statistics == "joint":
            _, labeled = self.scores(batch)
        else:
            with frozen_statistics(self.score, self.labeled_statistics):
                labeled = self.score(batch["labeled"])
        return hinge(labeled, batch["labeled_y"], self.margin).mean(-1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Measures the running statistics of the weights that the epoch ends with.

        With augmentation they stay those of the changed samples, which the views at test time are like.
        """
        if self.augmentation is None and self.ends_epoch(batch_idx):
            self.calibrate(self.data)
