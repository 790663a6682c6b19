"""The base of the detectors that are fitted at once, without a gradient, on flattened samples.

A method (`elite_pl/methods/`) adds its fit. What it has learned is in its score, which needs torch alone.
"""

from typing import Any

import torch
from torch import Tensor

from elite_pl import seeding
from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.annotations import Count, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import BaseDetector
from elite_pl.models.fitted import Fitted


class ShallowDetector(BaseDetector):
    """Scores samples by a model that is fitted at once to all training samples.

    Args:
        name: The method's name in logs and tables.
        score: Ω, still to be fitted.
        augmentation: Makes the changed copies of labeled samples, and the views; None for none.
        views: See `BaseDetector`.
        augmented_copies: Changed copies that stand beside each labeled sample, where there is an augmentation.
        optimizer: Not used: an experiment that gives all its methods one learning rate can be run with this one, too.
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        score: Fitted,
        augmentation: Augmentation | None = None,
        views: Tensor | None = None,
        augmented_copies: Count = 0,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        self.name, self.score = name, score
        self.augmentation, self.views, self.augmented_copies = augmentation, views, augmented_copies
        self.found: dict[str, float] = {}

    def fit(self, data: PollutedData) -> None:
        """Fits the score, on the CPU, and records in `found` the quantities that it has set or chosen."""
        raise NotImplementedError

    def facts(self) -> dict[str, float]:
        """The result of the fit."""
        return self.found

    def training_samples(self, data: PollutedData) -> tuple[Tensor, Tensor]:
        """The samples to learn from: the unlabeled ones, the labeled ones, and changed copies of these.

        Returns:
            Samples, scaled and flattened, shape (N + M + M copies, features), and the label of each, +1, -1 or 0 for an
            unlabeled one.
        """
        labeled, label = data.labeled[:], data.labeled_y
        samples, labels = [data.unlabeled[:], labeled], [torch.zeros(len(data.unlabeled)), label]
        if self.augmentation is not None and self.augmented_copies:
            several = labeled.repeat(self.augmented_copies, *[1] * (labeled.ndim - 1))
            samples.append(self.augmentation(several, seeding.generator(data.seed, "augmented copies")))
            labels.append(label.repeat(self.augmented_copies))
        return torch.cat(samples).flatten(1), torch.cat(labels)
