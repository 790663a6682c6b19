"""EfficientNet-Lite0, by its description.

It is EfficientNet-B0 (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019) for devices without a GPU: no squeeze-and-excitation, ReLU6 in place of swish, and the widths of stem and head are
those of B0 in all sizes (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

import math

from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-3  # of batch normalization
NORMALIZATION = ((127 / 255,) * 3, (128 / 255,) * 3)  # mean and deviation of pixels in [0, 1] that it was trained with
FEATURES = 1280  # channels of the head
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Layer names in the published weights, and ours.
OUTSIDE = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class SamePadding(nn.Conv2d):
    """A convolution with TensorFlow's padding `SAME`: an odd number of pixels is one more on the right and below."""

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, channels, height, width) to images of ⌈height / stride⌉ by ⌈width / stride⌉ pixels."""
        padding = []
        for side, stride, kernel in zip(image.shape[:1:-1], self.stride, self.kernel_size, strict=True):
            total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(image, padding))


class ConvNorm(nn.Module):
    """A convolution without a bias, batch normalization, and ReLU6 if it is `active`."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        if stride == 1:
            self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
        else:
            self.conv = SamePadding(before, after, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=EPSILON)
        self.active = active

    def forward(self, image: Tensor) -> Tensor:
        """Maps images to images."""
        image = self.norm(self.conv(image))
        return functional.relu6(image) if self.active else image


class InvertedResidual(nn.Module):
    """Expands the channels, filters each by itself, projects them; adds what went in where the shape is the same."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = before * expansion
        self.expand = ConvNorm(before, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, after, 1, active=False)
        self.residual = stride == 1 and before == after

    def forward(self, image: Tensor) -> Tensor:
        """Maps images to images."""
        changed = self.project(self.depthwise(self.expand(image)))
        return image + changed if self.residual else changed


class EfficientNetLite0(nn.Module):
    """The network with its classifier of the 1,000 classes of ImageNet; images are best 224 pixels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.blocks, before = nn.Sequential(), 32
        for blocks, kernel, stride, expansion, after in STAGES:
            for i in range(blocks):
                self.blocks.append(InvertedResidual(before, after, kernel, stride if i == 0 else 1, expansion))
                before = after
        self.head = ConvNorm(before, FEATURES, 1)
        self.classifier: nn.Module = nn.Linear(FEATURES, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, 3, height, width) to logits (n, 1000)."""
        return self.classifier(self.head(self.blocks(self.stem(image))).mean((2, 3)))


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under our names; what has another name keeps it."""

    def ours(name: str) -> str:
        part, _, kind = name.rpartition(".")
        if part.startswith("_blocks."):
            block, _, part = part[1:].rpartition(".")
            return f"{block}.{IN_BLOCK.get(part, part)}.{kind}"
        return f"{OUTSIDE.get(part, part)}.{kind}"

    return {ours(name): value for name, value in weights.items()}
