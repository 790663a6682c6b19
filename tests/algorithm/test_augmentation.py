"""Augmentation: each amount does what its name says, and equal generators give equal samples."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from elite_pl.algorithm.augmentation import Affine, FeatureNoise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image():
    """A smooth image, of which interpolation does little harm, with an empty border."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    return torch.exp(-((x - 13) ** 2 / 18 + (y - 11) ** 2 / 8))[None, None]


def moments(image):
    """Mass, center (x, y) and orientation of an image (height, width), in pixels and radians."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in image.shape), indexing="ij")
    mass = image.sum()
    cx, cy = (image * x).sum() / mass, (image * y).sum() / mass
    xx, yy = (image * (x - cx) ** 2).sum() / mass, (image * (y - cy) ** 2).sum() / mass
    xy = (image * (x - cx) * (y - cy)).sum() / mass
    return mass, cx, cy, 0.5 * torch.atan2(2 * xy, xx - yy)


def test_each_amount_stays_within_its_bound_and_comes_close_to_it(image):
    many = image.expand(400, -1, -1, -1)
    mass, cx, cy, angle = moments(image[0, 0])
    shifted = [moments(one[0]) for one in Affine(shift=3)(many, generator())]
    dx = torch.stack([found[1] - cx for found in shifted])
    dy = torch.stack([found[2] - cy for found in shifted])
    assert 2.9 < dx.abs().max() < 3.05 and 2.9 < dy.abs().max() < 3.05 and abs(dx.mean()) < 0.3
    turned = torch.stack([moments(one[0])[3] - angle for one in Affine(rotation=20)(many, generator())]).rad2deg()
    assert 19.5 < turned.abs().max() < 20.5
    grown = torch.stack([moments(one[0])[0] / mass for one in Affine(scale=0.2)(many, generator())])
    assert 0.63 < grown.min() < 0.67 and 1.41 < grown.max() < 1.45, "both sides by 20 %"


def test_it_is_torchvisions_map(image):
    draws = 2 * torch.rand(1, 6, generator=generator(5)) - 1
    angle, growth = (draws[0, 2:4] * torch.tensor([15.0, 0.1])).tolist()
    expected = reference.affine(image, -angle, [0, 0], 1 + growth, [0.0, 0.0], InterpolationMode.BILINEAR)
    torch.testing.assert_close(Affine(rotation=15, scale=0.1)(image, generator(5)), expected, atol=2e-3, rtol=0)


def test_half_of_the_images_are_mirrored(image):
    many = Affine(flip=True)(image.expand(300, -1, -1, -1), generator())
    mirrored = [torch.allclose(one, image[0].flip(-1), atol=1e-5) for one in many]
    same = [torch.allclose(one, image[0], atol=1e-5) for one in many]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 110 < sum(mirrored) < 190


@pytest.mark.parametrize("augmentation", [Affine(2, 10, 0.1, 0.1, True), FeatureNoise(0.1)])
def test_equal_generators_give_equal_samples(augmentation):
    sample = torch.rand(5, 1, 9, 7)
    first, again, other = (augmentation(sample, generator(seed)) for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other) and first.shape == sample.shape


def test_nothing_to_change_changes_nothing():
    sample = torch.rand(5, 1, 9, 7)
    torch.testing.assert_close(Affine()(sample, generator()), sample)
    assert FeatureNoise(0)(sample, generator()).equal(sample)


def test_noise_has_the_standard_deviation_that_was_asked_for():
    sample = torch.zeros(1000, 20)
    assert abs(FeatureNoise(0.3)(sample, generator()).std() - 0.3) < 0.01


def test_a_sample_is_changed_by_its_own_numbers_alone():
    augmentation, sample = Affine(2, 10, 0.1, 0.1, True), torch.rand(6, 1, 9, 7)
    draws = augmentation.draw(6, (1, 9, 7), generator())
    torch.testing.assert_close(augmentation.apply(sample, draws)[2:4], augmentation.apply(sample[2:4], draws[2:4]))


def test_views_are_few_fixed_and_on_both_sides():
    views = Affine(2, test_views=8).views((1, 9, 7))
    assert views.shape == (8, 6) and views.equal(Affine(2, test_views=8).views((1, 9, 7)))
    assert (views.abs() <= 1).all() and views.mean(0).abs().max() < 0.2 and views.std(0).min() > 0.4
    assert FeatureNoise(0.1, test_views=3).views((30000,)).shape == (3, 30000)


@pytest.mark.parametrize(
    "make", [lambda: Affine(shift=-1), lambda: Affine(scale=1), lambda: FeatureNoise(-1), lambda: Affine(test_views=-1)]
)
def test_amounts_out_of_range(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_a_vector_is_no_image():
    with pytest.raises(ValueError, match="no images"):
        Affine(shift=1)(torch.rand(3, 4), generator())
