"""One run, from the raw data to its directory of results, top to bottom."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from elite_pl import metrics, plots, seeding, sources, splits, tracking
from elite_pl.callbacks import CollapseWarning, History, TimeLeft
from elite_pl.config import Config, instantiate, plain
from elite_pl.datamodule import PollutedData
from elite_pl.detector import Detector, collapsed
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, discard

log = logging.getLogger(__name__)


def run(config: Config, directory: Path, hash: str) -> dict[str, Any]:
    """Trains and evaluates one detector, and fills its run directory.

    A run that was interrupted goes on from its `last.ckpt`.

    Args:
        config: A checked configuration.
        directory: The run directory.
        hash: The hash of the configuration.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: If the data and the configuration do not go together; no directory is left behind then.
        TrainingError: If training goes wrong.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its import sets it

    data = make_data(config)
    detector = make_detector(config, data.sample_shape, pretrained_file(config, data))
    detector.check(data)
    history = History(directory / "history.csv")
    trainer = make_trainer(config, directory, history)
    resolved = plain(config)
    facts = describe(config, data, detector, trainer.strategy.root_device)

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
        trainer.fit(detector, datamodule=data, ckpt_path=checkpoint(directory / "last.ckpt"), weights_only=True)
        facts["train/seconds"] = history.seconds
        results = write_results(config, detector, data, directory, logger, facts)
        tracking.write_metrics(directory, hash, results)
        exit_code = 0
    except InputError:
        if fresh:
            discard(directory)
        raise
    finally:
        if (wandb_run := tracking.wandb_run(logger)) is not None:
            tracking.close(wandb_run, exit_code)
    return results


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


def make_data(config: Config) -> PollutedData:
    """Source and split of a configuration, as a data module."""
    arrays = instantiate(config.dataset.source)()
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
    return PollutedData(
        arrays,
        split,
        normal_class=normal_class,
        batch_size=config.batch_size,
        labeled_batch_size=config.labeled_batch_size,
        seed=config.seed,
    )


def make_detector(config: Config, sample_shape: tuple[int, ...], pretrained: Path | None = None) -> Detector:
    """The detector of a configuration, with the initial weights of its seed.

    Args:
        config: The configuration.
        sample_shape: Shape of one sample.
        pretrained: See `Detector`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeding.derive(config.seed, "network"))
        backbone = construct("backbone", instantiate(config.backbone), sample_shape)
        detector = construct("method", instantiate(config.method), backbone=backbone, pretrained=pretrained)
        construct("method.optimizer", detector.make_optimizer, detector.score.parameters())  # only to see it refused
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


def pretrained_file(config: Config, data: PollutedData) -> Path:
    """Where the pre-trained weights lie that all methods on one split and network share."""
    resolved = plain(config)
    identity = {
        "backbone": resolved["backbone"],
        "pretrain": [resolved["method"][key] for key in ("pretrain_epochs", "pretrain_learning_rate")],
        "batches": [config.batch_size, config.seed],
        "data": data.arrays.fingerprint,
        "split": [getattr(data.split, part).tolist() for part in ("unlabeled", "labeled")],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return Path(config.output_dir) / "pretrained" / f"{tracking.digest(identity)}.pt"


def describe(config: Config, data: PollutedData, detector: Detector, device: torch.device) -> dict[str, Any]:
    """What is known before training: coordinates, counts and environment, for `metrics.json`."""
    hidden = data.anomalous("unlabeled")
    known = data.arrays.labels == "known"
    coordinates = {key: None if known else getattr(config, key) for key in ("pollution", "label_ratio", "n_train")}
    return {
        "dataset": data.arrays.name,
        "method": detector.name,
        "backbone": detector.backbone.name,
        "normal_class": "as labeled" if known else data.class_name(data.normal_class),
        **coordinates,
        "seed": config.seed,
        "data/unlabeled": len(hidden),
        "data/labeled": len(data.labeled),
        "data/test": len(data.test),
        "data/hidden_anomalies": "unknown" if known else int(hidden.sum()),
        **({} if known else {"data/pollution_unlabeled": float(hidden.double().mean())}),
        "data/fingerprint": data.arrays.fingerprint,
        **tracking.environment(device),
    }


def make_trainer(config: Config, directory: Path, history: History) -> pl.Trainer:
    """The trainer of a configuration, which keeps its curves and its last checkpoint in the run directory.

    Raises:
        InputError: If Lightning refuses a setting.
    """
    checkpoint = ModelCheckpoint(directory, filename="last", enable_version_counter=False)
    callbacks = [history, TimeLeft(), CollapseWarning(), checkpoint]
    for key in ("max_epochs", "check_val_every_n_epoch"):
        if not config.trainer[key] >= 1:
            raise InputError(f"trainer.{key}={config.trainer[key]}: must be at least 1")
    try:
        trainer = instantiate(config.trainer)(logger=False, callbacks=callbacks)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error
    for key, off in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
        if getattr(trainer, key) != off:
            raise InputError(f"trainer.{key}={getattr(trainer, key)}: not with manual optimization; leave it out")
    if trainer.world_size > 1:
        raise InputError(f"trainer.devices={config.trainer.devices}: a run takes one device; use 1")
    return trainer


def write_results(
    config: Config, detector: Detector, data: PollutedData, directory: Path, logger: Any, facts: dict[str, Any]
) -> dict[str, Any]:
    """Scores the test part and the training samples, and writes all files of a run but `metrics.json`."""
    detector.to("cpu")
    data.place(torch.device("cpu"))
    labeled, unlabeled, test = (detector.score_samples(part) for part in (data.labeled, data.unlabeled, data.test))
    threshold = choose_threshold(labeled, data.labeled_y, unlabeled)
    suspicion = detector.suspicion(unlabeled)
    hidden = None if data.arrays.labels == "known" else data.anomalous("unlabeled")
    is_anomaly = data.anomalous("test")

    results = {**facts, "train/margin": float(detector.margin), "threshold": threshold}
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

    tracking.write_scores(directory / "scores.csv", data.split.test, test, is_anomaly)
    tracking.write_audit(
        directory / "audit.csv",
        data.split.unlabeled,
        suspicion,
        detector.pseudo_label(unlabeled, threshold),
        hidden,
    )
    if detector.infers_labels:
        truth = None if hidden is None else hidden.numpy()
        plots.suspicion_plot(directory / "suspicion.png", suspicion.numpy(), truth)
    save_detector(directory / "detector.pt", config, detector, data, threshold)
    if (wandb_run := tracking.wandb_run(logger)) is not None:
        tracking.log_final(wandb_run, results, is_anomaly, test, suspicion if detector.infers_labels else None, hidden)
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


def save_detector(path: Path, config: Config, detector: Detector, data: PollutedData, threshold: float) -> None:
    """Writes `detector.pt`: plain tensors and dictionaries, all that is needed to score new samples."""
    shift, scale = data.scaling
    content = {
        "score": detector.score.state_dict(),
        "margin": detector.margin,
        "threshold": threshold,
        "sample_shape": list(data.sample_shape),
        "preprocessing": {"shift": shift, "scale": scale},
        "config": plain(config),
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_detector(path: Path) -> tuple[Detector, dict[str, Any]]:
    """Reads `detector.pt`.

    Args:
        path: The file.

    Returns:
        The detector in evaluation mode, which takes samples that are scaled as `(x - shift) / scale`, and all that the
        file holds.
    """
    content = torch.load(path, weights_only=True)
    detector = make_detector(OmegaConf.create(content["config"]), tuple(content["sample_shape"]))
    detector.score.load_state_dict(content["score"])
    return detector.eval(), content
