"""Several runs made by one training."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytorch_lightning as pl

from elite_pl.data.datamodule import PollutedData
from elite_pl.errors import AloneError, InputError, TrainingError
from elite_pl.methods.base import Detector
from elite_pl.runs.build import make_trainer, read_source, use_threads
from elite_pl.runs.callbacks import History
from elite_pl.runs.results import write_metrics
from elite_pl.runs.run import made, run_directory, write_results
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.stacked import fit_together, why_not
from elite_pl.runs.training import note


@dataclass(frozen=True, eq=False)
class Member:
    """One of several runs whose detectors are trained as one, before that training."""

    spec: RunSpec
    data: PollutedData
    detector: Detector
    trainer: pl.Trainer
    history: History


def run_together(specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, dict[str, Any] | Exception]]:
    """Makes runs by one training, and fills the directory of each as `run` does, but for its curves and checkpoints.

    Args:
        specs: The runs; they differ in their seed and in the split of their data.

    Yields:
        Each run with what its `metrics.json` holds, or with what `run` would raise; `AloneError` where a training in
        common goes wrong or no other run has as many samples.

    Raises:
        AloneError: If such runs cannot be trained together.
    """
    use_threads(specs[0].config)
    arrays = read_source(specs[0].config)
    members: list[Member] = []
    for spec in specs:
        history = History(spec.directory / "history.csv")
        trainer = make_trainer(spec, history)
        try:
            with trainer.precision_plugin.tensor_init_context():
                data, detector = made(spec, arrays)
        except InputError as error:
            yield spec, error
            continue
        if why := why_not(spec, detector):
            raise AloneError(why)
        members.append(Member(spec, data, cast(Detector, detector), trainer, history))
    for counts in dict.fromkeys(member.data.counts for member in members):
        yield from run_members([member for member in members if member.data.counts == counts])


def run_members(members: Sequence[Member]) -> Iterator[tuple[RunSpec, dict[str, Any] | Exception]]:
    """Makes runs whose data have the same `counts`; see `run_together`."""
    if len(members) == 1:
        yield members[0].spec, AloneError("no other run has as many samples of each kind")
        return
    start = time.monotonic()
    try:
        epochs, steps = fit_together(members[0].spec, [one.detector for one in members], [one.data for one in members])
    except (InputError, TrainingError) as error:
        yield from ((one.spec, AloneError(f"together, {error}")) for one in members)
        return
    seconds = (time.monotonic() - start) / len(members)
    for one in members:
        spec, detector, data, trainer = one.spec, one.detector, one.data, one.trainer
        try:
            with trainer.precision_plugin.tensor_init_context(), run_directory(spec, detector, data, trainer) as facts:
                note(detector, data, trainer, one.history, seconds, epochs, steps)
                facts |= {"train/seconds": seconds, "train/stacked": len(members)}
                results = write_results(spec, detector, data, trainer.logger, facts, None)
                write_metrics(spec.directory, spec.hash, results)
        except Exception as error:  # of this run alone
            yield spec, error
        else:
            yield spec, results
