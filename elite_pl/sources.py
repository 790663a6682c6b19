"""Where arrays come from: embedded digits, the torchvision sets, and npz files of one's own.

A source returns everything it has, as `Arrays`; who is normal, labeled or unlabeled is decided in `splits`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import socket
import tempfile
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elite_pl.errors import InputError
from elite_pl.splits import describe_classes, known_labels, stratified

log = logging.getLogger(__name__)

_SILENCE_S = 8.0  # a server that says nothing for so long counts as unreachable
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_SHORT = {"MNIST": "mnist", "FashionMNIST": "fmnist", "CIFAR10": "cifar10"}


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory, as it is stored: nothing is scaled here.

    Attributes:
        name: of the data set; part of the identity of a split.
        x_train: (n, D) float32 vectors, or (n, C, H, W) images: uint8 in 0..255 or float32 in [0, 1].
        y_train: (n,) int64, class ids, or labels +1/-1/0 when `labels` is "known".
        x_test: as `x_train`; of length 0 when there is no test part.
        y_test: as `y_train`, without 0.
        class_names: name of class i at place i, where the data has names.
        labels: "classes" or "known".
        fingerprint: first 16 hex digits of the sha256 over the four arrays.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None
    labels: str
    fingerprint: str


def digits() -> Arrays:
    """Load scikit-learn's 1,797 real handwritten 8x8 digits as (n, 64) vectors in [0, 1]; no download.

    A fixed stratified 30 % is the test part, whatever the seed of a run.
    Source: https://archive.ics.uci.edu/dataset/80 (the UCI test part), via `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    train, test = stratified(y, 0.3)
    return _arrays("digits", x[train], y[train], x[test], y[test], tuple("0123456789"))


def torchvision_set(name: str, root: str) -> Arrays:
    """Load MNIST, Fashion-MNIST or CIFAR-10 from local files, else download them into `root`.

    For CIFAR-10, `root/cifar10.npz` (`x_train` (50000, 32, 32, 3) uint8, `y_train`, `x_test`, `y_test`, optional
    `classes`) is taken when the official files are not there; it is recorded as "cifar10-npz": its pixels may differ.

    Args:
        name: "MNIST", "FashionMNIST" or "CIFAR10".
        root: folder of the data sets, in torchvision's layout (`root/MNIST/raw/...`).

    Returns:
        uint8 images, (n, 1, 28, 28) or (n, 3, 32, 32), with the official test part.

    Raises:
        InputError: no files and no download, or damaged files; the message says which files to put where.
    """
    if name not in _SHORT:
        raise InputError(f"dataset.name={name}: unknown torchvision set; one of {', '.join(_SHORT)}")
    folder = Path(root).expanduser()
    where, complete = _files(name, folder)
    if (copy := copy_of(name, root)) is not None:
        return _cifar10_npz(copy)

    import torchvision  # noqa: F401  (an installation that is broken is not bad input: fail before the handlers below)

    try:
        return _read_torchvision(name, folder)
    except Exception as error:  # torchvision reports bad files by whatever its reader stumbles over
        if complete:
            raise InputError(
                f"dataset.root={root}: the {name} files in {where} are damaged ({_line(error)}); "
                f"delete that folder to download them again, or put the official files there"
            ) from error
    try:
        _download(name, folder)
        return _read_torchvision(name, folder)
    except Exception as error:
        what = f"put {', '.join(_IDX)} into {where}"
        if name == "CIFAR10":
            what = f"put the folder cifar-10-batches-py ({', '.join(_BATCHES)}) or cifar10.npz into {folder}"
        raise InputError(
            f"dataset.root={root}: {name} is not there and cannot be downloaded ({_line(error)}); "
            f"{what}, or set dataset.root to where they are"
        ) from error


def _files(name: str, folder: Path) -> tuple[Path, bool]:
    """Where the official files of a set are looked for, and whether all of them are there."""
    where = folder / "cifar-10-batches-py" if name == "CIFAR10" else folder / name / "raw"
    return where, all((where / file).is_file() for file in (_BATCHES if name == "CIFAR10" else _IDX))


