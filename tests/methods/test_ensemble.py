"""`ensemble=N`: one method from several seeds."""

import numpy as np
import pytest
import torch
from vectors import labeled_vectors

import elite_pl
from elite_pl.models.scores import MeanOverViews
from elite_pl.runs.ensembles import with_seeds

X, Y = labeled_vectors(80, 4, 2.0)
SHORT = ["epochs=3", "threads=1"]


@pytest.mark.parametrize("method", ["deep_sad", "elite_ae", "extra_trees"])
def test_its_members_are_the_detectors_of_single_runs(monkeypatch, method):
    exact = [*SHORT, "trainer.precision=64", *(["method.trees=10"] if method == "extra_trees" else [])]
    seeds = []

    def watched(spec, data, count):
        for own, under in with_seeds(spec, data, count):
            seeds.append(own.config.seed)
            yield own, under

    monkeypatch.setattr("elite_pl.runs.ensembles.with_seeds", watched)
    several = elite_pl.fit(X, Y, method, seed=5, overrides=[*exact, "ensemble=3", "threshold=fitted"])
    assert seeds[0] == 5 and len(set(seeds)) == 3 and several.method == method
    alone = [elite_pl.fit(X, Y, method, seed=seed, overrides=exact) for seed in seeds]
    scores = np.stack([one.score(X) for one in alone], axis=1)
    assert np.ptp(scores, axis=1).max() > 0, "the seeds differ"
    expected = several.model.mean(torch.as_tensor(scores))
    np.testing.assert_allclose(several.score(X), expected, rtol=1e-9)


def test_it_is_saved_with_probabilities(command):
    outcome = command("method=labels_only_tabular", "ensemble=2", "threshold=crossfit", *SHORT)
    assert outcome.code == 0, outcome.err
    assert "2 trainings of labels_only_tabular" in outcome.err and "cross-fitting: 5 trainings" in outcome.err
    detector = elite_pl.load(outcome.directory / "detector.pt")
    rows = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    probability = detector.probability(rows)
    assert ((probability > 0) & (probability < 1)).all()


def test_each_member_scores_the_mean_of_views(command):
    outcome = command(
        "method=labels_only_augmented", "augmentation=noise", "augmentation.test_views=2", "ensemble=2", *SHORT
    )
    assert outcome.code == 0, outcome.err
    detector = elite_pl.load(outcome.directory / "detector.pt")
    first, second = (member.score for member in detector.model.members)
    assert type(first) is type(second) is MeanOverViews and torch.equal(first.views, second.views)
    rows = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    before = detector.score(rows)
    with torch.no_grad():
        second.views.zero_()
    assert (detector.score(rows) != before).any(), "the views of the second take part"
