"""Encoders, and the decoders that pre-train them.

A backbone is built from the shape of one sample. Networks follow Deep SAD (Ruff et al., ICLR 2020, and the code
published with it, https://github.com/lukasruff/Deep-SAD-PyTorch): no biases and no learned scale in batch
normalization, because either would let the network map everything to the center.
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional

from elite_pl.annotations import Range, checked

P = ParamSpec("P")
Width = Annotated[int, Range("a whole number from 1 to 1048576", lambda value: 1 <= value <= 2**20)]
LARGEST = 10**9  # parameters of a backbone; more are likely a typo, and would not fit in memory
EPSILON = 1e-4  # of batch normalization, as in Deep SAD
SLOPE = 0.01  # of the leaky rectifiers


Norm = Literal["batch", "layer", "none"]
Activation = Literal["leaky_relu", "relu"]


class Backbone(NamedTuple):
    """An encoder with the decoder that mirrors it.

    Attributes:
        name: Its name in logs and tables.
        encoder: Maps samples (n, *sample_shape) to outputs (n, k).
        decoder: Maps outputs (n, k) to samples (n, *sample_shape).
        outputs: k.
    """

    name: str
    encoder: nn.Module
    decoder: nn.Module
    outputs: int


def norm_layer(norm: Norm, features: int, images: bool = False) -> tuple[nn.Module, ...]:
    """The layer that normalizes hidden features, without scale and shift; nothing for `"none"`.

    Args:
        norm: `"batch"`, each feature (or channel) over the batch, with running statistics for evaluation; `"layer"`,
            each sample over all its features: then no sample depends on the others of its batch.
        features: Their number, or that of the channels.
        images: Whether they are images (n, channels, height, width) and not vectors.
    """
    if norm == "none":
        return ()
    if norm == "layer":
        return (nn.GroupNorm(1, features, eps=EPSILON, affine=False),)
    return ((nn.BatchNorm2d if images else nn.BatchNorm1d)(features, affine=False, eps=EPSILON),)


def bounded(make: Callable[P, Backbone]) -> Callable[P, Backbone]:
    """Makes a backbone's constructor refuse one of more than `LARGEST` parameters before there is any memory for it."""

    @functools.wraps(make)
    def call(*values: P.args, **options: P.kwargs) -> Backbone:
        with torch.device("meta"):
            draft = make(*values, **options)
        size = sum(p.numel() for network in (draft.encoder, draft.decoder) for p in network.parameters())
        if size > LARGEST:
            raise ValueError(f"{draft.name} would have {size:.2g} parameters; {LARGEST:.0e} are the most")
        return make(*values, **options)

    return call


def auto(sample_shape: tuple[int, ...], norm: Norm = "batch") -> Backbone:
    """The backbone that fits a sample: an MLP for a vector, a LeNet for an image.

    Args:
        sample_shape: (features,) or (channels, height, width).
        norm: See `norm_layer`.
    """
    return mlp(sample_shape, norm=norm) if len(sample_shape) == 1 else lenet(sample_shape, norm=norm)


@checked
@bounded
def mlp(
    sample_shape: tuple[int, ...],
    hidden: Sequence[Width] = (128, 64),
    outputs: Width = 32,
    norm: Norm = "batch",
    activation: Activation = "leaky_relu",
    bias: bool = False,
) -> Backbone:
    """A multi-layer perceptron over the flattened sample.

    Args:
        sample_shape: Shape of one sample.
        hidden: Width of each hidden layer of the encoder; the decoder mirrors them.
        outputs: k, the number of the encoder's outputs.
        norm: How hidden layers are normalized, see `norm_layer`.
        activation: Of hidden layers.
        bias: Whether layers have one: with it a network can map everything to the center of a hypersphere.
    """
    widths = (math.prod(sample_shape), *hidden, outputs)

    def layers(widths: tuple[int, ...]) -> list[nn.Module]:
        modules: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            modules.append(nn.Linear(before, after, bias=bias))
            if i < len(widths) - 2:
                modules += [*norm_layer(norm, after), nn.ReLU() if activation == "relu" else nn.LeakyReLU(SLOPE)]
        return modules

    encoder = nn.Sequential(nn.Flatten(), *layers(widths))
    decoder = nn.Sequential(*layers(widths[::-1]), nn.Unflatten(1, sample_shape))
    return Backbone("mlp", encoder, decoder, outputs)


# Deep SAD's networks: channels of each convolution and number of outputs, by the shape of the images.
PUBLISHED = {
    (1, 28, 28): ("lenet_mnist", (8, 4), 32),
    (3, 32, 32): ("lenet_cifar10", (32, 64, 128), 128),
}


