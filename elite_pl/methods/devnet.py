"""DevNet: a scalar score that lies far above a prior for the labeled anomalies, and near its mean for all others."""

from typing import Annotated, Any

import torch
from torch import Tensor

from elite_pl import seeding
from elite_pl.algorithm.losses import deviation, mean_where
from elite_pl.annotations import Positive, at_least, checked
from elite_pl.data.datamodule import Batch, PollutedData
from elite_pl.methods.base import Detector


class DevNet(Detector):
    """Minimizes the deviation loss, with unlabeled samples taken for normal, in batches that anomalies are half of.

    Source: Pang et al., "Deep Anomaly Detection with Deviation Networks", KDD 2019. The paper has no labeled normal
    samples, here they join the unlabeled batch.

    Args:
        prior_draws: How many reference scores are drawn from the standard Gaussian prior.
        margin: a, in standard deviations of the prior.
        **detector: See `Detector`.
    """

    needs_labels = True
    needs_labeled_anomalies = True
    hinge_applies = False  # a score may be negative, and the margin is in standard deviations
    prior: Tensor

    @checked
    def __init__(self, *, prior_draws: Annotated[int, at_least(2)], margin: Positive, **detector: Any) -> None:
        super().__init__(margin=margin, **detector)
        self.prior_draws = prior_draws
        self.register_buffer("prior", torch.tensor([0.0, 1.0]))  # mean and standard deviation

    def prepare(self, data: PollutedData) -> None:
        """Draws the reference scores, besides what all detectors do."""
        super().prepare(data)
        reference = torch.randn(self.prior_draws, generator=seeding.generator(data.seed, "prior"))
        self.prior.copy_(torch.stack([reference.mean(), reference.std()]))

    def loss(self, batch: Batch) -> Tensor:
        """The mean over those taken for normal and the mean over the anomalies, in equal parts."""
        unlabeled, labeled = self.scores(batch)
        score = torch.cat([unlabeled, labeled])
        label = torch.cat([torch.ones_like(unlabeled), batch["labeled_y"]])
        loss = deviation(score, label, self.margin, *self.prior)
        return (mean_where(label > 0, loss) + mean_where(label < 0, loss)) / 2
