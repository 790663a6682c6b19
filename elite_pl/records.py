"""What a run leaves in its directory, and how a finished one is known again."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import logging
import math
import numbers
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from elite_pl import sources
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, write_json

log = logging.getLogger(__name__)

# What a run may be called, where it may lie and how it may be watched without being another run.
BOOKKEEPING = (
    "study",
    "output_dir",
    "logger",
    "threads",
    "reuse",
    "dataset.root",
    "dataset.source.root",
    "method.record_iterations",
    "trainer.check_val_every_n_epoch",
    "trainer.enable_progress_bar",
)


def digest(obj: object) -> str:
    """The first 10 hexadecimal digits of the SHA-256 of `obj` as canonical JSON: the order of keys does not matter."""
    canonical = json.dumps(obj, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def config_hash(config: Mapping[str, Any]) -> str:
    """The identity of a run: what its numbers depend on, and nothing else.

    A file of one's own (`dataset.path`, or a copy of CIFAR-10) counts by its content, so another file at the same place
    is another run and a moved file is the same one.

    Args:
        config: The resolved config as plain dictionaries, lists and scalars.

    Returns:
        The `digest` of it without `BOOKKEEPING`.
    """
    config = copy.deepcopy(dict(config))
    dataset = config.get("dataset", {})
    source = dataset.get("source", {})
    for holder in (dataset, source):  # the group's key, and the constructor's argument that repeats it
        if (path := holder.get("path")) and Path(path).expanduser().is_file():
            holder["path"] = _content(Path(path).expanduser())
    if "root" in source and (taken := sources.copy_of(source.get("name", ""), source["root"])):
        dataset["copy"] = _content(taken)
    for key in BOOKKEEPING:
        *groups, name = key.split(".")
        node: Any = config
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(name, None)
    return digest(config)


def _content(path: Path) -> str:
    """The SHA-256 of a file, read once as long as it is not written to: a sweep asks for each of its cells."""
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
    """What a person looks for a run by, such as `normal3_rp0.5_rl0.004_n5000_seed0`.

    Where the labels are known there is no normal class, no pollution and no label ratio; what is null is left out.
    """
    parts = {"normal": "normal_class", "rp": "pollution", "rl": "label_ratio", "n": "n_train", "seed": "seed"}
    known = config["dataset"].get("labels") == "known"
    if known:
        parts = {"seed": "seed"}
    values = {word: config[key] for word, key in parts.items() if config[key] is not None}
    named = [word + _safe(f"{v:g}" if isinstance(v, float) else v) for word, v in values.items()]
    return "_".join(["known"] * known + named)


def run_directory(config: Mapping[str, Any]) -> Path:
    """`OUTPUT_DIR/STUDY/<dataset>/<method>/<coordinates>-<hash>`, which is not created here."""
    place = [config["study"], config["dataset"]["name"], config["method"]["name"]]
    return Path(config["output_dir"], *map(_safe, place), f"{coordinates(config)}-{config_hash(config)}")


def finished(directory: str | os.PathLike[str], hash: str) -> dict[str, Any] | None:
    """The metrics of the run in `directory` if it came to its end with the config of this hash, else None."""
    try:
        metrics = json.loads((Path(directory) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, cut off, not text
        return None
    return metrics if isinstance(metrics, dict) and metrics.get("config_hash") == hash else None


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Makes sure that `directory` can be made and written to, and leaves nothing behind.

    Raises:
        InputError: If it cannot.
    """
    place = Path(directory).absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        # The permission bits do not tell (root, read-only and network file systems): try it.
        with tempfile.TemporaryDirectory(dir=place, prefix=".elite_pl-"):
            pass
    except OSError as error:
        reason = "is not a directory" if not place.is_dir() else f"cannot be written to ({error.strerror})"
        raise InputError(f"output_dir={directory}: {place} {reason}; name a directory that you may write to") from None


# ------------------------------------------------------------------------------------------------ what a run leaves


def write_metrics(directory: str | os.PathLike[str], hash: str, metrics: Mapping[str, Any]) -> None:
    """Writes `metrics.json`, the mark of a finished run, so call it last: one flat object, with its `config_hash`.

    Raises:
        ValueError: If a value is nested, or a number that JSON does not have.
    """
    for key, value in metrics.items():
        if isinstance(value, Mapping | list | tuple) or (isinstance(value, numbers.Real) and not math.isfinite(value)):
            raise ValueError(f"metrics.json is flat and finite, and {key} is {value!r}")
    write_json(Path(directory) / "metrics.json", {"config_hash": hash, **metrics})


