"""Mean teacher: learns from the labels, and from the verdicts of its own running-mean weights on the rest."""

from typing import Any

import torch
from torch import Tensor

from elite_pl import distributed
from elite_pl.algorithm.losses import hinge
from elite_pl.annotations import NotNegative, Positive, Share, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector


class MeanTeacher(Detector):
    """Minimizes the hinge (Eq. 4) of the labeled samples and that of the unlabeled ones under the teacher's verdict.

    The teacher is the network with averaged weights, in evaluation mode, on another view of each sample. Its score Ω'
    gives the chance of an anomaly, `p = σ((Ω' / C - threshold) / temperature)`; the sample's label is the sign of
    1 - 2p and its weight |1 - 2p|, so that what the teacher is unsure of teaches nothing.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780, for the
    teacher; the loss is ours.

    Args:
        threshold: The score, in units of the margin C, at which the teacher is undecided.
        temperature: How far from it, in units of C, the teacher is sure.
        warm_up: Epochs at the start that learn from the labels alone.
        ramp: Epochs after these in which the weight of the teacher's verdicts rises to 1.
        average_decay: See `Detector`.
        **detector: See `Detector`.
    """

    needs_labels = True

    @checked
    def __init__(
        self,
        *,
        threshold: float,
        temperature: Positive,
        warm_up: NotNegative,
        ramp: NotNegative,
        average_decay: Share,
        **detector: Any,
    ) -> None:
        super().__init__(average_decay=average_decay, **detector)
        self.threshold, self.temperature, self.warm_up, self.ramp = threshold, temperature, warm_up, ramp

    def loss(self, batch: Batch) -> Tensor:
        """The labeled loss, and the teacher's as far as it counts yet."""
        unlabeled, labeled = self.scores(batch)
        labeled_loss = hinge(labeled, batch["labeled_y"], self.margin).mean()
        self.observe(labeled_loss=labeled_loss)
        if not (trust := self.trust()):
            return labeled_loss
        anomalous = torch.sigmoid((self.teacher_score(batch) / self.margin - self.threshold) / self.temperature)
        verdict = 1 - 2 * anomalous
        taught = (verdict.abs() * hinge(unlabeled, verdict, self.margin)).mean()
        self.observe(teacher_anomalies=(verdict < 0).float().mean(), teacher_weight=verdict.abs().mean())
        if self.data.arrays.labels == "classes":
            self.observe(teacher_accuracy=((verdict > 0) == (batch["truth"] > 0)).float().mean())
        return labeled_loss + trust * taught

    def trust(self) -> float:
        """Returns the weight of the teacher's verdicts in this step, in [0, 1]."""
        epoch = self.global_step / len(self.data.train_dataloader())
        return min(1.0, max(0.0, epoch - self.warm_up) / self.ramp) if self.ramp else float(epoch >= self.warm_up)

    @torch.no_grad()
    def teacher_score(self, batch: Batch) -> Tensor:
        """The teacher's Ω of the whole unlabeled batch, on another view of it, shape (n,)."""
        assert self.averaged is not None
        self.averaged.eval()
        n = len(batch["index"])
        return distributed.gather(self.averaged.module(self.augment(batch["unchanged"], "teacher", n)), n)
