"""`method=auto`: several methods, weighted by labels that were held out."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import elite_pl
from elite_pl.methods.auto import Auto, Candidate, Terms, explained, normalized
from elite_pl.runs import crossfit

NETWORKS = [
    "method.candidates.vectors.elite_tabular.trainer.max_steps=5",
    "method.candidates.vectors.elite_tabular.seeds=2",
    "method.candidates.vectors.elite_on_a_center.trainer.max_steps=5",
    "method.candidates.vectors.elite_on_a_center.seeds=1",
    "method.folds.vectors=2",
]
SHORT = ["method.candidates.vectors.extra_trees.method.trees=10", *NETWORKS]


@pytest.fixture(scope="module")
def table():
    """Anomalies off the center in all of four features; 10 labels of each kind."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (100, 4)), rng.normal(2, 1, (40, 4))])
    y = np.zeros(140, dtype=int)
    y[:10], y[100:110] = 1, -1
    return x, y


def test_the_mean_of_the_candidates_is_saved_and_read_back(table, tmp_path, caplog):
    x, y = table
    caplog.set_level(logging.INFO, "elite_pl")
    detector = elite_pl.fit(x, y, method="auto", overrides=SHORT)
    names = ["extra_trees", "logistic_regression", "label_spreading", "elite_tabular", "elite_on_a_center"]
    for name in names:
        assert re.search(rf"candidate {name}, ROC AUC \S+ \(95 % interval \S+ to \S+\) on held-out labels", caplog.text)
    weight = detector.model.weight
    said = re.search(r"weights: extra_trees (\d+) % \(prior 2.*elite_tabular (\d+) % \(prior 4, clean 0", caplog.text)
    np.testing.assert_allclose(np.array(said.groups(), float) / 100, [weight[0], weight[3:5].sum()], atol=0.006)
    assert len(weight) == 6 and float(weight.sum()) == pytest.approx(1) and weight[3] == weight[4]
    truth = np.arange(140) >= 100
    assert np.median(detector.score(x)[truth]) > np.quantile(detector.score(x)[~truth], 0.9)
    detector.save(tmp_path / "detector.pt")
    np.testing.assert_array_equal(elite_pl.load(tmp_path / "detector.pt").score(x), detector.score(x))


def test_elite_with_two_scores_is_the_mean_of_both(table):
    detector = elite_pl.fit(*table, method="elite_two_scores", overrides=NETWORKS)
    assert [type(member.score).__name__ for member in detector.model.members] == ["Readout", "Readout", "Hypersphere"]
    weight = detector.model.weight
    assert weight[0] == weight[1] and float(weight.sum()) == pytest.approx(1)
    equal = elite_pl.fit(*table, method="elite_two_scores", overrides=[*NETWORKS, "method.folds.vectors=0"])
    assert equal.model.weight.tolist() == pytest.approx([0.25, 0.25, 0.5])
    scores = detector.score(table[0])
    assert np.median(scores[100:]) > np.quantile(scores[:100], 0.9)
    with pytest.raises(ValueError, match="elite_two_scores has candidates for vectors, and the samples are images"):
        elite_pl.fit(np.zeros((140, 8, 8), np.float32), table[1], method="elite_two_scores")
    with pytest.raises(ValueError, match=r"^y: elite_two_scores: none of its candidates for vectors can learn"):
        elite_pl.fit(table[0], np.zeros(140, dtype=int), method="elite_two_scores")


def test_networks_that_are_trained_together_are_those_of_one_by_one(table, monkeypatch):
    x, y = table
    y = y.copy()
    y[10:13] = 1  # so that the parts differ in their numbers
    exact = [*SHORT, "method.folds.vectors=3", "trainer.precision=64"]
    exact += [f"~method.candidates.vectors.{name}" for name in ("label_spreading", "logistic_regression")]
    together = elite_pl.fit(x, y, overrides=exact)
    monkeypatch.setattr(crossfit, "why_not", lambda *_: "for this test")
    alone = elite_pl.fit(x, y, overrides=exact)
    np.testing.assert_allclose(together.score(x), alone.score(x), rtol=1e-9)
    np.testing.assert_allclose(together.model.weight, alone.model.weight, rtol=1e-9)
    assert together.threshold == pytest.approx(alone.threshold, rel=1e-9)


