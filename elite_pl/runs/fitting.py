"""Training from Python, on arrays in memory: no command, nothing logged, nothing left on disk."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import ArrayLike

from elite_pl import cli
from elite_pl.annotations import is_of
from elite_pl.config import compose
from elite_pl.data.arrays import Arrays, column_names, make_arrays, to_array, to_labels, to_samples
from elite_pl.errors import InputError, LabelError
from elite_pl.runs.build import SPLIT, make_data, make_detector, make_trainer, use_threads
from elite_pl.runs.callbacks import History
from elite_pl.runs.launch import takes_processes
from elite_pl.runs.run import learn, trained_detector
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.trained import TrainedDetector

RECOMMENDED = "auto"  # for data of one's own

# Keys that the arguments of `fit` set, and keys and groups of the command alone.
NOT_HERE = {"method", "seed", *SPLIT, "experiment", "output_dir", "reuse", "study"}
GROUPS_NOT_HERE = {"dataset", "hydra", "logger"}
OF_SAMPLES = {"dataset.size", "dataset.scaling", "dataset.release_scaling"}


def fit(
    x: ArrayLike,
    y: ArrayLike,
    method: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> TrainedDetector:
    """Trains a detector on your own, possibly dirty data, of which some samples are labeled.

    >>> import numpy as np, elite_pl
    >>> rng = np.random.default_rng(0)
    >>> x = np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(5, 1, (60, 2))])  # a quarter are anomalies
    >>> y = np.zeros(240, dtype=int)
    >>> y[:10], y[180:190] = 1, -1  # and 20 are labeled
    >>> detector = elite_pl.fit(x, y)
    >>> detector.predict([[0.0, 0.0], [5.0, 5.0]])
    array([ 1, -1])
    >>> detector.score(x).shape, np.allclose(detector.score(x), detector.training_scores)
    ((240,), True)

    Args:
        x: Samples: vectors (n, features) of numbers without gaps, or images (n, H, W), (n, H, W, C) or (n, C, H, W)
            with C 1 or 3, integers in 0..255 or floats in [0, 1]. An array, a tensor, lists or a data frame.
        y: The label of each, shape (n,): 1 normal, -1 an anomaly, 0 unlabeled.
        method: The name of a method, such as `"deep_sad"`; None for the recommended one, `auto`.
        seed: Of the initial network and the order of batches.
        overrides: Other settings, as the command takes them: `["epochs=50", "backbone.hidden=[64]"]`.

    Returns:
        The detector, on the CPU. The same call on the same machine gives the same one.

    Raises:
        ValueError: If x or y are not like that, the method cannot learn from them, or there are no such settings.
        TrainingError: If training goes wrong.
    """
    if not is_of(method, str | None) or method == "":
        raise ValueError(f"method={method!r}: must be the name of a method, or None")
    typed = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(typed, Sequence) or not all(isinstance(override, str) for override in typed):
        raise ValueError(f"overrides={overrides!r}: must be a list of settings, such as ['epochs=50']")
    arrays = _arrays(x, y)
    for override in typed:
        key = re.split("[=@]", override.lstrip("+~"))[0]
        if key not in OF_SAMPLES and (key in NOT_HERE or key.split(".")[0] in GROUPS_NOT_HERE):
            raise ValueError(f"overrides: {key} has no place here; x, y, method and seed say it, and nothing is kept")
    data = ["dataset=npz", "dataset.path=null", "dataset.labels=known", "logger=none"]
    try:
        spec = RunSpec.of(compose([*data, f"method={method or RECOMMENDED}", f"seed={seed}", *typed]))
        with TemporaryDirectory() as folder, _unnoticed():
            return _fitted(replace(spec, directory=Path(folder)), arrays)
    except cli.BAD_INPUT as error:
        raise InputError(cli.one_line(error)) from None


def _arrays(x: ArrayLike, y: ArrayLike) -> Arrays:
    """Checks the samples and labels of a call.

    Raises:
        ValueError: In words of x and y.
    """
    samples, labels = to_array("x", x), to_array("y", y)
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("y holds NaN; expected 0 for samples that are not labeled")
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"y is of type {labels.dtype}; expected 1 (normal), -1 (anomaly) and 0 (unlabeled)")
    labels = to_labels("y", labels)
    if samples.ndim == 0 or len(samples) != len(labels):
        raise ValueError(f"x has shape {samples.shape} and y {labels.shape}; expected a label for each sample")
    if 0 in samples.shape:
        raise ValueError(f"x has shape {samples.shape}, which is empty")
    if strange := sorted(set(labels.tolist()) - {1, -1, 0}):
        raise ValueError(f"y holds {strange[0]}; expected 1 (normal), -1 (anomaly) and 0 (unlabeled)")
    if set(labels.tolist()) == {1, 0}:
        warnings.warn("y has no -1: 1 is normal, -1 an anomaly and 0 unlabeled", stacklevel=3)
    if (unlabeled := int((labels == 0).sum())) < 2:
        raise ValueError(f"y has {unlabeled} unlabeled samples (0); training needs at least 2 beside the labeled ones")
    raw_shape, samples = samples.shape[1:], to_samples("x", samples)
    arrays = make_arrays("x", samples, labels, samples[:0], labels[:0], labels="known", raw_shape=raw_shape)
    return replace(arrays, columns=column_names(x))


def _fitted(spec: RunSpec, arrays: Arrays) -> TrainedDetector:
    """Trains as `runs.run.run` does, without writing any files."""
    if takes_processes(spec):
        raise InputError("trainer=ddp: elite_pl.fit trains in this process; several take the command")
    config = spec.config
    use_threads(config)
    history = History(spec.directory / "history.csv")
    trainer = make_trainer(spec, history)
    with trainer.precision_plugin.tensor_init_context():
        data = make_data(config, arrays=arrays)
        detector = make_detector(config, data.sample_shape)
        try:
            detector.check(data)
            held = learn(spec, detector, data, trainer, history)
        except LabelError as error:
            raise InputError(f"y: {error}; 1 is a normal sample, -1 an anomaly") from error
        return trained_detector(spec, detector, data, held)[0]


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Keeps the caller's random numbers, threads, warnings and Ctrl-C handler as they are during the block."""
    threads, devices = torch.get_num_threads(), range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            cli.silence_advice()
            yield
    except SystemExit as error:  # what Lightning makes of an interrupt
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        torch.set_num_threads(threads)
