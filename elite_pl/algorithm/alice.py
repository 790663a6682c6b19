"""ALICE: the meta-gradient that tells, sample by sample, what is hidden in the training data. Torch only.

Read it beside Algorithm 1 of Zhang et al., "ELITE: Robust Deep Anomaly Detection with Meta Gradient", KDD 2021. Two
functions of the same signature compute the same quantities:

* `virtual_step` is Algorithm 1 literally: a virtual update of functional weights, differentiated twice. The reference.
* `jvp` gets them from one forward pass over dual numbers. The virtual step is taken at ŷ = 0, where θ̂ = θ, so that
  `M_i = -(η_θ / n) <∇L_v(θ), ∇Ω_i(θ)>` exactly: a Jacobian-vector product of `θ -> Ω(x; θ)` along `v = ∇L_v(θ)`,
  batch normalisation included. The same pass yields the scores with their reverse graph, ready for the update.

Neither changes the weights; only the pass whose scores are returned moves running statistics.

Errata of the paper that this file corrects: the η_y of Algorithm 1, line 10, is undefined there (1 here); the ∇Ω with a
label in line 13 means ∇l; Eq. 11 lacks the 1/n of Eq. 13; the sentence after Eq. 10 has its sign reversed.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.algorithm.losses import hinge

WEIGHTS = ("raw", "mean", "signed")


class Inference(NamedTuple):
    """What one step knows of its unlabeled batch of n and labeled batch of m samples.

    Attributes:
        score: Ω of the unlabeled batch, shape (n,), with its reverse graph.
        d: `<∇L_v, ∇Ω_i>` for each unlabeled sample, shape (n,); positive = normal.
        meta_gradient: M (Eq. 11 to 13), shape (n,).
        pseudo_label: ŷ = -sign(M) (Eq. 10), +1 or -1, shape (n,); +1 where M is 0.
        weight: α (Eq. 14), shape (n,); `"signed"`: that of Ω itself, negative where the pseudo-label is -1.
        labeled_score: Ω of the labeled batch before the update, shape (m,), detached.
        labeled_loss: L_v (Eq. 6) before the update, shape (), detached.
        labeled_gradient: v = ∇L_v(θ) by parameter name.
    """

    score: Tensor
    d: Tensor
    meta_gradient: Tensor
    pseudo_label: Tensor
    weight: Tensor
    labeled_score: Tensor
    labeled_loss: Tensor
    labeled_gradient: dict[str, Tensor]


def jvp(
    score: nn.Module,
    unlabeled: Tensor,
    labeled: Tensor,
    label: Tensor,
    margin: Tensor | float,
    *,
    learning_rate: float,
    meta_scale: float = 1.0,
    weights: str = "raw",
    labeled_statistics: str = "batch",
) -> Inference:
    """Infers what is hidden in an unlabeled batch, from one forward pass over dual numbers.

    Args:
        score: Ω: a module that maps samples (n, ...) to scores (n,).
        unlabeled: The unlabeled batch, shape (n, ...).
        labeled: The labeled batch, shape (m, ...).
        label: Its labels, +1 or -1, shape (m,).
        margin: C of Eq. 4.
        learning_rate: η_θ, the length of the virtual step.
        meta_scale: η_M of Eq. 14.
        weights: `"raw"`: α = η_M |M| (Eq. 14); `"mean"`: that, divided by the batch mean of |M|; `"signed"`: -η_M n M,
            the weight of Ω without a hinge (Eq. 16), of a virtual step on the sum of the losses.
        labeled_statistics: What batch normalisation uses in the labeled pass, see `frozen_statistics`.

    Returns:
        The inference.

    Raises:
        RuntimeError: See `derivative`.
    """
    theta = trainable(score)
    with frozen_statistics(score, labeled_statistics):
        labeled_score = score(labeled)
    labeled_loss = hinge(labeled_score, label, margin).mean()  # L_v(θ), Eq. 6
    gradients = torch.autograd.grad(labeled_loss, list(theta.values()), allow_unused=True, materialize_grads=True)
    v = dict(zip(theta, gradients, strict=True))

    unlabeled_score, d = derivative(score, unlabeled, v)
    meta_gradient = -(learning_rate / len(d)) * d  # Eq. 13
    pseudo_label, weight = _infer(meta_gradient, meta_scale, weights)
    return Inference(
        unlabeled_score,
        d,
        meta_gradient,
        pseudo_label,
        weight,
        labeled_score.detach(),
        labeled_loss.detach(),
        v,
    )


def derivative(score: nn.Module, sample: Tensor, v: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores of samples, and their derivatives along a direction of the weights, from one pass over dual numbers.

    Args:
        score: Ω: a module that maps samples (n, ...) to scores (n,).
        sample: The samples, shape (n, ...).
        v: The direction by parameter name.

    Returns:
        Ω with its reverse graph, shape (n,), and `<v, ∇Ω_i>`, shape (n,), detached.

    Raises:
        RuntimeError: If the network drops the tangent, as `torch.inference_mode` and some compiled code do silently.
    """
    theta = trainable(score)
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(theta[name], v[name]) for name in theta}
        value, d = forward_ad.unpack_dual(functional_call(score, dual, (sample,)))
    if d is None:
        raise RuntimeError("the forward pass dropped the tangent; use method.meta_gradient=virtual_step")
    return value, d.detach()