ELITE = ["Readout", "Readout", "Hypersphere"]


@pytest.mark.filterwarnings("ignore:y has no -1")
@pytest.mark.parametrize("labels, learned", [([], ["IsolationTrees"]), ([1], ELITE), ([-1], ELITE)])
def test_without_labels_of_both_kinds_those_that_need_none_learn(table, caplog, labels, learned):
    x, y = table
    caplog.set_level(logging.INFO, "elite_pl")
    detector = elite_pl.fit(x, np.where(np.isin(y, labels), y, 0), method="auto", overrides=SHORT)
    assert [type(member.score).__name__ for member in detector.model.members] == learned
    assert np.isfinite(detector.score(x)).all()
    assert ("so a pollution of 0.1 is assumed" in caplog.text) == (learned == ELITE)
    assert "5 % of the unlabeled samples are above it" in caplog.text


def test_images_without_labels_have_a_candidate_too(caplog):
    caplog.set_level(logging.INFO, "elite_pl")
    x = np.random.default_rng(0).random((60, 8, 8), np.float32)
    short = ["epochs=1", "method.candidates.images_unlabeled.deep_svdd.method.pretrain_epochs=1"]
    detector = elite_pl.fit(x, np.zeros(60, dtype=int), overrides=short)
    assert [type(member.score).__name__ for member in detector.model.members] == ["Hypersphere"]
    assert "left out: extra_trees_pixels learns from labels, and there is none" in caplog.text
    assert "5 % of the unlabeled samples are above it" in caplog.text


def test_candidates_that_need_no_labels_are_enough(table):
    detector = elite_pl.fit(table[0], np.zeros(140, dtype=int), overrides=["~method.candidates.vectors"])
    assert np.isfinite(detector.score(table[0])).all()


def test_without_labels_candidates_that_need_them_are_refused(command):
    outcome = command("method=elite_two_scores", "label_ratio=0")
    *left_out, error = outcome.err.strip().splitlines()
    assert outcome.code == 2 and error.startswith("error: label_ratio=0.0: elite_two_scores: none of its candidates")
    assert left_out[-1] == "left out: elite_on_a_center learns from labels, and there is none"
    assert not [*Path("outputs").rglob("normal*")], "nothing is left behind"


def test_images_are_scored_by_their_edges(tmp_path):
    """Stripes that lie are normal, those that stand are anomalies; where they are says nothing."""
    rng = np.random.default_rng(0)
    x = rng.random((120, 12, 12), np.float32) / 4
    for i, place in enumerate(rng.integers(1, 9, 120)):
        (x[i] if i < 80 else x[i].T)[place : place + 2] += 0.7
    y = np.zeros(120, dtype=int)
    y[:10], y[80:90] = 1, -1
    detector = elite_pl.fit(x, y, overrides=["method.candidates.images.extra_trees.method.trees=10"])
    weight = detector.model.weight
    assert weight[0] > 0.8 > weight[1:].max() and len(weight) == 4, "neighbors share their label here"
    scores = detector.score(x)
    assert scores[80:].min() > scores[:80].max()
    detector.save(tmp_path / "detector.pt")
    np.testing.assert_array_equal(elite_pl.load(tmp_path / "detector.pt").score(x), scores)


def test_candidates_have_feature_maps_of_their_own(table):
    with pytest.raises(ValueError, match="feature_map: method=auto gives each candidate one of its own"):
        elite_pl.fit(*table, method="auto", overrides=["feature_map=tabular"])


def candidate(name, prior=1.0, scaled_by=(), auroc=(0.9, 0.05)):
    return Candidate(name, Terms(prior, scaled_by), [], torch.zeros(1, 1), auroc, 0.0)


