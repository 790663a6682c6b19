"""Networks of one shape as one network with stacked weights, whose pass takes the samples of each: (k, n, ...).

Layers keep their names, and weights have an axis of the k models before their own. The layers are written out: on a CPU
`torch.func.vmap` takes 1.1 to 2 times as long, and convolutions gain too little (`benchmarks/results/stacked.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from elite_pl.models.scores import Hypersphere, Readout, ScalarHead


class UnstackableError(ValueError):
    """A network has a layer that has no stacked form."""


def stacked(models: Sequence[nn.Module]) -> nn.Module:
    """Makes one module of several of the same structure; see above.

    Args:
        models: They stay as they are.

    Returns:
        A module that maps samples (k, n, ...) to the outputs of each model for its own, (k, n, ...).

    Raises:
        UnstackableError: If a layer has no stacked form.
    """
    first = models[0]
    if (make := LAYERS.get(type(first))) is not None:
        return make(models)
    if type(first) not in CONTAINERS:
        raise UnstackableError(f"{type(first).__name__} has no stacked form")
    whole = deepcopy(first)
    for name, _ in first.named_buffers(recurse=False):  # a number for each output, such as a center
        each = torch.stack([model.get_buffer(name) for model in models])
        whole.register_buffer(name, each[:, None])
    for name, _ in first.named_children():
        setattr(whole, name, stacked([model.get_submodule(name) for model in models]))
    return whole


@torch.no_grad()
def unstack(whole: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]) -> None:
    """Copies stacked weights and buffers to those of each model.

    Args:
        whole: By name; a number that all models have in common has the shape of one.
        states: By name, of each model; written in place, where `whole` has the name.
    """
    for i, state in enumerate(states):
        for name, own in state.items():
            if (tensor := whole.get(name)) is not None:
                own.copy_(tensor if tensor.shape == own.shape else tensor.reshape(len(states), *own.shape)[i])


class _Linear(nn.Module):
    """Linear layers."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.register_parameter("bias", None)
        for name, first in layers[0].named_parameters():
            each = torch.stack([layer.get_parameter(name) for layer in layers])
            self.register_parameter(name, nn.Parameter(each.detach(), first.requires_grad))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, inputs) to (k, n, outputs)."""
        weight = self.weight.transpose(1, 2)
        return torch.bmm(sample, weight) if self.bias is None else torch.baddbmm(self.bias[:, None], sample, weight)


class _StackedBatchNorm(_BatchNorm):
    """Batch normalization of k times as many features."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        first, self.k = cast(nn.BatchNorm1d, layers[0]), len(layers)
        if first.affine or not first.track_running_stats:
            raise UnstackableError("BatchNorm1d with scale and shift, or without statistics, has no stacked form")
        super().__init__(self.k * first.num_features, eps=first.eps, momentum=first.momentum, affine=False)
        for name, buffer in first.named_buffers():
            each = torch.stack([layer.get_buffer(name) for layer in layers])
            self.register_buffer(name, each.flatten() if buffer.ndim else buffer.clone())  # batches: the same number

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, features) to (k, n, features)."""
        normalized = super().forward(sample.transpose(0, 1).flatten(1))  # (n, k features)
        return normalized.unflatten(1, (self.k, -1)).transpose(0, 1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any."""


class _LayerNorm(nn.Module):
    """Group normalization of each sample as one group, without scale and shift."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first = cast(nn.GroupNorm, layers[0])
        if first.num_groups != 1 or first.affine:
            raise UnstackableError("GroupNorm with several groups, or with scale and shift, has no stacked form")
        self.eps = first.eps

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, features) to (k, n, features)."""
        return functional.layer_norm(sample, sample.shape[2:], eps=self.eps)


def _elementwise(layers: Sequence[nn.Module]) -> nn.Module:
    return deepcopy(layers[0])


def _flatten(layers: Sequence[nn.Module]) -> nn.Module:
    first = cast(nn.Flatten, layers[0])
    if (first.start_dim, first.end_dim) != (1, -1):
        raise UnstackableError("Flatten of some axes has no stacked form")
    return nn.Flatten(2)


CONTAINERS = (nn.Sequential, Hypersphere, Readout, ScalarHead)  # whose own formula is one over the last axis
LAYERS: dict[type[nn.Module], Callable[[Sequence[nn.Module]], nn.Module]] = {
    nn.Linear: _Linear,
    nn.BatchNorm1d: _StackedBatchNorm,
    nn.GroupNorm: _LayerNorm,
    nn.ReLU: _elementwise,
    nn.LeakyReLU: _elementwise,
    nn.Flatten: _flatten,
}
