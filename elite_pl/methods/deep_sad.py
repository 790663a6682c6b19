"""Deep SAD: Deep SVDD that also trains on the labels."""

from typing import Any, Literal

from torch import Tensor

from elite_pl.algorithm.losses import hinge, inverse_distance
from elite_pl.annotations import Count, NotNegative, Positive, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector, risen


class DeepSad(Detector):
    """Minimizes the mean score of the unlabeled samples plus the loss of the labeled ones (Eq. 3 of the ELITE paper).

    Source: Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, arXiv 1906.02694; the paper's η is 1.

    Args:
        loss: Of a labeled sample: `"inverse"`, its distance to the power of its label, or `"hinge"`, Eq. 4, with which
            Sec. 5.5 of the ELITE paper compares.
        eta: η, the weight of the labels.
        average: `"samples"` (the paper): η weighs each labeled sample against each unlabeled one; or
            `"parts"`: the mean of all labeled samples against that of all unlabeled ones, whatever their numbers.
        epsilon: Keeps the inverse of a distance finite.
        ramp_steps: First steps in which the weight of the unlabeled batch rises to 1; 0 for none.
        **detector: See `Detector`.
    """

    needs_labels = True
    stackable = True

    @checked
    def __init__(
        self,
        *,
        loss: Literal["inverse", "hinge"],
        eta: NotNegative,
        average: Literal["samples", "parts"],
        epsilon: Positive,
        ramp_steps: Count = 0,
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        self.labeled_loss, self.eta, self.average, self.epsilon = loss, eta, average, epsilon
        self.ramp_steps = ramp_steps

    def loss(self, batch: Batch) -> Tensor:
        """The weighted mean of both losses: by samples, an unbiased estimate of Eq. 3 from the two batches."""
        unlabeled, labeled = self.scores(batch)
        if self.labeled_loss == "hinge":
            labeled_loss = hinge(labeled, batch["labeled_y"], self.margin)
        else:
            labeled_loss = inverse_distance(labeled, batch["labeled_y"], self.epsilon)
        n, m = (len(self.data.unlabeled), len(self.data.labeled)) if self.average == "samples" else (1, 1)
        self.observe(labeled_loss=labeled_loss.mean(-1))
        weight = risen(self.global_step, self.ramp_steps)
        return (weight * n * unlabeled.mean(-1) + self.eta * m * labeled_loss.mean(-1)) / (n + m)
