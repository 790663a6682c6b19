"""The files of a run directory, and the check that a run is finished."""

from __future__ import annotations

import os
import reprlib
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elite_pl.errors import InputError, full_disk
from elite_pl.files import atomic_write, csv_text, parse_json, read_text, write_json

if TYPE_CHECKING:
    from elite_pl.runs.audit import Audit
    from elite_pl.runs.decision import Doubts
    from elite_pl.runs.spec import RunSpec  # a report needs no Hydra

AUROC = "test/auroc"  # the metric that a study is about
AVERAGE_PRECISION = "test/average_precision"
AUROC_SEEN = "test/auroc_seen"  # the mean over kinds of anomalies that a label shows
AUROC_UNSEEN = "test/auroc_unseen"  # and over the others
ROWS = 10_000  # of a table, at a time
Column = Callable[[slice], list[Any]]  # some rows of a column of a table
# Prefixes of the metrics that a report calculates with.
_NUMBERS = ("test/", "audit/", "train/seconds", "train/margin", "data/test", "data/pollution_unlabeled")


def check_metrics(metrics: object) -> dict[str, Any]:
    """Checks the metrics of a finished run, which come from an untrusted file.

    Args:
        metrics: The content of `metrics.json` or of a line of a file of cells.

    Returns:
        The same: flat, finite, with numbers where numbers belong, and with a ROC AUC if there is a test set.

    Raises:
        ValueError: If it is not like that.
    """
    if not isinstance(metrics, dict):
        raise ValueError("it holds no metrics")
    for key, value in metrics.items():
        finite = not isinstance(value, int | float) or abs(value) < 1e300  # that of sums, too
        if isinstance(value, dict | list | tuple) or not finite:
            raise ValueError(f"metrics are flat and finite, and {key} is {reprlib.repr(value)}")
        if key.startswith(_NUMBERS) and not isinstance(value, int | float):
            raise ValueError(f"{key} is {reprlib.repr(value)}, and must be a number")
    auroc = metrics.get(AUROC)
    no_test_part = AUROC not in metrics and metrics.get("data/test") == 0
    if not no_test_part and (auroc is None or isinstance(auroc, bool) or not 0 <= auroc <= 1):
        raise ValueError(f"{AUROC} is {'missing' if auroc is None else auroc}, and must be a number in 0..1")
    return metrics


def read_metrics(path: Path) -> dict[str, Any]:
    """Reads and checks a `metrics.json`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not that of a finished run.
    """
    return check_metrics(parse_json(read_text(path)))


def finished(directory: str | os.PathLike[str], hash: str) -> dict[str, Any] | None:
    """The metrics of the run in `directory` if it came to its end with the config of this hash, else None."""
    try:
        metrics = read_metrics(Path(directory) / "metrics.json")
    except (OSError, ValueError):  # not there, cut off, not those of a run
        return None
    return metrics if metrics.get("config_hash") == hash else None


def check_writable(directory: str | os.PathLike[str], key: str = "output_dir=") -> None:
    """Makes sure that `directory` can be made and written to, and leaves nothing behind.

    Args:
        directory: The directory.
        key: The key after which it is typed, for the message.

    Raises:
        InputError: If it cannot.
        OSError: If the disk is full.
    """
    place = Path(directory).absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        # The permission bits do not tell (root, read-only and network file systems): try it, by a file without a name.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        if full_disk(error):
            raise OSError(error.errno, error.strerror, str(directory)) from None
        reason = "is not a directory" if not place.is_dir() else f"cannot be written to ({error.strerror})"
        raise InputError(f"{key}{directory}: {place} {reason}; name a directory that you may write to") from None


# ------------------------------------------------------------------------------------------------ what a run leaves


def write_metrics(directory: str | os.PathLike[str], hash: str, metrics: Mapping[str, Any]) -> None:
    """Writes `metrics.json`, the mark of a finished run, so call it last: one flat object, with its `config_hash`.

    Raises:
        ValueError: If they would not count as those of a finished run, see `check_metrics`.
    """
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metrics.items()}
    write_json(Path(directory) / "metrics.json", check_metrics({"config_hash": hash, **plain}))


