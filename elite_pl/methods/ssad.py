"""SSAD: a one-class SVM that keeps labeled samples on their side of the boundary."""

import importlib.util
from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from elite_pl import seeding
from elite_pl.algorithm.metrics import roc_auc
from elite_pl.annotations import Positive, Range, at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import TrainingError
from elite_pl.methods.ocsvm import OutlierBound
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import KernelExpansion, squared_distance
from elite_pl.progress import Estimate

Candidates = Annotated[Sequence[Positive], Range("a list of positive numbers, such as [1, 2]", len)]
NEGLIGIBLE = 1e-6  # a coefficient, relative to its bound, that the solver's tolerance makes out of 0


class Ssad(ShallowDetector):
    """Convex semi-supervised anomaly detection with an RBF kernel on raw features.

    `min 1/2 ||w||² - ρ - κ m + Σ_i C_i ξ_i` with `<w, φ(x_i)> >= ρ - ξ_i` for unlabeled samples,
    `y_j (<w, φ(x_j)> - ρ) >= m - ξ_j` for labeled ones, `ξ >= 0` and a margin `m >= 0`; `Ω(x) = ρ - <w, φ(x)>`.

    The bounds C do not depend on the number of samples, so that a choice made on a few samples holds for all:
    `1 / (ν n)` for n unlabeled samples, `κ / (2 ν k)` for k labeled ones of a kind. The usual κ = 1 is weak: labels
    count the more, the larger it is. γ and κ, and C with it, have the highest ROC AUC on labeled samples that are held
    out, the mean over stratified folds; of equally good ones, those in the middle. Then one fit uses all samples.

    Time grows with the third power of the number of samples, memory with the second.

    Source: Görnitz et al., "Toward Supervised Anomaly Detection", JAIR 2013: the convex program and its dual.

    Args:
        gamma: Candidates for γ of the kernel `exp(-γ ||x - y||²)`, in units of 1 / (median of ||x - y||²), ascending.
        kappa: Candidates for κ > 0, ascending.
        nu: ν in (0, 1]; the larger, the more unlabeled samples may lie outside.
        folds: Of the cross-validation, at most; as many as there are labeled samples of the rarer kind.
        fold_unlabeled: Unlabeled samples that take part in it, at most.
        **detector: See `ShallowDetector`.
    """

    score: KernelExpansion
    needs_labels = True
    needs_of_each_kind = 2  # for the cross-validation

    @checked
    def __init__(
        self,
        *,
        gamma: Candidates,
        kappa: Candidates,
        nu: OutlierBound,
        folds: Annotated[int, at_least(2)],
        fold_unlabeled: Annotated[int, at_least(1)],
        **detector: Any,
    ) -> None:
        super().__init__(score=KernelExpansion(), **detector)
        self.gamma, self.kappa, self.nu = gamma, kappa, nu
        self.folds, self.fold_unlabeled = folds, fold_unlabeled

    def check(self, data: PollutedData) -> None:
        """Names the solver where it is missing."""
        super().check(data)
        if importlib.util.find_spec("piqp") is None:
            raise ValueError(f"the solver of {self.name} is not installed; pip install 'elite_pl[ssad]'")

    def fit(self, data: PollutedData) -> None:
        """Chooses γ and κ, then fits all samples."""
        samples, label = self.training_samples(data)
        x, unlabeled = samples.double(), len(data.unlabeled)
        drawn = torch.randperm(unlabeled, generator=seeding.generator(data.seed, "fold_unlabeled"))
        own = torch.arange(unlabeled, unlabeled + len(data.labeled))  # copies of held-out samples would leak them
        some = torch.cat([drawn[: self.fold_unlabeled].sort().values, own])
        distance = squared_distance(x[some], x[some])
        unit = 1 / (float(distance.median()) or 1.0)
        auroc = self.cross_validate(distance * unit, label[some], seeding.generator(data.seed, "folds"))
        i, j = middle_of_best(auroc)
        gamma, kappa = unit * self.gamma[i], self.kappa[j]
        kernel = squared_distance(x, x).mul_(-gamma).exp_()
        coefficient, offset = solve(kernel.numpy(), label.numpy(), bounds(label, self.nu, kappa), kappa)
        self.score.set(samples, torch.as_tensor(coefficient), gamma, offset)
        chosen = {"train/gamma": gamma, "train/kappa": kappa}
        self.found = {**chosen, "train/cross_validation_auroc": float(auroc[i, j])}

    def cross_validate(self, distance: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """The ROC AUC of held-out labeled samples.

        Args:
            distance: Squared distances in units of their median, shape (n, n).
            label: +1, -1 or 0 for unlabeled, shape (n,).
            generator: Draws the folds.

        Returns:
            The mean over the folds for each γ and κ, shape (number of γ, number of κ).
        """
        folds = stratified_folds(label, self.folds, generator)
        auroc = torch.zeros(len(self.gamma), len(self.kappa), dtype=torch.float64)
        progress = Estimate("cross-validation", auroc.numel() * len(folds))
        for i, gamma in enumerate(self.gamma):
            kernel = torch.exp(-gamma * distance)
            for (j, kappa), held_out in product(enumerate(self.kappa), folds):
                kept = torch.ones(len(label), dtype=torch.bool).index_fill(0, held_out, False)
                known, among = label[kept], kernel[kept][:, kept]
                coefficient, _ = solve(among.numpy(), known.numpy(), bounds(known, self.nu, kappa), kappa)
                score = -kernel[held_out][:, kept] @ torch.as_tensor(coefficient)
                auroc[i, j] += roc_auc(score, label[held_out] < 0) / len(folds)
                progress.step()
        return auroc


def stratified_folds(label: Tensor, folds: int, generator: torch.Generator) -> list[Tensor]:
    """Positions of the labeled samples in folds that all hold both kinds, at most as many as asked for."""
    kinds = [torch.nonzero(label == kind).flatten() for kind in (1, -1)]
    shuffled = [kind[torch.randperm(len(kind), generator=generator)] for kind in kinds]
    folds = min(folds, *map(len, kinds))
    return [torch.cat([kind[fold::folds] for kind in shuffled]) for fold in range(folds)]


def middle_of_best(value: Tensor) -> tuple[int, int]:
    """The place of the highest value of a grid (rows, columns); of several, the one nearest to their mean place."""
    best = torch.nonzero(value >= value.max() - 1e-12)
    row, column = best[(best - best.double().mean(0)).square().sum(1).argmin()].tolist()
    return row, column


def bounds(label: Tensor, nu: float, kappa: float) -> np.ndarray:
    """C of each sample: `1 / (ν n)` for n unlabeled ones, `κ / (2 ν k)` for k labeled ones of a kind.

    So each kind of label may weigh up to `κ / (2 ν)`, and a solution exists for every ν in (0, 1].

    Args:
        label: +1, -1 or 0 for unlabeled, shape (n,).
        nu: ν.
        kappa: κ.
    """
    bound = torch.empty(len(label), dtype=torch.float64)
    for kind, weight in ((0, 1.0), (1, kappa / 2), (-1, kappa / 2)):
        bound[label == kind] = weight / (nu * max(1, int((label == kind).sum())))
    return bound.numpy()


def solve(kernel: np.ndarray, label: np.ndarray, bound: np.ndarray, kappa: float) -> tuple[np.ndarray, float]:
    """Solves the dual by an interior-point method; unlabeled samples count as normal.

    `min 1/2 Σ_ij α_i y_i α_j y_j k(x_i, x_j)` with `0 <= α <= C`, `Σ_i y_i α_i = 1` and `Σ_labeled α_j >= κ`.

    Args:
        kernel: k of all pairs of samples, shape (n, n).
        label: +1, -1 or 0 for unlabeled, shape (n,).
        bound: C, shape (n,).
        kappa: κ.

    Returns:
        `y_i α_i`, shape (n,), so that `<w, φ(x)> = Σ_i y_i α_i k(x_i, x)`, and ρ.

    Raises:
        TrainingError: If the solver finds no solution.
    """
    import piqp

    y = np.where(label < 0, -1.0, 1.0)
    labeled = (label != 0).astype(np.float64)
    margin: dict[str, np.ndarray] = {}
    if labeled.any():
        margin = {"G": np.asfortranarray(labeled[None]), "h_l": np.array([kappa])}
    signed = kernel * y
    signed *= y[:, None]
    solver = piqp.DenseSolver()
    solver.setup(
        P=signed.T,  # symmetric; the transpose has the memory order that the solver asks for
        c=np.zeros(len(y)),
        A=np.asfortranarray(y[None]),
        b=np.ones(1),
        x_l=np.zeros(len(y)),
        x_u=bound,
        **margin,
    )
    status = solver.solve()
    if status != piqp.PIQP_SOLVED:
        raise TrainingError(f"ssad: the solver found no solution ({status.name}); try a larger nu")
    alpha = solver.result.x.clip(0, bound)
    alpha[alpha < NEGLIGIBLE * bound] = 0
    return y * alpha, -float(solver.result.y[0])
