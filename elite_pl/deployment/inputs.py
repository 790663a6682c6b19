"""Inputs to score, read in chunks: a folder of images, a table, or an array."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elite_pl.data.sources.images import SUFFIXES as IMAGES
from elite_pl.data.sources.images import explained, image_names, read_images
from elite_pl.data.sources.npy import load_array, reason
from elite_pl.data.sources.table import SUFFIXES as TABLES
from elite_pl.data.sources.table import columns_of, import_polars, row_ids
from elite_pl.data.sources.table_parts import open_table
from elite_pl.data.sources.user_data import existing, some
from elite_pl.runs.trained import NUMBERS, TrainedDetector

ARRAYS = (".npy", ".npz")
MANY = 2**16  # samples of a part, at most


class Part(NamedTuple):
    """Some of the samples.

    Attributes:
        names: Ids or paths, or indices (n,).
        values: Samples for `TrainedDetector.score_checked`, shape (n, ...).
    """

    names: list[str] | np.ndarray
    values: np.ndarray


class Input(NamedTuple):
    """An input to score, opened and ready to be read in chunks.

    Attributes:
        column: The kind of names that samples have: `"path"`, `"id"` or `"index"`.
        total: How many samples there are; None where that takes a look at all of them.
        parts: All of them.
        notes: Notes for the user before scoring starts.
        left_out: Reasons why samples cannot be read, by their names; filled while the parts are read.
    """

    column: str
    total: int | None
    parts: Iterator[Part]
    notes: list[str]
    left_out: dict[str, str]


def open_input(path: str, detector: TrainedDetector, shard: tuple[int, int], skip_broken: bool) -> Input:
    """Opens a folder of images or an image, a table (CSV, Parquet) or an array (.npy, .npz).

    Args:
        path: As it was typed.
        detector: The detector that will score it.
        shard: (i, n): the i-th, from 1, of n pieces of about the same length.
        skip_broken: Whether to go on without images that cannot be read.

    Raises:
        ValueError: If it is not there, or not what the detector was trained on.
    """
    is_folder = Path(path).expanduser().is_dir()
    right = "a folder of images, a table (.csv, .parquet) or an array (.npy)"
    kind = "" if is_folder else existing(path, f"expected {right}").suffix.lower()
    if kind in TABLES:
        return _table(path, detector, shard)
    if detector.encoding is not None:
        raise ValueError("is no table, and the detector was trained on one; expected a CSV or Parquet file")
    if kind in ARRAYS:
        return _array(path, detector, shard)
    if is_folder or kind in IMAGES:
        return _images(path, detector, shard, skip_broken)
    raise ValueError(f"has no known suffix; expected {right}")


def _piece(total: int, shard: tuple[int, int]) -> range:
    """Which of so many samples are in a shard."""
    i, n = shard
    return range(total * (i - 1) // n, total * i // n)


# -------------------------------------------------------------------------------------------------------------- images


def _images(path: str, detector: TrainedDetector, shard: tuple[int, int], skip_broken: bool) -> Input:
    shape = image_shape(detector)
    place = Path(path).expanduser()
    if place.is_dir():
        folder, (names, others) = place, image_names(place)
    else:
        folder, names, others = place.parent, [place.name], []
    if not names:
        raise ValueError(f"no image in it; expected {', '.join(IMAGES)}")
    names = [names[i] for i in _piece(len(names), shard)]
    left_out: dict[str, str] = {}

    def parts() -> Iterator[Part]:
        kept: list[str] = []
        pixels: list[np.ndarray] = []
        for name, image in zip(names, read_images(folder, names, shape), strict=True):
            if not isinstance(image, str):
                kept.append(name)
                pixels.append(image)
            elif skip_broken:
                left_out[name] = image
            else:
                raise ValueError(f"{explained({name: image})}; --skip-broken leaves it out")
            if len(kept) == detector.chunk:
                yield Part(kept, _as_in_training(pixels, detector))
                kept, pixels = [], []
        if kept:
            yield Part(kept, _as_in_training(pixels, detector))

    notes = [f"not taken for images by their names: {some(others)}"] if others else []
    return Input("path", len(names), parts(), notes, left_out)


def image_shape(detector: TrainedDetector) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images that a detector takes.

    Raises:
        ValueError: If it takes vectors.
    """
    shape = detector.samples.shape
    if len(shape) == 1:
        raise ValueError(f"is of images, and the detector was trained on vectors of {shape[0]} features; give an array")
    if len(shape) == 2:
        shape = (1, *shape)
    elif detector.samples.channels_last:
        shape = (shape[2], *shape[:2])
    channels, height, width = (detector.size if side is None else side for side in shape)
    assert channels is not None and height is not None and width is not None  # a size makes them all alike
    return channels, height, width


