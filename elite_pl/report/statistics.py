"""The statistics of a report: pure functions of numbers. The only module that imports scipy.

The unit of a study of one-vs-rest splits is the normal class of a data set, and the data set itself where labels are
known (`Run.unit`): the seeds of one class share its difficulty, so they are no independent draws, and thirty runs of
ten classes tell about another class what ten numbers tell. Hence the interval is that of a mean of clusters, and the
test compares classes, each by the mean over its seeds. Where there is one class only, its seeds are the units, and
nothing is said about other classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEVEL, SIGNIFICANT = 0.95, 0.05
FEWEST = 6  # units with which a two-sided signed-rank test can reach 0.05: p ≥ 2 / 2^n


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 in the denominator); that of a single value is NaN."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def clusters(values: Sequence[float], labels: Sequence[Hashable]) -> list[list[float]]:
    """The values of each cluster; every value by itself where all are of one.

    Args:
        values: (n,).
        labels: The cluster of each value, (n,), here `Run.unit`.

    Returns:
        G lists, in order of appearance.
    """
    found: dict[Hashable, list[float]] = {}
    for value, label in zip(values, labels, strict=True):
        found.setdefault(label, []).append(value)
    return list(found.values()) if len(found) > 1 else [[value] for value in values]


def standard_error(values: Sequence[float], labels: Sequence[Hashable]) -> float:
    """Standard error of a mean of clustered values.

    `sqrt(G / (G-1) · Σ_g (Σ_{i in g} (x_i - mean))²) / n` for G clusters. With one value a cluster, this is the usual
    one, `std / sqrt(n)`, and with all clusters of a size that of the G cluster means.

    Args:
        values: (n,).
        labels: The cluster of each value, (n,), here `Run.unit`; if all are equal, each value is a cluster.

    Returns:
        The error; NaN with fewer than two values.

    Source: Cameron and Miller, A practitioner's guide to cluster-robust inference, J. Human Resources 50(2), 2015;
        here the regression is on a constant alone.
    """
    parts = clusters(values, labels)
    if len(parts) < 2:
        return math.nan
    mean = statistics.fmean(values)
    variance = len(parts) / (len(parts) - 1) * sum(math.fsum(x - mean for x in part) ** 2 for part in parts)
    return variance**0.5 / len(values)


def confidence_interval(
    values: Sequence[float], labels: Sequence[Hashable], level: float = LEVEL
) -> tuple[float, float]:
    """Two-sided confidence interval of a mean of clustered values: `mean ± t_{G-1} · standard_error` for G clusters.

    Args:
        values: (n,).
        labels: As in `standard_error`.
        level: Its coverage, in (0, 1).

    Returns:
        Both ends; NaN with fewer than two values.
    """
    from scipy.special import stdtrit

    parts, mean = clusters(values, labels), statistics.fmean(values)
    if len(parts) < 2:
        return math.nan, math.nan
    half = float(stdtrit(len(parts) - 1, (1 + level) / 2)) * standard_error(values, labels)
    return mean - half, mean + half


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test that differences are symmetric about 0.

    Exact where ties allow it; differences of 0 are left out. It asks for no normal distribution (ROC AUC near 1 is
    skewed), and one class on which a rival collapses does not decide it, as it would in a paired t-test.

    Args:
        differences: One per unit, (n,).

    Returns:
        p; 1 if no difference is other than 0.

    Source: Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006, Sec. 3.1.3.
    """
    from scipy.stats import wilcoxon

    nonzero = [difference for difference in differences if difference != 0]
    return float(wilcoxon(nonzero).pvalue) if nonzero else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values for several comparisons; it holds however they depend on each other.

    `p~_(k) = max_{j <= k} min(1, (m - j + 1) · p_(j))` for the k-th smallest of m.

    Args:
        p: (m,).

    Returns:
        The corrected ones, (m,), in the order given.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class Comparison:
    """Paired differences, in the unit of the values.

    Attributes:
        mean: Their mean.
        low: Lower end of its confidence interval, NaN with one unit.
        high: Upper end.
        pairs: How many there are.
        units: How many the test compares: the classes, or the seeds of the only one.
        p: Of `signed_rank` over the units; NaN with one unit.
        p_holm: After correction for the comparisons made beside it.
    """

    mean: float
    low: float
    high: float
    pairs: int
    units: int
    p: float
    p_holm: float = math.nan


def compare(differences: Sequence[float], labels: Sequence[Hashable]) -> Comparison:
    """Mean, confidence interval and significance of paired differences.

    Args:
        differences: One per pair, (n,), n > 0.
        labels: The cluster of each pair, (n,), here the normal class.

    Returns:
        The comparison, not corrected for others.
    """
    units = [statistics.fmean(part) for part in clusters(differences, labels)]
    low, high = confidence_interval(differences, labels)
    p = signed_rank(units) if len(units) > 1 else math.nan
    return Comparison(statistics.fmean(differences), low, high, len(differences), len(units), p)
