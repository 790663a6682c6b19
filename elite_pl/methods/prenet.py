"""PReNet: tells pairs of two anomalies, of one and of none from each other, and so a sample by its pairs."""

from typing import Annotated, Any, cast

import torch
from torch import Tensor

from elite_pl import seeding
from elite_pl.algorithm.losses import relation_error
from elite_pl.annotations import Positive, at_least, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector
from elite_pl.models.scores import PairRelation


class PReNet(Detector):
    """Minimizes the error of the relation of random pairs: half have no anomaly, a quarter one, a quarter two.

    Source: Pang et al., "Deep Weakly-supervised Anomaly Detection", KDD 2023, arXiv 1910.13601. The paper has labeled
    anomalies and unlabeled samples only, here labeled normal samples join the unlabeled batch.

    Args:
        margin: The relation of two anomalies; of a pair with one it is half of that, of others 0.
        references: Unlabeled samples whose mean relation is part of the score; all anomalies are references, too.
        **detector: See `Detector`.
    """

    needs_labels = True
    needs_labeled_anomalies = True
    hinge_applies = False  # the margin is a relation, and not a score

    @checked
    def __init__(self, *, margin: Positive, references: Annotated[int, at_least(1)], **detector: Any) -> None:
        super().__init__(margin=margin, **detector)
        self.references = references

    def loss(self, batch: Batch) -> Tensor:
        """The mean error of as many pairs as there are unlabeled samples."""
        unlabeled, labeled = self.of_both(cast(PairRelation, self.score).places, batch)
        first, second = torch.cat([unlabeled, labeled], dim=1)
        anomalous = torch.cat([torch.zeros_like(unlabeled[0]), (batch["labeled_y"] < 0).to(first)])
        i, j = self.pairs(anomalous)
        return relation_error(first[i] + second[j], anomalous[i] + anomalous[j], self.margin).mean()

    def pairs(self, anomalous: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of both samples of each pair, drawn from a batch whose anomalies are 1 and others 0."""
        generator = seeding.generator(self.data.seed, "pairs", self.global_step)
        others, anomalies = (torch.nonzero(anomalous == kind).flatten() for kind in (0, 1))
        quarter = max(1, len(others) // 4)

        def draw(*kinds: Tensor) -> Tensor:
            drawn = (torch.randint(len(kind), (quarter,), generator=generator).to(kind.device) for kind in kinds)
            return torch.cat([kind[place] for kind, place in zip(kinds, drawn, strict=True)])

        return draw(others, others, anomalies, anomalies), draw(others, others, others, anomalies)

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Measures the references, besides what all detectors do."""
        super().on_train_epoch_end()
        data = self.data
        order = torch.randperm(len(data.unlabeled), generator=seeding.generator(data.seed, "references"))
        unlabeled = data.unlabeled[order[: self.references].to(self.device)]
        for score in (self.score, self.averaged and self.averaged.module):
            if score is not None:
                training = score.training
                cast(PairRelation, score.eval()).refer(data.labeled[:][data.labeled_y < 0], unlabeled)
                score.train(training)
