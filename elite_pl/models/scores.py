"""Ω: modules that map samples to anomaly scores, higher for the more anomalous."""

import itertools
import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.algorithm.losses import center_of
from elite_pl.annotations import at_least, checked
from elite_pl.models.networks import Backbone

TOGETHER = 1000  # batches whose outputs are kept in memory to be added up


class Score(nn.Module):
    """The base of all scores: maps samples (n, ...) to scores (n,)."""

    def initialize(self, batches: Iterable[Tensor]) -> None:
        """Fixes what is fixed before training, such as a center.

        Args:
            batches: All training samples, labeled ones included, in batches of shape (n, ...).
        """


class Hypersphere(Score):
    """Distance of the encoder's output to a fixed center: `Ω(x) = ||φ(x; θ) - o||`, or its square.

    Source: Ruff et al., "Deep One-Class Classification", ICML 2018; Algorithm 1 of the ELITE paper has the distance,
    its Sec. 3.2.1 the square.

    Args:
        backbone: The encoder φ; the decoder only pre-trains it.
        squared: Whether the score is the squared distance.
    """

    center: Tensor

    def __init__(self, backbone: Backbone, squared: bool = False) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.squared = squared
        self.register_buffer("center", torch.zeros(backbone.outputs))

    @torch.no_grad()
    def initialize(self, batches: Iterable[Tensor]) -> None:
        """Sets the center o to the mean output; see `losses.center_of`."""
        total, samples = torch.zeros_like(self.center), 0
        outputs = (self.encoder(batch) for batch in batches)
        while some := list(itertools.islice(outputs, TOGETHER)):
            total += torch.cat(some).sum(dim=0)
            samples += sum(map(len, some))
        self.center.copy_(center_of(total / samples))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        # vector_norm, because the square root of a sum has no tangent at the center itself
        distance = torch.linalg.vector_norm(self.encoder(sample) - self.center, dim=-1)
        return distance.square() if self.squared else distance


class Reconstruction(Score):
    """Reconstruction error of an autoencoder: `Ω(x) = ||ψ(φ(x)) - x||` over all features, or its square.

    Source: Sec. 3.2.1 of the ELITE paper.

    Args:
        backbone: The encoder φ and the decoder ψ.
        squared: Whether the score is the squared norm.
    """

    def __init__(self, backbone: Backbone, squared: bool = False) -> None:
        super().__init__()
        self.autoencoder = nn.Sequential(backbone.encoder, backbone.decoder)
        self.squared = squared

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        error = torch.linalg.vector_norm((self.autoencoder(sample) - sample).flatten(1), dim=1)
        return error.square() if self.squared else error


