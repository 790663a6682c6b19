"""What Fig. 7 of the paper is drawn from: the labeled loss of every epoch, and the meta-gradient of the first steps."""

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from test_bad_input import refused

from elite_pl.algorithm import alice
from elite_pl.data import digits
from elite_pl.methods.elite import Elite
from elite_pl.runs import plots
from elite_pl.runs.trained import load

SHORT = ("epochs=3", "method.pretrain_epochs=1", "normal_class=3")


def history_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recording_of(directory: Path) -> dict[str, np.ndarray]:
    with np.load(directory / "meta_gradient.npz") as recording:
        return dict(recording)


# --------------------------------------------------------------------------------------------------------- labeled loss


@pytest.mark.parametrize("method", ["elite_svdd", "deep_svdd", "autoencoder", "labels_only"])
def test_the_labeled_loss_is_the_hinge_of_the_detector(command, method):
    directory = command(f"method={method}", *SHORT).directory
    detector = load(directory / "detector.pt")
    split = np.load(directory / "splits.npz")
    score, margin = detector.score(digits().x_train[split["labeled"]]), detector.margin
    loss = [
        s if y > 0 else max(margin - s, 0) for s, y in zip(score.tolist(), split["labeled_y"].tolist(), strict=True)
    ]
    rows = history_of(directory)
    assert float(rows[-1]["labeled/loss"]) == pytest.approx(np.mean(loss), rel=1e-5)
    assert len({row["labeled/loss"] for row in rows}) == 3, "a value an epoch"


def test_the_labeled_loss_changes_nothing(command, monkeypatch):
    arguments = ("backbone=mlp", "backbone.norm=batch", *SHORT)
    seen = command(*arguments, "output_dir=seen").directory
    unseen = command(*arguments, "output_dir=unseen", "~callbacks.labeled_loss").directory
    assert "labeled/loss" in history_of(seen)[0] and "labeled/loss" not in history_of(unseen)[0]
    for name in ("scores.csv", "audit.csv"):
        assert (seen / name).read_text() == (unseen / name).read_text()


@pytest.mark.parametrize("arguments", [("method=devnet",), ("method=deep_svdd", "label_ratio=0")])
def test_no_labeled_loss_where_it_means_nothing(command, arguments):
    directory = command(*arguments, *SHORT).directory
    assert "labeled/loss" not in history_of(directory)[0]
    assert (directory / "curves.png").is_file(), "of the ROC AUC alone"


# ------------------------------------------------------------------------------------------------------- meta-gradient


def test_the_recording_is_algorithm_1_at_every_step(command, monkeypatch):
    """The default, a Jacobian-vector product, against the virtual step on the weights that each step began with."""
    began, original = [], Elite.loss

    def remember(self, batch):
        began.append((copy.deepcopy(self.score), batch, float(self.margin), self.learning_rate))
        return original(self, batch)

    monkeypatch.setattr(Elite, "loss", remember)
    directory = command(*SHORT).directory
    recording, split, y = recording_of(directory), np.load(directory / "splits.npz"), digits().y_train
    assert recording["iteration"].tolist() == list(range(1, 13)) and len(began) == 12
    assert all(recording[key].shape == (12, 33) for key in ("index", "minus_meta_gradient", "is_anomaly"))
    for i, (score, batch, margin, rate) in enumerate(began):
        n = 14 if i % 4 == 3 else 32
        expected = alice.virtual_step(
            score, batch["unlabeled"], batch["labeled"], batch["labeled_y"], margin, learning_rate=rate
        )
        found = recording["minus_meta_gradient"][i]
        signed = (expected.pseudo_label * expected.meta_gradient.abs()).numpy()  # the paper's words
        np.testing.assert_allclose(found[:n], signed, rtol=0, atol=1e-4 * np.abs(signed).max())
        index = recording["index"][i, :n]
        assert (index == split["unlabeled"][batch["index"]]).all()
        assert (recording["is_anomaly"][i, :n] == (y[index] != 3)).all()
        assert np.isnan(found[n:]).all() and (recording["index"][i, n:] == -1).all()
        assert (recording["is_anomaly"][i, n:] == -1).all()


