"""The mean teacher: how the score at which it is undecided is found, and that a run goes on with it."""

import numpy as np
import pytest
import torch
from test_bad_input import refused
from test_rivals import history_of

from elite_pl import config
from elite_pl.algorithm import alice
from elite_pl.algorithm.threshold import agreeing_threshold
from elite_pl.methods import MeanTeacher
from elite_pl.runs.build import make_data, make_detector

SHORT = ("method=mean_teacher", "method.pretrain_epochs=0", "threads=1")


def test_the_threshold_parts_samples_as_the_suspicion_does():
    score = torch.tensor([0.5, 3.0, 1.0, 2.0])
    assert agreeing_threshold(score, torch.tensor([-1.0, 1.0, -1.0, 1.0])) == 1.5
    assert agreeing_threshold(score, torch.tensor([-1.0, 3.0, 2.0, -1.0])) == 0.75, "one of three above it is normal"
    assert agreeing_threshold(score, -torch.ones(4)) == agreeing_threshold(score, torch.zeros(4)) == 3, "none above it"
    assert agreeing_threshold(score, torch.ones(4)) == 0.5


def test_its_derivative_is_that_of_elite_and_moves_no_statistics():
    cfg = config.compose(["method=mean_teacher", "method.threshold=meta_gradient", "logger=none"])
    data = make_data(cfg)
    detector = make_detector(cfg, data.sample_shape)
    detector.train()
    detector.margin.fill_(2.0)
    labels = {"labeled": data.labeled[:], "labeled_y": data.labeled_y}
    batch = {"index": torch.arange(32), "unlabeled": data.unlabeled[:32], **labels}
    before = {name: value.clone() for name, value in detector.score.state_dict().items()}
    d = detector.derivative(batch)
    assert all(torch.equal(value, before[name]) for name, value in detector.score.state_dict().items())
    labeled = batch["labeled"], batch["labeled_y"], detector.margin
    torch.testing.assert_close(d, alice.jvp(detector.score, batch["unlabeled"], *labeled, learning_rate=1.0).d)
    assert not d.requires_grad and (d != 0).all()


@pytest.mark.parametrize("rule", ["contamination", "meta_gradient"])
def test_it_is_found_anew_for_each_epoch_and_is_that_of_its_rule(command, monkeypatch, rule):
    found, original = [], MeanTeacher.on_train_epoch_start

    def epoch_start(self):
        original(self)
        above = self.said > self.undecided
        found.append((self.undecided.item(), above.float().mean().item(), (self.suspicion * above).sum().item()))

    monkeypatch.setattr(MeanTeacher, "on_train_epoch_start", epoch_start)
    outcome = command(*SHORT, f"method.threshold={rule}", "method.warm_up=2", "epochs=6")
    assert outcome.code == 0, outcome.err
    thresholds, shares, sums = zip(*found, strict=True)
    assert thresholds[:2] == (0.5, 0.5) and len(set(thresholds[2:])) == 4
    logged = [float(text) for text in history_of(outcome.directory, "train/teacher_threshold") if text]
    assert logged == pytest.approx(thresholds[1:]), "in use from the last epoch of the warm-up on"
    if rule == "contamination":
        assert all(0.2 < share < 0.8 for share in shares[2:]), "half of them are anomalies"
    else:
        assert all(total > 0 for total in sums[2:])


def test_an_interrupted_run_goes_on_with_what_it_knew(command, monkeypatch):
    typed, original = (*SHORT, "epochs=5"), MeanTeacher.loss
    epochs, stop = [], 4

    def loss(self, batch):
        epochs.append(self.current_epoch)
        if self.current_epoch == stop:
            raise RuntimeError
        return original(self, batch)

    monkeypatch.setattr(MeanTeacher, "loss", loss)
    assert command(*typed).code == 1
    epochs, stop = [], None
    resumed = command(*typed)
    assert set(epochs) == {4}, "from the checkpoint, not anew"
    whole = command(*typed, "output_dir=whole")
    assert resumed.directory != whole.directory
    for name in ("scores.csv", "history.csv"):
        assert (resumed.directory / name).read_text() == (whole.directory / name).read_text()


def test_labels_of_one_kind_tell_no_share_and_a_number_needs_none(command):
    np.savez("own.npz", x_train=np.eye(20), y_train=[1] * 5 + [0] * 15)
    own = ("dataset=npz", "dataset.path=own.npz", "dataset.labels=known", "epochs=1")
    refused(command(*own, *SHORT), "method.threshold=contamination", "both kinds", "a number")
    refused(command(*own, *SHORT, "method.threshold=nan"), "method.threshold=nan: must be", "a finite number")
    outcome = command(*own, *SHORT, "method.threshold=0.65", "method.warm_up=0", "method.ramp=0")
    assert outcome.code == 0, outcome.err
    assert float(history_of(outcome.directory, "train/teacher_weight")[0]) > 0
