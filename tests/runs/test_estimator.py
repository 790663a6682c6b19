"""The faces that scikit-learn and PyOD know: their checks, pipelines, kinds of arrays, labels, clones and pickles."""

import pickle
import pickletools

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import check_estimator
from vectors import labeled_vectors

import elite_pl
from elite_pl import EliteDetector, PyodDetector

SHORT = ["epochs=2", "method.pretrain_epochs=1", "threshold=fitted"]
FEW = ["method.trees=10", "threshold=fitted"]  # a fit in a few hundredths of a second


def data(n=120):
    return labeled_vectors(n, features=2, distance=5)


@pytest.mark.parametrize("settings", [FEW, pytest.param([], marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_what_scikit_learn_asks_of_an_estimator(settings):
    outcome = check_estimator(EliteDetector(overrides=settings), on_skip=None)
    assert len(outcome) > 40
    assert {check["check_name"] for check in outcome if check["status"] != "passed"} <= {"check_array_api_input"}


def test_signs_and_numbers_are_those_of_the_detector():
    x, labels = data()
    trained, detector = (
        elite_pl.fit(x, labels, "elite_svdd", overrides=SHORT),
        EliteDetector("elite_svdd", overrides=SHORT),
    )
    predicted = detector.fit_predict(x, labels=labels)
    assert detector.score_samples(x).tolist() == (-trained.score(x)).tolist()
    assert detector.offset_ == -trained.threshold
    assert (detector.decision_function(x) == detector.score_samples(x) - detector.offset_).all()
    assert predicted.tolist() == trained.predict(x).tolist() == detector.predict(x).tolist()
    assert detector.score_samples(x[:90]).mean() > detector.score_samples(x[90:]).mean()


def test_labels_may_come_as_y():
    x, labels = data()
    expected = EliteDetector("elite_svdd", overrides=SHORT).fit(x, labels=labels).score_samples(x).tolist()
    for y in (labels, pd.Series(labels), torch.tensor(labels), labels.astype(float)):
        assert EliteDetector("elite_svdd", overrides=SHORT).fit(x, y).score_samples(x).tolist() == expected
    other = EliteDetector("elite_svdd", overrides=SHORT).fit(x, np.where(labels < 0, 0, labels), labels=labels)
    assert other.score_samples(x).tolist() == expected


@pytest.mark.parametrize("y", [np.arange(120) % 2, np.arange(120) % 3, ["a"] * 120, np.where(np.arange(120), 0.5, -1)])
def test_a_y_that_says_something_else_is_not_used(y):
    x, _ = data()
    with pytest.warns(UserWarning, match="y is not used.* goes into labels"):
        detector = EliteDetector(overrides=FEW).fit(x, y)
    assert detector.detector_.method == "isolation_forest"
    assert detector.score_samples(x).tolist() == EliteDetector(overrides=FEW).fit(x).score_samples(x).tolist()


def test_the_contamination_is_the_share_of_alarms():
    x, _ = data()
    assert (EliteDetector(overrides=FEW, contamination=0.25).fit_predict(x) < 0).sum() == 30


def as_polars(array):
    return polars.DataFrame(array, schema=["a", "b"])


@pytest.mark.parametrize("convert", [pd.DataFrame, torch.tensor, as_polars, np.ndarray.tolist])
def test_all_kinds_of_arrays(convert):
    x, labels = data()
    expected = EliteDetector("elite_svdd", overrides=SHORT).fit(x, labels=labels)
    found = EliteDetector("elite_svdd", overrides=SHORT).fit(
        convert(x), labels=torch.tensor(labels, requires_grad=False)
    )
    assert found.score_samples(convert(x)).tolist() == expected.score_samples(x).tolist()
    assert found.n_features_in_ == 2
    if convert is as_polars:
        assert found.feature_names_in_.tolist() == ["a", "b"]
        with pytest.raises(ValueError, match="feature names"):
            found.predict(as_polars(x).rename({"b": "c"}))


def test_images():
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    x[30:] //= 2
    detector = EliteDetector("deep_svdd", overrides=SHORT).fit(x)
    assert detector.detector_.samples.shape == (8, 8, 3) and detector.predict(x).shape == (60,)


def a_table():
    x, labels = data()
    frame = pd.DataFrame(x, columns=["a", "b"]).assign(c=np.random.default_rng(0).choice(["x", "y"], len(x)))
    frame.loc[::7, "a"] = np.nan
    return frame, labels


def pipeline(**options):
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output="sparse_threshold" in options)
    columns = ColumnTransformer([("numbers", SimpleImputer(), ["a", "b"]), ("words", encoder, ["c"])], **options)
    return make_pipeline(columns, EliteDetector("elite_svdd", overrides=SHORT))


def test_a_pipeline_fills_gaps_and_encodes_words():
    frame, labels = a_table()
    sparse, dense = pipeline(sparse_threshold=1), pipeline().set_output(transform="pandas")
    for steps in (sparse, dense):
        steps.fit(frame, labels)
        steps.predict(frame.assign(c="never seen"))
    assert sparse.score_samples(frame).tolist() == dense.score_samples(frame).tolist()
    assert dense[-1].feature_names_in_.tolist() == ["numbers__a", "numbers__b", "words__c_x", "words__c_y"]
    read = pickle.loads(pickle.dumps(dense))
    assert read.score_samples(frame).tolist() == dense.score_samples(frame).tolist()


def test_a_clone_is_untrained_and_a_search_finds_its_parameters():
    x, _ = data()
    detector = EliteDetector("deep_svdd", random_state=3, overrides=SHORT).fit(x)
    copy = clone(detector)
    assert copy.get_params() == detector.get_params() and not hasattr(copy, "detector_")

    def accuracy(detector, x, y=None):
        return (detector.predict(x) == np.where(x[:, 0] > 2.5, -1, 1)).mean()

    rows = np.r_[0:120:2, 1:120:2]
    grid = {"method": ["isolation_forest"], "contamination": [0.01, 0.25], "overrides": [FEW]}
    found = GridSearchCV(detector, grid, scoring=accuracy, cv=2).fit(x[rows])
    assert found.best_params_["contamination"] == 0.25


def test_a_pickle_holds_the_file_of_the_detector():
    x, labels = data()
    trained = elite_pl.fit(x, labels, "elite_svdd", overrides=SHORT)
    content = pickle.dumps(trained)
    named = [argument for opcode, argument, _ in pickletools.genops(content) if opcode.name.endswith("UNICODE")]
    assert named == ["elite_pl.runs.trained", "_of_bytes"]
    read = pickle.loads(content)
    assert read.score(x).tolist() == trained.score(x).tolist() and read.config == trained.config


def test_other_random_states():
    x, labels = data()

    def scores(random_state):
        return (
            EliteDetector("elite_svdd", random_state=random_state, overrides=SHORT)
            .fit(x, labels)
            .score_samples(x)
            .tolist()
        )

    assert scores(np.random.RandomState(1)) == scores(np.random.RandomState(1)) != scores(np.random.RandomState(2))


@pytest.mark.parametrize(
    "options, labels, words",
    [
        ({}, data()[1][1:], "inconsistent numbers of samples"),
        ({}, data()[1] + 1, "labels holds 2; expected 1 .normal., -1 .anomaly. and 0"),
        ({}, np.where(data()[1] < 0, -1, 1), "labels has 0 unlabeled samples"),
        ({"method": "deep_sad"}, None, "deep_sad learns from labels"),
        ({"contamination": "auto"}, None, r"contamination='auto': must be in \(0, 0.5\], or None"),
        ({"contamination": 0.7}, None, r"contamination=0.7: must be in \(0, 0.5\], or None"),
        ({"method": "elite"}, None, "elite_svdd"),
    ],
)
def test_bad_input(options, labels, words):
    with pytest.raises(ValueError, match=words) as caught:
        EliteDetector(**options).fit(data()[0], labels=labels)
    assert "\n" not in str(caught.value)


def test_pyod():
    pytest.importorskip("pyod")
    x, labels = data()
    detector = PyodDetector(overrides=SHORT, contamination=0.25).fit(x, (labels < 0).astype(int))
    assert detector.decision_scores_.tolist() == detector.decision_function(x).tolist()
    assert detector.labels_.tolist() == detector.predict(x).tolist() and detector.labels_.sum() == 30
    assert detector.decision_scores_[90:].mean() > detector.decision_scores_[:90].mean()
    assert ((detector.predict_proba(x)[:, 1] >= 0) & (detector.predict_proba(x).sum(1) == 1)).all()
    assert clone(detector).get_params() == detector.get_params()
    assert pickle.loads(pickle.dumps(detector)).predict(x).tolist() == detector.labels_.tolist()
    assert PyodDetector(overrides=FEW).fit(x).detector_.detector_.method == "isolation_forest"
    with pytest.raises(ValueError, match="y holds other values than 1"):
        detector.fit(x, labels)


def test_without_pyod_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("elite_pl.runs.pyod_detector.BaseDetector", object)
    with pytest.raises(ImportError, match=r"pip install 'elite_pl\[pyod\]'"):
        PyodDetector()
