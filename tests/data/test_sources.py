"""Sources: what comes back, and one clear line for everything that can be wrong with files."""

import gzip
import hashlib
import os
import socket
import threading
import time
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from elite_pl.data import digits, npz, torchvision_set
from elite_pl.data.arrays import Arrays, resolve_class
from elite_pl.errors import InputError

RNG = np.random.default_rng(0)
Y = np.arange(20) % 2
GRAY = RNG.integers(0, 256, (20, 9, 8), dtype=np.uint8)
HWC = RNG.integers(0, 256, (20, 9, 8, 3), dtype=np.uint8)
VECTORS = RNG.normal(size=(20, 6))


def write(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def load(tmp_path):
    """Save arrays, then load them: four arrays from `x` and `y` unless they are given."""

    def load(labels="classes", **arrays) -> Arrays:
        return npz(write(tmp_path / "mine.npz", **arrays), labels, 0.3)

    return load


def four(x_train=VECTORS, y_train=Y, x_test=None, y_test=None) -> dict:
    x_test = x_train if x_test is None else x_test
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_train if y_test is None else y_test}


# digits


def test_digits():
    arrays, again = digits(), digits()
    assert arrays.x_train.shape == (1258, 64) and arrays.x_test.shape == (539, 64)
    assert arrays.x_train.dtype == np.float32 and arrays.x_train.min() == 0 and arrays.x_train.max() == 1
    assert arrays.y_train.dtype == arrays.y_test.dtype == np.int64
    assert np.unique(arrays.y_test).tolist() == list(range(10))
    assert arrays.class_names == tuple("0123456789") and arrays.labels == "classes" and arrays.name == "digits"
    assert arrays.fingerprint == "6e0f373d0ceddaa8", "that of the committed results"
    assert arrays.fingerprint == again.fingerprint and len(arrays.fingerprint) == 16
    distinct = {row.tobytes() for row in arrays.x_train} & {row.tobytes() for row in arrays.x_test}
    assert not distinct


# npz: what comes back


def test_vectors(load):
    arrays = load(**four())
    assert arrays.name == "mine" and arrays.labels == "classes" and arrays.class_names is None
    np.testing.assert_array_equal(arrays.x_train, VECTORS.astype(np.float32))
    np.testing.assert_array_equal(arrays.y_test, Y)
    assert (arrays.x_test.dtype, arrays.y_train.dtype) == (np.float32, np.int64)


def test_fingerprint_sees_values_types_and_parts(load):
    fingerprints = {
        load(**four()).fingerprint,
        load(**four(VECTORS + 1)).fingerprint,
        load(**four(y_test=1 - Y)).fingerprint,
        load(**four(GRAY)).fingerprint,
        load(**four(GRAY / 255)).fingerprint,
    }
    assert len(fingerprints) == 5
    assert load(**four()).fingerprint in fingerprints


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GRAY, GRAY[:, None]),
        (GRAY.astype(np.int64), GRAY[:, None]),
        (GRAY[..., None], GRAY[:, None]),
        (GRAY[:, None], GRAY[:, None]),
        (HWC, HWC.transpose(0, 3, 1, 2)),
        (HWC.transpose(0, 3, 1, 2), HWC.transpose(0, 3, 1, 2)),
        (HWC / 255, (HWC / 255).transpose(0, 3, 1, 2).astype(np.float32)),
        (GRAY > 99, (GRAY > 99)[:, None].astype(np.float32)),
    ],
)
def test_images_are_channels_first(load, images, expected):
    arrays = load(**four(images))
    np.testing.assert_array_equal(arrays.x_train, expected)
    assert arrays.x_train.dtype == expected.dtype
    assert arrays.x_train.flags.c_contiguous


@pytest.mark.parametrize("y", [Y.astype(float), Y.astype(np.uint8), Y[:, None], Y.astype(bool)])
def test_whole_numbers_are_class_ids(load, y):
    assert load(**four(y_train=y)).y_train.tolist() == Y.tolist()


@pytest.mark.parametrize("kind", ["U", "S"])
def test_strings_become_class_names(load, kind):
    arrays = load(**four(y_train=np.array(["dog", "cat"] * 10).astype(kind), y_test=np.array(["emu", "cat"] * 10)))
    assert arrays.class_names == ("cat", "dog", "emu")
    assert arrays.y_train.tolist() == [1, 0] * 10 and arrays.y_test.tolist() == [2, 0] * 10


def test_names_in_classes(load):
    assert load(**four(), classes=np.array(["cat", "dog"])).class_names == ("cat", "dog")
    with pytest.raises(InputError, match="go beyond the 1 names in classes; expected 0 to 0"):
        load(**four(), classes=np.array(["cat"]))


