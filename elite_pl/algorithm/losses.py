"""Losses of one batch, the margin and the center, as pure functions.

Labels are `+1` (normal), `-1` (anomaly) and `0` (unlabeled); a higher score means more anomalous.
Equation numbers refer to Zhang et al., "ELITE: Robust Deep Anomaly Detection with Meta Gradient", KDD 2021.
"""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss


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

    Source: Eq. 3 of the ELITE paper, after Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, arXiv
    1906.02694; ε is that of its authors' code.

    Args:
        score: Squared distance to the center, shape (n,).
        label: +1 or -1 for each sample, shape (n,).
        epsilon: Keeps the inverse finite at the center.

    Returns:
        Losses, shape (n,).
    """
    return (score + epsilon) ** label.to(score.dtype)


def mean_where(mask: Tensor, values: Tensor) -> Tensor:
    """The mean of some values, shape (); `values[mask]` would make a GPU wait for their number.

    Args:
        mask: Which of them, bool, shape (n,), one at least.
        values: Shape (n,).
    """
    return torch.where(mask, values, 0).sum() / mask.sum()


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


def center_of(mean: Tensor, minimum: float = 0.1) -> Tensor:
    """The center o of the hypersphere: the mean output, kept away from 0 in every coordinate.

    A coordinate of 0 could be matched by zero weights, which is the trivial solution. Source: Ruff et al., "Deep
    One-Class Classification", ICML 2018, and the authors' code for the number.

    Args:
        mean: That of what the initial network makes of all training samples, shape (k,).
        minimum: Coordinates closer to 0 than this are pushed to it, keeping their sign; 0 goes to `+minimum`.

    Returns:
        o, shape (k,).
    """
    pushed = torch.where(mean < 0, -minimum, minimum)
    return torch.where(mean.abs() < minimum, pushed, mean)


UPDATES = {"hard": (0.0, 1.0), "soft": (0.5, 0.5), "refine": (0.0, 0.0)}


def latent_outlier_exposure(
    normal_loss: Tensor, anomaly_loss: Tensor, contamination: float | Tensor, update: str
) -> Tensor:
    """The loss of a batch of which the most suspicious samples are taken for anomalies.

    The `contamination * n` samples with the largest `loss_n - loss_a` contribute `w_n loss_n + w_a loss_a`, the others
    `loss_n`. The weights (w_n, w_a) are (0, 1) for `"hard"`, (1/2, 1/2) for `"soft"` and (0, 0) for `"refine"`, which
    drops them.

    Source: Qiu et al., "Latent Outlier Exposure for Anomaly Detection with Contaminated Data", ICML 2022, arXiv
    2202.08088: block coordinate descent over weights and labels y in {0, 1} or {0, 1/2}, of which a share is bound to
    be anomalous.

    Args:
        normal_loss: loss_n of each sample, shape (n,).
        anomaly_loss: loss_a of each sample, shape (n,).
        contamination: Share of the batch that is taken for anomalies, in [0, 1].
        update: `"hard"`, `"soft"` or `"refine"`.

    Returns:
        The mean over the batch, shape ().
    """
    normal_weight, anomaly_weight = UPDATES[update]
    count = round(float(contamination) * len(normal_loss))
    most = (normal_loss - anomaly_loss).detach().topk(count).indices
    suspicious = torch.zeros_like(normal_loss, dtype=torch.bool).scatter(0, most, True)
    flipped = normal_weight * normal_loss + anomaly_weight * anomaly_loss
    return torch.where(suspicious, flipped, normal_loss).mean()


def positive_unlabeled(
    unlabeled_loss: Tensor, positive_normal_loss: Tensor, positive_loss: Tensor, contamination: float | Tensor
) -> Tensor:
    """The risk of a detector from unlabeled samples and labeled anomalies, the positives.

    `α E_A[loss_a] + |E_U[loss_n] - α E_A[loss_n]|`. The unlabeled samples hold a share α of anomalies, so that
    `(1 - α) E_N[loss_n] = E_U[loss_n] - α E_A[loss_n]`: no labeled normal sample is needed. The risk of the normal
    samples cannot be negative, but its estimate can, and would then reward any growth: hence its absolute value.

    Source: Takahashi et al., "Deep Positive-Unlabeled Anomaly Detection for Contaminated Unlabeled Data", 2024,
    arXiv 2405.18929.

    Args:
        unlabeled_loss: loss_n of the unlabeled samples, shape (n,).
        positive_normal_loss: loss_n of the labeled anomalies, shape (m,), or its mean.
        positive_loss: loss_a of the labeled anomalies, shape (m,), or its mean.
        contamination: α, the share of anomalies among the unlabeled samples, in [0, 1].

    Returns:
        The risk, shape ().
    """
    normal_risk = unlabeled_loss.mean() - contamination * positive_normal_loss.mean()
    return contamination * positive_loss.mean() + normal_risk.abs()


def deviation(
    score: Tensor, label: Tensor, margin: Tensor | float, prior_mean: Tensor | float, prior_std: Tensor | float
) -> Tensor:
    """The deviation loss of each sample: a normal one shall score like the prior's mean, an anomaly far above it.

    `dev = (Ω - μ) / σ`; the loss is `|dev|` for y = +1 and `max(a - dev, 0)` for y = -1.

    Source: Pang et al., "Deep Anomaly Detection with Deviation Networks", KDD 2019.

    Args:
        score: Ω, any real number, shape (n,).
        label: +1 or -1 for each sample, shape (n,).
        margin: a, in standard deviations of the prior.
        prior_mean: μ, the mean of reference scores drawn from the prior.
        prior_std: σ, their standard deviation.

    Returns:
        Losses, shape (n,).
    """
    dev = (score - prior_mean) / prior_std
    return torch.where(label > 0, dev.abs(), (margin - dev).clamp(min=0))


def relation_error(relation: Tensor, anomalies: Tensor, margin: Tensor | float) -> Tensor:
    """The loss of each pair of samples: `|r - y|`, with y = C for two anomalies, C / 2 for one, and 0 for none.

    Source: Pang et al., "Deep Weakly-supervised Anomaly Detection", KDD 2023, arXiv 1910.13601; the paper's C is 8.

    Args:
        relation: r, shape (n,).
        anomalies: How many of the two are labeled anomalies, 0, 1 or 2, shape (n,).
        margin: C.

    Returns:
        Losses, shape (n,).
    """
    return (relation - margin * anomalies / 2).abs()


def interpolation_error(mixed: Tensor, target: Tensor, mean: Tensor) -> Tensor:
    """The loss of each mixture of two samples: `s(ỹ - Ω(x̃)) + s(λΩ(x) + (1 - λ)Ω(x') - Ω(x̃))`.

    s is the smooth L1 loss, `e² / 2` for abs(e) < 1 and `abs(e) - 1/2` beyond, and `x̃ = λx + (1 - λ)x'`. The first
    part fits the mixed label, the second asks the score to be linear in between.

    Source: Xu et al., "RoSAS: Deep semi-supervised anomaly detection with contamination-resilient continuous
    supervision", Information Processing & Management 2023, arXiv 2307.13239.

    Args:
        mixed: Ω(x̃), shape (n,).
        target: ỹ, the mixed labels, shape (n,).
        mean: The mixed scores `λΩ(x) + (1 - λ)Ω(x')`, shape (n,).

    Returns:
        Losses, shape (n,).
    """
    return smooth_l1_loss(mixed, target, reduction="none") + smooth_l1_loss(mixed, mean, reduction="none")


def balanced_weights(loss: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Weights of several losses, larger for those that have fallen less: the softmax of `loss / before / T`.

    Source: as in `interpolation_error`; a loss that was 0 before has no weight.

    Args:
        loss: Their values, shape (k,); no gradient goes through the weights.
        before: Their means in the epoch before, shape (k,).
        temperature: T.

    Returns:
        Positive weights of sum 1, shape (k,).
    """
    return torch.where(before > 0, loss.detach() / before / temperature, -torch.inf).softmax(0)


