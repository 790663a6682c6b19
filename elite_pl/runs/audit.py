"""Which unlabeled training samples look like anomalies, and what of the labeled ones they look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from elite_pl.algorithm import metrics
from elite_pl.algorithm.neighbors import nearest
from elite_pl.data.datamodule import PollutedData, Samples
from elite_pl.methods.base import BaseDetector
from elite_pl.runs.decision import Decision

REFERENCES = 10_000  # unlabeled samples among which neighbors are looked for
NEIGHBORS = 10


class Audit(NamedTuple):
    """What a run suspects of its N unlabeled samples, in their order.

    Attributes:
        suspicion: Higher is more suspicious, shape (N,).
        probability: Of an anomaly, in [0, 1], shape (N,); None where the run has none.
        flagged: Whether the score is above the threshold, bool, shape (N,).
        nearest: The nearest labeled normal sample and the nearest labeled anomaly, as indices into the training part,
            -1 where there is none, shape (N, 2).
        meta_gradient: The mean of -d over training, shape (N,); None for a method without one.
    """

    suspicion: Tensor
    probability: Tensor | None
    flagged: Tensor
    nearest: np.ndarray
    meta_gradient: Tensor | None


@torch.no_grad()
def audit(detector: BaseDetector, data: PollutedData, score: Tensor, decision: Decision) -> Audit:
    """Looks at the unlabeled samples.

    Args:
        detector: The detector, which is trained; on the CPU, as the data are.
        data: What it has learned from.
        score: Its scores of the unlabeled samples, shape (N,).
        decision: What they mean.
    """
    return Audit(
        suspicion=smoothed(score, data.unlabeled),
        probability=None if decision.calibration is None else decision.calibration.at(score),
        flagged=score > decision.threshold,
        nearest=nearest_labeled(detector, data),
        meta_gradient=detector.meta_gradient(),
    )
