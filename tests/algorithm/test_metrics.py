"""Metrics against scikit-learn and against the definition, on scores that break float32 and sigmoids."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from elite_pl.algorithm.metrics import AveragePrecision, RocAuc, average_precision, roc_auc, roc_auc_per_class

SCORES = {
    "plain": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 5, n).astype(float),
    "huge": lambda rng, n: 1e6 + rng.normal(size=n),
    "beyond float32": lambda rng, n: rng.normal(size=n) * 1e300,
    "tiny spacing": lambda rng, n: rng.integers(0, 50, n) * 1e-30,
    "neighboring floats": lambda rng, n: 1 + rng.integers(0, 9, n) * np.finfo(float).eps,
    "negative, with both zeros": lambda rng, n: rng.choice([-1.0, -0.0, 0.0, 2.0], n),
    "constant": lambda rng, n: np.full(n, 7.0),
}


def case(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 400))
    truth = rng.random(n) < rng.uniform(0.05, 0.95)
    truth[:2] = False, True
    return SCORES[kind](rng, n), truth


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", SCORES)
def test_equal_to_scikit_learn(kind, seed):
    scores, truth = case(kind, seed)
    given = torch.from_numpy(scores), torch.from_numpy(truth)
    assert roc_auc(*given) == pytest.approx(roc_auc_score(truth, scores), rel=0, abs=1e-14)
    assert average_precision(*given) == pytest.approx(average_precision_score(truth, scores), rel=0, abs=1e-14)


def test_roc_auc_is_the_share_of_pairs_won():
    scores, truth = case("ties", 9)
    anomalous, normal = scores[truth][:, None], scores[~truth]
    wins = (anomalous > normal).sum() + (anomalous == normal).sum() / 2
    assert roc_auc(torch.from_numpy(scores), torch.from_numpy(truth)) == wins / (truth.sum() * (~truth).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_type_of_scores_and_integer_labels(dtype):
    scores, truth = case("plain", 3)
    scores = torch.from_numpy(100 * scores).to(dtype).requires_grad_(dtype.is_floating_point)
    expected = roc_auc_score(truth, scores.detach().double().numpy())
    for labels in (torch.from_numpy(truth), torch.from_numpy(truth).int(), torch.from_numpy(truth).float()):
        assert roc_auc(scores, labels) == pytest.approx(expected, rel=0, abs=1e-14)


def test_saturating_scores_are_told_apart():
    # Binary AUROC of torchmetrics gives 0.5 here: its sigmoid is 1.0 for every one of these.
    assert roc_auc(torch.tensor([101.0, 102.0, 103.0, 104.0]), torch.tensor([0, 0, 1, 1])) == 1.0


@pytest.mark.parametrize("function", [roc_auc, average_precision])
@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([1.0, float("nan")], [0, 1], "1 of 2 scores are not finite"),
        ([1.0, float("inf")], [0, 1], "not finite"),
        ([1.0, 2.0], [0, 0], "0 anomalies among 2 samples"),
        ([1.0, 2.0], [1, 1], "2 anomalies among 2 samples"),
        ([], [], "0 anomalies among 0 samples"),
        ([1.0, 2.0], [-1, 1], "labels == -1"),
        ([1.0, 2.0], [0, 1, 1], "is_anomaly"),
        ([[1.0], [2.0]], [[0], [1]], "both must be"),
    ],
)
def test_refuses_what_has_no_rank(function, scores, truth, message):
    with pytest.raises(ValueError, match=message):
        function(torch.tensor(scores), torch.tensor(truth))


@pytest.mark.parametrize(("shell", "function"), [(RocAuc, roc_auc), (AveragePrecision, average_precision)])
def test_shells_equal_the_functions_whatever_the_batches(shell, function):
    scores, truth = (torch.from_numpy(array) for array in case("huge", 1))
    metric = shell()
    for part in torch.arange(len(scores)).split(7):
        metric.update(scores[part], truth[part])
    assert metric.compute().item() == function(scores, truth)
    assert metric.compute().dtype == torch.float64
    metric.reset()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([False, True]))
    assert metric.compute() == 1.0


@pytest.mark.parametrize("shell", [RocAuc, AveragePrecision])
def test_ranks_are_gathered_not_averaged(shell):
    """Two ranks, each with one kind of sample only, as `all_gather` hands them over."""
    parts = {
        "scores": [torch.tensor([1.0, 2.0]), torch.tensor([3.0])],
        "is_anomaly": [torch.tensor([0, 0]), torch.tensor([1])],
    }
    metric = shell(dist_sync_fn=lambda state, group: parts["scores" if state.is_floating_point() else "is_anomaly"])
    metric.distributed_available_fn = lambda: True
    metric.update(parts["scores"][0], parts["is_anomaly"][0])
    assert metric.compute() == 1.0


def test_per_class():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 4, 300), rng.normal(size=300)
    by_class = roc_auc_per_class(torch.from_numpy(scores), torch.from_numpy(y), normal_class=2)
    assert list(by_class) == [0, 1, 3]
    for one, area in by_class.items():
        pair = (y == 2) | (y == one)
        assert area == pytest.approx(roc_auc_score(y[pair] == one, scores[pair]), rel=0, abs=1e-14)
