"""Base of the methods that must know how many of the unlabeled samples are anomalies."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from elite_pl import distributed
from elite_pl.algorithm.contamination import estimate
from elite_pl.algorithm.losses import hinge, inverse_distance
from elite_pl.annotations import Count, Positive, Share, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import Detector

log = logging.getLogger(__name__)


class Contaminated(Detector):
    """A detector that knows α, the share of anomalies among the unlabeled samples, and has a loss for anomalies.

    The loss of a normal sample is its score.

    Args:
        contamination: α: a number in [0, 1); `"given"`, the true share, as is published practice; `"estimated"` from
            the labels, after the warm-up, see `contamination.estimate`; or `"auto"`: given where the truth is known,
            which it is in benchmarks alone, else estimated.
        warm_up: Epochs at the start that take every unlabeled sample for normal.
        loss: Of an anomaly: `"inverse"`, `1 / (Ω + ε)`, or `"hinge"`, Eq. 4 of the ELITE paper.
        epsilon: Keeps the inverse of a score finite.
        **detector: See `Detector`.
    """

    contamination: Tensor
    share: float  # the same as a number

    @checked
    def __init__(
        self,
        *,
        contamination: Literal["auto", "given", "estimated"] | Share,
        warm_up: Count,
        loss: Literal["inverse", "hinge"],
        epsilon: Positive,
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        self.contamination_rule, self.warm_up = contamination, warm_up
        self.loss_of_anomaly, self.epsilon, self.share = loss, epsilon, 0.0
        self.register_buffer("contamination", torch.zeros(()))  # a checkpoint keeps it

    def anomaly_loss(self, score: Tensor) -> Tensor:
        """loss_a of each sample, shape (n,)."""
        anomaly = torch.full_like(score, -1)
        if self.loss_of_anomaly == "hinge":
            return hinge(score, anomaly, self.margin)
        return inverse_distance(score, anomaly, self.epsilon)

    @property
    def warming_up(self) -> bool:
        """Returns whether the warm-up is still going on."""
        return self.current_epoch < self.warm_up

    def check(self, data: PollutedData) -> None:
        """Refuses data that do not tell α in the way that was asked for; see `BaseDetector.check`."""
        super().check(data)
        found, asked = self.contamination_of(data), f"contamination={self.contamination_rule}"
        if found == "given" and data.arrays.labels == "known":
            raise ValueError(f"{asked}: the true share is unknown; must be a number, or estimated")
        if found == "estimated" and len(data.labeled_y.unique()) < 2:
            raise ValueError(f"{asked}: there are no labels of both kinds to estimate it from; must be a number")

    def contamination_of(self, data: PollutedData) -> str | float:
        """Returns α as a number, or its source: `"given"` or `"estimated"`."""
        if self.contamination_rule != "auto":
            return self.contamination_rule
        return "estimated" if data.arrays.labels == "known" else "given"

    def on_train_start(self) -> None:
        """Says when the warm-up leaves nothing to the method."""
        epochs = self.trainer.max_epochs
        if epochs is not None and self.warm_up >= epochs:
            log.warning("warm_up=%d: takes all %d epochs; the method itself never trains", self.warm_up, epochs)

    def on_train_epoch_start(self) -> None:
        """Finds α once, when the warm-up has ended."""
        if self.current_epoch == self.warm_up:
            self.find_contamination()
        self.share = float(self.contamination)  # a GPU is asked for it here, and not in every step

    def find_contamination(self) -> None:
        """Sets α by its rule."""
        found = self.contamination_of(self.data)
        if found == "given":
            self.contamination.copy_((self.data.truth < 0).float().mean())
        elif found == "estimated":
            labeled, unlabeled = (self.score_samples(part) for part in (self.data.labeled, self.data.unlabeled))
            self.train()
            self.contamination.fill_(estimate(labeled, self.data.labeled_y.cpu(), unlabeled))
            distributed.broadcast_([self.contamination])
        else:
            self.contamination.fill_(float(found))
