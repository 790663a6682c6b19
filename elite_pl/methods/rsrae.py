"""RSRAE: an autoencoder that keeps its code in a linear subspace, which anomalies cannot tilt much."""

from typing import Any, Literal, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.algorithm.losses import orthogonality_error, reconstruction_error, subspace_error
from elite_pl.annotations import Positive, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector
from elite_pl.models.scores import RobustSubspace

UPDATES = ("reconstruction", "orthogonality", "subspace")  # in the order of the published code


class Rsrae(Detector):
    """Minimizes three losses of the unlabeled samples in turn, each with an optimizer of its own.

    The reconstruction error trains all weights, `||A Aᵀ - I||_F²` and `||y - Aᵀ A y||` the matrix A of the robust
    subspace recovery layer. As published all three updates follow on every batch; counted as three passes they would
    cost three times the budget of the other methods, which see a batch in one pass. So here, by default, each batch is
    used for one of them, in turn: a step is a pass, and in as many epochs each loss is minimized a third as often.

    Source: Lai et al., "Robust Subspace Recovery Layer for Unsupervised Anomaly Detection", ICLR 2020, arXiv
    1904.00152; the alternation of RSRAE, not the weighted sum of RSRAE+.

    Args:
        orthogonality_learning_rate: Of the second loss; that of the first is the optimizer's.
        subspace_learning_rate: Of the third loss.
        subspace_encoder: Whether the third loss trains the encoder, too, as in the published code.
        updates_per_batch: 1, one of the three in turn, or 3, all of them, as published.
        **detector: See `Detector`.
    """

    score: RobustSubspace

    @checked
    def __init__(
        self,
        *,
        orthogonality_learning_rate: Positive,
        subspace_learning_rate: Positive,
        subspace_encoder: bool,
        updates_per_batch: Literal[1, 3],
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        if not isinstance(self.score, RobustSubspace):
            raise ValueError(f"score: {type(self.score).__name__} has no subspace; must be RobustSubspace")
        self.orthogonality_learning_rate = orthogonality_learning_rate
        self.subspace_learning_rate = subspace_learning_rate
        self.subspace_encoder, self.updates_per_batch = subspace_encoder, updates_per_batch

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimizer for each of the three losses, and their schedules."""
        matrix = [self.score.subspace]
        encoder = list(self.score.encoder.parameters()) if self.subspace_encoder else []
        optimizers = [
            self.make_optimizer(self.score.parameters()),
            self.make_optimizer([{"params": matrix, "lr": self.orthogonality_learning_rate}]),
            self.make_optimizer([{"params": matrix + encoder, "lr": self.subspace_learning_rate}]),
        ]
        return optimizers, [] if self.make_scheduler is None else [self.make_scheduler(o) for o in optimizers]

    @property
    def learning_rate(self) -> float:
        """That of the reconstruction."""
        return cast(list[torch.optim.Optimizer], self.optimizers())[0].param_groups[0]["lr"]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The updates of one batch."""
        batch = self.augmented(batch)
        optimizers = cast(list[torch.optim.Optimizer], self.optimizers())
        for _ in range(self.updates_per_batch):
            turn = self.global_step % len(UPDATES)  # a checkpoint keeps it
            loss = self.loss_of(UPDATES[turn], batch)
            self.descend(optimizers[turn], loss)
            self.observe(**{UPDATES[turn]: loss})
        if self.ends_epoch(batch_idx):
            self.log_means()

    def loss_of(self, update: str, batch: Batch) -> Tensor:
        """The loss of one update on the unlabeled batch, shape (); only the first moves the running statistics."""
        if update == "orthogonality":
            return orthogonality_error(self.score.subspace)
        return self.of_unlabeled(getattr(self, f"{update}_errors"), batch).mean()

    def reconstruction_errors(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to the errors of their reconstruction (n,)."""
        return reconstruction_error(sample, self.score.reconstruct(sample))

    def subspace_errors(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to the distances of their codes from the subspace (n,)."""
        with frozen_statistics(self.score), torch.set_grad_enabled(self.subspace_encoder):
            output = self.score.encoder(sample)
        return subspace_error(output, self.score.subspace)

    def on_train_epoch_end(self) -> None:
        """Steps the three schedules."""
        for scheduler in cast(list[torch.optim.lr_scheduler.LRScheduler], self.lr_schedulers() or []):
            scheduler.step()
