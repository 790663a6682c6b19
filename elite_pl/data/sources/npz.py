"""A user's own npz files."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from elite_pl.annotations import checked
from elite_pl.data.arrays import Arrays, check_finite, make_arrays, to_labels, to_samples
from elite_pl.data.sources.user_data import Fraction, Labels, check_classes, relabeled
from elite_pl.data.splits import stratified
from elite_pl.errors import InputError, input_errors, one_line


@checked
def npz(path: str, labels: Labels, test_fraction: Fraction, labels_file: str | None = None) -> Arrays:
    """Loads a user's own data set: `x_train y_train x_test y_test`, or `x y` alone, and optionally `classes` (names).

    Vectors are (n, D) of any real type, taken as float32 as they are. Images are (n, H, W), (n, H, W, C) or
    (n, C, H, W) with C 1 or 3: integers in 0..255, or floats in [0, 1]. Class labels are integers or strings; strings
    become names.

    Args:
        path: Of the file.
        labels: "classes": `y` holds classes, one of which will be normal; "known": +1 normal, -1 anomaly, 0 unlabeled.
        test_fraction: Share of each class that `x y` alone puts aside for the test, with a fixed seed. With
            labels="known" nothing is put aside: `x y` is the training set, and a test set is optional.
        labels_file: With labels="known": a CSV file with columns index and label that changes labels of the training
            part, see `user_data.relabeled`; None for none.

    Returns:
        The arrays, named after the file.

    Raises:
        InputError: The file or an array in it is not as described.
    """
    if not path:
        raise InputError("dataset.path=: must be the path of an npz file")
    if labels_file is not None and labels == "classes":
        raise InputError(f"dataset.labels_file={labels_file}: is for dataset.labels=known")
    file = Path(path).expanduser()
    return read_npz(file, file.stem, labels, test_fraction, labels_file=labels_file)


def read_npz(
    path: Path,
    name: str,
    labels: str,
    test_fraction: float,
    key: str = "dataset.path",
    labels_file: str | None = None,
) -> Arrays:
    """Reads, checks and converts the arrays of `npz`.

    Args:
        path: Of the file.
        name: Of the data set.
        labels: As in `npz`.
        test_fraction: As in `npz`.
        key: The key that names the file, for messages.
        labels_file: As in `npz`.

    Raises:
        InputError: As `npz`.
    """
    with input_errors(f"{key}={path}"), _Reader(path) as reader:
        parted = reader.has("x_train") or reader.has("y_train") or not (reader.has("x") or reader.has("y"))
        train = ("x_train", "y_train") if parted else ("x", "y")
        x_train, y_train, raw_shape = reader.part(*train)
        if labels == "classes":
            check_classes(train[1], y_train)
        x_test, y_test = x_train[:0], y_train[:0]
        if parted and (labels == "classes" or reader.has("x_test") or reader.has("y_test")):
            x, y, _ = reader.part("x_test", "y_test", may_be_empty=labels == "known")
            x_test, y_test = (x, y) if len(x) else (x_test, y_test)
        elif not parted and labels == "classes":
            in_train, in_test = stratified(y_train, test_fraction)
            if not len(in_test):
                raise ValueError("every class of y has one sample only; give two or more, or x_test and y_test")
            x_test, y_test, x_train, y_train = x_train[in_test], y_train[in_test], x_train[in_train], y_train[in_train]
        picked = None
        if labels_file is not None:
            y_train, picked = relabeled(y_train, None, labels_file, "samples")
        names = None
        if labels == "classes" and y_train.dtype.kind == "i" and reader.has("classes"):
            names = tuple(str(one) for one in reader.read("classes").ravel().tolist())
        arrays = make_arrays(name, x_train, y_train, x_test, y_test, names, labels, raw_shape)
    return replace(arrays, picked_train=picked)


class _Reader:
    """An npz file whose every fault is a ValueError that says what would be right."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ValueError("a pipe or a device, which has no end; expected the path of an npz file")
        with ExitStack() as opened:  # NumPy leaves a damaged file open
            try:
                file = np.load(opened.enter_context(open(path, "rb")), allow_pickle=False)
            except FileNotFoundError:
                raise ValueError("no such file; expected the path of an npz file") from None
            except OSError as error:
                reason = error.strerror or one_line(error)
                raise ValueError(f"cannot be read ({reason}); expected the path of an npz file") from error
            except Exception as error:  # whatever the unpacking of a foreign file stumbles over
                raise ValueError("not an npz file; expected one that numpy.savez writes") from error
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array; expected an npz file with x_train, y_train, x_test, y_test")
            self.file, self.opened = file, opened.pop_all()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def has(self, key: str) -> bool:
        return key in self.file.files

    def read(self, key: str) -> np.ndarray:
        if not self.has(key):
            there = ", ".join(self.file.files) or "nothing"
            raise ValueError(f"no array {key}; it holds {there}; expected x_train, y_train, x_test, y_test, or x, y")
        try:
            array = self.file[key]
        except Exception as error:  # as above
            if "allow_pickle" in str(error):
                raise ValueError(f"{key} holds Python objects; expected one array of numbers without gaps") from None
            raise ValueError(f"{key} is damaged ({one_line(error)}); write the file again") from error
        if not isinstance(array, np.ndarray):  # but the bytes of something else
            raise ValueError(f"{key} is no array; expected a file that numpy.savez writes")
        check_finite(key, array)
        return array

    def part(
        self, x_key: str, y_key: str, may_be_empty: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Reads samples and labels of the training or test set, and the shape in which a sample came."""
        x, y = self.read(x_key), to_labels(y_key, self.read(y_key))
        if x.ndim == 0 or len(x) != len(y):
            raise ValueError(f"{x_key} has shape {x.shape} and {y_key} {y.shape}; expected one label per sample")
        if may_be_empty and len(x) == 0:
            return x, y, x.shape[1:]
        if 0 in x.shape:
            raise ValueError(f"{x_key} has shape {x.shape}, which is empty; expected at least one sample")
        return to_samples(x_key, x), y, x.shape[1:]
