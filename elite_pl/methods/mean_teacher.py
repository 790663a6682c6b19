"""Mean teacher: learns from the labels, and from the verdicts of its own running-mean weights on the rest."""

from typing import Any, Literal

import torch
from torch import Tensor

from elite_pl import distributed
from elite_pl.algorithm import alice
from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.algorithm.contamination import estimate
from elite_pl.algorithm.losses import hinge
from elite_pl.algorithm.threshold import agreeing_threshold
from elite_pl.annotations import Finite, NotNegative, Positive, Share, checked
from elite_pl.data.datamodule import Batch, PollutedData
from elite_pl.methods.base import Detector
from elite_pl.methods.elite import whole_float32

MIDWAY = 0.5  # between the center and the margin: where a threshold that is to be found begins


class MeanTeacher(Detector):
    """Minimizes the hinge (Eq. 4) of the labeled samples and that of the unlabeled ones under the teacher's verdict.

    The teacher is the network with averaged weights, in evaluation mode, on another view of each sample. Its score Ω'
    gives the chance of an anomaly, `p = σ((Ω' / C - threshold) / temperature)`; the sample's label is the sign of
    1 - 2p and its weight |1 - 2p|, so that what the teacher is unsure of teaches nothing.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780, for the
    teacher; the loss is ours.

    Args:
        threshold: The score, in units of the margin C, at which the teacher is undecided: a number, or where it is
            found anew for each epoch from the teacher's scores in the one before. `"contamination"`: the estimated
            share of anomalies lies above it, see `contamination.estimate`. `"meta_gradient"`: it parts the samples as
            the meta-gradient does, with the greatest sum of -d above it, see `alice`.
        temperature: How far from it, in units of C, the teacher is sure.
        warm_up: Epochs at the start that learn from the labels alone.
        ramp: Epochs after these in which the weight of the teacher's verdicts rises to 1.
        average_decay: See `Detector`.
        **detector: See `Detector`.
    """

    needs_labels = True
    undecided: Tensor
    said: Tensor
    suspicion: Tensor

    @checked
    def __init__(
        self,
        *,
        threshold: Literal["contamination", "meta_gradient"] | Finite,
        temperature: Positive,
        warm_up: NotNegative,
        ramp: NotNegative,
        average_decay: Share,
        **detector: Any,
    ) -> None:
        super().__init__(average_decay=average_decay, **detector)
        self.threshold, self.temperature, self.warm_up, self.ramp = threshold, temperature, warm_up, ramp

    @property
    def finds_threshold(self) -> bool:
        """Returns whether the threshold is found in training."""
        return isinstance(self.threshold, str)

    def check(self, data: PollutedData) -> None:
        """Refuses data that do not tell the threshold in the way that was asked for; see `BaseDetector.check`."""
        super().check(data)
        if self.threshold == "contamination" and len(data.labeled_y.unique()) < 2:
            raise ValueError(
                "threshold=contamination: there are no labels of both kinds to estimate it from; must be a number"
            )

    def setup(self, stage: str) -> None:
        """Makes room for what finds the threshold; in buffers, so that a checkpoint keeps it."""
        if self.finds_threshold:
            n = len(self.data.unlabeled)
            self.register_buffer("undecided", torch.full((), MIDWAY, device=self.device))
            self.register_buffer("said", torch.full((n,), torch.nan, device=self.device))
            self.register_buffer("suspicion", torch.zeros(n, device=self.device))

    def on_train_epoch_start(self) -> None:
        """Finds the threshold from what the teacher has said."""
        if self.finds_threshold and (known := torch.isfinite(self.said)).any():
            said = self.said[known]
            if self.threshold == "meta_gradient":
                self.undecided.copy_(agreeing_threshold(said, self.suspicion[known]))
            else:
                labeled = self.score_samples(self.data.labeled) / float(self.margin)
                self.train()
                share = estimate(labeled, self.data.labeled_y.cpu(), said.cpu())
                self.undecided.copy_(said.quantile(1 - share))
            distributed.broadcast_([self.undecided])

    def loss(self, batch: Batch) -> Tensor:
        """The labeled loss, and the teacher's as far as it counts yet."""
        unlabeled, labeled = self.scores(batch)
        labeled_loss = hinge(labeled, batch["labeled_y"], self.margin).mean()
        self.observe(labeled_loss=labeled_loss)
        trust = self.trust()
        if not (trust or self.listens()):
            return labeled_loss
        said = self.teacher_score(batch) / self.margin
        if self.finds_threshold:
            self.remember(batch, said)
        if not trust:
            return labeled_loss
        threshold = self.undecided if isinstance(self.threshold, str) else self.threshold
        verdict = 1 - 2 * torch.sigmoid((said - threshold) / self.temperature)
        taught = (verdict.abs() * hinge(unlabeled, verdict, self.margin)).mean()
        self.observe(teacher_anomalies=(verdict < 0).float().mean(), teacher_weight=verdict.abs().mean())
        if self.data.arrays.labels == "classes":
            self.observe(teacher_accuracy=((verdict > 0) == (batch["truth"] > 0)).float().mean())
        return labeled_loss + trust * taught

    def trust(self) -> float:
        """Returns the weight of the teacher's verdicts in this step, in [0, 1]."""
        after = self.after_warm_up()
        return min(1.0, max(0.0, after) / self.ramp) if self.ramp else float(after >= 0)

    def after_warm_up(self) -> float:
        """Returns the epochs since the end of the warm-up, with the share of this one; negative before it."""
        return self.global_step / len(self.data.train_dataloader()) - self.warm_up

    def listens(self) -> bool:
        """Returns whether the threshold is found from what the teacher says in this step, if nothing else is yet."""
        return self.finds_threshold and self.after_warm_up() >= -1

    def remember(self, batch: Batch, said: Tensor) -> None:
        """Keeps what finds the next threshold.

        Args:
            batch: The batch.
            said: The teacher's scores of its unlabeled samples, in units of the margin, shape (n,).
        """
        self.said[batch["index"]] = said.to(self.said.dtype)
        if self.threshold == "meta_gradient":
            d = self.derivative(batch)
            self.suspicion[batch["index"]] = -(d / d.abs().mean().clamp(min=torch.finfo(d.dtype).tiny)).float()
        self.observe(teacher_threshold=self.undecided)

    def derivative(self, batch: Batch) -> Tensor:
        """Returns d of the whole unlabeled batch, shape (n,), by passes that leave the running statistics alone."""
        with torch.autocast(self.device.type, enabled=False), whole_float32():
            theta, buffers = alice.state(self.score)
            labeled = batch["labeled"], batch["labeled_y"], self.margin
            v, _, _ = alice.labeled_gradient(self.score, theta, buffers, *labeled)
            with torch.no_grad(), frozen_statistics(self.score):
                return self.of_unlabeled(lambda x: alice.derivative(self.score, theta, buffers, x, v)[1], batch)

    @torch.no_grad()
    def teacher_score(self, batch: Batch) -> Tensor:
        """The teacher's Ω of the whole unlabeled batch, on another view of it, shape (n,)."""
        assert self.averaged is not None
        self.averaged.eval()
        n = len(batch["index"])
        return distributed.gather(self.averaged.module(self.augment(batch["unchanged"], "teacher", n)), n)
