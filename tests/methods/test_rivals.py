"""The methods that came after the paper: their losses by hand, what they solve, and what pollution does to them."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from easy_cases import CONTAMINATED, NETWORKS, SUFFERING
from test_bad_input import refused

from elite_pl.algorithm import contamination, losses
from elite_pl.data import digits

# -------------------------------------------------------------------------------------------------------------- losses

NORMAL = torch.tensor([4.0, 1.0, 3.0, 2.0])  # the first and third stand out
ANOMALY = torch.tensor([0.25, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("update, expected", [("hard", 3.75 / 4), ("soft", 6.875 / 4), ("refine", 3 / 4)])
def test_the_most_suspicious_samples_are_flipped_or_dropped(update, expected):
    assert losses.latent_outlier_exposure(NORMAL, ANOMALY, 0.5, update).item() == expected


@pytest.mark.parametrize("update", losses.UPDATES)
def test_without_contamination_every_sample_is_normal(update):
    assert losses.latent_outlier_exposure(NORMAL, ANOMALY, 0.0, update) == NORMAL.mean()
    assert losses.latent_outlier_exposure(NORMAL, ANOMALY, 0.1, update) == NORMAL.mean(), "less than half a sample"


def test_perfectly_ranked_samples_get_the_loss_of_their_true_labels():
    torch.manual_seed(0)
    label = torch.ones(50).index_fill(0, torch.randperm(50)[:15], -1)
    score = torch.rand(50) + (label < 0) * 1.5
    found = losses.latent_outlier_exposure(score, (2.0 - score).clamp(min=0), 0.3, "hard")
    torch.testing.assert_close(found, losses.hinge(score, label, 2.0).mean())


def test_a_whole_batch_may_be_dropped():
    normal = NORMAL.clone().requires_grad_()
    losses.latent_outlier_exposure(normal, ANOMALY, 0.9, "refine").backward()
    assert normal.grad.tolist() == [0, 0, 0, 0]


def test_soft_labels_and_the_hinge_cancel():
    score = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    losses.latent_outlier_exposure(score, 2.0 - score, 0.3, "soft").backward()
    torch.testing.assert_close(score.grad, torch.tensor([1.0, 1.0, 0.0]) / 3)


def test_positive_unlabeled_risk():
    unlabeled, positive, inverse = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 6.0]), torch.tensor([0.5, 0.25])
    assert losses.positive_unlabeled(unlabeled, positive, inverse, 0.25) == 0.25 * 0.375 + (2 - 0.25 * 5)
    assert losses.positive_unlabeled(unlabeled, positive, inverse, 0.5) == 0.5 * 0.375 + abs(2 - 0.5 * 5)
    assert losses.positive_unlabeled(unlabeled, positive, inverse, 0.0) == unlabeled.mean()


def test_positive_unlabeled_risk_is_that_of_known_labels():
    torch.manual_seed(0)
    normal, positive = torch.rand(70), 2 + torch.rand(30)
    found = losses.positive_unlabeled(torch.cat([normal, positive]), positive, 1 / positive, 0.3)
    torch.testing.assert_close(found, 0.7 * normal.mean() + 0.3 * (1 / positive).mean())


def test_deviation_from_the_prior():
    score, label = torch.tensor([3.0, -1.0, 3.0, 15.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    assert losses.deviation(score, label, 5.0, 1.0, 2.0).tolist() == [1, 1, 4, 0, 6]


# ------------------------------------------------------------------------------------------------------- contamination


def made_scores(share, apart, seed, n=2000):
    """Scores and labels of which a share is anomalous, Gaussians so many standard deviations apart."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.where(torch.arange(n) < share * n, -1.0, 1.0)
    return torch.randn(n, generator=generator) + apart * (label < 0), label, generator


