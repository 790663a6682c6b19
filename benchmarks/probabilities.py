"""How good the probabilities of `elite_pl.fit` are, on the eight tables of `benchmarks/tables.py`, and what it costs.

    python benchmarks/tables.py ADBENCH
    python benchmarks/probabilities.py [--write]

Three draws of each table, 10 + 10 labels. Beside `auto` stand two of its candidates, calibrated in the same way, and
scikit-learn's learners on the same labels. Then the time of a fit to tables of more rows and columns.
"""

import time
from pathlib import Path

import machine
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import DEVELOPED_ON

import elite_pl

RESULTS = Path(__file__).parent / "results" / "probabilities.md"
TABLES = Path("tables")  # where benchmarks/tables.py writes them
BINS = 10
SIZES = ((1000, 10), (5000, 10), (5000, 100))  # rows, columns


def scikit_learn(learner):
    """Probabilities of a learner that gets the labels alone."""

    def probability(x, y, test):
        return learner.fit(x[y != 0], y[y != 0] < 0).predict_proba(test)[:, 1]

    return probability


def ours(method):
    """Probabilities of one of our methods, calibrated by labels that are held out."""
    return lambda x, y, test: elite_pl.fit(x, y, method).probability(test)


METHODS = {
    "`auto`": ours("auto"),
    "`extra_trees`": ours("extra_trees"),
    "`logistic_regression`": ours("logistic_regression"),
    "extra-trees of scikit-learn": scikit_learn(ExtraTreesClassifier(300, random_state=0)),
    "logistic regression of scikit-learn": scikit_learn(make_pipeline(StandardScaler(), LogisticRegression())),
}


def reliability_error(probability: np.ndarray, anomalous: np.ndarray) -> float:
    """The expected calibration error: the mean distance of probability and share of anomalies, in bins of equal width.

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.

    Args:
        probability: Shape (n,).
        anomalous: bool, shape (n,).
    """
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    error = np.bincount(place, probability - anomalous, minlength=BINS)
    return float(np.abs(error).sum() / len(probability))


def measured(name: str) -> tuple[float, np.ndarray]:
    """What is measured on a table, the mean of its draws.

    Returns:
        The share of anomalies among its test rows, which nobody who fits knows; and of each method the Brier score, the
        expected calibration error and the mean probability less the share, shape (methods, 3).
    """
    shares, of_seeds = [], []
    for seed in range(3):
        with np.load(TABLES / str(seed) / f"{name}.npz") as table:
            x, y, test, anomalous = table["x_train"], table["y_train"], table["x_test"], table["y_test"] < 0
        shares.append(anomalous.mean())
        of_methods = []
        for method, probability_of in METHODS.items():
            p = probability_of(x, y, test)
            brier = ((p - anomalous) ** 2).mean()
            of_methods.append((brier, reliability_error(p, anomalous), p.mean() - anomalous.mean()))
            print(name, seed, method, *np.round(of_methods[-1], 3), flush=True)
        of_seeds.append(of_methods)
    return float(np.mean(shares)), np.mean(of_seeds, axis=0)


def cost(rows: int, columns: int) -> float:
    """CPU seconds of a fit to random rows, a tenth of them anomalies and 100 labeled."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns))
    x[: rows // 10] += 1
    y = np.zeros(rows, dtype=int)
    y[:50], y[-50:] = -1, 1
    start = time.process_time()
    elite_pl.fit(x, y)
    return time.process_time() - start


def main() -> None:
    options = machine.started(__doc__, RESULTS)
    seconds = [cost(*size) for size in SIZES]
    print(seconds, flush=True)
    base, by_table = zip(*map(measured, DEVELOPED_ON), strict=True)
    found = np.stack(by_table)  # (tables, methods, 3)
    lines = [f"| | {' | '.join(DEVELOPED_ON)} | mean |", f"|---|{'---|' * (len(DEVELOPED_ON) + 1)}"]
    row = "| {} | " + " | ".join(["{:.3f}"] * (len(DEVELOPED_ON) + 1)) + " |"
    constant = [share * (1 - share) for share in base]
    lines.append(row.format("Brier score of the true share for all", *constant, np.mean(constant)))
    for at, what in enumerate(("Brier score", "calibration error", "mean probability less the true share")):
        for column, method in zip(found[:, :, at].T, METHODS, strict=True):
            mean = np.mean(np.abs(column)) if at == 2 else np.mean(column)
            lines.append(row.format(f"{what}, {method}", *column, mean))
    costs = "\n".join(
        f"| {rows:,} | {columns} | {spent:.0f} s |" for (rows, columns), spent in zip(SIZES, seconds, strict=True)
    )
    text = f"""# Probabilities of `elite_pl.fit`, and its time

    python benchmarks/tables.py ADBENCH
    python benchmarks/probabilities.py --write

[Eight tables](tables/README.md), 10 + 10 labels, the mean of three draws. `elite_pl.fit` estimates the share of hidden
anomalies from labels that it holds out, with any `method`; scikit-learn's learners get the labels alone, half of which
are anomalies. The calibration error is that of ten bins of equal width. The last column is the mean of the others; of
the last five rows, of their sizes.

{chr(10).join(lines)}

What a fit takes on one thread, with 100 labels:

| rows | columns | CPU time |
|---|---|---|
{costs}

{machine.in_words()}"""
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
