"""Autoencoder pre-training of an encoder, with its results kept for the other methods on the same split."""

import logging
from pathlib import Path

import torch
from torch import nn

from elite_pl import distributed, seeding
from elite_pl.algorithm.augmentation import Augmentation
from elite_pl.data.datamodule import PollutedData
from elite_pl.files import atomic_write
from elite_pl.models.networks import Backbone
from elite_pl.progress import Estimate

log = logging.getLogger(__name__)


def pretrain(
    backbone: Backbone,
    data: PollutedData,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    milestone: int | None,
    augmentation: Augmentation | None,
    cache: Path | None,
) -> None:
    """Trains encoder and decoder to reproduce all training samples (mean squared error), without looking at labels.

    The ELITE paper initializes "exactly as Deep SVDD does", and that pre-trains: Ruff et al., "Deep One-Class
    Classification", ICML 2018.

    Args:
        backbone: Changed in place.
        data: The unlabeled and labeled samples, on the backbone's device.
        epochs: Passes over them; 0 does nothing.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        milestone: The epoch from which the learning rate is a tenth; None for none.
        augmentation: Changes the samples; each is then to be reproduced as changed. None for none.
        cache: A file that holds the trained weights, read if it is there and written otherwise.
    """
    if epochs == 0:
        return
    autoencoder = nn.Sequential(backbone.encoder, backbone.decoder)
    if cache is not None and cache.is_file():
        try:
            autoencoder.load_state_dict(torch.load(cache, map_location=data.truth.device, weights_only=True))
            return
        except Exception:  # whatever the unpacking of half a file stumbles over
            log.warning("%s is damaged: pre-training is repeated", cache)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [milestone] if milestone else [])
    samples = len(data.unlabeled) + len(data.labeled)
    autoencoder.train()
    estimate = Estimate("pre-training", epochs * max(1, samples // data.batch_size))
    for epoch in range(epochs):
        order = torch.randperm(samples, generator=seeding.generator(data.seed, "pretraining batches", epoch))
        draws = seeding.generator(data.seed, "pretraining augmentation", epoch)
        for batch in data.training_samples(order):
            if augmentation is not None:
                batch = augmentation(batch, draws)
            optimizer.zero_grad()
            nn.functional.mse_loss(autoencoder(batch), batch).backward()
            optimizer.step()
            estimate.step()
        schedule.step()
    if cache is not None and distributed.rank() == 0:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as temporary:
            torch.save(autoencoder.state_dict(), temporary)
