"""The audit of images by their neighbors, against all distances at once."""

import numpy as np
import torch

from elite_pl import config
from elite_pl.data.arrays import make_arrays
from elite_pl.data.gradients import OrientedGradients
from elite_pl.runs import audit
from elite_pl.runs.build import make_data, make_detector
from elite_pl.runs.decision import Decision

TYPED = ("dataset=npz", "dataset.path=null", "dataset.labels=known", "logger=none")


def test_images_are_compared_with_their_neighbors_and_not_with_themselves(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 1, 6, 5), dtype=np.uint8)
    x[30] = x[31]  # one of a pair is the nearest of the other
    y = np.repeat([0, 1, -1], [34, 4, 2])
    data = make_data(config.compose(TYPED), make_arrays("own", x, y, x[:0], y[:0], labels="known"))
    score = torch.as_tensor(rng.normal(size=34))
    vectors = OrientedGradients(7, 9, torch.ones(()))(torch.as_tensor(x) / 255).numpy()
    distance = np.linalg.norm(vectors[:, None] - vectors, axis=2)

    def expected(references):
        among = distance[:34, references].copy()
        among[references, np.arange(len(references))] = np.inf
        nearest = np.argsort(among, axis=1, kind="stable")[:, :10]
        return (score.numpy() + score.numpy()[references][nearest].mean(1)) / 2

    def agrees(references):  # but for a tie in the digits of float32
        return np.mean(np.isclose(audit.smoothed(score, data.unlabeled), expected(references), rtol=1e-6)) > 0.9

    assert agrees(np.arange(34))
    monkeypatch.setattr(audit, "REFERENCES", 12)
    assert agrees(np.arange(0, 34, 3))
    for method, own in {"auto": True, "extra_trees": False}.items():
        detector = make_detector(config.compose((*TYPED, f"method={method}")), data.sample_shape)
        assert torch.equal(audit.audit(detector, data, score, Decision(0.0)).suspicion, score) == own
    nearest = audit.nearest_labeled(data)
    assert nearest[:, 0].tolist() == (34 + distance[:34, 34:38].argmin(1)).tolist()
    assert nearest[:, 1].tolist() == (38 + distance[:34, 38:].argmin(1)).tolist()


def test_large_images_shrink_before_they_are_compared():
    assert audit.compared(torch.rand(2, 3, 100, 80)).shape == (2, 49 * 36), "the gradients of 32 x 32 pixels"
    assert audit.compared(torch.rand(2, 3, 100, 3)).shape == (2, 49 * 36)
    assert audit.compared(torch.rand(2, 3, 7, 3)).shape == (2, 63), "too narrow for a gradient: as it is"