class ScalarHead(Score):
    """A linear function of the encoder's output, learned as the score itself: `Ω(x) = <w, φ(x)> + b`, any real number.

    Source: Pang et al., "Deep Anomaly Detection with Deviation Networks", KDD 2019.

    Args:
        backbone: The encoder φ; the decoder only pre-trains it.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.head = nn.Linear(backbone.outputs, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return self.head(self.encoder(sample)).squeeze(-1)


class Readout(Score):
    """A linear function of the encoder's output, learned and kept positive: `Ω(x) = log(1 + exp(<w, φ(x)> + b))`.

    Unlike the distance to a center it may look along one direction only, and can fit any linear boundary, so nothing
    but the loss holds the scores of all samples together.

    Args:
        backbone: The encoder φ; the decoder only pre-trains it.
        initial: Standard deviation of the initial `<w, φ>` per unit length of φ: small, so that all scores start alike.
    """

    def __init__(self, backbone: Backbone, initial: float = 0.1) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.head = nn.Linear(backbone.outputs, 1)
        nn.init.normal_(self.head.weight, std=initial / math.sqrt(backbone.outputs))
        nn.init.zeros_(self.head.bias)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return functional.softplus(self.head(self.encoder(sample)).squeeze(-1))


class BoundedHead(Score):
    """A small network on the encoder's output, held in (-1, 1): `Ω(x) = tanh(<w, LeakyReLU(V φ(x))> + b)`.

    Source: Xu et al., "RoSAS: Deep semi-supervised anomaly detection with contamination-resilient continuous
    supervision", Information Processing & Management 2023, arXiv 2307.13239.

    Args:
        backbone: The encoder φ, of k outputs, of which V makes k / 2; the decoder only pre-trains it.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        half = max(1, backbone.outputs // 2)
        self.head = nn.Sequential(nn.Linear(backbone.outputs, half, bias=False), nn.LeakyReLU(), nn.Linear(half, 1))

    def of_output(self, output: Tensor) -> Tensor:
        """Maps the encoder's outputs (n, k) to scores (n,)."""
        return self.head(output).squeeze(1).tanh()

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return self.of_output(self.encoder(sample))


class PairRelation(Score):
    """The mean relation of a sample to labeled anomalies and to unlabeled samples, its references.

    The relation of two samples is a linear function of the encoder's outputs, `r(x, x') = <v, φ(x)> + <w, φ(x')> + b`.
    The score is `Ω(x) = (E_a[r(a, x)] + E_u[r(x, u)]) / 2`: of a reference it takes no more than a number, whose mean
    is kept here, and not the samples.

    Source: Pang et al., "Deep Weakly-supervised Anomaly Detection", KDD 2023, arXiv 1910.13601.

    Args:
        backbone: The encoder φ; the decoder only pre-trains it.

    Attributes:
        reference: Mean `<v, φ(a)>` of the anomalies and mean `<w, φ(u)>` of the unlabeled samples, each with its share
            of b, shape (2,).
    """

    reference: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.head = nn.Linear(backbone.outputs, 2)
        self.register_buffer("reference", torch.zeros(2))

    def places(self, sample: Tensor) -> Tensor:
        """The contributions of samples (n, ...) to a relation in its first and in its second place, shape (2, n)."""
        return self.head(self.encoder(sample)).T

    def refer(self, anomalies: Tensor, unlabeled: Tensor) -> None:
        """Sets the references; each of shape (n, ...)."""
        self.reference.copy_(torch.stack([self.places(anomalies)[0].mean(), self.places(unlabeled)[1].mean()]))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        return (self.places(sample).sum(0) + self.reference.sum()) / 2


class RobustSubspace(Score):
    """Reconstruction error of an autoencoder whose code is held in a linear subspace of d dimensions.

    The robust subspace recovery (RSR) layer maps the encoder's output y = φ(x) to `z = A y`; the decoder sees z through
    one linear layer V: `x̂ = ψ(V z)`. The score is `Ω(x) = 1 - <x, x̂> / (||x|| ||x̂||)`, the paper's, or `||x̂ - x||`.

    Source: Lai et al., "Robust Subspace Recovery Layer for Unsupervised Anomaly Detection", ICLR 2020, arXiv
    1904.00152; the scaling of z is in the code published with it only (https://github.com/dmzou/RSRAE).

    Args:
        backbone: The encoder φ, of D outputs, and the decoder ψ.
        dimension: d, the dimension of the subspace, at most D.
        distance: Between a sample and its reconstruction: `"cosine"` or `"norm"`.
        unit_code: Whether z is scaled to length 1.
        initial: A at the start: `"orthogonal"`, orthonormal rows, or `"normal"`, independent N(0, 1) as published.

    Raises:
        ValueError: If an argument is not as annotated, or d is more than D.
    """

    @checked
    def __init__(
        self,
        backbone: Backbone,
        dimension: Annotated[int, at_least(1)],
        distance: Literal["cosine", "norm"],
        unit_code: bool,
        initial: Literal["orthogonal", "normal"],
    ) -> None:
        super().__init__()
        if dimension > backbone.outputs:
            raise ValueError(f"dimension={dimension}: must be at most {backbone.outputs}, the outputs of the backbone")
        self.encoder, self.decoder = backbone.encoder, backbone.decoder
        self.subspace = nn.Parameter(torch.empty(dimension, backbone.outputs))  # A
        nn.init.orthogonal_(self.subspace) if initial == "orthogonal" else nn.init.normal_(self.subspace)
        self.lift = nn.Linear(dimension, backbone.outputs, bias=False)  # V
        self.distance, self.unit_code = distance, unit_code

    def reconstruct(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to their reconstructions (n, ...)."""
        code = self.encoder(sample) @ self.subspace.T
        return self.decoder(self.lift(functional.normalize(code) if self.unit_code else code))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        x, reconstruction = sample.flatten(1), self.reconstruct(sample).flatten(1)
        if self.distance == "cosine":
            return 1 - functional.cosine_similarity(x, reconstruction)
        return torch.linalg.vector_norm(reconstruction - x, dim=1)


class MeanOverViews(Score):
    """The mean score of several views of each sample, the same changes for all samples.

    Args:
        score: Ω.
        augmentation: Makes the views.
        views: Its draws for each of them, shape (views, width).
    """

    views: Tensor

    def __init__(self, score: nn.Module, augmentation: Augmentation, views: Tensor) -> None:
        super().__init__()
        self.score, self.augmentation = score, augmentation
        self.register_buffer("views", views)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        drawn = (view.expand(sample.shape[0], -1) for view in self.views)
        return torch.stack([self.score(self.augmentation.apply(sample, draws)) for draws in drawn]).mean(0)
