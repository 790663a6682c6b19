"""The threshold of a run: by labels that were held out, by what a person says, or assumed, and what is said of it."""

import csv
import json

import numpy as np
import pytest

import elite_pl
from elite_pl import config
from elite_pl.config import threshold
from elite_pl.runs import decision
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.spec import RunSpec

OWN = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threads=1")
TREES = ("method=extra_trees", "method.trees=20")


@pytest.fixture
def own(tmp_path):
    """Writes two clouds with 10 labels of each, or other numbers; a tenth of 600 is in the second one. Returns x."""

    def made(normal=10, anomalous=10):
        rng = np.random.default_rng(0)
        x = np.concatenate([rng.normal(0, 1, (540, 4)), rng.normal(2, 1, (60, 4))])
        y = np.zeros(600, dtype=int)
        y[:normal], y[540 : 540 + anomalous] = 1, -1
        np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
        return x

    return made


def read(outcome):
    assert outcome.code == 0, outcome.err
    with open(outcome.directory / "audit.csv", newline="") as file:
        audit = list(csv.DictReader(file))
    return json.loads((outcome.directory / "metrics.json").read_text()), audit


def test_labels_that_were_held_out_choose_the_threshold(command, own):
    x = own()
    outcome = command(*OWN, *TREES)
    found, audit = read(outcome)
    hidden = 50 / 580
    assert found["audit/hidden_share_low"] < hidden < found["audit/hidden_share_high"]
    assert found["threshold/alarms_low"] < found["threshold/alarms"] < found["threshold/alarms_high"]
    assert 0.5 < found["threshold/alarms"] / hidden < 1.5
    assert found["crossfit/folds"] == 5 and found["labeled/auroc_cross_fitted"] > 0.8
    assert f"threshold {found['threshold']:.4g} (cost): flags about" in outcome.err
    assert "hidden anomalies: about" in outcome.err and "20 held-out labels" in outcome.err

    detector = elite_pl.load(outcome.directory / "detector.pt")
    assert detector.threshold == found["threshold"] and detector.alarms == found["threshold/alarms"]
    probability = detector.probability(x)
    assert (np.diff(probability[np.argsort(detector.score(x))]) >= 0).all()
    assert ((probability > 0.5) == (detector.predict(x) < 0)).mean() > 0.98  # equal costs; some tie
    index = [int(row["index"]) for row in audit]
    np.testing.assert_allclose([float(row["probability"]) for row in audit], probability[index], atol=1e-6)
    assert [row["verdict"] == "anomaly" for row in audit] == (detector.predict(x)[index] < 0).tolist()
    for kind, labeled in (("normal", slice(0, 10)), ("anomaly", slice(540, 550))):
        nearest = np.linalg.norm(x[index][:, None] - x[labeled], axis=2).argmin(1) + labeled.start
        assert np.mean([int(row[f"nearest_{kind}"]) for row in audit] == nearest) > 0.9  # features are scaled there
    fitted = command(*OWN, *TREES, "threshold=fitted")
    assert read(fitted)[0]["threshold/scores"] == "fitted" and read(fitted)[1][0]["probability"] == ""
    assert fitted.directory != outcome.directory
    with pytest.raises(ValueError, match="no probabilities"):
        elite_pl.load(fitted.directory / "detector.pt").probability(x)


def test_labels_of_suspicious_samples_do_not_tell_how_frequent_anomalies_are(command, own, tmp_path):
    own()
    _, audit = read(command(*OWN, *TREES))
    index = [int(row["index"]) for row in audit[:35]]
    hidden = (50 - sum(i >= 540 for i in index)) / (580 - 35)
    assert 0.02 < hidden < 0.06
    label = ["anomaly" if i >= 540 else "normal" for i in index]

    def again(mark, known=range(0)):
        lines = [f"{i},{word},{mark}" for i, word in zip(index, label, strict=True)] + [
            f"{i},normal,yes" for i in known
        ]
        (tmp_path / "labels.csv").write_text("\n".join(["index,label,picked", *lines]))
        outcome = command(*OWN, *TREES, "dataset.labels_file=labels.csv")
        assert {int(row["index"]) for row in labels_of(outcome)} > {*index}, "all labels were held out"
        return read(outcome)[0], outcome.err

    found, said = again("yes")
    assert "estimated from 20 held-out labels" in said
    assert found["audit/hidden_share_low"] < hidden < found["audit/hidden_share_high"]
    unmarked, said = again("")
    assert "estimated from 55 held-out labels" in said
    assert unmarked["audit/hidden_share"] < found["audit/hidden_share"] / 2
    found, said = again("yes", known=range(7))
    assert found["threshold/scores"] == "fitted"
    assert "3 normal and 10 anomalous labels of samples that were not picked; an estimate takes 4 of each" in said


def test_other_rules_flag_more_or_fewer(command, own):
    own()
    few = read(command(*OWN, *TREES, "threshold.folds=2", "threshold.rule=contamination"))[0]
    assert few["threshold/alarms"] == pytest.approx(few["audit/hidden_share"], abs=0.05)  # some tie
    more = read(
        command(*OWN, *TREES, "threshold.folds=2", "threshold.rule=contamination", "threshold.contamination=0.3")
    )[0]
    assert more["threshold/alarms"] == pytest.approx(0.3, abs=0.05)
    rate = read(
        command(*OWN, *TREES, "threshold.folds=2", "threshold.rule=false_alarm_rate", "threshold.false_alarm_rate=0.2")
    )[0]
    assert 0.2 < rate["threshold/alarms"] < 0.3