def test_density_is_a_mixture_of_gaussians():
    at = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    found = contamination.log_density(at, torch.tensor([0.0, 3.0], dtype=torch.float64), 0.5).exp()
    assert found.sum().item() * 0.01 == pytest.approx(1)
    assert found[2000].item() == pytest.approx((1 + math.exp(-18)) / (2 * 0.5 * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_the_estimate_finds_the_share_where_scores_tell_the_classes_apart(share):
    score, label, _ = made_scores(share, apart=6, seed=1)
    labeled = torch.cat([torch.nonzero(label == kind).flatten()[:50] for kind in (1, -1)])
    assert contamination.estimate(score[labeled], label[labeled], score) == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("counts", [(50, 50), (80, 40)])
def test_the_estimate_undoes_a_choice_by_class_where_scores_overlap(share, counts):
    score, label, _ = made_scores(share, apart=2, seed=2)
    labeled = torch.cat(
        [torch.nonzero(label == kind).flatten()[:count] for kind, count in zip((1, -1), counts, strict=True)]
    )
    assert contamination.estimate(score[labeled], label[labeled], score) == pytest.approx(share, abs=0.06)


def test_a_score_far_from_all_labels_stops_no_estimate():
    score = torch.cat([torch.linspace(0, 1, 99), torch.tensor([1e9])])
    assert 0 <= contamination.estimate(torch.tensor([0.1, 0.9]), torch.tensor([1.0, -1.0]), score) <= 1


@pytest.mark.parametrize("far", [20.0, 1e3, 1e9])
def test_samples_far_above_all_labels_are_anomalies(far):
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    score = noise + torch.where(torch.arange(1000) < 500, 0.0, torch.where(torch.arange(1000) < 750, 10.0, far))
    labeled = torch.cat([score[:50], score[500:550]])
    label = torch.where(torch.arange(100) < 50, 1.0, -1.0)
    assert contamination.estimate(labeled, label, score) == pytest.approx(0.5, abs=0.01)


def test_one_outlier_does_not_decide_the_estimate():
    score, label, _ = made_scores(0.1, apart=6, seed=1)
    labeled = torch.cat([torch.nonzero(label == kind).flatten()[:50] for kind in (1, -1)])
    found = [
        contamination.estimate(score[labeled], label[labeled], torch.cat([score, torch.tensor([outlier])]))
        for outlier in (0.0, 1e6)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_scores_that_are_all_the_same_say_nothing():
    assert contamination.estimate(torch.ones(4), torch.tensor([1.0, 1, 1, -1]), torch.ones(9)) == 0.25


# --------------------------------------------------------------------------------------------------------- the methods

SHORT = ("epochs=3", "method.pretrain_epochs=1")


def metrics_of(directory):
    return json.loads((directory / "metrics.json").read_text())


def history_of(directory, key):
    with open(directory / "history.csv", newline="") as file:
        return [row[key] for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", NETWORKS)
def test_it_solves_an_easy_case(command, method):
    outcome = command(f"method={method}", "pollution=0.1", "threads=1")
    assert outcome.code == 0, outcome.err
    found = metrics_of(outcome.directory)
    assert found["test/auroc"] > 0.95 and not found["test/collapsed"]
    if method in CONTAMINATED:
        kept = torch.load(outcome.directory / "last.ckpt", weights_only=True)["state_dict"]["contamination"]
        assert kept.item() == pytest.approx(found["data/pollution_unlabeled"]), "given, and kept by the checkpoint"


def mean_auroc(command, methods, pollution, classes, *more):
    """The mean ROC AUC of each method over some classes."""
    outcome = command(
        "-m",
        f"method={','.join(methods)}",
        f"normal_class={','.join(map(str, classes))}",
        f"pollution={pollution}",
        "threads=1",
        "trainer.check_val_every_n_epoch=20",
        *more,
    )
    assert outcome.code == 0, outcome.err
    aucs = [float(line.removeprefix("ROC AUC ")) for line in outcome.out.splitlines() if line.startswith("ROC AUC")]
    return dict(zip(methods, np.reshape(aucs, (len(methods), len(classes))).mean(1).tolist(), strict=True))


def test_it_helps_where_blind_training_suffers(command):
    enough = "method.optimizer.lr=1e-3"  # for 80 steps
    found = mean_auroc(command, ("deep_svdd", *CONTAMINATED), 0.3, (8,), enough)
    blind = found.pop("deep_svdd")
    assert blind < 0.9
    assert min(found.values()) > blind + 0.02, found


@pytest.mark.parametrize("method", SUFFERING)
def test_it_suffers_from_pollution(command, method):
    lightly, heavily = (mean_auroc(command, (method,), r_p, (6,), *SUFFERING[method])[method] for r_p in (0.1, 0.5))
    assert lightly > 0.95 and heavily < lightly - 0.015, (lightly, heavily)


def test_without_contamination_it_is_deep_svdd(command):
    same = (*SHORT, "method.optimizer.lr=1e-3")
    expected = (command("method=deep_svdd", *same).directory / "scores.csv").read_text()
    for method in ("loe_hard", "pu_svdd"):
        directory = command(f"method={method}", "method.contamination=0", *same).directory
        assert (directory / "scores.csv").read_text() == expected


def test_contamination_is_given_typed_or_estimated(command):
    def run(value):
        return command("method=loe_hard", f"method.contamination={value}", "method.warm_up=1", *SHORT).directory

    seen = {value: history_of(run(value), "train/contamination") for value in ("given", "0.25", "estimated")}
    assert all(values[0] == "" for values in seen.values()), "not during the warm-up"
    assert [float(x) for x in seen["given"][1:]] == [0.5, 0.5]
    assert [float(x) for x in seen["0.25"][1:]] == [0.25, 0.25]
    first, second = (float(x) for x in seen["estimated"][1:])
    assert first == second and 0.1 < first < 0.9, "once, after the warm-up"


def test_estimating_changes_nothing_else(command):
    estimated = command("method=soel", "method.contamination=estimated", *SHORT).directory
    kept = torch.load(estimated / "last.ckpt", weights_only=True)["state_dict"]["contamination"].item()
    typed = command("method=soel", f"method.contamination={kept}", *SHORT).directory
    assert typed != estimated and (typed / "scores.csv").read_text() == (estimated / "scores.csv").read_text()


def test_a_warm_up_that_leaves_nothing_is_warned_of(command):
    outcome = command("method=loe_hard", "epochs=2", "method.pretrain_epochs=0")
    assert outcome.code == 0 and "warm_up=2" in outcome.err


KNOWN = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threshold=fitted")


def save_known_labels():
    """Digits whose first 40 are labeled: a 3 is normal."""
    data = digits()
    y = np.where(data.y_train[:300] == 3, 1, -1)
    y[40:] = 0
    np.savez("own.npz", x_train=data.x_train[:300], y_train=y)


@pytest.mark.parametrize("method, more", [("devnet", ()), ("refine", ("method.contamination=0.4",))])
def test_known_labels(command, method, more):
    save_known_labels()
    outcome = command(*KNOWN, f"method={method}", *SHORT, *more)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("method", CONTAMINATED)
def test_known_labels_let_the_contamination_be_estimated(command, method):
    save_known_labels()
    outcome = command(*KNOWN, f"method={method}", "batch_size=64", *SHORT)
    assert outcome.code == 0, outcome.err
    assert 0 < float(history_of(outcome.directory, "train/contamination")[-1]) < 1
    estimated = command(*KNOWN, f"method={method}", "batch_size=64", "method.contamination=estimated", *SHORT)
    assert (outcome.directory / "audit.csv").read_text() == (estimated.directory / "audit.csv").read_text()


def test_where_classes_are_known_it_is_given(command):
    typed = command("method=loe_hard", "method.contamination=given", *SHORT)
    outcome = command("method=loe_hard", *SHORT)
    assert outcome.directory == typed.directory and "done before" in outcome.err, "the same run"


def test_known_labels_do_not_tell_the_contamination(command):
    np.savez("own.npz", x_train=np.eye(20), y_train=[1] * 5 + [0] * 15)
    for typed, words in {
        "refine method.contamination=given": ("method.contamination=given", "a number, or estimated"),
        "refine": ("method.contamination=auto", "both kinds", "a number"),
        "soel method.contamination=estimated": ("method.contamination=estimated", "both kinds", "a number"),
        "ocsvm method.nu=given": ("method.nu=given", "a number"),
        "pu_svdd method.contamination=0.1": ("dataset.labels=known: pu_svdd", "labeled anomalies", "1 or -1"),
        "devnet": ("dataset.labels=known: devnet", "labeled anomalies"),
        "oracle": ("method: oracle", "truth"),
    }.items():
        refused(command(*KNOWN, *f"method={typed}".split()), *words)


WRONG = {
    "method=loe_hard method.contamination=1": ("method.contamination=1", "[0, 1)"),
    "method=loe_hard method.contamination=-0.1": ("method.contamination=-0.1", "[0, 1)"),
    "method=loe_hard method.contamination=true_one": ("method.contamination=true_one", "given", "estimated"),
    "method=soel method.contamination=null": ("method.contamination=null", "given, estimated or a number"),
    "method=refine method.update=drop": ("method.update=drop", "refine"),
    "method=loe_soft method.loss=log": ("method.loss=log", "hinge"),
    "method=loe_soft method.warm_up=-1": ("method.warm_up=-1", "not negative"),
    "method=pu_svdd method.warm_up=1.5": ("method.warm_up=1.5", "whole number"),
    "method=pu_svdd method.epsilon=0": ("method.epsilon=0", "positive"),
    "method=devnet method.prior_draws=1": ("method.prior_draws=1", "at least 2"),
    "method=devnet method.margin=mean_initial": ("method.margin=mean_initial", "number"),
    "method=devnet method.margin=0": ("method.margin=0", "positive"),
    "method=soel label_ratio=0": ("label_ratio=0", "soel"),
    "method=pu_svdd label_ratio=0": ("label_ratio=0", "pu_svdd"),
    "method=devnet label_ratio=0": ("label_ratio=0", "devnet"),
    "method=prenet label_ratio=0": ("label_ratio=0", "prenet"),
    "method=prenet method.references=0": ("method.references=0", "at least 1"),
    "method=rosas method.alpha=0": ("method.alpha=0", "positive"),
    "method=rosas method.margin=mean_initial": ("method.margin=mean_initial", "number"),
    "method=refine label_ratio=0 method.contamination=estimated": ("method.contamination=estimated", "labels"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed(command, typed):
    refused(command(*typed.split()), *WRONG[typed])
