"""Training samples after their feature map, kept: several trainings on the same samples share them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from elite_pl.data.preprocessing import Preprocessing
from elite_pl.data.rows import Rows

MOST = 2**30  # bytes that are kept; more samples go through the map each time


class Mapped:
    """Maps each training sample when it is first asked for, and keeps the result in memory.

    Memory is taken by those samples alone that have been asked for.

    Args:
        count: How many samples the training set has, used or not.
        like: Any one mapped sample, shape (1, ...).
        preprocessing: Scales and maps them.
    """

    def __init__(self, count: int, like: Tensor, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.values = like.new_empty(count, *like.shape[1:])
        self.known = torch.zeros(count, dtype=torch.bool)

    @classmethod
    def of(cls, kept: list[Mapped], training: np.ndarray, preprocessing: Preprocessing) -> Mapped | None:
        """The one of `kept` with the same preprocessing, or a new one, which is added.

        Args:
            kept: Those of the same training set.
            training: The training set, as it is stored, shape (n, ...).
            preprocessing: How its samples become those that methods see.

        Returns:
            None where there is no feature map, or its results would take too much memory.
        """
        if preprocessing.feature_map is None or not len(training):
            return None
        for one in kept:
            if preprocessing.same(one.preprocessing):
                return one
        like = preprocessing.scaled(preprocessing.once(Rows(training)[:1].copy()))  # PyTorch warns of read-only files
        if len(training) * like.nbytes > MOST:
            return None
        kept.append(cls(len(training), like, preprocessing))
        return kept[-1]

    def gather(self, rows: Rows, index: Tensor | slice, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns mapped samples, shape (m, ...).

        Args:
            rows: Some of the training set.
            index: Which of them, (m,).
            compute: Maps those at given places of `rows`.
        """
        index = torch.arange(len(rows))[index]
        places = index if rows.index is None else torch.as_tensor(rows.index)[index]
        new = ~self.known[places]
        if new.any():
            self.values[places[new]] = compute(index[new])
            self.known[places[new]] = True
        return self.values[places]
