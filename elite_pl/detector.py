"""The base of all detectors that are trained by gradient: order of construction, training step, scoring.

A method (`elite_pl/methods/`) adds its loss, and nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from elite_pl import losses, seeding
from elite_pl.batchnorm import STATISTICS, calibrate, frozen_statistics
from elite_pl.datamodule import Batch, PollutedData, Samples
from elite_pl.errors import InputError, TrainingError
from elite_pl.metrics import RocAuc
from elite_pl.networks import Backbone
from elite_pl.pretraining import pretrain
from elite_pl.scores import Score

MARGINS = ("mean_initial", "max_labeled")
COLLAPSED = 1e-4  # a spread of scores, relative to their mean, under which they say nothing


class Detector(pl.LightningModule):
    """Scores samples by a network that is trained on a polluted training set.

    Before the first step (`prepare`): autoencoder pre-training, running statistics, center, margin, in this order.

    Args:
        name: The method's name in logs and tables.
        backbone: The networks.
        score: Makes Ω, the module that maps samples (n, ...) to scores (n,), from the backbone.
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes a learning-rate schedule, stepped once an epoch, from the optimizer; None for a constant rate.
        pretrain_epochs: Passes of autoencoder pre-training; 0 for none.
        pretrain_learning_rate: Its learning rate.
        margin: C of Eq. 4: `"mean_initial"` (the paper), `"max_labeled"` (the authors' release), or a positive number.
        labeled_statistics: What batch normalisation uses in a pass over the labeled batch: its own (`"batch"`) or the
            `"running"` statistics. Neither moves the running ones.
        pretrained: File that keeps the pre-trained weights for other methods on this split; None for none.

    Raises:
        InputError: If an argument has no such value.
    """

    needs_labels = False
    needs_labeled_anomalies = False
    infers_labels = False  # whether `suspicion` is the meta-gradient's, and not the score
    margin: Tensor
    prepared: Tensor

    def __init__(
        self,
        *,
        name: str,
        backbone: Backbone,
        score: Callable[[Backbone], Score],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None,
        pretrain_epochs: int,
        pretrain_learning_rate: float,
        margin: str | float,
        labeled_statistics: str,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__()
        if not (margin in MARGINS if isinstance(margin, str) else margin > 0):
            raise InputError(f"method.margin={margin}: must be one of {', '.join(MARGINS)}, or a positive number")
        if labeled_statistics not in STATISTICS:
            raise InputError(f"method.labeled_statistics={labeled_statistics}: must be batch or running")
        if not pretrain_epochs >= 0:
            raise InputError(f"method.pretrain_epochs={pretrain_epochs}: must not be negative")
        if not pretrain_learning_rate > 0:
            raise InputError(f"method.pretrain_learning_rate={pretrain_learning_rate}: must be positive")
        self.automatic_optimization = False
        self.name, self.backbone = name, backbone
        self.score = score(backbone)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.pretrain_epochs, self.pretrain_learning_rate = pretrain_epochs, pretrain_learning_rate
        self.margin_rule, self.labeled_statistics, self.pretrained = margin, labeled_statistics, pretrained
        self.register_buffer("margin", torch.zeros(()))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))
        self.roc_auc = RocAuc()
        self.sums: dict[str, Tensor] = {}

    # What a method adds

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one step, shape (); its graph must reach the parameters."""
        raise NotImplementedError

    # Before training

    @property
    def data(self) -> PollutedData:
        """The data module of the running fit."""
        return cast(PollutedData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the score's parameters, and the schedule."""
        optimizer = self.make_optimizer(self.score.parameters())
        return optimizer if self.make_scheduler is None else ([optimizer], [self.make_scheduler(optimizer)])

    def on_fit_start(self) -> None:
        """Prepares a fresh detector; one that a checkpoint restored is prepared already."""
        if not self.prepared:
            self.prepare(self.data)
            self.prepared.fill_(True)

    def check(self, data: PollutedData) -> None:
        """Refuses data that the method cannot learn from.

        Raises:
            InputError: If there are none of the labels that the method needs.
        """
        if self.needs_labels and len(data.labeled) == 0:
            if data.arrays.labels == "known":
                raise InputError(f"dataset.labels=known: y_train holds no 1 and no -1; method={self.name} needs some")
            raise InputError(f"label_ratio=0: method={self.name} learns from labels; give label_ratio > 0")
        if self.needs_labeled_anomalies and not (data.labeled_y < 0).any():
            raise InputError(f"method={self.name}: learns from labeled anomalies, and there is none")
        if self.margin_rule == "max_labeled" and len(data.labeled) == 0:
            raise InputError("method.margin=max_labeled: there is no labeled sample; use mean_initial or a number")

    def prepare(self, data: PollutedData) -> None:
        """Initialises the network, the center and the margin from all training samples, without their labels."""
        for network in (self.backbone.encoder, self.backbone.decoder):
            network.to(self.device)
        pretrain(
            self.backbone,
            data,
            epochs=self.pretrain_epochs,
            learning_rate=self.pretrain_learning_rate,
            cache=self.pretrained,
        )
        self.calibrate(data)
        with torch.no_grad():
            self.score.eval()
            samples = list(data.training_samples(torch.arange(len(data.unlabeled) + len(data.labeled))))
            self.score.initialise(samples)
            initial = torch.cat([self.score(batch) for batch in samples])
            self.score.train()
        if self.margin_rule == "mean_initial":
            self.margin.copy_(losses.margin_mean_initial(initial))
        elif self.margin_rule == "max_labeled":
            self.margin.copy_(losses.margin_max_labeled(initial[len(data.unlabeled) :]))
        else:
            self.margin.fill_(float(self.margin_rule))

    def calibrate(self, data: PollutedData) -> None:
        """Measures the running statistics afresh over all training samples; see `batchnorm.calibrate`."""
        samples = len(data.unlabeled) + len(data.labeled)
        order = torch.randperm(samples, generator=seeding.generator(data.seed, "calibration"))
        calibrate(self.score, self.score, data.training_samples(order))

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        optimizer.zero_grad()
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.global_step}: the loss is {loss.item()}; likely the learning rate "
                f"({self.learning_rate:g}) is too high, or the data hold extreme values"
            )
        self.manual_backward(loss)
        optimizer.step()
        self.observe(loss=loss)
        if batch_idx == int(self.trainer.num_training_batches) - 1:
            self.log_means()

    @property
    def learning_rate(self) -> float:
        """η_θ: the optimizer's current learning rate."""
        return cast(torch.optim.Optimizer, self.optimizers()).param_groups[0]["lr"]

    def labeled_score(self, batch: Batch) -> Tensor:
        """Ω of the labeled batch, shape (m,), in a pass that leaves the running statistics alone."""
        with frozen_statistics(self.score, self.labeled_statistics):
            return self.score(batch["labeled"])

    def observe(self, **values: Tensor) -> None:
        """Adds a step's values to the means of the epoch; on the device, because a log entry a step costs more."""
        for key, value in values.items():
            value = value.detach().double()
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value

    def log_means(self) -> None:
        """Logs the means of what was observed in the epoch's steps."""
        for key, total in self.sums.items():
            mean = (total / self.trainer.num_training_batches).float()
            self.log(f"train/{key}", mean, on_step=False, on_epoch=True, batch_size=1)
        self.sums = {}

    def on_train_epoch_end(self) -> None:
        """Steps the schedule, which Lightning leaves to manual optimization."""
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            cast(torch.optim.lr_scheduler.LRScheduler, scheduler).step()

    # Scoring

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return self.score(sample)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch of the test part to the ROC AUC that is drawn over the epochs."""
        sample, is_anomaly = batch
        self.roc_auc.update(self.finite(self(sample)), is_anomaly)

    def on_validation_epoch_end(self) -> None:
        """Logs the ROC AUC of the test part."""
        self.log("test/auroc", torch.as_tensor(self.roc_auc.compute(), dtype=torch.float64))
        self.roc_auc.reset()

    @torch.no_grad()
    def score_samples(self, samples: Samples) -> Tensor:
        """The anomaly scores of samples, in evaluation mode.

        Returns:
            Scores, shape (n,), on the CPU.

        Raises:
            TrainingError: If a score is not finite.
        """
        self.eval()
        scores = [self(batch) for batch in samples.in_order()]
        return self.finite(torch.cat(scores)).cpu() if scores else torch.zeros(0)

    def suspicion(self, score: Tensor) -> Tensor:
        """How anomalous each unlabeled training sample looks: its score, if the method has nothing better.

        Args:
            score: Final scores of the unlabeled samples, shape (N,).

        Returns:
            Higher for the more suspicious, shape (N,), on the CPU.
        """
        return score

    def pseudo_label(self, score: Tensor, threshold: float) -> Tensor:
        """What each unlabeled training sample is taken for, +1 or -1, shape (N,), on the CPU; arguments as above."""
        return torch.where(score > threshold, -1.0, 1.0)

    def finite(self, score: Tensor) -> Tensor:
        """Returns the scores, or stops.

        Raises:
            TrainingError: If one is not finite.
        """
        if not torch.isfinite(score).all():
            raise TrainingError(f"step {self.global_step}: a score is not finite; the learning rate is likely too high")
        return score


def collapsed(score: Tensor) -> bool:
    """Whether scores say nothing: all of them nearly the same."""
    return bool(score.std() <= COLLAPSED * score.abs().mean())
