"""Training of `Auto`: each candidate is cross-fitted, trained on all samples, and weighted."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elite_pl.algorithm import metrics
from elite_pl.algorithm.calibration import at_share, posterior, rarity, share_below
from elite_pl.config import check
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import InputError, LabelError
from elite_pl.methods.auto import ROOT, Auto, Candidate, Terms, kind_of
from elite_pl.runs.build import data_errors, given, make_detector
from elite_pl.runs.crossfit import CrossFit, cross_fit, drawn
from elite_pl.runs.ensembles import train_members, with_settings
from elite_pl.runs.spec import RunSpec

log = logging.getLogger(__name__)


class Able(NamedTuple):
    """A candidate that can learn from the data, as a run of its own."""

    name: str
    spec: RunSpec
    data: PollutedData
    terms: Terms


def train_candidates(auto: Auto, spec: RunSpec, data: PollutedData) -> CrossFit | None:
    """Trains all candidates that can learn from the data, and gives `auto` their mean.

    Args:
        auto: The method, which is not trained yet.
        spec: Its run.
        data: The data of the run.

    Returns:
        The cross-fitted shares of the weighted candidates; None where nothing was held out.

    Raises:
        InputError: If a candidate has a wrong key.
        LabelError: If none of them can learn from the labels.
        TrainingError: If a training goes wrong.
    """
    fewest = min(int((data.labeled_y == label).sum()) for label in (1, -1))
    folds = auto.folds[kind_of(data)] if fewest >= auto.fewest else 0
    candidates, held = [], []
    for name, own, under, terms in able(auto, spec, data):
        begun = time.monotonic()
        auroc = None
        if folds:
            held.append(cross_fit(own, under, folds))
            auroc = metrics.roc_auc_with_error(held[-1].labeled, data.labeled_y < 0)
        members, unlabeled = train_members(own, under, terms.seeds, under.preprocessing.feature_map)
        found = Candidate(name, terms, members, unlabeled, auroc, time.monotonic() - begun)
        log.info(said(found))
        candidates.append(found)
    log.info("weights: %s", auto.combine(candidates, kind_of(data), pollution(auto, held, data) if held else None))
    return together(auto, candidates, held) if held else None


def pollution(auto: Auto, held: list[CrossFit], data: PollutedData) -> float | None:
    """Estimates the share of anomalies among the unlabeled samples, by all candidates alike.

    Args:
        auto: The method.
        held: The cross-fitting of each candidate, on the same folds.
        data: The data of the run.

    Returns:
        The share; None where too few labels tell it.
    """

    def mean_rarity(part: str) -> Tensor:
        return torch.stack([rarity(getattr(found, part)) for found in held]).mean(0)

    labeled, unlabeled = mean_rarity("labeled"), mean_rarity("unlabeled")
    mean = replace(held[0], labeled=share_below(labeled, unlabeled), unlabeled=share_below(unlabeled, unlabeled))
    try:
        random = drawn(mean, data.labeled_y.cpu(), data.picked, auto.fewest)
    except LabelError:
        return None
    return random.hidden(posterior(random.labeled, random.label, random.pool).hidden.mean)


def together(auto: Auto, candidates: list[Candidate], held: list[CrossFit]) -> CrossFit:
    """Combines the cross-fitted shares of the candidates by their weights in the mean.

    A share becomes the score that the candidate's final detectors give such a sample, and the sum of these a share. The
    weights come from the same labels; at the temperatures of `Auto` that flatters them little.

    Args:
        auto: The method, which has their mean.
        candidates: The candidates, trained.
        held: The cross-fitting of each, on the same folds.
    """

    def mean(part: str) -> Tensor:
        each = [
            at_share(scores, getattr(found, part))
            for candidate, found in zip(candidates, held, strict=True)
            for scores in candidate.unlabeled
        ]
        return auto.score.mean(torch.stack(each, dim=1))

    labeled, unlabeled = mean("labeled"), mean("unlabeled")
    return CrossFit(
        share_below(labeled, unlabeled),
        share_below(unlabeled, unlabeled),
        held[0].folds,
        sum(found.seconds for found in held),
    )


def able(auto: Auto, spec: RunSpec, data: PollutedData) -> list[Able]:
    """The candidates that can learn from the data.

    Raises:
        InputError: If all are to have one feature map, or one has a wrong key.
        LabelError: If there is none.
    """
    if data.preprocessing.feature_map is not None:
        raise InputError(
            f"feature_map: method={auto.name} gives each candidate one of its own; expected feature_map=none"
        )
    kind = kind_of(data)
    for group in (kind, f"{kind}_unlabeled"):
        found = [*_able(group, auto.candidates.get(group, {}), spec, data)]
        if found:
            return found
    raise LabelError(f"{auto.name}: none of its candidates for {kind} can learn from these labels")


def _able(group: str, candidates: Mapping[str, Any], spec: RunSpec, data: PollutedData) -> Iterator[Able]:
    split = replace(data.split, test=data.split.test[:0])
    for name, candidate in candidates.items():
        settings = {key: value for key, value in candidate.items() if key in ROOT}
        with beneath(f"method.candidates.{group}.{name}", settings), data_errors(spec.config, data.arrays):
            own = with_settings(spec, settings)
            check(own.config)
            under = data.under(
                split,
                batch_size=own.config.batch_size,
                feature_map=given("feature_map", own.config.feature_map, nn.Module),
            )
            try:
                make_detector(own.config, under.sample_shape).check(under)
            except LabelError as error:
                log.info("left out: %s %s", name, str(error).removeprefix(f"{own.config.method.name} "))
                continue
        yield Able(name, own, under, Terms.of(candidate))


@contextmanager
def beneath(place: str, keys: Collection[str]) -> Iterator[None]:
    """Puts a place before the message of bad input about one of the root keys that stand there."""
    try:
        yield
    except InputError as error:
        if (named := re.match(r"\w+", str(error))) and named[0] in keys:
            raise InputError(f"{place}.{error}") from error
        raise


def said(found: Candidate) -> str:
    """Returns a line on a candidate, to print."""
    estimate = ""
    if found.auroc is not None:
        area, error = found.auroc
        low, high = max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error)
        estimate = f", ROC AUC {area:.3f} (95 % interval {low:.2f} to {high:.2f}) on held-out labels"
    return f"candidate {found.name}{estimate}, {found.seconds:.0f} s"
