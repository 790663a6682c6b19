"""Histograms of oriented gradients: images as vectors, for methods that take no images. Nothing is learned."""

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from elite_pl.annotations import Positive, at_least, checked

SMALLEST = 4  # pixels of a side: two cells


class OrientedGradients(nn.Module):
    """Histograms of oriented gradients (HOG) of images, multiplied by one factor.

    At each pixel the central differences of the channel in which they are longest vote for their two nearest
    orientations, by their length. A square cell collects the votes around its center, fewer from farther away. Each
    block of 2 x 2 neighboring cells is divided by its length, and the blocks stand side by side: so a shift by few
    pixels, or another contrast, changes little.

    Source: Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.

    Args:
        cells: About how many fit into the shorter side of an image; a cell has at least 2 x 2 pixels.
        orientations: Of the histogram of a cell, between 0 and 180 degrees.
        factor: Shape ().
    """

    BLOCK = 2
    DARK = 0.01  # the length of a block that counts as none, where pixels lie in [0, 1]
    factor: Tensor

    def __init__(self, cells: int, orientations: int, factor: Tensor) -> None:
        super().__init__()
        self.cells, self.orientations = cells, orientations
        self.register_buffer("factor", factor)

    def to_plain(self) -> dict[str, Any]:
        """Its arguments, on the CPU."""
        return {"cells": self.cells, "orientations": self.orientations, "factor": self.factor.cpu()}

    def forward(self, sample: Tensor) -> Tensor:
        """Maps images (n, channels, height, width) to vectors (n, blocks * 4 * orientations)."""
        cell = max(2, min(sample.shape[2:]) // self.cells)
        histograms = self.collected(self.votes(sample), cell)
        blocks = functional.unfold(histograms, self.BLOCK)
        length = (blocks.square().sum(dim=1, keepdim=True) + self.DARK**2).sqrt()
        return (blocks / length).flatten(1) * self.factor

    def votes(self, sample: Tensor) -> Tensor:
        """Returns the vote of each pixel for each orientation, shape (n, orientations, height, width)."""
        across = functional.pad(sample, (1, 1, 0, 0), mode="replicate")
        down = functional.pad(sample, (0, 0, 1, 1), mode="replicate")
        x, y = across[..., 2:] - across[..., :-2], down[..., 2:, :] - down[..., :-2, :]
        length, strongest = (x.square() + y.square()).max(dim=1, keepdim=True)
        x, y = x.gather(1, strongest), y.gather(1, strongest)
        place = torch.atan2(y, x) * (self.orientations / math.pi)  # a turn by 180 degrees is one by all orientations
        number = torch.arange(self.orientations, device=sample.device, dtype=sample.dtype).view(1, -1, 1, 1)
        apart = torch.remainder(place - number, self.orientations)
        apart = torch.minimum(apart, self.orientations - apart)
        return length.sqrt() * (1 - apart).clamp(min=0)

    def collected(self, votes: Tensor, cell: int) -> Tensor:
        """The mean votes of each cell, shape (n, orientations, rows, columns), by weights that fall linearly."""
        ramp = torch.arange(1, cell + 1, device=votes.device, dtype=votes.dtype) - 0.5
        weight = torch.cat([ramp, ramp.flip(0)]) / cell**2
        kernel = (weight[:, None] * weight).expand(self.orientations, 1, -1, -1)
        return functional.conv2d(votes, kernel, stride=cell, padding=cell // 2, groups=self.orientations)


@checked
def oriented_gradients(
    samples: Tensor,
    cells: Annotated[int, at_least(2)],
    orientations: Annotated[int, at_least(2)],
    norm: Positive | None,
) -> OrientedGradients:
    """Makes an `OrientedGradients`.

    Args:
        samples: Training images, labeled and unlabeled, shape (n, channels, height, width); of many, some that stand
            for all.
        cells: See `OrientedGradients`.
        orientations: See `OrientedGradients`.
        norm: Root mean square length of the vectors that it makes of `samples`; None leaves them as they are.

    Raises:
        ValueError: If an argument is not as annotated, or samples are no images, or are smaller than 4 x 4 pixels.
    """
    if samples.ndim != 4 or min(samples.shape[2:]) < SMALLEST:
        raise ValueError(f"needs images of at least 4 x 4 pixels; the shape of a sample is {tuple(samples.shape[1:])}")
    made = OrientedGradients(cells, orientations, torch.ones((), dtype=samples.dtype))
    if norm is not None:
        lengths = torch.cat([made(part).square().sum(dim=1) for part in samples.split(1000)])
        if (length := lengths.mean().sqrt()) > 0:
            made.factor.copy_(norm / length)
    return made
