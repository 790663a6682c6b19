"""RSRAE: its losses by hand, its three updates, what it solves, and what pollution does to it."""

import copy
import csv
import json

import numpy as np
import pytest
import torch
from test_bad_input import refused
from torch import nn

from elite_pl.algorithm import alice, losses
from elite_pl.methods.rsrae import UPDATES, Rsrae
from elite_pl.models import networks, scores
from elite_pl.runs.trained import load

SHORT = ("method=rsrae", "epochs=3", "threads=1")

# -------------------------------------------------------------------------------------------------------------- losses


def test_losses_by_hand():
    sample = torch.zeros(2, 1, 2, 2)
    reconstruction = torch.tensor([[3.0, 0, 4, 0], [0, 0, 0, 1]]).reshape(2, 1, 2, 2)
    assert losses.reconstruction_error(sample, reconstruction).tolist() == [5, 1], "norms, not squares"
    axis, output = torch.tensor([[1.0, 0, 0]]), torch.tensor([[7.0, 3, 4], [9, 0, 0]])
    assert losses.subspace_error(output, axis).tolist() == [5, 0]
    assert losses.subspace_error(output, 2 * axis).tolist() == pytest.approx([(21**2 + 25) ** 0.5, 27]), "no projection"
    assert losses.orthogonality_error(axis) == 0
    assert losses.orthogonality_error(torch.tensor([[1.0, 1, 0], [0, 2, 0]])) == 1 + 2 * 2**2 + 3**2


