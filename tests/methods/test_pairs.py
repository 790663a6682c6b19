"""PReNet and RoSAS, which learn from pairs of samples: their losses by hand, and what their scores are made of."""

import math

import numpy as np
import pytest
import torch
from vectors import labeled_vectors

import elite_pl
from elite_pl.algorithm import losses
from elite_pl.methods import PReNet, RoSas, rosas
from elite_pl.models import BoundedHead, PairRelation, mlp

METHODS = ("prenet", "rosas")
WITHOUT_NORM = ("backbone=mlp", "backbone.norm=none", "epochs=1", "method.pretrain_epochs=0")


def data(n=160):
    return labeled_vectors(n, features=4, distance=4)


def test_the_error_of_a_relation():
    relation, anomalies = torch.tensor([1.0, -2.0, 5.0, 3.0, 9.0]), torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0])
    assert losses.relation_error(relation, anomalies, 8.0).tolist() == [1, 2, 1, 5, 1]


def test_the_error_of_a_mixture():
    mixed, target, mean = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.25, -1.0])
    assert losses.interpolation_error(mixed, target, mean).tolist() == [0.5**2 / 2 + 0.25**2 / 2, 1.5]


def test_the_loss_that_has_fallen_less_weighs_more():
    loss, before = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    first, second = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = torch.tensor([first, second]) / (first + second)
    torch.testing.assert_close(losses.balanced_weights(loss, before, 2.0), expected)
    assert losses.balanced_weights(loss, torch.tensor([0.0, 3.0]), 2.0).tolist() == [0, 1]
    assert losses.balanced_weights(loss, torch.tensor([1e-30, 3.0]), 2.0).tolist() == [1, 0], "and nothing overflows"


def test_the_score_is_the_mean_relation_to_all_references():
    torch.manual_seed(0)
    score = PairRelation(mlp((4,), norm="none"))
    x, anomalies, unlabeled = torch.randn(6, 4), torch.randn(3, 4), torch.randn(5, 4)

    def relation(a, b):
        weight, bias = score.head.weight.flatten(), score.head.bias.sum()
        return torch.cat([score.encoder(a[None])[0], score.encoder(b[None])[0]]) @ weight + bias

    with torch.no_grad():
        score.refer(anomalies, unlabeled)
        expected = [
            (sum(relation(a, x_i) for a in anomalies) / 3 + sum(relation(x_i, u) for u in unlabeled) / 5) / 2
            for x_i in x
        ]
        torch.testing.assert_close(score(x), torch.stack(expected))


def test_prenet_learns_from_two_pairs_without_an_anomaly_to_one_with_one_and_one_with_two(command, monkeypatch):
    seen, original = [], PReNet.loss

    def remember(self, batch):
        loss = original(self, batch)
        sample = torch.cat([batch["unlabeled"], batch["labeled"]])
        anomalous = torch.cat([torch.zeros(len(batch["unlabeled"])), (batch["labeled_y"] < 0).float()])
        i, j = self.pairs(anomalous)
        count = anomalous[i] + anomalous[j]
        output = torch.cat([self.score.encoder(sample[i]), self.score.encoder(sample[j])], dim=1)
        relation = output @ self.score.head.weight.flatten() + self.score.head.bias.sum()
        torch.testing.assert_close(loss, (relation - torch.tensor([0.0, 4.0, 8.0])[count.long()]).abs().mean())
        seen.append((count.int().bincount().tolist(), i))
        return loss

    monkeypatch.setattr(PReNet, "loss", remember)
    outcome = command("method=prenet", *WITHOUT_NORM)
    assert outcome.code == 0, outcome.err
    assert all(none == 2 * one == 2 * two > 0 for (none, one, two), _ in seen)
    assert not seen[0][1].equal(seen[1][1]), "other pairs at every step"


def test_rosas_mixes_two_unlabeled_samples_to_one_anomaly(command, monkeypatch):
    mixtures, triplets = [], []
    error, apart = rosas.interpolation_error, rosas.triplet_margin_loss
    monkeypatch.setattr(rosas, "interpolation_error", lambda *a: mixtures.append(a) or error(*a))
    monkeypatch.setattr(rosas, "triplet_margin_loss", lambda *a, **m: triplets.append((a, m)) or apart(*a, **m))
    kept, original = [], RoSas.loss
    monkeypatch.setattr(RoSas, "loss", lambda self, batch: kept.append((batch, original(self, batch))) or kept[-1][1])
    outcome = command("method=rosas", *WITHOUT_NORM, "method.alpha=1e-4", "method.margin=1.5")
    assert outcome.code == 0, outcome.err
    (mixed, label, mean), ((anchor, positive, negative), settings), (batch, loss) = mixtures[0], triplets[0], kept[0]
    torch.testing.assert_close(mixed, mean)  # so small an α mixes nothing
    assert label.abs().round(decimals=4).unique().tolist() == [1]
    others = len(batch["unlabeled"]) + int((batch["labeled_y"] > 0).sum())
    assert len(label) == others + others // 2 and (label > 0).float().mean().item() == pytest.approx(1 / 3, abs=0.1)
    near, far = ((anchor - other).norm(dim=1) for other in (positive, negative))
    off = (mixed - label).abs()
    smooth = torch.where(off < 1, off.square() / 2, off - 0.5)
    by_hand = torch.stack([(near - far + 1.5).clamp(min=0).mean(), smooth.mean()])
    assert settings == {"margin": 1.5} and len(anchor) == others
    torch.testing.assert_close(loss, ((by_hand / 2).exp() / (by_hand / 2).exp().sum() * by_hand).sum())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_trained_saved_and_read(method, tmp_path):
    x, labels = data()
    settings = ["method.optimizer.lr=1e-3", "batch_size=32", "epochs=8", "method.average_decay=0.9", "threshold=fitted"]
    trained = elite_pl.fit(x, labels, method, overrides=settings)
    np.testing.assert_allclose(trained.score(x), trained.training_scores, rtol=1e-4, atol=1e-5)
    assert trained.training_scores[120:155].mean() > trained.training_scores[5:120].mean()
    trained.save(tmp_path / "detector.pt")
    assert elite_pl.load(tmp_path / "detector.pt").score(x).tolist() == trained.score(x).tolist()


def test_a_score_of_prenet_is_between_the_relations_of_two_pairs():
    """(C/2 + 0) / 2 for a normal sample, (C + C/2) / 2 for an anomaly, by references of the last weights."""
    x, labels = data()
    settings = ["method.optimizer.lr=1e-3", "batch_size=16", "epochs=40", "threshold=fitted"]
    scores = elite_pl.fit(x, labels, "prenet", overrides=settings).training_scores
    assert scores[labels > 0].mean() == pytest.approx(2, abs=0.7)
    assert scores[labels < 0].mean() == pytest.approx(6, abs=0.7)


def test_a_bounded_score():
    torch.manual_seed(0)
    score = BoundedHead(mlp((4,), outputs=1, norm="none"))
    assert (score(1e3 * torch.randn(50, 4)).abs() <= 1).all()
