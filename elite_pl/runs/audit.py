"""Which unlabeled training samples look like anomalies, and which labeled ones they resemble."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elite_pl.algorithm import metrics
from elite_pl.data.datamodule import PollutedData, Samples
from elite_pl.data.gradients import SMALLEST, OrientedGradients
from elite_pl.methods.auto import Auto
from elite_pl.methods.base import BaseDetector
from elite_pl.runs.decision import Decision

NEIGHBORS = 10
REFERENCES = 10_000  # samples among which neighbors are looked for
SIDE = 32  # pixels of the sides to which images shrink before they are compared
CELLS, ORIENTATIONS = 7, 9  # of their gradients, as in conf/feature_map/oriented_gradients.yaml
AT_ONCE = 50  # images whose gradients are taken at a time: they need two hundred times the memory of gray bytes
FIRST = 50  # samples that a person may look at


class Audit(NamedTuple):
    """The audit of the N unlabeled samples of a run, in their order.

    Attributes:
        suspicion: Higher is more suspicious, shape (N,).
        probability: Of an anomaly by the sample's score, in [0, 1], shape (N,); None where the run has none.
        flagged: Whether its score is above the threshold, bool, shape (N,).
        nearest: The nearest labeled normal sample and the nearest labeled anomaly, as indices into the training set,
            -1 where there is none, shape (N, 2).
        meta_gradient: The mean of -d over training, shape (N,); None for a method without one.
    """

    suspicion: Tensor
    probability: Tensor | None
    flagged: Tensor
    nearest: np.ndarray
    meta_gradient: Tensor | None


def audit(detector: BaseDetector, data: PollutedData, score: Tensor, decision: Decision) -> Audit:
    """Audits the unlabeled samples.

    Args:
        detector: The detector, which is trained; on the CPU, as the data are.
        data: Its training data.
        score: Its scores of the unlabeled samples, shape (N,).
        decision: Their meaning.
    """
    images = data.features is not None or data.arrays.x_train.ndim == 4
    by_neighbors = images and not isinstance(detector, Auto)  # whose graph has looked at neighbors already
    return Audit(
        suspicion=smoothed(score, data.unlabeled) if by_neighbors else score,
        probability=None if decision.calibration is None else decision.calibration.at(score),
        flagged=score > decision.threshold,
        nearest=nearest_labeled(data),
        meta_gradient=detector.mean_meta_gradient(),
    )


def smoothed(score: Tensor, samples: Samples) -> Tensor:
    """The mean of each sample's score and that of its neighbors, since anomalies of a kind look alike.

    Neighbors are the `NEIGHBORS` nearest samples by oriented gradients. Measured on MNIST and Fashion-MNIST that finds
    more of what is hidden than the score, than neighbors in pixels, and than those in the embedding, which the network
    has drawn together; rows of tables are better off without, and so are the scores of `auto`.

    Args:
        score: Scores of the samples, shape (N,), N > 1.
        samples: The samples.
    """
    own = torch.linspace(0, len(score) - 1, min(len(score), REFERENCES)).long()
    reference = torch.cat([compared(samples[part]) for part in own.split(1000)])
    k, means, start = min(NEIGHBORS, len(own) - 1), [], 0
    for sample in in_order(samples):
        distance = torch.cdist(sample, reference)
        distance[torch.arange(start, start + len(sample))[:, None] == own] = torch.inf  # the sample itself
        means.append(score[own][distance.topk(k, largest=False).indices].mean(1))
        start += len(sample)
    return (score + torch.cat(means)) / 2


def nearest_labeled(data: PollutedData) -> np.ndarray:
    """The nearest labeled samples of each unlabeled one; returns as `Audit.nearest`."""
    found = np.full((len(data.unlabeled), 2), -1, dtype=np.int64)
    if len(data.labeled) == 0:
        return found
    labeled, label = torch.cat([*in_order(data.labeled)]), data.labeled_y
    start = 0
    for sample in in_order(data.unlabeled):
        distance, rows = torch.cdist(sample, labeled), slice(start, start + len(sample))
        for column, kind in enumerate((1, -1)):
            if (label == kind).any():
                found[rows, column] = data.split.labeled[distance.where(label == kind, torch.inf).argmin(1)]
        start = rows.stop
    return found


def in_order(samples: Samples) -> Iterator[Tensor]:
    """All samples, in batches of shape (n, features)."""
    return (compared(batch) for batch in samples.in_order())


def compared(sample: Tensor) -> Tensor:
    """Samples (n, ...) as vectors whose distances say what looks alike, shape (n, features)."""
    if sample.ndim == 4 and max(sample.shape[2:]) > SIDE:
        sample = functional.adaptive_avg_pool2d(sample, SIDE)
    if sample.ndim == 4 and min(sample.shape[2:]) >= SMALLEST:
        gradients = OrientedGradients(CELLS, ORIENTATIONS, torch.ones(()))
        sample = torch.cat([gradients(part.float()) for part in sample.split(AT_ONCE)])
    return sample.flatten(1).float()


def against_truth(found: Audit, hidden: Tensor) -> dict[str, float]:
    """Returns how well an audit ranks the hidden anomalies, for `metrics.json`.

    Args:
        found: The audit.
        hidden: Which samples are anomalies, bool, shape (N,).
    """
    count = int(hidden.sum())
    if not 0 < count < len(hidden):
        return {}
    values = {"audit/auroc": metrics.roc_auc(found.suspicion, hidden)}
    if found.meta_gradient is not None:
        values["audit/auroc_meta_gradient"] = metrics.roc_auc(found.meta_gradient, hidden)
    truth = hidden[found.suspicion.argsort(descending=True, stable=True)].double()
    if len(truth) >= FIRST:
        values[f"audit/precision_at_{FIRST}"] = float(truth[:FIRST].mean())
    return values | {"audit/precision_at_hidden": float(truth[:count].mean())}
