"""Cross-fitting: every training sample is scored by a network that was not trained on it, and nothing else changes."""

import numpy as np
import pytest
import torch

from elite_pl import config
from elite_pl.algorithm.metrics import roc_auc
from elite_pl.data.arrays import make_arrays
from elite_pl.errors import LabelError
from elite_pl.methods.base import BaseDetector
from elite_pl.runs.build import make_data
from elite_pl.runs.crossfit import cross_fit
from elite_pl.runs.spec import RunSpec

DATA = ("dataset=npz", "dataset.path=null", "dataset.labels=known", "logger=none", "threads=1")
QUICK = ("epochs=8", "method.pretrain_epochs=1", "backbone.hidden=[8]", "backbone=mlp", "batch_size=32")


def clouds(normal=8, anomalous=8, n=120):
    """Two clouds, a quarter of the samples in the second one, and labels of some of each."""
    rng = np.random.default_rng(0)
    first = n * 3 // 4
    x = np.concatenate([rng.normal(0, 1, (first, 4)), rng.normal(3, 1, (n - first, 4))]).astype(np.float32)
    y = np.zeros(n, dtype=np.int64)
    y[:normal], y[first : first + anomalous] = 1, -1
    return make_arrays("clouds", x, y, x[:0], y[:0], labels="known")


def prepared(method, *more, **labels):
    quick = QUICK if method == "labels_only" else ()
    spec = RunSpec.of(config.compose([*DATA, f"method={method}", *quick, *more]))
    return spec, make_data(spec.config, clouds(**labels))


@pytest.mark.parametrize("method", ["labels_only", "extra_trees"])
def test_no_network_has_seen_the_sample_that_it_scores(method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained, check = [], BaseDetector.check

    def note(detector, data):
        trained.append(data.split)
        check(detector, data)

    spec, data = prepared(method)
    monkeypatch.setattr(BaseDetector, "check", note)
    before = torch.random.get_rng_state()
    found = cross_fit(spec, data, 4)
    assert torch.random.get_rng_state().equal(before)
    assert found.folds == len(trained) == 4 and not list(tmp_path.iterdir())
    for part in ("labeled", "unlabeled"):
        whole = getattr(data.split, part)
        held = [np.setdiff1d(whole, getattr(split, part)) for split in trained]
        assert sorted(np.concatenate(held)) == sorted(whole) and len({len(one) // 2 for one in held}) == 1
    hidden = torch.as_tensor(data.split.unlabeled >= 90)
    assert roc_auc(found.unlabeled, hidden) > 0.85 and roc_auc(found.labeled, data.labeled_y < 0) > 0.8
    assert ((found.unlabeled > 0) & (found.unlabeled < 1)).all()
    again = cross_fit(spec, data, 4)
    assert again.labeled.equal(found.labeled) and again.unlabeled.equal(found.unlabeled)


def test_few_labels_of_a_kind_make_fewer_parts():
    found = cross_fit(*prepared("extra_trees", anomalous=3), 5)
    assert found.folds == 3 and not found.labeled.isnan().any()


def test_the_only_anomaly_is_in_every_training():
    found = cross_fit(*prepared("labels_only", normal=3, anomalous=1), 5)
    assert found.folds == 3 and found.labeled.isnan().tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("labels", [{"anomalous": 0}, {"normal": 0}, {"normal": 0, "anomalous": 0}])
def test_labels_of_one_kind_or_none(labels):
    spec, data = prepared("isolation_forest", **labels)
    found = cross_fit(spec, data, 3)
    assert len(found.labeled) == len(data.labeled) and not found.labeled.isnan().any() and found.folds == 3


def test_a_method_that_lacks_labels_says_so():
    with pytest.raises(LabelError, match="1 normal"):
        cross_fit(*prepared("ssad", normal=2, anomalous=2), 5)
