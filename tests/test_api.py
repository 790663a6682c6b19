"""The Python face: `elite_pl.fit` on arrays in memory, and what its detector takes and refuses."""

import csv
import logging
import os
import signal
import threading
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase

import elite_pl
from elite_pl.errors import InputError

SHORT = ["epochs=2", "method.pretrain_epochs=1", "threshold=fitted"]
DEEP = ("elite_svdd", "elite_ae", "deep_sad", "devnet", "rsrae", "labels_only")
SHALLOW = ("isolation_forest", "ocsvm", "ssad")


def data(features=4, n=120):
    """A quarter are anomalies, and ten are labeled."""
    rng = np.random.default_rng(0)
    normal = 3 * n // 4
    x = np.concatenate([rng.normal(0, 1, (normal, features)), rng.normal(5, 1, (n - normal, features))])
    y = np.zeros(n, dtype=int)
    y[:5], y[normal : normal + 5] = 1, -1
    order = rng.permutation(n)  # labeled ones stand among the others
    return x[order].astype(np.float32), y[order]


def pictures(*shape):
    x = np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)
    y = np.zeros(60, dtype=int)
    y[:4], y[30:34] = 1, -1
    x[30:] //= 2
    return x, y


def fit(x, y, method="elite_svdd", **options):
    return elite_pl.fit(x, y, method, overrides=[] if method in SHALLOW else SHORT, **options)


