"""Made-up vectors."""

import numpy as np


def labeled_vectors(n: int, features: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of which the last quarter are anomalies, and their labels: 1 of the first five, -1 of the last."""
    x = np.random.default_rng(0).normal(size=(n, features))
    x[3 * n // 4 :] += distance
    labels = np.zeros(n, dtype=int)
    labels[:5], labels[-5:] = 1, -1
    return x, labels
