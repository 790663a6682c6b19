"""One run, from the raw data to its directory of results, top to bottom."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from elite_pl.algorithm import metrics
from elite_pl.data.arrays import Arrays
from elite_pl.data.datamodule import PollutedData
from elite_pl.data.encoding import Encoding
from elite_pl.data.rows import Rows
from elite_pl.data.sample_format import SampleFormat
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, discard
from elite_pl.methods.auto import Auto
from elite_pl.methods.base import BaseDetector, Detector, collapsed
from elite_pl.methods.ensemble import Ensemble
from elite_pl.methods.shallow import ShallowDetector
from elite_pl.runs import loggers, plots
from elite_pl.runs.audit import against_truth, audit
from elite_pl.runs.build import (
    check_data,
    label_errors,
    make_data,
    make_detector,
    make_trainer,
    pretrained_file,
    use_threads,
)
from elite_pl.runs.callbacks import History
from elite_pl.runs.candidates import train_candidates
from elite_pl.runs.checkpoints import checkpoint
from elite_pl.runs.crossfit import CrossFit
from elite_pl.runs.decision import Decision, decide
from elite_pl.runs.ensembles import recipe_of, several_of, train_ensemble
from elite_pl.runs.environment import environment
from elite_pl.runs.results import (
    AUROC,
    AUROC_SEEN,
    AUROC_UNSEEN,
    AVERAGE_PRECISION,
    write_audit,
    write_labels,
    write_meta_gradient,
    write_metrics,
    write_scores,
)
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.trained import TrainedDetector
from elite_pl.runs.training import fit, note

log = logging.getLogger(__name__)
ENOUGH = 10_000  # samples that tell the units of all


def run(spec: RunSpec) -> dict[str, Any] | None:
    """Trains and evaluates one detector, and fills its run directory.

    An interrupted run resumes from its `last.ckpt`. If several processes train one run, each of them executes this
    function, and the first one writes the files.

    Args:
        spec: The run.

    Returns:
        The content of `metrics.json`; None in other processes than the first.

    Raises:
        InputError: If the data and the configuration do not go together; no directory is left behind then.
        TrainingError: If training goes wrong.
    """
    config = spec.config
    use_threads(config)
    history = History(spec.directory / "history.csv")
    trainer = make_trainer(spec, history)
    with trainer.precision_plugin.tensor_init_context():
        data, detector = made(spec)
        if not isinstance(detector, Detector) and trainer.world_size > 1:
            why = f"method={detector.name} has no gradient"
            if isinstance(detector, Auto | Ensemble):
                why = f"{several_of(detector)} is trained in one process"
            raise InputError(f"trainer.devices={config.trainer.devices}: {why}; use 1")
        going_on = checkpoint(spec.directory / "last.ckpt", detector, data, trainer)
        if not trainer.is_global_zero:
            logging.getLogger("elite_pl").setLevel(logging.ERROR)  # the first process says it
            fit(detector, data, trainer, history, going_on)
            return None
        with run_directory(spec, detector, data, trainer) as facts:
            with label_errors(config, data.arrays):
                held = learn(spec, detector, data, trainer, history, going_on)
            facts["train/seconds"] = history.seconds
            results = write_results(spec, detector, data, trainer.logger, facts, held)
            write_metrics(spec.directory, spec.hash, results)
            return results


def made(spec: RunSpec, arrays: Arrays | None = None) -> tuple[PollutedData, BaseDetector]:
    """The data and the fresh detector of a run, which go together.

    Args:
        spec: The run.
        arrays: The data of its source, if it has been read.

    Raises:
        InputError: If they do not.
    """
    config = spec.config
    data = make_data(config, arrays, keep_features=True)
    detector = make_detector(config, data.sample_shape, pretrained_file(config, data))
    check_data(config, detector, data)
    return data, detector


@contextmanager
def run_directory(
    spec: RunSpec, detector: BaseDetector, data: PollutedData, trainer: pl.Trainer
) -> Iterator[dict[str, Any]]:
    """Gives a run its directory and its logger during the block; removes the directory if the input proves bad.

    Args:
        spec: The run.
        detector: The detector, which is not trained yet.
        data: Its training data.
        trainer: Gets the logger.

    Yields:
        The facts of the run so far, for `metrics.json`.
    """
    directory = spec.directory
    device = torch.device("cpu") if isinstance(detector, ShallowDetector) else trainer.strategy.root_device
    facts = describe(spec, data, detector, device)
    facts |= {"processes": trainer.world_size, "threads": torch.get_num_threads()}
    fresh = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    exit_code = 1
    try:
        with atomic_write(directory / "config.yaml") as temporary:
            OmegaConf.save(spec.plain, temporary)
        data.split.save(directory / "splits.npz", ids_train=data.arrays.ids_train, ids_test=data.arrays.ids_test)
        trainer.logger = loggers.make_logger(spec)
        for line in overview(data, facts):
            log.info(line)
        yield facts
        exit_code = 0
    except InputError:
        if fresh:
            discard(directory)
        raise
    finally:
        if (wandb_run := loggers.wandb_run(trainer.logger)) is not None:
            loggers.close(wandb_run, exit_code)


def learn(
    spec: RunSpec,
    detector: BaseDetector,
    data: PollutedData,
    trainer: pl.Trainer,
    history: History,
    going_on: Path | None = None,
) -> CrossFit | None:
    """Trains a detector, or all that it is made of; the rest as in `fit` and `train_candidates`."""
    start, found = time.monotonic(), None
    if isinstance(detector, Auto):
        found = train_candidates(detector, spec, data)
    elif isinstance(detector, Ensemble):
        train_ensemble(detector, spec, data)
    else:
        fit(detector, data, trainer, history, going_on)
        return None
    note(detector, data, trainer, history, time.monotonic() - start)
    return found


def describe(spec: RunSpec, data: PollutedData, detector: BaseDetector, device: torch.device) -> dict[str, Any]:
    """Returns the facts known before training: coordinates, counts and environment, for `metrics.json`."""
    config, hidden = spec.config, data.anomalous("unlabeled")
    known = data.arrays.labels == "known"
    coordinates = {key: None if known else getattr(config, key) for key in ("pollution", "label_ratio", "n_train")}
    return {
        "dataset": data.arrays.name,
        "method": detector.name,
        "backbone": data.features.network.identity["model"] if data.features else detector.backbone_name,
        "normal_class": "as labeled" if known else data.class_name(data.normal_class),
        **coordinates,
        "seed": config.seed,
        "data/unlabeled": len(hidden),
        "data/labeled": len(data.labeled),
        "data/test": len(data.test),
        "data/hidden_anomalies": "unknown" if known else int(hidden.sum()),
        **({} if known else {"data/pollution_unlabeled": float(hidden.double().mean())}),
        "data/fingerprint": data.arrays.fingerprint,
        **environment(device),
    }


def overview(data: PollutedData, facts: dict[str, Any]) -> list[str]:
    """Describes the training data, in lines to print.

    Args:
        data: The data.
        facts: As in `describe`.
    """
    method = str(facts["method"]) if facts["backbone"] == "none" else "{method} on {backbone}".format(**facts)
    if data.arrays.labels != "known":
        counts = (
            "{dataset}, normal class {normal_class}: {data/unlabeled} unlabeled samples, hidden anomalies among them: "
            "{data/hidden_anomalies}; {data/labeled} labeled, {data/test} to test; "
        )
        return [counts.format(**facts) + method, *data.arrays.notes]
    labeled, test = data.labeled_y.cpu(), data.anomalous("test")
    shape = data.sample_shape
    sample = f"{shape[0]} features" if len(shape) == 1 else "images of {} x {} x {}".format(*shape)
    rows = [
        ("", "unlabeled", "normal", "anomaly"),
        ("training", len(data.unlabeled), int((labeled > 0).sum()), int((labeled < 0).sum())),
        ("test", "-", int((~test).sum()), int(test.sum())) if len(test) else ("test", *"---"),
    ]
    table = ["{:<9}{:>10}{:>9}{:>9}".format(*row) for row in rows]
    return [f"{data.arrays.name}, {sample}; {method}", *table, *data.arrays.notes]


def trained_detector(
    spec: RunSpec, detector: BaseDetector, data: PollutedData, held: CrossFit | None
) -> tuple[TrainedDetector, Decision, Tensor]:
    """Returns the trained detector with its threshold; moves it and the data to the CPU.

    Args:
        spec: The run.
        detector: The detector, which is trained.
        data: Its training data.
        held: As `learn` returns it.

    Returns:
        The detector as it is kept, what its scores mean, and those of the unlabeled samples, shape (N,).
    """
    detector.to("cpu")
    data.place(torch.device("cpu"))
    labeled, unlabeled = (detector.score_samples(part) for part in (data.labeled, data.unlabeled))
    decision = decide(spec, detector, data, labeled, unlabeled, held)
    index = np.concatenate([data.split.unlabeled, data.split.labeled])
    margin = getattr(detector, "margin", None)
    trained = TrainedDetector(
        method=detector.name,
        model=detector.scorer,
        recipe=recipe_of(spec, detector),
        sample_shape=data.sample_shape,
        preprocessing=data.preprocessing,
        features=data.features,
        samples=(
            data.features.samples
            if data.features
            else SampleFormat.of(Rows(data.arrays.x_train, index[:ENOUGH])[:], data.arrays.raw_shape)
        ),
        columns=data.arrays.columns,
        encoding=None if data.arrays.encoding is None else Encoding.from_plain(data.arrays.encoding),
        threshold=decision.threshold,
        calibration=decision.calibration,
        alarms=decision.alarms,
        margin=None if margin is None else float(margin),
        training_scores=torch.cat([unlabeled, labeled]).double().numpy()[np.argsort(index)],
        config=spec.plain,
    )
    return trained, decision, unlabeled


def by_kind(test: Tensor, data: PollutedData) -> dict[str, float]:
    """The ROC AUC of each kind of anomalies in the test set, and its mean over kinds with a label and without one."""
    y = torch.as_tensor(data.arrays.y_test[data.split.test])
    areas = metrics.roc_auc_per_class(test, y, data.normal_class)
    labeled = data.split.labeled[(data.labeled_y < 0).cpu().numpy()]
    shown = {*data.arrays.y_train[labeled].tolist()}
    found = {f"test/auroc_class/{data.class_name(kind)}": area for kind, area in areas.items()}
    for key, seen in ((AUROC_SEEN, True), (AUROC_UNSEEN, False)):
        if of_these := [area for kind, area in areas.items() if (kind in shown) == seen]:
            found[key] = fmean(of_these)
    return found


def write_results(
    spec: RunSpec,
    detector: BaseDetector,
    data: PollutedData,
    logger: Any,
    facts: dict[str, Any],
    held: CrossFit | None,
) -> dict[str, Any]:
    """Scores the test set and the training samples, and writes all files of a run but `metrics.json`."""
    directory, arrays, split = spec.directory, data.arrays, data.split
    trained, decision, unlabeled = trained_detector(spec, detector, data, held)
    test = detector.score_samples(data.test)
    found = audit(detector, data, unlabeled, decision)
    hidden = None if arrays.labels == "known" else data.anomalous("unlabeled")
    is_anomaly = data.anomalous("test")

    results = {**facts, **detector.facts(), **decision.facts}
    if len(test):
        results |= {
            AUROC: metrics.roc_auc(test, is_anomaly),
            AVERAGE_PRECISION: metrics.average_precision(test, is_anomaly),
            "test/base_rate": float(is_anomaly.double().mean()),
            "test/collapsed": collapsed(test),
        }
    if len(test) and arrays.labels == "classes":
        results |= by_kind(test, data)
    if hidden is not None:
        results |= against_truth(found, hidden)

    if len(test):
        write_scores(directory / "scores.csv", split.test, test, is_anomaly, arrays.ids_test, arrays.id_name)
    if (doubts := decision.doubts) is not None:
        write_labels(directory / "labeled.csv", split.labeled, data.labeled_y, doubts, arrays.ids_train, arrays.id_name)
    write_audit(directory / "audit.csv", split.unlabeled, found, hidden, arrays.ids_train, arrays.id_name)
    if (recording := detector.recording()) is not None:
        write_meta_gradient(directory / "meta_gradient.npz", *recording, split.unlabeled, hidden)
    recorded = []
    if spec.config.pictures:
        if len(test):
            title = "{dataset}, normal class {normal_class}, {method}".format(**facts)
            plots.roc_plot(directory / "roc.png", test.numpy(), is_anomaly.numpy(), title)
            plots.score_plot(directory / "scores.png", test.numpy(), is_anomaly.numpy(), decision.threshold)
        if found.meta_gradient is not None:
            truth = None if hidden is None else hidden.numpy()
            plots.suspicion_plot(directory / "suspicion.png", found.meta_gradient.numpy(), truth)
        recorded = plots.recorded_plots(directory)
    trained.save(directory / "detector.pt")
    if (wandb_run := loggers.wandb_run(logger)) is not None:
        loggers.log_final(wandb_run, results, is_anomaly, test, found.meta_gradient, hidden, recorded)
        loggers.log_samples(wandb_run, spec, arrays)
    return results
