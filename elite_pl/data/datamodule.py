"""Batches, gathered by index from samples that lie on the device once, as one tensor, or in a file if they are many."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from elite_pl import distributed, seeding
from elite_pl.data.arrays import Arrays
from elite_pl.data.feature_maps import ENOUGH, ENOUGH_IMAGES, AnyFeatureMap
from elite_pl.data.features import FrozenFeatures
from elite_pl.data.mapped import Mapped
from elite_pl.data.preprocessing import Pair, Preprocessing, Size, preprocessing
from elite_pl.data.rows import SCORED, Rows
from elite_pl.data.splits import Split, is_anomaly

RESIDENT = 2**32  # bytes of memory-mapped samples that are copied to the device; of more, each batch is read anew


class Batch(TypedDict):
    """The input of one training step.

    Attributes:
        unlabeled: Samples, shape (n, ...); one of several processes has its shard of them only.
        unchanged: The same before augmentation.
        index: Their positions among the unlabeled samples, shape (n,).
        truth: Their true labels, +1 or -1, shape (n,): for the oracle and for diagnostics, never for a real method.
        labeled: Labeled samples, shape (m, ...).
        labeled_y: Their labels, +1 or -1, shape (m,).
    """

    unlabeled: Tensor
    unchanged: Tensor
    index: Tensor
    truth: Tensor
    labeled: Tensor
    labeled_y: Tensor


class Samples:
    """Samples on a device, in the form in which they came; batches of them are scaled when they are gathered.

    Where the device is the CPU and nothing is done to them once, they stay where they are, in memory or in a file. So
    do more than `RESIDENT` bytes of a memory-mapped array; these go to the device batch by batch.

    Args:
        samples: uint8 pixels or floats, shape (n, ...).
        preprocessing: How they become the numbers that a network sees.
        device: Where they lie.
        mapped: Keeps them once they have gone through the feature map; None: they go through it each time.
    """

    def __init__(
        self,
        samples: np.ndarray | Rows,
        preprocessing: Preprocessing,
        device: torch.device,
        mapped: Mapped | None = None,
    ) -> None:
        self.rows = samples if isinstance(samples, Rows) else Rows(samples)
        self.mapped = mapped
        self.preprocessing, self.device = preprocessing.to(device), device
        in_place = device.type == "cpu" and not preprocessing.changes(self.rows.shape)
        self.streamed = in_place or (self.rows.on_disk and self.rows.nbytes > RESIDENT)
        self.values = self.read(slice(0, 0) if self.streamed else slice(None))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: np.ndarray | slice) -> Tensor:
        """Brings samples to the device, shape (n, ...)."""
        return self.preprocessing.once(self.rows[index]).to(self.device)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Gathers samples, scaled, as floats of shape (n, ...)."""
        return self.gather(index) if self.mapped is None else self.mapped.gather(self.rows, index, self.gather)

    def gather(self, index: Tensor | slice) -> Tensor:
        """Gathers samples, and scales them now."""
        if not self.streamed:
            return self.preprocessing.scaled(self.values[index])
        return self.preprocessing.scaled(self.read(index if isinstance(index, slice) else index.cpu().numpy()))

    def in_order(self, size: int = SCORED) -> Iterator[Tensor]:
        """Yields all samples in batches."""
        for start in range(0, len(self), size):
            yield self[slice(start, start + size)]


