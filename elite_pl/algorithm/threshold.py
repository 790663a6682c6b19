"""The score above which a sample is called an anomaly. Torch and NumPy only."""

import numpy as np
import torch
from torch import Tensor


def choose_threshold(labeled: Tensor, label: Tensor, unlabeled: Tensor) -> float:
    """The score above which a sample is called an anomaly.

    The one that gives the labeled samples the highest balanced accuracy (Youden's J), half-way to the next score;
    without labels of both kinds, the 95th percentile of the unlabeled scores.

    Args:
        labeled: Scores of the labeled samples, shape (m,).
        label: +1 or -1, shape (m,).
        unlabeled: Scores of the unlabeled samples, shape (N,).
    """
    if not ((label > 0).any() and (label < 0).any()):
        return float(np.quantile(unlabeled.double().numpy(), 0.95))
    values = labeled.double().unique()
    candidates = (values + torch.cat([values[1:], values[-1:] + values[-1:].abs() + 1])) / 2
    anomalous = labeled.double() > candidates[:, None]
    gain = anomalous[:, label < 0].double().mean(1) - anomalous[:, label > 0].double().mean(1)
    return float(candidates[gain.argmax()])


def agreeing_threshold(score: Tensor, suspicion: Tensor) -> Tensor:
    """The score that parts samples as another quantity does: above it, the suspicions have the greatest sum.

    Args:
        score: (n,).
        suspicion: Positive = anomalous, shape (n,).

    Returns:
        Half-way to the next score, shape (); the greatest score where no sum is positive.
    """
    ordered, order = score.sort(descending=True)
    total = suspicion[order].cumsum(0)
    last = total.argmax()
    middle = (ordered[last] + ordered[(last + 1).clamp(max=len(score) - 1)]) / 2
    return torch.where(total[last] > 0, middle, ordered[0])