def test_x_and_y_alone_are_split_class_by_class(load):
    arrays, again = load(x=VECTORS, y=Y), load(x=VECTORS, y=Y)
    assert np.bincount(arrays.y_train).tolist() == [7, 7] and np.bincount(arrays.y_test).tolist() == [3, 3]
    together = np.concatenate([arrays.x_train, arrays.x_test])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in VECTORS.astype(np.float32)}
    assert arrays.fingerprint == again.fingerprint


def test_known_labels_with_and_without_a_test_part(load):
    y = np.array([0, 1, -1, 0] * 5)
    for arrays in (
        load("known", x=VECTORS, y=y),
        load("known", x_train=VECTORS, y_train=y),
        load("known", **four(y_train=y, x_test=np.empty(0), y_test=np.empty(0))),
    ):
        assert arrays.y_train.tolist() == y.tolist() and arrays.labels == "known"
        assert arrays.x_test.shape == (0, 6) and len(arrays.y_test) == 0
    assert load("known", **four(y_train=y, y_test=2 * Y - 1)).y_test.tolist() == (2 * Y - 1).tolist()


# npz: what is refused

NAN = np.where(np.arange(120).reshape(20, 6) == 7, np.nan, 1.0)
REFUSED = {
    "missing array": (lambda: {"x_train": VECTORS, "y_train": Y}, "no array x_test; it holds x_train, y_train;"),
    "missing labels": (lambda: {"x": VECTORS}, "no array y; it holds x;"),
    "missing both": (lambda: {"images": VECTORS}, "no array x_train; it holds images;"),
    "empty file": (lambda: {}, "no array x_train; it holds nothing;"),
    "objects": (lambda: four(np.array([None] * 20, dtype=object)), "x_train holds Python objects"),
    "object labels": (lambda: four(y_train=np.array(["a", None] * 10, dtype=object)), "y_train holds Python objects"),
    "NaN": (lambda: four(x_test=NAN), "x_test holds 1 values that are NaN or infinite"),
    "infinity": (lambda: four(NAN / 0), "x_train holds 120 values"),
    "NaN label": (lambda: four(y_train=np.where(Y, np.nan, 1)), "y_train holds 10 values that are NaN"),
    "beyond float32": (lambda: four(VECTORS * 1e300), "x_train holds values too large for float32"),
    "lengths": (lambda: four(y_train=Y[:-1], y_test=Y), r"x_train has shape \(20, 6\) and y_train \(19,\)"),
    "no channel axis": (lambda: four(np.zeros((20, 5, 6, 7))), "ambiguous: neither the second nor the last"),
    "two channel axes": (lambda: four(np.zeros((20, 3, 8, 3))), "ambiguous: both the second and the last"),
    "five axes": (lambda: four(np.zeros((20, 1, 2, 3, 4))), "x_train has shape"),
    "one axis": (lambda: four(np.zeros(20)), r"x_train has shape \(20,\)"),
    "complex": (lambda: four(VECTORS + 1j), "x_train is of type complex128"),
    "strings": (lambda: four(VECTORS.astype(str)), "x_train is of type <U"),
    "dates": (lambda: four(VECTORS.astype("datetime64[s]")), "x_train is of type datetime64"),
    "floats in 0..255": (lambda: four(GRAY.astype(float)), r"holds pixels from .* \[0, 1\]: scale them, or give uint8"),
    "negative floats": (lambda: four(GRAY / 255 - 0.5), "holds pixels from -0.5"),
    "wide integers": (lambda: four(GRAY.astype(int) * 300), "in int64; expected 0 to 255"),
    "fractional labels": (lambda: four(y_train=Y + 0.5), "y_train .* does not hold whole numbers"),
    "labels in rows": (lambda: four(y_train=np.eye(20)), r"y_train has shape \(20, 20\)"),
    "kinds of labels": (lambda: four(y_test=np.array(["a", "b"] * 10)), "y_train and y_test are of different kinds"),
    "empty training set": (lambda: four(VECTORS[:0], Y[:0], VECTORS, Y), "x_train has shape .* empty"),
    "empty test set": (lambda: four(x_test=VECTORS[:0], y_test=Y[:0]), "x_test has shape .* empty"),
    "no features": (lambda: four(VECTORS[:, :0]), "x_train has shape .* empty"),
    "sizes": (lambda: four(x_test=VECTORS[:, :3]), r"\(6,\) in x_train and float32 \(3,\) in x_test"),
    "types": (lambda: four(GRAY, x_test=GRAY / 255), "uint8 .* in x_train and float32"),
    "nothing to test": (lambda: {"x": VECTORS, "y": np.arange(20)}, "every class of y has one sample only"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(load, tmp_path, fault):
    arrays, message = REFUSED[fault]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        faulty = arrays()
    with pytest.raises(InputError, match=message) as caught:
        load(**faulty)
    assert str(caught.value).startswith(f"dataset.path={tmp_path}/mine.npz: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [(0, 1), (-1, 1), (-1, 0, 1, 2), ("-1", "0", "1")])
def test_classes_that_do_not_look_like_known_labels(load, ids):
    y = np.resize(ids, 20)
    assert load(**four(y_train=y)).labels == load(x=VECTORS, y=y).labels == "classes"


@pytest.mark.parametrize(
    ("y_train", "y_test", "message"),
    [
        (Y + 1, 2 * Y - 1, "y_train holds 2;"),
        (Y, Y, "y_test holds 0;"),
        (np.array(["a", "b"] * 10), np.array(["a", "b"] * 10), "labels are strings"),
    ],
)
def test_known_labels_are_checked(load, y_train, y_test, message):
    with pytest.raises(InputError, match=message):
        load("known", **four(y_train=y_train, y_test=y_test))


def test_files_that_are_no_npz(tmp_path):
    good = write(tmp_path / "good.npz", **four())
    (tmp_path / "cut.npz").write_bytes(Path(good).read_bytes()[:500])
    damaged = bytearray(Path(good).read_bytes())
    damaged[300:400] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "single.npy", VECTORS)
    for name, message in {
        "absent.npz": "no such file",
        "cut.npz": "not an npz file",
        "damaged.npz": "x_train is damaged",
        "text.npz": "not an npz file",
        "empty.npz": "not an npz file",
        "single.npy": "a single array",
        ".": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=f"^dataset.path={tmp_path / name}: {message}") as caught:
            npz(str(tmp_path / name), "classes", 0.3)
        assert "\n" not in str(caught.value)


def test_settings_are_checked(tmp_path):
    path = write(tmp_path / "mine.npz", **four())
    with pytest.raises(ValueError, match=r"^labels=guess: must be known or classes$"):
        npz(path, "guess", 0.3)
    for fraction in (0, 1, float("nan")):
        with pytest.raises(ValueError, match=f"^test_fraction={fraction}: must be a number between 0 and 1$"):
            npz(path, "classes", fraction)
    with pytest.raises(InputError, match=r"^dataset\.path=: "):
        npz("", "classes", 0.3)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.npz", **four())
    assert npz("~/mine.npz", "classes", 0.3).name == "mine"


# classes


def test_resolve_class(load):
    named = load(**four(y_train=np.array(["dog", "cat"] * 10)))
    assert resolve_class("dog", named) == 1
    assert resolve_class(1, named) == 1
    assert resolve_class("1", load(**four())) == 1
    numbers = load(**four(y_train=np.array(["1", "2"] * 10)))
    assert resolve_class(2, numbers) == 1
    for wrong, arrays, there in [
        ("emu", named, r"it has 0 \(cat\), 1 \(dog\)"),
        (2, named, r"it has 0 \(cat\), 1 \(dog\)"),
        (-1, load(**four()), "it has 0, 1"),
        (0, numbers, r"it has 0 \(1\), 1 \(2\)"),
    ]:
        with pytest.raises(InputError, match=f"^normal_class={wrong}: mine has no such class; {there}$"):
            resolve_class(wrong, arrays)


def test_the_id_of_another_class_than_normal_is_likely_a_slip(load):
    words = load(**four(y_train=np.array(["normal", "anomaly"] * 10)))
    assert resolve_class("normal", words) == resolve_class(1, words) == resolve_class(0, words, "labeled_classes") + 1
    assert resolve_class("anomaly", words) == 0
    with pytest.raises(InputError, match=r"^normal_class=0: is class anomaly; give normal_class=normal, or"):
        resolve_class(0, words)


# torchvision


def write_idx(folder: Path, n_train: int = 12, n_test: int = 6) -> dict[str, bytes]:
    """Write a small data set in MNIST's file format."""
    folder.mkdir(parents=True)
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        head = np.array([0x803, n, 28, 28], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, n], dtype=">i4").tobytes() + labels.tobytes()
        )
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """An MNIST mirror on loopback: a folder whose files torchvision is told to fetch."""
    from torchvision.datasets import MNIST

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    served = tmp_path / "served"
    contents = write_idx(tmp_path / "plain")
    served.mkdir()
    resources = []
    for name, content in contents.items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", resources)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "recorded"), [("MNIST", "mnist"), ("FashionMNIST", "fmnist")])
