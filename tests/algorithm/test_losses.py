"""Eq. 4, margin, center and Deep SAD's loss on numbers one can check by hand; batch normalization's bookkeeping."""

import pytest
import torch
from torch import nn

from elite_pl.algorithm import losses
from elite_pl.algorithm.batchnorm import calibrate, frozen_statistics


def test_hinge_is_equation_4():
    score, label = torch.tensor([0.5, 3.0, 0.5, 3.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert losses.hinge(score, label, 2.0).tolist() == [0.5, 3.0, 1.5, 0.0]


def test_an_anomaly_beyond_the_margin_pulls_on_nothing():
    score = torch.tensor([1.0, 3.0], requires_grad=True)
    losses.hinge(score, torch.tensor([-1.0, -1.0]), 2.0).sum().backward()
    assert score.grad.tolist() == [-1.0, 0.0]


def test_inverse_distance():
    score, label = torch.tensor([4.0, 4.0]), torch.tensor([1.0, -1.0])
    assert losses.inverse_distance(score, label, 0.0).tolist() == [4.0, 0.25]


def test_margins():
    score = torch.tensor([1.0, 2.0, 6.0])
    assert losses.margin_mean_initial(score) == 3.0
    assert losses.margin_max_labeled(score[1:]) == 6.0


def test_center_keeps_away_from_zero():
    mean = torch.tensor([0.0, 0.05, -0.05, 0.3, -0.3])
    torch.testing.assert_close(losses.center_of(mean), torch.tensor([0.1, 0.1, -0.1, 0.3, -0.3]))


@pytest.fixture
def norm():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(1, 2)
    return layer.train()


@pytest.mark.parametrize("use", ["batch", "running"])
def test_frozen_statistics_do_not_move(norm, use):
    before = {name: b.clone() for name, b in norm.named_buffers()}
    sample = torch.randn(8, 3)
    reference = norm.eval()(sample) if use == "running" else nn.BatchNorm1d(3).train()(sample)
    norm.train()
    with frozen_statistics(norm, use):
        output = norm(sample)
    torch.testing.assert_close(output, reference)
    assert norm.training and norm.track_running_stats
    assert all(b.equal(before[name]) for name, b in norm.named_buffers())
    norm(sample)
    assert not norm.running_mean.equal(before["running_mean"]), "outside, they move again"


def test_frozen_statistics_are_restored_after_an_error(norm):
    with pytest.raises(ValueError), frozen_statistics(norm):
        raise ValueError
    assert norm.track_running_stats and norm.training


def test_calibration_averages_over_all_batches(norm):
    batches = list(torch.randn(5, 16, 3))
    momentum = norm.momentum
    calibrate(norm, norm, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == momentum and norm.training
