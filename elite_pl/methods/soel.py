"""SOEL: latent outlier exposure on the unlabeled samples, and supervision by the labeled ones."""

import torch
from torch import Tensor

from elite_pl.data.datamodule import Batch
from elite_pl.methods.loe import LatentOutlierExposure


class Soel(LatentOutlierExposure):
    """Minimizes LOE's loss of the unlabeled samples plus the mean loss of the labeled ones.

    The paper also chooses the samples that are labeled, and takes one step on these and one on the unlabeled batch in
    turn; here the labels are those that all methods get, and one step has both.

    Source: Li et al., "Deep Anomaly Detection under Labeling Budget Constraints", ICML 2023, arXiv 2302.07832.
    """

    needs_labels = True

    def loss(self, batch: Batch) -> Tensor:
        """The sum of both means; the warm-up has the first only."""
        if self.warming_up:
            return super().loss(batch)
        unlabeled, labeled = self.scores(batch)
        labeled_loss = torch.where(batch["labeled_y"] > 0, labeled, self.anomaly_loss(labeled)).mean()
        self.observe(labeled_loss=labeled_loss)
        return self.unlabeled_loss(unlabeled) + labeled_loss
