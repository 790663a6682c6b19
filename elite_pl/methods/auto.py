"""The recommended method: several methods together, weighted by what cross-fitted labels say of each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.annotations import Positive, Range, Share, argument_kinds, at_least, check, checked
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import BaseDetector
from elite_pl.models.mixture import Member, Mixture

# By what a prior can be scaled, see `Auto`: functions of A and of π.
SCALES: dict[str, Callable[[float, float], float]] = {
    "clean": lambda area, pollution: 1 - pollution,
    "polluted": lambda area, pollution: pollution,
    "odds": lambda area, pollution: min(max(area / max(1 - area, 1e-6), 2.0), 32.0),
}
KINDS = ("vectors", "images", "features")  # of data
ROOT = ("method", "feature_map", "augmentation", "backbone", "trainer", "epochs", "batch_size")  # a candidate's own

Folds = Annotated[int, Range("0 or a whole number of at least 2", lambda value: value == 0 or value >= 2)]
Scale = Annotated[str, Range(f"one of {', '.join(SCALES)}", lambda value: value in SCALES)]


@dataclass(frozen=True)
class Terms:
    """How a candidate takes part in a mean.

    Attributes:
        prior: Its weight where nothing else is known.
        scaled_by: The quantities that scale the prior, see `Auto`.
        seeds: How many trainings from different seeds it averages.
    """

    prior: Positive = 1.0
    scaled_by: Sequence[Scale] = ()
    seeds: Annotated[int, at_least(1)] = 1

    @classmethod
    def of(cls, candidate: Mapping[str, Any]) -> "Terms":
        """Those of a candidate, among its other keys."""
        return cls(**{key: candidate[key] for key in TERMS if key in candidate})


TERMS = tuple(field.name for field in fields(Terms))


class Candidate(NamedTuple):
    """A method that has been trained as one of several.

    Attributes:
        name: The candidate's name.
        terms: How it takes part.
        scores: The trained scores, one per seed.
        unlabeled: Their scores of the unlabeled samples, shape (seeds, N).
        auroc: Its ROC AUC on labeled samples that were held out, with its standard error; None where none were.
        seconds: The time of cross-fitting and training.
    """

    name: str
    terms: Terms
    scores: Sequence[Member]
    unlabeled: Tensor
    auroc: tuple[float, float] | None
    seconds: float


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
        candidates: By kind of data (`KINDS`), then by name: the root keys that differ for it (of `ROOT`, its `method`
            always), and its `Terms`. One that needs labels which are not there is left out; if none is left, those of
            `vectors_unlabeled` and so on take their place.
        folds: By kind of data: parts of the labeled samples that are held out in turn; 0: the priors decide.
        fewest: Labeled samples of each kind below which nothing is held out.
        temperature: By kind of data: see above.
        pollution: π where nothing is held out.
        augmentation: Must be None.
        views: Not used.
        optimizer: Not used, as in `ShallowDetector`.

    Raises:
        ValueError: If a candidate has another key or a value out of its range, or a kind of data lacks one.
    """

    score: Mixture

    @checked
    def __init__(
        self,
        *,
        name: str,
        candidates: dict[str, Any],
        folds: dict[str, Folds],
        fewest: Annotated[int, at_least(2)],
        temperature: dict[str, Positive],
        pollution: Share,
        augmentation: Augmentation | None = None,
        views: Tensor | None = None,
        optimizer: Any = None,
    ) -> None:
        super().__init__()
        if augmentation is not None:
            raise ValueError("augmentation: each candidate has one of its own; expected augmentation=none")
        self.name, self.candidates = name, candidates
        check_candidates(candidates)
        for kind in self.kinds():
            for key, values in (("folds", folds), ("temperature", temperature)):
                if kind not in values:
                    raise ValueError(f"{key}.{kind}: has no value, and there are candidates for {kind}")
        self.folds, self.fewest, self.temperature, self.pollution = folds, fewest, temperature, pollution
        self.score = Mixture([])
        self.found: dict[str, float] = {}

    def kinds(self) -> list[str]:
        """The kinds of data that it has candidates for."""
        return [*dict.fromkeys(group.removesuffix("_unlabeled") for group in self.candidates)]

    def check(self, data: PollutedData) -> None:
        """Refuses a kind of data that it has no candidates for; errors as in `BaseDetector`."""
        super().check(data)
        self.check_kind(kind_of(data))

    def check_kind(self, kind: str) -> None:
        """Refuses a kind of data that it has no candidates for, with a `ValueError`."""
        if kind not in self.kinds():
            suited = " and ".join(self.kinds())
            raise ValueError(f"{self.name} has candidates for {suited}, and the samples are {kind}; use another method")

    def factors(self, candidates: list[Candidate], kind: str, pollution: float) -> list[dict[str, float]]:
        """Of each candidate for a kind of data, the factors of its weight by name; π as described above."""
        best = max(found.auroc[0] for found in candidates if found.auroc) if candidates[0].auroc else 0.0
        factors = []
        for found in candidates:
            area = found.auroc[0] if found.auroc else best
            scales = {by: SCALES[by](area, pollution) for by in found.terms.scaled_by}
            held_out = math.exp((area - best) / self.temperature[kind])
            factors.append({"prior": found.terms.prior, **scales, "held-out labels": held_out})
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
        if pollution is None and any({"clean", "polluted"} & {*found.terms.scaled_by} for found in candidates):
            line += f"; no labels tell the hidden share, so a pollution of {self.pollution:g} is assumed"
        return line

    def facts(self) -> dict[str, float]:
        """Of each candidate its weight, its seconds, and its ROC AUC on labeled samples that were held out; and π."""
        return self.found


def check_candidates(candidates: Mapping[str, Any]) -> None:
    """Compares the candidates of `Auto` with what is said there.

    Raises:
        ValueError: Names the key.
    """
    groups = [kind + suffix for kind in KINDS for suffix in ("", "_unlabeled")]
    for group, named in candidates.items():
        if group not in groups:
            raise ValueError(f"candidates.{group}: is none of {', '.join(groups)}")
        check({f"candidates.{group}": named}, {f"candidates.{group}": dict[str, Any]})
        for place, candidate in ((f"candidates.{group}.{name}", candidate) for name, candidate in named.items()):
            check({place: candidate}, {place: dict[str, Any]})
            if strange := [key for key in candidate if key not in (*TERMS, *ROOT)]:
                raise ValueError(f"{place}.{strange[0]}: is none of {', '.join((*TERMS, *ROOT))}")
            method = f"{place}.method"
            check({method: candidate.get("method")}, {method: dict[str, Any]})
            terms = {f"{place}.{key}": value for key, value in vars(Terms.of(candidate)).items()}
            check(terms, {f"{place}.{key}": kind for key, kind in argument_kinds(Terms).items()})


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
