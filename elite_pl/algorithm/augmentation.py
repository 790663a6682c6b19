"""Random changes of samples that leave open neither what they show nor whether it is normal. Torch only.

An augmentation maps samples (n, ...) and a generator to changed samples of the same shape. All that is random is drawn
on the CPU, sample by sample in order, so that neither the device nor the number of processes changes what is drawn.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Augmentation(Protocol):
    """What changes samples at random."""

    def __call__(self, sample: Tensor, generator: torch.Generator) -> Tensor:
        """Maps samples (n, ...) to changed ones (n, ...)."""
        ...


@dataclass(frozen=True)
class Affine:
    """A random affine map of each image, bilinear, with the border's pixels beyond it.

    Every amount is drawn uniformly between minus and plus its bound.

    Args:
        shift: Pixels, in both directions.
        rotation: Degrees.
        scale: Share by which an image grows or shrinks, in [0, 1).
        shear: Horizontal shift of a row for each row of distance from the middle.
        flip: Whether half of the images are mirrored.

    Raises:
        ValueError: If a bound is negative or too large.

    Example:
        >>> images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> Affine(shift=2, rotation=18)(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("shift", "rotation", "shear"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative, nor infinite")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale={self.scale}: must be in [0, 1)")

    def __call__(self, sample: Tensor, generator: torch.Generator) -> Tensor:
        """Maps images (n, channels, height, width) to changed ones of the same shape."""
        if sample.ndim != 4:
            raise ValueError(f"samples of shape {tuple(sample.shape[1:])} are no images; an affine map needs some")
        n, (height, width) = len(sample), sample.shape[2:]
        draws = 2 * torch.rand(n, 6, generator=generator, dtype=torch.float64) - 1
        dx, dy, angle, growth, shear = (draws[:, :5] * self._bounds()).T
        mirror = torch.where(draws[:, 5] < 0, -1.0, 1.0) if self.flip else torch.ones(n)
        cos, sin, zoom = angle.cos(), angle.sin(), 1 / (1 + growth)
        # Where in the image a pixel comes from, in pixels from the middle: rotation, shear, zoom, mirror.
        a, b = zoom * cos * mirror, zoom * (cos * shear - sin)
        c, d = zoom * sin * mirror, zoom * (sin * shear + cos)
        across = height / width  # affine_grid counts in halves of the image
        rows = [torch.stack(row, 1) for row in ((a, b * across, -2 * dx / width), (c / across, d, -2 * dy / height))]
        theta = torch.stack(rows, 1).to(sample)
        grid = functional.affine_grid(theta, list(sample.shape), align_corners=False)
        return functional.grid_sample(sample, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _bounds(self) -> Tensor:
        amounts = [self.shift, self.shift, math.radians(self.rotation), self.scale, self.shear]
        return torch.tensor(amounts, dtype=torch.float64)


@dataclass(frozen=True)
class FeatureNoise:
    """Gaussian noise on each feature, and features that are replaced by those of another sample of the batch.

    Args:
        noise: Standard deviation, in units of the scaled features.
        swap: Chance of a feature to be replaced, in [0, 1].

    Raises:
        ValueError: If a value is out of its range.

    Source: the replacement is that of Bahri et al., "SCARF: Self-Supervised Contrastive Learning using Random Feature
    Corruption", ICLR 2022.
    """

    noise: float = 0.0
    swap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: must not be negative, nor infinite")
        if not 0 <= self.swap <= 1:
            raise ValueError(f"swap={self.swap}: must be in [0, 1]")

    def __call__(self, sample: Tensor, generator: torch.Generator) -> Tensor:
        """Maps samples (n, ...) to changed ones (n, ...)."""
        other = sample[torch.randperm(len(sample), generator=generator).to(sample.device)]
        replaced = torch.rand(sample.shape, generator=generator) < self.swap
        noise = torch.randn(sample.shape, generator=generator) * self.noise
        return torch.where(replaced.to(sample.device), other, sample) + noise.to(sample)
