"""One run, from the raw data to its directory of results, top to bottom."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from elite_pl import distributed, metrics, plots, records, seeding, sources, splits, tracking
from elite_pl.callbacks import CollapseWarning, History, LabeledLoss, SameRun, TimeLeft
from elite_pl.config import Config, instantiate, plain
from elite_pl.datamodule import PollutedData
from elite_pl.detector import BaseDetector, Detector, collapsed
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, discard
from elite_pl.shallow import ShallowDetector

log = logging.getLogger(__name__)

# What Lightning leaves to manual optimization, and is done by `Detector`: keys of the trainer, and their defaults.
STEP = {"gradient_clip_val": None, "gradient_clip_algorithm": "norm", "accumulate_grad_batches": 1}
PRECISIONS = ("32", "32-true", "64", "64-true", "bf16-mixed")


def run(config: Config, directory: Path, hash: str) -> dict[str, Any] | None:
    """Trains and evaluates one detector, and fills its run directory.

    A run that was interrupted goes on from its `last.ckpt`. Of several processes that make a run each comes
    through here, and the first one writes.

    Args:
        config: A checked configuration.
        directory: The run directory.
        hash: The hash of the configuration.

    Returns:
        What `metrics.json` holds; None in other processes than the first.

    Raises:
        InputError: If the data and the configuration do not go together; no directory is left behind then.
        TrainingError: If training goes wrong.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    history = History(directory / "history.csv")
    trainer = make_trainer(config, directory, history)
    with trainer.precision_plugin.tensor_init_context():
        data = make_data(config)
        detector = make_detector(config, data.sample_shape, pretrained_file(config, data))
        detector.check(data)
        if not isinstance(detector, Detector) and trainer.world_size > 1:
            raise InputError(f"trainer.devices={config.trainer.devices}: method={detector.name} has no gradient; use 1")
        if trainer.is_global_zero:
            return fitted(config, directory, hash, detector, data, trainer, history)
        logging.getLogger("elite_pl").setLevel(logging.ERROR)  # the first process says it
        fit(detector, data, trainer, history, directory / "last.ckpt")
        return None


def fitted(
    config: Config,
    directory: Path,
    hash: str,
    detector: BaseDetector,
    data: PollutedData,
    trainer: pl.Trainer,
    history: History,
) -> dict[str, Any]:
    """Fits, and fills the run directory; arguments and returned value as of `run` and `fit`."""
    resolved = plain(config)
    device = trainer.strategy.root_device if isinstance(detector, Detector) else torch.device("cpu")
    facts = describe(config, data, detector, device) | {"processes": trainer.world_size}
    fresh = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    logger, exit_code = None, 1
    try:
        with atomic_write(directory / "config.yaml") as temporary:
            OmegaConf.save(resolved, temporary)
        data.split.save(directory / "splits.npz")
        trainer.logger = logger = tracking.make_logger(directory, resolved)
        log.info(
            "%(dataset)s, normal class %(normal_class)s: %(data/unlabeled)d unlabeled samples, hidden anomalies among "
            "them: %(data/hidden_anomalies)s; %(data/labeled)d labeled, %(data/test)d to test; "
            "%(method)s on %(backbone)s",
            facts,
        )
        fit(detector, data, trainer, history, directory / "last.ckpt")
        facts["train/seconds"] = history.seconds
        results = write_results(config, detector, data, directory, logger, facts)
        records.write_metrics(directory, hash, results)
        exit_code = 0
    except InputError:
        if fresh:
            discard(directory)
        raise
    finally:
        if (wandb_run := tracking.wandb_run(logger)) is not None:
            tracking.close(wandb_run, exit_code)
    return results


def fit(detector: BaseDetector, data: PollutedData, trainer: pl.Trainer, history: History, last: Path) -> None:
    """Fits a detector: by Lightning, from the last checkpoint if there is one, or all at once.

    Args:
        detector: The detector.
        data: What it learns from.
        trainer: Trains it by gradient; a method that has none only logs to its logger.
        history: Gets a row an epoch; one in all from a method without a gradient.
        last: The checkpoint of a run that was interrupted.
    """
    if isinstance(detector, Detector):
        trainer.fit(detector, datamodule=data, ckpt_path=checkpoint(last), weights_only=True)
        trainer.strategy.barrier()
        distributed.part()
        return
    assert isinstance(detector, ShallowDetector)
    start = time.monotonic()
    detector.fit(data)
    history.seconds = time.monotonic() - start
    row: dict[str, float] = {}
    if len(data.test):
        row["test/auroc"] = metrics.roc_auc(detector.score_samples(data.test), data.anomalous("test"))
        for logger in trainer.loggers:
            logger.log_metrics(row, step=1)
    history.add({"epoch": 1, "step": 1, **row})


