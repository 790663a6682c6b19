"""Which forward pass may move the running statistics of batch normalization, and how they are measured afresh.

Three passes go through the network in one ELITE step. If each moved the running statistics, the labeled batch (half
anomalies) would have a share in what is used at test time; so the others run inside `frozen_statistics`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("batch", "running")  # what a pass can normalize with


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalization layers inside a module that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def frozen_statistics(module: nn.Module, use: str = "batch") -> Iterator[None]:
    """Keeps the running statistics of `module` untouched by forward passes in training mode during the block.

    Args:
        module: The network.
        use: The statistics that a pass normalizes with: `"batch"`, its own batch's, or `"running"`, the running ones.

    Raises:
        ValueError: If `use` is neither of the two.
    """
    if use not in STATISTICS:
        raise ValueError(f"statistics must be 'batch' or 'running', not {use!r}")
    layers = [m for m in batch_norms(module) if m.training]
    for layer in layers:
        if use == "batch":
            layer.track_running_stats = False
        else:
            layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
            layer.train()


@contextmanager
def repeated_pass(module: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of `module` untouched by forward passes in training mode during the block.

    Like `frozen_statistics`, but a pass saves the same tensors for backward as outside, as checkpointing requires.
    """
    layers = [(layer, layer.momentum, layer.get_buffer("num_batches_tracked").clone()) for layer in batch_norms(module)]
    for layer, _, _ in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, tracked in layers:
            layer.momentum = momentum
            layer.get_buffer("num_batches_tracked").copy_(tracked)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances inside a module."""
    return [s for layer in batch_norms(module) for s in (layer.running_mean, layer.running_var) if s is not None]


@torch.no_grad()
def calibrate(module: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics by their plain average over one pass, whatever training left in them.

    Args:
        module: The network whose layers are calibrated; its mode is restored.
        forward: Runs the network on one batch.
        batches: The batches, each of shape (n, ...).
    """
    layers = batch_norms(module)
    if not layers:
        return
    was_training, momenta = module.training, [layer.momentum for layer in layers]
    module.train()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's word for a cumulative average
    for batch in batches:
        forward(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.train(was_training)
