"""Arrays in .npy files, which stay there: the same as from an npz file, and one line for each way of being wrong."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_image_folder import refused_by

from elite_pl.data import datamodule, npy, npz, rows
from elite_pl.data.preprocessing import Preprocessing
from elite_pl.data.splits import known_labels
from elite_pl.runs.trained import load as load_detector

RNG = np.random.default_rng(0)
N = 60
VECTORS = RNG.random((N, 5))
IMAGES = RNG.integers(0, 256, (N, 12, 12, 3), dtype=np.uint8)
Y = np.r_[np.ones(6), -np.ones(6), np.zeros(N - 12)].astype(int)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", VECTORS)
    np.save("images.npy", IMAGES)
    np.save("y.npy", Y)


def load(path="x.npy", **settings):
    defaults = {"labels_path": "y.npy", "test_path": None, "test_labels_path": None, "labels": "known"}
    return npy(str(path), **{**defaults, "test_fraction": 0.3, **settings})


@pytest.mark.parametrize("x", [VECTORS, VECTORS.astype("f2"), RNG.integers(-9, 9, (N, 4)), IMAGES, IMAGES / 255,
                               IMAGES[..., 0].astype(np.int64), IMAGES.transpose(0, 3, 1, 2)])  # fmt: skip
def test_the_same_as_from_an_npz_file(x, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 1000)
    np.save("x.npy", x)
    np.savez("x.npz", x=x, y=Y)
    found, expected = load(), npz("x.npz", "known", 0.3)
    assert isinstance(found.x_train, np.memmap) and found.x_train.filename == Path("x.npy").absolute()
    some = np.array([5, 3, 50])
    taken = rows.Rows(found.x_train)[some]
    assert taken.dtype == expected.x_train.dtype
    np.testing.assert_array_equal(taken, expected.x_train[some])
    assert found.raw_shape == expected.raw_shape
    assert found.fingerprint == expected.fingerprint and (found.y_train == expected.y_train).all()


def test_labels_in_words_classes_and_none():
    np.save("words.npy", np.array(["", "normal", "anomaly"])[Y])
    assert (load(labels_path="words.npy").y_train == Y).all()
    assert not load(labels_path=None).y_train.any()
    np.save("classes.npy", np.arange(N) % 2)
    arrays = load(labels_path="classes.npy", labels="classes")
    assert np.bincount(arrays.y_train).tolist() == [21, 21] and np.bincount(arrays.y_test).tolist() == [9, 9]
    both = {"test_path": "x.npy", "test_labels_path": "classes.npy"}
    arrays = load(labels_path="classes.npy", labels="classes", **both)
    assert len(arrays.x_train) == len(arrays.x_test) == N and isinstance(arrays.x_test, np.memmap)


def test_more_than_the_memory_holds_gives_the_same_scores(command, monkeypatch):
    np.save("test_y.npy", np.where(np.arange(N) % 3, 1, -1))
    test = ("dataset.test_path=x.npy", "dataset.test_labels_path=test_y.npy")
    found = []
    for kept in (True, False):  # a copy in memory, or in the file
        monkeypatch.setattr(Preprocessing, "changes", lambda *_, kept=kept: kept)
        outcome = command("dataset=npy", "dataset.path=x.npy", "dataset.labels_path=y.npy", *test, "epochs=2")
        assert outcome.code == 0, outcome.err
        found.append([(outcome.directory / name).read_text() for name in ("scores.csv", "audit.csv", "history.csv")])
        detector = load_detector(outcome.directory / "detector.pt")
        shutil.rmtree("outputs")
    assert found[0] == found[1]
    np.testing.assert_allclose(detector.shift, VECTORS.mean(0), rtol=1e-5, err_msg="although they lie in [0, 1]")
    np.testing.assert_allclose(detector.scale, VECTORS.std(0), rtol=1e-5)


@pytest.mark.parametrize("scaling", ["unit", "standard", "gcn", [0.5, 0.25]])
def test_images_are_read_batch_by_batch(monkeypatch, scaling):
    arrays = load("images.npy")
    split, settings = known_labels(Y, Y[:0]), {"batch_size": 16, "labeled_batch_size": None, "seed": 0}
    batches = []
    for limit in (2**32, 0):
        monkeypatch.setattr(datamodule, "RESIDENT", limit)
        monkeypatch.setattr(rows, "BLOCK", 1000 if limit == 0 else 2**26)
        data = datamodule.PollutedData(arrays, split, normal_class=1, size=10, scaling=scaling, **settings)
        assert data.sample_shape == (3, 10, 10) and len(data.unlabeled) == N - 12
        assert (len(data.unlabeled.values) == 0) == (limit == 0), "nothing is kept"
        batches.append([batch["unlabeled"] for batch in datamodule.TrainingBatches(data, lambda: 0)])
    for first, second in zip(*batches, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def header(shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file, which promises an array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def long_header() -> bytes:
    """A head that NumPy reads only if it may unpickle, too."""
    file = io.BytesIO()
    np.save(file, np.zeros(3, [(f"a name {i}", "f4") for i in range(1000)]))
    return file.getvalue()


BAD = {
    "no file": (None, ("no such file",)),
    "nothing": (b"", ("is not a .npy file",)),
    "text": (b"a,b\n1,2\n", ("x.npy: is not a .npy file, or is damaged; expected a file that numpy.save writes",)),
    "a long head": (long_header(), ("x.npy: is not a .npy file, or is damaged; expected",)),
    "cut": ("cut", ("is not a .npy file, or is damaged",)),
    "more than there is": (header((2**62, 2**10)), ("is not a .npy file, or is damaged",)),
    "npz": ("npz", ("is an npz file; dataset=npz reads it",)),
    "objects": (np.array([[None, 1]]), ("Python objects",)),
    "one axis": (np.zeros(N), ("has shape (60,)",)),
    "no row": (np.zeros((0, 3)), ("has shape (0, 3)",)),
    "no axis": (np.zeros(()), ("has shape ()",)),
    "words": (np.full((N, 2), "a"), ("is of type <U1",)),
    "NaN": (np.where(VECTORS > 0.99, np.nan, VECTORS), ("NaN or infinite",)),
    "infinite": (VECTORS * np.inf, ("NaN or infinite",)),
    "too large": (VECTORS * 1e300, ("too large for float32",)),
    "pixels": (IMAGES * 1.0, ("holds pixels from 0.0 to 255.0",)),
    "axes": (np.zeros((N, 3, 4, 3), np.uint8), ("ambiguous",)),
}


@pytest.mark.parametrize("what", BAD)
def test_samples_that_are_wrong(what):
    content, words = BAD[what]
    Path("x.npy").unlink()
    if what == "cut":
        np.save("x.npy", VECTORS)
        Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-9])
    elif what == "npz":
        np.savez("x.npz", x=VECTORS)
        Path("x.npz").rename("x.npy")
    elif isinstance(content, bytes):
        Path("x.npy").write_bytes(content)
    elif content is not None:
        np.save("x.npy", content)
    refused_by(load, "dataset.path=x.npy: ", *words)


@pytest.mark.parametrize(
    "y, words",
    [
        (Y[:-1], ("holds 59 labels for 60 samples",)),
        (Y + 1, ("holds 2", "normal, anomaly")),
        (Y + 0.5, ("whole numbers",)),
        (np.where(Y > 0, np.nan, 1), ("NaN",)),
        (np.full(N, "good"), ("holds good", "normal, anomaly")),
        (np.array([None] * N), ("Python objects",)),
        (np.zeros((N, 2), int), ("has shape (60, 2)",)),
    ],
)
def test_labels_that_are_wrong(y, words):
    np.save("y.npy", y)
    refused_by(load, "dataset.labels_path=y.npy: ", *words)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"labels": "guess"}, ("labels=guess: must be known or classes",)),
        ({"test_fraction": 1}, ("test_fraction=1: must be a number between 0 and 1",)),
        ({"labels": "classes", "labels_path": None}, ("dataset.labels_path=null",)),
        ({"test_path": "x.npy"}, ("dataset.test_labels_path=null",)),
        ({"test_labels_path": "y.npy"}, ("dataset.test_path=null",)),
        (
            {"test_path": "x.npy", "test_labels_path": "y.npy"},
            ("dataset.test_labels_path=y.npy: 48 of 60 test samples have no label",),
        ),
        (
            {"test_path": "x.npy", "test_labels_path": "ones.npy"},
            ("dataset.test_labels_path=ones.npy: all 60 test samples are normal",),
        ),
        ({"test_path": "images.npy", "test_labels_path": "y1.npy"}, ("samples are",)),
        ({"labels_path": "y1.npy"}, ("dataset.labels_path=y1.npy: 0 of 60 training samples are unlabeled",)),
        (
            {"labels": "classes"},
            ("dataset.labels_path=y.npy: the array holds 1, -1 and 0, as known labels do", "=known"),
        ),
        ({"path": "pipe.npy"}, ("neither a file nor a folder",)),
        ({"path": "."}, ("is a folder",)),
    ],
)
def test_settings_that_are_wrong(settings, words):
    os.mkfifo("pipe.npy")
    np.save("ones.npy", np.ones(N))
    np.save("y1.npy", np.where(np.arange(N) % 2, 1, -1))
    refused_by(lambda: load(**settings), *words)