def plane_and_outliers(n=100):
    """Points on a plane in 8 dimensions, one in 20 far off along a line across it; and the plane."""
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))).Q.T
    plane, across = basis[:2], basis[2:]
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(1)) @ plane
    points[::20] = torch.randn(n // 20, 1, generator=torch.Generator().manual_seed(2)) * 10 * across
    return points, plane


def tilt(subspace, plane):
    """The sine of the largest angle between two subspaces, of which the second has orthonormal rows."""
    basis = torch.linalg.qr(subspace.T).Q.T
    return torch.linalg.matrix_norm(plane - plane @ basis.T @ basis, ord=2).item()


def test_the_two_losses_of_the_layer_recover_a_subspace_where_least_squares_fails():
    points, plane = plane_and_outliers()
    principal = torch.linalg.svd(points).Vh[:2]
    torch.manual_seed(0)
    subspace = nn.Parameter(nn.init.orthogonal_(torch.empty(2, 8)))
    optimizer = torch.optim.Adam([subspace], lr=1e-2)
    for step in range(800):
        optimizer.zero_grad()
        loss = losses.subspace_error(points, subspace).mean() if step % 2 else losses.orthogonality_error(subspace)
        loss.backward()
        optimizer.step()
    assert tilt(subspace.detach(), plane) < 0.05 < 0.9 < tilt(principal, plane)
    assert losses.orthogonality_error(subspace) < 0.01


def test_the_orthogonality_error_drives_the_rows_to_be_orthonormal():
    torch.manual_seed(0)
    subspace = nn.Parameter(torch.randn(3, 8))
    optimizer = torch.optim.Adam([subspace], lr=5e-2)
    before = losses.orthogonality_error(subspace).item()
    for _ in range(400):
        optimizer.zero_grad()
        losses.orthogonality_error(subspace).backward()
        optimizer.step()
    assert before > 10
    torch.testing.assert_close(subspace @ subspace.T, torch.eye(3), atol=1e-3, rtol=0)


# --------------------------------------------------------------------------------------------------------------- score


def score_of(distance="cosine", unit_code=True, initial="orthogonal", norm="batch"):
    torch.manual_seed(0)
    return scores.RobustSubspace(networks.mlp((9,), (8, 6), 5, norm), 3, distance, unit_code, initial)


@pytest.mark.parametrize("distance", ["cosine", "norm"])
@pytest.mark.parametrize("unit_code", [True, False])
def test_the_score_can_carry_elite(distance, unit_code):
    score = score_of(distance, unit_code).double()
    unlabeled, labeled = torch.rand(12, 9).double(), torch.rand(6, 9).double()
    unlabeled[0] = 0  # where a norm has no gradient
    label = torch.tensor([1.0, -1.0] * 3).double()
    with torch.no_grad():
        margin = copy.deepcopy(score)(labeled).median() * 1.05
    fast, literal = (
        function(copy.deepcopy(score), unlabeled, labeled, label, margin, learning_rate=0.05)
        for function in (alice.jvp, alice.virtual_step)
    )
    assert literal.d.abs().max() > 0
    for one, other in zip(fast, literal, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_elite_runs_on_it(command):
    place = "method.score."
    score = (f"~{place}squared", f"{place}_target_=elite_pl.models.RobustSubspace", f"+{place}dimension=10")
    score += (f"+{place}distance=cosine", f"+{place}unit_code=true", f"+{place}initial=orthogonal")
    outcome = command("method=elite_svdd", *score, "epochs=3", "method.pretrain_epochs=0", "threads=1")
    assert outcome.code == 0, outcome.err
    assert isinstance(load(outcome.directory / "detector.pt").model, scores.RobustSubspace)


def test_scores_by_hand():
    sample = torch.rand(4, 9)
    for unit_code in (True, False):
        cosine, norm = (score_of(distance, unit_code, norm="none") for distance in ("cosine", "norm"))
        code = cosine.encoder(sample) @ cosine.subspace.T
        code = code / code.norm(dim=1, keepdim=True) if unit_code else code
        x_hat = cosine.decoder(code @ cosine.lift.weight.T)
        torch.testing.assert_close(cosine.reconstruct(sample), x_hat)
        angle = (sample * x_hat).sum(1) / (sample.norm(dim=1) * x_hat.norm(dim=1))
        torch.testing.assert_close(cosine(sample), 1 - angle)
        torch.testing.assert_close(norm(sample), (sample - x_hat).norm(dim=1))


def test_the_initial_subspace():
    torch.testing.assert_close(losses.orthogonality_error(score_of().subspace), torch.tensor(0.0))
    assert losses.orthogonality_error(score_of(initial="normal").subspace) > 1


# ------------------------------------------------------------------------------------------------------------- updates


def steps_of(command, monkeypatch, *typed):
    """What each step of a run updates: its loss, and the parameters and buffers of the score that it changes."""
    steps, before = [], {}
    original = Rsrae.descend

    def descend(self, optimizer, loss):
        index = self.optimizers().index(optimizer)
        original(self, optimizer, loss)
        state = {name: value.detach().clone() for name, value in self.score.state_dict().items()}
        if before:
            changed = {name for name, value in state.items() if not value.equal(before[name])}
            steps.append((UPDATES[index], optimizer.param_groups[0]["lr"], changed, self.global_step))
        before.update(state)

    monkeypatch.setattr(Rsrae, "descend", descend)
    outcome = command(*SHORT, *typed)
    assert outcome.code == 0, outcome.err
    return steps, outcome.directory


def kinds(names):
    """Which parts of the score are meant by names of its state."""
    return {"statistics" if "running" in name or "num_batches" in name else name.split(".")[0] for name in names}


def test_each_batch_serves_one_update_in_turn(command, monkeypatch):
    steps, directory = steps_of(command, monkeypatch)
    assert [step[0] for step in steps] == [UPDATES[i % 3] for i in range(1, 12)], "four batches, three epochs"
    assert [step[3] for step in steps] == list(range(2, 13)), "a step is a batch"
    changes = {update: [kinds(changed) for kind, _, changed, _ in steps if kind == update] for update in UPDATES}
    everything = {"encoder", "subspace", "lift", "decoder", "statistics"}
    assert all(changed == everything for changed in changes["reconstruction"])
    assert all(changed == {"subspace"} for changed in changes["orthogonality"] + changes["subspace"])
    rows = list(csv.DictReader((directory / "history.csv").read_text().splitlines()))
    assert all(float(row[f"train/{update}"]) >= 0 for row in rows for update in UPDATES)


def test_all_three_updates_on_every_batch_as_published(command, monkeypatch):
    published = "method.updates_per_batch=3", "method.subspace_encoder=true", "method.orthogonality_learning_rate=3e-3"
    steps, _ = steps_of(command, monkeypatch, *published)
    assert [step[0] for step in steps] == [UPDATES[i % 3] for i in range(1, 36)]
    assert {step[:2] for step in steps} == {("reconstruction", 1e-3), ("orthogonality", 3e-3), ("subspace", 1e-2)}
    changed = [kinds(changed) for kind, _, changed, _ in steps if kind == "subspace"]
    assert all(parts == {"subspace", "encoder"} for parts in changed), "and no running statistics"


def test_the_mean_of_an_epoch_is_over_the_updates_that_were_made(command, monkeypatch):
    seen = []
    original = Rsrae.loss_of

    def loss_of(self, update, sample):
        loss = original(self, update, sample)
        seen.append((self.current_epoch, update, loss.item()))
        return loss

    monkeypatch.setattr(Rsrae, "loss_of", loss_of)
    outcome = command(*SHORT)
    rows = list(csv.DictReader((outcome.directory / "history.csv").read_text().splitlines()))
    for epoch, row in enumerate(rows):
        for update in UPDATES:
            values = [value for e, u, value in seen if (e, u) == (epoch, update)]
            assert float(row[f"train/{update}"]) == pytest.approx(np.mean(values), rel=1e-5)


def test_a_schedule_slows_all_three_updates(command, monkeypatch):
    schedule = (
        "+method.scheduler._target_=torch.optim.lr_scheduler.StepLR",
        "+method.scheduler._partial_=true",
        "+method.scheduler.step_size=1",
        "+method.scheduler.gamma=0.5",
    )
    steps, _ = steps_of(command, monkeypatch, "method.scheduler={}", *schedule)
    rates = {update: sorted({rate for kind, rate, *_ in steps if kind == update}) for update in UPDATES}
    assert rates["reconstruction"] == pytest.approx([2.5e-4, 5e-4, 1e-3][: len(rates["reconstruction"])])
    assert rates["orthogonality"] == rates["subspace"] == pytest.approx([2.5e-3, 5e-3, 1e-2])


class InterruptionError(RuntimeError):
    """What a test stops a run with."""


def test_an_interrupted_run_goes_on_to_the_same_result_to_the_last_bit(command, monkeypatch):
    def results(directory):
        return [(directory / name).read_text() for name in ("scores.csv", "audit.csv", "history.csv")]

    original, steps = Rsrae.descend, []

    def descend(self, optimizer, loss):
        steps.append(self.global_step)
        if self.global_step == stop:
            raise InterruptionError
        original(self, optimizer, loss)

    monkeypatch.setattr(Rsrae, "descend", descend)
    stop = 14  # in the fourth epoch; a turn of three has begun in the third
    assert command("method=rsrae", "epochs=6", "threads=1").code == 1
    stop = None
    steps.clear()
    resumed = command("method=rsrae", "epochs=6", "threads=1")
    assert resumed.code == 0 and steps == list(range(12, 24)), "from the checkpoint, not anew"
    kept = torch.load(resumed.directory / "last.ckpt", weights_only=True)
    assert [state["state"][0]["step"].item() for state in kept["optimizer_states"]] == [8, 8, 8]
    whole = command("method=rsrae", "epochs=6", "threads=1", "output_dir=whole")
    assert results(resumed.directory) == results(whole.directory)


# --------------------------------------------------------------------------------------------------------------- solves


@pytest.fixture
def subspaces(tmp_path):
    """An npz file: class 0 lies near a subspace of 3 of 20 dimensions, class 1 near another one."""
    rng = np.random.default_rng(0)
    bases = np.linalg.qr(rng.normal(size=(20, 6)))[0].T.reshape(2, 3, 20)
    y = np.repeat([0, 1], 400)
    x = np.einsum("nd,ndk->nk", rng.normal(size=(800, 3)), bases[y]) + 0.02 * rng.normal(size=(800, 20))
    path = tmp_path / "subspaces.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return path, x[y == 0], x[y == 1]


def run_on(command, path, pollution):
    outcome = command(
        "method=rsrae",
        "dataset=npz",
        f"dataset.path={path}",
        "backbone=mlp",
        "backbone.hidden=[]",  # a linear encoder, so that subspaces stay subspaces
        "method.score.dimension=3",
        f"pollution={pollution}",
        "n_train=250",
        "batch_size=32",
        "epochs=60",
        "label_ratio=0.02",
        "threads=1",
        "trainer.check_val_every_n_epoch=60",
    )
    assert outcome.code == 0, outcome.err
    return outcome.directory, json.loads((outcome.directory / "metrics.json").read_text())["test/auroc"]


def test_it_finds_the_subspace_of_the_normal_samples_unless_half_of_all_lie_in_another(command, subspaces):
    path, normal, anomalous = subspaces
    directory, auroc = run_on(command, path, 0.1)
    assert auroc > 0.95
    detector = load(directory / "detector.pt")
    score = detector.model
    assert losses.orthogonality_error(score.subspace) < 0.1

    def share_outside(x):
        """How much of the encoder's outputs lies outside the subspace of the layer."""
        with torch.no_grad():
            output = score.encoder((torch.as_tensor(x, dtype=torch.float32) - detector.shift) / detector.scale)
            return (losses.subspace_error(output, score.subspace).mean() / output.norm(dim=1).mean()).item()

    assert share_outside(normal) < 0.15 and share_outside(anomalous) > 0.8
    assert run_on(command, path, 0.5)[1] < 0.8


def test_digits_are_easy_with_little_pollution(command):
    outcome = command("method=rsrae", "pollution=0.1", "threads=1", "trainer.check_val_every_n_epoch=20")
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.directory / "metrics.json").read_text())
    assert found["test/auroc"] > 0.95 and not found["test/collapsed"]


