"""A reference: what the true labels of all unlabeled samples teach."""

from torch import Tensor

from elite_pl.algorithm.losses import hinge
from elite_pl.data.datamodule import Batch, PollutedData
from elite_pl.methods.base import Detector


class Oracle(Detector):
    """Minimizes the hinge (Eq. 4) of the unlabeled samples under their true labels, which no real method knows.

    Every sample counts the same: where anomalies are few it is no bound for methods that learn from balanced labels.
    """

    def check(self, data: PollutedData) -> None:
        """Refuses data without ground truth."""
        super().check(data)
        if data.arrays.labels == "known":
            raise ValueError(f"{self.name} needs the truth of all samples; known labels are not that")

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the unlabeled batch under its true labels."""
        return hinge(self.unlabeled_score(batch), batch["truth"], self.margin).mean()
