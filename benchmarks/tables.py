"""Writes tables of ADBench as data sets of one's own, for `experiment=tables` and `experiment=new_tables`.

    python benchmarks/tables.py ADBENCH [TARGET]

ADBENCH is a checkout of https://github.com/Minqi824/ADBench; TARGET is `tables` unless it is given. Of each table at
most 3,000 rows are drawn, 70 % to train on. Ten normal rows and ten anomalies of these are labeled; all others are
unlabeled, with as many hidden anomalies as the table happens to have. One draw for each of the seeds 0 to 2:
TARGET/SEED/NAME.npz.
"""

import sys
from pathlib import Path

import numpy as np

DEVELOPED_ON = ("cardio", "fault", "mammography", "optdigits", "pendigits", "shuttle", "thyroid", "Waveform")
# Those of the others with 20 anomalies among 3,000 rows that were not looked at in development either.
NEW = (
    "ALOI",
    "breastw",
    "campaign",
    "celeba",
    "cover",
    "donors",
    "InternetAds",
    "mnist",
    "skin",
    "Stamps",
    "vertebral",
    "Wilt",
    "WPBC",
)
ROWS, LABELED, TRAINING = 3000, 10, 0.7


def draw(x: np.ndarray, anomalous: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Draws the rows of one seed.

    Args:
        x: Rows, shape (n, features).
        anomalous: Which of them are anomalies, bool, shape (n,).
        seed: Of the draw.

    Returns:
        Arrays for `dataset=npz dataset.labels=known`.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[:ROWS]
    train, test = np.split(rows, [int(TRAINING * len(rows))])
    y_train = np.zeros(len(train), dtype=np.int64)
    for kind, label in ((False, 1), (True, -1)):
        y_train[rng.permutation(np.flatnonzero(anomalous[train] == kind))[:LABELED]] = label
    y_test = np.where(anomalous[test], -1, 1)
    return {"x_train": x[train], "y_train": y_train, "x_test": x[test], "y_test": y_test}


def main(adbench: Path, target: Path) -> None:
    """Writes all tables."""
    for name in DEVELOPED_ON + NEW:
        (path,) = (adbench / "adbench" / "datasets" / "Classical").glob(f"*_{name}.npz")
        with np.load(path) as table:
            x, anomalous = table["X"].astype(np.float32), table["y"].astype(bool)
        for seed in range(3):
            (folder := target / str(seed)).mkdir(parents=True, exist_ok=True)
            np.savez(folder / f"{name}.npz", **draw(x, anomalous, seed))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "tables"))
