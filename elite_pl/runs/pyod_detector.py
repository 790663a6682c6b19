"""The detectors with the names and signs of PyOD, which it takes into its comparisons and combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from elite_pl.data.arrays import to_array
from elite_pl.runs.estimator import EliteDetector

try:
    from pyod.models.base import BaseDetector
except ImportError:
    BaseDetector = object


class PyodDetector(BaseDetector):
    """A detector for dirty data as one of PyOD's: 1 is an anomaly, and a higher score is more anomalous.

    PyOD knows anomalies and the rest, so no sample is labeled as normal here: `EliteDetector` takes such labels, too.

    Args:
        method: See `EliteDetector`.
        random_state: See `EliteDetector`.
        overrides: See `EliteDetector`.
        contamination: Share of the training samples that are called anomalies, in (0, 0.5].

    Raises:
        ImportError: If PyOD is not installed.

    Attributes:
        detector_: The `EliteDetector`.
        decision_scores_: Scores of the training samples, shape (n,).
        threshold_: The score above which a sample is called an anomaly.
        labels_: Verdicts on the training samples, 1 (an anomaly) or 0, shape (n,).
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        random_state: int | np.random.RandomState | None = 0,
        overrides: Sequence[str] = (),
        contamination: float = 0.1,
    ) -> None:
        if BaseDetector is object:
            raise ImportError("elite_pl.PyodDetector needs PyOD: pip install 'elite_pl[pyod]'")
        super().__init__(contamination=contamination)
        self.method, self.random_state, self.overrides = method, random_state, overrides

    def fit(self, X: Any, y: ArrayLike | None = None) -> PyodDetector:  # noqa: N803
        """Trains the detector.

        Args:
            X: Samples, as in `EliteDetector.fit`.
            y: The label of each, shape (n,): 1 an anomaly, 0 unlabeled; None if none is labeled.

        Returns:
            The detector.

        Raises:
            ValueError: If an argument is not like that, or the method cannot learn from it.
            TrainingError: If training goes wrong.
        """
        labels = None if y is None else to_array("y", y)
        if labels is not None and not np.isin(labels, (0, 1)).all():
            raise ValueError("y holds other values than 1 (an anomaly) and 0 (unlabeled)")
        self._set_n_classes(None)
        self.detector_ = EliteDetector(self.method, random_state=self.random_state, overrides=self.overrides)
        self.detector_.fit(X, labels=None if labels is None else -labels.astype(np.int64))
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """The anomaly scores of samples as in training, higher for the more anomalous; float64 of shape (n,)."""
        check_is_fitted(self, "detector_")
        return -self.detector_.score_samples(X)
