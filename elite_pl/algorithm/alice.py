"""ALICE: the meta-gradient that tells hidden anomalies from normal samples in the training data. Torch only.

Read it beside Algorithm 1 of Zhang et al., "ELITE: Robust Deep Anomaly Detection with Meta Gradient", KDD 2021. Two
functions of the same signature compute the same quantities:

* `virtual_step` is Algorithm 1 literally: a virtual update of functional weights, differentiated twice. The reference.
* `jvp` gets them from one forward pass over dual numbers. The virtual step is taken at ŷ = 0, where θ̂ = θ, so that
  `M_i = -(η_θ / n) <∇L_v(θ), ∇Ω_i(θ)>` exactly: a Jacobian-vector product of `θ -> Ω(x; θ)` along `v = ∇L_v(θ)`,
  batch normalization included. The same pass yields the scores with their autograd graph, ready for the update.

Neither changes the weights; only the pass whose scores are returned moves running statistics.

`jvp` is made of `labeled_gradient`, `derivative` and `infer`, which take weights and buffers explicitly. They treat the
last axis as the samples and carry axes before it along: with a module that maps stacked samples (k, n, ...) to scores
(k, n) by stacked weights and buffers, they make the steps of k models at once.

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
from elite_pl.algorithm.tangent import FastTangents

WEIGHTS = ("raw", "mean", "drop", "signed")

State = dict[str, Tensor]  # weights, buffers or directions by name


class Inference(NamedTuple):
    """The result of one step on an unlabeled batch of n and a labeled batch of m samples.

    Attributes:
        score: Ω of the unlabeled batch, shape (n,), with its autograd graph.
        d: `<∇L_v, ∇Ω_i>` for each unlabeled sample, shape (n,); positive = normal.
        meta_gradient: M (Eq. 11 to 13), shape (n,).
        pseudo_label: ŷ = -sign(M) (Eq. 10), +1 or -1, shape (n,); +1 where M is 0. With a contamination, M less its
            quantile takes the place of M here and in α.
        weight: α (Eq. 14), shape (n,); `"signed"`: that of Ω itself, negative where the pseudo-label is -1.
        labeled_gradient: v = ∇L_v(θ) by name, see `state`.
        labeled_score: Ω of the labeled batch before the update, shape (m,), detached.
        labeled_loss: L_v (Eq. 6) before the update, shape (), detached.
    """

    score: Tensor
    d: Tensor
    meta_gradient: Tensor
    pseudo_label: Tensor
    weight: Tensor
    labeled_gradient: State
    labeled_score: Tensor
    labeled_loss: Tensor


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
    contamination: float | None = None,
    labeled_statistics: str = "batch",
) -> Inference:
    """Infers pseudo-labels and weights of an unlabeled batch, from one forward pass over dual numbers.

    Args:
        score: Ω: a module that maps samples (n, ...) to scores (n,).
        unlabeled: The unlabeled batch, shape (n, ...).
        labeled: The labeled batch, shape (m, ...).
        label: Its labels, +1 or -1, shape (m,).
        margin: C of Eq. 4.
        learning_rate: η_θ, the length of the virtual step.
        meta_scale: η_M of Eq. 14.
        weights: `"raw"`: α = η_M |M| (Eq. 14); `"mean"`: that, divided by the batch mean of |M|; `"drop"`: 1 where the
            pseudo-label is +1, else 0; `"signed"`: -η_M n M, the weight of Ω without a hinge (Eq. 16), of a virtual
            step on the sum of the losses.
        contamination: Which share of the batch gets the pseudo-label -1: those of the smallest d. None: those of d < 0.
        labeled_statistics: The statistics of batch normalization in the labeled pass, see `frozen_statistics`.

    Returns:
        The inference.

    Raises:
        RuntimeError: If the network drops the tangent, see `derivative`.
        ValueError: If `weights` or `labeled_statistics` has no such value.
    """
    theta, buffers = state(score)
    v, *of_labeled = labeled_gradient(score, theta, buffers, labeled, label, margin, labeled_statistics)
    value, d = derivative(score, theta, buffers, unlabeled, v)
    return infer(
        value,
        d,
        v,
        *of_labeled,
        learning_rate=learning_rate,
        meta_scale=meta_scale,
        weights=weights,
        contamination=contamination,
    )


def labeled_gradient(
    score: nn.Module,
    theta: State,
    buffers: State,
    labeled: Tensor,
    label: Tensor,
    margin: Tensor | float,
    statistics: str = "batch",
) -> tuple[State, Tensor, Tensor]:
    """The gradient of the validation loss; its pass leaves the running statistics alone.

    Args:
        score: Ω, of which the architecture and the mode are used.
        theta: Its weights by name, which require gradients, see `state`.
        buffers: Its buffers by name.
        labeled: The labeled batch, shape (..., m, ...).
        label: Its labels, +1 or -1, shape (m,) or (..., m).
        margin: C of Eq. 4, of a shape that is broadcast to that of the scores.
        statistics: Those of batch normalization, see `frozen_statistics`.

    Returns:
        v = ∇L_v(θ) by name; Ω of the labeled batch, shape (..., m), and L_v (Eq. 6), shape (...), both detached.
    """
    with frozen_statistics(score, statistics):
        labeled_score = _call(score, theta, buffers, labeled)
    loss = hinge(labeled_score, label, margin).mean(-1)
    # Of the sum, because stacked networks do not depend on each other; for `grad_outputs`, PyTorch would import SymPy.
    v = torch.autograd.grad(loss.sum(), list(theta.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(theta, v, strict=True)), labeled_score.detach(), loss.detach()


def derivative(score: nn.Module, theta: State, buffers: State, sample: Tensor, v: State) -> tuple[Tensor, Tensor]:
    """Scores of samples, and their derivatives along a direction of the weights, from one pass over dual numbers.

    Args:
        score: Ω, of which the architecture and the mode are used.
        theta: Its weights by name.
        buffers: Its buffers by name; in training mode the pass moves the running statistics among them.
        sample: The samples, shape (..., n, ...).
        v: The direction by name.

    Returns:
        Ω with its autograd graph, and `<v, ∇Ω_i>`, detached; both of shape (..., n).

    Raises:
        RuntimeError: If the network drops the tangent, as `torch.inference_mode` and some compiled code do silently.
    """
    with forward_ad.dual_level(), FastTangents():
        dual = {name: forward_ad.make_dual(theta[name], v[name]) for name in theta}
        value, d = forward_ad.unpack_dual(_call(score, dual, buffers, sample))
    if d is None:
        raise RuntimeError("the forward pass dropped the tangent; use method.meta_gradient=virtual_step")
    return value, d.detach()


def infer(
    score: Tensor,
    d: Tensor,
    v: State,
    labeled_score: Tensor,
    labeled_loss: Tensor,
    *,
    learning_rate: float,
    meta_scale: float = 1.0,
    weights: str = "raw",
    contamination: float | None = None,
) -> Inference:
    """Infers pseudo-labels and weights of a whole unlabeled batch from its derivatives.

    Args:
        score: Ω of the batch, shape (..., n).
        d: `<v, ∇Ω_i>`, shape (..., n).
        v: Returned by `labeled_gradient`, as are the next two.
        labeled_score: Ω of the labeled batch.
        labeled_loss: L_v.
        learning_rate: η_θ; this and the others are as in `jvp`.
        meta_scale: η_M.
        weights: The rule of α.
        contamination: The rule of ŷ.
    """
    meta_gradient = -(learning_rate / d.shape[-1]) * d  # Eq. 13
    pseudo_label, weight = _pseudo_labels(meta_gradient, meta_scale, weights, contamination)
    return Inference(score, d, meta_gradient, pseudo_label, weight, v, labeled_score, labeled_loss)


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
    contamination: float | None = None,
    labeled_statistics: str = "batch",
) -> Inference:
    """The same by Algorithm 1, line by line, with functional weights and double backward; arguments as in `jvp`."""
    theta, buffers = state(score)
    parameters, n = list(dict.fromkeys(theta.values())), len(unlabeled)
    length = learning_rate or 1.0  # M is proportional to it; a schedule may have come down to 0
    with frozen_statistics(score):
        virtual_score = score(unlabeled)
    pseudo_label = torch.zeros_like(virtual_score, requires_grad=True)  # line 7
    training_loss = (pseudo_label * virtual_score).sum() / n
    gradients = torch.autograd.grad(
        training_loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    theta_hat = {p: p - length * g for p, g in zip(parameters, gradients, strict=True)}  # line 8

    with frozen_statistics(score, labeled_statistics):
        labeled_score = _call(score, {name: theta_hat[p] for name, p in theta.items()}, buffers, labeled)
    labeled_loss = hinge(labeled_score, label, margin).mean()
    slope, *slopes = torch.autograd.grad(labeled_loss, [pseudo_label, *theta_hat.values()])  # line 10
    v = dict(zip(parameters, slopes, strict=True))
    meta_gradient = (learning_rate / length) * slope
    pseudo_label, weight = _pseudo_labels(meta_gradient, meta_scale, weights, contamination)
    return Inference(
        score(unlabeled),
        -(n / length) * slope,
        meta_gradient,
        pseudo_label,
        weight,
        {name: v[p] for name, p in theta.items()},
        labeled_score.detach(),
        labeled_loss.detach(),
    )


def trainable(module: nn.Module) -> State:
    """θ by name: the parameters that an update may change."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def state(module: nn.Module) -> tuple[State, State]:
    """θ and the buffers by name; a tensor that several submodules share goes by a name in each of them."""
    theta: State = {}
    buffers: State = {}
    for prefix, part in module.named_modules():
        theta |= {name: p for name, p in part.named_parameters(prefix, recurse=False) if p.requires_grad}
        buffers |= part.named_buffers(prefix, recurse=False)
    return theta, buffers


