"""From a configuration to the objects of a run: data, detector, trainer."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from elite_pl import seeding
from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.annotations import Positive, argument_kinds, at_least, check
from elite_pl.config import Config, Constructor, instantiate, plain
from elite_pl.data import splits
from elite_pl.data.arrays import Arrays, resolve_class
from elite_pl.data.datamodule import PollutedData
from elite_pl.data.features import FrozenFeatures
from elite_pl.data.preprocessing import preprocessing
from elite_pl.data.rows import Rows
from elite_pl.data.sample_format import SampleFormat
from elite_pl.errors import InputError, LabelError, as_typed, input_errors
from elite_pl.methods.auto import Auto
from elite_pl.methods.base import BaseDetector, Detector
from elite_pl.methods.ensemble import Ensemble
from elite_pl.models.networks import Backbone
from elite_pl.models.pretrained import trained_features
from elite_pl.runs.callbacks import History, SameRun
from elite_pl.runs.checkpoints import AtomicCheckpoints
from elite_pl.runs.identity import by_content, digest
from elite_pl.runs.spec import RunSpec

REHEARSED = 1000  # epochs at most that a schedule is tried for
PER_CORE = 8  # processes, or threads, of a CPU; more are likely a typo
PRECISIONS = ("32", "32-true", "64", "64-true", "bf16-mixed")


def use_threads(config: Config) -> None:
    """Sets the number of PyTorch's threads, if there is one in the configuration.

    Raises:
        InputError: If this machine is too small for so many.
    """
    most = PER_CORE * (os.cpu_count() or 1)
    if config.threads is not None:
        if config.threads > most:
            raise InputError(f"threads={config.threads}: must be at most {most} on this machine, or null")
        torch.set_num_threads(config.threads)


@dataclass(frozen=True)
class Step:
    """The trainer's keys that Lightning leaves to manual optimization, done by `Detector`."""

    gradient_clip_val: Positive | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate_grad_batches: Annotated[int, at_least(1)] = 1
    channels_last: bool = False


SPLIT = ("pollution", "label_ratio", "n_train", "normal_class", "labeled_anomaly_classes")  # of data with classes
STEP = [field.name for field in fields(Step)]


def read_source(config: Config) -> Arrays:
    """Reads the data set of a configuration."""
    arrays: Arrays = instantiate("dataset.source", config.dataset.source, Arrays)()
    return arrays


def make_data(config: Config, arrays: Arrays | None = None, *, keep_features: bool = False) -> PollutedData:
    """Makes the data module of a configuration from its source and split.

    Args:
        config: A checked configuration.
        arrays: Data in memory, used instead of the source.
        keep_features: Whether features of given data are kept in the output directory, as those of the source are.
    """
    kept = Path(config.output_dir) / "features" if keep_features or arrays is None else None
    if arrays is None:
        arrays = read_source(config)
    with data_errors(config, arrays):
        if arrays.labels == "known":
            _refuse_split(config)
            normal_class = splits.NORMAL
            split = splits.known_labels(arrays.y_train, arrays.y_test, label_noise=config.label_noise, seed=config.seed)
        else:
            normal_class = resolve_class(config.normal_class, arrays)
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
                labeled_anomaly_classes=labeled_anomaly_classes(config, arrays, normal_class),
                label_noise=config.label_noise,
                class_names=arrays.class_names,
            )
        size, scaling = config.dataset.size, config.dataset.scaling
        if (features := frozen_features(config, arrays)) is not None:
            detector = make_detector(config, (features.network.outputs,))  # refused before minutes of computing
            if isinstance(detector, Auto):
                with input_errors("method", config.method):
                    detector.check_kind("features")
            gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
            arrays = features.in_place_of_images(arrays, split, kept, torch.device("cuda" if gpu else "cpu"))
            size, scaling = None, "standard"
        return PollutedData(
            arrays,
            split,
            normal_class=normal_class,
            size=size,
            scaling=scaling,
            batch_size=config.batch_size * step_settings(config).accumulate_grad_batches,
            labeled_batch_size=config.labeled_batch_size,
            seed=config.seed,
            features=features,
            feature_map=given("feature_map", config.feature_map, nn.Module),
        )


def _refuse_split(config: Config) -> None:
    """Refuses settings of a polluted split where labels are known, which would change nothing but a run's identity."""
    train = cast(DictConfig, OmegaConf.load(str(resources.files("elite_pl.conf") / "train.yaml")))
    for key in SPLIT:
        value, default = getattr(config, key), (config.dataset if key in config.dataset else train)[key]
        if value != default:
            rule = "dataset.labels=known takes samples and labels as they are; it is for dataset.labels=classes"
            raise InputError(f"{key}={value}: {rule}")


def labeled_anomaly_classes(config: Config, arrays: Arrays, normal_class: int) -> list[int] | None:
    """The ids of the classes that the key of this name gives, one or several; None for any.

    Raises:
        InputError: If there is no such class, or it is the normal one.
    """
    given = config.labeled_anomaly_classes
    if given is None:
        return None
    several = [*given] if OmegaConf.is_list(given) else [given]
    found = [resolve_class(one, arrays, "labeled_anomaly_classes") for one in several]
    if not found or normal_class in found:
        rule = "must be one or several of the other classes" + (", not the normal one" if found else "")
        raise InputError(f"labeled_anomaly_classes={given}: {rule}")
    return found


