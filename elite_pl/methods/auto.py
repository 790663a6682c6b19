"""The recommended method: several methods together, weighted by what cross-fitted labels say of each."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.annotations import Share, at_least, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import BaseDetector
from elite_pl.models.mixture import Member, Mixture


class Candidate(NamedTuple):
    """A method that has been trained as one of several.

    Attributes:
        name: The candidate's name.
        prior: Its weight where nothing else is known.
        scaled_by: The quantities that scale the prior, see `Auto`.
        scores: The trained scores, one per seed.
        unlabeled: Their scores of the unlabeled samples, shape (seeds, N).
        auroc: Its ROC AUC on labeled samples that were held out, with its standard error; None where none were.
        seconds: The time of cross-fitting and training.
    """

    name: str
    prior: float
    scaled_by: Sequence[str]
    scores: Sequence[Member]
    unlabeled: Tensor
    auroc: tuple[float, float] | None
    seconds: float


# By what a prior can be scaled, see `Auto`: functions of A and of π.
SCALES: dict[str, Callable[[float, float], float]] = {
    "clean": lambda area, pollution: 1 - pollution,
    "polluted": lambda area, pollution: pollution,
    "odds": lambda area, pollution: min(max(area / max(1 - area, 1e-6), 2.0), 32.0),
}


class Auto(BaseDetector):
    """A weighted mean of the scores of several methods, the candidates for a kind of data; see `Mixture`.

    The weight of a candidate is `prior * exp((A - A_best) / temperature)`, with the ROC AUC A of labeled samples that
    it was not trained on. With 20 labels A is known to some points only: at a temperature of 0.05 a candidate that
    looks 10 points worse than the best counts a seventh of it, at 0.2 three fifths. Where there are too few labels to
    hold some out, the priors decide.

    Held-out labels hardly tell how a candidate copes with hidden anomalies, nor with kinds of them that have no label.
    So a prior can be scaled by what they do tell:

    - `clean`: by 1 - π, with the share π of anomalies among the unlabeled samples, `Posterior.hidden` of the mean of
      all candidates; for learners that take unlabeled samples for normal.
    - `polluted`: by π, for learners that hidden anomalies do not mislead.
    - `odds`: by A / (1 - A), between 2 and 32. Where neighbors share their label, label spreading follows even kinds of
      anomalies that have none, and the others do not.

    `elite_pl.runs.candidates` trains the candidates, each as a run of its own would be.

    Args:
        name: The method's name in logs and tables.
        candidates: By kind of data (`vectors`, `images`, `features`), then by name: the root keys that differ
            for it (`method`, `feature_map`, `backbone`, `epochs` and so on), its `prior` weight (1), what the prior is
            `scaled_by` (nothing), and the number of `seeds` that it averages (1). One that needs labels which are not
            there is left out; if none is left, those of `vectors_unlabeled` and so on take their place.
        folds: By kind of data: parts of the labeled samples that are held out in turn; 0: the priors decide.
        fewest: Labeled samples of each kind below which nothing is held out.
        temperature: By kind of data: see above.
        pollution: π where nothing is held out.
        augmentation: Must be None.
        views: Not used.
        optimizer: Not used, as in `ShallowDetector`.
    """

    score: Mixture

    @checked
    def __init__(
        self,
        *,
        name: str,
        candidates: dict[str, Any],
        folds: dict[str, Any],
        fewest: Annotated[int, at_least(2)],
        temperature: dict[str, Any],
        pollution: Share,
        augmentation: Augmentation | None = None,
        views: Tensor | None = None,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        if augmentation is not None:
            raise ValueError("augmentation: each candidate has one of its own; expected augmentation=none")
        if not all(0 < value < math.inf for value in temperature.values()):
            raise ValueError(f"temperature={temperature}: must be a positive number for each kind of data")
        self.name, self.candidates = name, candidates
        for name, candidate in ((name, one) for group in candidates.values() for name, one in group.items()):
            if unknown := {*candidate.get("scaled_by", [])} - {*SCALES}:
                raise ValueError(f"{name}.scaled_by: {', '.join(unknown)}: is none of {', '.join(SCALES)}")
        self.folds, self.fewest, self.temperature, self.pollution = folds, fewest, temperature, pollution
        self.score = Mixture([])
        self.found: dict[str, float] = {}

    def check(self, data: PollutedData) -> None:
        """Refuses a kind of data that it has no candidates for; errors as in `BaseDetector`."""
        super().check(data)
        kinds = [*dict.fromkeys(group.removesuffix("_unlabeled") for group in self.candidates)]
        if (kind := kind_of(data)) not in kinds:
            suited = " and ".join(kinds)
            raise ValueError(f"{self.name} has candidates for {suited}, and the samples are {kind}; use another method")

    def factors(self, candidates: list[Candidate], kind: str, pollution: float) -> list[dict[str, float]]:
        """Of each candidate for a kind of data, the factors of its weight by name; π as described above."""
        best = max(found.auroc[0] for found in candidates if found.auroc) if candidates[0].auroc else 0.0
        factors = []
        for found in candidates:
            area = found.auroc[0] if found.auroc else best
            scales = {by: SCALES[by](area, pollution) for by in found.scaled_by}
            held_out = math.exp((area - best) / self.temperature[kind])
            factors.append({"prior": found.prior, **scales, "held-out labels": held_out})
        return factors

    def combine(self, candidates: list[Candidate], kind: str, pollution: float | None = None) -> str:
        """Makes the score from trained candidates.

        Args:
            candidates: The candidates.
            kind: Their kind of data.
            pollution: π; None where no labels were held out that tell it.

        Returns:
            A line that says with which weights, and why.
        """
        if pollution is not None:
            self.found["auto/pollution"] = pollution
        factors = self.factors(candidates, kind, self.pollution if pollution is None else pollution)
        weights = normalized(factors)
        scores = torch.cat([found.unlabeled for found in candidates])
        self.score = Mixture([score for found in candidates for score in found.scores])
        each = []  # seed
        for weight, found in zip(weights, candidates, strict=True):
            each += [weight / len(found.scores)] * len(found.scores)
            facts = {"weight": weight, "seconds": found.seconds}
            if found.auroc:
                facts["auroc_cross_fitted"], facts["error"] = found.auroc
            self.found |= {f"auto/{found.name}/{key}": value for key, value in facts.items()}
        self.score.set(torch.tensor(each), scores)
        line = ", ".join(map(explained, candidates, weights, factors))
        if pollution is None and any({"clean", "polluted"} & {*found.scaled_by} for found in candidates):
            line += f"; no labels tell the hidden share, so a pollution of {self.pollution:g} is assumed"
        return line

    def facts(self) -> dict[str, float]:
        """Of each candidate its weight, its seconds, and its ROC AUC on labeled samples that were held out; and π."""
        return self.found


def kind_of(data: PollutedData) -> str:
    """The kind of data by which candidates are listed."""
    return "features" if data.features else "vectors" if len(data.sample_shape) == 1 else "images"


def normalized(factors: Sequence[Mapping[str, float]]) -> list[float]:
    """The products of the factors of some weights, divided by their sum."""
    products = [math.prod(each.values()) for each in factors]
    return [product / sum(products) for product in products]


def explained(found: Candidate, weight: float, factors: Mapping[str, float]) -> str:
    """`extra_trees 10 % (prior 2, held-out labels 0.78)`: a weight, and those of its factors that are not 1."""
    reasons = ", ".join(f"{name} {factor:.2g}" for name, factor in factors.items() if f"{factor:.2g}" != "1")
    return f"{found.name} {100 * weight:.0f} %" + (f" ({reasons})" if reasons else "")
