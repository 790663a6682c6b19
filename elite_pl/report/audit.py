"""The suspicions of a run, read back from its directory together with the samples; no file in it can run code."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.config import instantiate
from elite_pl.data.arrays import Arrays
from elite_pl.data.sources.torchvision_sets import copy_of, official_files
from elite_pl.data.sources.user_data import some
from elite_pl.data.splits import NORMAL, Split
from elite_pl.errors import InputError, input_errors, one_line
from elite_pl.files import with_formula
from elite_pl.runs.results import read_metrics
from elite_pl.studies.read import Run

SOURCES = ("digits", "image_folder", "npy", "npz", "table", "torchvision_set")  # all that a configuration may call
FOLDER, TABLE = "elite_pl.data.image_folder", "elite_pl.data.table"


@dataclass(frozen=True, eq=False)
class Audit:
    """The unlabeled training samples, the most suspicious first.

    Attributes:
        index: Of each in the training set, (n,).
        suspicion: Higher is more suspicious, (n,).
        probability: Of an anomaly, in [0, 1], (n,); NaN where the run has none.
        flagged: Whether the run's verdict is that it is an anomaly, (n,) bool; None if it has no verdicts.
        nearest: Of each the nearest labeled normal sample and the nearest anomaly, as indices of the training set, -1
            for none, (n, 2).
        truth: Whether it is an anomaly, (n,) bool; None where the truth is unknown.
    """

    index: np.ndarray
    suspicion: np.ndarray
    probability: np.ndarray
    flagged: np.ndarray | None
    nearest: np.ndarray
    truth: np.ndarray | None

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class AuditedRun:
    """A finished run with its data.

    Attributes:
        directory: Its run directory.
        metrics: The content of its `metrics.json`.
        source: The node of its data source: `_target_` and arguments.
        arrays: The data.
        split: Which of them were unlabeled and labeled.
        audit: Its suspicions.
        changed: One line on how the data differ from those of the run; empty if they do not.
    """

    directory: Path
    metrics: dict[str, Any]
    source: dict[str, Any]
    arrays: Arrays
    split: Split
    audit: Audit
    changed: str

    @property
    def column(self) -> str:
        """The column that names samples in a file of labels: path, id or index."""
        return "index" if self.arrays.ids_train is None else self.arrays.id_name

    def name(self, index: int) -> str:
        """The name of a training sample."""
        return str(index) if self.arrays.ids_train is None else str(self.arrays.ids_train[index])


def read_run(directory: Path) -> AuditedRun:
    """Reads a run directory, and loads its data anew.

    Args:
        directory: The run directory. Relative paths in its configuration are taken from the working directory.

    Raises:
        InputError: If it is not a run, is unfinished or damaged, or its data are gone or have changed.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "no such directory"
        of_run = (directory.parent / "metrics.json").is_file()
        right = f"name the run directory, {directory.parent}" if of_run else "expected the directory of a run"
        raise InputError(f"{directory}: {what}; {right}")
    if not (directory / "metrics.json").is_file():
        inside = next((path.parent for path in sorted(directory.rglob("metrics.json"))), None)
        right = f"such as {inside}" if inside else "or let this run finish"
        raise InputError(f"{directory}: is no finished run (it has no metrics.json); name a run directory, {right}")
    with input_errors(str(directory / "metrics.json"), kinds=(ValueError,)):
        metrics = read_metrics(directory / "metrics.json")
    source = _source(directory)
    split, ids = _split(directory / "splits.npz")
    arrays = _data(directory, source)
    changed = _changed(directory, metrics, arrays, ids)
    places = {str(i if ids is None else ids[i]): i for i in split.labeled.tolist()}
    with input_errors(str(directory / "audit.csv"), kinds=(ValueError, csv.Error)):
        audit = _audit(directory / "audit.csv", split, places)
    return AuditedRun(directory, metrics, source, arrays, split, audit, changed)