@checked
@bounded
def lenet(
    sample_shape: tuple[int, ...],
    channels: Annotated[Sequence[Width], Range("a list of widths, such as [32, 64]", len)] | None = None,
    outputs: Width | None = None,
    hidden: Width | None = None,
    norm: Norm = "batch",
) -> Backbone:
    """A LeNet: blocks of a 5x5 convolution and a pooling that halves the image, then a linear layer.

    Args:
        sample_shape: (channels, height, width) of an image.
        channels: Channels of each convolution. Default: Deep SAD's for 28x28 gray and 32x32 color images; for others
            as many blocks as leave 4 to 7 pixels of the shorter side, of 16, 32, 64 ... at most 128 channels.
        outputs: k, the encoder's outputs, a multiple of 16. Default: 32 (28x28 gray), 128 (32x32 color), otherwise 64.
        hidden: Width of a linear layer before the last one. Default: none.
        norm: How hidden layers are normalized, see `norm_layer`.

    Raises:
        ValueError: If the sample is no image, or too small for a LeNet.
    """
    if len(sample_shape) != 3 or min(sample_shape[1:]) < 4:
        raise ValueError(f"lenet needs images of at least 4x4 pixels, not samples of shape {sample_shape}")
    if channels is None and outputs is None and sample_shape in PUBLISHED:
        name, channels, outputs = PUBLISHED[sample_shape]
    else:
        name, outputs = "lenet", outputs or 64
        if channels is None:
            blocks = max(1, (min(sample_shape[1:]) // 4).bit_length() - 1)
            channels = tuple(min(16 * 2**i, 128) for i in range(blocks))
    if min(sample_shape[1:]) // 2 ** len(channels) < 1:
        raise ValueError(f"channels={channels}: {len(channels)} poolings leave nothing of {sample_shape[1:]} pixels")
    if outputs % 16:
        raise ValueError(f"outputs={outputs}: must be a multiple of 16, the decoder starts from 4x4 pixels")

    image_channels, *size = sample_shape
    sizes = [
        tuple(side // 2**i for side in size) for i in range(len(channels) + 1)
    ]  # before each block, and at the end
    flat = channels[-1] * sizes[-1][0] * sizes[-1][1]

    encoder = nn.Sequential()
    for before, after in zip((image_channels, *channels), channels, strict=False):
        encoder.extend((
            nn.Conv2d(before, after, 5, padding=2, bias=False),
            *norm_layer(norm, after, images=True),
            nn.MaxPool2d(2),
            nn.LeakyReLU(SLOPE),  # after the pooling: the same function at a quarter of the cost
        ))  # fmt: skip
    encoder.append(nn.Flatten())
    if hidden:
        encoder.extend((
            nn.Linear(flat, hidden, bias=False),
            *norm_layer(norm, hidden),
            nn.LeakyReLU(SLOPE),
        ))  # fmt: skip
    encoder.append(nn.Linear(hidden or flat, outputs, bias=False))

    decoder = nn.Sequential(nn.Unflatten(1, (outputs // 16, 4, 4)), nn.LeakyReLU(SLOPE))
    reverse = (outputs // 16, *channels[::-1])
    for before, after, sides in zip(reverse, reverse[1:], sizes[:0:-1], strict=False):
        decoder.extend((
            Resize(sides),
            nn.ConvTranspose2d(before, after, 5, padding=2, bias=False),
            *norm_layer(norm, after, images=True),
            nn.LeakyReLU(SLOPE),
        ))  # fmt: skip
    decoder.extend((
        Resize(sizes[0]),
        nn.ConvTranspose2d(channels[0], image_channels, 5, padding=2, bias=False),
        nn.Sigmoid(),  # pixels lie in [0, 1]
    ))  # fmt: skip
    return Backbone(name, encoder, decoder, outputs)


# Channels of the release's autoencoder, in its encoder and its decoder, by those of the images.
RELEASED = {1: ((128, 64, 32), (16, 8)), 3: ((512, 256, 128), (64, 32))}


@checked
@bounded
def strided(sample_shape: tuple[int, ...], bottleneck: Width | None) -> Backbone:
    """A convolutional autoencoder: 4x4 convolutions of stride 2 halve the image three times, transposed ones undo it.

    The autoencoder of the ELITE authors' release, by its description: with biases, an output in [-1, 1], and, without
    a bottleneck, a code of half as many numbers as a gray 32x32 image has pixels, and two thirds of a color image's.

    Args:
        sample_shape: (channels, height, width) of an image, sides that are multiples of 8.
        bottleneck: Width of a linear code between encoder and decoder; None for none.

    Raises:
        ValueError: If the sample is no such image.
    """
    if len(sample_shape) != 3 or sample_shape[0] not in RELEASED or sample_shape[1] % 8 or sample_shape[2] % 8:
        raise ValueError(
            "strided needs gray or color images with sides that are multiples of 8, such as a size of 32 makes them, "
            f"not samples of shape {sample_shape}"
        )
    encoder_channels, decoder_channels = RELEASED[sample_shape[0]]

    def norm_act(channels: int) -> tuple[nn.Module, ...]:
        return nn.BatchNorm2d(channels, affine=False, eps=EPSILON), nn.LeakyReLU(SLOPE)

    encoder = nn.Sequential()
    for before, after in pairwise((sample_shape[0], *encoder_channels)):
        encoder.extend((nn.Conv2d(before, after, 4, stride=2, padding=1), *norm_act(after)))
    encoder.append(nn.Flatten())
    code = (encoder_channels[-1], sample_shape[1] // 8, sample_shape[2] // 8)
    decoder = nn.Sequential()
    if bottleneck is not None:
        encoder.append(nn.Linear(math.prod(code), bottleneck))
        decoder.append(nn.Linear(bottleneck, math.prod(code)))
    decoder.append(nn.Unflatten(1, code))
    for before, after in pairwise((code[0], *decoder_channels)):
        decoder.extend((nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), *norm_act(after)))
    decoder.extend((
        nn.ConvTranspose2d(decoder_channels[-1], sample_shape[0], 4, stride=2, padding=1),
        nn.BatchNorm2d(sample_shape[0], eps=EPSILON),
        nn.Tanh(),
    ))  # fmt: skip
    return Backbone("strided", encoder, decoder, bottleneck or math.prod(code))


class Resize(nn.Module):
    """Resizes images to a fixed size by repeating the nearest pixel; odd sizes too, which a factor of 2 cannot reach.

    Args:
        size: (height, width) of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, channels, ...) to (n, channels, height, width)."""
        return functional.interpolate(image, size=self.size)
