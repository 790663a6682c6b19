"""Features that replace images: computed once by a frozen network, and cached for all runs."""

import contextlib
import hashlib
import json
import logging
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from elite_pl.data.arrays import Arrays
from elite_pl.data.preprocessing import Preprocessing
from elite_pl.data.rows import Rows
from elite_pl.data.sample_format import SampleFormat
from elite_pl.data.splits import Split
from elite_pl.files import temporary_beside
from elite_pl.progress import Estimate

log = logging.getLogger(__name__)

BATCH = 16  # images; a batch is always full, because the last digits of a convolution depend on its size


class Network(Protocol):
    """A feature extractor: maps images (n, channels, height, width), float32 in [0, 1], to features (n, k).

    Attributes:
        outputs: k.
        identity: Plain values that tell this network from any other.
    """

    outputs: int
    identity: dict[str, Any]

    def __call__(self, image: Tensor, /) -> Tensor:
        """Maps images to features."""


class FrozenFeatures(nn.Module):
    """Maps images, as a source has them, to the features that methods see in their place.

    Args:
        network: Computes them, in float32.
        images: How images become what the network takes.
        samples: The format in which images came.
    """

    def __init__(self, network: Network, images: Preprocessing, samples: SampleFormat) -> None:
        super().__init__()
        self.network, self.images, self.samples = network, images, samples
        self.eval()

    def to_plain(self) -> dict[str, Any]:
        """An identity of these features, with the SHA-256 of the weights in their place."""
        return {**self.network.identity, "size": self.images.size, "scale": float(self.images.scale)}

    def train(self, mode: bool = True) -> Self:
        """Leaves the network as it is, in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Maps images as stored, shape (n, channels, height, width), to features, shape (n, k)."""
        prepared = self.images.to(images.device)
        if torch.compiler.is_exporting():  # what is full is not for a graph to say
            return self.network(prepared.scaled(prepared.once(images)).float())
        found = []
        for part in images.split(BATCH):
            full = prepared.once(part[torch.arange(BATCH) % len(part)])
            found.append(self.network(prepared.scaled(full).float())[: len(part)])
        return torch.cat(found)

    def in_place_of_images(self, arrays: Arrays, split: Split, folder: Path | None, device: torch.device) -> Arrays:
        """The arrays with features instead of the images that a split uses; those of others may be NaN.

        Args:
            arrays: The data.
            split: Which samples are used.
            folder: Where features are kept, by the content of the images and of the network; None to keep none.
            device: Where they are computed.
        """
        content = {**self.to_plain(), "images": arrays.fingerprint}
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

        def found(part: str, images: np.ndarray, index: np.ndarray) -> np.ndarray:
            shape = (len(images), self.network.outputs)
            if folder is None:
                return self._fill(np.full(shape, np.nan, np.float32), images, index, device)
            return self._fill(opened(folder / f"{name}-{part}.npy", shape), images, index, device)

        self.to(device)
        x_train = found("train", arrays.x_train, np.concatenate([split.unlabeled, split.labeled]))
        x_test = found("test", arrays.x_test, split.test)
        self.to("cpu")
        return replace(arrays, x_train=x_train, x_test=x_test)

    def _fill(self, kept: np.ndarray, images: np.ndarray, index: np.ndarray, device: torch.device) -> np.ndarray:
        """Computes the features, of all that are kept, (N, k), that `index` names and that are still NaN."""

        def missing(index: np.ndarray) -> np.ndarray:
            return index[np.isnan(kept[index]).any(axis=1)]

        todo, rows = missing(index), Rows(images)
        batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
        random.Random().shuffle(batches)  # so that processes that need the same ones share the work
        estimate = Estimate(f"computing features of {len(todo)} images", len(batches))
        for batch in batches:
            if len(still := missing(batch)):
                kept[still] = self(torch.as_tensor(rows[still]).to(device)).cpu().numpy()
            estimate.step()
        kept.flags.writeable = False
        return kept


def opened(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Opens the features that a file keeps, memory-mapped; those not computed yet are NaN."""
    if path.is_file():
        with contextlib.suppress(ValueError, EOFError):
            found = np.load(path, mmap_mode="r")  # the other mode would make a file longer that is too short
            if found.shape == shape and found.dtype == np.float32:
                return np.load(path, mmap_mode="r+")
        log.warning("%s is damaged: its features are computed again", path)
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = temporary_beside(path)
    try:
        np.save(blank, np.broadcast_to(np.float32(np.nan), shape))
        os.link(blank, path)
    except FileExistsError:  # another process has made it just now
        pass
    finally:
        blank.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r+")
