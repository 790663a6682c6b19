"""Training of `Ensemble`: one method from several seeds. Each is a run of its own that leaves nothing on disk."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from elite_pl import seeding
from elite_pl.config import Config, plain
from elite_pl.data.datamodule import PollutedData
from elite_pl.data.feature_maps import AnyFeatureMap
from elite_pl.methods.auto import Auto
from elite_pl.methods.base import BaseDetector
from elite_pl.methods.ensemble import Ensemble
from elite_pl.models.mixture import Member, Mixture
from elite_pl.models.recipe import Recipe
from elite_pl.models.scores import MeanOverViews
from elite_pl.runs.crossfit import trained
from elite_pl.runs.spec import RunSpec

log = logging.getLogger(__name__)


def train_ensemble(ensemble: Ensemble, spec: RunSpec, data: PollutedData) -> None:
    """Trains a method from several seeds, and gives `ensemble` their mean.

    Args:
        ensemble: The detector, which is not trained yet.
        spec: Its run.
        data: The data of the run.

    Raises:
        TrainingError: If a training goes wrong.
    """
    start = time.monotonic()
    without_test = data.under(replace(data.split, test=data.split.test[:0]), fitted=data.preprocessing)
    members, unlabeled = train_members(alone(spec), without_test, ensemble.seeds, None)
    ensemble.score = Mixture(members)
    ensemble.score.set(torch.tensor(1 / len(members)), unlabeled)
    log.info("%d trainings of %s, %.0f s", len(members), ensemble.name, time.monotonic() - start)


def several_of(detector: Auto | Ensemble) -> str:
    """What makes a detector several trainings, as it is typed."""
    return f"ensemble={detector.seeds}" if isinstance(detector, Ensemble) else f"method={detector.name}"


def alone(spec: RunSpec) -> RunSpec:
    """The run of one detector of an ensemble; a run of one detector is returned as it is."""
    if spec.config.ensemble == 1:
        return spec
    return with_settings(spec, {"ensemble": 1})


def train_members(
    spec: RunSpec, data: PollutedData, seeds: int, feature_map: AnyFeatureMap | None
) -> tuple[list[Member], Tensor]:
    """Trains the detector of a run from several seeds.

    Args:
        spec: The run.
        data: Its data.
        seeds: How many are trained.
        feature_map: The map of `data` which the members are to apply themselves; None where it comes before them.

    Returns:
        What was trained, and its scores of the unlabeled samples, shape (seeds, N).

    Raises:
        TrainingError: If a training goes wrong.
    """
    members, unlabeled = [], []
    for _, detector in trained(with_seeds(spec, data, seeds)):
        members.append(Member(detector.scorer, recipe_of(spec, detector), data.sample_shape, feature_map))
        unlabeled.append(detector.score_samples(data.unlabeled).double())
    return members, torch.stack(unlabeled)


def with_seeds(spec: RunSpec, data: PollutedData, seeds: int) -> Iterator[tuple[RunSpec, PollutedData]]:
    """A run with as many seeds, the first one its own, and the data of each."""
    first = spec.config.seed
    for seed in (first, *(seeding.derive(first, "candidate", i) % 2**31 for i in range(1, seeds))):
        yield with_settings(spec, {"seed": seed}), data.under(data.split, seed=seed, fitted=data.preprocessing)


def with_settings(spec: RunSpec, settings: Mapping[str, Any]) -> RunSpec:
    """A run with other values of some root keys; a group that comes with its `_target_` is replaced as a whole."""
    config = cast(Any, copy.deepcopy(spec.config))
    with open_dict(config):
        for key, value in settings.items():
            whole = not isinstance(value, dict) or "_target_" in value
            OmegaConf.update(config, key, value, merge=not whole)
    return replace(spec, config=cast(Config, config), plain=plain(config))


def recipe_of(spec: RunSpec, detector: BaseDetector) -> Recipe:
    """Returns the recipe of the score of a run's detector."""
    config = spec.plain
    if isinstance(detector, Ensemble):  # whose members have the method's score
        config = {**config, "method": {}}
    over_views = isinstance(detector.scorer, MeanOverViews)
    return Recipe.of(config, detector.score, detector.needs_backbone, over_views)
