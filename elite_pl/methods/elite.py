"""ELITE: infers the labels of the training samples from the meta-gradient, and learns from them."""

from typing import Any

import torch
from torch import Tensor

from elite_pl import alice
from elite_pl.datamodule import Batch
from elite_pl.detector import Detector
from elite_pl.errors import InputError
from elite_pl.losses import hinge

META_GRADIENTS = {"jvp": alice.jvp, "virtual_step": alice.virtual_step}


class Elite(Detector):
    """Algorithm 1 of the ELITE paper.

    Args:
        meta_gradient: How M is computed: `"jvp"` or `"virtual_step"`, equal up to rounding; see `alice`.
        meta_scale: η_M of Eq. 14. Under Adam a constant factor of the loss cancels: it means something with SGD only.
        weights: α: `"raw"` as in Eq. 14, or `"mean"`, divided by the batch mean of |M|.
        supervised: Weight of L_v itself in the update. The paper's update has none (0). Its gradient v is at hand.
        **detector: See `Detector`.
    """

    needs_labels = True
    infers_labels = True
    suspicion_sum: Tensor
    visits: Tensor
    last_pseudo_label: Tensor

    def __init__(
        self, *, meta_gradient: str, meta_scale: float, weights: str, supervised: float, **detector: Any
    ) -> None:
        super().__init__(**detector)
        if meta_gradient not in META_GRADIENTS:
            raise InputError(f"method.meta_gradient={meta_gradient}: must be jvp or virtual_step")
        if weights not in alice.WEIGHTS:
            raise InputError(f"method.weights={weights}: must be raw or mean")
        if not meta_scale > 0:
            raise InputError(f"method.meta_scale={meta_scale}: must be positive")
        if not supervised >= 0:
            raise InputError(f"method.supervised={supervised}: must not be negative")
        self.infer = META_GRADIENTS[meta_gradient]
        self.meta_scale, self.weights, self.supervised = meta_scale, weights, supervised

    def setup(self, stage: str) -> None:
        """Makes room for what is learned about each unlabeled sample; in buffers, so that a checkpoint keeps it."""
        n = len(self.data.unlabeled)
        self.register_buffer("suspicion_sum", torch.zeros(n, dtype=torch.float64, device=self.device))
        self.register_buffer("visits", torch.zeros(n, dtype=torch.int64, device=self.device))
        self.register_buffer("last_pseudo_label", torch.ones(n, device=self.device))

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the unlabeled batch under its pseudo-labels, each weighted by its meta-gradient (Eq. 14)."""
        inference = self.infer(
            self.score,
            batch["unlabeled"],
            batch["labeled"],
            batch["labeled_y"],
            self.margin,
            learning_rate=self.learning_rate,
            meta_scale=self.meta_scale,
            weights=self.weights,
            labeled_statistics=self.labeled_statistics,
        )
        self.remember(batch, inference)
        loss = (inference.weight * hinge(inference.score, inference.pseudo_label, self.margin)).mean()
        return loss + self.supervised * self.labeled_loss(inference) if self.supervised else loss

    def labeled_loss(self, inference: alice.Inference) -> Tensor:
        """L_v with its gradient, but without another pass: `L_v + <θ - θ', v>` at θ' = θ, with θ' held constant."""
        v = inference.labeled_gradient
        products = [((p - p.detach()) * v[name]).sum() for name, p in alice.trainable(self.score).items()]
        return inference.labeled_loss + torch.stack(products).sum()

    def remember(self, batch: Batch, inference: alice.Inference) -> None:
        """Keeps the step's verdict on its samples, and what the epoch's log shows of it."""
        index, label, y = batch["index"], inference.pseudo_label, batch["labeled_y"]
        self.suspicion_sum[index] -= inference.d
        self.visits[index] += 1
        self.last_pseudo_label[index] = label
        anomalous, score = label < 0, inference.score.detach()
        self.observe(
            labeled_loss=inference.labeled_loss,
            hinge_active_labeled=(inference.labeled_score < self.margin)[y < 0].sum() / (y < 0).sum().clamp(min=1),
            hinge_active_unlabeled=(score < self.margin)[anomalous].sum() / anomalous.sum().clamp(min=1),
            pseudo_anomalies=anomalous.float().mean(),
            idle_share=(inference.weight == 0).all(),
        )
        if self.data.arrays.labels == "classes":
            self.observe(pseudo_label_accuracy=(label == batch["truth"]).float().mean())

    def suspicion(self, score: Tensor) -> Tensor:
        """The mean of -d over training: free of η_θ and n, positive = anomalous."""
        return (self.suspicion_sum / self.visits.clamp(min=1)).cpu()

    def pseudo_label(self, score: Tensor, threshold: float) -> Tensor:
        """The last ŷ of each unlabeled sample."""
        return self.last_pseudo_label.cpu()
