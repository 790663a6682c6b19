"""The classical learners from labels: their scores beside scikit-learn's, and what they ask of the labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from easy_cases import FROM_LABELS
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from test_bad_input import refused
from test_rivals import metrics_of
from test_shallow import reloaded

import elite_pl
from elite_pl import seeding
from elite_pl.data import digits
from elite_pl.data.splits import Split
from elite_pl.errors import InputError
from elite_pl.models.fitted import ClassTrees, Linear, NeighborMean
from elite_pl.models.scores import MeanOverViews
from elite_pl.runs.trained import load

# -------------------------------------------------------------------------------------------------------------- scores


def class_trees(forest):
    score = ClassTrees()
    score.grow([estimator.tree_ for estimator in forest.estimators_])
    return score


@pytest.mark.parametrize("samples, features, trees", [(4, 1, 3), (20, 4, 300), (700, 30, 100)])
def test_class_trees_are_scikit_learns(samples, features, trees):
    rng = np.random.default_rng(0)
    x, new = (rng.integers(0, 9, (n, features)).astype(np.float32) / 8 for n in (samples, 500))  # many ties
    y = rng.random(samples) < 0.3
    y[:2] = True, False
    forest = ExtraTreesClassifier(trees, class_weight="balanced", min_samples_leaf=2, random_state=0).fit(x, y)
    score = class_trees(forest)
    for seen in (x, new):
        found = score(torch.as_tensor(seen))
        np.testing.assert_allclose(found.numpy(), forest.predict_proba(seen)[:, 1], rtol=1e-5, atol=1e-7)
        assert torch.equal(reloaded(score)(torch.as_tensor(seen)), found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_class_trees_compare_in_float32_as_scikit_learn_does(dtype):
    x = np.array([[0.1], [0.3], [0.7], [0.8]], dtype=np.float32)
    forest = ExtraTreesClassifier(50, random_state=0).fit(x, [0, 1, 0, 1])
    thresholds = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in forest.estimators_])
    edge = thresholds.astype(np.float32)
    edges = np.concatenate([edge, np.nextafter(edge, -9), np.nextafter(edge, 9)]).astype(dtype)[:, None]
    found = class_trees(forest)(torch.as_tensor(edges))
    np.testing.assert_allclose(found.numpy(), forest.predict_proba(edges)[:, 1], atol=1e-6)


def filled(score, **buffers):
    for name, value in buffers.items():
        setattr(score, name, torch.as_tensor(value))
    return score


def test_the_nearest_by_angle_and_by_distance():
    places = torch.tensor([[4.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    common = {"mean": torch.ones(2), "components": torch.eye(2), "value": torch.tensor([0.0, 0.5, 1.0])}
    common |= {"weight": torch.ones(1)}
    sample = torch.tensor([[1.5, 1.1], [1.1, 1.5]])  # near the middle one, at an angle near the others
    score = filled(NeighborMean(), embedding=places, unit_length=False, **common)
    assert score(sample).tolist() == [0.5, 0.5]
    unit = places / places.norm(dim=1, keepdim=True)
    score = filled(NeighborMean(), embedding=unit, unit_length=True, **common)
    assert score(sample).tolist() == [0.0, 1.0]
    assert reloaded(score)(sample[:, :, None]).tolist() == [0.0, 1.0]


def test_scores_can_be_exported_for_any_number_of_samples():
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    forest = ExtraTreesClassifier(5, random_state=0).fit(x, np.arange(40) % 3 == 0)
    places = {"mean": x[0], "components": torch.eye(6)[:4], "embedding": x[:, :4], "value": x[:, 5]}
    scores = [
        class_trees(forest),
        filled(Linear(), weight=x[0], bias=x[0, 0]),
        filled(NeighborMean(), unit_length=True, weight=torch.full((3,), 1 / 3), **places),
    ]
    for score in map(reloaded, scores):
        exported = torch.export.export(score, (x[:5],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
        torch.testing.assert_close(exported(x), score(x))


# ------------------------------------------------------------------------------------------------------------- the runs


def scores_of(directory):
    with open(directory / "scores.csv", newline="") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


def samples_of(directory):
    """Training samples, the labeled ones last, with scikit-learn's labels (-1: unlabeled), and the test samples."""
    data, split = digits(), Split.load(directory / "splits.npz")
    x, new = (part.reshape(len(part), -1) for part in (data.x_train, data.x_test[split.test]))
    label = np.concatenate([np.full(len(split.unlabeled), -1), split.labeled_y < 0])
    return x[np.concatenate([split.unlabeled, split.labeled])], label, new


