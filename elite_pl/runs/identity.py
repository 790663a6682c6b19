"""The identity of a run: the hash of its configuration, and the directory that has it in its name. Light to import."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from elite_pl.addresses import OLD, PUBLIC, renamed
from elite_pl.data.sources.images import content as folder_content
from elite_pl.data.sources.torchvision_sets import copy_of
from elite_pl.errors import input_errors

# Keys that do not change the identity of a run: its name and place, and how it is logged and observed.
BOOKKEEPING = (
    "study",
    "output_dir",
    "logger",
    "threads",
    "pictures",
    "reuse",
    "dataset.root",
    "dataset.source.root",
    "dataset.source.cache",
    "method.record_iterations",
    "trainer.check_val_every_n_epoch",
    "trainer.enable_progress_bar",
)

# The keys of a data set that name a file or folder of one's own.
PATHS = ("path", "labels_file", "labels_path", "test_path", "test_labels_path")

# Keys added since commit 31a127d, each with the value that reproduces the earlier behavior: with it, a run keeps the
# hash that it had then.
BEFORE: dict[str, object] = {
    "labeled_anomaly_classes": None,
    "label_noise": 0.0,
    "ensemble": 1,
    "trainer.precision": 32,
    "trainer.deterministic": None,
    "trainer.gradient_clip_val": None,
    "trainer.gradient_clip_algorithm": "norm",
    "trainer.accumulate_grad_batches": 1,
    "trainer.channels_last": False,
    "trainer.limit_train_batches": None,
    "trainer.limit_val_batches": None,
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "backbone.norm": "batch",
    "backbone.activation": "leaky_relu",
    "backbone.bias": False,
    "feature_map": {"_target_": None},
    "augmentation": {"_target_": None},
    "method.labeled_copies": 1,
    "method.augmented_copies": 20,
    "method.candidates.*.*.method.augmented_copies": 20,
    "method.average_decay": None,
    "method.balanced_labels": False,
    "method.contamination": None,
    "method.ramp_steps": 0,
    "callbacks": {
        "labeled_loss": {"_target_": "elite_pl.runs.LabeledLoss"},
        "time_left": {"_target_": "elite_pl.runs.TimeLeft"},
        "collapse_warning": {"_target_": "elite_pl.runs.CollapseWarning"},
    },
}

# Candidates of `auto` added since, by kind of data: on other data a run keeps its hash, for there they change nothing.
CANDIDATES = {
    "images": "method.candidates.images.extra_trees_pixels",
    "vectors": "method.candidates.vectors.elite_on_a_center",
}
KINDS = {  # of the data of sources that have one kind only
    "elite_pl.data.digits": "vectors",
    "elite_pl.data.table": "vectors",
    "elite_pl.data.torchvision_set": "images",
    "elite_pl.data.image_folder": "images",
}

# Values added since, each with the older one that is equivalent wherever that one was allowed.
ALIASES: dict[str, dict[object, object]] = {"method.contamination": {"auto": "given"}}


def digest(obj: object) -> str:
    """The first 10 hexadecimal digits of the SHA-256 of `obj` as canonical JSON: the order of keys does not matter."""
    canonical = json.dumps(obj, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def config_hash(config: Mapping[str, Any]) -> str:
    """The identity of a run: what its numbers depend on, and nothing else.

    The user's own files and folders (`PATHS`, `backbone.weights`, or a copy of CIFAR-10) count by their content, so
    another file at the same place is another run and a moved file is the same one.

    Args:
        config: The resolved config as plain dictionaries, lists and scalars.

    Returns:
        The `digest` of it without `BOOKKEEPING`, under old addresses and without what is as `BEFORE`.
    """
    known = renamed(dict(config), OLD)
    dataset = known.get("dataset", {})
    source = dataset.get("source", {})
    for kind, key in CANDIDATES.items():
        for node, name in _holders(known, key):
            if name in node and _kind(config) not in (kind, None):
                del node[name]
    folders = ("path",) if source.get("_target_") == "elite_pl.data.image_folder" else ()
    for holder in (dataset, source):  # the group's key, and the constructor's argument that repeats it
        for key in PATHS:
            if not isinstance(path := holder.get(key), str) or not path:  # what is no path, its source refuses
                continue
            found = Path(path).expanduser()
            if found.is_file() or (key in folders and found.is_dir()):
                with input_errors(f"dataset.{key}={path}"):
                    holder[key] = _content(found)
    if isinstance(root := source.get("root"), str) and (taken := copy_of(source.get("name", ""), root)):
        dataset["copy"] = _content(taken)
    backbone = known.get("backbone")
    by_content(backbone, "weights")
    if isinstance(backbone, dict) and backbone.get("_target_") == OLD["elite_pl.models.mlp"] and "norm" in backbone:
        norm = backbone.pop("norm")  # what was `batch_norm`, true or false
        backbone |= {"norm": norm} if norm == "layer" else {"batch_norm": norm == "batch"}
    for key in BOOKKEEPING:
        for node, name in _holders(known, key):
            node.pop(name, None)
    if cross_fits(known):
        known["threshold"]["scores"] = "cross_fitted"
    else:
        known.pop("threshold", None)
    for key, value in BEFORE.items():
        for node, name in _holders(known, key):
            if name in node and node[name] == value:
                del node[name]
    if source.get("_target_") in (OLD["elite_pl.data.npz"], "elite_pl.data.npy"):  # took no such file at first
        for holder in (dataset, source):
            if holder.get("labels_file", "") is None:
                del holder["labels_file"]
    for key, aliases in ALIASES.items():
        for node, name in _holders(known, key):
            if isinstance(node.get(name), str):
                node[name] = aliases.get(node[name], node[name])
    return digest(known)


def cross_fits(config: Mapping[str, Any]) -> bool:
    """Returns whether the threshold is chosen on scores by networks that have not seen the samples.

    Args:
        config: A plain config. An older one has no `threshold`: it was fitted to the labels.
    """
    scores = (config.get("threshold") or {}).get("scores")
    return scores == "cross_fitted" or (scores == "auto" and config["dataset"].get("labels") == "known")


def by_content(node: Any, key: str) -> None:
    """Replaces the path of a file with its content, if a node has such a key and there is such a file."""
    path = node.get(key) if isinstance(node, dict) else None
    if isinstance(path, str) and path and Path(path).expanduser().is_file():
        node[key] = _content(Path(path).expanduser())


def _kind(config: Mapping[str, Any]) -> str | None:
    """The kind of data by which `auto` lists candidates, as far as it is known without reading them."""
    if config["backbone"].get("frozen"):
        return "features"
    source = renamed(config["dataset"]["source"], PUBLIC)
    if source["_target_"] == "elite_pl.data.npz":
        axes = _axes(Path(str(source["path"])).expanduser())
        return {None: None, 2: "vectors"}.get(axes, "images")
    return KINDS.get(source["_target_"])


def _axes(path: Path) -> int | None:
    """The number of axes of the samples in an npz file, by its header; None if there is nothing to read."""
    try:
        with ZipFile(path) as file:
            name = "x_train.npy" if "x_train.npy" in file.namelist() else "x.npy"
            with file.open(name) as array:
                first = np.lib.format.read_magic(array) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                return len(read(array)[0])
    except Exception:  # whatever the unpacking of a foreign file stumbles over: its source refuses it
        return None


def _holders(config: dict[str, Any], key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The groups that have a dotted key, in which * stands for any name, and the key's name in them."""
    first, _, rest = key.partition(".")
    if not rest:
        yield config, first
        return
    for node in config.values() if first == "*" else (config.get(first),):
        if isinstance(node, dict):
            yield from _holders(node, rest)


