"""Batches: every unlabeled sample once an epoch, in an order that the seed and the epoch decide."""

import numpy as np
import pytest
import torch

from elite_pl.data import datamodule, splits
from elite_pl.data.arrays import Arrays


def make_data(n=21, batch_size=5, labeled_batch_size=None, x=None, seed=0, size=None, scaling="unit"):
    """n unlabeled and 6 labeled samples, whose one feature is their index."""
    total = n + 6
    x = np.arange(total, dtype=np.float32)[:, None] if x is None else x
    y = np.arange(total) % 2
    split = splits.Split(
        np.arange(n), np.arange(n, total), np.array([1, 1, 1, -1, -1, -1], dtype=np.int8), np.arange(total)
    )
    arrays = Arrays("made", x, y, x, y, None, "classes", "0" * 16)
    return datamodule.PollutedData(
        arrays,
        split,
        normal_class=0,
        size=size,
        scaling=scaling,
        batch_size=batch_size,
        labeled_batch_size=labeled_batch_size,
        seed=seed,
    )


def epoch(data, number=0):
    return list(datamodule.TrainingBatches(data, lambda: number))


@pytest.mark.parametrize(
    "n, size, lengths",
    [(20, 5, [5, 5, 5, 5]), (21, 5, [5, 5, 5, 6]), (22, 5, [5, 5, 5, 5, 2]), (3, 5, [3]), (6, 5, [6])],
)
def test_a_last_batch_of_one_joins_the_one_before(n, size, lengths):
    data = make_data(n, size)
    batches = epoch(data)
    assert [len(b["unlabeled"]) for b in batches] == lengths
    assert len(datamodule.TrainingBatches(data, lambda: 0)) == len(lengths)
    assert sorted(torch.cat([b["index"] for b in batches]).tolist()) == list(range(n))


def test_batches_hold_what_their_index_says():
    data = make_data()
    for batch in epoch(data):
        raw = batch["unlabeled"] * data.preprocessing.scale + data.preprocessing.shift
        torch.testing.assert_close(raw[:, 0], batch["index"].float())
        assert batch["truth"].tolist() == [1.0 if i % 2 == 0 else -1.0 for i in batch["index"].tolist()]
        assert batch["labeled_y"].tolist() == [1, 1, 1, -1, -1, -1]


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(number, **options):
        return torch.cat([b["index"] for b in epoch(make_data(**options), number)]).tolist()

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)
    assert order(0) == first
    assert order(1) != first and order(0, seed=1) != first
    assert order(0, batch_size=7) == first, "the batch size cuts the same order elsewhere"


def test_a_labeled_batch_is_balanced_and_drawn_anew():
    batches = epoch(make_data(labeled_batch_size=4))
    assert all(sorted(b["labeled_y"].tolist()) == [-1, -1, 1, 1] for b in batches)
    assert all(len(b["labeled"].unique(dim=0)) == 4 for b in batches), "without replacement"
    assert len({tuple(b["labeled"].flatten().tolist()) for b in batches}) > 1


def test_scaling():
    rng = np.random.default_rng(0)
    pixels = make_data(x=rng.integers(0, 256, (27, 1, 4, 4)).astype(np.uint8))
    assert pixels.preprocessing.shift == 0 and pixels.preprocessing.scale == 255
    unit = make_data(x=rng.random((27, 3)).astype(np.float32))
    assert unit.preprocessing.shift == 0 and unit.preprocessing.scale == 1
    table = rng.normal(50, 9, (27, 3)).astype(np.float32)
    table[:, 2] = 7
    training = torch.cat(list(make_data(x=table).training_samples(torch.arange(27))))
    torch.testing.assert_close(training.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


def test_on_a_cpu_samples_stay_where_they_are():
    x = np.random.default_rng(0).random((27, 3), dtype=np.float32)
    data = make_data(x=x)
    assert data.arrays.x_train is x and not len(data.unlabeled.values)
    torch.testing.assert_close(data.unlabeled[:], torch.as_tensor(x[data.split.unlabeled]), rtol=0, atol=0)


def test_training_samples_are_all_unlabeled_and_labeled_ones():
    data = make_data(x=np.linspace(0, 1, 27, dtype=np.float32)[:, None])
    batches = list(data.training_samples(torch.randperm(27)))
    assert {len(b) for b in batches} <= {5, 6}
    torch.testing.assert_close(torch.cat(batches)[:, 0].sort().values, torch.linspace(0, 1, 27))