# ----------------------------------------------------------------------------------------------------------- bad input

WRONG = {
    "method.score.dimension=0": ("method.score.dimension=0", "at least 1"),
    "method.score.dimension=33": ("method.score.dimension=33", "at most 32"),
    "method.score.dimension=2.5": ("method.score.dimension=2.5", "whole"),
    "method.score.distance=euclid": ("method.score.distance=euclid", "cosine", "norm"),
    "method.score.initial=zero": ("method.score.initial=zero", "orthogonal"),
    "method.orthogonality_learning_rate=0": ("method.orthogonality_learning_rate=0", "positive"),
    "method.subspace_learning_rate=-1": ("method.subspace_learning_rate=-1", "positive"),
    "method.updates_per_batch=2": ("method.updates_per_batch=2", "1", "3"),
    "~method.score.dimension": ("method", "dimension"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed(command, typed):
    refused(command("method=rsrae", typed), *WRONG[typed])


def test_another_score_has_no_subspace(command):
    place = "method.score."
    other = [f"~{place}{key}" for key in ("dimension", "distance", "unit_code", "initial")]
    typed = ("method=rsrae", f"{place}_target_=elite_pl.models.Reconstruction", *other)
    refused(command(*typed), "method.score", "Reconstruction", "RobustSubspace")


def test_non_finite_training_names_the_step_and_the_learning_rate(command):
    outcome = command("method=rsrae", "method.optimizer.lr=1e30", "epochs=3", "threads=1")
    assert outcome.code == 1
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: step ") and "learning rate" in error and "Traceback" not in outcome.err