def reconstruction_error(sample: Tensor, reconstruction: Tensor) -> Tensor:
    """The L2,1 loss of each sample of an autoencoder: `||x - x̂||_2`, not squared, so that outliers weigh less.

    Source: Lai et al., "Robust Subspace Recovery Layer for Unsupervised Anomaly Detection", ICLR 2020, arXiv
    1904.00152: L_AE at p = 1.

    Args:
        sample: x, shape (n, ...).
        reconstruction: x̂, shape (n, ...).

    Returns:
        Losses, shape (n,).
    """
    return torch.linalg.vector_norm((sample - reconstruction).flatten(1), dim=1)


def subspace_error(output: Tensor, subspace: Tensor) -> Tensor:
    """The distance of each output of an encoder from a subspace: `||y - Aᵀ A y||_2`, not squared.

    Source: as in `reconstruction_error`, L_RSR1 at q = 1.

    Args:
        output: y, shape (n, D).
        subspace: A, shape (d, D).

    Returns:
        Losses, shape (n,).
    """
    return torch.linalg.vector_norm(output - output @ subspace.T @ subspace, dim=1)


def orthogonality_error(subspace: Tensor) -> Tensor:
    """The distance of A from orthonormal rows, with which `Aᵀ A` is a projection: `||A Aᵀ - I||_F²`.

    Source: as in `reconstruction_error`, L_RSR2; the published code has the mean of the entries, a constant factor.

    Args:
        subspace: A, shape (d, D).

    Returns:
        The error, shape ().
    """
    identity = torch.eye(len(subspace), dtype=subspace.dtype, device=subspace.device)
    return (subspace @ subspace.T - identity).square().sum()