def copy_of(name: str, root: str) -> Path | None:
    """The file that `torchvision_set` takes in the place of the official ones: `ROOT/cifar10.npz`, else None."""
    folder = Path(root).expanduser()
    copy = folder / "cifar10.npz"
    return copy if name == "CIFAR10" and not _files(name, folder)[1] and copy.is_file() else None


def npz(path: str, labels: str, test_fraction: float) -> Arrays:
    """Load a data set of one's own: `x_train y_train x_test y_test`, or `x y` alone, and optionally `classes` (names).

    Vectors are (n, D) of any real type, taken as float32 as they are. Images are (n, H, W), (n, H, W, C) or
    (n, C, H, W) with C 1 or 3: integers in 0..255, or floats in [0, 1]. Class labels are integers or strings; strings
    become names.

    Args:
        path: of the file.
        labels: "classes": `y` holds classes, one of which will be normal; "known": +1 normal, -1 anomaly, 0 unlabeled.
        test_fraction: share of each class that `x y` alone puts aside for the test, with a fixed seed. With
            labels="known" nothing is put aside: `x y` is the training part, and a test part is optional.

    Returns:
        The arrays, named after the file.

    Raises:
        InputError: the file or an array in it is not as described.
    """
    if labels not in ("classes", "known"):
        raise InputError(f"dataset.labels={labels}: unknown; classes (class ids or names) or known (1, -1, 0)")
    if not 0 < test_fraction < 1:
        raise InputError(f"dataset.test_fraction={test_fraction}: not a share; a number between 0 and 1")
    if not path:
        raise InputError("dataset.path=null: no file is named; the path of an npz file")
    file = Path(path).expanduser()
    return _from_npz(file, file.stem, labels, test_fraction)


def resolve_class(normal_class: int | str, arrays: Arrays) -> int:
    """Find a class by its name or id. A name wins; names that are numbers hide the ids.

    Args:
        normal_class: name or id of a class of the training part (of data with labels="classes").
        arrays: the data.

    Returns:
        Its id.

    Raises:
        InputError: no such class; the message lists those there are.
    """
    ids, names = np.unique(arrays.y_train).tolist(), arrays.class_names or ()
    if str(normal_class) in names and (found := names.index(str(normal_class))) in ids:
        return found
    with contextlib.suppress(ValueError):
        if int(normal_class) in ids and not any(name.lstrip("-").isdigit() for name in names):
            return int(normal_class)
    there = describe_classes(arrays.y_train, arrays.class_names)
    raise InputError(f"normal_class={normal_class}: {arrays.name} has no such class; it has {there}")


def _arrays(name, x_train, y_train, x_test, y_test, class_names=None, labels="classes") -> Arrays:
    """Put the parts together and take their fingerprint."""
    digest = hashlib.sha256()
    x_train, y_train, x_test, y_test = map(np.ascontiguousarray, (x_train, y_train, x_test, y_test))
    for part in (x_train, y_train, x_test, y_test):
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(part.reshape(-1).view(np.uint8).data)
    return Arrays(name, x_train, y_train, x_test, y_test, class_names, labels, digest.hexdigest()[:16])


def _line(error: BaseException) -> str:
    """Bring the message of an exception onto one line."""
    return " ".join(str(error).split()) or type(error).__name__


# torchvision


def _read_torchvision(name: str, root: Path) -> Arrays:
    """Read local files only."""
    from torchvision import datasets

    make = getattr(datasets, name)
    parts = []
    for train in (True, False):
        part = make(str(root), train=train, download=False)
        x, y = np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)
        if len(x) != len(y):
            raise ValueError(f"{len(x)} images and {len(y)} labels")
        parts.append((x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2), y))
    names = tuple("0123456789") if name == "MNIST" else tuple(make.classes if name == "FashionMNIST" else part.classes)
    return _arrays(_SHORT[name], *parts[0], *parts[1], names)


