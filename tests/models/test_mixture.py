"""A mean of several scores: how rare each is among unlabeled samples."""

import numpy as np
import pytest
import torch
from torch import nn

from elite_pl.models.mixture import Member, Mixture


class Feature(nn.Module):
    """One of the features of a sample as its score."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, sample):
        return sample[:, self.number]


def mixture(weight, unlabeled):
    made = Mixture([Member(Feature(i), None, (len(weight),), None) for i in range(len(weight))]).double()
    made.set(torch.tensor(weight, dtype=torch.float64), torch.as_tensor(unlabeled).T)
    return made


def test_a_score_counts_by_how_few_unlabeled_samples_have_a_higher_one():
    unlabeled = np.random.default_rng(0).standard_normal((2000, 2))
    sample = torch.tensor([[-0.5, 0.0], [0.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    higher = (unlabeled[None] > sample.numpy()[:, None]).mean(1)
    expected = -np.log(higher) @ [0.25, 0.75]
    np.testing.assert_allclose(mixture([0.25, 0.75], unlabeled)(sample), expected, rtol=0.01)


def test_units_and_bent_scales_of_members_do_not_matter_among_the_unlabeled_samples():
    unlabeled = np.random.default_rng(0).standard_normal((500, 2))
    bent = np.stack([np.exp(3 * unlabeled[:, 0]), 100 * unlabeled[:, 1] - 7], axis=1)
    score, of_bent = (mixture([0.5, 0.5], x)(torch.as_tensor(x)) for x in (unlabeled, bent))
    np.testing.assert_allclose(score, of_bent, atol=0.01)


def test_beyond_all_unlabeled_samples_a_score_still_tells():
    made = mixture([1.0], np.linspace(0, 1, 100)[:, None])
    far = made(torch.tensor([[-3.0], [0.0], [1.0], [2.0], [5.0]], dtype=torch.float64))
    assert (far.diff() > 0).all()
    assert float(far[2]) == pytest.approx(np.log(101))


def test_the_middle_of_ties_counts():
    made = mixture([1.0], np.repeat([0.0, 1.0], 50)[:, None])
    low, high = made(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert 0 < low < np.log(2) < high < np.log(101)


def test_a_state_of_older_files_is_a_mean_of_standardized_scores(monkeypatch):
    """They had a location for each member in the place of knots."""
    state = {
        "weight": torch.tensor([0.3, 0.7]),
        "location": torch.tensor([1.0, -2.0]),
        "scale": torch.tensor([2.0, 0.5]),
    }
    members = iter([Member(Feature(i), None, (2,), None) for i in range(2)])
    monkeypatch.setattr(Member, "of_plain", lambda *_: next(members))
    old = Mixture.of_plain([{}, {}], state, torch.float32, {})
    sample = torch.randn(50, 2)
    expected = ((sample - state["location"]) / state["scale"]) @ state["weight"]
    torch.testing.assert_close(old(sample), expected)


def test_a_state_that_means_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(Member, "of_plain", lambda *_: Member(Feature(0), None, (1,), None))
    state = mixture([1.0], np.linspace(0, 1, 100)[:, None]).state()
    made = Mixture.of_plain([{}], state, torch.float64, {})
    assert float(made(torch.tensor([[1.0]], dtype=torch.float64))) == pytest.approx(np.log(101))
    for name, value in (("knots", state["knots"].flip(0)), ("scale", -state["scale"]), ("rarest", torch.zeros(1))):
        with pytest.raises(ValueError, match="cannot be rebuilt"):
            Mixture.of_plain([{}], {**state, name: value}, torch.float64, {})
