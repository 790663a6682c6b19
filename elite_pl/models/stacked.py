"""Networks of one shape as one network with stacked weights, whose pass takes the samples of each: (k, n, ...).

Layers keep their names, and weights have an axis of the k models before their own. The layers are written out: on a CPU
`torch.func.vmap` takes 1.1 to 3 times as long (`benchmarks/results/stacked.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from elite_pl.models.networks import Resize
from elite_pl.models.scores import Hypersphere, Readout, ScalarHead


class UnstackableError(ValueError):
    """A network has a layer that has no stacked form."""


def stacked(models: Sequence[nn.Module]) -> nn.Module:
    """One module for several of the same structure; see above.

    Args:
        models: They stay as they are.

    Returns:
        Maps samples (k, n, ...) to what each model makes of its own, (k, n, ...).

    Raises:
        UnstackableError: If a layer has no stacked form.
    """
    first = models[0]
    if (make := LAYERS.get(type(first))) is not None:
        return make(models)
    if type(first) not in CONTAINERS:
        raise UnstackableError(f"{type(first).__name__} has no stacked form")
    whole = deepcopy(first)
    for name, buffer in first.named_buffers(recurse=False):  # of each sample's width, such as a center
        whole.register_buffer(
            name, torch.stack([model.get_buffer(name) for model in models]).view(-1, 1, *buffer.shape)
        )
    for name, _ in first.named_children():
        setattr(whole, name, stacked([model.get_submodule(name) for model in models]))
    return whole


@torch.no_grad()
def unstack(whole: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]) -> None:
    """Copies stacked weights and buffers to those of each model.

    Args:
        whole: By name; what is the same for all models has the shape of one.
        states: By name, of each model; written in place. What `whole` has no name for stays.
    """
    for i, state in enumerate(states):
        for name, own in state.items():
            if (tensor := whole.get(name)) is not None:
                own.copy_(tensor if tensor.shape == own.shape else tensor.reshape(len(states), *own.shape)[i])


def _parameter(models: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    """The stacked parameter of layers, None if they have no such one."""
    each: list[nn.Parameter | None] = [getattr(model, name) for model in models]
    if each[0] is None:
        return None
    return nn.Parameter(torch.stack(cast(list[Tensor], each)).detach(), each[0].requires_grad)


def _side_by_side(sample: Tensor) -> Tensor:
    """(k, n, c, ...) to (n, k c, ...): the models' features as more features of the same samples."""
    return sample.transpose(0, 1).flatten(1, 2)


def _apart(sample: Tensor, k: int) -> Tensor:
    """(n, k c, ...) to (k, n, c, ...)."""
    return sample.unflatten(1, (k, -1)).transpose(0, 1)


class _Linear(nn.Module):
    """Linear layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.weight, self.bias = _parameter(layers, "weight"), _parameter(layers, "bias")

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, inputs) to (k, n, outputs)."""
        assert self.weight is not None
        weight = self.weight.transpose(1, 2)
        return torch.bmm(sample, weight) if self.bias is None else torch.baddbmm(self.bias[:, None], sample, weight)


class _Convolution(nn.Module):
    """Convolutions, plain or transposed, as groups of one.

    Its images are in the memory format `channels_last`, without which a CPU takes three times as long on small ones.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first = cast(nn.Conv2d, layers[0])
        if first.groups != 1 or first.padding_mode != "zeros":
            raise UnstackableError("a convolution in groups, or padded by other numbers than 0, has no stacked form")
        self.weight, self.bias = _parameter(layers, "weight"), _parameter(layers, "bias")
        self.options: dict[str, Any] = {key: getattr(first, key) for key in ("stride", "padding", "dilation")}
        self.convolve: Callable[..., Tensor] = functional.conv2d
        if isinstance(first, nn.ConvTranspose2d):
            self.convolve = functional.conv_transpose2d
            self.options["output_padding"] = first.output_padding

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (k, n, channels, ...) to (k, n, channels, ...)."""
        assert self.weight is not None
        k, bias = len(self.weight), None if self.bias is None else self.bias.flatten()
        joined = _side_by_side(image).contiguous(memory_format=torch.channels_last)
        return _apart(self.convolve(joined, self.weight.flatten(0, 1), bias, groups=k, **self.options), k)


class _StackedBatchNorm(_BatchNorm):
    """Batch normalization, whose statistics are those of k times as many features."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        first, self.k = cast(_BatchNorm, layers[0]), len(layers)
        options = {key: getattr(first, key) for key in ("eps", "momentum", "affine", "track_running_stats")}
        super().__init__(self.k * first.num_features, **options)
        self.load_state_dict(
            {
                name: torch.stack([layer.state_dict()[name] for layer in layers]).flatten() if own.ndim else own
                for name, own in first.state_dict().items()
            }
        )
        self.to(first.running_mean).train(first.training)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, features, ...) to (k, n, features, ...)."""
        return _apart(super().forward(_side_by_side(sample)), self.k)

    def _check_input_dim(self, input: Tensor) -> None:
        """Vectors and images both."""


class _LayerNorm(nn.Module):
    """What `GroupNorm` does to each sample as one group, without scale and shift."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first = cast(nn.GroupNorm, layers[0])
        if first.num_groups != 1 or first.affine:
            raise UnstackableError("GroupNorm with several groups, or with scale and shift, has no stacked form")
        self.eps = first.eps

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (k, n, ...) to (k, n, ...)."""
        return functional.layer_norm(sample, sample.shape[2:], eps=self.eps)


class _ImageLayer(nn.Module):
    """A layer without weights that treats each channel by itself."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layer = layers[0]

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (k, n, channels, ...) to (k, n, channels, ...)."""
        return _apart(self.layer(_side_by_side(image)), len(image))


def _elementwise(layers: Sequence[nn.Module]) -> nn.Module:
    return deepcopy(layers[0])


def _flatten(layers: Sequence[nn.Module]) -> nn.Module:
    first = cast(nn.Flatten, layers[0])
    if first.end_dim != -1:
        raise UnstackableError("Flatten up to a certain axis has no stacked form")
    return nn.Flatten(first.start_dim + 1)


def _unflatten(layers: Sequence[nn.Module]) -> nn.Module:
    first = cast(nn.Unflatten, layers[0])
    return nn.Unflatten(int(first.dim) + 1, first.unflattened_size)


CONTAINERS = (nn.Sequential, Hypersphere, Readout, ScalarHead)  # whose own formula is one over the last axis
LAYERS: dict[type[nn.Module], Callable[[Sequence[nn.Module]], nn.Module]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Convolution,
    nn.ConvTranspose2d: _Convolution,
    nn.BatchNorm1d: _StackedBatchNorm,
    nn.BatchNorm2d: _StackedBatchNorm,
    nn.GroupNorm: _LayerNorm,
    nn.MaxPool2d: _ImageLayer,
    Resize: _ImageLayer,
    nn.ReLU: _elementwise,
    nn.LeakyReLU: _elementwise,
    nn.Sigmoid: _elementwise,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
}