def test_a_candidate_that_looks_worse_counts_less():
    auto = Auto(name="auto", pollution=0.1, candidates={}, folds={}, fewest=4, temperature={"vectors": 0.1})
    found = [candidate("a"), candidate("b", auroc=(0.8, 0.05)), candidate("c", prior=2.0)]
    e = np.exp(-1)
    weights = normalized(auto.factors(found, "vectors", 0.1))
    np.testing.assert_allclose(weights, np.array([1, e, 2]) / (3 + e), rtol=1e-6)
    unknown = [one._replace(auroc=None) for one in found]
    np.testing.assert_allclose(normalized(auto.factors(unknown, "vectors", 0.1)), [0.25, 0.25, 0.5])
    with pytest.raises(ValueError, match=r"temperature=.*: must be a group of keys, each a positive, finite number"):
        Auto(name="auto", pollution=0.1, candidates={}, folds={}, fewest=4, temperature={"vectors": 0.0})


def test_it_says_why_a_candidate_counts_as_it_does(table, caplog):
    factors = {"prior": 2.0, "clean": 0.53, "odds": 32.0, "held-out labels": 1.0}
    assert explained(candidate("graph"), 0.666, factors) == "graph 67 % (prior 2, clean 0.53, odds 32)"
    assert explained(candidate("tree"), 0.05, {"prior": 1.0, "held-out labels": 1.0}) == "tree 5 %"
    x, y = table
    caplog.set_level(logging.INFO, "elite_pl")
    few = np.where(np.isin(np.arange(140), [0, 1, 100]), y, 0)
    elite_pl.fit(x, few, method="auto", overrides=SHORT)
    assert "elite_tabular 42 % (prior 4, clean 0.9), " in caplog.text
    assert "elite_on_a_center 21 % (prior 2, clean 0.9); no labels tell the hidden share" in caplog.text
    assert "so a pollution of 0.1 is assumed" in caplog.text


def test_priors_follow_the_pollution_and_the_graph():
    auto = Auto(name="auto", pollution=0.1, candidates={}, folds={}, fewest=4, temperature={"vectors": 0.1})
    found = [candidate("tree"), candidate("elite", 2.0, ["clean"]), candidate("graph", 1.0, ["polluted", "odds"])]
    np.testing.assert_allclose(
        normalized(auto.factors(found, "vectors", 0.1)), np.array([1, 1.8, 0.9]) / 3.7, rtol=1e-6
    )
    np.testing.assert_allclose(normalized(auto.factors(found, "vectors", 0.5)), np.array([1, 1, 4.5]) / 6.5, rtol=1e-6)
    for area, odds in ((0.5, 2), (0.9, 9), (1.0, 32)):
        found = [candidate("tree", auroc=(area, 0.1)), candidate("graph", 0.5, ["odds"], auroc=(area, 0.1))]
        np.testing.assert_allclose(normalized(auto.factors(found, "vectors", 0.1))[1], odds / (2 + odds), rtol=1e-6)
    one = {"method": {}, "scaled_by": ["luck"]}
    with pytest.raises(ValueError, match=r"vectors\.a\.scaled_by=.*luck.*each one of clean, polluted, odds"):
        Auto(name="auto", pollution=0.1, candidates={"vectors": {"a": one}}, folds={}, fewest=4, temperature={})


@pytest.mark.parametrize("on_a_center", [False, True])
def test_hidden_anomalies_give_the_graph_the_place_of_elite(on_a_center):
    """Eight tight kinds of anomalies and a wide normal class: what is hidden shows in where the labels rank."""
    rng = np.random.default_rng(0)
    weight = {}
    for hidden in (10, 200):
        kinds = rng.normal(0, 6, (8, 6))
        x = np.concatenate(
            [rng.normal(0, 1, (210, 6)), kinds[np.arange(10 + hidden) % 8] + rng.normal(0, 1, (10 + hidden, 6))]
        )
        y = np.zeros(len(x), dtype=int)
        y[:10], y[210:220] = 1, -1
        fewer = [] if on_a_center else ["~method.candidates.vectors.elite_on_a_center"]
        detector = elite_pl.fit(x, y, method="auto", overrides=[*SHORT, *fewer])
        weight[hidden] = detector.model.weight[2:].tolist()
    assert weight[10][0] < sum(weight[10][1:3]), "elite_tabular, of two seeds here"
    assert weight[200][0] > sum(weight[200][1:3])
    if on_a_center:
        assert weight[10][0] < weight[10][3] and weight[200][0] > 2 * weight[200][3]
    else:
        assert weight[10][0] < sum(weight[10][1:]) and weight[200][0] > sum(weight[200][1:])
