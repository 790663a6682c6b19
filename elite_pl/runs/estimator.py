"""The detectors as an estimator of scikit-learn's: for pipelines, clones, pickles and data frames."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import Tags, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from elite_pl.annotations import is_of
from elite_pl.data.arrays import to_array
from elite_pl.errors import InputError
from elite_pl.runs.fitting import fit

WITHOUT_LABELS = "isolation_forest"  # the method where nothing is labeled and none is named


class EliteDetector(OutlierMixin, BaseEstimator):
    """A detector for dirty data, of which some samples are labeled, with scikit-learn's names and signs.

    >>> import numpy as np
    >>> from elite_pl import EliteDetector
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(5, 1, (60, 2))])  # a quarter are anomalies
    >>> labels = np.zeros(240, dtype=int)
    >>> labels[:10], labels[180:190] = 1, -1  # and 20 are labeled
    >>> detector = EliteDetector().fit(X, labels=labels)
    >>> detector.predict([[0.0, 0.0], [5.0, 5.0]])
    array([ 1, -1])

    In a pipeline the labels go along as y:

    >>> from sklearn.impute import SimpleImputer
    >>> from sklearn.pipeline import make_pipeline
    >>> X[::7, 0] = np.nan
    >>> pipeline = make_pipeline(SimpleImputer(), EliteDetector("label_spreading")).fit(X, labels)
    >>> pipeline.predict([[0.0, 0.0], [5.0, 5.0]])
    array([ 1, -1])

    Without labels `method=None` is an isolation forest: it assumes that anomalies are few and far from the rest, and
    that their share is 5 % unless `contamination` sets another one.

    Args:
        method: The name of a method, such as `"deep_sad"`; None for the recommended one.
        random_state: Of the initial network and the order of batches: a number as `seed` of `elite_pl.fit`, or what
            else scikit-learn takes.
        overrides: Other settings, as in `elite_pl.fit`.
        contamination: Share of the training samples that get -1, in (0, 0.5]; None for the detector's own threshold.

    Attributes:
        detector_: The `TrainedDetector`.
        offset_: The value of `score_samples` below which a sample is an anomaly.
        n_features_in_: Features of a sample; of images the length of their first axis.
        feature_names_in_: The columns of the training samples, where they were a data frame with names.
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        random_state: int | np.random.RandomState | None = 0,
        overrides: Sequence[str] = (),
        contamination: float | None = None,
    ) -> None:
        self.method, self.random_state, self.overrides = method, random_state, overrides
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None, *, labels: ArrayLike | None = None) -> EliteDetector:  # noqa: N803
        """Trains the detector.

        Args:
            X: Samples: vectors (n, features), also as a data frame or a sparse matrix, or images as in `elite_pl.fit`.
            y: Taken for `labels` where it holds nothing but 1, -1 and 0, and a -1 among them; otherwise it is not used.
            labels: The label of each sample, shape (n,): 1 normal, -1 an anomaly, 0 unlabeled; None if none is labeled.

        Returns:
            The estimator.

        Raises:
            ValueError: If an argument is not like that, or the method cannot learn from it.
            TrainingError: If training goes wrong.
        """
        samples, share = self._samples(X, reset=True), self.contamination
        if not is_of(share, float | None) or (share is not None and not 0 < share <= 0.5):
            raise ValueError(f"contamination={share!r}: must be in (0, 0.5], or None")
        known = _labels(samples, y, labels)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        method = self.method if self.method is not None or np.any(known) else WITHOUT_LABELS
        try:
            self.detector_ = fit(samples, known, method, int(seed), self.overrides)
        except ValueError as error:
            raise InputError(str(error) if labels is None else re.sub(r"^y\b", "labels", str(error))) from error
        self.offset_ = -self.detector_.threshold
        if share is not None:
            self.offset_ = float(np.quantile(-self.detector_.score(samples), share))
        return self

    def fit_predict(self, X: Any, y: Any = None, *, labels: ArrayLike | None = None) -> np.ndarray:  # noqa: N803
        """Trains the detector, and judges the same samples; arguments as in `fit`, returns as in `predict`."""
        return self.fit(X, y, labels=labels).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Returns the negative of the detector's score: higher for the more normal.

        Args:
            X: Samples as in training, shape (n, ...).

        Returns:
            float64 of shape (n,).

        Raises:
            ValueError: If they are not like those of training.
        """
        check_is_fitted(self)
        return -self.detector_.score(self._samples(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """`score_samples(X) - offset_`: negative for anomalies; arguments and errors as in `score_samples`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Tells anomalies (-1) from normal samples (1); arguments and errors as in `score_samples`.

        Returns:
            int64 of shape (n,).
        """
        return np.where(self.score_samples(X) < self.offset_, -1, 1)

    def _samples(self, x: Any, reset: bool) -> np.ndarray:
        """Samples as a dense array, with the names and the number of features noted or compared."""
        x = to_array("X", x) if hasattr(x, "detach") else x
        options = {"ensure_min_samples": 2} if reset else {}
        x = validate_data(self, x, reset=reset, accept_sparse="csr", allow_nd=True, **options)
        return x.toarray() if hasattr(x, "toarray") else x

    def __sklearn_tags__(self) -> Tags:
        """Sparse matrices and images are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.three_d_array = True
        return tags


def _labels(samples: np.ndarray, y: Any, labels: ArrayLike | None) -> np.ndarray:
    """Returns the label of each sample, from whichever of the two arguments holds it."""
    if labels is None and y is not None:
        values = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
        if values.dtype.kind in "if" and (values == -1).any() and np.isin(values, (1, -1, 0)).all():
            labels = values
        else:
            warnings.warn(
                "y is not used: it holds other values than 1 (normal), -1 (an anomaly) and 0 (unlabeled), or no -1; "
                "what is known of the samples goes into labels",
                stacklevel=3,
            )
    if labels is None:
        return np.zeros(len(samples), dtype=np.int64)
    known = to_array("labels", labels)
    check_consistent_length(samples, known)
    return known
