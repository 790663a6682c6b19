"""Data that a package brings along: nothing is downloaded."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.splits import stratified


def digits() -> Arrays:
    """Load scikit-learn's 1,797 real handwritten 8x8 digits as (n, 64) vectors in [0, 1]; no download.

    A fixed stratified 30 % is the test part, whatever the seed of a run.
    Source: https://archive.ics.uci.edu/dataset/80 (the UCI test part), via `sklearn.datasets.load_digits`.
    """
    found = find_spec("sklearn")  # which is not imported: a second for one file
    assert found is not None and found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)
    train, test = stratified(y, 0.3)
    return make_arrays("digits", x[train], y[train], x[test], y[test], tuple("0123456789"))
