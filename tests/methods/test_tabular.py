"""The presets for rows of a table."""

import csv

import numpy as np
import pytest
import torch

import elite_pl
from elite_pl.methods.base import balanced


def own_data(folder, n=300):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (n, 3)), rng.normal(3, 1, (n // 10, 3))]).astype(np.float32)
    np.savez(folder / "own.npz", x=x, y=np.repeat([0, 1], [n, n // 10]))
    return ["dataset=npz", "dataset.path=own.npz", "pollution=0.09", "label_ratio=0.05", "threads=1"]


def test_steps_that_end_within_an_epoch_are_in_the_curves(command, tmp_path):
    outcome = command(*own_data(tmp_path), "method=elite_tabular", "trainer.max_steps=5")
    assert outcome.code == 0, outcome.err
    *_, before, last = csv.DictReader((outcome.directory / "history.csv").read_text().splitlines())
    assert (before["step"], last["step"]) == ("4", "5")
    assert last["train/loss"] != before["train/loss"]
    assert len(np.load(outcome.directory / "meta_gradient.npz")["iteration"]) == 5
    assert command(*own_data(tmp_path), "method=labels_only_tabular", "trainer.max_steps=2", "batch_size=32").code == 0


def test_both_kinds_of_labels_weigh_the_same():
    label = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    places = balanced(label)
    assert places[:5].tolist() == [0, 2, 4, 5, 6] and places[5:].tolist() == [1, 3, 1, 3, 1]
    assert balanced(torch.ones(2)).tolist() == [0, 1], "labels of one kind only"
    assert len(balanced(torch.ones(0))) == 0


@pytest.mark.parametrize("method", ["elite_tabular", "labels_only_tabular", "deep_sad_tabular", "mean_teacher_tabular"])
def test_a_few_labels_find_anomalies_that_lie_between_normal_rows(method):
    """Normal rows on a circle, anomalies within it: without a ramp all scores fall before the labels part them."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.1, (400, 2))
    x = np.concatenate([ring, rng.normal(0, 0.2, (40, 2))])
    y = np.zeros(440, int)
    y[:10], y[400:405] = 1, -1
    score = elite_pl.fit(x, y, method, overrides=["threshold=fitted"]).score(x)
    assert np.quantile(score[10:400], 0.9) < np.quantile(score[405:], 0.1)