def _as_in_training(pixels: list[np.ndarray], detector: TrainedDetector) -> np.ndarray:
    """Images (C, H, W) in the order of axes and the units of training."""
    x = np.stack(pixels)
    if detector.samples.channels_last:
        x = x.transpose(0, 2, 3, 1)
    elif len(detector.samples.shape) == 2:
        x = x[:, 0]
    return x / np.float32(255) if detector.samples.values == "unit" else x


# -------------------------------------------------------------------------------------------------------------- tables


def _table(path: str, detector: TrainedDetector, shard: tuple[int, int]) -> Input:
    encoding = detector.encoding
    if encoding is None:
        shape = " x ".join("any" if side is None else str(side) for side in detector.samples.shape)
        expected = "such an array" if len(detector.samples.shape) == 1 else "a folder of images, or such an array"
        raise ValueError(f"is a table, and the detector was trained on arrays of {shape}; expected {expected}")
    import_polars(path)
    table = open_table(path, encoding.kinds)
    id_column = encoding.id_column if encoding.id_column in table.columns else None
    rows = None if shard == (1, 1) else _piece(len(table), shard)
    size = max(1, min(MANY, NUMBERS // detector.sample_shape[0]))

    def parts() -> Iterator[Part]:
        empty = True
        for numbers, frame in table.parts(rows):
            for start in range(0, len(frame), size):
                piece = frame[start : start + size]
                names = numbers[start : start + size] if id_column is None else row_ids(piece, id_column)
                yield Part(names, encoding.transform(columns_of(piece, encoding.kinds)))
                empty = False
        if empty and rows is None:
            raise ValueError("has no row with a value in it; expected one row per sample")

    unknown = encoding.unknown(table.columns)
    notes = [f"passed over: column {some(unknown)}, which the training rows lack"] if unknown else []
    return Input("index" if id_column is None else "id", None if rows is None else len(rows), parts(), notes, {})


# -------------------------------------------------------------------------------------------------------------- arrays


def _array(path: str, detector: TrainedDetector, shard: tuple[int, int]) -> Input:
    x = _of_npz(path) if Path(path).suffix.lower() == ".npz" else load_array(path, on_disk=True)
    if x.ndim == 0 or not len(x):
        raise ValueError(f"has shape {x.shape}, which is empty; expected at least one sample")
    rows = _piece(len(x), shard)
    size = max(1, min(MANY, NUMBERS // math.prod(x.shape[1:])))

    def parts() -> Iterator[Part]:
        for start in rows[::size]:
            piece = slice(start, min(start + size, rows.stop))
            yield Part(np.arange(piece.start, piece.stop), detector.samples.checked("the array", x[piece]))

    return Input("index", len(rows), parts(), [], {})


def _of_npz(path: str) -> np.ndarray:
    """The array x of an npz file, or the only one that is in it.

    Raises:
        ValueError: If there is none, or the file is damaged.
    """
    right = "expected a file that numpy.savez writes"
    file = existing(path, right)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = arrays.files
            name = "x" if "x" in names else names[0] if len(names) == 1 else None
            if name is not None:
                if not isinstance(x := arrays[name], np.ndarray):  # but the bytes of something else
                    raise TypeError(f"{name} is no array")
                return x
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        raise ValueError(f"is no npz file of numbers, or is damaged{reason(error)}; {right}") from error
    raise ValueError(f"holds {some(names) or 'nothing'}; expected one array, or one called x")