def checkpoint(path: Path) -> Path | None:
    """The checkpoint to go on from, None if there is none or what is there cannot be read."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # whatever the unpacking of half a file stumbles over
        log.warning("%s is damaged: training starts anew", path)
        return None
    return path


def make_data(config: Config, held_out: tuple[int, int] | None = None) -> PollutedData:
    """Source and split of a configuration, as a data module.

    Args:
        config: A checked configuration.
        held_out: (i, k): the i-th of k parts of the labeled samples takes the place of the test part.
    """
    arrays = instantiate("dataset.source", config.dataset.source)()
    if arrays.labels == "known":
        normal_class, split = splits.NORMAL, splits.known_labels(arrays.y_train, arrays.y_test)
    else:
        normal_class = sources.resolve_class(config.normal_class, arrays)
        split = splits.polluted_one_vs_rest(
            arrays.y_train,
            arrays.y_test,
            dataset=arrays.name,
            normal_class=normal_class,
            pollution=config.pollution,
            label_ratio=config.label_ratio,
            n_train=config.n_train,
            seed=config.seed,
            labeled_from=config.dataset.labeled_from,
            class_names=arrays.class_names,
        )
    if held_out is not None:
        split, held = splits.hold_out(split, *held_out)
        arrays = replace(arrays, x_test=arrays.x_train[held], y_test=arrays.y_train[held])
    return PollutedData(
        arrays,
        split,
        normal_class=normal_class,
        size=config.dataset.size,
        scaling=plain(config.dataset)["scaling"],
        batch_size=config.batch_size * step_settings(config)["accumulate_grad_batches"],
        labeled_batch_size=config.labeled_batch_size,
        seed=config.seed,
    )


def make_detector(config: Config, sample_shape: tuple[int, ...], pretrained: Path | None = None) -> BaseDetector:
    """The detector of a configuration, with the initial weights of its seed if it has a network.

    Args:
        config: The configuration.
        sample_shape: Shape of one sample.
        pretrained: See `Detector`.
    """
    make = instantiate("method", config.method)
    if not getattr(make.func, "needs_backbone", True):
        return construct("method", make)
    with torch.random.fork_rng():
        torch.manual_seed(seeding.derive(config.seed, "network"))
        backbone = construct("backbone", instantiate("backbone", config.backbone), sample_shape)
        modules = nn.ModuleList([backbone.encoder, backbone.decoder]).modules()
        if any(isinstance(module, nn.SyncBatchNorm) for module in modules):
            raise InputError(f"backbone={backbone.name}: SyncBatchNorm has no forward-mode rule; use BatchNorm")
        detector = construct("method", make, backbone=backbone, pretrained=pretrained)
        # Made only to see them refused.
        optimizer = construct("method.optimizer", detector.make_optimizer, detector.score.parameters())
        if detector.make_scheduler is not None:
            schedule = construct("method.scheduler", detector.make_scheduler, optimizer)
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise InputError("method.scheduler: ReduceLROnPlateau needs a metric; use a schedule of epochs alone")
    clip, algorithm, detector.micro_batches = step_settings(config).values()
    detector.clipping = None if clip is None else (clip, algorithm)
    return detector


def construct(key: str, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls a constructor, and names the config key that it refuses.

    Raises:
        InputError: If it does.
    """
    try:
        return make(*arguments, **options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {error}") from error


def step_settings(config: Config) -> dict[str, Any]:
    """The trainer's settings of an optimizer step, see `STEP`.

    Raises:
        InputError: If one has no such value.
    """
    step = {key: config.trainer.get(key, default) for key, default in STEP.items()}
    clip, algorithm, micro_batches = step.values()
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise InputError(f"trainer.gradient_clip_val={clip}: must be positive, or null")
    if algorithm not in ("norm", "value"):
        raise InputError(f"trainer.gradient_clip_algorithm={algorithm}: must be norm or value")
    if not isinstance(micro_batches, int) or micro_batches < 1:
        raise InputError(f"trainer.accumulate_grad_batches={micro_batches}: must be a number of batches, 1 or more")
    if micro_batches > 1 and config.method.get("labeled_statistics") == "joint":
        raise InputError("trainer.accumulate_grad_batches: method.labeled_statistics=joint takes both batches at once")
    return step


def pretrained_file(config: Config, data: PollutedData) -> Path:
    """Where the pre-trained weights lie that all methods on one split and network share."""
    resolved = plain(config)
    identity = {
        "backbone": resolved["backbone"],
        "pretrain": {key: value for key, value in resolved["method"].items() if key.startswith("pretrain_")},
        "preprocessing": [resolved["dataset"][key] for key in ("size", "scaling")],
        "batches": [data.batch_size, config.seed],
        "data": data.arrays.fingerprint,
        "split": [getattr(data.split, part).tolist() for part in ("unlabeled", "labeled")],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arithmetic": [str(torch.get_default_dtype()), config.trainer.accelerator, torch.cuda.is_available()],
    }
    return Path(config.output_dir) / "pretrained" / f"{records.digest(identity)}.pt"


def describe(config: Config, data: PollutedData, detector: BaseDetector, device: torch.device) -> dict[str, Any]:
    """What is known before training: coordinates, counts and environment, for `metrics.json`."""
    hidden = data.anomalous("unlabeled")
    known = data.arrays.labels == "known"
    coordinates = {key: None if known else getattr(config, key) for key in ("pollution", "label_ratio", "n_train")}
    return {
        "dataset": data.arrays.name,
        "method": detector.name,
        "backbone": detector.backbone_name,
        "normal_class": "as labeled" if known else data.class_name(data.normal_class),
        **coordinates,
        "seed": config.seed,
        "data/unlabeled": len(hidden),
        "data/labeled": len(data.labeled),
        "data/test": len(data.test),
        "data/hidden_anomalies": "unknown" if known else int(hidden.sum()),
        **({} if known else {"data/pollution_unlabeled": float(hidden.double().mean())}),
        "data/fingerprint": data.arrays.fingerprint,
        **records.environment(device),
    }


def make_trainer(config: Config, directory: Path, history: History | None = None) -> pl.Trainer:
    """The trainer of a configuration, which keeps its curves and its last checkpoint in the run directory.

    Args:
        config: The configuration.
        directory: The run directory.
        history: The curves; None for a trainer that only tells how many processes it takes.

    Raises:
        InputError: If Lightning refuses a setting.
    """
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # its import sets it
    # After every epoch, whether or not the test part is scored in it.
    checkpoint = ModelCheckpoint(directory, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks = [SameRun(directory), LabeledLoss(), TimeLeft(), CollapseWarning(), checkpoint]
    callbacks[2:2] = [history] if history else []
    for key in ("max_epochs", "check_val_every_n_epoch"):
        if not (isinstance(config.trainer[key], int) and config.trainer[key] >= 1):
            raise InputError(f"trainer.{key}={config.trainer[key]}: must be a whole number of epochs, at least 1")
    if config.trainer.get("sync_batchnorm"):
        raise InputError("trainer.sync_batchnorm=true: has no forward-mode rule; use false, statistics per process")
    if config.trainer.get("precision") is not None and str(config.trainer.precision) not in PRECISIONS:
        raise InputError(f"trainer.precision={config.trainer.precision}: must be 32, 64 or bf16-mixed")
    if config.trainer.get("limit_train_batches") in (0, 0.0):
        raise InputError("trainer.limit_train_batches=0: trains nothing; must be above 0")
    try:
        settings = {key: value for key, value in plain(config)["trainer"].items() if key not in STEP}
        trainer = instantiate("trainer", settings)(logger=False, callbacks=callbacks)
    except InputError:
        raise
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error
    return trainer


def write_results(
    config: Config, detector: BaseDetector, data: PollutedData, directory: Path, logger: Any, facts: dict[str, Any]
) -> dict[str, Any]:
    """Scores the test part and the training samples, and writes all files of a run but `metrics.json`."""
    detector.to("cpu")
    data.place(torch.device("cpu"))
    labeled, unlabeled, test = (detector.score_samples(part) for part in (data.labeled, data.unlabeled, data.test))
    threshold = choose_threshold(labeled, data.labeled_y, unlabeled)
    suspicion = detector.suspicion(unlabeled)
    hidden = None if data.arrays.labels == "known" else data.anomalous("unlabeled")
    is_anomaly = data.anomalous("test")

    results = {**facts, **detector.facts(), "threshold": threshold}
    if len(test):
        results |= {
            "test/auroc": metrics.roc_auc(test, is_anomaly),
            "test/average_precision": metrics.average_precision(test, is_anomaly),
            "test/base_rate": float(is_anomaly.double().mean()),
            "test/collapsed": collapsed(test),
        }
        plots.roc_plot(
            directory / "roc.png",
            test.numpy(),
            is_anomaly.numpy(),
            title="{dataset}, normal class {normal_class}, {method}".format(**facts),
        )
        plots.score_plot(directory / "scores.png", test.numpy(), is_anomaly.numpy(), threshold)
    if len(test) and data.arrays.labels == "classes":
        y = torch.as_tensor(data.arrays.y_test[data.split.test])
        for number, value in metrics.roc_auc_per_class(test, y, data.normal_class).items():
            results[f"test/auroc_class/{data.class_name(number)}"] = value
    if hidden is not None and 0 < hidden.sum() < len(hidden):
        results["audit/auroc"] = metrics.roc_auc(suspicion, hidden)

    records.write_scores(directory / "scores.csv", data.split.test, test, is_anomaly)
    records.write_audit(
        directory / "audit.csv",
        data.split.unlabeled,
        suspicion,
        detector.pseudo_label(unlabeled, threshold),
        hidden,
    )
    if detector.infers_labels:
        truth = None if hidden is None else hidden.numpy()
        plots.suspicion_plot(directory / "suspicion.png", suspicion.numpy(), truth)
    if (recording := detector.recording()) is not None:
        records.write_meta_gradient(directory / "meta_gradient.npz", *recording, data.split.unlabeled, hidden)
    pictures = plots.recorded_plots(directory)
    save_detector(directory / "detector.pt", config, detector, data, threshold)
    if (wandb_run := tracking.wandb_run(logger)) is not None:
        inferred = suspicion if detector.infers_labels else None
        tracking.log_final(wandb_run, results, is_anomaly, test, inferred, hidden, pictures)
    return results


def choose_threshold(labeled: Tensor, label: Tensor, unlabeled: Tensor) -> float:
    """The score above which a sample is called an anomaly.

    The one that gives the labeled samples the highest balanced accuracy (Youden's J), half-way to the next score;
    without labels of both kinds, the 95th percentile of the unlabeled scores.

    Args:
        labeled: Scores of the labeled samples, shape (m,).
        label: +1 or -1, shape (m,).
        unlabeled: Scores of the unlabeled samples, shape (N,).
    """
    if not ((label > 0).any() and (label < 0).any()):
        return float(np.quantile(unlabeled.double().numpy(), 0.95))
    values = labeled.double().unique()
    candidates = (values + torch.cat([values[1:], values[-1:] + values[-1:].abs() + 1])) / 2
    anomalous = labeled.double() > candidates[:, None]
    gain = anomalous[:, label < 0].double().mean(1) - anomalous[:, label > 0].double().mean(1)
    return float(candidates[gain.argmax()])


def save_detector(path: Path, config: Config, detector: BaseDetector, data: PollutedData, threshold: float) -> None:
    """Writes `detector.pt`: plain tensors and dictionaries, all that is needed to score new samples."""
    content = {
        "score": detector.score.state_dict(),
        "margin": getattr(detector, "margin", None),
        "threshold": threshold,
        "sample_shape": list(data.sample_shape),
        "preprocessing": data.preprocessing._asdict(),
        "config": plain(config),
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_detector(path: Path) -> tuple[BaseDetector, dict[str, Any]]:
    """Reads `detector.pt`.

    Args:
        path: The file.

    Returns:
        The detector in evaluation mode, and all that the file holds; `Preprocessing(**content["preprocessing"])` makes
        the samples that it takes.
    """
    content = torch.load(path, weights_only=True)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(content["preprocessing"]["shift"].dtype)  # float64 of a run with trainer.precision=64
    try:
        detector = make_detector(OmegaConf.create(content["config"]), tuple(content["sample_shape"]))
    finally:
        torch.set_default_dtype(dtype)
    detector.score.load_state_dict(content["score"])
    return detector.eval(), content
