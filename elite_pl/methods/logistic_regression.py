"""Logistic regression on the labeled samples alone."""

from typing import Annotated, Any

import numpy as np
import torch

from elite_pl import seeding
from elite_pl.annotations import Positive, at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import Linear


class LogisticRegression(ShallowDetector):
    """scikit-learn's logistic regression, class-balanced, on features that are standardized over all training samples.

    `min λ/2 ||w||² + Σ_j c_j log(1 + exp(y_j (<w, z_j> + b)))`, with c such that both kinds of labels weigh the same;
    Ω is the decision function `<w, z> + b`, as a function of the sample itself.

    Args:
        penalty: λ > 0.
        components: How many principal components of the standardized features take their place; None for none.
        **detector: See `ShallowDetector`.
    """

    score: Linear
    needs_labels = True
    needs_of_each_kind = 1

    @checked
    def __init__(self, *, penalty: Positive, components: Annotated[int, at_least(1)] | None, **detector: Any) -> None:
        super().__init__(score=Linear(), **detector)
        self.penalty, self.components = penalty, components

    def fit(self, data: PollutedData) -> None:
        """Finds w and b, and makes one linear function of them and all that was done to the features."""
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        x, label = self.training_samples(data)
        scaler = StandardScaler()
        z = scaler.fit_transform(x.double().numpy())
        components = None
        if self.components is not None:
            seed = seeding.derive(data.seed, "principal components") % 2**32
            pca = PCA(min(self.components, *z.shape), random_state=seed)
            z, components = pca.fit_transform(z), pca.components_  # of features whose mean is 0
        learned = self.learn(z, label.numpy())
        weight, bias = learned.coef_[0], learned.intercept_[0]
        if components is not None:
            weight = weight @ components
        weight = weight / scaler.scale_
        self.score.weight = torch.as_tensor(weight, dtype=x.dtype)
        self.score.bias = torch.as_tensor(bias - weight @ scaler.mean_, dtype=x.dtype)

    def learn(self, z: np.ndarray, label: np.ndarray) -> Any:
        """Learns from the labeled samples.

        Args:
            z: Features of all training samples, shape (n, features).
            label: +1, -1 or 0 for unlabeled, shape (n,).

        Returns:
            scikit-learn's logistic regression, fitted; its second class are the anomalies.
        """
        return self.classifier().fit(z[label != 0], label[label != 0] < 0)

    def classifier(self) -> Any:
        """scikit-learn's logistic regression, still to be fitted."""
        from sklearn.linear_model import LogisticRegression as Classifier

        return Classifier(C=1 / self.penalty, class_weight="balanced", max_iter=10_000)
