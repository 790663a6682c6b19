"""What a few labeled samples tell of the unlabeled ones, on samples of which the truth is known."""

import pytest
import torch

from elite_pl.algorithm.calibration import Calibration, at_share, contradiction, posterior, share_below
from elite_pl.algorithm.metrics import roc_auc


def drawn(hidden, distance, labels=200, n=4000, seed=0):
    """Samples of two Gaussians: shares and labels of the labeled ones, shares and truth of the unlabeled ones."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) < hidden * n
    score = torch.randn(n, generator=generator, dtype=torch.float64) + distance * truth
    label = torch.tensor([1, -1]).repeat_interleave(labels // 2)
    labeled = torch.randn(labels, generator=generator, dtype=torch.float64) + distance * (label < 0)
    return share_below(labeled, score), label, share_below(score, score), truth


@pytest.mark.parametrize("hidden", [0.05, 0.2, 0.5])
def test_the_hidden_share_is_found_from_labels_that_are_half_and_half(hidden):
    labeled, label, unlabeled, truth = drawn(hidden, 3)
    found = posterior(labeled, label, unlabeled)
    assert found.hidden.low < hidden < found.hidden.high
    assert found.hidden.mean == pytest.approx(hidden, rel=0.3)
    flagged = unlabeled > found.by_cost(1, 1)
    assert flagged.double().mean() == pytest.approx(hidden, rel=0.3)
    precision = found.precision(found.by_cost(1, 1))
    assert precision.low < truth[flagged].double().mean() < precision.high


def test_few_labels_or_poor_scores_make_wide_intervals():
    def width(*args, **options):
        found = posterior(*drawn(*args, **options)[:3]).hidden
        return found.high - found.low

    sure = width(0.2, 3)
    assert width(0.2, 3, labels=8) > 2 * sure and width(0.2, 0.3) > 3 * sure


def test_each_rule_flags_what_it_says():
    labeled, label, unlabeled, truth = drawn(0.2, 2.5)
    found = posterior(labeled, label, unlabeled)
    flagged = unlabeled[~truth] > found.by_false_alarm_rate(0.1)
    assert flagged.double().mean() == pytest.approx(0.1, abs=0.03)
    assert (unlabeled > found.by_contamination(0.15)).double().mean() == pytest.approx(0.15, abs=0.002)
    assert found.by_contamination(None) == pytest.approx(1 - found.hidden.mean, abs=0.01)
    assert found.by_cost(10, 1) < found.by_cost(1, 1) < found.by_cost(1, 10)
    assert found.by_cost(1, 1e-9) == 0 and found.by_cost(1e-9, 1) == 1  # all, and none


def test_probabilities_follow_the_scores_of_another_detector():
    labeled, label, unlabeled, truth = drawn(0.2, 3)
    made = posterior(labeled, label, unlabeled).of_scores(100 + 10 * torch.logit(unlabeled))
    p = made.at(100 + 10 * torch.logit(unlabeled))
    assert ((p >= 0) & (p <= 1)).all() and (p[unlabeled.argsort()].diff() >= 0).all()
    for low in (0.0, 0.3, 0.6):
        part = (p >= low) & (p < low + 0.4)
        assert truth[part].double().mean() == pytest.approx(float(p[part].mean()), abs=0.1)
    tied = posterior(labeled, label, unlabeled).of_scores((unlabeled > 0.7).double())
    assert (tied.score.diff() > 0).all() and tied.at(torch.tensor([0.0, 1.0]))[1] > 0.5
    assert (
        Calibration(torch.zeros(1), torch.full((1,), 0.3)).at(torch.tensor([-1.0, 9.0])).tolist()
        == [pytest.approx(0.3)] * 2
    )


def test_a_label_is_contradicted_by_those_of_the_other_kind_that_lie_beyond_it():
    score, label = torch.tensor([0.1, 0.2, 0.9, 0.15, 0.8, 0.9]), torch.tensor([1, 1, 1, -1, -1, -1.0])
    found = contradiction(score, label)
    torch.testing.assert_close(found, torch.tensor([0, 1 / 3, 2.5 / 3, 2 / 3, 1 / 3, 0.5 / 3], dtype=torch.float64))
    for kind in (1, -1):
        assert 1 - found[label == kind].mean() == pytest.approx(roc_auc(score, label < 0))
    assert contradiction(score, torch.ones(6)).tolist() == [0] * 6


def test_shares_count_equal_scores_half():
    others = torch.tensor([0.0, 1.0, 1.0, 3.0])
    assert share_below(torch.tensor([-1.0, 1.0, 9.0]), others).tolist() == [0.1, 0.5, 0.9]


def test_a_share_and_a_score_are_two_ways_to_say_the_same():
    score = torch.tensor([5.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    share = torch.tensor([0.0, 0.2, 0.3, 0.6, 1.0], dtype=torch.float64)
    torch.testing.assert_close(at_share(score, share), torch.tensor([1.0, 1.0, 1.5, 5.0, 9.0], dtype=torch.float64))