@pytest.fixture(scope="module")
def detector():
    return fit(*data())


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, tmp_path):
    """Nothing is left in the working directory unless it is asked for."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not [path for path in os.listdir() if path in ("outputs", "wandb", "lightning_logs", "pretrained")]


# --------------------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("method", DEEP + SHALLOW)
def test_every_kind_of_method_is_trained_saved_and_read(method):
    x, y = data()
    trained = fit(x, y, method)
    scores = trained.score(x)
    assert trained.method == method and scores.dtype == np.float64
    np.testing.assert_allclose(trained.training_scores, scores, rtol=1e-4)
    assert (trained.predict(x) == np.where(scores > trained.threshold, -1, 1)).all()
    trained.save("detector.pt")
    read = elite_pl.load("detector.pt")
    assert read.score(x).tolist() == scores.tolist() and read.threshold == trained.threshold
    assert read.training_scores.tolist() == trained.training_scores.tolist() and read.margin == trained.margin


@pytest.mark.parametrize(
    "method, made, precision",
    [
        ("elite_svdd", data(), 64),
        ("elite_svdd", pictures(12, 12, 3), 32),
        ("isolation_forest", data(), 32),
        ("ssad", data(), 32),
    ],
)
def test_the_command_gives_the_same_scores(command, method, made, precision):
    x, y = made
    np.savez("own.npz", x_train=x, y_train=y, x_test=x[y != 0], y_test=y[y != 0])
    overrides = [*([] if method in SHALLOW else SHORT), f"trainer.precision={precision}", "batch_size=32"]
    outcome = command(
        "dataset=npz", "dataset.path=own.npz", "dataset.labels=known", f"method={method}", "output_dir=here", *overrides
    )
    assert outcome.code == 0, outcome.err
    trained = elite_pl.fit(x, y, method, overrides=overrides)
    read = elite_pl.load(outcome.directory / "detector.pt")
    assert trained.training_scores.tolist() == read.training_scores.tolist()
    assert (trained.threshold, trained.margin) == (read.threshold, read.margin)
    with open(outcome.directory / "scores.csv", newline="") as file:
        written = [float(row["score"]) for row in csv.DictReader(file)]
    assert trained.score(x[y != 0]).tolist() == read.score(x[y != 0]).tolist() == written


@pytest.mark.parametrize("precision", [32, 64])
def test_a_score_over_views_is_kept_with_them(precision):
    x, y = pictures(12, 12)
    settings = [*SHORT, "augmentation=digits", "method.average_decay=0.9", f"trainer.precision={precision}"]
    trained = elite_pl.fit(x, y, "deep_svdd", overrides=settings)
    np.testing.assert_allclose(trained.score(x), trained.training_scores, rtol=1e-4 if precision == 32 else 1e-12)
    trained.save("detector.pt")
    assert elite_pl.load("detector.pt").score(x).tolist() == trained.score(x).tolist()
    content = torch.load("detector.pt", weights_only=True)
    content["state"]["views"] = content["state"]["views"][:, :5]
    torch.save(content, "detector.pt")
    with pytest.raises(InputError, match="size mismatch for views"):
        elite_pl.load("detector.pt")


def test_the_seed_decides_and_nothing_else(detector):
    torch.manual_seed(5)
    assert fit(*data()).training_scores.tolist() == detector.training_scores.tolist()
    assert fit(*data(), seed=1).training_scores.tolist() != detector.training_scores.tolist()


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.tolist(),
        lambda a: torch.tensor(a, requires_grad=a.dtype.kind == "f"),
        lambda a: pd.DataFrame(a) if a.ndim == 2 else pd.Series(a),
        lambda a: np.asfortranarray(a.astype(np.float64)),
    ],
    ids=["lists", "tensors", "data frames", "another order of memory"],
)
def test_all_kinds_of_arrays(detector, convert):
    x, y = data()
    trained = fit(convert(x), convert(y))
    assert trained.training_scores.tolist() == detector.training_scores.tolist()
    assert trained.score(convert(x)).tolist() == detector.score(x).tolist()


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: pd.DataFrame(x.astype(object)),
        lambda x: pd.DataFrame(x).convert_dtypes(),
        lambda x: pd.DataFrame(x).astype({0: "Float64"}),
    ],
    ids=["objects", "nullable", "one nullable column"],
)
def test_data_frames_of_several_types(convert):
    x, y = data()
    x[:, 3] = x[:, 3] > 0
    trained = fit(convert(x), y, "isolation_forest")
    assert trained.score(convert(x)).tolist() == fit(x, y, "isolation_forest").training_scores.tolist()


def test_the_columns_of_a_data_frame_may_be_in_any_order():
    x, y = data()
    frame = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    trained = fit(frame, y, "isolation_forest")
    expected = trained.score(x).tolist()
    trained.save("detector.pt")
    for one in (trained, elite_pl.load("detector.pt")):
        assert one.score(frame[["c", "d", "a", "b"]].assign(more=1)).tolist() == expected
        assert one.score(frame.set_axis([3, 2, 1, 0], axis=1)).tolist() == expected, "no names"
        with pytest.raises(ValueError, match="x has no column b, d; expected those of training"):
            one.score(frame[["a", "c"]])


@pytest.mark.filterwarnings("ignore:y has no -1")
@pytest.mark.parametrize("labels", [[1, 1, 0, 0], [-1, -1, 0, 0], [1, -1, 0, 0]])
def test_few_samples_and_one_kind_of_label(labels):
    x, _ = data()
    assert np.isfinite(fit(x[: len(labels)], labels).training_scores).all()


def test_a_single_label():
    x, _ = data()
    y = [-1, *[0] * 119]
    with pytest.raises(ValueError, match="a single labeled sample has no statistics"):
        elite_pl.fit(x, y, "elite_svdd")
    settings = [*SHORT, "method.labeled_statistics=running"]
    assert np.isfinite(elite_pl.fit(x, y, "elite_svdd", overrides=settings).training_scores).all()
    assert np.isfinite(fit(x, y, "deep_svdd").training_scores).all()


@pytest.mark.parametrize("method", ["deep_svdd", "isolation_forest"])
def test_no_labels_where_none_are_needed(method):
    x, y = data()
    assert np.isfinite(fit(x, 0 * y, method).threshold)


def test_it_goes_unnoticed(capfd):
    torch.manual_seed(3)
    random, threads, level = torch.get_rng_state(), torch.get_num_threads(), logging.getLogger().level
    x, y = data()
    elite_pl.fit(x, y, "elite_svdd", overrides=[*SHORT, "threads=2", "trainer.precision=64"])
    assert torch.get_rng_state().equal(random) and torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32 and logging.getLogger().level == level
    assert capfd.readouterr() == ("", "") and os.listdir() == []


def test_a_hydra_of_ones_own_goes_on():
    os.mkdir("mine")
    Path("mine/app.yaml").write_text("devices: 2")
    with hydra.initialize_config_dir(os.path.abspath("mine"), version_base="1.2"):
        mine, base = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        fit(*data())
        assert GlobalHydra.instance().hydra is mine and VersionBase.instance().getbase() == base
        assert hydra.compose("app").devices == 2
        with pytest.raises(ValueError):
            elite_pl.fit(*data(), overrides=["nothing=1"])
        assert GlobalHydra.instance().hydra is mine
    assert not GlobalHydra.instance().is_initialized()


def test_in_another_thread_of_a_program_with_a_signal_handler():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    found = []
    try:
        thread = threading.Thread(target=lambda: found.append(fit(*data())))
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found


def test_an_interrupt_stays_one(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("elite_pl.methods.elite.Elite.loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(*data())


x, y = data()
BAD_INPUT = {
    "another length": (x, y[1:], "x has shape (120, 4) and y (119,)"),
    "no samples": (x[:0], y[:0], "x has shape (0, 4), which is empty"),
    "gaps": (np.where(x > 6, np.nan, x), y, "x holds", "NaN"),
    "gaps in the labels": (x, np.where(y == 0, np.nan, y), "y holds NaN", "expected 0"),
    "infinite": (np.where(x > 6, np.inf, x), y, "x holds", "infinite"),
    "objects": (np.full(x.shape, object()), y, "x holds Python objects"),
    "text in an array of objects": (x.astype(str).astype(object), y, "x holds Python objects", "encode text"),
    "gaps in an array of objects": (np.where(x > 6, None, x), y, "x holds", "NaN"),
    "a column of text": (pd.DataFrame(x).assign(kind="a"), y, "x holds Python objects", "encode text"),
    "text": (x.astype(str), y, "x is of type <U"),
    "complex numbers": (x + 1j, y, "x is of type complex"),
    "lists of different lengths": ([[1, 2], [3]], [0, 0], "x is no array"),
    "bfloat16": (torch.tensor(x).bfloat16(), y, "x is no array", "BFloat16"),
    "one feature without an axis": (x[:, 0], y, "x has shape (120,)"),
    "a number": (3, y, "x has shape ()"),
    "classes": (x, y + 1, "y holds 2; expected 1 (normal), -1 (anomaly) and 0 (unlabeled)"),
    "words": (x, np.where(y > 0, "good", "bad"), "y is of type <U4"),
    "yes and no": (x, y > 0, "y is of type bool"),
    "a matrix of labels": (x, np.eye(120), "y has shape (120, 120)"),
    "fractions": (x, y / 2, "y", "whole numbers"),
    "all labeled": (x, np.where(y < 0, -1, 1), "y has 0 unlabeled samples"),
    "no labels": (x, 0 * y, "y: elite_svdd learns from labels", "1 is a normal sample"),
    "pixels in floats": (pictures(8, 8)[0] * 1.0, pictures(8, 8)[1], "x holds pixels", "[0, 1]"),
}
del x, y


def test_labels_that_may_be_meant_otherwise():
    x, y = data()
    with pytest.warns(UserWarning, match="^y has no -1: 1 is normal, -1 an anomaly and 0 unlabeled$"):
        elite_pl.fit(x, y.clip(0), "isolation_forest")


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_x_and_y(case):
    x, y, *words = BAD_INPUT[case]
    with pytest.raises(ValueError) as caught:
        elite_pl.fit(x, y, "elite_svdd")
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message
    assert "dataset" not in message and "y_train" not in message


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"overrides": ["epoch=3"]}, ["epoch", "did you mean epochs"]),
        ({"overrides": ["method.margn=3"]}, ["method.margn", "no such key"]),
        ({"overrides": ["epochs=many"]}, ["epochs=many"]),
        ({"overrides": ["epochs=0"]}, ["epochs=0", "at least 1"]),
        ({"overrides": ["epochs=1,2"]}, ["epochs=1,2"]),
        ({"overrides": ["epochs"]}, ["epochs"]),
        ({"overrides": "epoch=3"}, ["epoch", "did you mean epochs"]),
        ({"overrides": ["dataset=mnist"]}, ["dataset"]),
        ({"overrides": ["+dataset.path=a.npz"]}, ["dataset.path"]),
        ({"overrides": ["dataset.labels_file=a.csv"]}, ["overrides: dataset.labels_file has no place here"]),
        ({"overrides": ["hydra.verbose=true"]}, ["overrides: hydra.verbose has no place here"]),
        ({"overrides": ["pollution=0.1"]}, ["overrides: pollution has no place here"]),
        ({"overrides": None}, ["overrides=None: must be a list of settings, such as ['epochs=50']"]),
        ({"overrides": [3]}, ["overrides=[3]: must be a list of settings"]),
        ({"overrides": {"epochs": 3}}, ["overrides={'epochs': 3}: must be a list of settings"]),
        ({"method": 3}, ["method=3: must be the name of a method, or None"]),
        ({"method": ["ocsvm"]}, ["method=['ocsvm']: must be the name of a method"]),
        ({"method": ""}, ["method='': must be the name of a method"]),
        ({"overrides": ["logger=wandb"]}, ["logger"]),
        ({"overrides": ["method=deep_sad"]}, ["method"]),
        ({"overrides": ["trainer=ddp"]}, ["trainer=ddp", "this process"]),
        ({"overrides": ["trainer.devices=2"]}, ["trainer.devices=2"]),
        ({"method": "elite"}, ["method=elite", "elite_svdd"]),
        ({"method": "devnet", "y": "without anomalies"}, ["y: devnet learns from labeled anomalies", "-1 an anomaly"]),
        ({"method": "oracle"}, ["oracle", "truth"]),
        ({"seed": -1}, ["seed=-1"]),
    ],
)
@pytest.mark.filterwarnings("ignore:y has no -1")
def test_bad_settings(settings, words):
    x, y = data()
    if settings.pop("y", None):
        y = y.clip(0)
    with pytest.raises(ValueError) as caught:
        elite_pl.fit(x, y, **settings)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value
    assert type(caught.value) in (ValueError, InputError)


# ------------------------------------------------------------------------------------------------------------- score


@pytest.fixture(scope="module")
def bytes_last():
    return fit(*pictures(12, 12, 3), "deep_svdd")


@pytest.fixture(scope="module")
def floats_first():
    x, y = pictures(3, 12, 12)
    return fit(x / 255, y, "deep_svdd")


@pytest.fixture(scope="module")
def gray():
    return fit(*pictures(12, 12), "deep_svdd")


def test_any_number_of_samples(detector):
    x, _ = data(n=2600)
    scores = detector.score(x)
    assert scores.shape == (2600,)
    np.testing.assert_allclose(np.concatenate([detector.score(x[i : i + 1]) for i in range(9)]), scores[:9], rtol=1e-4)
    np.save("x.npy", x)
    assert detector.score(np.load("x.npy", mmap_mode="r")).tolist() == scores.tolist()
    assert detector.score(x[::-1])[::-1] == pytest.approx(scores, rel=1e-4)
    assert not detector(torch.tensor(x[:5])).isnan().any(), "the module itself takes tensors"


def test_images_are_taken_in_the_layout_of_training_alone(bytes_last, floats_first, gray):
    last, first = pictures(12, 12, 3)[0], pictures(3, 12, 12)[0] / 255
    for trained, right, wrong, word in (
        (bytes_last, last, last.transpose(0, 3, 1, 2), "last"),
        (floats_first, first, first.transpose(0, 2, 3, 1), "first"),
    ):
        np.testing.assert_allclose(trained.score(right), trained.training_scores, rtol=1e-4)
        with pytest.raises(ValueError, match=rf"expected .*, as in training: the channels are the {word} axis"):
            trained.score(wrong)
    x = pictures(12, 12)[0]
    assert gray.score(x).tolist() == gray.score(x[:, None]).tolist()
    with pytest.raises(ValueError, match=r"expected .*, as in training"):
        gray.score(x[..., None])


def test_units_of_images_are_those_of_training(bytes_last, floats_first):
    last, first = pictures(12, 12, 3)[0], pictures(3, 12, 12)[0]
    assert bytes_last.score(last.astype(np.int64)).tolist() == bytes_last.score(last).tolist()
    with pytest.raises(ValueError, match=r"fractions in \[0, 1\], and training saw whole numbers"):
        bytes_last.score(last / 255)
    with pytest.raises(ValueError, match=r"whole numbers beyond \[0, 1\], and training saw fractions"):
        floats_first.score(first)
    for wrong in (first * 1.0, first / 255 - 1):
        with pytest.raises(ValueError, match="pixels from"):
            floats_first.score(wrong)


def test_units_of_vectors_are_those_of_training():
    x, y = data()
    unit = (x - x.min()) / (x.max() - x.min())
    whole = np.round(255 * unit)
    one, other = fit(unit, y, "isolation_forest"), fit(whole, y, "isolation_forest")
    with pytest.raises(ValueError, match="training saw fractions"):
        one.score(whole)
    with pytest.raises(ValueError, match="training saw whole numbers"):
        other.score(unit)
    one.score(unit * 1.5), other.score(whole + 0.5), one.score(np.round(unit)), other.score(whole[:1] * 0)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x[:, :3], ["x has shape (120, 3); expected (n, 4), as in training"]),
        (lambda x: x[0], ["x has shape (4,)", "x[None]"]),
        (lambda x: x[:0], ["empty"]),
        (lambda x: [], ["empty"]),
        (lambda x: None, ["x holds Python objects"]),
        (lambda x: x[:, None], ["(120, 1, 4)", "(n, 4)"]),
        (lambda x: np.where(x > 5, np.nan, x), ["NaN"]),
        (lambda x: torch.tensor(x) / 0, ["infinite"]),
        (lambda x: np.full(x.shape, object()), ["x holds Python objects"]),
        (lambda x: x.astype(str), ["x is of type <U"]),
        (lambda x: x * 1j, ["complex"]),
        (lambda x: np.float64(x) * 1e300, ["too large for float32"]),
        (lambda x: x.clip(1) * 1e37, ["so extreme"]),
    ],
)
def test_what_training_did_not_see_is_refused(detector, change, words):
    x, _ = data()
    for method in (detector.score, detector.predict):
        with pytest.raises(ValueError) as caught:
            method(change(x))
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


def test_a_file_cannot_be_written_where_there_is_no_folder(detector):
    with pytest.raises(FileNotFoundError):
        detector.save("nowhere/detector.pt")
