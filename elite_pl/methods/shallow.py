"""The base of the detectors that are fitted at once, without a gradient, on flattened samples.

A method (`elite_pl/methods/`) adds its fit. What it has learned is in its score, which needs torch alone.
"""

from typing import Any

import torch
from torch import Tensor

from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import BaseDetector
from elite_pl.models.fitted import Fitted


class ShallowDetector(BaseDetector):
    """Scores samples by a model that is fitted at once to all training samples.

    Args:
        name: The method's name in logs and tables.
        score: Ω, still to be fitted.
        optimizer: Not used: an experiment that gives all its methods one learning rate can be run with this one, too.
    """

    def __init__(self, *, name: str, score: Fitted, optimizer: Any = None) -> None:
        super().__init__()
        self.name, self.score = name, score
        self.found: dict[str, float] = {}

    def fit(self, data: PollutedData) -> None:
        """Fits the score, on the CPU, and records in `found` the quantities that it has set or chosen."""
        raise NotImplementedError

    def facts(self) -> dict[str, float]:
        """The result of the fit."""
        return self.found


def training_samples(data: PollutedData) -> Tensor:
    """The unlabeled samples, then the labeled ones, scaled and flattened, shape (N + M, features)."""
    return torch.cat([data.unlabeled[:], data.labeled[:]]).flatten(1)
