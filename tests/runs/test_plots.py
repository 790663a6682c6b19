"""The pictures of a run: their numbers, and that they are drawn from what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from elite_pl.report import figures
from elite_pl.runs import plots

pytestmark = pytest.mark.usefixtures("rendered")


def test_roc_curve_has_the_area_that_scikit_learn_finds() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(3000) < 0.3
    for scores in (generator.normal(size=3000) + truth, generator.integers(0, 5, 3000) + truth, np.zeros(3000)):
        expected = roc_auc_score(truth, scores)
        fpr, tpr = plots.roc_curve(scores, truth)
        assert np.trapezoid(tpr, fpr) == pytest.approx(expected, abs=1e-12)
        fpr, tpr = plots.roc_curve(scores, truth, max_points=300)
        assert len(fpr) <= 300
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(tpr, fpr) == pytest.approx(expected, abs=1e-3)


def test_histograms_count_every_sample_whatever_the_range() -> None:
    truth = np.arange(1000) % 10 == 0
    generator = np.random.default_rng(0)
    for values in (generator.standard_cauchy(1000), np.zeros(1000), np.full(1000, 1e20), np.full(1000, -3e-30)):
        edges, counts = plots.class_histograms(values, truth)
        assert np.all(np.diff(edges) > 0)
        assert (counts["normal"].sum(), counts["anomaly"].sum()) == (900, 100)
    assert plots.class_histograms([1.0, 2.0], None)[1]["all"].sum() == 2
    assert plots.class_histograms([], [])[1]["normal"].sum() == 0
    assert plots.class_histograms([1.0, 2.0], [True, True])[1]["normal"].sum() == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda path, scores, truth: plots.roc_plot(path, scores, truth, "title"),
        lambda path, scores, truth: plots.score_plot(path, scores, truth, 0.5),
        lambda path, scores, truth: plots.score_plot(path, scores, None, None),
        lambda path, scores, truth: plots.suspicion_plot(path, scores, truth),
        lambda path, scores, truth: figures.comparison_plot(
            path, [(m, g, 0.9) for m in ("elite_svdd", "deep_svdd") for g in ("0", "3")] + [("deep_sad", "3", 0.1)]
        ),
    ],
    ids=["roc", "score", "score-unknown", "suspicion", "comparison"],
)
def test_pictures(tmp_path: Path, draw: Callable[..., None]) -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(200) < 0.3
    draw(tmp_path / "a.png", generator.normal(size=200) + truth, truth)
    (path,) = tmp_path.iterdir()
    assert path.name == "a.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
