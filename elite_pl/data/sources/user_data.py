"""Shared by the sources for a user's own data: checks of paths, labels in words, and files of labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np

from elite_pl.annotations import Range
from elite_pl.data.splits import ANOMALY, NORMAL, UNLABELED
from elite_pl.errors import input_errors, one_line
from elite_pl.files import with_formula

Labels = Literal["known", "classes"]
Fraction = Annotated[float, Range("a number between 0 and 1", lambda value: 0 < value < 1)]
MEANING = {
    **dict.fromkeys(("normal", "1", "+1", "1.0"), NORMAL),
    **dict.fromkeys(("anomaly", "-1", "-1.0"), ANOMALY),
    **dict.fromkeys(("", "unlabeled", "0", "0.0"), UNLABELED),
}
RIGHT = "expected normal, anomaly or nothing, or 1, -1 and 0"
PICKED = {"yes": True, "": False}


def existing(path: str, right: str, folder: bool = False) -> Path:
    """The path of a file or folder that is there.

    Args:
        path: As it was typed.
        right: A right value, for the message.
        folder: Whether it is to be a folder.

    Raises:
        ValueError: If it is not there, or something else is.
    """
    found = Path(path).expanduser()
    if found.is_dir() if folder else found.is_file():
        return found
    if found.exists():
        what = "is a folder" if found.is_dir() else "is a file" if found.is_file() else "is neither a file nor a folder"
    elif os.path.lexists(found):
        what = "is a symbolic link that leads nowhere"
    else:
        what = "no such folder" if folder else "no such file"
    raise ValueError(f"{what}; {right}")


def some(names: Sequence[str], limit: int = 5) -> str:
    """Lists a few of many names, for a message."""
    shown = [name if len(name) <= 80 else f"{name[:79]}…" for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def known(what: str, words: Iterable[str | None]) -> np.ndarray:
    """Labels as people write them: normal, anomaly or nothing, or 1, -1, 0; case does not matter.

    Args:
        what: Their name in the message.
        words: The labels as text, None for nothing.

    Returns:
        +1 normal, -1 anomaly, 0 unlabeled, (n,) int64.

    Raises:
        ValueError: If there are others; lists them.
    """
    found = [(word or "").strip().lower() for word in words]
    if strange := sorted(set(found) - set(MEANING)):
        raise ValueError(f"{what} holds {some(strange)}; {RIGHT}")
    return np.array([MEANING[word] for word in found], dtype=np.int64)


def check_classes(what: str, y: np.ndarray) -> None:
    """Refuses ids of classes that look like known labels: unlabeled samples would be a class of their own.

    Args:
        what: Their name in the message.
        y: Of the training samples, (n,).

    Raises:
        ValueError: If there are -1 and 0, and nothing else but 1.
    """
    found = [] if y.dtype.kind == "U" else np.unique(y).tolist()
    if {ANOMALY, UNLABELED} <= set(found) <= {NORMAL, ANOMALY, UNLABELED}:
        shown = "1, -1 and 0" if NORMAL in found else "-1 and 0"
        right = "dataset.labels=known reads them so; classes need names, or ids from 0"
        raise ValueError(f"{what} holds {shown}, as known labels do (1 normal, -1 anomaly, 0 unlabeled); {right}")


def check_unlabeled(y: np.ndarray, samples: str) -> None:
    """Refuses training labels that leave nothing to learn from.

    Args:
        y: +1, -1, 0, (n,).
        samples: The word for samples in the message.

    Raises:
        ValueError: If fewer than 2 are unlabeled.
    """
    if (unlabeled := np.count_nonzero(y == UNLABELED)) < 2:
        found = f"{unlabeled} of {len(y)} training {samples} are unlabeled; training needs at least 2"
        hint = "" if unlabeled else "; dataset.labels=classes normal_class=normal hides most of the labels"
        raise ValueError(found + hint)


def check_tested(y: np.ndarray, samples: str) -> None:
    """Refuses test labels that tell nothing.

    Args:
        y: +1, -1, 0, (n,); of length 0 without a test set.
        samples: The word for samples in the message.

    Raises:
        ValueError: If some are unlabeled, or all of one kind.
    """
    if unlabeled := np.count_nonzero(y == UNLABELED):
        raise ValueError(f"{unlabeled} of {len(y)} test {samples} have no label; expected normal or anomaly")
    if len(np.unique(y)) == 1:
        kind = "normal" if y[0] == NORMAL else "anomalous"
        raise ValueError(f"all {len(y)} test {samples} are {kind}; give both kinds, or no test set")


def relabeled(y: np.ndarray, ids: np.ndarray | None, labels_file: str, samples: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, as a file of labels changes them.

    The file is CSV with a column `path` or `id`, or of samples without names `index` (from 0), and a column `label`.
    A column `picked` may say `yes` of samples that got their label because they were suspicious, see
    `Arrays.picked_train`; other columns do not matter. A sample that it does not name keeps its label, and an empty
    label makes a sample unlabeled.

    Args:
        y: The labels so far, (n,).
        ids: Paths or ids of the samples, (n,); None if they have none.
        labels_file: The file.
        samples: The word for samples in the message.

    Returns:
        The labels, and which samples were picked, bool, both (n,).

    Raises:
        InputError: If the file cannot be read, or names what is not there.
    """
    with input_errors(f"dataset.labels_file={labels_file}"):
        keys = ("index",) if ids is None else ("id", "path") if samples == "rows" else ("path", "id")
        given = _read(existing(labels_file, f"expected a CSV file with columns {keys[0]},label"), keys)
        place: dict[str, list[int]] = {}
        for i, name in enumerate(map(str, range(len(y))) if ids is None else ids.tolist()):
            place.setdefault(name, []).append(i)
        given = {name if name in place else with_formula(name): label for name, label in given.items()}
        if strange := [name for name in given if name not in place]:
            raise ValueError(
                f"{len(strange)} of {len(given)} are none of the {samples}: {some(strange)}; "
                f"expected the {keys[0]} of each, such as {next(iter(place))}"
            )
        y, picked = y.copy(), np.zeros(len(y), dtype=bool)
        for name, (label, by_suspicion) in given.items():
            y[place[name]], picked[place[name]] = label, by_suspicion
        return y, picked


def _read(path: Path, allowed: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """The labels in a file, and whether each was picked, by whichever allowed column names the samples in it."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"is no CSV file ({one_line(error)})") from None
    keys = [name for name in allowed if name in header]
    if len(keys) != 1 or "label" not in header or len(set(header)) < len(header):
        raise ValueError(
            f"its first line is {','.join(header)[:80] or 'empty'}; expected {allowed[0]},label, each once"
        )
    if ragged := [line for line, row in rows if len(row) != len(header)]:
        raise ValueError(f"line {ragged[0]} does not have {len(header)} values, as the first line does")
    names, words = ([row[header.index(key)] for _, row in rows] for key in (keys[0], "label"))
    if keys == ["path"]:
        names = [str(PurePosixPath(name.replace("\\", "/"))) for name in names]
    marks = [row[header.index("picked")].strip().lower() for _, row in rows] if "picked" in header else [""] * len(rows)
    if strange := sorted(set(marks) - set(PICKED)):
        raise ValueError(f"column picked holds {some(strange)}; expected yes or nothing")
    labels: dict[str, tuple[int, bool]] = {}
    for (line, _), name, label, mark in zip(rows, names, known("column label", words).tolist(), marks, strict=True):
        if labels.setdefault(name, (label, PICKED[mark]))[0] != label:
            raise ValueError(f"line {line} gives {name} another label than a line before")
    return labels