def given(key: str, node: Any, kind: type) -> Constructor | None:
    """Instantiates a node of the configuration, see `instantiate`; None where it has no target."""
    return None if node is None or node.get("_target_") is None else instantiate(key, node, kind)


def frozen_features(config: Config, arrays: Arrays) -> FrozenFeatures | None:
    """Returns the feature extractor of a frozen backbone; None for a backbone that is trained.

    Raises:
        InputError: If the data do not suit a pretrained network, or there is no such network.
    """
    if config.backbone.get("_target_") != "elite_pl.models.pretrained_network":
        return None
    given = instantiate("backbone", config.backbone, Backbone).arguments
    if (scaling := config.dataset.scaling) not in ("unit", "standard"):
        raise InputError(f"dataset.scaling={scaling}: backbone.model={given['model']} scales pixels itself; use unit")
    if not given["frozen"]:
        return None
    if arrays.x_train.ndim != 4:
        raise InputError(f"backbone.model={given['model']}: needs images; samples are {arrays.x_train.shape[1:]}")
    first = Rows(arrays.x_train)[:1]
    images = preprocessing(first, config.dataset.size, "unit")
    with input_errors("backbone", given):
        network = trained_features(given["library"], given["model"], given["image_size"], given["weights"])
    return FrozenFeatures(network.float(), images, SampleFormat.of(first, arrays.raw_shape))


@contextmanager
def label_errors(config: Config, arrays: Arrays) -> Iterator[None]:
    """Turns a lack of labels in the block into bad input.

    Raises:
        InputError: Names the key that gives more of them.
    """
    try:
        yield
    except LabelError as error:
        if arrays.labels == "known":
            raise InputError(f"dataset.labels=known: {error}; give more samples their label, 1 or -1") from error
        raise InputError(f"label_ratio={config.label_ratio}: {error}; give a larger label_ratio") from error


@contextmanager
def data_errors(config: Config, arrays: Arrays) -> Iterator[None]:
    """Turns errors of the data in the block into bad input: of a root key, or of a key of the data set.

    Raises:
        InputError: Names the key.
    """
    try:
        with label_errors(config, arrays):
            yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(re.sub(r"\b(labeled_from|size|scaling)=", r"dataset.\1=", as_typed(str(error)))) from error


def make_detector(config: Config, sample_shape: tuple[int, ...], pretrained: Path | None = None) -> BaseDetector:
    """Makes the detector of a configuration, with the initial weights of its seed if it has a network.

    Args:
        config: The configuration.
        sample_shape: Shape of one sample.
        pretrained: See `Detector`.

    Raises:
        InputError: Names the key of an argument that is not allowed.
    """
    one = _make_one(config, sample_shape, pretrained)
    if config.ensemble == 1:
        return one
    if isinstance(one, Auto):
        rule = f"method={one.name} is a mean of several trainings already; use 1, and `seeds` of its candidates"
        raise InputError(f"ensemble={config.ensemble}: {rule}")
    return Ensemble(one, config.ensemble)


def _make_one(config: Config, sample_shape: tuple[int, ...], pretrained: Path | None) -> BaseDetector:
    make = instantiate("method", config.method, BaseDetector)
    options: dict[str, Any] = {}
    if (make_augmentation := given("augmentation", config.augmentation, Augmentation)) is not None:
        augmentation = make_augmentation()
        mapped = config.feature_map.get("_target_") is not None
        with input_errors("augmentation, which changes what feature_map gives" if mapped else "augmentation"):
            options["views"] = augmentation.views(sample_shape) if augmentation.test_views else None
        options["augmentation"] = augmentation
    if not getattr(make.target, "needs_backbone", True):
        return make(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seeding.derive(config.seed, "network"))
        backbone = instantiate("backbone", config.backbone, Backbone)(sample_shape)
        modules = nn.ModuleList([backbone.encoder, backbone.decoder]).modules()
        if any(isinstance(module, nn.SyncBatchNorm) for module in modules):
            raise InputError(f"backbone={backbone.name}: SyncBatchNorm has no forward-mode rule; use BatchNorm")
        detector = make(backbone=backbone, pretrained=pretrained, **options)
        rehearse(detector, config.epochs)
    step = step_settings(config)
    if step.channels_last:  # of the weights: what comes out of a convolution follows them
        for network in (detector.backbone.encoder, detector.backbone.decoder, detector):
            network.to(memory_format=torch.channels_last)
    detector.micro_batches = step.accumulate_grad_batches
    if step.gradient_clip_val is not None:
        detector.clipping = step.gradient_clip_val, step.gradient_clip_algorithm
    return detector


