"""What happens to samples before a network sees them."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from test_bad_input import refused

from elite_pl.data.preprocessing import Preprocessing, preprocessing, resized
from elite_pl.runs.trained import load

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28)).astype(np.uint8)


def seen(made: Preprocessing, values):
    return made.scaled(made.once(values))


@pytest.mark.parametrize("size", [32, 14])
def test_images_are_resized_as_pillow_does(size):
    ours = resized(torch.as_tensor(PIXELS), size)
    pillow = np.stack([Image.fromarray(x[0]).resize((size, size), Image.Resampling.BILINEAR) for x in PIXELS])[:, None]
    assert ours.shape == (20, 1, size, size) and ours.dtype == torch.uint8
    assert np.abs(ours.numpy().astype(int) - pillow.astype(int)).max() <= 1, "of 255, by rounding"


def test_contrast_is_normalized_image_by_image_and_scaled_by_the_training_samples_alone():
    training, other = PIXELS[:15], PIXELS[15:]
    made = preprocessing(training, None, "gcn")
    x = training.reshape(15, -1).astype(float)
    x -= x.mean(1, keepdims=True)
    x /= np.abs(x).mean(1, keepdims=True)
    expected = (x - x.min()) / (x.max() - x.min())
    torch.testing.assert_close(
        seen(made, training).flatten(1).double(), torch.as_tensor(expected), atol=1e-5, rtol=1e-5
    )
    brighter = seen(made, (other // 2 + 50).astype(np.uint8))
    torch.testing.assert_close(brighter, seen(made, other), atol=0.02, rtol=0), "neither brightness nor contrast counts"
    assert seen(made, np.full((1, 1, 28, 28), 7, dtype=np.uint8)).isfinite().all()


def test_vectors_are_standardized_wherever_they_lie_and_pixels_are_not():
    x = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    x[:, 2] = 0.5
    found = seen(preprocessing(x, None, "standard"), x)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(seen(preprocessing(x, None, "unit"), x), torch.as_tensor(x))
    for pixels in (PIXELS, (PIXELS / 255).astype(np.float32)):
        unit, standard = (seen(preprocessing(pixels, None, scaling), pixels) for scaling in ("unit", "standard"))
        torch.testing.assert_close(standard, unit, rtol=0, atol=0)


def test_a_pair_is_mean_and_deviation_of_pixels():
    expected = (PIXELS / 255 - 0.1307) / 0.3081
    for values in (PIXELS, (PIXELS / 255).astype(np.float32)):
        made = preprocessing(values, None, [0.1307, 0.3081])
        torch.testing.assert_close(seen(made, values).double(), torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scaling, precision", [("gcn", 32), ("[0.3,0.2]", 32), ("unit", 64)])
def test_the_detector_file_knows_how_its_samples_are_made(command, images, scaling, precision):
    outcome = command(
        "dataset=npz", f"dataset.path={images()}", "dataset.size=16", f"dataset.scaling={scaling}", "n_train=40",
        "label_ratio=0.1", "epochs=1", "method.pretrain_epochs=0", f"trainer.precision={precision}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    detector = load(outcome.directory / "detector.pt")
    assert detector.sample_shape == (1, 16, 16)
    scores = detector.score(np.load(images())["x"])
    with open(outcome.directory / "scores.csv", newline="") as file:
        found = sorted(float(row["score"]) for row in csv.DictReader(file))
    distance = [np.abs(scores - score).min() for score in found]
    assert max(distance) < (1e-4 if precision == 32 else 1e-12), "every score of the test set is that of a raw image"


@pytest.mark.parametrize(
    "typed, word",
    [
        ("dataset.scaling=best", "unit, gcn"),
        ("dataset.scaling=[0.5]", "mean, standard deviation"),
        ("dataset.scaling=[0.5,0]", "mean, standard deviation"),
        ("dataset.scaling=gcn", "images"),
        ("dataset.size=32", "images"),
    ],
)
def test_bad_input(command, typed, word):
    refused(command(typed), typed.split("=")[0], word)


def test_more_than_the_memory_is_refused_before_it_is_asked_for(command, images, monkeypatch):
    monkeypatch.setattr("elite_pl.data.preprocessing.os.sysconf", lambda name: 2048)  # 4 MiB in all
    typed = ("dataset=npz", f"dataset.path={images()}", "n_train=40", "label_ratio=0.1")
    outcome = command(*typed, "dataset.size=400")
    assert outcome.code == 2 and outcome.err.startswith("error: dataset.size=400: ") and outcome.err.count("\n") == 1
    assert "this machine has" in outcome.err