def by_extra_trees(x, label, new):
    seed = seeding.derive(0, "extra trees") % 2**32
    forest = ExtraTreesClassifier(300, class_weight="balanced", random_state=seed)
    return forest.fit(x[label >= 0], label[label >= 0]).predict_proba(new)[:, 1]


def by_regression(*steps):
    def score(x, label, new):
        encode = make_pipeline(StandardScaler(), *steps).fit(x)
        regression = LogisticRegression(C=0.1, class_weight="balanced")
        return regression.fit(encode.transform(x[label >= 0]), label[label >= 0]).decision_function(
            encode.transform(new)
        )

    return score


def by_self_training(x, label, new):
    encode = StandardScaler().fit(x)
    regression = LogisticRegression(C=0.1, class_weight="balanced")
    learner = SelfTrainingClassifier(regression, threshold=0.9, max_iter=3).fit(encode.transform(x), label)
    return learner.decision_function(encode.transform(new))


def by_label_spreading(x, label, new):
    """Zhou et al.'s closed form, `F = (1 - α) (I - α D^-1/2 W D^-1/2)^-1 Y`, on cosines of principal components."""
    encode = PCA(50, svd_solver="full").fit(x)
    place, new = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (encode.transform(x), encode.transform(new)))
    nearest = (place @ place.T).argsort(axis=1)[:, ::-1][:, :10]
    edge = np.zeros((len(x), len(x)))
    np.put_along_axis(edge, nearest, 0.5, axis=1)
    edge += edge.T
    np.fill_diagonal(edge, 0)
    degree = edge.sum(1)
    y = (label[:, None] == [0, 1]).astype(float)
    flow = np.linalg.solve(np.eye(len(x)) - 0.99 * edge / np.sqrt(degree[:, None] * degree), y)
    value = flow[:, 1] / flow.sum(1)
    return value[(new @ place.T).argsort(axis=1)[:, -10:]].mean(1)


@pytest.mark.parametrize(
    "typed, expected, tolerance",
    [
        ("method=extra_trees", by_extra_trees, 1e-6),
        ("method=logistic_regression", by_regression(), 1e-4),
        ("method=logistic_regression method.components=8", by_regression(PCA(8, svd_solver="full")), 1e-4),
        ("method=self_training method.threshold=0.9 method.rounds=3", by_self_training, 1e-3),
        ("method=label_spreading", by_label_spreading, 2e-3),
    ],
)
def test_a_run_scores_as_scikit_learn_does(command, typed, expected, tolerance):
    outcome = command(*typed.split(), "threads=1")
    assert outcome.code == 0, outcome.err
    found = scores_of(outcome.directory)
    np.testing.assert_allclose(found, expected(*samples_of(outcome.directory)), atol=tolerance)


def test_self_training_says_what_it_added(command):
    found = metrics_of(command("method=self_training", "method.threshold=0.6", "threads=1").directory)
    assert 0 < found["train/self_labeled_anomalies"] < found["train/self_labeled"] <= found["data/unlabeled"]
    alone, outdone = (
        scores_of(command(f"method={method}", "method.components=null", *more, "threads=1").directory)
        for method, more in (("logistic_regression", ()), ("self_training", ("method.threshold=0.9999999",)))
    )
    np.testing.assert_array_equal(alone, outdone)