def _source(directory: Path) -> dict[str, Any]:
    """The source in `config.yaml`: one of ours, with plain values, so that nothing else can be called.

    Raises:
        InputError: If it is something else.
    """
    prefix = "dataset.source."
    flat = Run(directory, {}, "").config
    node = renamed({key.removeprefix(prefix): flat[key] for key in flat if key.startswith(prefix)}, PUBLIC)
    target, path = node.get("_target_"), directory / "config.yaml"
    if target not in {f"elite_pl.data.{name}" for name in SOURCES}:
        raise InputError(
            f"{path}: dataset.source._target_={target}: is no data source of elite_pl; {', '.join(SOURCES)}"
        )
    for key, value in node.items():
        values = value if isinstance(value, list) else [value]
        if "." in key or not all(isinstance(one, str | int | float | None) for one in values):
            raise InputError(f"{path}: dataset.source.{key}: is no plain value, as training writes it")
    if target == FOLDER:  # where training keeps it, rather than wherever the file says
        node["cache"] = str(Path(*directory.absolute().parts[:-4]) / "cache")
    return node


def _data(directory: Path, source: dict[str, Any]) -> Arrays:
    """The data of a run.

    Raises:
        InputError: If they cannot be read.
    """
    if source["_target_"] == "elite_pl.data.torchvision_set":  # which would download what is gone
        name, root = str(source.get("name")), str(source.get("root"))
        if not official_files(name, root) and not copy_of(name, root):
            raise InputError(f"{directory}: its data are gone: dataset.root={root} has no files of {name}")
    try:
        return instantiate("dataset.source", source, Arrays)()
    except InputError as error:
        raise InputError(f"{directory}: its data cannot be read again: {one_line(error)}") from error


def _changed(directory: Path, metrics: dict[str, Any], arrays: Arrays, ids: np.ndarray | None) -> str:
    """Describes how the data differ from those of the run, if samples of the same names are present.

    Raises:
        InputError: If they are other samples.
    """
    recorded = metrics.get("data/fingerprint")
    if recorded in (None, arrays.fingerprint):
        return ""
    line = f"{directory}: the data have changed since (fingerprint {arrays.fingerprint}, then {recorded})"
    if ids is None or arrays.ids_train is None or not np.array_equal(ids, arrays.ids_train):
        raise InputError(f"{line}, so it is unclear which samples are meant; train again")
    return f"{line}: the same names, with other labels or contents"


