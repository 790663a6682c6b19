"""Scores of samples by networks that were not trained on them, for any method."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import torch
from torch import Tensor

from elite_pl import seeding
from elite_pl.algorithm.calibration import share_below
from elite_pl.data import splits
from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import LabelError
from elite_pl.methods.base import BaseDetector, Detector
from elite_pl.runs.build import make_detector, make_trainer, pretrained_file
from elite_pl.runs.callbacks import History
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.stacked import fit_together, why_not
from elite_pl.runs.training import fit

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Shares of the training samples by networks that were not trained on them.

    Scores of different networks are not comparable. So a sample is represented by its share: the share of the
    unlabeled samples in the training set of the *same* network that score lower. The final detector turns a share into
    a score through its own scores of the unlabeled samples. The sample is new to its network, as future samples will be
    to the detector, so the share also accounts for how far a network fits its training samples.

    Attributes:
        labeled: Shares of the labeled samples, in (0, 1), float64 of shape (M,); NaN for the only one of its kind,
            which every network needs.
        unlabeled: Shares of the unlabeled samples, shape (N,); empty where all networks were trained on them.
        folds: How many networks were trained.
        seconds: The time of all trainings.
    """

    labeled: Tensor
    unlabeled: Tensor
    folds: int
    seconds: float


class Drawn(NamedTuple):
    """Cross-fitted shares as they tell how frequent anomalies are, by labels of samples that nobody picked.

    Picked ones count among the unlabeled samples, as they did before somebody found them suspicious.

    Attributes:
        labeled: Shares of the labeled samples that were not picked, shape (m,).
        label: Their labels, +1 or -1, shape (m,).
        pool: Shares of the unlabeled samples and the picked ones, shape (n,).
        found: How many of the picked ones are anomalies.
        picked: How many were picked.
    """

    labeled: Tensor
    label: Tensor
    pool: Tensor
    found: int
    picked: int

    def hidden(self, share: float) -> float:
        """The share of anomalies among the unlabeled samples, by that of the pool."""
        if not self.picked:
            return share
        return min(max((share * len(self.pool) - self.found) / (len(self.pool) - self.picked), 0.0), 1.0)


def drawn(found: CrossFit, label: Tensor, picked: Tensor, fewest: int) -> Drawn:
    """Parts cross-fitted samples by whether somebody picked them.

    Args:
        found: The samples.
        label: Labels of the labeled ones, shape (M,).
        picked: Which of these were picked, bool, shape (M,).
        fewest: How many labels of a kind there must be that were not.

    Raises:
        LabelError: If there are fewer, and some were picked.
    """
    rest = label[~picked]
    counts = [int((rest == kind).sum()) for kind in (1, -1)]
    if picked.any() and min(counts) < fewest:
        few = "{} normal and {} anomalous labels".format(*counts)
        raise LabelError(f"{few} of samples that were not picked; an estimate takes {fewest} of each")
    pool = torch.cat([found.unlabeled, found.labeled[picked]])
    return Drawn(found.labeled[~picked], rest, pool, int((label[picked] < 0).sum()), int(picked.sum()))


def cross_fit(spec: RunSpec, data: PollutedData, folds: int, unlabeled: bool = True, cached: bool = False) -> CrossFit:
    """Trains a network for each of several parts of the training samples, without that part, and scores the part.

    Each training is as that of the run, in this process, on all labeled and unlabeled samples but the part; only the
    preprocessing, which knows no labels, is that of the run. Nothing is logged and no checkpoint stays. An interrupted
    call leaves nothing to go on from: it is simply made again. The caller's random numbers stay as they are.

    Args:
        spec: The run, with the method to be tried; the rest of its configuration is that of `data`.
        data: The data of the run, which stay where they are.
        folds: How many parts; fewer where a kind has fewer labeled samples, of which each part gets its share.
        unlabeled: Whether the unlabeled samples are divided, too.
        cached: Whether pre-trained weights are kept in the output directory, for other methods on the same parts.

    Raises:
        LabelError: If the method cannot learn from the labels that a part leaves.
        TrainingError: If a training goes wrong.
    """
    start = time.monotonic()
    count = len(data.unlabeled)
    folds = splits.folds_of(data.split.labeled_y, folds)
    order = torch.randperm(count, generator=seeding.generator(data.seed, "folds")).numpy() if unlabeled else None
    shares = torch.full((len(data.arrays.x_train),), torch.nan, dtype=torch.float64)
    parts = [splits.hold_out(data.split, fold, folds, order) for fold in range(folds)]
    runs = ((spec, data.under(rest, fitted=data.preprocessing)) for rest, _ in parts)
    for (_, held), (own, detector) in zip(parts, trained(runs, cached), strict=True):
        seen = detector.score_samples(own.unlabeled)
        for index in (held.labeled, held.unlabeled):
            shares[torch.as_tensor(index)] = share_below(detector.score_samples(own.of_training_part(index)), seen)
    found = shares[torch.as_tensor(data.split.unlabeled)] if unlabeled else shares[:0]
    return CrossFit(shares[torch.as_tensor(data.split.labeled)], found, folds, time.monotonic() - start)


def trained(
    runs: Iterable[tuple[RunSpec, PollutedData]], cached: bool = False
) -> Iterator[tuple[PollutedData, BaseDetector]]:
    """Trains the detectors of runs on data that are not theirs; together where they can be.

    The caller's random numbers stay as they are.

    Args:
        runs: Runs of one configuration but for the seed, with the data of each.
        cached: See `cross_fit`.

    Yields:
        The data and the trained detector of each run, both on the CPU.

    Raises:
        LabelError: If the method cannot learn from the labels of a run.
        TrainingError: If a training goes wrong.
    """
    waiting: list[tuple[RunSpec, PollutedData, Detector]] = []
    for spec, data in runs:
        with TemporaryDirectory() as place, torch.random.fork_rng(range(torch.cuda.device_count())):
            history = History(Path(place) / "history.csv")
            trainer = make_trainer(replace(spec, directory=Path(place)), history)
            with trainer.precision_plugin.tensor_init_context():
                pretrained = pretrained_file(spec.config, data) if cached else None
                detector = make_detector(spec.config, data.sample_shape, pretrained)
                detector.check(data)
                if not (why := why_not(spec, detector)):
                    waiting.append((spec, data, cast(Detector, detector)))
                    continue
                log.debug("%s is trained by itself: %s", detector.name, why)
                fit(detector, data, trainer, history)
        data.place(torch.device("cpu"))
        yield data, detector.to("cpu")
    for counts in dict.fromkeys(data.counts for _, data, _ in waiting):
        specs, each, detectors = zip(*(one for one in waiting if one[1].counts == counts), strict=True)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            fit_together(specs[0], detectors, each)
    for _, data, fitted in waiting:
        data.place(torch.device("cpu"))
        yield data, fitted.to("cpu")
