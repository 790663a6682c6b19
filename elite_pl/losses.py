"""Losses of one batch, the margin and the center, as pure functions.

Labels are `+1` (normal), `-1` (anomaly) and `0` (unlabeled); a higher score means more anomalous.
Equation numbers refer to Zhang et al., "ELITE: Robust Deep Anomaly Detection with Meta Gradient", KDD 2021.
"""

import torch
from torch import Tensor


def hinge(score: Tensor, label: Tensor, margin: Tensor | float) -> Tensor:
    """The loss of each sample (Eq. 4): pulls normal samples to score 0, pushes anomalies up to the margin.

    `l(x, y) = Ω(x)` for y = +1 and `max(C - Ω(x), 0)` for y = -1.

    Args:
        score: Ω, shape (n,), not negative.
        label: +1 or -1 for each sample, shape (n,).
        margin: C, a positive number.

    Returns:
        Losses, shape (n,).
    """
    return torch.where(label > 0, score, (margin - score).clamp(min=0))


def inverse_distance(score: Tensor, label: Tensor, epsilon: float) -> Tensor:
    """The loss of each labeled sample in Deep SAD: `(Ω + ε)^y`, the score of a normal, its inverse for an anomaly.

    Source: Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, Eq. 7.

    Args:
        score: Squared distance to the center, shape (n,).
        label: +1 or -1 for each sample, shape (n,).
        epsilon: Keeps the inverse finite at the center.

    Returns:
        Losses, shape (n,).
    """
    return (score + epsilon) ** label.to(score.dtype)


def margin_mean_initial(score: Tensor) -> Tensor:
    """The paper's margin C (Sec. 4.2.1): the mean score that the initial network gives the training samples.

    Args:
        score: Initial scores of all training samples, shape (n,).

    Returns:
        C, shape ().
    """
    return score.mean()


def margin_max_labeled(labeled_score: Tensor) -> Tensor:
    """The authors' own margin C: the largest score that the initial network gives a labeled sample.

    Args:
        labeled_score: Initial scores of the labeled samples, shape (m,), m > 0.

    Returns:
        C, shape ().
    """
    return labeled_score.max()


def center_of(output: Tensor, minimum: float = 0.1) -> Tensor:
    """The center o of the hypersphere: the mean output, kept away from 0 in every coordinate.

    A coordinate of 0 could be matched by zero weights, which is the trivial solution. Source: Ruff et al., "Deep
    One-Class Classification", ICML 2018, Sec. 3.3, and the authors' code for the number.

    Args:
        output: What the initial network makes of all training samples, shape (n, k).
        minimum: Coordinates closer to 0 than this are pushed to it, keeping their sign; 0 goes to `+minimum`.

    Returns:
        o, shape (k,).
    """
    center = output.mean(dim=0)
    pushed = torch.where(center < 0, -minimum, minimum)
    return torch.where(center.abs() < minimum, pushed, center)
