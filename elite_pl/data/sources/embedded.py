"""Data sets that come with a package: nothing is downloaded."""

import numpy as np

from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.splits import stratified


def digits() -> Arrays:
    """Loads scikit-learn's 1,797 real handwritten 8x8 digits as (n, 64) vectors in [0, 1]; no download.

    A fixed stratified 30 % is the test part, whatever the seed of a run.
    Source: https://archive.ics.uci.edu/dataset/80 (the UCI test part), via `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    train, test = stratified(y, 0.3)
    return make_arrays("digits", x[train], y[train], x[test], y[test], tuple("0123456789"))