class TrainingBatches:
    """The batches of one epoch, in an order that depends on the seed and the epoch alone.

    A last batch of fewer than 2 samples, of which no batch statistics can be taken, joins the one before.

    Args:
        data: The data module whose samples are gathered.
        epoch: Tells the number of the current epoch.
    """

    def __init__(self, data: "PollutedData", epoch: Callable[[], int]) -> None:
        self.data, self.epoch = data, epoch

    def __len__(self) -> int:
        n, size = len(self.data.unlabeled), self.data.batch_size
        return max(1, n // size + (n % size >= 2))

    def __iter__(self) -> Iterator[Batch]:
        data, device = self.data, self.data.truth.device
        order = torch.randperm(len(data.unlabeled), generator=seeding.generator(data.seed, "batches", self.epoch()))
        draws = seeding.generator(data.seed, "labeled batches", self.epoch())
        labeled, labeled_y, label = data.labeled[:], data.labeled_y, torch.as_tensor(data.split.labeled_y)
        there = order.to(device)
        for i in range(len(self)):
            part = slice(i * data.batch_size, None if i == len(self) - 1 else (i + 1) * data.batch_size)
            index = there[part]
            if data.labeled_batch_size is not None:
                drawn = balanced_draw(label, data.labeled_batch_size, draws).to(device)
                labeled, labeled_y = data.labeled[drawn], data.labeled_y[drawn]
            read_by = order[part] if data.unlabeled.streamed else index  # a file is read by the CPU
            unlabeled = data.unlabeled[read_by[distributed.shard(len(index))]]
            yield Batch(
                unlabeled=unlabeled,
                unchanged=unlabeled,
                index=index,
                truth=data.truth[index],
                labeled=labeled,
                labeled_y=labeled_y,
            )


class TestBatches:
    """All test samples in order: batches of (samples (n, ...), is_anomaly (n,)).

    One of several processes has its shard of the samples only, as in training.

    Args:
        test: The samples.
        anomalous: Which are anomalies, bool, shape (number of samples,).
        size: n.
    """

    __test__ = False  # not a test for pytest to collect

    def __init__(self, test: Samples, anomalous: Tensor, size: int = SCORED) -> None:
        self.test, self.anomalous, self.size = test, anomalous, size

    def __len__(self) -> int:
        return -(-len(self.test) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i, anomalous in enumerate(self.anomalous.split(self.size)):
            own = distributed.shard(len(anomalous))
            start = i * self.size
            yield self.test[start + own.start : start + own.stop], anomalous


def balanced_draw(label: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draws the same number of normal and anomalous samples, without replacement.

    Args:
        label: +1 or -1, shape (m,).
        size: How many to draw, at most; half of each kind.
        generator: Where the random numbers come from.

    Returns:
        Positions in `label`, shape (at most size,).
    """
    kinds = [torch.nonzero(label == kind).flatten() for kind in (1, -1)]
    return torch.cat([kind[torch.randperm(len(kind), generator=generator)[: size // 2]] for kind in kinds])


class PollutedData(pl.LightningDataModule):
    """A polluted training set with its labeled batches, and the test set.

    Args:
        arrays: All samples of the data set.
        split: Which of them are used, and as what.
        normal_class: The class that is normal; ignored where the labels say it themselves.
        size: Pixels of the sides that images are resized to; None leaves them as they are.
        scaling: See `preprocessing.preprocessing`.
        batch_size: n, unlabeled samples in a batch, over all processes.
        labeled_batch_size: m, labeled samples in a batch, class-balanced; None for all of them at every step.
        seed: The run's seed.
        features: The network whose features the arrays are; None if they are the samples themselves.
        feature_map: Fits what maps samples to those that methods see, from scaled training samples (n, ...); None for
            the samples themselves.
        fitted: The preprocessing, where it has been fitted already; None: it is fitted to the split's training samples.
        mapped: Samples of these arrays that other modules have mapped; new ones are added.
    """

    unlabeled: Samples
    labeled: Samples
    test: Samples
    device: torch.device | None = None  # where the samples lie

    def __init__(
        self,
        arrays: Arrays,
        split: Split,
        *,
        normal_class: int,
        size: Size | None,
        scaling: Literal["unit", "gcn", "standard"] | Pair,
        batch_size: int,
        labeled_batch_size: int | None,
        seed: int,
        features: FrozenFeatures | None = None,
        feature_map: Callable[[Tensor], AnyFeatureMap] | None = None,
        fitted: Preprocessing | None = None,
        mapped: list[Mapped] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.mapped: list[Mapped] = [] if mapped is None else mapped
        self.arrays, self.split, self.normal_class = arrays, split, normal_class
        self.batch_size, self.labeled_batch_size, self.seed = batch_size, labeled_batch_size, seed
        self.settings = {
            "normal_class": normal_class,
            "size": size,
            "scaling": scaling,
            "batch_size": batch_size,
            "labeled_batch_size": labeled_batch_size,
            "seed": seed,
            "features": features,
            "feature_map": feature_map,
        }
        self.preprocessing = self.fit_preprocessing(size, scaling, feature_map) if fitted is None else fitted
        self.place(torch.device("cpu"))

    def fit_preprocessing(
        self,
        size: Size | None,
        scaling: Literal["unit", "gcn", "standard"] | Pair,
        feature_map: Callable[[Tensor], AnyFeatureMap] | None,
    ) -> Preprocessing:
        """Fits the preprocessing to all training samples, without their labels; arguments as in the class."""
        training = Rows(self.arrays.x_train, np.concatenate([self.split.unlabeled, self.split.labeled]))
        made = preprocessing(training, size, scaling)
        if feature_map is None:
            return made
        enough = ENOUGH if len(training.shape) == 2 else ENOUGH_IMAGES
        some = np.linspace(0, len(training) - 1, min(len(training), enough)).astype(int)
        return made._replace(feature_map=feature_map(made.scaled(made.once(training[some]))))

    def place(self, device: torch.device) -> None:
        """Puts all samples that the run uses on a device, unless they are there."""
        if device == self.device:
            return
        self.device = device
        arrays, split = self.arrays, self.split

        self.unlabeled = self.of_training_part(split.unlabeled)
        self.labeled = self.of_training_part(split.labeled)
        self.test = Samples(Rows(arrays.x_test, split.test), self.preprocessing, device)
        self.truth = torch.where(self.anomalous("unlabeled").to(device), -1.0, 1.0)
        self.labeled_y = torch.as_tensor(split.labeled_y).to(device, torch.float32)

    def of_training_part(self, index: np.ndarray) -> Samples:
        """Samples of the training set, by their indices, where the others lie."""
        assert self.device is not None
        mapped = Mapped.of(self.mapped, self.arrays.x_train, self.preprocessing) if self.device.type == "cpu" else None
        return Samples(Rows(self.arrays.x_train, index), self.preprocessing, self.device, mapped)

    def under(self, split: Split, **changes: Any) -> "PollutedData":
        """The same samples under another split, by which their preprocessing is fitted anew; on the CPU.

        Args:
            split: Which samples are used, and as what.
            **changes: Other arguments of the class that are not to be those of this one.
        """
        return PollutedData(self.arrays, split, **{**self.settings, "mapped": self.mapped, **changes})

    def state_dict(self) -> dict[str, str]:
        """The fingerprint of the data: a run never resumes from a checkpoint made on other data."""
        return {"fingerprint": self.arrays.fingerprint}

    def setup(self, stage: str) -> None:
        """Puts the samples on the trainer's device."""
        assert self.trainer is not None
        self.place(self.trainer.strategy.root_device)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, as a network sees it."""
        return tuple(self.unlabeled[:0].shape[1:])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of samples: unlabeled, labeled normal, labeled anomalous."""
        normal = int((self.split.labeled_y > 0).sum())
        return len(self.unlabeled), normal, len(self.labeled) - normal

    def anomalous(self, part: str) -> Tensor:
        """Which samples of a part, `"unlabeled"`, `"labeled"` or `"test"`, are anomalies: bool, (n,), on the CPU."""
        y = self.arrays.y_test if part == "test" else self.arrays.y_train
        index = getattr(self.split, part)
        return torch.as_tensor(is_anomaly(y[index], self.normal_class, self.arrays.labels))

    @property
    def picked(self) -> Tensor:
        """Which labeled samples were picked, see `Arrays.picked_train`: bool, (m,), on the CPU."""
        picked = self.arrays.picked_train
        if picked is None:
            return torch.zeros(len(self.labeled), dtype=torch.bool)
        return torch.as_tensor(picked[self.split.labeled])

    def class_name(self, number: int) -> str:
        """The name of a class, or its number where it has none."""
        names = self.arrays.class_names
        return names[number] if names else str(number)

    def training_samples(self, order: Tensor) -> Iterator[Tensor]:
        """Yields batches of the unlabeled and labeled samples together, all of about the batch size.

        Args:
            order: Positions, those of the unlabeled samples first, shape (N + M,), on the CPU.
        """
        n = len(self.unlabeled)
        device = self.truth.device
        for index in order.tensor_split(max(1, len(order) // self.batch_size)):  # on the CPU, which waits for no mask
            unlabeled, labeled = index[index < n].to(device), (index[index >= n] - n).to(device)
            yield torch.cat([self.unlabeled[unlabeled], self.labeled[labeled]])

    def in_random_order(self, *purpose: object) -> Iterator[Tensor]:
        """Yields batches as in `training_samples`, in an order that depends on the seed and a purpose alone."""
        samples = len(self.unlabeled) + len(self.labeled)
        yield from self.training_samples(torch.randperm(samples, generator=seeding.generator(self.seed, *purpose)))

    def train_dataloader(self) -> TrainingBatches:
        """The training batches of the trainer's current epoch."""
        trainer = self.trainer
        assert trainer is not None
        return TrainingBatches(self, lambda: trainer.current_epoch)

    def val_dataloader(self) -> "TestBatches":
        """The test set with its true labels: its ROC AUC over the epochs is drawn, and nothing is chosen by it."""
        return TestBatches(self.test, self.anomalous("test").to(self.truth.device))

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Returns the batch as it is: it is there already."""
        return batch
