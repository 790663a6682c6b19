"""Logistic regression that goes on with its own most confident predictions."""

from typing import Annotated, Any

import numpy as np

from elite_pl.annotations import Range, at_least, checked
from elite_pl.methods.logistic_regression import LogisticRegression

Confidence = Annotated[float, Range("a probability in [0.5, 1)", lambda value: 0.5 <= value < 1)]


class SelfTraining(LogisticRegression):
    """scikit-learn's self-training around its logistic regression.

    In each round the unlabeled samples whose predicted class has a probability above a threshold get that class as
    their label, for good, and the regression is fitted again to all labels.

    Source: Yarowsky, "Unsupervised Word Sense Disambiguation Rivaling Supervised Methods", ACL 1995.

    Args:
        threshold: In [1/2, 1).
        rounds: How many, at most; it ends sooner where no sample is left above the threshold.
        **regression: See `LogisticRegression`.
    """

    @checked
    def __init__(self, *, threshold: Confidence, rounds: Annotated[int, at_least(1)], **regression: Any) -> None:
        super().__init__(**regression)
        self.threshold, self.rounds = threshold, rounds

    def learn(self, z: np.ndarray, label: np.ndarray) -> Any:
        """See `LogisticRegression.learn`."""
        from sklearn.semi_supervised import SelfTrainingClassifier

        learner = SelfTrainingClassifier(self.classifier(), threshold=self.threshold, max_iter=self.rounds)
        learner.fit(z, np.where(label == 0, -1, label < 0))  # -1: unlabeled
        taken = learner.transduction_[learner.labeled_iter_ > 0]
        self.found = {"train/self_labeled": len(taken), "train/self_labeled_anomalies": int(taken.sum())}
        return learner.estimator_
