"""Theorem 2 of the paper, corrected: how long a step may be so that the validation loss falls at every step.

The paper prints `η_y η_θ <= 2n / (L σ²)`; its Eq. 20 needs `||Σ a_i||² <= n Σ ||a_i||²`, so the bound is `2 / (L σ²)`.
With a linear network, the squared score and a margin above every score, L_v is quadratic: L and σ are known exactly.
"""

import itertools

import pytest
import torch
from torch import nn

from elite_pl.algorithm import alice
from elite_pl.algorithm.losses import hinge

MARGIN = 1e9  # above every score, as the proof assumes: the hinge of an anomaly is C - Ω


class Linear(nn.Module):
    """Ω(x; W) = ||W x - o||²."""

    def __init__(self, features=5, outputs=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, features).double())
        self.center = torch.ones(outputs).double()

    def forward(self, sample):
        return (sample @ self.weight.T - self.center).square().sum(1)


def smoothness(labeled, label):
    """L: the largest eigenvalue of the Hessian of L_v, in absolute value."""
    return 2 * torch.linalg.eigvalsh((labeled.T * label) @ labeled / len(label)).abs().max()


def gradient_bound(score, unlabeled):
    """σ: the largest norm of ∇Ω_i = 2 (W x_i - o) x_i^T."""
    return (2 * score(unlabeled).sqrt() * unlabeled.norm(dim=1)).max().detach()


def step(score, unlabeled, labeled, label, length):
    """One update in the signed form of Eq. 16, of length η_y η_θ, through ALICE; returns L_v before it."""
    n = len(unlabeled)  # η_θ = 1 and η_M = n · length, because M carries η_θ / n
    inference = alice.jvp(score, unlabeled, labeled, label, MARGIN, learning_rate=1.0, meta_scale=n * length)
    loss = (inference.weight * hinge(inference.score, inference.pseudo_label, MARGIN)).mean()
    (gradient,) = torch.autograd.grad(loss, score.weight)
    with torch.no_grad():
        score.weight -= gradient
    return inference.labeled_loss


@pytest.fixture
def problem():
    torch.manual_seed(0)
    labeled = torch.randn(8, 5).double()
    return Linear(), torch.randn(16, 5).double(), labeled, torch.tensor([1.0, -1.0] * 4).double()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_the_loss_falls_at_every_step_below_the_corrected_bound(problem, share):
    score, unlabeled, labeled, label = problem
    losses = []
    for _ in range(30):
        bound = 2 / (smoothness(labeled, label) * gradient_bound(score, unlabeled) ** 2)
        losses.append(step(score, unlabeled, labeled, label, (share * bound).item()).item())
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_equal_samples_break_the_printed_bound(problem):
    score, unlabeled, labeled, label = problem
    label = torch.ones_like(label)  # all normal: L_v is convex, and too long a step overshoots
    unlabeled = labeled[:1].repeat(128, 1)
    before = score(labeled).mean().item()
    printed = 2 * len(unlabeled) / (smoothness(labeled, label) * gradient_bound(score, unlabeled) ** 2)
    step(score, unlabeled, labeled, label, (0.9 * printed).item())
    assert score(labeled).mean().item() > before


def test_the_update_is_equation_16(problem):
    score, unlabeled, labeled, label = problem
    before = score.weight.detach().clone()
    rows = torch.stack([torch.autograd.grad(score(x[None])[0], score.weight)[0].flatten() for x in unlabeled])
    v = torch.autograd.grad((label * score(labeled)).mean(), score.weight)[0].flatten()
    expected = before.flatten() - 1e-4 / len(unlabeled) * (rows @ v) @ rows
    step(score, unlabeled, labeled, label, 1e-4)
    torch.testing.assert_close(score.weight.detach().flatten(), expected)
