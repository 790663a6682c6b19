"""Extremely randomized trees on the labeled samples alone."""

from typing import Annotated, Any

from elite_pl import seeding
from elite_pl.annotations import at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.models.fitted import ClassTrees


class ExtraTrees(ShallowDetector):
    """scikit-learn's extra-trees, class-balanced, on raw features of the labeled samples; Ω is the anomaly probability.

    Source: Geurts, Ernst and Wehenkel, "Extremely Randomized Trees", Machine Learning 2006.

    Args:
        trees: How many.
        **detector: See `ShallowDetector`.
    """

    score: ClassTrees
    needs_labels = True
    needs_of_each_kind = 1

    @checked
    def __init__(self, *, trees: Annotated[int, at_least(1)], **detector: Any) -> None:
        super().__init__(score=ClassTrees(), **detector)
        self.trees = trees

    def fit(self, data: PollutedData) -> None:
        """Grows the trees."""
        from sklearn.ensemble import ExtraTreesClassifier

        forest = ExtraTreesClassifier(
            self.trees, class_weight="balanced", random_state=seeding.derive(data.seed, "extra trees") % 2**32
        )
        x, label = self.training_samples(data)
        forest.fit(x[label != 0].numpy(), (label[label != 0] < 0).numpy())
        self.score.grow([estimator.tree_ for estimator in forest.estimators_])