@pytest.mark.usefixtures("rendered")
def test_how_much_is_recorded_changes_nothing_else(command):
    directories = {
        number: command(*SHORT, f"method.record_iterations={number}", f"output_dir=of{number}").directory
        for number in (0, 5, 500)
    }
    assert len({path.name for path in directories.values()}) == 1, "the same run"
    assert len({(path / "scores.csv").read_text() for path in directories.values()}) == 1
    assert not list(directories[0].glob("meta_gradient*"))
    pictures = [directories[5] / name for name in ("curves.png", "meta_gradient.png")]
    before = [path.read_bytes() for path in pictures]
    assert plots.recorded_plots(directories[5]) == pictures
    assert [path.read_bytes() for path in pictures] == before
    few, all_of_it = recording_of(directories[5]), recording_of(directories[500])
    assert len(few["iteration"]) == 5 and len(all_of_it["iteration"]) == 12
    for key, values in few.items():
        np.testing.assert_array_equal(values, all_of_it[key][:5])


def test_a_run_may_go_on_with_another_length_or_from_a_checkpoint_without_a_recording(command):
    directory = command(*SHORT).directory
    before = recording_of(directory)["minus_meta_gradient"]

    def go_on(number):  # there is nothing left to train: what is written comes from the checkpoint
        for path in [directory / "metrics.json", *directory.glob("meta_gradient*")]:
            path.unlink()
        outcome = command(*SHORT, f"method.record_iterations={number}")
        assert outcome.code == 0 and outcome.directory == directory, outcome.err
        return recording_of(directory)["minus_meta_gradient"]

    assert go_on(5).tobytes() == before[:5].tobytes()
    checkpoint = torch.load(directory / "last.ckpt", weights_only=True)
    for name in ("recorded", "recorded_position"):
        del checkpoint["state_dict"][name]
    torch.save(checkpoint, directory / "last.ckpt")
    assert len(go_on(500)) == 0 and not (directory / "meta_gradient.png").exists()


def test_known_labels_tell_no_truth(command):
    data = digits()
    y = np.where(data.y_train[:200] == 3, 1, -1)
    y[30:] = 0
    np.savez("own.npz", x_train=data.x_train[:200], y_train=y)
    outcome = command(
        "dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "threshold=fitted", *SHORT[:2], "batch_size=32"
    )
    assert outcome.code == 0, outcome.err
    recording = recording_of(outcome.directory)
    assert (recording["is_anomaly"] == -1).all() and set(recording["index"].flatten()) == {-1, *range(30, 200)}
    assert (outcome.directory / "meta_gradient.png").is_file()
    assert (outcome.directory / "curves.png").is_file(), "of the labeled loss alone"


def test_a_bad_length_is_refused(command):
    for value, rule in ((-1, "not negative"), (0.5, "a whole number")):
        refused(command(f"method.record_iterations={value}"), f"method.record_iterations={value}", rule)


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("steps, truth, scale", [(70, [0, 1], 1e-12), (1, [1], 1.0), (70, [-1], 1.0), (1, [0, 1], 0.0)])
def test_any_recording_is_drawn(tmp_path, steps, truth, scale):
    generator = np.random.default_rng(0)
    is_anomaly = generator.choice(truth, (steps, 9))
    is_anomaly[steps // 2] = truth[0]  # a batch of one class
    values = scale * generator.standard_cauchy((steps, 9))
    values[:, 8:] = np.nan
    index = generator.integers(0, 30, (steps, 9))
    plots.meta_gradient_plot(tmp_path / "a.png", np.arange(steps) + 1, index, values, is_anomaly)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.usefixtures("rendered")
def test_gaps_in_a_curve_are_left_out(tmp_path):
    plots.curves_plot(tmp_path / "a.png", [1, 2, 3], [np.nan, 0.9, np.nan], [0.1, 0.2, 0.1])
    plots.curves_plot(tmp_path / "b.png", [1, 2], [np.nan, np.nan], None)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))
