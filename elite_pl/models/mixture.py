"""A score that several detectors make together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from elite_pl.data.feature_maps import AnyFeatureMap, level, of_plain, same
from elite_pl.models.recipe import Recipe
from elite_pl.models.scores import Score


class Member(nn.Module):
    """One of several scores, with all that it takes to make it again.

    Args:
        score: Ω.
        recipe: How it is made.
        sample_shape: Of what it scores.
        feature_map: The map that samples go through before; None for none.
    """

    def __init__(
        self, score: Score, recipe: Recipe, sample_shape: tuple[int, ...], feature_map: AnyFeatureMap | None
    ) -> None:
        super().__init__()
        self.score, self.recipe, self.sample_shape, self.feature_map = score, recipe, sample_shape, feature_map

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values and tensors on the CPU."""
        return {
            **self.recipe.to_plain(),
            "state": {name: value.cpu() for name, value in self.score.state_dict().items()},
            "sample_shape": list(self.sample_shape),
            "feature_map": self.feature_map and self.feature_map.to_plain(),
        }

    @classmethod
    def of_plain(
        cls, plain: Mapping[str, Any], dtype: torch.dtype, constructors: Mapping[str, Callable[..., Any]]
    ) -> Member:
        """Makes what `to_plain` describes; other arguments and errors as in `Recipe.make`."""
        recipe, shape, mapped = Recipe.of_plain(plain), tuple(plain["sample_shape"]), plain["feature_map"]
        score = recipe.make(shape, plain["state"], dtype, constructors)
        return cls(score, recipe, shape, mapped and of_plain(mapped))


class Mixture(Score):
    """A weighted mean of the rarity of the scores of several members among unlabeled samples: `Ω(x) = Σ_k w_k r_k(x)`.

    `r_k = -log(1 - u)` for a score above a share u of the member's scores of the unlabeled training samples, linear
    between 257 knots. Beyond the highest and lowest of these scores it is linear, in units of their standard deviation.

    Args:
        members: The scores Ω_k; those whose feature maps do the same get one in common, which then works once for all.

    Attributes:
        weight: w_k, shape (members,), with sum 1.
        knots: Scores of each member at equally spaced r, shape (knots, members).
        rarest: r at the last of them, shape ().
        scale: The standard deviation of the scores, shape (members,).
    """

    KNOTS = 257
    weight: Tensor
    knots: Tensor
    rarest: Tensor
    scale: Tensor

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        maps: list[AnyFeatureMap] = []
        for member in members:
            if member.feature_map is not None:
                member.feature_map = next((one for one in maps if same(one, member.feature_map)), member.feature_map)
                maps.append(member.feature_map)
        self.members = nn.ModuleList(members)
        self.register_buffer("weight", torch.full((len(members),), 1 / max(1, len(members))))
        self.register_buffer("knots", torch.zeros(self.KNOTS, len(members)))
        self.register_buffer("rarest", torch.zeros(()))
        self.register_buffer("scale", torch.ones(len(members)))

    def to_plain(self) -> list[dict[str, Any]]:
        """The members, as `Member.to_plain` describes them."""
        return [cast(Member, member).to_plain() for member in self.members]

    def state(self) -> dict[str, Tensor]:
        """The buffers, without what is in the members."""
        return dict(self.named_buffers(recurse=False))

    def set(self, weight: Tensor, unlabeled: Tensor) -> None:
        """Takes the weights, and the members' scores of the unlabeled samples, shape (members, N)."""
        self.weight.copy_(weight)
        count = unlabeled.shape[1]
        self.rarest.fill_(math.log(count + 1))
        share = -torch.expm1(-torch.linspace(0, 1, self.KNOTS, dtype=torch.float64) * math.log(count + 1))
        levels = (share * (count + 1) / count).clamp(max=1).to(unlabeled.dtype)
        self.knots.copy_(torch.stack([scores.quantile(levels) for scores in unlabeled], dim=1))
        scale = unlabeled.std(1, correction=0)
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))

    def mean(self, scores: Tensor) -> Tensor:
        """The scores Ω from those of the members, shape (n, members), as a tensor of shape (n,)."""
        knots, scale, weight, rarest = (
            value.to(scores.dtype) for value in (self.knots, self.scale, self.weight, self.rarest)
        )
        beyond = (scores - knots[-1]).clamp(min=0) - (knots[0] - scores).clamp(min=0)
        return (level(scores, knots) * rarest + beyond / scale) @ weight

    @classmethod
    def of_plain(
        cls,
        members: Sequence[Mapping[str, Any]],
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        constructors: Mapping[str, Callable[..., Any]],
    ) -> Mixture:
        """The mixture of members that `Member.to_plain` describes.

        Args:
            members: Of each what it is made of.
            state: The buffers.
            dtype: As in `Recipe.make`.
            constructors: As in `Recipe.make`, and so are the errors.
        """
        made = cls([Member.of_plain(member, dtype, constructors) for member in members]).to(dtype)
        if "location" in state:  # of older files: all scores go on beyond one knot
            made.knots = made.knots[:2]
            state = {
                "weight": state["weight"],
                "knots": state["location"].expand(2, -1),
                "rarest": made.rarest,
                "scale": state["scale"],
            }
        own = made.state()
        if (
            {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}
            or not (state["knots"].diff(dim=0) >= 0).all()
            or not (state["scale"] > 0).all()
        ):
            raise ValueError("its score cannot be rebuilt: the members and their weights do not go together")
        for name, value in own.items():
            value.copy_(state[name])
        return made.eval()

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        mapped: dict[AnyFeatureMap, Tensor] = {}
        scores = []
        for member in cast(Sequence[Member], self.members):
            if (own := member.feature_map) is not None and own not in mapped:
                mapped[own] = own(sample)
            scores.append(member.score(sample if own is None else mapped[own]))
        return self.mean(torch.stack(scores, dim=1).to(self.weight.dtype))
