"""Writes a training set as a data set of its own, to choose settings on without a look at the test set.

python benchmarks/development_split.py mnist_dev.npz                  # reads MNIST from ELITE_PL_DATA, default data
python benchmarks/development_split.py fmnist_dev.npz FashionMNIST    # or CIFAR10
python -m elite_pl.train dataset=npz dataset.path=mnist_dev.npz n_train=5000 ...
"""

import os
import sys
from pathlib import Path

import numpy as np

from elite_pl.data import torchvision_set


def main(target: Path, name: str = "MNIST") -> None:
    """Draws 4,000 training images to score and leaves out 4,000 more; those left, 52,000 of MNIST, are to train on."""
    arrays = torchvision_set(name, os.environ.get("ELITE_PL_DATA", "data"))
    order = np.random.default_rng(0).permutation(len(arrays.x_train))
    drawn = {}
    for part, index in (("train", order[:-8000]), ("test", order[-8000:-4000])):
        images = arrays.x_train[index]
        drawn[f"x_{part}"] = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        drawn[f"y_{part}"] = arrays.y_train[index]
    np.savez(target, **drawn)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