def rehearse(detector: Detector, epochs: int) -> None:
    """Refuses an optimizer or a schedule that cannot take the steps of a training, tried without moving any weight.

    Raises:
        InputError: If one cannot; names its key.
    """
    detector.configure_optimizers()  # of its own parameters
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros_like(weight)
    optimizer = detector.make_optimizer([weight])
    rule = f"method.optimizer: {type(optimizer).__name__} must take a step by gradients alone"
    with input_errors(rule, kinds=(Exception,)):
        optimizer.step()
    if detector.make_scheduler is not None:
        schedule = detector.make_scheduler(optimizer)
        rule = f"method.scheduler: {type(schedule).__name__} must take one step per epoch, without a metric"
        with input_errors(rule, kinds=(Exception,)):
            for _ in range(min(epochs, REHEARSED)):
                optimizer.step()
                schedule.step()


def check_data(config: Config, detector: BaseDetector, data: PollutedData) -> None:
    """Refuses data that a detector cannot learn from.

    Raises:
        InputError: Names the key.
    """
    with data_errors(config, data.arrays), input_errors("method", config.method):
        detector.check(data)


def step_settings(config: Config) -> Step:
    """Returns the trainer's settings of an optimizer step.

    Raises:
        InputError: If one has no such value.
    """
    step = Step(**{key: config.trainer[key] for key in STEP if key in config.trainer})
    with input_errors("trainer", STEP):
        check(vars(step), argument_kinds(Step))
    if step.accumulate_grad_batches > 1 and config.method.get("labeled_statistics") == "joint":
        raise InputError("trainer.accumulate_grad_batches: method.labeled_statistics=joint takes both batches at once")
    return step


def pretrained_file(config: Config, data: PollutedData) -> Path:
    """Returns the file of pre-trained weights that all methods on one split and network share."""
    resolved, accelerator = plain(config), config.trainer.accelerator
    if accelerator != "cpu" and torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    by_content(resolved["backbone"], "weights")
    identity = {
        "backbone": resolved["backbone"],
        "augmentation": resolved["augmentation"],
        "pretrain": {key: value for key, value in resolved["method"].items() if key.startswith("pretrain_")},
        "preprocessing": [*(resolved["dataset"][key] for key in ("size", "scaling")), resolved["feature_map"]],
        "batches": [data.batch_size, config.seed],
        "data": data.arrays.fingerprint,
        "split": [getattr(data.split, part).tolist() for part in ("unlabeled", "labeled")],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arithmetic": [str(torch.get_default_dtype()), accelerator, config.trainer.get("channels_last", False)],
    }
    return Path(config.output_dir) / "pretrained" / f"{digest(identity)}.pt"


def make_trainer(spec: RunSpec, history: History | None) -> pl.Trainer:
    """Makes the trainer of a run, which keeps its curves and its last checkpoint in the run directory.

    Args:
        spec: The run.
        history: The curves; None for a trainer that trains, and keeps nothing.

    Raises:
        InputError: If Lightning refuses a setting.
    """
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # its import sets it
    settings = spec.plain["trainer"]
    for key in ("max_epochs", "check_val_every_n_epoch"):
        if not (isinstance(value := settings.get(key), int) and value >= 1):
            raise InputError(f"trainer.{key}={value}: must be a whole number of epochs, at least 1")
    if settings.get("sync_batchnorm"):
        raise InputError("trainer.sync_batchnorm=true: has no forward-mode rule; use false, statistics per process")
    if settings.get("precision") is not None and str(settings["precision"]) not in PRECISIONS:
        raise InputError(f"trainer.precision={settings['precision']}: must be 32, 64 or bf16-mixed")
    for key in ("limit_train_batches", "max_steps"):
        if settings.get(key) == 0:
            raise InputError(f"trainer.{key}=0: trains nothing; must be above 0")
    for key in ("logger", "callbacks"):
        if key in settings:
            raise InputError(f"trainer.{key}: is a group of its own; set {key} in its place")
    nodes = spec.plain["callbacks"] or {}
    own = {
        name: instantiate(f"callbacks.{name}", node, pl.Callback)() for name, node in nodes.items() if node is not None
    }
    for name, callback in own.items():
        if str(monitor := getattr(callback, "monitor", None)).startswith("test/"):
            rule = "nothing is chosen on test labels; use another metric, such as labeled/loss"
            raise InputError(f"callbacks.{name}.monitor={monitor}: {rule}")
    options: dict[str, Any] = {"callbacks": [], "enable_checkpointing": False, "limit_val_batches": 0}
    if history is not None:
        # A checkpoint after every epoch, whether or not the test set is scored in it.
        last = ModelCheckpoint(
            spec.directory, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        options = {"callbacks": [SameRun(spec.directory), *own.values(), history, last]}  # history after those that log
    make = instantiate("trainer", {key: value for key, value in settings.items() if key not in STEP}, pl.Trainer)
    plugins = [*(make.arguments.pop("plugins", None) or []), AtomicCheckpoints()]
    with input_errors("trainer", kinds=(Exception,)):  # also of a package that an accelerator or a strategy lacks
        return make(logger=False, plugins=plugins, **options)
