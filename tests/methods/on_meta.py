"""Steps on the `meta` device, which has shapes and no values: a tensor left on the CPU, or a look at a value, fails.

`test_device.py` runs this file in a process of its own.

A look at a value is what makes a step wait for a GPU.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import elite_pl
from elite_pl import config
from elite_pl.algorithm import alice
from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.methods.base import Detector
from elite_pl.runs.build import make_data, make_detector

META = torch.device("meta")
# Which samples make a pair or a mixture is drawn on the CPU; PyTorch's `AveragedModel` looks at its count.
LOOK = {"prenet", "rosas", "mean_teacher"}
SETTINGS_OF_OTHERS = ("_augmented", "_hinge", "_paper", "_published", "_release", "_tabular")  # of the same classes
FOUND = {path.stem for path in (Path(elite_pl.__file__).parents[1] / "conf" / "method").glob("*.yaml")}
METHODS = sorted(name for name in FOUND - LOOK if not name.endswith(SETTINGS_OF_OTHERS))


@pytest.mark.parametrize("kernel", [alice.jvp, alice.virtual_step])
@pytest.mark.parametrize("weights", alice.WEIGHTS)
def test_a_kernel_looks_at_no_value(kernel, weights):
    score = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LeakyReLU(), nn.Linear(3, 1), nn.Flatten(0)).to(META)
    unlabeled, labeled, label = (torch.zeros(shape, device=META) for shape in ((8, 4), (6, 4), (6,)))
    found = kernel(score, unlabeled, labeled, label, 1.0, learning_rate=0.1, weights=weights, contamination=0.3)
    (found.weight * found.score).mean().backward()
    assert found.meta_gradient.device == META


def pixels() -> Arrays:
    """Random images of two classes."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (160, 1, 28, 28), dtype=np.uint8), np.arange(160) % 2
    return make_arrays("pixels", x, y, x[:10], y[:10])


@pytest.fixture
def step(monkeypatch):
    """Makes the steps of an epoch on the meta device, without Lightning's loop around them."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device

    def made(*typed: str) -> None:
        cfg = config.compose(["logger=none", "label_ratio=0.1", "n_train=120", "trainer.accelerator=cpu", *typed])
        data = make_data(cfg, pixels())
        detector = make_detector(cfg, data.sample_shape)
        if not isinstance(detector, Detector):
            pytest.skip("is fitted on the CPU")
        data.place(META)
        detector.to(META)
        loop = {"current_epoch": 10, "global_step": 40, "max_epochs": 20, "max_steps": -1, "num_training_batches": 9}
        data.trainer = detector.trainer = SimpleNamespace(datamodule=data, **loop)
        found = detector.configure_optimizers()
        optimizers = found[0] if isinstance(found, tuple) else found
        detector.optimizers = lambda: (
            optimizers[0] if isinstance(optimizers, list) and len(optimizers) == 1 else optimizers
        )
        detector.manual_backward = lambda loss: loss.backward()
        detector.setup("fit")
        detector.train()
        for batch in data.train_dataloader():
            detector.training_step(batch, 0)
        assert detector.unseen, "the losses wait for the end of the epoch"

    return made


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_no_value(step, method):
    step(f"method={method}")


def test_nor_does_one_in_parts_with_drawn_labels_and_changed_images(step):
    drawn = ["labeled_batch_size=4", "augmentation=noise", "method.labeled_copies=2"]
    step(*drawn, "trainer.accumulate_grad_batches=2", "trainer.channels_last=true")


def test_channels_last_changes_roundings_alone():
    found = []
    for last in ("false", "true"):
        cfg = config.compose(["logger=none", "label_ratio=0.1", "n_train=120", f"trainer.channels_last={last}"])
        data = make_data(cfg, pixels())
        score = make_detector(cfg, data.sample_shape).score.double()
        assert score.encoder[4].weight.is_contiguous(memory_format=torch.channels_last) == (last == "true")
        unlabeled, labeled = data.unlabeled[:].double(), data.labeled[:].double()
        step = alice.jvp(score, unlabeled, labeled, data.labeled_y.double(), 5.0, learning_rate=0.1)
        found.append((step.score, step.d))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
