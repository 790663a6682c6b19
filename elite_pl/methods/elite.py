"""ELITE: infers the labels of the training samples from the meta-gradient, and learns from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from elite_pl.algorithm import alice
from elite_pl.algorithm.batchnorm import repeated_pass
from elite_pl.algorithm.losses import hinge
from elite_pl.annotations import Count, NotNegative, Positive, Share, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector, risen, widest


@contextmanager
def whole_float32() -> Iterator[None]:
    """Makes convolutions on a GPU keep all digits of float32 in the block; TF32 has three."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Elite(Detector):
    """Algorithm 1 of the ELITE paper.

    Args:
        meta_gradient: How M is computed: `"jvp"` or `"virtual_step"`, equal up to rounding; see `alice`.
        meta_scale: η_M of Eq. 14. Under Adam a constant factor of the loss cancels: it means something with SGD only.
        weights: α: `"raw"` as in Eq. 14; `"mean"`, divided by the batch mean of |M|; `"drop"`, 1 for pseudo-normal
            samples and 0 for pseudo-anomalies; or `"signed"`, which weights Ω itself by -η_M n M, without a hinge
            (Eq. 16): nothing then bounds the score of a pseudo-anomaly.
        contamination: Share of each batch that is taken for anomalies, those of the smallest d, and α then is the
            distance to the last of them instead of |M|; None as in Eq. 10: those of d < 0, of any share.
        supervised: Weight of L_v itself in the update. The paper's update has none (0). Its gradient v is at hand.
        ramp_steps: First steps in which the weight of the unlabeled batch rises to 1; 0 for none. A score that nothing
            holds together, such as a read-out, needs it: else all scores fall before the labels have parted them.
        record_iterations: For how many of the first steps the meta-gradient of every sample is kept; 0 for none.
        labeled_statistics: See `Detector`; not `"joint"`, because v needs a pass of its own.
        **detector: See `Detector`.
    """

    needs_labels = True
    stackable = True
    suspicion_sum: Tensor
    visits: Tensor
    recorded: Tensor
    recorded_position: Tensor

    @checked
    def __init__(
        self,
        *,
        meta_gradient: Literal["jvp", "virtual_step"],
        meta_scale: Positive,
        weights: Literal["raw", "mean", "drop", "signed"],
        contamination: Share | None = None,
        ramp_steps: Count = 0,
        supervised: NotNegative,
        record_iterations: Count,
        labeled_statistics: Literal["batch", "running"],
        **detector: Any,
    ) -> None:
        super().__init__(labeled_statistics=labeled_statistics, **detector)
        self.meta_gradient, self.meta_scale, self.weights = meta_gradient, meta_scale, weights
        self.contamination, self.ramp_steps = contamination, ramp_steps
        self.supervised, self.record_iterations = supervised, record_iterations

    def setup(self, stage: str) -> None:
        """Makes room for what is learned about each unlabeled sample; in buffers, so that a checkpoint keeps it."""
        n = len(self.data.unlabeled)
        self.register_buffer(
            "suspicion_sum", torch.zeros(*self.stack, n, dtype=widest(self.device), device=self.device)
        )
        self.register_buffer("visits", torch.zeros(*self.stack, n, dtype=torch.int64, device=self.device))
        assert self.trainer.max_epochs is not None
        steps = min(self.record_iterations, self.trainer.max_epochs * len(self.data.train_dataloader()))
        if self.trainer.max_steps >= 0:
            steps = min(steps, self.trainer.max_steps)
        shape = *self.stack, steps, min(n, self.data.batch_size + 1)  # the longest batch, see `TrainingBatches`
        self.register_buffer("recorded", torch.full(shape, torch.nan, device=self.device))
        self.register_buffer("recorded_position", torch.full(shape, -1, dtype=torch.int32, device=self.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets a run go on with another `record_iterations`, or from a checkpoint of an older version."""
        checkpoint["state_dict"].pop("last_pseudo_label", None)  # of older ones
        for name in ("recorded", "recorded_position"):
            room = getattr(self, name).clone()
            kept = checkpoint["state_dict"].get(name, room)[: len(room)]
            room[: len(kept)] = kept
            checkpoint["state_dict"][name] = room

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the unlabeled batch under its pseudo-labels, each weighted by its meta-gradient (Eq. 14)."""
        inference = self.inference(batch)
        self.remember(batch, inference)
        losses = inference.score
        if self.weights != "signed":
            losses = hinge(inference.score, inference.pseudo_label, self.margin)
        loss = risen(self.global_step, self.ramp_steps) * (inference.weight * losses).mean(-1)
        return loss + self.supervised * self.labeled_loss(inference) if self.supervised else loss

    def inference(self, batch: Batch) -> alice.Inference:
        """Infers pseudo-labels and weights of the whole unlabeled batch.

        In float32 (or float64) whatever the trainer's precision: bfloat16 has 5 % error in M. Nor is it the TF32 in
        which a GPU convolves by default.
        """
        with torch.autocast(self.device.type, enabled=False), whole_float32():
            if self.meta_gradient == "virtual_step":
                return self.virtual_step(batch)
            theta, buffers = alice.state(self.score)
            v, labeled_score, labeled_loss = alice.labeled_gradient(
                self.score, theta, buffers, batch["labeled"], batch["labeled_y"], self.margin, self.labeled_statistics
            )
            score, d = self.of_unlabeled(lambda x: alice.derivative(self.score, theta, buffers, x, v), batch)
            return alice.infer(score, d.detach(), v, labeled_score, labeled_loss, **self.rule)

    def virtual_step(self, batch: Batch) -> alice.Inference:
        """The same by the reference, which takes the labeled gradient anew for each part of a batch."""
        labeled = batch["labeled"], batch["labeled_y"], self.margin
        options = self.rule | {"labeled_statistics": self.labeled_statistics}
        if len(self.in_micro_batches(batch)[0]) == len(batch["index"]):
            return alice.virtual_step(self.score, batch["unlabeled"], *labeled, **options)

        @torch.enable_grad()
        def derivative(sample: Tensor) -> Tensor:
            return alice.virtual_step(self.score, sample, *labeled, **options).d

        with torch.no_grad(), repeated_pass(self.score):
            d = self.of_unlabeled(derivative, batch)
        of_labeled = alice.labeled_gradient(self.score, *alice.state(self.score), *labeled, self.labeled_statistics)
        return alice.infer(self.unlabeled_score(batch), d, *of_labeled, **self.rule)

    @property
    def rule(self) -> dict[str, Any]:
        """Returns the settings by which the meta-gradient is scaled and turned into a weight."""
        return {
            "learning_rate": self.learning_rate,
            "meta_scale": self.meta_scale,
            "weights": self.weights,
            "contamination": self.contamination,
        }

    def labeled_loss(self, inference: alice.Inference) -> Tensor:
        """L_v with its gradient, but without another pass: `L_v + <θ - θ', v>` at θ' = θ, with θ' held constant."""
        v = inference.labeled_gradient
        products = [
            ((p - p.detach()) * v[name]).reshape(*self.stack, -1).sum(-1)
            for name, p in alice.trainable(self.score).items()
        ]
        return inference.labeled_loss + torch.stack(products).sum(0)

    def remember(self, batch: Batch, inference: alice.Inference) -> None:
        """Records the meta-gradient of a step, and adds its statistics to the log of the epoch."""
        index, label, y = batch["index"], inference.pseudo_label, batch["labeled_y"]
        self.suspicion_sum.scatter_add_(-1, index, -inference.d.to(self.suspicion_sum.dtype))
        self.visits.scatter_add_(-1, index, torch.ones_like(index))
        if (step := self.global_step) < self.recorded.shape[-2]:
            self.recorded[..., step, : index.shape[-1]] = -inference.meta_gradient
            self.recorded_position[..., step, : index.shape[-1]] = index.int()
        anomalous, score = label < 0, inference.score.detach()
        self.observe(
            labeled_loss=inference.labeled_loss,
            hinge_active_labeled=((inference.labeled_score < self.margin) & (y < 0)).sum(-1)
            / (y < 0).sum(-1).clamp(min=1),
            hinge_active_unlabeled=((score < self.margin) & anomalous).sum(-1) / anomalous.sum(-1).clamp(min=1),
            pseudo_anomalies=anomalous.float().mean(-1),
            idle_share=(inference.weight == 0).all(-1),
        )
        if self.data.arrays.labels == "classes":
            self.observe(pseudo_label_accuracy=(label == batch["truth"]).float().mean(-1))

    def mean_meta_gradient(self) -> Tensor:
        """The mean of -d over training: free of η_θ and n, positive = anomalous."""
        return (self.suspicion_sum / self.visits.clamp(min=1)).cpu()

    def recording(self) -> tuple[Tensor, Tensor] | None:
        """-M = ŷ|M| of the first steps, positive = normal (Sec. 5.5.2).

        Returns:
            -M, NaN where a batch had no more samples, and the positions of those among the unlabeled samples, -1 there;
            both of shape (steps, longest batch), on the CPU. None if nothing was recorded.
        """
        return (self.recorded.cpu(), self.recorded_position.cpu()) if len(self.recorded) else None
