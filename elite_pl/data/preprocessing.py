"""How samples become the numbers that a network sees, without a look at their labels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elite_pl.errors import InputError

SCALINGS = ("unit", "standard", "gcn")


class Preprocessing(NamedTuple):
    """Resizing, contrast normalisation, and `(x - shift) / scale`.

    Attributes:
        size: Pixels of the sides that images are resized to; None leaves them as they are.
        contrast: Whether the contrast of each image is normalised; see `contrast_normalised`.
        shift: A number, or one per feature: shape () or (features,).
        scale: As `shift`.
    """

    size: int | None
    contrast: bool
    shift: Tensor
    scale: Tensor

    def once(self, values: np.ndarray) -> Tensor:
        """What is done to samples once, before they are put on the device: values (n, ...) to a tensor (n, ...)."""
        samples = torch.as_tensor(values)
        if self.size is not None:
            samples = resized(samples, self.size)
        return contrast_normalised(samples.to(self.shift.dtype)) if self.contrast else samples

    def scaled(self, samples: Tensor) -> Tensor:
        """What is done to each batch when it is gathered: samples (n, ...) to floats (n, ...)."""
        return (samples.to(self.shift.dtype) - self.shift) / self.scale

    def to(self, device: torch.device) -> "Preprocessing":
        """The same with its numbers on a device."""
        return self._replace(shift=self.shift.to(device), scale=self.scale.to(device))


def preprocessing(training: np.ndarray, size: int | None, scaling: str | list[float]) -> Preprocessing:
    """What a data set's samples need.

    Args:
        training: All training samples as stored, shape (n, ...).
        size: Pixels of the sides that images are resized to; None leaves them as they are.
        scaling: `"unit"`: pixels (uint8) become [0, 1], floats that lie there stay as they are, other vectors are
            standardised feature by feature with mean and standard deviation of the training samples. `"standard"`: as
            `"unit"`, and vectors are standardised wherever they lie. `"gcn"`: global contrast normalisation, then the
            smallest and largest value in the training samples become 0 and 1, as in Ruff et al., "Deep One-Class
            Classification", ICML 2018. A pair of numbers: mean and standard deviation of pixels in [0, 1].

    Raises:
        InputError: If samples are no images and an image is needed, or the values mean nothing.
    """
    image, dtype = training.ndim == 4, torch.get_default_dtype()
    if size is not None and not (image and isinstance(size, int) and size >= 4):
        raise InputError(f"dataset.size={size}: needs images and 4 pixels or more; samples are {training.shape[1:]}")
    if isinstance(scaling, str) and scaling not in SCALINGS:
        raise InputError(f"dataset.scaling={scaling}: must be {', '.join(SCALINGS)}, or [mean, standard deviation]")
    if scaling == "gcn":
        if not image:
            raise InputError(f"dataset.scaling=gcn: needs images; samples are vectors of {training.shape[1]} features")
        raw = Preprocessing(size, True, torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
        low, high = raw.once(training).aminmax()
        return raw._replace(shift=low, scale=high - low)
    highest = 255.0 if training.dtype == np.uint8 else 1.0
    if not isinstance(scaling, str):
        numbers = isinstance(scaling, list) and all(isinstance(value, int | float) for value in scaling)
        if not (numbers and image and len(scaling) == 2 and scaling[1] > 0):
            rule = "must be unit, standard, gcn, or [mean, standard deviation > 0] of the pixels of images"
            raise InputError(f"dataset.scaling={scaling}: {rule}")
        mean, deviation = (torch.as_tensor(value * highest, dtype=dtype) for value in scaling)
        return Preprocessing(size, False, mean, deviation)
    if image or (scaling == "unit" and training.min() >= 0 and training.max() <= 1):
        return Preprocessing(size, False, torch.zeros((), dtype=dtype), torch.full((), highest, dtype=dtype))
    spread = training.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1  # a constant feature
    centre = training.mean(axis=0, dtype=np.float64)
    return Preprocessing(size, False, torch.as_tensor(centre, dtype=dtype), torch.as_tensor(spread, dtype=dtype))


def resized(images: Tensor, size: int) -> Tensor:
    """Images (n, channels, height, width), uint8 or float, resized to squares by bilinear interpolation."""
    parts = [
        functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in images.split(1000)  # floats of all at once would be four times the memory
    ]
    if images.dtype == torch.uint8:
        parts = [part.round().clamp(0, 255).to(torch.uint8) for part in parts]
    return torch.cat(parts) if parts else images.new_zeros(0, images.shape[1], size, size)


def contrast_normalised(images: Tensor) -> Tensor:
    """Global contrast normalisation: each image, less its mean, divided by its mean absolute value.

    Args:
        images: Floats, shape (n, ...).

    Returns:
        Floats, shape (n, ...); an image of one value becomes 0.
    """
    flat = images.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    spread = flat.abs().mean(dim=1, keepdim=True)
    return (flat / spread.where(spread > 0, 1.0)).view_as(images)
