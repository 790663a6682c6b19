"""Writes MNIST's training set as a data set of its own, to choose settings on without a look at the test set.

python benchmarks/development_split.py mnist_dev.npz        # reads MNIST from ELITE_PL_DATA, default data
python -m elite_pl.train dataset=npz dataset.path=mnist_dev.npz n_train=5000 ...
"""

import os
import sys
from pathlib import Path

import numpy as np

from elite_pl.data import torchvision_set


def main(target: Path) -> None:
    """Draws 52,000 of the 60,000 training images to train on and 4,000 others to score."""
    mnist = torchvision_set("MNIST", os.environ.get("ELITE_PL_DATA", "data"))
    order = np.random.default_rng(0).permutation(len(mnist.x_train))
    arrays = {}
    for part, index in (("train", order[:52_000]), ("test", order[52_000:56_000])):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = mnist.x_train[index, 0], mnist.y_train[index]
    np.savez(target, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
