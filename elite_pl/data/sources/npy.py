"""A user's own .npy files, which stay on disk and are read by index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from elite_pl.annotations import checked
from elite_pl.data.arrays import Arrays, channels_last, check_finite, make_arrays, to_labels, to_samples
from elite_pl.data.rows import Rows
from elite_pl.data.sources.user_data import (
    Fraction,
    Labels,
    check_classes,
    check_tested,
    check_unlabeled,
    existing,
    known,
    relabeled,
)
from elite_pl.data.splits import stratified
from elite_pl.errors import InputError, input_errors, one_line

RIGHT = "expected a file that numpy.save writes"


@checked
def npy(
    path: str,
    labels_path: str | None,
    test_path: str | None,
    test_labels_path: str | None,
    labels: Labels,
    test_fraction: Fraction,
    labels_file: str | None = None,
) -> Arrays:
    """Loads samples and labels from files of one array each; samples stay in their file, however many there are.

    Vectors are (n, D) of any real type, images as in `npz`.

    Args:
        path: Of the samples.
        labels_path: Of their labels, (n,); None if none is labeled.
        test_path: Of samples to test on; None for none.
        test_labels_path: Of their labels.
        labels: "known": 1 or "normal", -1 or "anomaly", 0 or "" for unlabeled. "classes": ids or names of classes.
        test_fraction: With labels="classes" and no `test_path`: share of each class that is put aside for the test.
            Both parts are then copied into memory.
        labels_file: With labels="known": a CSV file with columns index and label that changes labels of the training
            part, see `user_data.relabeled`; None for none.

    Returns:
        The arrays, named after the file.

    Raises:
        InputError: If a file is not as described.
    """
    if labels_path is None and labels == "classes":
        raise InputError("dataset.labels_path=null: dataset.labels=classes takes the classes from there")
    if labels_file is not None and labels == "classes":
        raise InputError(f"dataset.labels_file={labels_file}: is for dataset.labels=known")
    if (test_path is None) != (test_labels_path is None):
        key = "test_path" if test_path is None else "test_labels_path"
        raise InputError(f"dataset.{key}=null: dataset.test_path and dataset.test_labels_path go together")
    x, raw_shape = _samples("path", path)
    y = np.zeros(len(x), dtype=np.int64) if labels_path is None else _labels("labels_path", labels_path, labels, len(x))
    if labels == "classes":
        with input_errors(f"dataset.labels_path={labels_path}"):
            check_classes("the array", y)
    picked = None
    if labels_file is not None:
        y, picked = relabeled(y, None, labels_file, "samples")
    if test_path is not None and test_labels_path is not None:
        x_test, _ = _samples("test_path", test_path)
        y_test = _labels("test_labels_path", test_labels_path, labels, len(x_test))
    elif labels == "classes":
        in_train, in_test = stratified(y, test_fraction)
        if not len(in_test):
            raise InputError(f"dataset.labels_path={labels_path}: every class has one sample only; give two or more")
        x, y, x_test, y_test = x[in_train], y[in_train], x[in_test], y[in_test]
    else:
        x_test, y_test = x[:0], y[:0]
    if labels == "known":
        with input_errors(f"dataset.path={path}" if labels_path is None else f"dataset.labels_path={labels_path}"):
            check_unlabeled(y, "samples")
        with input_errors(f"dataset.test_labels_path={test_labels_path}"):
            check_tested(y_test, "samples")
    with input_errors(f"dataset.path={path}"):
        arrays = make_arrays(Path(path).stem, x, y, x_test, y_test, labels=labels, raw_shape=raw_shape)
    return replace(arrays, picked_train=picked)


def load_array(path: str, on_disk: bool) -> np.ndarray:
    """The array in a file.

    Args:
        path: As it was typed.
        on_disk: Whether it stays there, memory-mapped.

    Raises:
        ValueError: If there is no such file, or nothing that can be read without running what is in it.
    """
    file = existing(path, RIGHT)
    try:
        with np.errstate(over="ignore"):  # of a size that nothing has, which is refused below
            array = np.load(file, mmap_mode="r" if on_disk else None, allow_pickle=False)
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        if "Python objects" in str(error) or "Object arrays" in str(error):
            raise ValueError("holds Python objects; expected one array of numbers without gaps") from None
        raise ValueError(f"is not a .npy file, or is damaged{reason(error)}; {RIGHT}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("is an npz file; dataset=npz reads it")
    return array


def reason(error: Exception) -> str:
    """What NumPy says of a file, in brackets; nothing where it advises to unpickle it, which can run code."""
    return "" if "pickle" in str(error) else f" ({one_line(error)})"


def _samples(key: str, path: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Samples, memory-mapped, once each of them has been looked at, and the shape of one as it came."""
    with input_errors(f"dataset.{key}={path}"):
        x = load_array(path, on_disk=True)
        if 0 in x.shape or x.ndim < 2:
            raise ValueError(f"has shape {x.shape}; expected (n, D) vectors or (n, H, W[, C]) images")
        to_samples("the array", x[:1])
        for rows in Rows(x).slices():
            to_samples("the array", x[rows])
        axes_in_order = x.transpose(0, 3, 1, 2) if channels_last("the array", x) else x[:, None] if x.ndim == 3 else x
        return axes_in_order, x.shape[1:]


def _labels(key: str, path: str, labels: str, n: int) -> np.ndarray:
    """The labels of n samples."""
    with input_errors(f"dataset.{key}={path}"):
        y = load_array(path, on_disk=False)
        check_finite("the array", y)
        y = to_labels("the array", y)
        if len(y) != n:
            raise ValueError(f"holds {len(y)} labels for {n} samples; expected one label per sample")
        if labels == "known" and y.dtype.kind == "U":
            return known("the array", y.tolist())
        if labels == "known":
            known("the array", np.unique(y).astype(np.str_).tolist())  # raises for what is none
        return y
