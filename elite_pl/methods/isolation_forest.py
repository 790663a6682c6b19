"""Isolation forest: random splits isolate anomalies sooner than normal samples."""

from typing import Annotated, Any

import numpy as np
import torch

from elite_pl import seeding
from elite_pl.annotations import at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import IsolationTrees


class IsolationForest(ShallowDetector):
    """scikit-learn's isolation forest on raw features; it looks at no label.

    Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.

    Args:
        trees: How many.
        tree_samples: Samples that each tree is grown from; all where there are fewer.
        **detector: See `ShallowDetector`.
    """

    score: IsolationTrees

    @checked
    def __init__(
        self, *, trees: Annotated[int, at_least(1)], tree_samples: Annotated[int, at_least(2)], **detector: Any
    ) -> None:
        super().__init__(score=IsolationTrees(), **detector)
        self.trees, self.tree_samples = trees, tree_samples

    def fit(self, data: PollutedData) -> None:
        """Grows the trees."""
        from sklearn.ensemble import IsolationForest as Forest

        x = self.training_samples(data)[0].numpy()
        forest = Forest(
            n_estimators=self.trees,
            max_samples=min(self.tree_samples, len(x)),
            random_state=seeding.derive(data.seed, "isolation forest") % 2**32,
        ).fit(x)
        self.score = isolation_trees(forest)


def isolation_trees(forest: Any) -> IsolationTrees:
    """A fitted forest of scikit-learn's as a score that needs torch alone."""
    score, trees = IsolationTrees(), [estimator.tree_ for estimator in forest.estimators_]
    grown = np.concatenate([tree.n_node_samples for tree in trees])
    score.path = torch.as_tensor(score.grow(trees) + mean_path_length(grown), dtype=torch.float32)
    score.normaliser = torch.as_tensor(mean_path_length(np.array(forest.max_samples_)), dtype=torch.float32)
    return score


def mean_path_length(samples: np.ndarray) -> np.ndarray:
    """c(n), the mean path length of an unsuccessful search in a binary tree of n samples.

    `c(n) = 2 (ln(n - 1) + 0.5772...) - 2 (n - 1) / n` for n > 2, with c(2) = 1 and c(1) = 0.

    Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008, Eq. 1.

    Args:
        samples: n, any shape.
    """
    n = np.maximum(samples, 3).astype(np.float64)
    length = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(samples > 2, length, (samples == 2).astype(np.float64))
