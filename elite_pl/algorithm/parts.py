"""Samples in parts, where all of them at once would take too much memory. Torch only."""

from collections.abc import Sequence

import torch
from torch import Tensor


def parts_of(samples: Tensor, size: int) -> Sequence[Tensor]:
    """Samples (n, ...) in parts of a size; whole while a graph is exported, in which n has no value yet."""
    return [samples] if torch.compiler.is_exporting() else samples.split(size)
