"""How many of the unlabeled samples are anomalies, estimated from the scores of a few labeled ones. Torch only."""

import math

import torch
from torch import Tensor


def estimate(labeled: Tensor, label: Tensor, unlabeled: Tensor) -> float:
    """The share of anomalies among unlabeled samples, by importance weights on the labeled ones.

    `α = 1/m Σ_k [y_k = -1] p(s_k) / q(s_k)`, where p is the density of the unlabeled scores and q that of the labeled
    ones, by Gaussian kernels whose bandwidth is the range of all scores over m. The weights undo that samples were
    chosen for labeling by their scores. They cannot undo a choice by class: where the scores of both classes overlap,
    labels that are half anomalies draw the estimate towards 1/2.

    Source: Li et al., "Deep Anomaly Detection under Labeling Budget Constraints", ICML 2023, arXiv 2302.07832, the
    estimate of the contamination ratio; the bandwidth is that of the authors' experiments.

    Args:
        labeled: Scores of the labeled samples, shape (m,), m > 0.
        label: +1 or -1 for each, shape (m,).
        unlabeled: Scores of the unlabeled samples, shape (N,), N > 0.

    Returns:
        α in [0, 1].
    """
    labeled, unlabeled = labeled.double(), unlabeled.double()
    low, high = torch.cat([labeled, unlabeled]).aminmax()
    bandwidth = float(high - low) / len(labeled)
    if bandwidth == 0:  # the scores say nothing: the weights are all 1
        return float((label < 0).double().mean())
    weight = density(labeled, unlabeled, bandwidth) / density(labeled, labeled, bandwidth)
    return min(float((weight * (label < 0)).mean()), 1.0)


def density(at: Tensor, samples: Tensor, bandwidth: float) -> Tensor:
    """A Gaussian kernel density estimate.

    Args:
        at: Where the density is asked for, shape (m,).
        samples: What it is estimated from, shape (n,).
        bandwidth: Standard deviation of the kernel.

    Returns:
        The density, shape (m,).
    """
    distance = (at[:, None] - samples) / bandwidth
    return torch.exp(-0.5 * distance.square()).mean(1) / (bandwidth * math.sqrt(2 * math.pi))
