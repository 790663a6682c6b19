"""Preprocessing of samples into the numbers that a network sees, without their labels."""

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elite_pl.annotations import Range, checked
from elite_pl.data.feature_maps import AnyFeatureMap, same
from elite_pl.data.rows import Rows


def _is_pair(scaling: Sequence[Any]) -> bool:
    return len(scaling) == 2 and scaling[1] > 0


Size = Annotated[int, Range("a number of pixels from 4 to 4096", lambda value: 4 <= value <= 4096)]
Pair = Annotated[Sequence[float], Range("[mean, standard deviation > 0] of the pixels", _is_pair)]


class Preprocessing(NamedTuple):
    """Resizing, contrast normalization, `(x - shift) / scale`, and a feature map.

    Attributes:
        size: Pixels of the sides that images are resized to; None leaves them as they are.
        contrast: Whether the contrast of each image is normalized; see `contrast_normalized`.
        shift: A number, or one per feature: shape () or (features,).
        scale: As `shift`.
        feature_map: Maps samples to those that methods see in their place; None for themselves.
    """

    size: int | None
    contrast: bool
    shift: Tensor
    scale: Tensor
    feature_map: AnyFeatureMap | None = None

    def same(self, other: "Preprocessing") -> bool:
        """Whether both do the same to every sample."""
        return (
            (self.size, self.contrast) == (other.size, other.contrast)
            and torch.equal(self.shift, other.shift)
            and torch.equal(self.scale, other.scale)
            and same(self.feature_map, other.feature_map)
        )

    def changes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether `once` does anything to samples of this shape (n, ...)."""
        return self.contrast or (self.size is not None and shape[2:] != (self.size, self.size))

    def once(self, values: np.ndarray | Tensor) -> Tensor:
        """The part that is done once, before samples go to the device: values (n, ...) to a tensor (n, ...)."""
        samples = torch.as_tensor(values)
        if self.size is not None and samples.shape[2:] != (self.size, self.size):
            samples = resized(samples, self.size)
        return contrast_normalized(samples.to(self.shift.dtype)) if self.contrast else samples

    def scaled(self, samples: Tensor) -> Tensor:
        """The part that is done to each batch when it is gathered: samples (n, ...) to floats (n, ...)."""
        scaled = (samples.to(self.shift.dtype) - self.shift) / self.scale
        return scaled if self.feature_map is None else self.feature_map(scaled)

    def to(self, device: torch.device) -> "Preprocessing":
        """The same with its numbers on a device."""
        mapped = self.feature_map and deepcopy(self.feature_map).to(device)
        return Preprocessing(self.size, self.contrast, self.shift.to(device), self.scale.to(device), mapped)


@checked
def preprocessing(
    training: np.ndarray | Rows, size: Size | None, scaling: Literal["unit", "gcn", "standard"] | Pair
) -> Preprocessing:
    """The preprocessing that a data set's samples need.

    Args:
        training: All training samples as stored, shape (n, ...).
        size: Pixels of the sides that images are resized to; None leaves them as they are.
        scaling: `"unit"`: pixels (uint8) become [0, 1], floats that lie there stay as they are, other vectors are
            standardized feature by feature with mean and standard deviation of the training samples. `"standard"`: as
            `"unit"`, and vectors are standardized wherever they lie. `"gcn"`: global contrast normalization, then the
            smallest and largest value in the training samples become 0 and 1, as in Ruff et al., "Deep One-Class
            Classification", ICML 2018. A pair of numbers: mean and standard deviation of pixels in [0, 1].

    Raises:
        ValueError: If an argument is not as annotated, or needs images where samples are vectors.
    """
    training = training if isinstance(training, Rows) else Rows(training)
    image, dtype = len(training.shape) == 4, torch.get_default_dtype()
    if not image and (size is not None or scaling not in ("unit", "standard")):
        asked = f"scaling={scaling}" if size is None else f"size={size}"
        raise ValueError(f"{asked}: needs images; samples are vectors of {training.shape[1]} features")
    if scaling == "gcn":
        raw = Preprocessing(size, True, torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
        lows, highs = zip(*(raw.once(block).aminmax() for block in training.blocks()), strict=True)
        low, high = torch.stack(lows).min(), torch.stack(highs).max()
        return raw._replace(shift=low, scale=high - low)
    highest = 255.0 if training.dtype == np.uint8 else 1.0
    if not isinstance(scaling, str):
        mean, deviation = (torch.as_tensor(value * highest, dtype=dtype) for value in scaling)
        return Preprocessing(size, False, mean, deviation)
    if image or (scaling == "unit" and all(x.min() >= 0 and x.max() <= 1 for x in training.blocks())):
        return Preprocessing(size, False, torch.zeros((), dtype=dtype), torch.full((), highest, dtype=dtype))
    center, spread = moments(training)
    spread[spread == 0] = 1  # a constant feature
    return Preprocessing(size, False, torch.as_tensor(center, dtype=dtype), torch.as_tensor(spread, dtype=dtype))


def moments(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, in float64."""
    mean = np.asarray(sum(block.sum(axis=0, dtype=np.float64) for block in rows.blocks())) / len(rows)
    variance = np.asarray(sum(np.square(block - mean).sum(axis=0) for block in rows.blocks())) / len(rows)
    return mean, np.sqrt(variance)


def resized(images: Tensor, size: int) -> Tensor:
    """Images (n, channels, height, width), uint8 or float, resized to squares by bilinear interpolation.

    Raises:
        ValueError: If they do not fit in the memory of this machine.
    """
    exporting = torch.compiler.is_exporting()  # in a graph the number of images is open: nothing counts them
    if not exporting:
        _check_memory(images, size)
    parts = [
        functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in ([images] if exporting else images.split(1000))  # floats of all at once would be four times as much
    ]
    if images.dtype == torch.uint8:
        parts = [part.round().clamp(0, 255).to(torch.uint8) for part in parts]
    return torch.cat(parts) if parts else images.new_zeros(0, images.shape[1], size, size)


def _check_memory(images: Tensor, size: int) -> None:
    """Refuses images that do not fit in the memory of this machine; see `resized`."""
    pixels = images.shape[1] * size**2
    needed = pixels * (2 * images.element_size() * len(images) + 4 * min(len(images), 1000))  # joined, and as floats
    if needed > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        rule = f"{len(images)} images would take {needed / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}"
        raise ValueError(f"size={size}: {rule}")


def contrast_normalized(images: Tensor) -> Tensor:
    """Global contrast normalization: each image, less its mean, divided by its mean absolute value.

    Args:
        images: Floats, shape (n, ...).

    Returns:
        Floats, shape (n, ...); an image of one value becomes 0.
    """
    flat = images.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    spread = flat.abs().mean(dim=1, keepdim=True)
    return (flat / spread.where(spread > 0, 1.0)).view_as(images)