def test_local_files_come_first(tmp_path, no_network, name, recorded):
    write_idx(tmp_path / name / "raw")
    arrays = torchvision_set(name, str(tmp_path))
    assert arrays.name == recorded and len(arrays.class_names) == 10
    assert arrays.x_train.shape == (12, 1, 28, 28) and arrays.x_test.shape == (6, 1, 28, 28)
    assert arrays.x_train.dtype == np.uint8 and arrays.y_test.dtype == np.int64


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10"])
def test_no_files_and_no_network(tmp_path, no_network, name, capfd):
    root, started = tmp_path / "new" / "data", time.monotonic()
    with pytest.raises(InputError, match=f"^dataset.root={root}: {name} is not there and cannot be") as caught:
        torchvision_set(name, str(root))
    message = str(caught.value)
    assert "Network is unreachable" in message and "\n" not in message
    if name == "CIFAR10":
        assert "cifar-10-batches-py (data_batch_1, data_batch_2" in message
        assert f"or cifar10.npz into {root}" in message
    else:
        assert "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images" in message
        assert f"into {root / name / 'raw'}" in message
    assert not (tmp_path / "new").exists()
    assert time.monotonic() - started < 30  # the import of torchvision included
    assert capfd.readouterr() == ("", "")


def test_silent_network_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("elite_pl.data.sources.torchvision_sets._SILENCE_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(InputError, match="no answer within"):
        torchvision_set("FashionMNIST", str(tmp_path))
    assert time.monotonic() - started < 4


def test_download(tmp_path, mirror, capfd):
    root = tmp_path / "new" / "data"
    arrays = torchvision_set("MNIST", str(root))
    assert arrays.x_train.shape == (12, 1, 28, 28)
    assert sorted(file.name for file in root.rglob("*") if file.is_file()) == sorted(p[:-3] for p in os.listdir(mirror))
    assert [entry.name for entry in root.iterdir()] == ["MNIST"]
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_broken_download_leaves_no_trace(tmp_path, mirror):
    sorted(mirror.iterdir())[-1].write_bytes(b"not what the checksum says")
    with pytest.raises(InputError, match="cannot be downloaded"):
        torchvision_set("MNIST", str(tmp_path / "new" / "data"))
    assert not (tmp_path / "new").exists()
    assert socket.getdefaulttimeout() is None


def test_archives_that_are_there_are_unpacked(tmp_path, mirror, no_network):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mirror.iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    assert torchvision_set("MNIST", str(tmp_path / "data")).x_test.shape == (6, 1, 28, 28)


def test_damaged_local_files(tmp_path, no_network):
    write_idx(tmp_path / "MNIST" / "raw")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"the MNIST files in {images.parent} are damaged"):
        torchvision_set("MNIST", str(tmp_path))


