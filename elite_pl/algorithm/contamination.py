"""Estimates the share of anomalies among unlabeled samples from the scores of a few labeled ones. Torch only."""

import math

import torch
from torch import Tensor

STEPS, TOLERANCE = 1000, 1e-6  # of expectation maximization


def estimate(labeled: Tensor, label: Tensor, unlabeled: Tensor) -> float:
    """Estimates the share of anomalies among unlabeled samples, as the proportion of a mixture.

    α maximizes the likelihood of the unlabeled scores under `(1 - α) p_n(s) + α p_a(s)`, where p_n and p_a are the
    densities of the labeled scores of each class, by Gaussian kernels whose bandwidth is the range of those scores over
    m. So the labeled samples must be a random draw of each class, but the classes' shares among them may be any.

    Source: expectation maximization for a change of class priors, Saerens et al., "Adjusting the Outputs of a
    Classifier to New a Priori Probabilities", Neural Computation 2002. SOEL has importance weights p(s) / q(s) in its
    place, which undo that samples were chosen by their scores; where they were chosen by class, as here, those draw the
    estimate toward 1/2. The bandwidth is SOEL's: Li et al., "Deep Anomaly Detection under Labeling Budget
    Constraints", ICML 2023, arXiv 2302.07832.

    Args:
        labeled: Scores of the labeled samples, of both classes, shape (m,).
        label: +1 or -1 for each, shape (m,).
        unlabeled: Scores of the unlabeled samples, shape (N,), N > 0.

    Returns:
        α in [0, 1].
    """
    labeled, unlabeled = labeled.double(), unlabeled.double()
    low, high = labeled.aminmax()  # of these: one unlabeled outlier must not decide the range
    bandwidth = float(high - low) / len(labeled)
    if bandwidth == 0:  # the scores say nothing
        return float((label < 0).double().mean())
    normal, anomalous = (log_density(unlabeled, labeled[label == kind], bandwidth) for kind in (1, -1))
    share = 0.5
    for _ in range(STEPS):
        posterior = torch.sigmoid(anomalous - normal + math.log(share) - math.log1p(-share))
        before, share = share, float(posterior.mean())
        if not 0 < share < 1:
            break
        if abs(share - before) < TOLERANCE:
            break
    return share


def log_density(at: Tensor, samples: Tensor, bandwidth: float) -> Tensor:
    """The logarithm of a Gaussian kernel density estimate: finite far from all samples, where the density is not.

    Args:
        at: Where the density is asked for, shape (m,).
        samples: The samples from which it is estimated, shape (n,).
        bandwidth: Standard deviation of the kernel.

    Returns:
        Its logarithm, shape (m,).
    """
    distance = (at[:, None] - samples) / bandwidth
    return torch.logsumexp(-0.5 * distance.square(), 1) - math.log(len(samples) * bandwidth * math.sqrt(2 * math.pi))
