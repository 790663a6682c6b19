"""Latent outlier exposure: the most suspicious samples of a batch are trained on as anomalies, or left out."""

from typing import Any, Literal

from torch import Tensor

from elite_pl.algorithm.losses import latent_outlier_exposure
from elite_pl.annotations import checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.contaminated import Contaminated


class LatentOutlierExposure(Contaminated):
    """LOE-hard, LOE-soft and their rival "refine"; see `losses.latent_outlier_exposure`.

    For anomalies it takes the inverse of the score, as Deep SAD and PUSVDD do. The hinge is a setting, but LOE-soft is
    then refine: half of Ω and half of C - Ω have no gradient.

    Source: Qiu et al., "Latent Outlier Exposure for Anomaly Detection with Contaminated Data", ICML 2022.

    Args:
        update: The use of the suspicious samples: `"hard"`, trained on as anomalies; `"soft"`, half so;
            `"refine"`, left out.
        **contaminated: See `Contaminated`.
    """

    @checked
    def __init__(self, *, update: Literal["hard", "soft", "refine"], **contaminated: Any) -> None:
        super().__init__(**contaminated)
        self.update = update

    def loss(self, batch: Batch) -> Tensor:
        """The loss of the unlabeled batch."""
        return self.unlabeled_loss(self.unlabeled_score(batch))

    def unlabeled_loss(self, score: Tensor) -> Tensor:
        """The loss of unlabeled samples by their scores, shape ()."""
        if self.warming_up:
            return score.mean()
        self.observe(contamination=self.contamination)
        return latent_outlier_exposure(score, self.anomaly_loss(score), self.share, self.update)