def test_what_no_label_reaches_is_undecided(command):
    """Two far clouds, one of them without a label: neither normal nor anomalous."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) + np.where(np.arange(60) < 30, 0, 100)[:, None]
    y = np.zeros(60, int)
    y[:4] = 1, 1, -1, -1
    np.savez("clouds.npz", x_train=x, y_train=y)
    own = ("dataset=npz", "dataset.path=clouds.npz", "dataset.labels=known", "threads=1")
    directory = command(*own, "method=label_spreading", "method.metric=euclidean", "method.components=2").directory
    value = load(directory / "detector.pt").model.value
    assert (value[28:56] == 0.5).all(), "the unlabeled ones of the far cloud"
    assert (value[56:58] < 0.5).all() and (value[58:] > 0.5).all(), "the labeled ones"


# -------------------------------------------------------------------------------------------------------- augmentation


def bars(n=60):
    """Images of a bright bar, upright in the first half and lying in the other, and labels of four of each."""
    rng = np.random.default_rng(0)
    x = rng.random((n, 1, 12, 12)).astype(np.float32) / 2
    x[: n // 2, :, :, 5:7] += 0.5
    x[n // 2 :, :, 5:7] += 0.5
    y = np.zeros(n, int)
    y[:4], y[n // 2 : n // 2 + 4] = 1, -1
    return x, y


@pytest.mark.parametrize("method", [*FROM_LABELS, "ssad"])
def test_changed_copies_of_labels_are_learned_from_and_views_are_scored(tmp_path, method):
    x, y = bars()
    plain, unchanged, changed = (
        elite_pl.fit(x, y, method, overrides=["threshold=fitted", *typed])
        for typed in (
            [],
            ["augmentation=digits", "augmentation.test_views=0", "method.augmented_copies=0"],
            ["augmentation=digits", "method.augmented_copies=3"],
        )
    )
    assert plain.score(x).tolist() == unchanged.score(x).tolist(), "nothing was changed"
    over_views = changed.model
    assert isinstance(over_views, MeanOverViews) and len(over_views.views) == 8
    views = [over_views.augmentation.apply(torch.as_tensor(x), view.expand(len(x), -1)) for view in over_views.views]
    each = np.mean([over_views.score(view).double().numpy() for view in views], axis=0)
    np.testing.assert_allclose(changed.score(x), each, rtol=1e-5, atol=1e-6)
    same = over_views.score(torch.as_tensor(x)).numpy()
    assert not np.allclose(same, plain.score(x), atol=1e-6), "the copies have taught it something"
    changed.save(tmp_path / "detector.pt")
    assert elite_pl.load(tmp_path / "detector.pt").score(x).tolist() == changed.score(x).tolist()


def test_the_copies_of_a_label_stand_in_the_graph_with_it():
    x, y = bars()
    overrides = ["augmentation=digits", "method.augmented_copies=3", "method.alpha=0.5", "threshold=fitted"]
    value = elite_pl.fit(x, y, "label_spreading", overrides=overrides).model.score.value
    assert len(value) == len(x) + 3 * 8
    labels = np.tile(y[y != 0], 4)
    assert ((value[-32:] > 0.5).numpy() == (labels < 0)).all()


def test_a_file_whose_trees_lead_out_of_themselves_is_refused_under_views_too(tmp_path):
    x, y = bars()
    trained = elite_pl.fit(x, y, "extra_trees", overrides=["augmentation=digits", "threshold=fitted"])
    trained.save(tmp_path / "detector.pt")
    content = torch.load(tmp_path / "detector.pt", weights_only=True)
    content["state"]["score.child"][0] = 10**6
    torch.save(content, tmp_path / "detector.pt")
    with pytest.raises(InputError, match="out of their trees"):
        elite_pl.load(tmp_path / "detector.pt")


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("method", FROM_LABELS)
def test_labels_of_both_kinds_are_needed(command, method):
    refused(command(f"method={method}", "label_ratio=0"), "label_ratio=0", method)
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.zeros(30, int)
    y[:4] = 1
    np.savez("normal.npz", x_train=x, y_train=y)
    own = ("dataset=npz", "dataset.path=normal.npz", "dataset.labels=known")
    refused(command(*own, f"method={method}"), method, "1 labeled sample of each kind", "0 anomalous")


VECTORS = "method.candidates.vectors"
WRONG = {
    "method=extra_trees method.augmented_copies=-1": ("method.augmented_copies=-1", "not negative"),
    "method=extra_trees augmentation=digits": ("augmentation", "(64,) are no images"),
    "method=auto augmentation=digits": ("augmentation", "(64,) are no images"),
    "method=auto augmentation=noise": ("augmentation", "each candidate has one of its own", "augmentation=none"),
    "method=auto method.temperature=0.1": ("method.temperature=0.1", "a group of keys, each a positive, finite number"),
    "method=auto ~method.temperature.vectors": ("method.temperature.vectors: has no value",),
    "method=auto method.folds=5": ("method.folds=5", "a group of keys", "0 or a whole number of at least 2"),
    "method=auto method.folds.vectors=1": ("method.folds=", "'vectors': 1", "0 or a whole number of at least 2"),
    "method=auto method.candidates=3": ("method.candidates=3", "a group of keys"),
    "method=auto +method.candidates.rows={}": ("method.candidates.rows: is none of vectors, vectors_unlabeled",),
    f"method=auto {VECTORS}=null": (f"{VECTORS}=null", "a group of keys"),
    f"method=auto {VECTORS}.extra_trees=null": (f"{VECTORS}.extra_trees=null", "a group of keys"),
    f"method=auto {VECTORS}.extra_trees.prior=-1": (f"{VECTORS}.extra_trees.prior=-1", "positive"),
    f"method=auto {VECTORS}.extra_trees.prior=abc": (f"{VECTORS}.extra_trees.prior=abc", "positive, finite number"),
    f"method=auto {VECTORS}.elite_tabular.seeds=0": (f"{VECTORS}.elite_tabular.seeds=0", "at least 1"),
    f"method=auto {VECTORS}.elite_tabular.scaled_by=clean": (f"{VECTORS}.elite_tabular.scaled_by=clean", "a list"),
    f"method=auto +{VECTORS}.extra_trees.priro=5": (f"{VECTORS}.extra_trees.priro: is none of prior, scaled_by",),
    f"method=auto +{VECTORS}.mine.prior=2": (f"{VECTORS}.mine.method=null", "a group of keys"),
    "method=extra_trees method.trees=0": ("method.trees=0", "at least 1"),
    "method=logistic_regression method.penalty=0": ("method.penalty=0", "positive"),
    "method=logistic_regression method.components=0": ("method.components=0", "at least 1", "null"),
    "method=self_training method.threshold=1": ("method.threshold=1", "[0.5, 1)"),
    "method=self_training method.rounds=0": ("method.rounds=0", "at least 1"),
    "method=label_spreading method.components=0": ("method.components=0", "at least 1"),
    "method=label_spreading method.metric=angle": ("method.metric=angle", "euclidean or cosine"),
    "method=label_spreading method.graph_neighbors=1": ("method.graph_neighbors=1", "at least 2"),
    "method=label_spreading method.alpha=1": ("method.alpha=1", "(0, 1)"),
    "method=label_spreading method.score_neighbors=0": ("method.score_neighbors=0", "at least 1"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed(command, typed):
    refused(command(*typed.split()), *WRONG[typed])


@pytest.mark.parametrize(
    "key, rule", [("extra_trees.method.trees=0", "at least 1"), ("elite_tabular.batch_size=1", "at least 2")]
)
def test_a_candidate_that_cannot_be_made_is_named_before_any_is_trained(command, key, rule):
    outcome = command("method=auto", f"{VECTORS}.{key}")
    _, error = outcome.err.splitlines()
    assert outcome.code == 2 and error.startswith(f"error: {VECTORS}.{key}: must be") and rule in error
    assert not [*Path("outputs").rglob("normal*")], "nothing is left behind"


def test_gradients_of_images_are_no_images_to_change(command):
    np.savez("own.npz", x_train=np.random.default_rng(0).random((40, 12, 12), np.float32), y_train=[1, -1, 0, 0] * 10)
    own = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "feature_map=oriented_gradients")
    outcome = command(*own, "method=extra_trees", "augmentation=digits")
    refused(outcome, "augmentation, which changes what feature_map gives", "are no images")
