"""Detectors without a gradient: their scores beside scikit-learn's, SSAD's optimum, and what pollution does to them."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from easy_cases import SHALLOW
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM
from test_bad_input import refused
from test_rivals import mean_auroc, metrics_of

from elite_pl.data import digits
from elite_pl.methods import ssad
from elite_pl.methods.isolation_forest import isolation_trees
from elite_pl.models.fitted import KernelExpansion, rbf
from elite_pl.runs.trained import load

# -------------------------------------------------------------------------------------------------------------- scores


def reloaded(score):
    """The score as its own state makes it anew."""
    fresh = type(score)()
    fresh.load_state_dict(score.state_dict())
    return fresh


@pytest.mark.parametrize("samples, features, trees", [(2, 1, 3), (60, 4, 10), (700, 30, 100)])
def test_isolation_trees_are_scikit_learns(samples, features, trees):
    rng = np.random.default_rng(0)
    x, new = (rng.integers(0, 9, (n, features)).astype(np.float32) / 8 for n in (samples, 500))  # many ties
    forest = IsolationForest(n_estimators=trees, max_samples=min(256, samples), random_state=0).fit(x)
    score = isolation_trees(forest)
    for seen in (x, new):
        found = score(torch.as_tensor(seen))
        np.testing.assert_allclose(found.numpy(), -forest.score_samples(seen), rtol=1e-6)
        assert torch.equal(reloaded(score)(torch.as_tensor(seen)), found)
    assert score(torch.zeros(5, features, 1, 1)).shape == (5,)


def test_a_tree_compares_in_float32_as_scikit_learn_does():
    x = np.array([[0.1], [0.3], [0.7]], dtype=np.float32)
    forest = IsolationForest(n_estimators=1, max_samples=3, random_state=0).fit(x)
    tree = forest.estimators_[0].tree_
    edges = np.concatenate([np.nextafter(t := tree.threshold[tree.feature >= 0].astype(np.float32), [[-9], [9]]), [t]])
    edges = edges.astype(np.float32).reshape(-1, 1)
    score = isolation_trees(forest)
    np.testing.assert_allclose(score(torch.as_tensor(edges)).numpy(), -forest.score_samples(edges), rtol=1e-6)


def test_a_kernel_expansion_is_scikit_learns_machine():
    x, new = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).split([80, 120])
    machine = OneClassSVM(gamma=0.2, nu=0.3).fit(x)
    score = KernelExpansion()
    score.set(x[machine.support_], torch.as_tensor(machine.dual_coef_[0]), 0.2, float(machine.offset_[0]))
    np.testing.assert_allclose(score(new).numpy(), -machine.decision_function(new), atol=2e-6)
    assert torch.equal(reloaded(score)(new.reshape(-1, 2, 3)), score(new))


def test_support_vectors_of_weight_zero_are_left_out():
    score = KernelExpansion()
    score.set(torch.eye(3), torch.tensor([1.0, 0.0, -2.0]), 0.5, 0.25)
    assert len(score.support) == 2
    near, far = 1.0, np.exp(-0.5 * 2)
    assert score(torch.eye(3)[:1]).item() == pytest.approx(0.25 - near + 2 * far, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------- ssad


def problem(unlabeled=60, normal=6, anomalous=4, seed=0):
    """A kernel matrix and labels: two clouds, one of them anomalous, of which a third hides among the unlabeled."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0.0, 1.0, -1.0], [unlabeled, normal, anomalous])
    x = rng.normal(size=(len(label), 3))
    x[(label < 0) | (np.arange(len(label)) < unlabeled // 3)] += 1.5
    x = torch.as_tensor(x)
    return rbf(x, x, 0.2).numpy(), label


@pytest.mark.parametrize("nu", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kappa", [0.5, 3.0])
@pytest.mark.parametrize("kinds", [(6, 4), (1, 12)])
def test_the_solution_of_ssad_meets_the_conditions_of_the_optimum(nu, kappa, kinds):
    """Karush, Kuhn and Tucker's, with ρ and the margin m as multipliers: no α can move and gain."""
    kernel, label = problem(60, *kinds)
    y, labeled, bound = np.where(label < 0, -1.0, 1.0), label != 0, ssad.bounds(torch.as_tensor(label), nu, kappa)
    coefficient, offset = ssad.solve(kernel, label, bound, kappa)
    alpha = coefficient * y
    assert (alpha >= 0).all() and (alpha <= bound).all()
    assert coefficient.sum() == pytest.approx(1, abs=1e-5)
    assert alpha[labeled].sum() >= kappa - 1e-5
    outward = y * (kernel @ coefficient - offset)  # >= 0: on the right side
    inner = labeled & (alpha > 1e-3 * bound) & (alpha < (1 - 1e-3) * bound)
    margin = np.median(outward[inner]) if inner.any() else None
    if margin is None:  # all labeled samples at a bound: the margin lies between what they allow
        low, high = outward[labeled & (alpha > 0)].max(), outward[labeled & (alpha == 0)].min(initial=np.inf)
        assert low <= high + 1e-5
        margin = np.clip(0, low, high)
    assert margin >= -1e-5 and margin * (alpha[labeled].sum() - kappa) == pytest.approx(0, abs=1e-5)
    slope = outward - margin * labeled  # of the dual's Lagrangian along α
    assert slope[alpha == 0].min(initial=0) > -1e-5
    assert slope[alpha > (1 - 1e-3) * bound].max(initial=0) < 1e-5
    free = (alpha > 1e-3 * bound) & (alpha < (1 - 1e-3) * bound)
    assert free.any() or nu == 1
    np.testing.assert_allclose(slope[free], 0, atol=1e-5)


@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_without_labels_ssad_is_a_one_class_svm(nu):
    kernel, label = problem(80, 0, 0)
    bound = ssad.bounds(torch.as_tensor(label), nu, 0)
    coefficient, offset = ssad.solve(kernel, label, bound, 0)
    machine = OneClassSVM(kernel="precomputed", nu=nu, tol=1e-9).fit(kernel)
    scale = 1 / (nu * len(label))  # scikit-learn's sum of coefficients is ν n, ours is 1
    np.testing.assert_allclose(kernel @ coefficient - offset, machine.decision_function(kernel) * scale, atol=1e-6)


def test_the_order_of_samples_is_nothing_to_ssad():
    kernel, label = problem()
    order = np.random.default_rng(1).permutation(len(label))
    (first, offset), (second, again) = (
        ssad.solve(k, y, ssad.bounds(torch.as_tensor(y), 0.3, 2.0), 2.0)
        for k, y in ((kernel, label), (kernel[order][:, order], label[order]))
    )
    np.testing.assert_allclose(kernel[order] @ first - offset, kernel[order][:, order] @ second - again, atol=1e-6)


def test_folds_hold_both_kinds_and_each_label_once():
    label = torch.tensor([0.0, 1, 1, -1, 0, -1, 1, -1, 1, 1])
    folds = ssad.stratified_folds(label, 5, torch.Generator().manual_seed(0))
    assert len(folds) == 3, "as many as there are anomalies"
    assert torch.cat(folds).sort().values.tolist() == torch.nonzero(label).flatten().tolist()
    assert all(label[fold].unique().tolist() == [-1, 1] for fold in folds)


def test_of_equally_good_candidates_the_middle_one_is_taken():
    assert ssad.middle_of_best(torch.tensor([[0.5, 0.9, 0.9, 0.9], [0.9, 0.6, 0.7, 0.1]])) == (0, 1)
    assert ssad.middle_of_best(torch.ones(3, 5)) == (1, 2)


# ------------------------------------------------------------------------------------------------------------- the runs


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", SHALLOW)
def test_it_solves_an_easy_case_and_leaves_what_the_others_do(command, monkeypatch, method):
    typed = (f"method={method}", "pollution=0.1", "threads=1")
    outcome = command(*typed)
    assert outcome.code == 0, outcome.err
    expected = (
        "audit.csv config.yaml curves.png detector.pt history.csv metrics.json roc.png scores.csv scores.png splits.npz"
    )
    assert sorted(path.name for path in outcome.directory.iterdir()) == expected.split()
    found = metrics_of(outcome.directory)
    assert found["test/auroc"] > 0.95 and not found["test/collapsed"]
    assert found["backbone"] == "none" and found["train/seconds"] > 0 and "train/margin" not in found
    (row,) = read_csv(outcome.directory / "history.csv")
    assert (row["epoch"], float(row["test/auroc"])) == ("1", found["test/auroc"])
    assert len(read_csv(outcome.directory / "audit.csv")) == found["data/unlabeled"]
    again = command(*typed)
    assert again.directory == outcome.directory and "done before" in again.err

    x_test = digits().x_test
    for package in ("sklearn", "piqp"):
        monkeypatch.setitem(sys.modules, package, None)
    written = [float(row["score"]) for row in read_csv(outcome.directory / "scores.csv")]
    assert load(outcome.directory / "detector.pt").score(x_test).tolist() == written


@pytest.mark.parametrize("method", ["isolation_forest", "ssad"])
def test_the_same_seed_gives_the_same_numbers(command, method):
    first, second = (command(f"method={method}", f"study={study}", "threads=1").directory for study in "ab")
    assert first != second and (first / "scores.csv").read_text() == (second / "scores.csv").read_text()


def test_pollution_costs_much_without_labels_and_less_with_them(command):
    clean, polluted = (mean_auroc(command, SHALLOW[:3], pollution, (7, 8)) for pollution in (0.1, 0.5))
    assert polluted["isolation_forest"] < clean["isolation_forest"] - 0.05
    assert polluted["ocsvm"] < clean["ocsvm"] - 0.1
    assert polluted["ssad"] > polluted["ocsvm"] + 0.1
    assert polluted["ssad"] < clean["ssad"] - 0.02


def test_an_experiment_with_a_learning_rate_for_all_runs_with_them_too(command):
    outcome = command("experiment=demo", "method=ocsvm", "normal_class=0", "seed=0")
    assert outcome.code == 0, outcome.err


def test_ssad_in_double_precision(command):
    outcome = command("method=ssad", "threads=1", "trainer.precision=64")
    assert outcome.code == 0 and metrics_of(outcome.directory)["test/auroc"] > 0.9, outcome.err


def test_ssad_says_what_it_chose(command):
    outcome = command("method=ssad", "method.gamma=[2]", "method.kappa=[4]", "threads=1")
    found = metrics_of(outcome.directory)
    assert found["train/kappa"] == 4 and found["train/gamma"] > 0
    assert 0.5 < found["train/cross_validation_auroc"] <= 1


def test_given_contamination_of_the_one_class_svm(command):
    given = command("method=ocsvm", "method.nu=given").directory
    hidden = metrics_of(given)["data/pollution_unlabeled"]
    typed = command("method=ocsvm", f"method.nu={hidden}").directory
    assert typed != given and (typed / "scores.csv").read_text() == (given / "scores.csv").read_text()


OWN = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threshold=fitted", "threads=1")


def test_known_labels_without_a_test_part(command):
    data = digits()
    y = np.where(data.y_train[:200] == 3, 1, -1)
    y[40:] = 0
    np.savez("own.npz", x_train=data.x_train[:200], y_train=y)
    for method in SHALLOW:
        outcome = command(*OWN, f"method={method}")
        assert outcome.code == 0, outcome.err
        assert "test/auroc" not in json.loads((outcome.directory / "metrics.json").read_text())
        assert (outcome.directory / "audit.csv").is_file()


def test_a_missing_solver_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "piqp", None)
    refused(command("method=ssad"), "method: the solver of ssad", "elite_pl[ssad]")


WRONG = {
    "method=isolation_forest method.trees=0": ("method.trees=0", "at least 1"),
    "method=isolation_forest method.tree_samples=1": ("method.tree_samples=1", "at least 2"),
    "method=isolation_forest method.margin=1": ("method.margin", "no such key"),
    "method=ocsvm method.nu=0": ("method.nu=0", "(0, 1]"),
    "method=ocsvm method.nu=most": ("method.nu=most", "given"),
    "method=ocsvm method.gamma=-1": ("method.gamma=-1", "positive"),
    "method=ocsvm method.gamma=auto": ("method.gamma=auto", "scale"),
    "method=ssad method.gamma=2": ("method.gamma=2", "list"),
    "method=ssad method.gamma=[]": ("method.gamma=[]", "list"),
    "method=ssad method.nu=2": ("method.nu=2", "(0, 1]"),
    "method=ssad method.kappa=[0]": ("method.kappa=[0]", "positive"),
    "method=ssad method.folds=1": ("method.folds=1", "at least 2"),
    "method=ssad method.fold_unlabeled=0": ("method.fold_unlabeled=0", "at least 1"),
    "method=ssad label_ratio=0": ("label_ratio=0", "ssad"),
    "method=ssad label_ratio=0.02": ("label_ratio=0.02: ssad", "2 labeled samples of each kind", "1 normal"),
    "method=ocsvm trainer.max_epochs=0": ("trainer.max_epochs=0",),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed(command, typed):
    refused(command(*typed.split()), *WRONG[typed])
