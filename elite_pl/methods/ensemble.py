"""Several trainings of one method that score together."""

from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import BaseDetector
from elite_pl.models.mixture import Mixture


class Ensemble(BaseDetector):
    """The mean rarity of the scores of one method, trained from several seeds on the same samples; see `Mixture`.

    `elite_pl.runs.ensembles` trains them, each as a run of its own would be, together where they can be. Held-out
    samples are scored by single trainings, whose shares the ensemble's own scores turn into scores. Its audit has no
    meta-gradient.

    Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    NeurIPS 2017.

    Args:
        one: The method's detector, which is not trained; it says what it is, and which data suit it.
        seeds: How many are trained.
    """

    score: Mixture

    def __init__(self, one: BaseDetector, seeds: int) -> None:
        super().__init__()
        self.one, self.name, self.seeds = one, one.name, seeds
        self.score = Mixture([])

    @property
    def backbone_name(self) -> str:
        """The name of its networks in logs and tables."""
        return self.one.backbone_name

    def check(self, data: PollutedData) -> None:
        """Refuses data that the method cannot learn from; errors as in `BaseDetector`."""
        self.one.check(data)
