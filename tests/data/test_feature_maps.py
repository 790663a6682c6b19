"""What takes the place of vectors."""

import copy
import csv

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer, SplineTransformer, StandardScaler
from test_bad_input import refused

import elite_pl
from elite_pl.data.feature_maps import LEVELS, feature_map
from elite_pl.errors import InputError
from elite_pl.runs import detector_file


def rows(n=500):
    """A feature of each kind: normal, heavy-tailed, of few values, mostly zero, and two that are constant."""
    rng = np.random.default_rng(0)
    rare = np.where(rng.random(n) < 0.02, rng.random(n), 0)
    columns = [rng.normal(size=n), rng.standard_cauchy(n), rng.integers(0, 3, n), rare, np.zeros(n), np.full(n, 0.1)]
    return torch.as_tensor(np.stack(columns, axis=1), dtype=torch.float32)


def test_five_numbers_by_hand():
    made = feature_map(torch.arange(5.0)[:, None], gaussian=True, bins=2, norm=None)
    found = made(torch.tensor([[1.0], [2.0], [3.5], [-1.0], [1000.0]]))
    expected = [
        [-1 / 2**0.5, -0.67449, 0.25, 0.0],
        [0.0, 0.0, 0.5, 0.0],
        [1.5 / 2**0.5, 1.15035, 0.5, 0.375],
        [-3 / 2**0.5, -3.0, 0.0, 0.0],
        [10.0, 3.0, 0.5, 0.5],
    ]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_each_part_is_what_scikit_learn_makes():
    training = rows()
    new = torch.cat([training, training + 0.3, training * 3])
    x, z = training.double().numpy(), new.double().numpy()
    standard, gaussian, piecewise = feature_map(training, gaussian=True, bins=8, norm=None)(new).split([6, 6, 48], 1)
    expected = StandardScaler().fit(x[:, :4]).transform(z[:, :4]).clip(-10, 10)
    np.testing.assert_allclose(standard[:, :4], expected, atol=1e-4)
    levels = QuantileTransformer(n_quantiles=LEVELS, subsample=None).fit(x[:, :4]).transform(z[:, :4])
    inside = ~np.isin(z[:, :4], [*x.min(0), *x.max(0)])  # where many values are the least one, it is 0 there
    np.testing.assert_allclose(gaussian[:, :4][inside], norm.ppf(levels).clip(-3, 3)[inside], atol=2e-3)
    hats = SplineTransformer(9, degree=1, knots="quantile", extrapolation="constant").fit(x[:, :2]).transform(z[:, :2])
    cumulated = hats.reshape(-1, 2, 9)[:, :, ::-1].cumsum(2)[:, :, ::-1][:, :, 1:]
    ours = piecewise.reshape(-1, 8, 6)[:, :, :2].transpose(1, 2)
    np.testing.assert_allclose(ours, 0.5 * cumulated, atol=1e-4)


def test_constant_features_and_ties_stay_finite_and_small():
    training = rows()
    made = feature_map(training, gaussian=True, bins=8, norm=0.3)
    assert made(training).square().sum(1).mean().sqrt() == pytest.approx(0.3)
    new = made(torch.tensor([[3e38] * 6, [-3e38] * 6, [0.0] * 6]))
    assert new.isfinite().all() and new.abs().max() <= 10 * made.factor
    assert not made(training).view(-1, 10, 6)[:, 2:, 4:].any(), "no bins where nothing differs"
    few = feature_map(torch.zeros(3, 2), gaussian=False, bins=8, norm=0.3)
    assert not few(torch.zeros(1, 2)).any()
    torch.testing.assert_close(made(training)[:0], made(training[:0]))


