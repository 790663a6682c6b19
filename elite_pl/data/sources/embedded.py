"""Data sets that come with a package: nothing is downloaded."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.splits import stratified


def digits() -> Arrays:
    """Loads scikit-learn's 1,797 real handwritten 8x8 digits as (n, 64) vectors in [0, 1]; no download.

    A fixed stratified 30 % is the test set, whatever the seed of a run.
    Source: https://archive.ics.uci.edu/dataset/80 (the UCI test set), the file of `sklearn.datasets.load_digits`.
    """
    rows = np.loadtxt(_digits_file(), delimiter=",", dtype=np.float32)
    x, y = rows[:, :-1] / 16, rows[:, -1].astype(np.int64)
    train, test = stratified(y, 0.3)
    return make_arrays("digits", x[train], y[train], x[test], y[test], tuple("0123456789"))


def _digits_file() -> Path:
    """Returns the file of scikit-learn, whose import would take longer than the training of a default run."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