def _content(path: Path) -> str:
    """The SHA-256 of a file, or of the images in a folder, read once as long as nothing is written to it.

    A sweep asks for each of its cells.
    """
    if path.is_dir():
        return f"sha256:{folder_content(path)}"
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _safe(name: object) -> str:
    """`name` as one part of a path on any file system: no separators, no leading dot, not too long."""
    return re.sub(r"[^\w.+-]+", "-", str(name)).strip("-.")[:60] or "unnamed"


def coordinates(config: Mapping[str, Any]) -> str:
    """Returns the readable part of a run directory's name, such as `normal3_rp0.5_rl0.004_n5000_seed0`.

    Where the labels are known there is no normal class, no pollution and no label ratio; what is null is left out.
    """
    parts = {"normal": "normal_class", "rp": "pollution", "rl": "label_ratio", "n": "n_train", "seed": "seed"}
    known = config["dataset"].get("labels") == "known"
    if known:
        parts = {"seed": "seed"}
    values = {word: config[key] for word, key in parts.items() if config[key] is not None}
    named = [word + _safe(f"{v:g}" if isinstance(v, float) else v) for word, v in values.items()]
    return "_".join(["known"] * known + named)


def run_directory(config: Mapping[str, Any], hash: str) -> Path:
    """`OUTPUT_DIR/STUDY/<dataset>/<method>/<coordinates>-<hash>`, which is not created here."""
    place = [config["study"], config["dataset"]["name"], config["method"]["name"]]
    return Path(config["output_dir"], *map(_safe, place), f"{coordinates(config)}-{hash}")