def _download(name: str, root: Path) -> None:
    """Bring the official files into `root`, one complete file at a time; leave no trace of an attempt that failed."""
    from torchvision import datasets

    make = getattr(datasets, name)
    if name == "CIFAR10":
        archives, sources, extracted = [Path(make.filename)], [make.url], Path(make.base_folder)
    else:
        archives = [Path(name, "raw", file) for file, _ in make.resources]
        sources, extracted = [mirror + archives[0].name for mirror in make.mirrors], Path(name, "raw")
    if not all((root / archive).is_file() for archive in archives):
        _reach(sources)
        log.info("downloading %s into %s", name, root)

    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            for archive in archives:  # one that is there already is unpacked, not fetched
                if (root / archive).is_file():
                    Path(temporary, archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(root / archive, Path(temporary, archive))
            socket.setdefaulttimeout(_SILENCE_S)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                make(temporary, download=True)
            for file in sorted(Path(temporary, extracted).iterdir()):
                if file.suffix != ".gz":
                    (root / extracted).mkdir(parents=True, exist_ok=True)
                    os.replace(file, root / extracted / file.name)
    finally:
        socket.setdefaulttimeout(timeout)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the files are there
                folder.rmdir()


def _reach(urls: list[str]) -> None:
    """Raise ConnectionError within seconds unless one of the servers answers.

    Timeouts of sockets do not bound the look-up of a name, and count anew for every address and mirror; hence threads
    that nobody waits for.
    """
    answered, failed = threading.Event(), []

    def ask(url: str) -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
            urllib.request.urlopen(request, timeout=_SILENCE_S).close()
            answered.set()
        except Exception as error:
            failed.append(_line(error))
            if len(failed) == len(urls):
                answered.set()

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    answered.wait(_SILENCE_S)
    if not answered.is_set() or len(failed) == len(urls):
        raise ConnectionError(failed[0] if failed else f"no answer within {_SILENCE_S:.0f} s")


# npz


def _cifar10_npz(path: Path) -> Arrays:
    """Read the npz variant of CIFAR-10."""
    arrays = _from_npz(path, "cifar10-npz", "classes", 0.3, key="dataset.root")
    if arrays.x_train.shape[1:] != (3, 32, 32) or arrays.x_train.dtype != np.uint8:
        found = f"{arrays.x_train.dtype} {arrays.x_train.shape[1:]}"
        raise InputError(f"dataset.root={path}: images are {found}, channels first; uint8 (3, 32, 32) is right")
    return arrays


def _from_npz(path: Path, name: str, labels: str, test_fraction: float, key: str = "dataset.path") -> Arrays:
    """Read, check and convert the arrays of `npz`."""
    with _Reader(path, key) as reader:
        parted = reader.has("x_train") or reader.has("y_train") or not (reader.has("x") or reader.has("y"))
        train = ("x_train", "y_train") if parted else ("x", "y")
        x_train, y_train = reader.part(*train)
        if parted and (labels == "classes" or reader.has("x_test") or reader.has("y_test")):
            x_test, y_test = reader.part("x_test", "y_test", may_be_empty=labels == "known")
            if len(x_test) == 0:
                x_test, y_test = x_train[:0], y_train[:0]
        elif parted or labels == "known":
            x_test, y_test = x_train[:0], y_train[:0]
        else:
            in_train, in_test = stratified(y_train, test_fraction)
            if not len(in_test):
                raise reader.error("every class of y has one sample only; two or more, or x_test and y_test")
            x_test, y_test, x_train, y_train = x_train[in_test], y_train[in_test], x_train[in_train], y_train[in_train]
        if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
            shapes = f"{x_train.dtype} {x_train.shape[1:]} in x_train and {x_test.dtype} {x_test.shape[1:]} in x_test"
            raise reader.error(f"samples are {shapes}; both alike are right")

        names = None
        if y_train.dtype.kind != y_test.dtype.kind:
            raise reader.error("y_train and y_test are of different kinds; integers, or strings, in both")
        if labels == "known":
            if y_train.dtype.kind != "i":
                raise reader.error("dataset.labels=known and labels are strings; 1, -1 and 0 are right")
            known_labels(y_train, y_test)  # raises for everything that such labels cannot be
        elif y_train.dtype.kind == "U":
            found, y = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
            names, y_train, y_test = tuple(found.tolist()), y[: len(y_train)], y[len(y_train) :]
        elif reader.has("classes"):
            names = tuple(str(one) for one in reader.read("classes").ravel().tolist())
            if min(y_train.min(), y_test.min()) < 0 or max(y_train.max(), y_test.max()) >= len(names):
                right = f"0 to {len(names) - 1} are right"
                raise reader.error(f"labels go beyond the {len(names)} names in classes; {right}")
    return _arrays(name, x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), names, labels)


