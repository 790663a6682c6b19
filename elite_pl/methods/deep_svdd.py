"""Deep SVDD: draws all training samples to the center, treating each of them as normal."""

from torch import Tensor

from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector


class DeepSvdd(Detector):
    """Minimizes the mean score of the unlabeled samples.

    Source: Eq. 2 of the ELITE paper, after Ruff et al., "Deep One-Class Classification", ICML 2018.
    """

    stackable = True

    def loss(self, batch: Batch) -> Tensor:
        """The mean score of the unlabeled batch."""
        return self.unlabeled_score(batch).mean(-1)
