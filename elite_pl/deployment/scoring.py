"""Scores of any number of samples, in the memory that some of them need."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch

from elite_pl.data.sources.images import explained
from elite_pl.deployment.inputs import open_input
from elite_pl.deployment.outputs import output
from elite_pl.errors import InputError, input_errors
from elite_pl.progress import Progress
from elite_pl.runs.trained import TrainedDetector, load

log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """Counts of what has been scored.

    Attributes:
        samples: How many were.
        anomalies: How many of them are anomalies by the threshold.
        left_out: How many could not be read.
    """

    samples: int
    anomalies: int
    left_out: int


class Judge:
    """Turns scores into verdicts and p-values.

    Args:
        threshold: A score above it is that of an anomaly.
        training_scores: Of the training samples, (n,); None where they are unknown.
    """

    def __init__(self, threshold: float, training_scores: np.ndarray | None) -> None:
        self.threshold = threshold
        known = training_scores
        self.normal = None if known is None else np.sort(known[known <= threshold])

    def verdicts(self, score: np.ndarray) -> np.ndarray:
        """Maps scores (n,) to `"normal"` and `"anomaly"`."""
        return np.where(score > self.threshold, "anomaly", "normal")

    def p_values(self, score: np.ndarray) -> np.ndarray | None:
        """Maps scores (n,) to p-values, `(k + 1) / (m + 1)`: k of m training samples below the threshold are not lower.

        None where the scores of the training are unknown.
        """
        if self.normal is None:
            return None
        lower = np.searchsorted(self.normal, score, side="left")
        return (len(self.normal) - lower + 1) / (len(self.normal) + 1)


def score_file(
    detector: TrainedDetector,
    path: str,
    to: str | None,
    *,
    threshold: float | None = None,
    shard: tuple[int, int] = (1, 1),
    batch_size: int | None = None,
    skip_broken: bool = False,
) -> Counts:
    """Scores a folder of images, a table or an array into a table: path, id or index, score, p_value and verdict.

    A detector that was calibrated also gives the probability of an anomaly, after the score.

    Args:
        detector: The detector.
        path: A folder of images or an image, a CSV or Parquet file, a .npy or .npz file.
        to: A CSV or Parquet file; None for standard output.
        threshold: Replaces the detector's.
        shard: (i, n): the i-th, from 1, of n pieces of about the same length.
        batch_size: See `TrainedDetector.score`.
        skip_broken: Whether to go on without images that cannot be read.

    Raises:
        InputError: If the input is not like the samples of training.
    """
    judge = Judge(detector.threshold if threshold is None else threshold, detector.training_scores)
    samples = anomalies = 0
    with input_errors(path):
        source = open_input(path, detector, shard, skip_broken)
    for note in source.notes:
        log.warning(note)
    progress = Progress("scored", source.total)
    columns = {
        source.column: int if source.column == "index" else str,
        "score": float,
        **({} if detector.calibration is None else {"probability": float}),
        "p_value": float,
        "verdict": str,
    }
    with output(to, columns) as write, input_errors(path):
        for part in source.parts:
            score = detector.score_checked(part.values, batch_size)
            verdict = judge.verdicts(score)
            rows = {source.column: part.names, "score": score, "p_value": judge.p_values(score), "verdict": verdict}
            if detector.calibration is not None:
                rows["probability"] = detector.calibration.at(torch.as_tensor(score)).numpy()
            write({name: rows[name] for name in columns})
            samples += len(score)
            anomalies += int((verdict == "anomaly").sum())
            progress.step(len(score))
    progress.end()
    if source.left_out:
        log.warning("left out %s", explained(source.left_out))
    return Counts(samples, anomalies, len(source.left_out))


def load_for(path: str, weights: str | None) -> TrainedDetector:
    """The detector in a file, see `elite_pl.load`.

    Raises:
        InputError: Also if there are weights that it has no use for.
    """
    detector = load(path, weights=weights)
    if weights is not None and detector.features is None:
        raise InputError(f"--weights {weights}: the detector takes samples themselves, not features of a network")
    return detector


def device_of(name: str) -> torch.device:
    """The device that a person calls `"cpu"`, `"cuda"` or `"auto"`, a GPU where there is one.

    Raises:
        InputError: If there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("--device cuda: there is no GPU that PyTorch can use; expected auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")
