"""Augmentations: random changes of samples that keep their content and their label. Torch only.

An augmentation turns samples and random numbers into changed samples. The numbers are drawn on the CPU, for all samples
of a batch in order, and every sample is changed by its own: so neither the device nor the number of processes changes
what comes out. At test time a few fixed draws, the same for every sample, make views whose scores are averaged.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.quasirandom import SobolEngine

from elite_pl.annotations import Count, NotNegative, Share, argument_kinds, check


class Augmentation(ABC):
    """Random changes of samples."""

    test_views: int

    def __post_init__(self) -> None:
        check(vars(self), argument_kinds(type(self)))

    @abstractmethod
    def width(self, sample_shape: tuple[int, ...]) -> int:
        """Number of random numbers that change a sample of this shape."""

    @abstractmethod
    def apply(self, sample: Tensor, draws: Tensor) -> Tensor:
        """Changes samples (n, ...), each by its own row of numbers (n, width) in [-1, 1]; same shape."""

    def __call__(self, sample: Tensor, generator: torch.Generator) -> Tensor:
        """Changes samples (n, ...) at random."""
        return self.apply(sample, self.draw(len(sample), tuple(sample.shape[1:]), generator))

    def draw(self, n: int, sample_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The numbers for n samples, uniform in [-1, 1], shape (n, width), float32 on the CPU."""
        return 2 * torch.rand(n, self.width(sample_shape), generator=generator, dtype=torch.float32) - 1

    def views(self, sample_shape: tuple[int, ...]) -> Tensor:
        """The draws of the views at test time, spread evenly, shape (test_views, width)."""
        width = self.width(sample_shape)
        if width <= SobolEngine.MAXDIM:
            return 2 * SobolEngine(width, scramble=True, seed=0).draw(self.test_views) - 1
        return self.draw(self.test_views, sample_shape, torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Affine(Augmentation):
    """A random affine map of each image, bilinear, with the border's pixels beyond it.

    Every amount is drawn uniformly between minus and plus its bound.

    Args:
        shift: Pixels, in both directions.
        rotation: Degrees.
        scale: Share by which an image grows or shrinks, in [0, 1).
        shear: Horizontal shift of a row for each row of distance from the middle.
        flip: Whether half of the images are mirrored.
        test_views: Views of each image whose scores are averaged at test time; 0 for the image itself, which a network
            that has seen interpolated images alone does not know.

    Raises:
        ValueError: If a bound is negative or too large.

    Example:
        >>> images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> Affine(shift=2, rotation=18)(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
    """

    shift: NotNegative = 0.0
    rotation: NotNegative = 0.0
    scale: Share = 0.0
    shear: NotNegative = 0.0
    flip: bool = False
    test_views: Count = 8

    def width(self, sample_shape: tuple[int, ...]) -> int:
        """Shift in two directions, rotation, scale, shear, mirror."""
        if len(sample_shape) != 3:
            raise ValueError(f"samples of shape {sample_shape} are no images; an affine map needs some")
        return 6

    def apply(self, sample: Tensor, draws: Tensor) -> Tensor:
        """Maps images (n, channels, height, width) to changed ones of the same shape."""
        height, width = sample.shape[2:]
        bounds = draws.new_tensor([self.shift, self.shift, math.radians(self.rotation), self.scale, self.shear])
        dx, dy, angle, growth, shear = (draws[:, :5] * bounds).T
        mirror = torch.where(draws[:, 5] < 0, -1.0, 1.0) if self.flip else torch.ones(draws.shape[0])
        cos, sin, zoom = angle.cos(), angle.sin(), 1 / (1 + growth)
        # Where in the image a pixel comes from, in pixels from the middle: rotation, shear, zoom, mirror.
        a, b = zoom * cos * mirror, zoom * (cos * shear - sin)
        c, d = zoom * sin * mirror, zoom * (sin * shear + cos)
        across = height / width  # affine_grid counts in halves of the image
        rows = [torch.stack(row, 1) for row in ((a, b * across, -2 * dx / width), (c / across, d, -2 * dy / height))]
        theta = torch.stack(rows, 1).to(sample)
        grid = functional.affine_grid(theta, list(sample.shape), align_corners=False)
        return functional.grid_sample(sample, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class FeatureNoise(Augmentation):
    """Uniform noise on each feature.

    Args:
        noise: Standard deviation, in units of the scaled features.
        test_views: Views of each sample whose scores are averaged at test time; 0 for the sample itself.

    Raises:
        ValueError: If a value is negative.
    """

    noise: NotNegative = 0.1
    test_views: Count = 0

    def width(self, sample_shape: tuple[int, ...]) -> int:
        """A number for each feature."""
        return math.prod(sample_shape)

    def apply(self, sample: Tensor, draws: Tensor) -> Tensor:
        """Maps samples (n, ...) to changed ones of the same shape."""
        return sample + self.noise * math.sqrt(3) * draws.view(draws.shape[0], *sample.shape[1:]).to(sample)
