"""RoSAS: a score that is fitted between samples, too, where labels are mixed and the contamination is diluted."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import triplet_margin_loss

from elite_pl import distributed, seeding
from elite_pl.algorithm.batchnorm import frozen_statistics
from elite_pl.algorithm.losses import balanced_weights, interpolation_error
from elite_pl.annotations import Positive, checked
from elite_pl.data.datamodule import Batch
from elite_pl.methods.base import Detector
from elite_pl.models.scores import BoundedHead


class RoSas(Detector):
    """Fits the scores of mixed samples to their mixed labels, and keeps anomalies apart from the others' outputs.

    Unlabeled samples count as -1, labeled anomalies as 1. In a batch the mixtures are of twice as many unlabeled
    samples as anomalies. The triplets are of two unlabeled samples and an anomaly, the distances those of the encoder's
    outputs. The loss that has fallen less since the last epoch weighs more.

    Source: Xu et al., "RoSAS: Deep semi-supervised anomaly detection with contamination-resilient continuous
    supervision", Information Processing & Management 2023, arXiv 2307.13239. The paper has labeled anomalies and
    unlabeled samples only, here labeled normal samples join the unlabeled batch.

    Args:
        margin: How much farther an anomaly shall be from an unlabeled sample than another unlabeled one.
        alpha: Of the distribution of mixtures, Beta(α, α).
        temperature: T: the larger, the more alike are the weights of the losses.
        **detector: See `Detector`.
    """

    needs_labels = True
    needs_labeled_anomalies = True
    hinge_applies = False  # a score is in (-1, 1), and the margin is a distance of outputs
    before: Tensor

    @checked
    def __init__(self, *, margin: Positive, alpha: Positive, temperature: Positive, **detector: Any) -> None:
        super().__init__(margin=margin, **detector)
        self.alpha, self.temperature = alpha, temperature
        self.register_buffer("before", torch.ones(2))  # both losses in the last epoch

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of the losses of triplets and of mixtures."""
        value = torch.cat(self.of_both(self.score_and_output, batch), dim=1)
        score, output = value[0], value[1:].T
        label = torch.full_like(score, -1.0)
        label[len(batch["index"]) :] = -batch["labeled_y"]
        rng = np.random.default_rng(seeding.derive(self.data.seed, "mixtures", self.global_step))
        others, anomalies = (np.flatnonzero(label.cpu().numpy() == kind) for kind in (-1, 1))

        drawn = rng.permutation(others), rng.permutation(others), rng.choice(anomalies, len(others))
        anchor, positive, negative = (output[torch.as_tensor(place, device=output.device)] for place in drawn)
        apart = triplet_margin_loss(anchor, positive, negative, margin=float(self.margin))

        mixing = np.concatenate([others, rng.choice(anomalies, max(1, len(others) // 2))])
        first, second = (torch.as_tensor(place, device=score.device) for place in (mixing, rng.permutation(mixing)))
        share = torch.as_tensor(rng.beta(self.alpha, self.alpha, len(mixing))).to(score)

        def mix(values: Tensor) -> Tensor:
            weight = share.view(-1, *[1] * (values.ndim - 1))
            return weight * values[first] + (1 - weight) * values[second]

        mixed = interpolation_error(self.mixed_score(mix(whole_samples(batch)), batch), mix(label), mix(score)).mean()
        self.observe(triplet_loss=apart, mixture_loss=mixed)
        both = torch.stack([apart, mixed])
        return (balanced_weights(both, self.before, self.temperature) * both).sum()

    def score_and_output(self, sample: Tensor) -> Tensor:
        """Maps samples (n, ...) to their scores and the k outputs of the encoder, shape (1 + k, n)."""
        score = cast(BoundedHead, self.score)
        output = score.encoder(sample)
        return torch.cat([score.of_output(output)[None], output.T])

    def mixed_score(self, sample: Tensor, batch: Batch) -> Tensor:
        """Ω of mixed samples, of which each process takes a shard; they leave the running statistics alone."""

        def score(own: Tensor) -> Tensor:
            with frozen_statistics(self.score):
                return self.score(own)

        n = len(sample)
        own = cast(Batch, {**batch, "unlabeled": sample[distributed.shard(n)], "index": torch.arange(n)})
        return self.of_unlabeled(score, own)

    def log_means(self) -> None:
        """Keeps the means of both losses for the next epoch, besides what all detectors do."""
        for i, key in enumerate(("triplet_loss", "mixture_loss")):
            total, steps = self.sums[key]
            self.before[i] = total / steps
        super().log_means()


def whole_samples(batch: Batch) -> Tensor:
    """The samples of the whole unlabeled batch, then the labeled ones, shape (n + m, ...)."""
    unlabeled = distributed.gather(batch["unlabeled"].movedim(0, -1), len(batch["index"])).movedim(-1, 0)
    return torch.cat([unlabeled, batch["labeled"]])
