"""The interface of all detectors, and the base of those trained by gradient: construction, training step, scoring.

A method (`elite_pl/methods/`) adds its loss, and nothing else; one without a gradient adds its fit (`shallow.py`).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from elite_pl import distributed, seeding
from elite_pl.algorithm import losses
from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.algorithm.batchnorm import calibrate, frozen_statistics, repeated_pass, running_statistics
from elite_pl.algorithm.metrics import RocAuc
from elite_pl.annotations import Count, NotNegative, Positive, Share, at_least, checked
from elite_pl.data.datamodule import Batch, PollutedData, Samples
from elite_pl.errors import LabelError, TrainingError
from elite_pl.methods.pretraining import pretrain
from elite_pl.models.networks import Backbone
from elite_pl.models.scores import MeanOverViews, Score

Values = TypeVar("Values", Tensor, tuple[Tensor, ...])

COLLAPSED = 1e-4  # a spread of scores, relative to their mean, under which they say nothing


class BaseDetector(nn.Module):
    """The interface of a detector, however it is trained: its score, and the scores of samples.

    Attributes:
        name: The method's name in logs and tables.
        score: Ω, the module that maps samples (n, ...) to scores (n,); all that is learned is in it.
        needs_labels: Whether it learns nothing without labels.
        needs_labeled_anomalies: Whether it learns nothing without labeled anomalies.
        needs_of_each_kind: How many labeled samples of each kind it needs.
        needs_backbone: Whether it is made from a backbone.
        augmentation: Makes the views.
        views: Its draws for the views whose scores are averaged at test time, shape (views, width); None for the
            samples themselves.
    """

    name: str
    score: Score
    augmentation: Augmentation | None = None
    views: Tensor | None = None
    needs_labels = False
    needs_labeled_anomalies = False
    needs_of_each_kind = 0
    needs_backbone = False

    @property
    def backbone_name(self) -> str:
        """The name of its networks in logs and tables."""
        return "none"

    def check(self, data: PollutedData) -> None:
        """Refuses data that the method cannot learn from.

        Raises:
            LabelError: If there are none of the labels that the method needs, or too few.
            ValueError: If its arguments do not go with the data.
        """
        if self.needs_labels and len(data.labeled) == 0:
            raise LabelError(f"{self.name} learns from labels, and there is none")
        if self.needs_labeled_anomalies and not (data.labeled_y < 0).any():
            raise LabelError(f"{self.name} learns from labeled anomalies, and there is none")
        normal, anomalous = (int((data.labeled_y == kind).sum()) for kind in (1, -1))
        if min(normal, anomalous) < (few := self.needs_of_each_kind):
            needed = f"{few} labeled sample{'s' * (few > 1)} of each kind at least"
            raise LabelError(f"{self.name} needs {needed}, and there are {normal} normal and {anomalous} anomalous")

    def facts(self) -> dict[str, float]:
        """Returns the quantities that the fit has set or chosen, for `metrics.json`."""
        return {}

    @property
    def scorer(self) -> Score:
        """The module that scores new samples, over the views where there are any."""
        return self.over_views(self.score)

    def over_views(self, score: Score) -> Score:
        """The mean of a score over the views; the score itself where there are none."""
        if self.views is None or self.augmentation is None:
            return score
        return MeanOverViews(score, self.augmentation, self.views)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return self.scorer(sample)

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

    def mean_meta_gradient(self) -> Tensor | None:
        """Returns the mean of -d over training for each unlabeled sample, shape (N,), on the CPU; positive: an anomaly.

        None for a method without a meta-gradient.
        """
        return None

    def recording(self) -> tuple[Tensor, Tensor] | None:
        """Returns the recorded meta-gradients of each step, see `Elite`; None for a method without one."""
        return None

    def finite(self, score: Tensor) -> Tensor:
        """Returns the scores, or stops.

        Raises:
            TrainingError: If one is not finite.
        """
        if not torch.isfinite(score).all():
            raise TrainingError(f"{self.name}: a score is not finite; likely the data hold extreme values")
        return score


class Detector(BaseDetector, pl.LightningModule):
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
        pretrain_weight_decay: Its weight decay.
        pretrain_milestone: The epoch from which its learning rate is a tenth; None for none.
        margin: C of Eq. 4: `"mean_initial"` (the paper), `"max_labeled"` (the authors' release), or a positive number.
        labeled_statistics: Those of batch normalization in a pass over the labeled batch: its own (`"batch"`) or the
            `"running"` statistics, neither of which moves the running ones, or those that it has in common with the
            unlabeled batch (`"joint"`): both then go through in one pass.
        labeled_copies: How often each labeled sample stands in the labeled batch, every copy changed by itself.
        average_decay: Of the running mean of the weights, which then scores in their place; after t steps it is at most
            t / (t + 10), so that the first weights are soon forgotten. None for the weights themselves.
        balanced_labels: Whether labeled samples of the rarer kind stand in the labeled batch so often that both kinds
            weigh the same.
        pretrained: File that keeps the pre-trained weights for other methods on this split; None for none.
        augmentation: Changes the samples of training and pre-training; None for none.
        views: See `BaseDetector`.

    Attributes:
        stackable: Whether several detectors of this very class can be trained as one, see `elite_pl.runs.stacked`: its
            loss then treats the last axis as the samples and carries an axis before it along.
        stack: The length of that axis, the number of detectors in one; () for a single one.
        clipping: `trainer.gradient_clip_val` and its algorithm, `"norm"` or `"value"`; None for none.
        micro_batches: `trainer.accumulate_grad_batches`, the parts in which a batch goes through the network.

    Raises:
        ValueError: If an argument is not as annotated, here and in what is derived from it.
    """

    needs_backbone = True
    stackable = False
    stack: tuple[int, ...] = ()
    hinge_applies = True  # whether Eq. 4 is a loss for its scores, with its margin
    margin: Tensor
    prepared: Tensor
    clipping: tuple[float, str] | None = None
    micro_batches = 1

    @checked
    def __init__(
        self,
        *,
        name: str,
        backbone: Backbone,
        score: Callable[[Backbone], Score],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None,
        pretrain_epochs: Count,
        pretrain_learning_rate: Positive,
        pretrain_weight_decay: NotNegative,
        pretrain_milestone: Annotated[int, at_least(1)] | None,
        margin: Literal["mean_initial", "max_labeled"] | Positive,
        labeled_statistics: Literal["batch", "running", "joint"],
        labeled_copies: Annotated[int, at_least(1)],
        average_decay: Share | None,
        balanced_labels: bool = False,
        pretrained: Path | None = None,
        augmentation: Augmentation | None = None,
        views: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.name, self.backbone = name, backbone
        self.score = score(backbone)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.pretraining: dict[str, Any] = {
            "epochs": pretrain_epochs,
            "learning_rate": pretrain_learning_rate,
            "weight_decay": pretrain_weight_decay,
            "milestone": pretrain_milestone,
        }
        self.margin_rule, self.labeled_statistics, self.pretrained = margin, labeled_statistics, pretrained
        self.labeled_copies, self.augmentation, self.views = labeled_copies, augmentation, views
        self.balanced_labels = balanced_labels
        self.averaged = None
        if average_decay is not None:
            self.averaged = AveragedModel(self.score, avg_fn=running_mean(average_decay), use_buffers=True)
        self.register_buffer("margin", torch.zeros(()))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))
        self.roc_auc = RocAuc(sync_on_compute=False)  # every process gets the scores of all
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.unseen: list[tuple[int, float, Tensor]] = []  # losses with their steps and learning rates

    # What a method adds

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one step, shape () or that of `stack`; its graph must reach the parameters.

        With several processes it is that of the whole batch on each of them: see `unlabeled_score`.
        """
        raise NotImplementedError

    # Before training

    @property
    def backbone_name(self) -> str:
        """The name of its networks in logs and tables."""
        return self.backbone.name

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
            distributed.broadcast_([*self.score.state_dict().values(), self.margin])  # kernels of a GPU need not repeat
            self.prepared.fill_(True)

    def check(self, data: PollutedData) -> None:
        """Refuses data that the method cannot learn from; see `BaseDetector.check`."""
        super().check(data)
        if self.margin_rule == "max_labeled" and len(data.labeled) == 0:
            raise ValueError("margin=max_labeled: there is no labeled sample; must be mean_initial or a number")
        alone = self.needs_labels and len(data.labeled) == 1 and self.labeled_statistics == "batch"
        if alone and running_statistics(self.score):
            rule = "a single labeled sample has no statistics; label another one, or use running"
            raise ValueError(f"labeled_statistics=batch: {rule}")

    def prepare(self, data: PollutedData) -> None:
        """Initializes the network, the center and the margin from all training samples, without their labels."""
        for network in (self.backbone.encoder, self.backbone.decoder):
            network.to(self.device)
        pretrain(self.backbone, data, **self.pretraining, augmentation=self.augmentation, cache=self.pretrained)
        self.calibrate(data)
        with torch.no_grad():
            self.score.eval()
            in_order = torch.arange(len(data.unlabeled) + len(data.labeled))
            self.score.initialize(data.training_samples(in_order))
            initial = torch.cat([self.score(batch) for batch in data.training_samples(in_order)])
            self.score.train()
        if self.margin_rule == "mean_initial":
            self.margin.copy_(losses.margin_mean_initial(initial))
        elif self.margin_rule == "max_labeled":
            self.margin.copy_(losses.margin_max_labeled(initial[len(data.unlabeled) :]))
        else:
            self.margin.fill_(float(self.margin_rule))
        if self.averaged is not None:
            self.averaged.module.load_state_dict(self.score.state_dict())

    def calibrate(self, data: PollutedData) -> None:
        """Measures the running statistics afresh over all training samples; see `batchnorm.calibrate`."""
        calibrate(self.score, self.score, data.in_random_order("calibration"))

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step."""
        loss = self.loss(self.augmented(batch))
        self.descend(cast(torch.optim.Optimizer, self.optimizers()), loss.sum())
        self.observe(loss=loss)
        if self.ends_epoch(batch_idx):
            self.log_means()

    def ends_epoch(self, batch_idx: int) -> bool:
        """Returns whether the step that was just taken is the last one of its epoch."""
        return (
            batch_idx == int(self.trainer.num_training_batches) - 1 or 0 <= self.trainer.max_steps <= self.global_step
        )

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step of an optimizer down the gradient of a loss.

        Raises:
            TrainingError: As `check_losses`.
        """
        self.unseen.append((self.global_step, optimizer.param_groups[0]["lr"], loss.detach()))
        if loss.device.type == "cpu":  # another device would be waited for; there they are seen once an epoch
            self.check_losses()
        optimizer.zero_grad()
        self.manual_backward(loss)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        distributed.average_([*gradients, *running_statistics(self.score)])  # one message for both
        if self.clipping is not None:
            self.clip_gradients(optimizer, *self.clipping)
        optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.score)

    def check_losses(self) -> None:
        """Checks the losses of the steps since the last check.

        Raises:
            TrainingError: If one is not finite.
        """
        unseen, self.unseen = self.unseen, []
        values = torch.stack([loss for _, _, loss in unseen]).tolist() if unseen else []
        for (step, rate, _), value in zip(unseen, values, strict=True):
            if not math.isfinite(value):
                cause = f"likely the learning rate ({rate:g}) is too high, or the data hold extreme values"
                raise TrainingError(f"step {step}: the loss is {value}; {cause}")

    def augmented(self, batch: Batch) -> Batch:
        """The batch with its samples changed at random, and the labeled ones in several copies."""
        if self.augmentation is None and self.labeled_copies == 1 and not self.balanced_labels:
            return batch
        label, n = batch["labeled_y"], len(batch["index"])
        places = balanced(label) if self.balanced_labels else torch.arange(len(label), device=label.device)
        places = places.repeat(self.labeled_copies)
        labeled, y = batch["labeled"][places], label[places]
        changed = {"labeled": self.augment(labeled, "labeled", len(y)), "labeled_y": y}
        return cast(Batch, {**batch, "unlabeled": self.augment(batch["unlabeled"], "unlabeled", n), **changed})

    def augment(self, sample: Tensor, purpose: str, n: int) -> Tensor:
        """Augments samples at random; the draw depends only on the step, the purpose and their places in the batch.

        Args:
            sample: This process's shard of n samples, or all of them.
            purpose: Their use; each purpose has its own random numbers.
            n: The size of the whole batch.
        """
        if self.augmentation is None:
            return sample
        generator = seeding.generator(self.data.seed, "augmentation", purpose, self.global_step)
        draws = self.augmentation.draw(n, tuple(sample.shape[1:]), generator)
        return self.augmentation.apply(sample, draws if len(sample) == n else draws[distributed.shard(n)])

    @property
    def learning_rate(self) -> float:
        """η_θ: the optimizer's current learning rate."""
        return cast(torch.optim.Optimizer, self.optimizers()).param_groups[0]["lr"]

    def of_unlabeled(self, function: Callable[[Tensor], Values], batch: Batch) -> Values:
        """Applies a per-sample function to the whole unlabeled batch.

        A process computes the values of its shard, and gathers those of the others. Of a micro-batch nothing but the
        values is kept: if they have a gradient, it repeats the forward pass.

        Args:
            function: Maps samples (n, ...) to values (..., n), or to several values (n,) as a tuple.
            batch: The batch, of which this process has a shard.

        Returns:
            The values of the whole batch, as those of the function.
        """
        samples, n = self.in_micro_batches(batch), len(batch["index"])
        if self.stack or len(samples[0]) == n:
            return function(batch["unlabeled"])
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        options["context_fn"] = lambda: (nullcontext(), repeated_pass(self.score))
        apply = function if len(samples) == 1 else partial(checkpoint, function, **options)
        values: list[Any] = [apply(sample) for sample in samples]
        if isinstance(values[0], tuple):
            rows = [torch.cat(row) for row in zip(*values, strict=True)]
            whole: Any = tuple(distributed.gather(torch.stack(rows), n))  # one message
        else:
            whole = distributed.gather(torch.cat(values, dim=-1), n)
        return whole

    def in_micro_batches(self, batch: Batch) -> tuple[Tensor, ...]:
        """The micro-batches of this process's unlabeled samples, of at least two samples each."""
        sample = batch["unlabeled"]
        return sample.tensor_split(max(1, min(self.micro_batches, len(sample) // 2)))

    def unlabeled_score(self, batch: Batch) -> Tensor:
        """Ω of the whole unlabeled batch, shape (n,), with its graph; use it, not `score` on a shard."""
        return self.of_unlabeled(self.score, batch)

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ω of the whole unlabeled batch, shape (n,), and of the labeled batch, shape (m,)."""
        return self.of_both(self.score, batch)

    def of_both(self, function: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Applies a function of the score's network to the whole unlabeled batch and to the labeled batch.

        Args:
            function: Maps samples (n, ...) to values (..., n).
            batch: The batch, of which this process has a shard.

        Returns:
            The values of the unlabeled samples, shape (..., n), and of the labeled ones, shape (..., m).
        """
        if self.labeled_statistics == "joint":
            unlabeled, labeled = batch["unlabeled"], batch["labeled"]
            axis = len(self.stack)  # of the samples
            values = function(torch.cat([unlabeled, labeled], dim=axis))
            own, of_labeled = values.split([unlabeled.shape[axis], labeled.shape[axis]], dim=-1)
            return distributed.gather(own, batch["index"].shape[-1]), of_labeled
        of_unlabeled = self.of_unlabeled(function, batch)
        with frozen_statistics(self.score, self.labeled_statistics):
            return of_unlabeled, function(batch["labeled"])

    def observe(self, **values: Tensor) -> None:
        """Adds a step's values to the means of the epoch; on the device, because a log entry a step costs more."""
        for key, value in values.items():
            value = value.detach().to(widest(value.device))
            total, steps = self.sums.get(key, (torch.zeros_like(value), 0))
            self.sums[key] = total + value, steps + 1

    def log_means(self) -> None:
        """Logs the means of what was observed in the epoch's steps, if they went well."""
        self.check_losses()
        for key, (total, steps) in self.sums.items() if not self.stack else ():
            mean = (total / steps).float()
            self.log(f"train/{key}", mean, on_step=False, on_epoch=True, batch_size=1)
        self.sums = {}

    def on_train_epoch_end(self) -> None:
        """Steps the schedule, which Lightning leaves to manual optimization."""
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            cast(torch.optim.lr_scheduler.LRScheduler, scheduler).step()

    # Scoring

    @property
    def scorer(self) -> Score:
        """The module that scores: with averaged weights and over the views, where there are any."""
        return self.over_views(self.score if self.averaged is None else cast(Score, self.averaged.module))

    def facts(self) -> dict[str, float]:
        """The margin."""
        return {"train/margin": float(self.margin)}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch of the test set to the ROC AUC that is drawn over the epochs."""
        sample, is_anomaly = batch
        with torch.autocast(self.device.type, enabled=False):  # half the digits would tie scores
            score = distributed.gather(self(sample), len(is_anomaly))
            self.roc_auc.update(self.finite(score), is_anomaly)

    def on_validation_epoch_end(self) -> None:
        """Logs the ROC AUC of the test set."""
        self.log("test/auroc", torch.as_tensor(self.roc_auc.compute(), dtype=torch.float64))
        self.roc_auc.reset()

    def finite(self, score: Tensor) -> Tensor:
        """Returns the scores, or stops.

        Raises:
            TrainingError: If one is not finite.
        """
        if not torch.isfinite(score).all():
            raise TrainingError(f"step {self.global_step}: a score is not finite; the learning rate is likely too high")
        return score


def widest(device: torch.device) -> torch.dtype:
    """The float type in which many values are added up: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def risen(step: int, steps: int) -> float:
    """A weight that rises from 0 to 1 over the first `steps` steps; 1 from the start if `steps` is 0."""
    return min(1.0, step / steps) if steps else 1.0


def balanced(label: Tensor) -> Tensor:
    """Positions among labels +1 or -1, shape (m,): all of the commoner kind, and as many of the rarer one."""
    kinds = [torch.nonzero(label == kind).flatten() for kind in (1, -1) if (label == kind).any()]
    most = torch.arange(max(map(len, kinds), default=0), device=label.device)
    return torch.cat([kind[most % len(kind)] for kind in kinds]) if kinds else most


def running_mean(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The update of averaged weights: `w̄ + (1 - β)(w - w̄)` with `β = min(decay, t / (t + 10))` after t steps."""

    def update(mean: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        t = float(steps)
        return mean + (1 - min(decay, t / (t + 10))) * (new - mean)

    return update


def collapsed(score: Tensor) -> bool:
    """Returns whether scores say nothing: all of them nearly the same."""
    return bool(score.std() <= COLLAPSED * score.abs().mean())
