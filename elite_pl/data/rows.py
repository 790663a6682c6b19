"""Rows of an array, read when they are asked for: the array may lie in a file that is larger than the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

BLOCK = 2**24  # bytes that are read at a time, from a file or to be worked on
SCORED = 500  # samples that are scored at a time; of images, what more of them need does not fit a processor's cache


def stored(samples: np.ndarray) -> np.ndarray:
    """Samples in the type in which they are kept: uint8 for images of whole numbers, float32 for all others."""
    return np.asarray(samples, dtype=np.uint8 if samples.ndim == 4 and samples.dtype.kind in "iu" else np.float32)


class Rows:
    """Samples of an array by their indices.

    Args:
        array: Samples (n, ...), in memory or memory-mapped.
        index: Which of them, (m,); None for all.
    """

    def __init__(self, array: np.ndarray, index: np.ndarray | None = None) -> None:
        self.array, self.index = array, index
        self.on_disk = isinstance(array, np.memmap)
        self.shape = (len(array if index is None else index), *array.shape[1:])
        self.dtype = stored(array[:0]).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Reads some of them, as they are `stored`."""
        return stored(self.array[index if self.index is None else self.index[index]])

    @property
    def nbytes(self) -> int:
        """Memory that all of them take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def slices(self) -> Iterator[slice]:
        """Yields slices of about `BLOCK` bytes that cover all of them."""
        size = max(1, BLOCK * len(self) // max(1, self.nbytes))
        return (slice(start, start + size) for start in range(0, len(self), size))

    def blocks(self) -> Iterator[np.ndarray]:
        """Reads all of them, slice by slice."""
        return (self[part] for part in self.slices())
