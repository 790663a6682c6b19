"""Mapped training samples are kept, and shared by all that prepare them in the same way."""

import numpy as np
import pytest
import torch

from elite_pl.data import datamodule, feature_maps, mapped, splits
from elite_pl.data.arrays import Arrays
from elite_pl.data.gradients import OrientedGradients, oriented_gradients
from elite_pl.models.mixture import Member, Mixture

N = 40


def make_data(feature_map):
    """34 unlabeled and 6 labeled images of random pixels."""
    x = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
    y = np.arange(N) % 2
    split = splits.Split(np.arange(34), np.arange(34, N), np.array([1, 1, 1, -1, -1, -1], dtype=np.int8), np.arange(N))
    arrays = Arrays("made", x, y, x, y, None, "classes", "0" * 16)
    options = {
        "normal_class": 0,
        "size": None,
        "scaling": "unit",
        "batch_size": 5,
        "labeled_batch_size": None,
        "seed": 0,
    }
    return datamodule.PollutedData(arrays, split, feature_map=feature_map, **options)


def gradients(samples):
    return oriented_gradients(samples, 3, 9, 0.3)


@pytest.fixture
def calls(monkeypatch):
    """Counts the images that go through gradients."""
    counted, forward = [], OrientedGradients.forward
    monkeypatch.setattr(OrientedGradients, "forward", lambda self, x: counted.append(len(x)) or forward(self, x))
    return counted


def test_each_training_sample_is_mapped_once(calls):
    data = make_data(gradients)
    calls.clear()  # the fit looks at all of them
    for _ in range(2):
        own = data.under(data.split, fitted=data.preprocessing)
        list(own.unlabeled.in_order()), own.labeled[:], list(datamodule.TrainingBatches(own, lambda: 0))
    assert sum(calls) == N


def test_samples_of_a_file_may_be_read_only():
    training = np.zeros((N, 1, 8, 8), dtype=np.uint8)
    training.setflags(write=False)
    torch.set_warn_always(True)  # not once a process
    try:
        assert mapped.Mapped.of([], training, make_data(gradients).preprocessing) is not None
    finally:
        torch.set_warn_always(False)


def test_kept_samples_are_those_that_the_map_makes():
    data = make_data(gradients)
    order = torch.tensor([7, 3, 7, 12])
    data.unlabeled[:10]
    for index in (order, slice(2, 9), slice(None)):
        torch.testing.assert_close(data.unlabeled[index], data.unlabeled.gather(index))
    assert data.unlabeled[:0].shape == (0, data.sample_shape[0])


def test_other_preprocessing_shares_nothing():
    data = make_data(gradients)
    data.unlabeled[:]
    other = data.under(data.split, feature_map=lambda x: oriented_gradients(x, 3, 5, 0.3))
    assert other.unlabeled[:].shape != data.unlabeled[:].shape
    torch.testing.assert_close(other.unlabeled[:], other.unlabeled.gather(slice(None)))


def test_samples_that_would_take_too_much_memory_are_mapped_each_time(calls, monkeypatch):
    monkeypatch.setattr(mapped, "MOST", 1000)
    data = make_data(gradients)
    calls.clear()
    data.unlabeled[:], data.unlabeled[:]
    assert sum(calls) == 2 * 34


class Mean(torch.nn.Module):
    def forward(self, sample):
        return sample.mean(1)


def test_members_with_the_same_map_see_one_mapped_batch(calls):
    x = torch.rand(6, 1, 8, 8)
    maps = [oriented_gradients(x, 3, 9, norm) for norm in (0.3, 0.3, 0.6)]
    assert [feature_maps.same(maps[0], other) for other in (*maps, None)] == [True, True, False, False]
    mixture = Mixture([Member(Mean(), None, (1, 8, 8), one) for one in maps])
    calls.clear()
    mixture(x)
    assert calls == [6, 6]