class _Reader:
    """An npz file whose every fault is an InputError that names the file."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        try:
            file = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise self.error("no such file; the path of an npz file") from None
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror or _line(error)}); the path of an npz file") from error
        except Exception as error:  # whatever the unpacking of a foreign file stumbles over
            raise self.error("not an npz file; one that numpy.savez writes") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise self.error("a single array; an npz file with x_train, y_train, x_test, y_test is right")
        self.file = file

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def error(self, what: str) -> InputError:
        return InputError(f"{self.key}={self.path}: {what}")

    def has(self, key: str) -> bool:
        return key in self.file.files

    def read(self, key: str) -> np.ndarray:
        if not self.has(key):
            there = ", ".join(self.file.files) or "nothing"
            raise self.error(f"no array {key}; it holds {there}; x_train, y_train, x_test, y_test, or x, y are right")
        try:
            array = self.file[key]
        except Exception as error:  # as above
            if "allow_pickle" in str(error):
                raise self.error(f"{key} holds Python objects; one array of numbers without gaps is right") from None
            raise self.error(f"{key} is damaged ({_line(error)}); write the file again") from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.count_nonzero(~np.isfinite(array))
            raise self.error(f"{key} holds {bad} values that are NaN or infinite; finite numbers are right")
        return array

    def part(self, x_key: str, y_key: str, may_be_empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Read samples and labels of one part."""
        x, y = self.read(x_key), self.labels(y_key)
        if x.ndim == 0 or len(x) != len(y):
            raise self.error(f"{x_key} has shape {x.shape} and {y_key} {y.shape}; one label a sample is right")
        if may_be_empty and len(x) == 0:
            return x, y
        if 0 in x.shape:
            raise self.error(f"{x_key} has shape {x.shape}, which is empty; at least one sample is right")
        return self.samples(x_key, x), y

    def labels(self, key: str) -> np.ndarray:
        """Read labels: int64, or unicode strings."""
        y = self.read(key)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise self.error(f"{key} has shape {y.shape}; (n,) is right")
        if y.dtype.kind in "SU":
            try:
                return y.astype(np.str_)
            except UnicodeDecodeError as error:
                raise self.error(f"{key} holds bytes that are not ASCII; strings are right") from error
        with np.errstate(invalid="ignore"):
            if y.dtype.kind not in "biuf" or (y.astype(np.int64) != y).any():
                raise self.error(f"{key} ({y.dtype}) does not hold whole numbers; integers or strings are right")
        return y.astype(np.int64)

    def samples(self, key: str, x: np.ndarray) -> np.ndarray:
        """Convert samples to float32 vectors, or to channels-first images in uint8 or float32."""
        if x.dtype.kind not in "biuf":
            raise self.error(f"{key} is of type {x.dtype}; integers or floats are right")
        if x.ndim not in (2, 3, 4):
            raise self.error(f"{key} has shape {x.shape}; (n, D) vectors or (n, H, W[, C]) images are right")
        if x.ndim == 2:
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
            if not np.isfinite(x).all():
                raise self.error(f"{key} holds values too large for float32; scale them")
            return x
        if x.ndim == 4:
            first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
            if first == last:
                fit = "both the second and the last axis are" if first else "neither the second nor the last axis is"
                raise self.error(
                    f"{key} has shape {x.shape}, ambiguous: {fit} 1 or 3 channels; (n, H, W, C) or (n, C, H, W)"
                )
            x = x if first else x.transpose(0, 3, 1, 2)
        else:
            x = x[:, None]
        low, high = x.min(), x.max()
        whole = x.dtype.kind in "iu"
        if low < 0 or high > (255 if whole else 1):
            right = "0 to 255" if whole else "[0, 1]: scale them, or give uint8"
            raise self.error(f"{key} holds pixels from {low} to {high} in {x.dtype}; {right} is right")
        return np.ascontiguousarray(x, dtype=np.uint8 if whole else np.float32)
