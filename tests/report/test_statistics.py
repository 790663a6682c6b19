"""The statistics of a report against numbers worked out by hand, and against scipy's own tests."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from elite_pl.report.statistics import compare, confidence_interval, holm, mean_std, signed_rank, standard_error
from elite_pl.report.tables import ahead_by
from elite_pl.studies.read import Run


def test_mean_and_standard_deviation():
    assert mean_std([2.0, 4.0, 9.0]) == (5.0, pytest.approx(math.sqrt((9 + 1 + 16) / 2)))
    mean, std = mean_std([7.0])
    assert mean == 7.0 and math.isnan(std)


def test_the_interval_of_one_run_a_class_is_students_t():
    # mean 5, variance 13, standard error sqrt(13 / 3), t of 2 degrees of freedom at 0.975 is 4.302653
    half = 4.302653 * math.sqrt(13 / 3)
    assert confidence_interval([2.0, 4.0, 9.0], ["0", "1", "2"]) == pytest.approx((5 - half, 5 + half), rel=1e-6)
    assert all(map(math.isnan, confidence_interval([2.0], ["0"])))


def test_the_seeds_of_a_class_are_one_cluster():
    rng = np.random.default_rng(0)
    values = rng.normal(90, 5, (10, 1)) + rng.normal(0, 1, (10, 3))  # classes differ more than seeds do
    classes = np.repeat(np.arange(10), 3)
    low, high = confidence_interval(values.ravel().tolist(), classes.tolist())
    means = values.mean(1)
    assert standard_error(values.ravel().tolist(), classes.tolist()) == pytest.approx(scipy.stats.sem(means))
    expected = scipy.stats.t.interval(0.95, 9, means.mean(), scipy.stats.sem(means))
    assert (low, high) == pytest.approx(expected)
    naive = scipy.stats.t.interval(0.95, 29, values.mean(), scipy.stats.sem(values.ravel()))
    assert high - low > 1.3 * (naive[1] - naive[0])


def test_draws_of_a_table_are_one_cluster_though_all_tables_have_the_same_class():
    rng = np.random.default_rng(0)
    lead = rng.normal(2, 3, (4, 1)) + rng.normal(0, 0.1, (4, 3))
    known = {"normal_class": "as labeled"}
    pairs = [(lead[table, draw], Run(Path(), known | {"dataset": f"{table}"}, "")) for table, draw in np.ndindex(4, 3)]
    error, naive = scipy.stats.sem(lead.mean(1)), scipy.stats.sem(lead.ravel())
    assert ahead_by(pairs) == f"{lead.mean():+.1f} ± {error:.1f} (n = 12)" and error > 1.5 * naive


def test_clusters_of_unequal_size():
    # Classes of 2 and 1 runs: mean 4, sums of deviations (1 - 4) + (3 - 4) = -4 and 4, G / (G - 1) = 2, n = 3.
    half = 12.7062047 * math.sqrt(2 * (16 + 16)) / 3
    assert confidence_interval([1.0, 3.0, 8.0], ["a", "a", "b"]) == pytest.approx((4 - half, 4 + half))


def test_the_seeds_of_the_only_class_are_the_units():
    values = [3.0, 5.0, 4.0, 8.0]
    expected = scipy.stats.t.interval(0.95, 3, 5.0, scipy.stats.sem(values))
    assert confidence_interval(values, ["7"] * 4) == pytest.approx(expected)


def test_it_covers_the_mean_as_often_as_it_says():
    rng, hits, rounds = np.random.default_rng(1), 0, 1500
    for _ in range(rounds):
        values = rng.normal(0, 3, (6, 1)) + rng.normal(0, 1, (6, 4))
        low, high = confidence_interval(values.ravel().tolist(), np.repeat(np.arange(6), 4).tolist())
        hits += low <= 0 <= high
    assert hits / rounds == pytest.approx(0.95, abs=0.02)


def test_the_signed_rank_test():
    # All ten of one sign: 2 of the 2^10 sign patterns are as extreme.
    assert signed_rank([float(i) for i in range(1, 11)]) == pytest.approx(2 / 1024)
    # Ranks 1 to 4 with the smallest negative: patterns with a sum of negative ranks of 0 or 1, on both sides, of 16.
    assert signed_rank([-1.0, 2.0, 3.0, 4.0]) == pytest.approx(4 / 16)
    assert signed_rank([0.0, 5.0, 0.0]) == 1.0  # one difference is left
    assert signed_rank([0.0, 0.0]) == 1.0
    assert signed_rank([5.0] * 6) == pytest.approx(2 / 64)  # ties


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_comparison_takes_the_means_of_classes():
    differences = [1.0, 3.0, 4.0, 6.0, -1.0, 0.0]
    found = compare(differences, ["a", "a", "b", "b", "c", "c"])
    assert (found.mean, found.pairs, found.units) == (pytest.approx(13 / 6), 6, 3)
    assert found.p == pytest.approx(scipy.stats.wilcoxon([2.0, 5.0, -0.5]).pvalue)
    alone = compare([2.0], ["a"])
    assert alone.mean == 2.0 and math.isnan(alone.low) and math.isnan(alone.p)