def write_failure(directory: str | os.PathLike[str], hash: str, config: Mapping[str, Any], error: str) -> None:
    """Writes `failed.json`: one flat object that says which run failed, why (`error`) and when (`time`, UTC).

    It counts as long as there is no `metrics.json`.

    Args:
        directory: The run directory.
        hash: The hash of the config.
        config: The resolved config as plain dictionaries.
        error: What went wrong, on one line.
    """
    keys = ("normal_class", "pollution", "label_ratio", "n_train", "seed")
    Path(directory).mkdir(parents=True, exist_ok=True)
    failure = {
        "config_hash": hash,
        "dataset": config["dataset"]["name"],
        "method": config["method"]["name"],
        **{key: config[key] for key in keys},
        "error": error,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(Path(directory) / "failed.json", failure)


def forget_failure(directory: str | os.PathLike[str]) -> None:
    """Removes `failed.json` of a run that has come to its end after all."""
    (Path(directory) / "failed.json").unlink(missing_ok=True)


def _write_csv(path: str | os.PathLike[str], header: list[str], rows: Iterable[Iterable[object]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _column(values: ArrayLike | None, kind: type, length: int) -> list[Any]:
    """A column as Python numbers, which are written with all their digits; empty cells where nothing is known."""
    return [""] * length if values is None else np.asarray(values).astype(kind).tolist()


def write_scores(
    path: str | os.PathLike[str], index: ArrayLike, score: ArrayLike, is_anomaly: ArrayLike | None
) -> None:
    """Writes `scores.csv`: index into the test part, score (higher is more anomalous), truth (1 anomaly, 0 normal).

    Args:
        path: The file.
        index: (n,).
        score: (n,).
        is_anomaly: (n,), or None where nobody knows it: the column is then empty.
    """
    index = _column(index, int, 0)
    columns = [index, _column(score, float, 0), _column(is_anomaly, int, len(index))]
    _write_csv(path, ["index", "score", "is_anomaly"], zip(*columns, strict=True))


def write_audit(
    path: str | os.PathLike[str],
    index: ArrayLike,
    suspicion: ArrayLike,
    pseudo_label: ArrayLike | None,
    is_anomaly: ArrayLike | None,
) -> None:
    """Writes `audit.csv`: the unlabeled training samples, the most suspicious first (rank 1; equal ones by index).

    Args:
        path: The file.
        index: Index into the training part, (n,).
        suspicion: Higher is more suspicious, (n,).
        pseudo_label: +1 or -1, (n,), or None for a method that has none.
        is_anomaly: The truth, (n,), or None where nobody knows it.
    """
    order = np.lexsort((np.asarray(index), -np.asarray(suspicion, dtype=np.float64)))
    n = len(order)
    columns = [
        np.asarray(index)[order].tolist(),
        np.asarray(suspicion)[order].tolist(),
        _column(None if pseudo_label is None else np.asarray(pseudo_label)[order], int, n),
        list(range(1, n + 1)),
        _column(None if is_anomaly is None else np.asarray(is_anomaly)[order], int, n),
    ]
    _write_csv(path, ["index", "suspicion", "pseudo_label", "rank", "is_anomaly"], zip(*columns, strict=True))


def write_meta_gradient(
    path: str | os.PathLike[str],
    minus_meta_gradient: ArrayLike,
    position: ArrayLike,
    index: ArrayLike,
    is_anomaly: ArrayLike | None,
) -> None:
    """Writes `meta_gradient.npz`: what the first T steps found in their batches of up to n unlabeled samples.

    In it: `iteration` (T,), from 1; `index` into the training part, `minus_meta_gradient` -M = ŷ|M| (positive = normal)
    and `is_anomaly`, the truth (1 anomaly, 0 normal, -1 unknown), each (T, n). A batch of fewer than n samples is
    filled up with index -1, NaN and -1.

    Args:
        path: The file.
        minus_meta_gradient: -M, (steps, n); steps of which nothing is known are left out.
        position: Positions among the unlabeled samples, (steps, n), -1 for none.
        index: Indices of the unlabeled samples into the training part, (N,).
        is_anomaly: The truth of the unlabeled samples, (N,), or None where nobody knows it.
    """
    position = np.asarray(position)
    known = (position >= 0).any(axis=1)
    position = position[known]
    truth = np.full(np.shape(index), -1) if is_anomaly is None else np.asarray(is_anomaly)
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary,
            iteration=np.flatnonzero(known).astype(np.int32) + 1,
            index=np.where(position >= 0, np.asarray(index)[position], -1).astype(np.int32),
            minus_meta_gradient=np.asarray(minus_meta_gradient)[known],
            is_anomaly=np.where(position >= 0, truth[position], -1).astype(np.int8),
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a bare checkout
        return ""


def _commit() -> str:
    """The commit of the checkout that this file is part of; '' if there is none.

    It ends with `-dirty` if code or configuration were edited since. Results that were are no matter.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a wheel inside somebody else's checkout is not of that commit
        edited = git("diff", "--name-only", "HEAD", "--", ".", "../conf")
        return git("rev-parse", "HEAD") + "-dirty" * bool(edited)
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def environment(device: object = "cpu") -> dict[str, str]:
    """Where a run happened, for `metrics.json`.

    Args:
        device: The torch device that it ran on.

    Returns:
        `version/*`, `device` (its product name), `commit` (see `_commit`) and `platform`.
    """
    import torch  # here, since `--help` needs nothing of it

    on_gpu = str(device).startswith("cuda")
    return {
        "version/python": platform.python_version(),
        "version/torch": torch.__version__,
        **{f"version/{package}": _version(package) for package in ("pytorch_lightning", "elite_pl")},
        "device": torch.cuda.get_device_name(torch.device(str(device))) if on_gpu else _cpu_name(),
        "commit": _commit(),
        "platform": platform.platform(),
    }