def write_failure(spec: RunSpec, error: str) -> None:
    """Writes `failed.json`: one flat object that says which run failed, why (`error`) and when (`time`, UTC).

    It counts as long as there is no `metrics.json`.

    Args:
        spec: The run.
        error: The error, on one line.
    """
    config = spec.plain
    keys = ("normal_class", "pollution", "label_ratio", "n_train", "seed")
    spec.directory.mkdir(parents=True, exist_ok=True)
    failure = {
        "config_hash": spec.hash,
        "dataset": config["dataset"]["name"],
        "method": config["method"]["name"],
        **{key: config[key] for key in keys},
        "error": error,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(spec.directory / "failed.json", failure)


def forget_failure(directory: str | os.PathLike[str]) -> None:
    """Removes `failed.json` of a run that has come to its end after all."""
    (Path(directory) / "failed.json").unlink(missing_ok=True)


def _write_csv(path: str | os.PathLike[str], columns: Mapping[str, Column], length: int) -> None:
    """Writes a table some rows at a time: as Python objects all of them would take ten times their memory."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_text(columns, []))
        for start in range(0, length, ROWS):
            part = slice(start, min(start + ROWS, length))
            rows = zip(*(column(part) for column in columns.values()), strict=True)
            file.write(csv_text(next(rows), rows))


def _column(values: ArrayLike | None, kind: type | None = None) -> Column:
    """A column as Python numbers, which are written with all their digits; empty cells where nothing is known."""
    if values is None:
        return lambda part: [""] * (part.stop - part.start)
    array = np.asarray(values, dtype=kind)
    return lambda part: array[part].tolist()


def _index(index: NDArray[Any], ids: NDArray[Any] | None, id_name: str) -> dict[str, Column]:
    """The first column of a table, an index, with the ids beside it if there are any."""
    columns = {"index": _column(index, int)}
    return columns if ids is None else columns | {id_name: lambda part: ids[index[part]].tolist()}


def write_scores(
    path: str | os.PathLike[str],
    index: ArrayLike,
    score: ArrayLike,
    is_anomaly: ArrayLike | None,
    ids: np.ndarray | None = None,
    id_name: str = "id",
) -> None:
    """Writes `scores.csv`: index into the test set, score (higher is more anomalous), truth (1 anomaly, 0 normal).

    Args:
        path: The file.
        index: (n,).
        score: (n,).
        is_anomaly: (n,), or None where it is unknown: the column is then empty.
        ids: Names of the samples of the test set, or None: there is then no column of names after the index.
        id_name: What this column is called.
    """
    index = np.asarray(index)
    columns = {"score": _column(score, float), "is_anomaly": _column(is_anomaly, int)}
    _write_csv(path, _index(index, ids, id_name) | columns, len(index))


def write_audit(
    path: str | os.PathLike[str],
    index: ArrayLike,
    audit: Audit,
    is_anomaly: ArrayLike | None,
    ids: np.ndarray | None = None,
    id_name: str = "id",
) -> None:
    """Writes `audit.csv`: the unlabeled training samples, the most suspicious first (rank 1; equal ones by index).

    Args:
        path: The file.
        index: Index into the training set, (n,).
        audit: The suspicions.
        is_anomaly: The truth, (n,), or None where it is unknown.
        ids: Names of the samples of the training set, or None: there is then no column of names after the index.
        id_name: What this column is called.
    """
    suspicion = np.asarray(audit.suspicion, dtype=np.float64)
    order = np.lexsort((np.asarray(index), -suspicion))

    def column(values: ArrayLike | None, kind: type | None = None) -> Column:
        return _column(None if values is None else np.asarray(values)[order], kind)

    def named(places: NDArray[Any]) -> Column:
        """Returns the names of labeled samples, empty where there is none."""
        return lambda part: [
            "" if place < 0 else place if ids is None else ids[place] for place in places[order[part]].tolist()
        ]

    table = _index(np.asarray(index)[order], ids, id_name) | {
        "suspicion": column(audit.suspicion),
        "probability": column(audit.probability, float),
        "verdict": lambda part: np.where(np.asarray(audit.flagged)[order[part]], "anomaly", "normal").tolist(),
        "rank": _column(np.arange(1, len(order) + 1)),
        "nearest_normal": named(audit.nearest[:, 0]),
        "nearest_anomaly": named(audit.nearest[:, 1]),
    }
    if audit.meta_gradient is not None:
        table["meta_gradient"] = column(audit.meta_gradient, float)
    table["is_anomaly"] = column(is_anomaly, int)
    _write_csv(path, table, len(order))


def write_labels(
    path: str | os.PathLike[str],
    index: ArrayLike,
    label: ArrayLike,
    doubts: Doubts,
    ids: np.ndarray | None = None,
    id_name: str = "id",
) -> None:
    """Writes `labeled.csv`: the labeled training samples, those first whose label is most in doubt.

    Args:
        path: The file.
        index: Index into the training set, (m,).
        label: 1 normal, -1 anomaly, (m,).
        doubts: Of the labels.
        ids: As in `write_audit`.
        id_name: As in `write_audit`.
    """
    order = np.lexsort((np.asarray(index), -np.asarray(doubts.contradiction)))
    columns = {
        "label": _column(np.asarray(label)[order], int),
        "share_below": _column(np.asarray(doubts.share)[order], float),
        "contradiction": _column(np.asarray(doubts.contradiction)[order], float),
    }
    _write_csv(path, _index(np.asarray(index)[order], ids, id_name) | columns, len(order))


def write_meta_gradient(
    path: str | os.PathLike[str],
    minus_meta_gradient: ArrayLike,
    position: ArrayLike,
    index: ArrayLike,
    is_anomaly: ArrayLike | None,
) -> None:
    """Writes `meta_gradient.npz`: meta-gradients of the first T steps in their batches of up to n unlabeled samples.

    In it: `iteration` (T,), from 1; `index` into the training set, `minus_meta_gradient` -M = ŷ|M| (positive = normal)
    and `is_anomaly`, the truth (1 anomaly, 0 normal, -1 unknown), each (T, n). A batch of fewer than n samples is
    filled up with index -1, NaN and -1.

    Args:
        path: The file.
        minus_meta_gradient: -M, (steps, n); steps of which nothing is known are left out.
        position: Positions among the unlabeled samples, (steps, n), -1 for none.
        index: Indices of the unlabeled samples into the training set, (N,).
        is_anomaly: The truth of the unlabeled samples, (N,), or None where it is unknown.
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
