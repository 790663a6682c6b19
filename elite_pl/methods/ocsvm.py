"""One-class SVM: a smooth boundary around most of the training samples."""

from typing import Annotated, Any, Literal

import torch

from elite_pl.annotations import Positive, Range, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import KernelExpansion

OutlierBound = Annotated[float, Range("a number in (0, 1]", lambda nu: 0 < nu <= 1)]


class Ocsvm(ShallowDetector):
    """scikit-learn's one-class SVM with an RBF kernel on raw features; it looks at no label.

    `min 1/2 ||w||² - ρ + 1/(ν n) Σ_i ξ_i` with `<w, φ(x_i)> >= ρ - ξ_i`, `ξ_i >= 0`; `Ω(x) = ρ - <w, φ(x)>`.

    Source: Schölkopf et al., "Estimating the Support of a High-Dimensional Distribution", Neural Computation 2001.

    Args:
        gamma: γ of the kernel `exp(-γ ||x - y||²)`: a positive number, or `"scale"`: 1 / (features · variance of x).
        nu: ν in (0, 1]: at most this share of the training samples lies outside, at least this share are support
            vectors; or `"given"`, the true share of anomalies among the unlabeled ones.
        **detector: See `ShallowDetector`.
    """

    score: KernelExpansion

    @checked
    def __init__(
        self, *, gamma: Literal["scale"] | Positive, nu: Literal["given"] | OutlierBound, **detector: Any
    ) -> None:
        super().__init__(score=KernelExpansion(), **detector)
        self.gamma, self.nu = gamma, nu

    def check(self, data: PollutedData) -> None:
        """Refuses data without ground truth where ν is to be the true share."""
        super().check(data)
        if self.nu == "given" and data.arrays.labels == "known":
            raise ValueError("nu=given: the true share is unknown; must be a number in (0, 1]")

    def fit(self, data: PollutedData) -> None:
        """Finds the support vectors."""
        from sklearn.svm import OneClassSVM

        x, _ = self.training_samples(data)
        scale = x.shape[1] * float(x.var(correction=0))
        gamma = 1 / (scale or 1.0) if self.gamma == "scale" else float(self.gamma)
        given = float((data.truth < 0).double().mean())
        nu = max(given, 1 / len(x)) if self.nu == "given" else float(self.nu)  # 0 is not allowed
        machine = OneClassSVM(gamma=gamma, nu=nu).fit(x.numpy())
        coefficient = torch.as_tensor(machine.dual_coef_[0], dtype=x.dtype)
        self.found = {"train/gamma": gamma, "train/nu": nu}
        self.score.set(x[machine.support_], coefficient, gamma, float(machine.offset_[0]))
