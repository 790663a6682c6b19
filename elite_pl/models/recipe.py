"""Rebuilds a trained score from an allow-list of constructors, plain arguments and tensors. Torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.algorithm import augmentation
from elite_pl.annotations import argument_kinds, is_of
from elite_pl.errors import one_line
from elite_pl.models import fitted, networks, pretrained, scores
from elite_pl.models.fitted import Fitted
from elite_pl.models.scores import MeanOverViews, Score

LONGEST = 1000  # layers that a list may describe


def _public(*constructors: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {f"elite_pl.models.{constructor.__name__}": constructor for constructor in constructors}


NETWORKS = _public(networks.auto, networks.lenet, networks.mlp, networks.strided, pretrained.fine_tuned)
HEADS = (scores.BoundedHead, scores.PairRelation, scores.Readout, scores.ScalarHead)
SCORES = _public(scores.Hypersphere, scores.Reconstruction, scores.RobustSubspace, *HEADS)
# These are made without a network.
FITTED = _public(fitted.ClassTrees, fitted.IsolationTrees, fitted.KernelExpansion, fitted.Linear, fitted.NeighborMean)
AUGMENTATIONS = {
    f"elite_pl.algorithm.{kind.__name__}": kind for kind in (augmentation.Affine, augmentation.FeatureNoise)
}


class Part(NamedTuple):
    """A call of a constructor.

    Attributes:
        constructor: Its address, such as `elite_pl.models.mlp`.
        arguments: Plain values by name.
    """

    constructor: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, node: dict[str, Any]) -> Part:
        """The call that a node of a configuration stands for: `_target_`, and arguments."""
        special = ("_target_", "_partial_", "_convert_", "_recursive_")
        return cls(node["_target_"], {name: value for name, value in node.items() if name not in special})

    def call(self, allowed: Mapping[str, Callable[..., Any]], *given: Any) -> Any:
        """Calls the constructor.

        Args:
            allowed: The objects that an address may stand for; nothing is imported.
            given: The arguments that are not part of the recipe.

        Raises:
            ValueError: If the address stands for nothing, or the constructor of ours has no such arguments.
        """
        if self.constructor not in allowed:
            name = f"{self.constructor!r:.100}"
            raise ValueError(f"{name} is none of ours; if you trust it, pass constructors={{{name}: ...}}")
        constructor = allowed[self.constructor]
        if constructor in (*NETWORKS.values(), *SCORES.values(), *FITTED.values(), *AUGMENTATIONS.values()):
            kinds = argument_kinds(constructor)
            for name, value in self.arguments.items():
                short = not isinstance(value, list | dict) or (isinstance(value, list) and len(value) <= LONGEST)
                if name not in kinds or not (short and is_of(value, kinds[name])):
                    raise ValueError(f"{self.constructor} takes no {name}={value!r:.60}")
        return constructor(*given, **self.arguments)


class Recipe(NamedTuple):
    """The recipe of a score: the constructors that build it, with their arguments.

    Attributes:
        network: Makes the backbone from the shape of a sample; None for a score without one.
        score: Makes the score from the backbone.
        augmentation: Makes the views over which the score is averaged; None for a score of the samples themselves.
    """

    network: Part | None
    score: Part
    augmentation: Part | None = None

    @classmethod
    def of(cls, config: dict[str, Any], score: Score, needs_backbone: bool, over_views: bool) -> Recipe:
        """The recipe of a score that a configuration has made.

        Args:
            config: The configuration, plain.
            score: The score.
            needs_backbone: Whether it is made from a backbone.
            over_views: Whether its mean over views is what scores.
        """
        config, kind = renamed(config, PUBLIC), type(score)
        node = config["method"].get("score")
        if isinstance(node, dict) and "_target_" in node:
            part = Part.of(node)
        else:
            ours = {constructor: address for address, constructor in (SCORES | FITTED).items()}
            part = Part(ours.get(kind, f"{kind.__module__}.{kind.__qualname__}"), {})
        network = Part.of(config["backbone"]) if needs_backbone else None
        if network is not None and network.constructor == "elite_pl.models.pretrained_network":
            network = _without_weights(**network.arguments)
        return cls(network, part, Part.of(config["augmentation"]) if over_views else None)

    def to_plain(self) -> dict[str, Any]:
        """The parts as plain values."""
        return {name: part and part._asdict() for name, part in self._asdict().items()}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Recipe:
        """Reads what `to_plain` describes, which may stand among other keys."""
        return cls(*(plain[name] and Part(**plain[name]) for name in cls._fields))

    def make(
        self,
        sample_shape: tuple[int, ...],
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        constructors: Mapping[str, Callable[..., Any]],
    ) -> Score:
        """The score with its weights, on the CPU, in evaluation mode. No more memory is taken than the weights have.

        Args:
            sample_shape: Of one sample, as the network sees it.
            state: The weights and buffers.
            dtype: Of the network's arithmetic.
            constructors: The user's own networks and scores by their addresses, besides ours.

        Raises:
            ValueError: If there is no such score, or the weights are not its own.
        """

        def score() -> Score:
            if self.network is None:
                made = self.score.call({**FITTED, **constructors})
            else:
                backbone = self.network.call({**NETWORKS, **constructors}, sample_shape)
                made = self.score.call({**SCORES, **constructors}, backbone)
            made = made.to(dtype)
            if self.augmentation is None:
                return made
            changes = self.augmentation.call({**AUGMENTATIONS, **constructors})
            views = state["views"]
            blank = torch.zeros(len(views), changes.width(sample_shape), dtype=views.dtype)
            return MeanOverViews(made, changes, blank)

        try:
            with torch.device("meta"):  # has sizes, and takes no memory
                score().load_state_dict(state, assign=True)
            with torch.random.fork_rng(devices=[]):
                made = score()
            for name, value in made.state_dict().items():
                if _kind(value) != _kind(state[name]):
                    raise ValueError(f"{name} is of type {state[name].dtype}, which {value.dtype} cannot be")
            made.load_state_dict(state)
            plain = made.score if isinstance(made, MeanOverViews) else made
            if isinstance(plain, Fitted):
                plain.check(math.prod(sample_shape))
        except Exception as error:  # whatever constructors stumble over
            raise ValueError(f"its score cannot be rebuilt: {one_line(error)[:300]}") from error
        return made.eval()


def _without_weights(
    library: str, model: str, image_size: int, weights: str | None, frozen: bool, **perceptron: Any
) -> Part:
    """The backbone of a `pretrained_network`: the weights that are part of the score are kept with it."""
    if frozen:
        return Part("elite_pl.models.mlp", perceptron)
    network = {"library": library, "model": model, "image_size": image_size}
    return Part("elite_pl.models.fine_tuned", {**network, **perceptron})


def _kind(value: Tensor) -> str:
    """The kind of a tensor's values: floats of any precision, whole numbers, or true and false."""
    return "float" if value.is_floating_point() else "bool" if value.dtype is torch.bool else "int"
