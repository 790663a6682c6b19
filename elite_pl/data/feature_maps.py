"""Feature maps that replace vectors by richer ones before any method sees them; fitted without labels."""

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from elite_pl.annotations import Positive, Range, checked
from elite_pl.data.gradients import OrientedGradients

LEVELS = 257  # quantiles that are kept of a feature
ENOUGH = 100_000  # rows that tell the quantiles of all
ENOUGH_IMAGES = 10_000

Bins = Annotated[int, Range("a power of 2 up to 256, or 0", lambda value: value in (0, *(2**i for i in range(9))))]


class FeatureMap(nn.Module):
    """Maps vectors x, feature by feature, to parts that stand side by side, multiplied by one factor.

    The parts are x standardized, clipped at `FAR`; what x would be if the feature were Gaussian, from its quantiles,
    clipped at `RARE`; and the piecewise linear encoding of x over bins between quantiles, times `HALF`: for each bin
    0 below it, 1 above it, and linear within. A feature that was constant in training has no bins.

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022, arXiv
    2203.05556, has the encoding, whose first and last bins go on linearly there.

    Args:
        mean: Of each feature, shape (features,).
        deviation: Its standard deviation, shape (features,).
        quantiles: Of each feature at equally spaced levels from 0 to 1, shape (levels, features).
        gaussian: Whether the second part is there.
        bins: Of the third part, a divisor of levels - 1; 0 for none.
        factor: Shape ().
    """

    FAR, RARE, HALF = 10.0, 3.0, 0.5
    mean: Tensor
    deviation: Tensor
    quantiles: Tensor
    factor: Tensor

    def __init__(
        self, mean: Tensor, deviation: Tensor, quantiles: Tensor, gaussian: bool, bins: int, factor: Tensor
    ) -> None:
        super().__init__()
        self.gaussian, self.bins = gaussian, bins
        for name, value in (("mean", mean), ("deviation", deviation), ("quantiles", quantiles), ("factor", factor)):
            self.register_buffer(name, value)

    @property
    def outputs(self) -> int:
        """Length of the vectors that it makes."""
        return len(self.mean) * (1 + self.gaussian + self.bins)

    def to_plain(self) -> dict[str, Any]:
        """Its arguments, on the CPU."""
        tensors = {name: value.cpu() for name, value in self.state_dict().items()}
        return {**tensors, "gaussian": self.gaussian, "bins": self.bins}

    def forward(self, sample: Tensor) -> Tensor:
        """Maps vectors (n, features) to vectors (n, outputs)."""
        parts = [((sample - self.mean) / self.deviation).clamp(-self.FAR, self.FAR)]
        if self.gaussian:
            rarest = math.erfc(self.RARE / math.sqrt(2)) / 2
            parts.append(torch.special.ndtri(self.level(sample).clamp(rarest, 1 - rarest)))
        if self.bins:
            edges = self.quantiles[:: (len(self.quantiles) - 1) // self.bins]
            width = edges.diff(dim=0)
            slope = torch.where(width > 0, 1 / width.clamp(min=1e-12), 0.0)
            parts.append(self.HALF * ((sample[:, None] - edges[:-1]) * slope).clamp(0, 1).flatten(1))
        return torch.cat(parts, dim=1) * self.factor

    def level(self, sample: Tensor) -> Tensor:
        """The share of training values below each value, (n, features): linear between quantiles, the middle of ties.

        So it is what scikit-learn's `QuantileTransformer` computes, but for ties at an end, which are 0 or 1 there.
        """
        quantiles, columns, last = self.quantiles.T.contiguous(), sample.T.contiguous(), len(self.quantiles) - 1
        left = torch.searchsorted(quantiles, columns)
        right = torch.searchsorted(quantiles, columns, right=True)
        low, high = (quantiles.gather(1, place.clamp(0, last)) for place in (left - 1, left))
        between = (columns - low) / torch.where(high > low, high - low, 1.0)
        place = left + torch.where(right > left, (right - left - 1) / 2, between.clamp(0, 1) - 1)
        return (place / last).clamp(0, 1).T


@checked
def feature_map(samples: Tensor, gaussian: bool, bins: Bins, norm: Positive | None) -> FeatureMap:
    """Fits a `FeatureMap`.

    Args:
        samples: Training vectors, labeled and unlabeled, shape (n, features); of many, some that stand for all.
        gaussian: See `FeatureMap`.
        bins: See `FeatureMap`.
        norm: Root mean square length of the vectors that it makes of `samples`; None leaves them as they are.

    Raises:
        ValueError: If an argument is not as annotated, or samples are no vectors.
    """
    if samples.ndim != 2:
        raise ValueError(f"needs vectors; samples are images of {tuple(samples.shape[1:])}")
    exact = samples.double()
    low, high = exact.aminmax(dim=0)
    deviation = torch.where(low < high, exact.std(dim=0, correction=0), 1.0)
    levels = torch.linspace(0, 1, LEVELS, dtype=exact.dtype)
    quantiles = torch.stack([column.quantile(levels) for column in exact.T], dim=1)
    made = FeatureMap(exact.mean(dim=0), deviation, quantiles, gaussian, bins, torch.ones_like(exact[0, 0]))
    if norm is not None and (length := made(exact).square().sum(dim=1).mean().sqrt()) > 0:
        made.factor.copy_(norm / length)
    return made.to(samples.dtype)


AnyFeatureMap = FeatureMap | OrientedGradients


def of_plain(plain: dict[str, Any]) -> AnyFeatureMap:
    """The feature map of which `to_plain` has been stored."""
    return FeatureMap(**plain) if "quantiles" in plain else OrientedGradients(**plain)


def same(one: AnyFeatureMap | None, other: AnyFeatureMap | None) -> bool:
    """Whether two feature maps do the same to every sample; None is none at all."""
    own, others = ({} if made is None else made.to_plain() for made in (one, other))
    return own.keys() == others.keys() and all(
        torch.equal(torch.as_tensor(own[key]), torch.as_tensor(others[key])) for key in own
    )
