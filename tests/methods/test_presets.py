"""The presets of the paper and of the authors' release: their first step is the equation that they stand for."""

import pytest
import torch
from omegaconf import OmegaConf

from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.runs.build import make_data, make_detector
from elite_pl.runs.trained import load

LEARNING_RATE = {
    "elite_svdd_paper": None,
    "elite_ae_paper": None,
    "elite_svdd_release": 3e-4,
    "elite_ae_release": 6e-4,
}


def gradients(values, parameters):
    """The gradient of each value as a row."""
    rows = [torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in values]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("method", LEARNING_RATE)
def test_the_first_step(command, images, method):
    outcome = command(
        "dataset=npz", f"dataset.path={images()}", "dataset.size=32", f"method={method}", "method.pretrain_epochs=0",
        "n_train=20", "label_ratio=0.2", "batch_size=64", "epochs=1", "method.meta_scale=7",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    trained = load(outcome.directory / "detector.pt")
    config = OmegaConf.create(trained.config)
    rate = LEARNING_RATE[method] or config.method.optimizer.lr
    assert config.method.optimizer.lr == rate

    data = make_data(config)
    score = make_detector(config, data.sample_shape).score
    if hasattr(score, "center"):
        score.center.copy_(trained.model.center)
    margin, y, n = trained.margin, data.labeled_y, len(data.unlabeled)
    theta = list(score.parameters())
    before = torch.nn.utils.parameters_to_vector(theta).detach()
    with frozen_statistics(score, "batch"):
        labeled, unlabeled = score(data.labeled[:]), score(data.unlabeled[:])
    assert not method.endswith("release") or margin > 0

    loss = torch.where(y > 0, labeled, (margin - labeled).clamp(min=0)).mean()
    rows = gradients(unlabeled, theta)
    d = rows @ gradients([loss], theta)[0]
    if method.endswith("paper"):
        weight = 7 * rate / n * d.abs()  # Eq. 14
        pulled = torch.where(d >= 0, 1.0, -(unlabeled < margin).float())  # ∇l of Eq. 4 in units of ∇Ω
        step = rate / n * (weight * pulled) @ rows
    else:
        step = rate / n * (7 * rate * d) @ rows  # Eq. 16, of a virtual step on the sum, without a hinge
    after = torch.nn.utils.parameters_to_vector(trained.model.parameters())
    assert (after - before + step).abs().max() <= 1e-3 * step.abs().max() + 1e-7
    assert step.abs().max() > 1e-5, "there is something to compare"


def test_the_margin_of_the_release_is_the_largest_score_of_a_labeled_sample(command, images):
    outcome = command(
        "dataset=npz", f"dataset.path={images()}", "method=elite_svdd_release", "n_train=30", "label_ratio=0.2",
        "epochs=1", "method.optimizer.lr=1e-30",
    )  # fmt: skip
    trained = load(outcome.directory / "detector.pt")
    config = OmegaConf.create(trained.config)
    data = make_data(config)
    assert data.sample_shape == trained.sample_shape == (1, 32, 32)
    detector = make_detector(config, data.sample_shape)
    detector.score.load_state_dict(trained.model.state_dict())
    detector.calibrate(data)  # the running statistics of the untrained network, of which the margin was taken
    assert detector.eval()(data.labeled[:]).max().item() == pytest.approx(trained.margin)