def test_cifar10_npz(tmp_path, no_network):
    x = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    names = np.array([f"class{i}" for i in range(10)])
    write(tmp_path / "cifar10.npz", **four(x, np.arange(20) % 10), classes=names)
    arrays = torchvision_set("CIFAR10", str(tmp_path))
    assert arrays.name == "cifar10-npz" and arrays.class_names == tuple(names)
    np.testing.assert_array_equal(arrays.x_train, x.transpose(0, 3, 1, 2))
    write(tmp_path / "cifar10.npz", **four(GRAY))
    with pytest.raises(InputError, match=rf"^dataset.root={tmp_path}/cifar10.npz: .* expected uint8 \(3, 32, 32\)"):
        torchvision_set("CIFAR10", str(tmp_path))
    write(tmp_path / "cifar10.npz", x_train=x)
    with pytest.raises(InputError, match=rf"^dataset.root={tmp_path}/cifar10.npz: no array y_train"):
        torchvision_set("CIFAR10", str(tmp_path))


def test_unknown_set(tmp_path):
    with pytest.raises(InputError, match=r"^dataset\.name=SVHN: unknown torchvision set; one of MNIST"):
        torchvision_set("SVHN", str(tmp_path))


@pytest.mark.skipif(not os.environ.get("ELITE_PL_DATA"), reason="ELITE_PL_DATA names no folder with the real files")
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_real_files(name, no_network):
    arrays = torchvision_set(name, os.environ["ELITE_PL_DATA"])
    assert arrays.x_train.shape == (60000, 1, 28, 28) and arrays.x_test.shape == (10000, 1, 28, 28)
    assert np.bincount(arrays.y_test).sum() == 10000 and len(np.unique(arrays.y_train)) == 10