def own_data(folder, n=300):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (n, 3)), rng.normal(3, 1, (n // 10, 3))]).astype(np.float32)
    y = np.repeat([0, 1], [n, n // 10])
    np.savez(folder / "own.npz", x=x, y=y)
    return ["dataset=npz", "dataset.path=own.npz", "pollution=0.09", "label_ratio=0.05", "threads=1"]


@pytest.mark.parametrize("method", ["elite_tabular", "extra_trees"])
def test_the_file_of_a_detector_has_its_map(command, tmp_path, method):
    """Scores of the run, of the loaded file, and of the exported module are the same."""
    data = own_data(tmp_path)
    outcome = command(*data, f"method={method}", "feature_map=tabular")
    assert outcome.code == 0, outcome.err
    detector = elite_pl.load(outcome.directory / "detector.pt")
    arrays = elite_pl.data.npz("own.npz", "classes", 0.3)
    x = arrays.x_test[np.load(outcome.directory / "splits.npz")["test"]]
    with (outcome.directory / "scores.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert detector.sample_shape == (30,) and detector.samples.shape == (3,)
    np.testing.assert_allclose(detector.score(x), scores, rtol=1e-4, atol=1e-6)
    exported = torch.export.export(detector, (torch.as_tensor(x[:5]),)).module()
    np.testing.assert_allclose(exported(torch.as_tensor(x[:5])).detach(), detector.score(x[:5]), rtol=1e-5, atol=1e-6)
    detector.save("again.pt")
    np.testing.assert_array_equal(elite_pl.load("again.pt").score(x), detector.score(x))


def test_images_have_no_feature_map(command, images):
    outcome = command("dataset=npz", f"dataset.path={images()}", "label_ratio=0.1", "feature_map=tabular")
    refused(outcome, "feature_map", "vectors", "(1, 12, 12)")


def test_bins_divide_what_is_kept(command, tmp_path):
    refused(
        command(*own_data(tmp_path), "feature_map=tabular", "feature_map.bins=7"), "feature_map.bins=7", "power of 2"
    )


def mapped(**changes):
    def attack(content):
        content["preprocessing"]["feature_map"].update(changes)

    return attack


ATTACKS = {
    "no map": lambda content: content["preprocessing"].update(feature_map=[1]),
    "a part too many": mapped(more=1),
    "a mean of text": mapped(mean="0"),
    "a mean of no shape": mapped(mean=torch.zeros(())),
    "a mean of other types": mapped(mean=torch.zeros(4, dtype=torch.float64)),
    "a deviation of zero": mapped(deviation=torch.zeros(4)),
    "a deviation of other features": mapped(deviation=torch.ones(5)),
    "quantiles that fall": mapped(quantiles=torch.arange(LEVELS * 4.0).flip(0).view(LEVELS, 4)),
    "quantiles of other features": mapped(quantiles=torch.zeros(LEVELS, 5)),
    "no quantiles": mapped(quantiles=torch.zeros(0, 4)),
    "one quantile": mapped(quantiles=torch.zeros(1, 4)),
    "a list of quantiles": mapped(quantiles=torch.zeros(LEVELS)),
    "a factor for each": mapped(factor=torch.ones(4)),
    "a flag that is a number": mapped(gaussian=1),
    "bins that do not divide": mapped(bins=3),
    "bins without end": mapped(bins=10**9),
    "negative bins": mapped(bins=-8),
    "bins that are true": mapped(bins=True),
    "another number of bins": mapped(bins=4),
    "a shift of mapped features": lambda content: content["preprocessing"].update(shift=torch.zeros(40)),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "detector.pt"
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.repeat([0, 1, -1], [50, 5, 5])
    elite_pl.fit(x, y, "extra_trees", overrides=["feature_map=tabular", "method.trees=3"]).save(path)
    return detector_file.read(path)


@pytest.mark.parametrize("attack", ATTACKS)
def test_maps_that_attack(content, tmp_path, attack):
    attacked = copy.deepcopy(content)
    ATTACKS[attack](attacked)
    detector_file.write(tmp_path / "attacked.pt", {k: v for k, v in attacked.items() if k != "format_version"})
    with pytest.raises(InputError, match="preprocessing is missing, or not what it should be"):
        elite_pl.load(tmp_path / "attacked.pt")
