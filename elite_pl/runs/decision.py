"""Interprets a trained detector's scores: its threshold, probabilities, and the estimated share of hidden anomalies."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elite_pl.algorithm import metrics
from elite_pl.algorithm.calibration import Calibration, Interval, at_share, contradiction, posterior
from elite_pl.algorithm.threshold import choose_threshold
from elite_pl.config import Threshold, threshold
from elite_pl.data.datamodule import PollutedData
from elite_pl.data.splits import folds_of
from elite_pl.errors import LabelError, TrainingError
from elite_pl.methods.auto import Auto
from elite_pl.methods.base import BaseDetector
from elite_pl.runs.crossfit import CrossFit, cross_fit, drawn
from elite_pl.runs.ensembles import alone
from elite_pl.runs.identity import cross_fits
from elite_pl.runs.spec import RunSpec

log = logging.getLogger(__name__)
FOLDS = {"images": 3, "vectors": 5}
FEW = 5  # names in one line


class Doubts(NamedTuple):
    """The evidence of the other labels against each label, from detectors that were not trained on it.

    Attributes:
        share: Of the unlabeled samples that score lower, see `CrossFit.labeled`, shape (M,).
        contradiction: See `calibration.contradiction`, shape (M,).
    """

    share: Tensor
    contradiction: Tensor


@dataclass(frozen=True, eq=False)
class Decision:
    """The interpretation of a detector's scores: threshold, calibration and expected alarms.

    Attributes:
        threshold: The score above which a sample is called an anomaly.
        calibration: From scores to probabilities of an anomaly; None where nothing was cross-fitted.
        alarms: The share of samples like the unlabeled ones that are expected above the threshold; None as above.
        facts: Its entries of `metrics.json`.
        doubts: Of the labels, whether or not the threshold is chosen by what was cross-fitted; None where nothing was.
    """

    threshold: float
    calibration: Calibration | None = None
    alarms: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    doubts: Doubts | None = None


def decide(
    spec: RunSpec,
    detector: BaseDetector,
    data: PollutedData,
    labeled: Tensor,
    unlabeled: Tensor,
    held: CrossFit | None = None,
) -> Decision:
    """Chooses the threshold, and doubts labels, by networks that have not seen the samples.

    Cross-fitted samples count by their shares, see `CrossFit`; the detector's own scores of the unlabeled samples turn
    them into scores of its own. Where the configuration wants nothing cross-fitted, the threshold parts the labels.

    Args:
        spec: The run.
        detector: The detector, which is trained.
        data: Its training data.
        labeled: Its scores of the labeled samples, shape (M,).
        unlabeled: Its scores of the unlabeled samples, shape (N,).
        held: The result of a method that cross-fits itself; None for other methods, or if it could not.
    """
    settings, label = threshold(spec.plain["threshold"]), data.labeled_y.cpu()
    if not cross_fits(spec.plain):
        decision = fitted(labeled, label, unlabeled)
        if settings.rule != "cost":
            log.info("threshold.rule=%s is not used: it takes threshold.scores=cross_fitted", settings.rule)
    else:
        try:
            held = held or _cross_fit(spec, detector, data, settings)
            decision = cross_fitted(settings, held, label, unlabeled, data.picked)
        except (LabelError, TrainingError) as error:
            decision = assumed(settings, labeled, label, unlabeled, str(error))
    if held is None:
        return decision
    doubts = Doubts(held.labeled, contradiction(held.labeled, label))
    return replace(decision, facts=decision.facts | doubted(doubts, data), doubts=doubts)


def cross_fitted(settings: Threshold, found: CrossFit, label: Tensor, unlabeled: Tensor, picked: Tensor) -> Decision:
    """The threshold by the rule of the settings.

    Args:
        settings: The keys of `threshold`.
        found: What was cross-fitted.
        label: +1 or -1 for each labeled sample, shape (M,).
        unlabeled: The detector's own scores of the unlabeled samples, shape (N,).
        picked: Which labeled samples were picked, see `drawn`, shape (M,).

    Raises:
        LabelError: If too few labels are left of samples that were not.
    """
    random = drawn(found, label, picked, settings.fewest)
    curves = posterior(random.labeled, random.label, random.pool)
    share = {
        "cost": lambda: curves.by_cost(settings.cost_missed, settings.cost_false_alarm),
        "false_alarm_rate": lambda: curves.by_false_alarm_rate(settings.false_alarm_rate),
        "contamination": lambda: curves.by_contamination(settings.contamination),
    }[settings.rule]()
    alarms = _proportion(int((random.pool > share).sum()), len(random.pool))
    hidden = Interval(*map(random.hidden, curves.hidden))
    chosen = float(at_share(unlabeled, torch.tensor([share], dtype=torch.float64)))
    auroc, auroc_error = metrics.roc_auc_with_error(found.labeled, label < 0)
    for line in said(settings, chosen, alarms, curves.precision(share), hidden, len(random.labeled)):
        log.info(line)
    facts = {
        "threshold": chosen,
        "threshold/scores": "cross_fitted",
        "threshold/rule": settings.rule,
        **_named("threshold/alarms", alarms),
        **_named("threshold/precision", curves.precision(share)),
        **_named("audit/hidden_share", hidden),
        "labeled/auroc_cross_fitted": auroc,
        "labeled/auroc_cross_fitted_error": auroc_error,
        "crossfit/folds": found.folds,
        "crossfit/seconds": found.seconds,
    }
    return Decision(chosen, curves.of_scores(unlabeled), alarms.mean, facts)


def fitted(labeled: Tensor, label: Tensor, unlabeled: Tensor) -> Decision:
    """The best cut between the labels that the detector was trained on; arguments as in `choose_threshold`."""
    chosen = choose_threshold(labeled, label, unlabeled)
    return Decision(chosen, facts={"threshold": chosen, "threshold/scores": "fitted"})


def assumed(settings: Threshold, labeled: Tensor, label: Tensor, unlabeled: Tensor, reason: str) -> Decision:
    """The threshold where nothing was cross-fitted, and a line on what it assumes.

    Args:
        settings: The keys of `threshold`.
        labeled: As in `choose_threshold`, and so are `label` and `unlabeled`.
        label: See there.
        unlabeled: See there.
        reason: Why nothing was.
    """
    decision = fitted(labeled, label, unlabeled)
    unused = "" if settings.rule == "cost" else f"; threshold.rule={settings.rule} is not used"
    if settings.rule == "contamination" and settings.contamination is not None:
        chosen = float(at_share(unlabeled, torch.tensor([1 - settings.contamination])))
        decision = Decision(chosen, facts={**decision.facts, "threshold": chosen})
        share = f"{100 * settings.contamination:.3g} %"
        rule = f"{share} of the unlabeled samples are above it, as threshold.contamination says"
        unused = ""
    elif len(label.unique()) == 2:
        rule = "the best cut between labels that were trained on, so expect more alarms than there are anomalies"
    else:
        rule = "5 % of the unlabeled samples are above it; "
        rule += "threshold.rule=contamination threshold.contamination=SHARE sets another share"
    log.info("threshold %.4g: %s%s (%s)", decision.threshold, rule, unused, reason)
    return decision


def doubted(doubts: Doubts, data: PollutedData) -> dict[str, int]:
    """Says which labels lie among those of the other kind where they were held out: a person should look again.

    Args:
        doubts: Of the labels.
        data: The training data.

    Returns:
        The entries of `metrics.json`; where it is known also how many labels are wrong, and how many of these are
        doubted.
    """
    label = data.labeled_y.cpu()
    doubted = doubts.contradiction > 0.5
    facts = {"labeled/doubted": int(doubted.sum())}
    wrong = data.anomalous("labeled") != (label < 0)
    if data.arrays.labels == "classes" or wrong.any():  # of known labels those that `label_noise` made wrong
        facts |= {"labeled/wrong": int(wrong.sum()), "labeled/doubted_wrong": int((wrong & doubted).sum())}
    if doubted.any():
        index = data.split.labeled[doubted.numpy()]
        names = index if data.arrays.ids_train is None else data.arrays.ids_train[index]
        few = ", ".join(map(str, names[:FEW])) + (", …" if len(names) > FEW else "")
        log.info("check %d of %d labels, which rank among those of the other kind: %s", len(names), len(label), few)
    return facts


def said(
    settings: Threshold, threshold: float, alarms: Interval, precision: Interval, hidden: Interval, labels: int
) -> list[str]:
    """Describes a decision, in lines to print."""
    return [
        f"hidden anomalies: about {_percent(hidden)} of the unlabeled samples, estimated from {labels} held-out labels",
        f"threshold {threshold:.4g} ({settings.rule}): flags about {_percent(alarms)} of samples like the unlabeled "
        f"ones; of these about {_percent(precision)} are anomalies",
    ]


def _cross_fit(spec: RunSpec, detector: BaseDetector, data: PollutedData, settings: Threshold) -> CrossFit:
    """Cross-fits the method of a run.

    Raises:
        LabelError: If there are too few samples.
        TrainingError: If a training goes wrong.
    """
    if isinstance(detector, Auto):
        raise LabelError(f"{detector.name} has held nothing out")
    folds = settings.folds or FOLDS["vectors" if len(data.sample_shape) == 1 else "images"]
    counts = [int((data.labeled_y == label).sum()) for label in (1, -1)]
    if min(counts) < settings.fewest:
        few = "{} normal and {} anomalous labels".format(*counts)
        raise LabelError(f"{few}; holding some out takes at least {settings.fewest} of each")
    if len(data.unlabeled) < 2 * folds:
        raise LabelError(f"only {len(data.unlabeled)} unlabeled samples")
    parts = folds_of(data.split.labeled_y, folds)
    log.info("cross-fitting: %d trainings, each without a part of the samples", parts)
    spec = alone(spec)
    if isinstance(spec.plain["trainer"].get("strategy"), dict):  # several processes, of which the others are gone
        one = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        spec = replace(spec, plain={**spec.plain, "trainer": {**spec.plain["trainer"], **one}})
    return cross_fit(spec, data, folds)


def _percent(value: Interval) -> str:
    mean, low, high = (f"{100 * part:.2g}" if part < 0.1 else f"{100 * part:.0f}" for part in value)
    return f"{mean} % (95 % interval {low} to {high} %)"


def _named(key: str, value: Interval) -> dict[str, float]:
    return {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high}


def _proportion(count: int, n: int, z: float = 1.96) -> Interval:
    """A proportion with its 95 % interval, that of Wilson (1927), which stays in [0, 1]."""
    share = count / n
    center, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n))
