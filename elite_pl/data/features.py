"""Features in the place of images: computed once by a network that stays as it is, and kept for all runs."""

import contextlib
import hashlib
import json
import logging
import os
import random
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elite_pl.data.arrays import Arrays
from elite_pl.data.preprocessing import Preprocessing
from elite_pl.data.splits import Split
from elite_pl.progress import Estimate

log = logging.getLogger(__name__)

BATCH = 16  # images; a batch is always full, because the last digits of a convolution depend on its size


class Network(Protocol):
    """What features are computed by: maps images (n, channels, height, width) to float32 features (n, k).

    Attributes:
        outputs: k.
        identity: Plain values that tell this network from any other.
    """

    outputs: int
    identity: dict[str, Any]

    def __call__(self, image: Tensor, /) -> Tensor:
        """Maps float32 images in [0, 1] to features."""


class FrozenFeatures:
    """Maps images, as a source has them, to the features that methods see in their place.

    Args:
        network: Computes them.
        images: How images become what the network takes.
        device: Where the network is.
    """

    def __init__(self, network: Network, images: Preprocessing, device: torch.device) -> None:
        self.network, self.images, self.device = network, images.to(device), device
        self.identity = {**network.identity, "size": images.size}

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images as stored, shape (n, channels, height, width), to features, shape (n, k)."""
        found = [np.zeros((0, self.network.outputs), np.float32)]
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            full = self.images.once(np.resize(part, (BATCH, *part.shape[1:]))).to(self.device)
            found.append(self.network(self.images.scaled(full).float())[: len(part)].cpu().numpy())
        return np.concatenate(found)

    def in_place_of_images(self, arrays: Arrays, split: Split, folder: Path) -> Arrays:
        """The arrays with features in the place of the images that a split uses; what it does not use may be NaN.

        Args:
            arrays: The data.
            split: Which samples are used.
            folder: Where features are kept, by the content of the images and of the network.
        """
        identity = json.dumps({**self.identity, "images": arrays.fingerprint}, sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        training = np.concatenate([split.unlabeled, split.labeled])
        return replace(
            arrays,
            x_train=self._kept(arrays.x_train, training, folder / f"{name}-train.npy"),
            x_test=self._kept(arrays.x_test, split.test, folder / f"{name}-test.npy"),
        )

    def _kept(self, images: np.ndarray, index: np.ndarray, path: Path) -> np.ndarray:
        """Features of all images, (N, k), of which those of `index` are computed unless they are in the file."""
        features = _opened(path, (len(images), self.network.outputs))

        def missing(index: np.ndarray) -> np.ndarray:
            return index[np.isnan(features[index]).any(axis=1)]

        todo = missing(index)
        batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
        random.Random().shuffle(batches)  # so that processes that need the same ones share the work
        estimate = Estimate(f"computing features of {len(todo)} images", len(batches))
        for batch in batches:
            if len(still := missing(batch)):
                features[still] = self(images[still])
            estimate.step()
        features.flags.writeable = False
        return features


def _opened(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The features that a file keeps, memory-mapped; those that nobody has computed yet are NaN."""
    if path.is_file():
        with contextlib.suppress(ValueError, EOFError):
            found = np.load(path, mmap_mode="r")  # the other mode would make a file that is too short longer
            if found.shape == shape and found.dtype == np.float32:
                return np.load(path, mmap_mode="r+")
        log.warning("%s is damaged: its features are computed again", path)
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.npy")
    try:
        np.save(blank, np.broadcast_to(np.float32(np.nan), shape))
        os.link(blank, path)
    except FileExistsError:  # another process has made it just now
        pass
    finally:
        blank.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r+")