def _split(path: Path) -> tuple[Split, np.ndarray | None]:
    """The split of a run, and what its training samples are called.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Split.load(path), arrays["ids_train"] if "ids_train" in arrays.files else None
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        raise InputError(f"{path}: cannot be read ({one_line(error)}); repeat the run") from error


def _audit(path: Path, split: Split, labeled: dict[str, int]) -> Audit:
    """Reads `audit.csv`, of this or an earlier version.

    Raises:
        ValueError: If it is damaged.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, strict=True))
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    if absent := [name for name in ("index", "suspicion") if name not in header]:
        raise ValueError(f"is damaged: it has no column {absent[0]}; repeat the run")
    if ragged := [i for i, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise ValueError(f"is damaged: line {ragged[0]} does not have {len(header)} values; repeat the run")

    def column(name: str, kind: Callable[[str], Any], otherwise: Any = None) -> Any:
        """A column that is there and not empty, else what stands for it."""
        if name not in header:
            return otherwise
        texts = [row[header.index(name)] for row in rows]
        if not any(texts):
            return otherwise
        try:
            return np.array([kind(text) for text in texts])
        except ValueError as error:
            raise ValueError(f"is damaged: column {name} ({one_line(error)}); repeat the run") from None

    index = column("index", int)
    if index is None or not np.array_equal(np.sort(index), split.unlabeled):
        raise ValueError("is damaged: it does not hold the unlabeled samples of splits.npz; repeat the run")
    suspicion = column("suspicion", float, np.full(len(rows), np.nan))
    if not np.isfinite(suspicion).all():
        raise ValueError("is damaged: column suspicion holds what is no number; repeat the run")
    verdict = column("verdict", str, column("pseudo_label", lambda text: "anomaly" if int(text) < 0 else "normal"))
    truth = column("is_anomaly", int)

    def place(name: str) -> int:
        return labeled.get(name, labeled.get(with_formula(name), -1))

    nearest = [column(f"nearest_{kind}", place, np.full(len(rows), -1)) for kind in ("normal", "anomaly")]
    return Audit(
        index=index,
        suspicion=suspicion,
        probability=column("probability", lambda text: float(text or "nan"), np.full(len(rows), np.nan)),
        flagged=None if verdict is None else verdict == "anomaly",
        nearest=np.stack(nearest, axis=1),
        truth=None if truth is None else truth == 1,
    )


# ------------------------------------------------------------------------------------------------- what is done with it


def kept(run: AuditedRun, keep: Path | None) -> list[tuple[int, str]]:
    """The cleaned training set: the labeled normal samples, and the unlabeled ones that stay.

    Args:
        run: The run.
        keep: A list of the samples that stay, as the gallery saves it; None: those whose verdict is not anomaly.

    Returns:
        The index of each, ascending, and why it is kept.

    Raises:
        InputError: If the list cannot be read, or names what is not there.
    """
    by = dict.fromkeys(run.split.labeled[run.split.labeled_y == NORMAL].tolist(), "label")
    if keep is None:
        flagged = np.zeros(len(run.audit), dtype=bool) if run.audit.flagged is None else run.audit.flagged
        by |= dict.fromkeys(run.audit.index[~flagged].tolist(), "verdict")
    else:
        with input_errors(f"--keep {keep}", kinds=(ValueError, OSError)):
            there = {*by, *run.audit.index.tolist()}
            by |= {i: "keep list" for i in _keep_list(run, keep, there) if i not in by}
    return sorted(by.items())


def _keep_list(run: AuditedRun, path: Path, there: set[int]) -> list[int]:
    """The indices in a keep list, all of which are there.

    Raises:
        ValueError: If it is none, or names others.
    """
    right = f"expected a CSV file with a column index{'' if run.column == 'index' else f' or {run.column}'}"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot be read ({one_line(error)}); {right}") from None
    except OSError as error:
        raise ValueError(f"{(error.strerror or one_line(error)).lower()}; {right}") from None
    header = rows[0] if rows else []
    key = next((name for name in ("index", run.column, "path", "id") if name in header), None)
    if key is None or (key != "index" and run.arrays.ids_train is None):
        raise ValueError(f"its first line is {','.join(header)[:80] or 'empty'}; {right}")
    if others := [name for name in header if name not in ("index", "path", "id", "kept_by")]:
        told = f"its column {others[0]} tells nothing here, where every sample that is named stays"
        raise ValueError(f"{told}; {right}, and labels belong in dataset.labels_file")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"row {ragged[0]} does not have {len(header)} values, as the first line does")
    if len(rows) == 1:
        raise ValueError("names no sample; expected a line for each that stays")
    places: dict[str, list[int]] = {}
    for i in there:
        places.setdefault(str(i) if key == "index" else run.name(i), []).append(i)
    names = [row[header.index(key)] for row in rows[1:]]
    found = [places.get(name) or places.get(with_formula(name)) for name in names]
    if strange := [name for name, place in zip(names, found, strict=True) if place is None]:
        raise ValueError(f"{len(strange)} of {len(names)} are no unlabeled or normal training samples: {some(strange)}")
    return [i for place in found for i in place or ()]


def precision_at(truth: np.ndarray, k: int) -> float:
    """The share of anomalies among the first k of samples that are sorted by suspicion."""
    return float(truth[:k].mean())


def against_truth(audit: Audit) -> Sequence[str]:
    """Returns lines on how well the suspicion ranks the hidden anomalies; none where the truth is unknown."""
    if audit.truth is None or not 0 < (hidden := int(audit.truth.sum())) < len(audit):
        return []
    import torch

    from elite_pl.algorithm.metrics import roc_auc

    auroc = roc_auc(torch.as_tensor(audit.suspicion), torch.as_tensor(audit.truth))
    tops = dict.fromkeys(k for k in (50, hidden) if k <= len(audit))
    precisions = [f"{100 * precision_at(audit.truth, k):.1f} % of the first {k}" for k in tops]
    return [
        f"{hidden} of {len(audit)} unlabeled samples are anomalies ({100 * hidden / len(audit):.1f} %)",
        f"suspicion: ROC AUC {100 * auroc:.1f} %; anomalies are {', '.join(precisions)}",
    ]
