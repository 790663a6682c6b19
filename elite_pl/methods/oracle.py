"""The upper bound: ELITE's update with the true labels in place of the inferred ones."""

from torch import Tensor

from elite_pl.datamodule import Batch
from elite_pl.detector import Detector
from elite_pl.losses import hinge


class Oracle(Detector):
    """Minimises the hinge (Eq. 4) of the unlabeled samples under their true labels, which no real method knows."""

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the unlabeled batch under its true labels."""
        return hinge(self.score(batch["unlabeled"]), batch["truth"], self.margin).mean()
