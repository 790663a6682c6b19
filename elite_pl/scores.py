"""Ω: modules that map samples to anomaly scores, higher for the more anomalous."""

import torch
from torch import Tensor, nn

from elite_pl.losses import center_of
from elite_pl.networks import Backbone


class Score(nn.Module):
    """The base of all scores: maps samples (n, ...) to scores (n,)."""

    def initialise(self, batches: list[Tensor]) -> None:
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
    def initialise(self, batches: list[Tensor]) -> None:
        """Sets the center o to the mean output; see `losses.center_of`."""
        self.center.copy_(center_of(torch.cat([self.encoder(batch) for batch in batches])))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to scores (n,)."""
        # vector_norm, because the square root of a sum has no tangent at the center itself
        distance = torch.linalg.vector_norm(self.encoder(sample) - self.center, dim=1)
        return distance.square() if self.squared else distance


class Reconstruction(Score):
    """What an autoencoder fails to reproduce: `Ω(x) = ||ψ(φ(x)) - x||` over all features, or its square.

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
        return self.head(self.encoder(sample)).squeeze(1)
