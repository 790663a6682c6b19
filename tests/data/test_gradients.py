"""Histograms of oriented gradients in the place of images."""

import copy
import csv

import numpy as np
import pytest
import torch
from test_bad_input import refused

import elite_pl
from elite_pl.data.gradients import OrientedGradients, oriented_gradients
from elite_pl.errors import InputError
from elite_pl.runs import detector_file


def gradients(cells=7, orientations=9):
    return OrientedGradients(cells, orientations, torch.ones(()))


def wave(degrees, size=28, length=8.0, phase=0.0, contrast=1.0):
    """An image (1, 1, size, size) in which the brightness runs along a direction, counterclockwise from the right."""
    place = torch.arange(float(size))
    angle = torch.tensor(degrees).deg2rad()
    along = place[None, :] * angle.cos() - place[:, None] * angle.sin()
    return (0.5 + 0.5 * contrast * torch.sin(2 * torch.pi * along / length + phase))[None, None]


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0), (60, 6), (100, 4), (140, 2)])
def test_the_direction_of_a_gradient_is_its_orientation(degrees, expected):
    """Rows are counted downward, so a direction is seen in a mirror: 60 degrees are 120, the seventh of nine."""
    inside = gradients().votes(wave(float(degrees)))[0, :, 1:-1, 1:-1].sum(dim=(1, 2))
    assert inside.argmax() == expected
    assert inside[expected] > 0.75 * inside.sum()


def test_what_falls_between_two_orientations_is_shared():
    votes = gradients(orientations=9).votes(wave(170.0, length=40.0))[0, :, 1:-1, 1:-1].sum(dim=(1, 2))
    torch.testing.assert_close(votes[0], votes[1], rtol=0.02, atol=0)  # 10 degrees lie between 0 and 20
    assert votes[2:].sum() < 0.05 * votes.sum()


def test_votes_are_the_length_of_the_gradient_of_the_strongest_channel():
    image = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    y, x = (torch.as_tensor(part) for part in np.gradient(image.numpy(), axis=(2, 3)))
    longest = 2 * (x.square() + y.square()).sqrt().amax(dim=1)  # a central difference spans two pixels
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(gradients().votes(image).sum(dim=1)[inside], longest[inside])


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((1, 28, 28), 36 * 36), ((3, 32, 32), 49 * 36), ((1, 8, 8), 9 * 36), ((3, 40, 64), 6 * 11 * 36), ((1, 4, 4), 36)],
)
def test_lengths(shape, outputs):
    made = gradients()(torch.zeros(2, *shape))
    assert made.shape == (2, outputs) and not made.any(), "an image of one brightness has no gradients"
    assert gradients()(torch.zeros(0, *shape)).shape == (0, outputs)


def test_contrast_changes_little_and_turning_by_half_nothing():
    made = gradients()
    faint, strong = made(wave(30.0, contrast=0.4)), made(wave(30.0))
    assert (faint - strong).norm() < 0.05 * strong.norm()
    torch.testing.assert_close(made(1 - wave(30.0)), strong, atol=1e-5, rtol=0)
    assert (made(wave(75.0)) - strong).norm() > 0.5 * strong.norm()


def test_a_norm_is_that_of_the_training_images():
    images = torch.rand(50, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    made = oriented_gradients(images, cells=4, orientations=6, norm=0.3)
    assert made(images).square().sum(dim=1).mean().sqrt() == pytest.approx(0.3)
    dark = oriented_gradients(torch.zeros(3, 1, 12, 12), cells=4, orientations=6, norm=0.3)
    assert not dark(images[:0] + 1).any() and dark.factor == 1


def test_a_run_on_gradients_scores_raw_images(command, images):
    data = ["dataset=npz", f"dataset.path={images(10, 14, 3)}", "label_ratio=0.1", "pollution=0.2"]
    outcome = command(*data, "method=label_spreading", "feature_map=oriented_gradients", "feature_map.cells=3")
    assert outcome.code == 0, outcome.err
    detector = elite_pl.load(outcome.directory / "detector.pt")
    assert detector.samples.shape == (10, 14, 3) and len(detector.sample_shape) == 1
    with np.load(data[1].split("=")[1]) as file, (outcome.directory / "scores.csv").open() as scores:
        rows = list(csv.DictReader(scores))
        x = file["x"]
    with np.load(outcome.directory / "splits.npz") as splits:
        assert [int(row["index"]) for row in rows] == splits["test"].tolist()
    found = detector.score(x)
    truth = np.sort([float(row["score"]) for row in rows])
    assert all(np.isclose(found, value, rtol=1e-4, atol=1e-6).any() for value in truth)
    exported = torch.export.export(detector, (torch.as_tensor(x[:5]),)).module()
    np.testing.assert_allclose(exported(torch.as_tensor(x[:5])).detach(), found[:5], rtol=1e-5, atol=1e-6)


def test_vectors_and_tiny_images_have_no_gradients(command, images):
    run = ["dataset=npz", "label_ratio=0.2", "feature_map=oriented_gradients"]
    refused(command(*run, f"dataset.path={vectors(images)}"), "feature_map", "4 x 4", "(3,)")
    refused(command(*run, f"dataset.path={images(12, 3)}"), "feature_map", "4 x 4", "(1, 12, 3)")


def vectors(images):
    path = images().with_name("vectors.npz")
    np.savez(path, x=np.random.default_rng(0).random((60, 3)), y=np.repeat([0, 1], 30))
    return path


ATTACKS = {
    "cells that are true": {"cells": True},
    "one cell": {"cells": 1},
    "orientations that are not those of the samples": {"orientations": 7},
    "a factor for each": {"factor": torch.ones(36)},
    "a factor of another type": {"factor": torch.ones((), dtype=torch.float64)},
    "a part too many": {"more": 1},
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "detector.pt"
    x, y = np.random.default_rng(0).random((60, 8, 8), np.float32), np.repeat([0, 1, -1], [50, 5, 5])
    elite_pl.fit(x, y, "extra_trees", overrides=["feature_map=oriented_gradients", "method.trees=3"]).save(path)
    return detector_file.read(path)


@pytest.mark.parametrize("attack", ATTACKS)
def test_gradients_that_attack(content, tmp_path, attack):
    attacked = copy.deepcopy(content)
    attacked["preprocessing"]["feature_map"].update(ATTACKS[attack])
    detector_file.write(tmp_path / "attacked.pt", {k: v for k, v in attacked.items() if k != "format_version"})
    with pytest.raises(InputError, match="preprocessing is missing, or not what it should be"):
        elite_pl.load(tmp_path / "attacked.pt")
