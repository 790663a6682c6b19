"""A data set, and the checks that any array goes through before it is one. NumPy only.

The checks raise `ValueError` in words that suit a Python user; a source adds the name of its file.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from elite_pl.data.rows import Rows
from elite_pl.data.splits import describe_classes, known_labels
from elite_pl.errors import InputError, one_line


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set, in memory or memory-mapped, as it is stored: nothing is scaled here.

    Attributes:
        name: Of the data set; part of the identity of a split.
        x_train: (n, D) float32 vectors, or (n, C, H, W) images: uint8 in 0..255 or float32 in [0, 1]. Memory-mapped
            ones may be of other types, see `rows.stored`.
        y_train: (n,) int64, class ids, or labels +1/-1/0 when `labels` is "known".
        x_test: As `x_train`; of length 0 when there is no test set.
        y_test: As `y_train`, without 0.
        class_names: Name of class i at place i, where the data has names.
        labels: "classes" or "known".
        fingerprint: First 16 hex digits of the sha256 over the four arrays.
        ids_train: (n,) unicode, what a person calls the training samples: an id, a path; None where they have no names.
        ids_test: As `ids_train`.
        id_name: What ids are called where they stand in a file: "id", or "path".
        picked_train: (n,) bool, the training samples that a person labeled because they were suspicious. Their labels
            are as good as others to learn from, but tell nothing of how frequent anomalies are. None where none are.
        encoding: How a row of a table becomes a vector, from `Encoding.to_plain`; None for other data.
        notes: Omissions and decisions on the way, a line each, for a person to read before training.
        raw_shape: Of one sample as it came, such as (H, W, C); None where it is kept as it came.
        columns: The names of the features, of a data frame in memory; None where they have none.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None
    labels: str
    fingerprint: str
    ids_train: np.ndarray | None = None
    ids_test: np.ndarray | None = None
    id_name: str = "id"
    picked_train: np.ndarray | None = None
    encoding: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    raw_shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None


def make_arrays(
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    class_names: tuple[str, ...] | None = None,
    labels: str = "classes",
    raw_shape: tuple[int, ...] | None = None,
) -> Arrays:
    """Puts the parts of a data set together, and takes their fingerprint.

    Args:
        name: Of the data set.
        x_train: Samples, as `to_samples` returns them.
        y_train: Labels, as `to_labels` returns them; strings become class names.
        x_test: As `x_train`, of length 0 where there is no test set.
        y_test: As `y_train`.
        class_names: Of integer labels, where they have names.
        labels: `"classes"` or `"known"`.
        raw_shape: Of one sample as it came, such as (H, W, C); None where it is as it came.

    Raises:
        ValueError: If the parts do not go together, or the labels are not what they are said to be.
    """
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        shapes = f"{x_train.dtype} {x_train.shape[1:]} in x_train and {x_test.dtype} {x_test.shape[1:]} in x_test"
        raise ValueError(f"samples are {shapes}; expected both alike")
    if y_train.dtype.kind != y_test.dtype.kind:
        raise ValueError("y_train and y_test are of different kinds; integers, or strings, in both")
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = Counter(class_names).most_common(1)[0][0]
        raise ValueError(f"{twice} is the name of two classes; expected a name for each")
    if labels == "known":
        if y_train.dtype.kind == "U":
            raise ValueError("dataset.labels=known and labels are strings; expected 1, -1 and 0")
        known_labels(y_train, y_test)  # raises for everything that such labels cannot be
    elif y_train.dtype.kind == "U":
        found, y = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
        class_names, y_train, y_test = tuple(found.tolist()), y[: len(y_train)], y[len(y_train) :]
    elif class_names is not None and not (
        min(y_train.min(), y_test.min()) >= 0 and max(y_train.max(), y_test.max()) < len(class_names)
    ):
        right = f"expected 0 to {len(class_names) - 1}"
        raise ValueError(f"labels go beyond the {len(class_names)} names in classes; {right}")
    y_train, y_test = y_train.astype(np.int64), y_test.astype(np.int64)
    digest = hashlib.sha256()
    if not isinstance(x_train, np.memmap):
        x_train, x_test = np.ascontiguousarray(x_train), np.ascontiguousarray(x_test)
    for x, y in ((x_train, y_train), (x_test, y_test)):
        for part, blocks in ((Rows(x), Rows(x).blocks()), (y, [y])):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            for block in blocks:
                digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return Arrays(
        name, x_train, y_train, x_test, y_test, class_names, labels, digest.hexdigest()[:16], raw_shape=raw_shape
    )


def resolve_class(given: int | str, arrays: Arrays, key: str = "normal_class") -> int:
    """Finds a class by its name or id. A name wins; names that are numbers hide the ids.

    Args:
        given: Name or id of a class of the training set (of data with labels="classes").
        arrays: The data.
        key: The configuration key that the message names.

    Returns:
        Its id.

    Raises:
        InputError: No such class; the message lists those there are.
    """
    ids, names = np.unique(arrays.y_train).tolist(), arrays.class_names or ()
    if str(given) in names and (found := names.index(str(given))) in ids:
        return found
    if str(given) not in map(str, ids) or any(name.lstrip("-").isdigit() for name in names):
        there = describe_classes(arrays.y_train, arrays.class_names)
        raise InputError(f"{key}={given}: {arrays.name} has no such class; it has {there}")
    found = int(given)
    if key == "normal_class" and "normal" in names and names[found] != "normal":
        raise InputError(f"{key}={given}: is class {names[found]}; give {key}=normal, or another by its name")
    return found


def to_array(name: str, values: Any) -> np.ndarray:
    """Converts what Python users pass as arrays: NumPy's, a tensor on any device, lists, a data frame.

    Args:
        name: Its name in the message.
        values: Numbers, or labels.

    Raises:
        ValueError: If it is not that.
    """
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (TypeError, ValueError) as error:  # ragged lists, a tensor of bfloat16
        raise ValueError(f"{name} is no array of numbers ({one_line(error)})") from error
    if array.dtype.kind == "O":  # as of a data frame with columns of several types
        with contextlib.suppress(TypeError, ValueError):
            if array.ndim and not any(isinstance(item, str | bytes) for item in array.flat):
                return array.astype(np.float64)
        raise ValueError(f"{name} holds Python objects; expected numbers: fill gaps, and encode text and categories")
    return array


def column_names(values: Any) -> tuple[str, ...] | None:
    """The names of a data frame's columns; None of anything else, or if they are not a word each."""
    names = tuple(getattr(values, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) and len({*names}) == len(names) else None


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuses floats that are NaN or infinite.

    Args:
        name: The name of the array in the message.
        array: Any array.

    Raises:
        ValueError: If there are any.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite; expected finite numbers")


def to_labels(name: str, y: np.ndarray) -> np.ndarray:
    """Labels (n,) or (n, 1) as int64, or as unicode strings.

    Args:
        name: The name of the array in the message.
        y: The labels as they came.

    Raises:
        ValueError: If they are neither whole numbers nor strings, or have another shape.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{name} has shape {y.shape}; expected (n,)")
    if y.dtype.kind in "SU":
        try:
            return y.astype(np.str_)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} holds bytes that are not ASCII; expected strings") from error
    with np.errstate(invalid="ignore"):
        if y.dtype.kind not in "biuf" or (y.astype(np.int64) != y).any():
            raise ValueError(f"{name} ({y.dtype}) does not hold whole numbers; expected integers or strings")
    return y.astype(np.int64)


def to_samples(name: str, x: np.ndarray) -> np.ndarray:
    """Samples as float32 vectors (n, D), or as channels-first images (n, C, H, W) in uint8 or float32.

    Args:
        name: The name of the array in the message.
        x: Vectors (n, D) of any real type, or images (n, H, W), (n, H, W, C) or (n, C, H, W) with C 1 or 3: integers in
            0..255 or floats in [0, 1].

    Raises:
        ValueError: If they are not like that, or not finite.
    """
    x = to_numbers(name, x)
    if channels_last(name, x):
        x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x[:, None] if x.ndim == 3 else x)


def to_numbers(name: str, x: np.ndarray) -> np.ndarray:
    """Samples as `to_samples` has them, but with their axes as they came; arguments and errors as there."""
    check_finite(name, x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of type {x.dtype}; expected integers or floats")
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"{name} has shape {x.shape}; expected (n, D) vectors or (n, H, W[, C]) images")
    if x.ndim == 2:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=min(x.strides) < 0)  # PyTorch takes no array that runs backward
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds values too large for float32; scale them")
        return x
    low, high = x.min(), x.max()
    whole = x.dtype.kind in "iu"
    if low < 0 or high > (255 if whole else 1):
        right = "0 to 255" if whole else "[0, 1]: scale them, or give uint8"
        raise ValueError(f"{name} holds pixels from {low} to {high} in {x.dtype}; expected {right}")
    return x.astype(np.uint8 if whole else np.float32, copy=False)


def channels_last(name: str, x: np.ndarray) -> bool:
    """Returns whether the channels of images are their last axis, told by its length of 1 or 3.

    Raises:
        ValueError: If the second axis could be it as well, or neither can.
    """
    if x.ndim != 4:
        return False
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if first == last:
        fit = "both the second and the last axis are" if first else "neither the second nor the last axis is"
        raise ValueError(f"{name} has shape {x.shape}, ambiguous: {fit} 1 or 3 channels; (n, H, W, C) or (n, C, H, W)")
    return last


def pixels(sample: np.ndarray) -> np.ndarray:
    """An image of a data set, (C, H, W), uint8 or floats in [0, 1], as (H, W, 3) or in gray (H, W) uint8."""
    if sample.dtype.kind == "f":
        sample = (255 * sample.clip(0, 1)).round()
    return sample[0].astype(np.uint8) if len(sample) == 1 else sample.astype(np.uint8).transpose(1, 2, 0)
