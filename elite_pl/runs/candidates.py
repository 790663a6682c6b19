"""Training of `Auto`: each candidate is cross-fitted, trained on all samples, and weighted."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from elite_pl import seeding
from elite_pl.algorithm import metrics
from elite_pl.algorithm.calibration import at_share, posterior, share_below
from elite_pl.config import Config, plain
from elite_pl.data import splits
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import InputError, LabelError
from elite_pl.methods.auto import Auto, Candidate
from elite_pl.methods.base import BaseDetector
from elite_pl.models.mixture import Member
from elite_pl.models.recipe import Recipe
from elite_pl.models.scores import MeanOverViews
from elite_pl.runs.build import given, make_detector
from elite_pl.runs.crossfit import CrossFit, cross_fit, drawn, trained
from elite_pl.runs.spec import RunSpec

log = logging.getLogger(__name__)
OWN = ("prior", "scaled_by", "seeds", "pseudo_labels")  # keys of a candidate that are not of the root


class Able(NamedTuple):
    """A candidate that can learn from the data, as a run of its own."""

    name: str
    spec: RunSpec
    data: PollutedData
    prior: float
    scaled_by: Sequence[str]
    seeds: int
    pseudo_labels: float | None


def train_candidates(auto: Auto, spec: RunSpec, data: PollutedData) -> CrossFit | None:
    """Trains all candidates that can learn from the data, and gives `auto` their mean.

    Args:
        auto: The method, which is not trained yet.
        spec: Its run.
        data: The data of the run.

    Returns:
        The cross-fitted shares of the weighted candidates; None where nothing was held out.

    Raises:
        LabelError: If none of the candidates can learn from the labels.
        TrainingError: If a training goes wrong.
    """
    kind, fewest = kind_of(data), min(int((data.labeled_y == label).sum()) for label in (1, -1))
    folds = auto.folds[kind] if fewest >= auto.fewest else 0
    learners = able(auto, spec, data)
    candidates, held = [], []
    for one in learners:
        begun = time.monotonic()
        held += [cross_fit(one.spec, one.data, folds)] if folds else []
        candidates.append(train(one, one.data, data, held[-1] if held else None, begun))
    share = pollution(auto, held, data) if held else None
    auto.found |= {} if share is None else {"auto/pollution": share}

    def combine() -> CrossFit | None:
        auto.combine(candidates, weights)
        log.info(", ".join(f"{found.name} {weight:.0%}" for found, weight in zip(candidates, weights, strict=True)))
        return together(auto, candidates, held) if held else None

    weights = auto.weights(candidates, kind, auto.pollution if share is None else share)
    first = combine()
    if first is None or not (again := second_round(auto, data, learners, candidates, first)):
        return first
    for number, (found, its) in again.items():
        weights[number] /= 2
        weights.append(weights[number])
        candidates.append(found)
        held.append(its)
    return combine()


def train(one: Able, learned_from: PollutedData, data: PollutedData, held: CrossFit | None, begun: float) -> Candidate:
    """Trains a candidate on all samples.

    Args:
        one: The candidate.
        learned_from: What it learns from: its data, some of whose unlabeled samples may have got labels.
        data: The data of the run.
        held: Its cross-fitting; None where nothing was held out.
        begun: When its training began, in seconds of a steady clock.
    """
    scores, unlabeled = [], []
    for _, detector in trained(with_seeds(one.spec, learned_from, one.seeds)):
        recipe, feature_map = recipe_of(one.spec, detector), one.data.preprocessing.feature_map
        scores.append(Member(detector.scorer, recipe, one.data.sample_shape, feature_map))
        unlabeled.append(detector.score_samples(one.data.unlabeled).double())
    auroc = metrics.roc_auc_with_error(held.labeled, data.labeled_y < 0) if held else None
    seconds = time.monotonic() - begun
    found = Candidate(one.name, one.prior, one.scaled_by, scores, torch.stack(unlabeled), auroc, seconds)
    log.info(said(found))
    return found


def second_round(
    auto: Auto, data: PollutedData, learners: list[Able], candidates: list[Candidate], first: CrossFit
) -> dict[int, tuple[Candidate, CrossFit]]:
    """Trains some candidates once more, from what the mean of all is sure of, see `Auto`.

    What is held out from the first training of a candidate is so from its second one and from its pseudo-labels.

    Args:
        auto: The method, which has the mean.
        data: The data of the run.
        learners: The candidates.
        candidates: The same, trained.
        first: The cross-fitted shares of the mean.

    Returns:
        What they have learned and its cross-fitting, by their numbers; nothing where too few labels tell what is sure.
    """
    if not any(one.pseudo_labels for one in learners):
        return {}
    try:
        random = drawn(first, data.labeled_y.cpu(), data.picked, auto.fewest)
    except LabelError:
        return {}
    sure = posterior(random.labeled, random.label, random.pool)

    def pseudo_labels(mean: Tensor, probability: float) -> Tensor:
        found = sure.of_scores(mean).at(mean)
        return (found < 1 - probability).long() - (found > probability).long()

    mean, again = auto.score.mean(torch.cat([found.unlabeled for found in candidates]).T), {}
    for number, one in enumerate(learners):
        if one.pseudo_labels:
            begun = time.monotonic()
            labels = [pseudo_labels(seen, one.pseudo_labels) for seen in first.seen]
            held = cross_fit(one.spec, one.data, first.folds, pseudo_labels=labels)
            split = splits.with_labels(one.data.split, pseudo_labels(mean, one.pseudo_labels).numpy())
            under = one.data.under(split, fitted=one.data.preprocessing)
            again[number] = train(one._replace(name=f"{one.name}_again"), under, data, held, begun), held
    return again


def pollution(auto: Auto, held: list[CrossFit], data: PollutedData) -> float | None:
    """Estimates the share of anomalies among the unlabeled samples, by all candidates alike.

    Args:
        auto: The method.
        held: The cross-fitting of each candidate, on the same folds.
        data: The data of the run.

    Returns:
        The share; None where too few labels tell it.
    """

    def rarity(part: str) -> Tensor:
        return torch.stack([-torch.log1p(-getattr(found, part)) for found in held]).mean(0)

    labeled, unlabeled = rarity("labeled"), rarity("unlabeled")
    mean = replace(held[0], labeled=share_below(labeled, unlabeled), unlabeled=share_below(unlabeled, unlabeled))
    try:
        random = drawn(mean, data.labeled_y.cpu(), data.picked, auto.fewest)
    except LabelError:
        return None
    return random.hidden(posterior(random.labeled, random.label, random.pool).hidden.mean)


def with_seeds(spec: RunSpec, data: PollutedData, seeds: int) -> Iterator[tuple[RunSpec, PollutedData]]:
    """A run with as many seeds, the first one its own, and the data of each."""
    first = spec.config.seed
    for seed in (first, *(seeding.derive(first, "candidate", i) % 2**31 for i in range(1, seeds))):
        yield with_settings(spec, {"seed": seed}), data.under(data.split, seed=seed, fitted=data.preprocessing)


def together(auto: Auto, candidates: list[Candidate], held: list[CrossFit]) -> CrossFit:
    """Combines the cross-fitted shares of the candidates by their weights in the mean.

    A share becomes the score that the candidate's final detectors give such a sample, and the sum of these a share. The
    weights come from the same labels; at the temperatures of `Auto` that flatters them little.

    Args:
        auto: The method, which has their mean.
        candidates: The candidates, trained.
        held: The cross-fitting of each, on the same folds.
    """

    def mean(shares: Sequence[Tensor]) -> Tensor:
        each = [
            at_share(scores, share)
            for candidate, share in zip(candidates, shares, strict=True)
            for scores in candidate.unlabeled
        ]
        return auto.score.mean(torch.stack(each, dim=1))

    labeled, unlabeled = (mean([getattr(found, part) for found in held]) for part in ("labeled", "unlabeled"))
    seen = [mean(shares) for shares in zip(*(found.seen for found in held), strict=True)]
    return CrossFit(
        share_below(labeled, unlabeled),
        share_below(unlabeled, unlabeled),
        [share_below(scores, scores) for scores in seen],
        sum(found.seconds for found in held),
    )


def kind_of(data: PollutedData) -> str:
    """The kind of data by which candidates are listed."""
    return "features" if data.features else "vectors" if len(data.sample_shape) == 1 else "images"


def able(auto: Auto, spec: RunSpec, data: PollutedData) -> list[Able]:
    """The candidates that can learn from the data.

    Raises:
        InputError: If all methods are to have one feature map.
        LabelError: If there is none.
    """
    if data.preprocessing.feature_map is not None:
        raise InputError(
            f"feature_map: method={auto.name} gives each candidate one of its own; expected feature_map=none"
        )
    kind = kind_of(data)
    for group in (kind, f"{kind}_unlabeled"):
        found = [*_able(auto.candidates.get(group, {}), spec, data)]
        if found:
            return found
    raise LabelError(f"{auto.name}: none of its candidates for {kind} can learn from these labels")


def _able(candidates: Mapping[str, Any], spec: RunSpec, data: PollutedData) -> Iterator[Able]:
    split = replace(data.split, test=data.split.test[:0])
    for name, candidate in candidates.items():
        settings = {key: value for key, value in candidate.items() if key not in OWN}
        own = with_settings(spec, settings)
        under = data.under(
            split,
            batch_size=own.config.batch_size,
            feature_map=given("feature_map", own.config.feature_map, nn.Module),
        )
        try:
            make_detector(own.config, under.sample_shape).check(under)
        except LabelError as error:
            log.info("left out: %s", error)
            continue
        yield Able(
            name,
            own,
            under,
            float(candidate.get("prior", 1)),
            candidate.get("scaled_by", ()),
            candidate.get("seeds", 1),
            candidate.get("pseudo_labels"),
        )


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
    over_views = isinstance(detector.scorer, MeanOverViews)
    return Recipe.of(spec.plain, detector.score, detector.needs_backbone, over_views)


def said(found: Candidate) -> str:
    """Returns a line on a candidate, to print."""
    estimate = ", ROC AUC {:.3f} on held-out labels (standard error {:.3f})"
    auroc = "" if found.auroc is None else estimate.format(*found.auroc)
    return f"candidate {found.name}{auroc}, {found.seconds:.0f} s"
