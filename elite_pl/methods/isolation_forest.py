"""Isolation forest: anomalies are soon alone when samples are split at random."""

from typing import Any

from elite_pl import seeding
from elite_pl.datamodule import PollutedData
from elite_pl.errors import InputError
from elite_pl.scores import IsolationTrees
from elite_pl.shallow import ShallowDetector, training_samples


class IsolationForest(ShallowDetector):
    """scikit-learn's isolation forest on raw features; it looks at no label.

    Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.

    Args:
        trees: How many.
        tree_samples: Samples that each tree is grown from; all where there are fewer.
        **detector: See `ShallowDetector`.

    Raises:
        InputError: If an argument has no such value.
    """

    score: IsolationTrees

    def __init__(self, *, trees: int, tree_samples: int, **detector: Any) -> None:
        super().__init__(score=IsolationTrees(), **detector)
        if not (isinstance(trees, int) and trees >= 1):
            raise InputError(f"method.trees={trees}: must be a number of trees, 1 or more")
        if not (isinstance(tree_samples, int) and tree_samples >= 2):
            raise InputError(f"method.tree_samples={tree_samples}: must be a number of samples, 2 or more")
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
        self.score.set([estimator.tree_ for estimator in forest.estimators_], forest.max_samples_)
