"""Isolation forest: anomalies are soon alone when samples are split at random."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch

from elite_pl import seeding
from elite_pl.annotations import at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector, training_samples
from elite_pl.models.scores import IsolationTrees


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

        x = training_samples(data).numpy()
        forest = Forest(
            n_estimators=self.trees,
            max_samples=min(self.tree_samples, len(x)),
            random_state=seeding.derive(data.seed, "isolation forest") % 2**32,
        ).fit(x)
        copy_trees([estimator.tree_ for estimator in forest.estimators_], forest.max_samples_, self.score)


def copy_trees(trees: Sequence[Any], samples: int, score: IsolationTrees) -> None:
    """Copies grown trees into a score that needs torch alone.

    Args:
        trees: scikit-learn's, each with its arrays of nodes, the root first.
        samples: How many samples a tree was grown from.
        score: Where they go.
    """
    sizes = [len(tree.feature) for tree in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    children = np.concatenate([np.stack([tree.children_left, tree.children_right], 1) for tree in trees])
    leaf = children[:, 0] < 0
    first = np.repeat(roots, sizes)[:, None]
    children = np.where(leaf[:, None], np.arange(len(leaf))[:, None], children + first)
    steps, level, depth = np.zeros(len(leaf)), roots, 0
    while (level := np.setdiff1d(children[level[~leaf[level]]], [])).size:
        depth += 1
        steps[level] = depth
    threshold = np.concatenate([tree.threshold for tree in trees])
    below = threshold.astype(np.float32)  # the trees compare float32 samples with float64 thresholds
    below = np.where(below > threshold, np.nextafter(below, np.float32(-np.inf)), below)
    score.roots, score.child = torch.as_tensor(roots), torch.as_tensor(children)
    score.feature = torch.as_tensor(np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])))
    score.threshold = torch.as_tensor(below)
    grown = np.concatenate([tree.n_node_samples for tree in trees])
    score.path = torch.as_tensor(steps + mean_path_length(grown), dtype=torch.float32)
    score.depth = torch.tensor(depth)
    score.normaliser = torch.as_tensor(mean_path_length(np.array(samples)), dtype=torch.float32)


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