@pytest.mark.parametrize(
    "labels, more, words",
    [
        ((3, 10), (), "the best cut between labels that were trained on"),
        ((10, 0), (), "5 % of the unlabeled samples are above it"),
        ((0, 0), ("threshold.rule=contamination", "threshold.contamination=0.1"), "10 % of the unlabeled samples"),
        ((0, 10), ("threshold.rule=false_alarm_rate",), "; threshold.rule=false_alarm_rate is not used (0 normal"),
    ],
)
def test_few_labels_are_not_held_out(command, own, labels, more, words):
    own(*labels)
    method = TREES if min(labels) else ("method=isolation_forest", "method.trees=10")
    outcome = command(*OWN, *method, *more)
    found, audit = read(outcome)
    assert words in outcome.err and "holding some out takes" in outcome.err
    assert found["threshold/scores"] == "fitted" and "crossfit/seconds" not in found
    assert ("is not used" in outcome.err) == ("threshold.rule=false_alarm_rate" in more)
    if "threshold.rule=contamination" in more:
        assert [row["verdict"] for row in audit].count("anomaly") == 60


def labels_of(outcome):
    with open(outcome.directory / "labeled.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", [TREES, ("method=auto",)])
def test_a_label_that_all_others_speak_against_is_named(command, tmp_path, own, method):
    x, y = own(), np.zeros(600, dtype=int)
    y[:10], y[540:550], y[550], x[550] = 1, -1, 1, 2.5  # the last one is wrong
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
    outcome = command(*OWN, *method)
    found, first = read(outcome)[0], labels_of(outcome)[0]
    assert found["labeled/doubted"] == 1 and "labeled/wrong" not in found
    assert "check 1 of 21 labels, which rank among those of the other kind: 550" in outcome.err
    assert first["index"] == "550" and first["label"] == "1" and float(first["contradiction"]) > 0.5
    assert [len(labels_of(outcome)), {row["label"] for row in labels_of(outcome)}] == [21, {"1", "-1"}]


def test_how_many_wrong_labels_were_doubted_is_known_where_the_truth_is(command):
    typed = ("label_ratio=0.3", "pollution=0.3", "label_noise=0.1", "normal_class=0")
    outcome = command(*TREES, *typed, "threshold=crossfit")
    found = read(outcome)[0]
    assert 1 <= found["labeled/doubted_wrong"] <= min(found["labeled/doubted"], found["labeled/wrong"])
    assert found["labeled/wrong"] == round(0.1 * found["data/labeled"])
    above = [float(row["contradiction"]) > 0.5 for row in labels_of(outcome)]
    assert sum(above) == found["labeled/doubted"] and above == sorted(above, reverse=True)
    assert "cross-fitting: " in outcome.err
    outcome = command(*TREES, *typed, "threshold.rule=contamination")
    assert not (outcome.directory / "labeled.csv").exists(), "nothing was held out"
    assert "threshold.rule=contamination is not used: it takes threshold.scores=cross_fitted" in outcome.err


def test_known_labels_that_are_made_wrong_are_known_to_be(command, tmp_path, own):
    x, y = own(), np.zeros(600, dtype=int)
    y[:10], y[540:550] = 1, -1
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y)
    outcome = command(*OWN, *TREES, "label_noise=0.1")
    found = read(outcome)[0]
    assert found["labeled/wrong"] == 2 and 0 <= found["labeled/doubted_wrong"] <= 2
    given = ["1" if int(row["index"]) < 10 else "-1" for row in labels_of(outcome)]
    assert sum(row["label"] != right for row, right in zip(labels_of(outcome), given, strict=True)) == 2


def test_a_study_with_class_labels_may_cross_fit_too(command):
    found, audit = read(command(*TREES, "label_ratio=0.2", "pollution=0.3", "threshold=crossfit"))
    assert found["threshold/scores"] == "cross_fitted" and audit[0]["probability"]
    assert found["audit/precision_at_50"] > 0.2 and found["audit/precision_at_hidden"] > 0.2


@pytest.mark.parametrize(
    "typed, right",
    [
        ("threshold.rule=best", "threshold.rule=best: must be cost, false_alarm_rate or contamination"),
        ("threshold.cost_missed=0", "threshold.cost_missed=0: must be a positive, finite number"),
        ("threshold.contamination=2", "threshold.contamination=2: must be a number from 0 to 1"),
        ("threshold.folds=1", "threshold.folds=1: must be a whole number of at least 2"),
        ("+threshold.quantile=0.1", "threshold.quantile: there is no such key"),
    ],
)
def test_a_rule_that_means_nothing(command, typed, right):
    outcome = command(typed)
    assert outcome.code == 2 and right in outcome.err and outcome.err.count("\n") == 1


def test_a_run_of_several_processes_cross_fits_in_one(monkeypatch):
    spec = RunSpec.of(config.compose(["trainer=ddp", "trainer.devices=2", "threshold=crossfit", "logger=none"]))
    data = make_data(spec.config)
    fitted = []
    monkeypatch.setattr(decision, "cross_fit", lambda own, *_: fitted.append(own))
    decision._cross_fit(spec, make_detector(spec.config, data.sample_shape), data, threshold(spec.plain["threshold"]))
    assert make_trainer(spec, None).world_size == 2 and make_trainer(fitted[0], None).world_size == 1
