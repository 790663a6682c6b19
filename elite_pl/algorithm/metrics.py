"""Ranking metrics of anomaly scores: exact, with ties, for scores of any size.

`torchmetrics` sends scores outside [0, 1] through a float32 sigmoid, batch by batch, which ties distinct scores (its
issue 2819); it also takes -1/+1 labels and NaN scores without a word. Here scores are compared as they are, counted in
integers, and anything that has no ROC AUC is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


def roc_auc(scores: Tensor, is_anomaly: Tensor) -> float:
    r"""Area under the ROC curve: the chance that an anomaly scores above a normal sample, ties counted half.

    $$\mathrm{AUC} = \frac{1}{PN} \sum_{i\,\text{anomaly}} \sum_{j\,\text{normal}}
      \left( [\Omega_i > \Omega_j] + \tfrac12 [\Omega_i = \Omega_j] \right)$$

    This is the Mann-Whitney rank statistic with average ranks, in O(n log n); the sums are exact integers.

    Args:
        scores: (n,) finite, higher = more anomalous.
        is_anomaly: (n,) bool, or integers 0 and 1.

    Returns:
        The area, in [0, 1].

    Raises:
        ValueError: non-finite scores, labels other than 0 and 1, one kind of sample only, or shapes that do not match.

    Example:
        >>> roc_auc(torch.tensor([101.0, 102.0, 102.0, 103.0]), torch.tensor([False, False, True, True]))
        0.875
    """
    anomalous, normal = _counts_by_score(scores, is_anomaly)
    normal_below = normal.cumsum(0) - normal
    twice_the_wins = int((anomalous * (2 * normal_below + normal)).sum())
    return twice_the_wins / (2 * int(anomalous.sum()) * int(normal.sum()))


def roc_auc_with_error(scores: Tensor, is_anomaly: Tensor) -> tuple[float, float]:
    """The ROC AUC of a few samples, and its standard error.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982. Each kind counts one
    sample more, half right and half wrong, so that a perfect order of 20 samples is not certain.

    Args:
        scores: As in `roc_auc`.
        is_anomaly: As in `roc_auc`.

    Raises:
        ValueError: As in `roc_auc`.
    """
    area = roc_auc(scores, is_anomaly)
    p, n = int(is_anomaly.sum()) + 1, int((~is_anomaly).sum()) + 1
    a = (area * (p - 1) * (n - 1) + 0.5 * (p + n - 1)) / (p * n)
    variance = a * (1 - a) + (p - 1) * (a / (2 - a) - a * a) + (n - 1) * (2 * a * a / (1 + a) - a * a)
    return area, float((variance / (p * n)) ** 0.5)


def average_precision(scores: Tensor, is_anomaly: Tensor) -> float:
    r"""Area under the precision-recall curve, as scikit-learn defines it: no interpolation, tied scores are one step.

    $$\mathrm{AP} = \sum_t (R_t - R_{t-1}) P_t$$

    with precision P and recall R at the distinct scores t, from the highest down. A ranking by chance has the share of
    anomalies as its average precision: report that base rate beside it.

    Args:
        scores: (n,) finite, higher = more anomalous.
        is_anomaly: (n,) bool, or integers 0 and 1.

    Returns:
        The area, in (0, 1].

    Raises:
        ValueError: As in `roc_auc`.

    Example:
        >>> average_precision(torch.tensor([1.0, 3.0, 2.0, 4.0]), torch.tensor([False, False, True, True]))
        0.8333333333333333
    """
    anomalous, normal = (counts.flip(0) for counts in _counts_by_score(scores, is_anomaly))
    found = anomalous.cumsum(0)
    precision = found.double() / (found + normal.cumsum(0))
    return float((anomalous * precision).sum() / anomalous.sum())


def roc_auc_per_class(scores: Tensor, y: Tensor, normal_class: int) -> dict[int, float]:
    """ROC AUC of each anomaly class on its own against the normal samples.

    Args:
        scores: (n,) finite, higher = more anomalous.
        y: (n,) class ids.
        normal_class: Id of the normal class.

    Returns:
        Area by class id, ascending, without the normal class.

    Raises:
        ValueError: As in `roc_auc`.

    Example:
        >>> roc_auc_per_class(torch.tensor([0.0, 2.0, 1.0, 3.0]), torch.tensor([5, 5, 6, 7]), normal_class=5)
        {6: 0.5, 7: 1.0}
    """
    by_class = {}
    for anomaly_class in torch.unique(y).tolist():
        if anomaly_class != normal_class:
            pair = (y == normal_class) | (y == anomaly_class)
            by_class[anomaly_class] = roc_auc(scores[pair], y[pair] != normal_class)
    return by_class


class _RankMetric(Metric):
    """Keeps every score of every rank, since ranks cannot be averaged over batches or devices."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    is_anomaly: list[Tensor]
    function: Callable[[Tensor, Tensor], float]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("is_anomaly", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, is_anomaly: Tensor) -> None:
        """Adds a batch: (n,) scores and (n,) truth."""
        self.scores.append(scores.detach())
        self.is_anomaly.append(is_anomaly)

    def compute(self) -> Tensor:
        """Returns the metric over all samples so far, as a float64 scalar."""
        scores = dim_zero_cat(self.scores)
        return scores.new_tensor(type(self).function(scores, dim_zero_cat(self.is_anomaly)), dtype=torch.float64)


class RocAuc(_RankMetric):
    """`roc_auc` over batches and ranks.

    Call `update`, not the metric itself: a batch with one kind of sample has no ROC AUC of its own.

    Example:
        >>> metric = RocAuc()
        >>> metric.update(torch.tensor([101.0, 102.0]), torch.tensor([False, False]))
        >>> metric.update(torch.tensor([102.0, 103.0]), torch.tensor([True, True]))
        >>> metric.compute().item()
        0.875
    """

    function = staticmethod(roc_auc)


class AveragePrecision(_RankMetric):
    """`average_precision` over batches and ranks. Call `update`, not the metric itself.

    Example:
        >>> metric = AveragePrecision()
        >>> metric.update(torch.tensor([1.0, 3.0]), torch.tensor([False, False]))
        >>> metric.update(torch.tensor([2.0, 4.0]), torch.tensor([True, True]))
        >>> metric.compute().item()
        0.8333333333333333
    """

    function = staticmethod(average_precision)


def _counts_by_score(scores: Tensor, is_anomaly: Tensor) -> tuple[Tensor, Tensor]:
    """Counts anomalies and normal samples at every distinct score, ascending: two int64 tensors of one length."""
    scores, is_anomaly = scores.detach().cpu().double(), is_anomaly.detach().cpu()
    if scores.ndim != 1 or scores.shape != is_anomaly.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and is_anomaly {tuple(is_anomaly.shape)}: both must be (n,)")
    if not ((is_anomaly == 0) | (is_anomaly == 1)).all():
        raise ValueError("is_anomaly must be bool, or 0 and 1; for labels in +1/-1 pass `labels == -1`")
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).sum())
        raise ValueError(f"{bad} of {len(scores)} scores are not finite: such samples have no rank")
    is_anomaly = is_anomaly.bool()
    if is_anomaly.all() or not is_anomaly.any():
        raise ValueError(f"{int(is_anomaly.sum())} anomalies among {len(scores)} samples: both kinds are needed")
    _, group = torch.unique(scores, return_inverse=True)
    n_groups = int(group.max()) + 1
    anomalous = torch.bincount(group[is_anomaly], minlength=n_groups)
    return anomalous, torch.bincount(group[~is_anomaly], minlength=n_groups)