def _call(score: nn.Module, theta: State, buffers: State, sample: Tensor) -> Tensor:
    """Ω of samples by explicit weights and buffers."""
    return functional_call(score, theta | buffers, (sample,), tie_weights=False)  # `state` has found all names already


def _pseudo_labels(
    meta_gradient: Tensor, meta_scale: float, weights: str, contamination: float | None
) -> tuple[Tensor, Tensor]:
    """ŷ and α from the meta-gradient: lines 11 and 12 of Algorithm 1."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, not {weights!r}")
    if contamination is not None:
        meta_gradient = meta_gradient - meta_gradient.quantile(1 - contamination, -1, keepdim=True)
    pseudo_label = torch.where(meta_gradient > 0, -1.0, 1.0).to(meta_gradient.dtype)  # sign(0) = +1
    if weights == "signed":
        return pseudo_label, -meta_scale * meta_gradient.shape[-1] * meta_gradient
    if weights == "drop":
        return pseudo_label, (pseudo_label > 0).to(meta_gradient.dtype)
    weight = meta_scale * meta_gradient.abs()
    if weights == "mean":
        mean = meta_gradient.abs().mean(-1, keepdim=True)
        weight = torch.where(mean == 0, torch.zeros_like(weight), weight / mean)  # 0 where nothing is to be learned
    return pseudo_label, weight
