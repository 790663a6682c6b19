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
LENET = ("backbone=lenet", "backbone.channels=[3,2]", "backbone.outputs=16", "method.pretrain_epochs=1")
RUNNING, JOINT = "method.labeled_statistics=running", "method.labeled_statistics=joint"
CASES = {
    "elite_tabular": ("method=elite_tabular", "backbone.hidden=[8]"),
    "elite, batch norm": ("method=elite_svdd", *SMALL),
    "elite, running statistics": ("method=elite_svdd", *SMALL, RUNNING, "+method.scheduler=null"),
    "elite, lenet": ("method=elite_svdd", *LENET),
    "deep_sad, averaged weights": ("method=deep_sad", *SMALL, "method.average_decay=0.9"),
    "deep_sad, joint statistics": ("method=deep_sad", *SMALL, JOINT, "labeled_batch_size=6"),
    "deep_svdd, lenet with layer norm": ("method=deep_svdd", *LENET, "backbone.norm=layer"),
    "labels_only": ("method=labels_only", *SMALL, "method.margin=max_labeled", "method.optimizer.lr=0.01"),
}


def trainings(typed):
    """Three runs of other seeds and other data, as many of each kind."""
    images = any(text == "backbone=lenet" for text in typed)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.normal(0, 1, (60, 64)), rng.normal(0.5, 1.5, (17, 64))]).astype(np.float32)
        y = np.zeros(77, dtype=np.int64)
        y[rng.permutation(60)[:5]], y[60:64] = 1, -1
        x = x.reshape(-1, 1, 8, 8) / 16 + 0.5 if images else x
        spec = RunSpec.of(config.compose([*COMMON, *typed, f"seed={seed}"]))
        yield (
            spec,
            make_data(
                spec.config, make_arrays("noise", x.clip(0, 1) if images else x, y, x[:0], y[:0], labels="known")
            ),
        )


def in_double(spec, data):
    trainer = make_trainer(spec, None)
    with trainer.precision_plugin.tensor_init_context():
        return make_detector(spec.config, data.sample_shape), trainer


@pytest.mark.parametrize("typed", CASES.values(), ids=lambda typed: typed[0][7:])
def test_20_steps_together_are_those_of_each(typed):
    with torch.random.fork_rng(), make_trainer(next(trainings(typed))[0], None).precision_plugin.tensor_init_context():
        runs, again = list(trainings(typed)), list(trainings(typed))
        alone = []
        for spec, data in runs:
            detector, trainer = in_double(spec, data)
            assert stacked.why_not(spec, detector) == ""
            trainer.fit(detector, datamodule=data)
            assert trainer.global_step == 20
            alone.append(detector)
        detectors = [in_double(spec, data)[0] for spec, data in again]
        stacked.fit_together(again[0][0], detectors, [data for _, data in again])
    for one, other in zip(detectors, alone, strict=True):
        ours, theirs = one.state_dict(), other.state_dict()
        for name, value in theirs.items():
            if name in ours:
                torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert {"margin", "score.encoder.1.weight"} & {*ours} and set(ours) <= set(theirs)
    weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in detectors]
    assert not torch.allclose(weights[0], weights[1]), "each has weights of its own"


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (["method=elite_tabular"], ""),
        (["method=devnet"], "method devnet has no stacked form"),
        (["method=extra_trees"], "method extra_trees has no stacked form"),
        (["method=oracle"], "method oracle has no stacked form"),
        (["method=elite_ae"], "Reconstruction has no stacked form"),
        (["method=deep_sad", "trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1 is for one detector"),
        (["method=deep_sad", "trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2"),
        (["method=deep_sad", "+callbacks.mine._target_=elite_pl.runs.TimeLeft"], ""),
        (["method=deep_sad", "+callbacks.mine._target_=pytorch_lightning.Callback"], "the callback pytorch_lightning"),
        (["method=deep_sad", "method.optimizer._target_=torch.optim.Adamax"], "Adamax"),
    ],
)
def test_what_cannot_be_trained_together_is_told(typed, why):
    spec = RunSpec.of(config.compose([*COMMON, *typed]))
    found = stacked.why_not(spec, make_detector(spec.config, (9,)))
    assert found.startswith(why) and bool(found) == bool(why)
