"""Detectors that are trained together end up as those that are trained one by one."""

import numpy as np
import pytest
import torch

from elite_pl import config
from elite_pl.data.arrays import make_arrays
from elite_pl.runs import stacked
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.spec import RunSpec

COMMON = ("dataset=npz", "dataset.path=null", "dataset.labels=known", "logger=none", "threads=1")
COMMON += ("trainer.accelerator=cpu", "trainer.precision=64", "trainer.max_steps=20", "epochs=20", "batch_size=16")
SMALL = ("backbone=mlp", "backbone.hidden=[8]", "backbone.outputs=16", "method.pretrain_epochs=1")
RUNNING, JOINT = "method.labeled_statistics=running", "method.labeled_statistics=joint"
CASES = {
    "elite_tabular": ("method=elite_tabular", "backbone.hidden=[8]"),
    "elite, batch norm": ("method=elite_svdd", *SMALL),
    "elite, running statistics": ("method=elite_svdd", *SMALL, RUNNING, "method.weights=raw"),
    "deep_sad, averaged weights": ("method=deep_sad", *SMALL, "method.average_decay=0.9"),
    "deep_sad, joint statistics": ("method=deep_sad", *SMALL, JOINT, "labeled_batch_size=6"),
    "deep_svdd on images": ("method=deep_svdd", *SMALL),
    "labels_only": ("method=labels_only", *SMALL, "method.margin=max_labeled", "method.optimizer.lr=0.01"),
}


def fresh(typed):
    """Three runs with other seeds and other data, as many of each kind, and their detectors."""
    for seed in range(3):
        spec = RunSpec.of(config.compose([*COMMON, *typed, f"seed={seed}"]))
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.normal(0.4, 0.1, (60, 64)), rng.normal(0.6, 0.2, (17, 64))]).clip(0, 1)
        x = x.astype(np.float32).reshape(-1, 1, 8, 8) if "method=deep_svdd" in typed else x.astype(np.float32)
        y = np.zeros(77, dtype=np.int64)
        y[rng.permutation(60)[:5]], y[60:64] = 1, -1
        data = make_data(spec.config, make_arrays("noise", x, y, x[:0], y[:0], labels="known"))
        yield spec, make_detector(spec.config, data.sample_shape), data


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("typed", CASES.values(), ids=list(CASES))
def test_20_steps_together_are_those_of_each(typed, double):
    alone = list(fresh(typed))
    for spec, detector, data in alone:
        trainer = make_trainer(spec, None)
        trainer.fit(detector, datamodule=data)
        assert trainer.global_step == 20
    specs, detectors, data = zip(*fresh(typed), strict=True)
    assert not any(map(stacked.why_not, specs, detectors))
    stacked.fit_together(specs[0], detectors, data)
    for ours, (_, other, _) in zip(detectors, alone, strict=True):
        theirs = other.state_dict()
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(
                value, theirs[name], rtol=1e-9, atol=1e-12, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
    one, another, _ = (next(ours.parameters()) for ours in detectors)
    assert one.dtype == torch.float64 and not torch.allclose(one, another)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (["method=elite_tabular"], ""),
        (["method=devnet"], "method devnet has no stacked form"),
        (["method=extra_trees"], "method extra_trees has no stacked form"),
        (["method=oracle"], "method oracle has no stacked form"),
        (["method=elite_ae"], "Reconstruction has no stacked form"),
        (["method=deep_svdd", "backbone=lenet"], "Conv2d has no stacked form"),
        (["method=deep_sad", "trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1 is for one detector"),
        (["method=deep_sad", "trainer.deterministic=true"], "trainer.deterministic=True is for one detector"),
        (["method=deep_sad", "trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2"),
        (["method=deep_sad", "+callbacks.mine._target_=elite_pl.runs.TimeLeft"], ""),
        (["method=deep_sad", "+callbacks.mine._target_=pytorch_lightning.Callback"], "the callback pytorch_lightning"),
        (["method=deep_sad", "method.optimizer._target_=torch.optim.Adamax"], "Adamax"),
    ],
)
def test_what_cannot_be_trained_together_is_told(typed, why):
    spec = RunSpec.of(config.compose([*COMMON, *typed]))
    found = stacked.why_not(spec, make_detector(spec.config, (1, 8, 8) if "backbone=lenet" in typed else (9,)))
    assert found.startswith(why) and bool(found) == bool(why)