def virtual_step(
    score: nn.Module,
    unlabeled: Tensor,
    labeled: Tensor,
    label: Tensor,
    margin: Tensor | float,
    *,
    learning_rate: float,
    meta_scale: float = 1.0,
    weights: str = "raw",
    labeled_statistics: str = "batch",
) -> Inference:
    """The same by Algorithm 1, line by line, with functional weights and double backward; arguments as of `jvp`."""
    theta, n = trainable(score), len(unlabeled)
    length = learning_rate or 1.0  # M is proportional to it; a schedule may have come down to 0
    with frozen_statistics(score):
        virtual_score = score(unlabeled)
    pseudo_label = torch.zeros_like(virtual_score, requires_grad=True)  # line 7
    training_loss = (pseudo_label * virtual_score).sum() / n
    gradients = torch.autograd.grad(
        training_loss, list(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    theta_hat = {name: p - length * g for (name, p), g in zip(theta.items(), gradients, strict=True)}  # line 8

    with frozen_statistics(score, labeled_statistics):
        labeled_score = functional_call(score, theta_hat, (labeled,))
    labeled_loss = hinge(labeled_score, label, margin).mean()
    slope, *v = torch.autograd.grad(labeled_loss, [pseudo_label, *theta_hat.values()])  # line 10
    meta_gradient = (learning_rate / length) * slope
    pseudo_label, weight = _infer(meta_gradient, meta_scale, weights)
    return Inference(
        score(unlabeled),
        -(n / length) * slope,
        meta_gradient,
        pseudo_label,
        weight,
        labeled_score.detach(),
        labeled_loss.detach(),
        dict(zip(theta, v, strict=True)),
    )


def of_whole_batch(
    part: Inference, score: Tensor, d: Tensor, *, learning_rate: float, meta_scale: float, weights: str
) -> Inference:
    """The inference on a batch of which it was made part by part: n, and the mean of |M|, are those of the whole.

    Args:
        part: The inference on one of its parts, with the labeled batch that all parts have in common.
        score: Ω of the whole unlabeled batch, shape (n,).
        d: `<∇L_v, ∇Ω_i>` of the whole unlabeled batch, shape (n,).
        learning_rate: As of `jvp`, and so are the others.
        meta_scale: η_M.
        weights: α.
    """
    meta_gradient = -(learning_rate / len(d)) * d  # Eq. 13
    pseudo_label, weight = _infer(meta_gradient, meta_scale, weights)
    return part._replace(score=score, d=d, meta_gradient=meta_gradient, pseudo_label=pseudo_label, weight=weight)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """θ by name: the parameters that an update may change."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _infer(meta_gradient: Tensor, meta_scale: float, weights: str) -> tuple[Tensor, Tensor]:
    """Pseudo-labels and weights from the meta-gradient: lines 11 and 12 of Algorithm 1."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, not {weights!r}")
    pseudo_label = torch.where(meta_gradient > 0, -1.0, 1.0).to(meta_gradient.dtype)  # sign(0) = +1
    if weights == "signed":
        return pseudo_label, -meta_scale * len(meta_gradient) * meta_gradient
    weight = meta_scale * meta_gradient.abs()
    if weights == "mean":
        mean = meta_gradient.abs().mean()
        weight = torch.where(mean == 0, torch.zeros_like(weight), weight / mean)  # 0 where nothing is to be learned
    return pseudo_label, weight
