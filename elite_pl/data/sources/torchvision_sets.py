"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: from local files, else downloaded."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import socket
import tempfile
import threading
import urllib.request
from pathlib import Path

import numpy as np

from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.sources.npz import read_npz
from elite_pl.errors import InputError, input_errors, one_line

log = logging.getLogger(__name__)

_SILENCE_S = 8.0  # a server that says nothing for so long counts as unreachable
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_SHORT = {"MNIST": "mnist", "FashionMNIST": "fmnist", "CIFAR10": "cifar10"}
_SHAPES = {"MNIST": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}


def torchvision_set(name: str, root: str) -> Arrays:
    """Loads MNIST, Fashion-MNIST or CIFAR-10 from local files, else downloads them into `root`.

    For CIFAR-10, `root/cifar10.npz` (`x_train` (50000, 32, 32, 3) uint8, `y_train`, `x_test`, `y_test`, optional
    `classes`) is taken when the official files are not there; it is recorded as "cifar10-npz": its pixels may differ.

    Args:
        name: "MNIST", "FashionMNIST" or "CIFAR10".
        root: Folder of the data sets, in torchvision's layout (`root/MNIST/raw/...`).

    Returns:
        uint8 images, (n, 1, 28, 28) or (n, 3, 32, 32), with the official test set.

    Raises:
        InputError: No files and no download, or damaged files; the message says which files to put where.
    """
    if name not in _SHORT:
        raise InputError(f"dataset.name={name}: unknown torchvision set; one of {', '.join(_SHORT)}")
    folder = Path(root).expanduser()
    where, complete = _where(name, folder), bool(official_files(name, root))
    if (copy := copy_of(name, root)) is not None:
        return _cifar10_npz(copy)

    import torchvision  # noqa: F401  (an installation that is broken is not bad input: fail before the handlers below)

    try:
        return _read_torchvision(name, folder)
    except Exception as error:  # torchvision reports bad files by whatever its reader stumbles over
        if complete:
            raise InputError(
                f"dataset.root={root}: the {name} files in {where} are damaged ({one_line(error)}); "
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
            f"dataset.root={root}: {name} is not there and cannot be downloaded ({one_line(error)}); "
            f"{what}, or set dataset.root to where they are"
        ) from error


def _where(name: str, folder: Path) -> Path:
    """Returns the folder in which the official files of a data set are expected."""
    return folder / "cifar-10-batches-py" if name == "CIFAR10" else folder / name / "raw"


def official_files(name: str, root: str) -> list[Path]:
    """The official files that `torchvision_set` reads; none unless all of them are there."""
    where = _where(name, Path(root).expanduser())
    files = [where / file for file in (_BATCHES if name == "CIFAR10" else _IDX)]
    return files if all(file.is_file() for file in files) else []


def copy_of(name: str, root: str) -> Path | None:
    """The file that `torchvision_set` takes instead of the official ones: `ROOT/cifar10.npz`, else None."""
    copy = Path(root).expanduser() / "cifar10.npz"
    return copy if name == "CIFAR10" and not official_files(name, root) and copy.is_file() else None


def _read_torchvision(name: str, root: Path) -> Arrays:
    """Reads local files only."""
    from torchvision import datasets

    make = getattr(datasets, name)
    parts = []
    for train in (True, False):
        part = make(str(root), train=train, download=False)
        x, y = np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)
        if len(x) != len(y) or not len(x):
            raise ValueError(f"{len(x)} images and {len(y)} labels")
        parts.append((x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2), y))
    names = tuple("0123456789") if name == "MNIST" else tuple(make.classes if name == "FashionMNIST" else part.classes)
    return _checked(name, make_arrays(_SHORT[name], *parts[0], *parts[1], names))


def _checked(name: str, arrays: Arrays) -> Arrays:
    """The arrays, if images have the size and labels the numbers of the set.

    Raises:
        ValueError: In words that follow the place of the files.
    """
    if arrays.x_train.shape[1:] != _SHAPES[name] or arrays.x_train.dtype != np.uint8:
        found = f"{arrays.x_train.dtype} {arrays.x_train.shape[1:]}"
        raise ValueError(f"images are {found}, channels first; expected uint8 {_SHAPES[name]}")
    labels = np.concatenate([arrays.y_train, arrays.y_test])
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels are from {labels.min()} to {labels.max()}; expected 0 to 9")
    return arrays


def _download(name: str, root: Path) -> None:
    """Downloads the official files into `root`, one complete file at a time; a failed attempt leaves no trace."""
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
    """Raises ConnectionError within seconds unless one of the servers answers.

    Timeouts of sockets do not bound the look-up of a name, and count anew for every address and mirror; hence threads
    that are left behind.
    """
    answered, failed = threading.Event(), []

    def ask(url: str) -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})
            urllib.request.urlopen(request, timeout=_SILENCE_S).close()
            answered.set()
        except Exception as error:
            failed.append(one_line(error))
            if len(failed) == len(urls):
                answered.set()

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    answered.wait(_SILENCE_S)
    if not answered.is_set() or len(failed) == len(urls):
        raise ConnectionError(failed[0] if failed else f"no answer within {_SILENCE_S:.0f} s")


def _cifar10_npz(path: Path) -> Arrays:
    """Reads the npz variant of CIFAR-10."""
    arrays = read_npz(path, "cifar10-npz", "classes", 0.3, key="dataset.root")
    with input_errors(f"dataset.root={path}"):
        return _checked("CIFAR10", arrays)
