"""Folders of images: what comes out of them, and one line for each way in which they can be wrong."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_bad_input import refused

from elite_pl.data import image_folder
from elite_pl.data.sources import images
from elite_pl.errors import InputError

SHORT = ("dataset=image_folder", "dataset.path=photos", "epochs=1", "threshold=fitted")
SHORT += ("method.pretrain_epochs=0", "batch_size=16")
COUNTS = {"unlabeled": 24, "labeled/normal": 4, "labeled/anomaly": 4, "test/normal": 6, "test/anomaly": 4}


def picture(number: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, size[::-1], dtype=np.uint8))


def tree(root: Path, counts: dict[str, int]) -> None:
    number = 0
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            picture(number := number + 1).save(root / place / f"{i:02}.png")


@pytest.fixture
def photos(tmp_path):
    tree(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


def load(path, **settings):
    defaults = {"labels": "known", "labels_file": None, "size": None, "channels": "auto", "skip_broken": False}
    cache = Path(path).parent / "cache"
    return image_folder(str(path), **{**defaults, "test_fraction": 0.3, "cache": str(cache), **settings})


def refused_by(call, *words: str) -> str:
    """Checks that a call refuses its input in one line, and returns the line."""
    with pytest.raises(ValueError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------- commands


def test_from_a_folder_to_named_suspicions(command, photos):
    (photos / "labels of last year.xls").touch()
    outcome = command(*SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[:5] == [
        "photos, images of 1 x 12 x 12; elite_svdd on lenet",
        "          unlabeled   normal  anomaly",
        "training         24        4        4",
        "test              -        6        4",
        "not taken for images by their names: labels of last year.xls",
    ]
    audit, scores = (rows(outcome.directory / f"{name}.csv") for name in ("audit", "scores"))
    assert sorted(row["path"] for row in audit) == [f"unlabeled/{i:02}.png" for i in range(24)]
    assert [row["path"] for row in scores] == [f"test/anomaly/{i:02}.png" for i in range(4)] + [
        f"test/normal/{i:02}.png" for i in range(6)
    ]
    assert [row["is_anomaly"] for row in scores] == ["1"] * 4 + ["0"] * 6
    with np.load(outcome.directory / "splits.npz") as kept:
        assert {row["index"]: row["path"] for row in audit} == {str(i): kept["ids_train"][i] for i in kept["unlabeled"]}
        assert kept["ids_test"].tolist() == [row["path"] for row in scores]


def test_look_label_train_again(command, photos):
    first = command(*SHORT)
    audit = rows(first.directory / "audit.csv")
    shutil.copytree("photos", "elsewhere/photos")
    again = command(*SHORT, "dataset.path=elsewhere/photos/")
    assert again.err == "done before: nothing to run\n" and again.directory == first.directory
    with open("labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["path", "label", "by"], [audit[0]["path"], "anomaly", "me"], [audit[1]["path"], 1, ""]]
        )
    again = command(*SHORT, "dataset.labels_file=labels.csv")
    assert again.code == 0, again.err
    assert "training         22        5        5" in again.err
    assert {row["path"] for row in audit[2:]} == {row["path"] for row in rows(again.directory / "audit.csv")}


def test_a_folder_counts_by_its_images_wherever_it_lies(photos, tmp_path):
    before = images.content(photos)
    os.utime(photos / "unlabeled" / "00.png", (0, 0))
    (photos / "notes.txt").touch()
    assert images.content(shutil.copytree(photos, tmp_path / "copy")) == before
    (photos / "unlabeled" / "00.png").rename(photos / "unlabeled" / "renamed.png")
    renamed = images.content(photos)
    picture(99).save(photos / "unlabeled" / "01.png")
    assert len({before, renamed, images.content(photos)}) == 3


def test_images_are_decoded_once(photos, tmp_path, monkeypatch):
    first = load(photos)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
    monkeypatch.setattr(images, "read_image", None)  # whoever decodes now fails
    assert load(photos).fingerprint == first.fingerprint and isinstance(first.x_train, np.memmap)
    with pytest.raises(InputError, match="no image can be read"):
        load(photos, size=20)
    monkeypatch.undo()
    picture(99).save(photos / "unlabeled" / "00.png")
    assert load(photos).fingerprint != first.fingerprint


def test_a_file_of_labels_changes_what_folders_say(photos, tmp_path):
    file = tmp_path / "labels.csv"
    lines = ("labeled/normal/00.png,,", "unlabeled/00.png,Anomaly,Yes", "test/normal/05.png,-1,")
    file.write_text("\n".join(["path,label,picked", *lines]))
    before, after = load(photos), load(photos, labels_file=str(file))
    assert before.ids_train.tolist() == after.ids_train.tolist()
    changed = np.flatnonzero(before.y_train != after.y_train)
    assert {before.ids_train[i]: after.y_train[i] for i in changed} == {
        "labeled/normal/00.png": 0,
        "unlabeled/00.png": -1,
    }
    assert after.y_test.tolist() == [-1] * 4 + [1] * 5 + [-1]
    assert after.ids_train[after.picked_train].tolist() == ["unlabeled/00.png"] and not before.picked_train.any()


def test_broken_images_are_named_and_left_out(photos):
    cut, empty, text = (photos / "unlabeled" / f"{i:02}.png" for i in (3, 5, 7))
    cut.write_bytes(cut.read_bytes()[:-60])
    empty.write_bytes(b"")
    text.write_text("no image")
    refused_by(
        lambda: load(photos), f"dataset.path={photos}: broken images (3): unlabeled/03.png (", "skip_broken=true"
    )
    for _ in range(2):  # the second time from the cache
        arrays = load(photos, skip_broken=True)
        assert len(arrays.x_train) == len(arrays.y_train) == len(arrays.ids_train) == 29
        assert not {f"unlabeled/{i}.png" for i in ("03", "05", "07")} & set(arrays.ids_train)
        (note,) = arrays.notes
        assert note.startswith("left out broken images (3): unlabeled/03.png (")
        assert note.endswith("unlabeled/05.png (not an image), unlabeled/07.png (not an image)")
    for name, x in zip(arrays.ids_train, arrays.x_train, strict=True):
        np.testing.assert_array_equal(x[0], np.asarray(Image.open(photos / name)))
    with pytest.raises(InputError, match="broken images"):
        load(photos)


def test_classes_in_folders(tmp_path):
    folder = tmp_path / "photos"
    tree(folder, {f"{part}/{name}": 20 for part in ("train", "test") for name in ("cat", "dog")})
    arrays = load(folder, labels="classes")
    assert arrays.class_names == ("cat", "dog") and len(arrays.x_train) == len(arrays.x_test) == 40
    assert {name.split("/")[1] for name in arrays.ids_test[arrays.y_test == 1]} == {"dog"}
    shutil.rmtree(folder / "test")
    arrays = load(folder, labels="classes")
    assert np.bincount(arrays.y_train).tolist() == [14, 14] and np.bincount(arrays.y_test).tolist() == [6, 6]
    assert {name.split("/")[1] for name in arrays.ids_test[arrays.y_test == 1]} == {"dog"}


# --------------------------------------------------------------------------------------------------------------- pixels


def one(folder: Path, name: str, image: Image.Image, **settings) -> np.ndarray:
    """What an image becomes, channels last."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "unlabeled").mkdir(parents=True)
    for i in range(2):
        image.save(folder / "unlabeled" / f"{i}{name}", **settings)
    arrays = load(folder, channels="auto")
    assert arrays.x_train.dtype == np.uint8 and len(arrays.x_test) == 0
    np.testing.assert_array_equal(arrays.x_train[0], arrays.x_train[1])
    return arrays.x_train[0].transpose(1, 2, 0)


GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".pgm", ".gif", ".PNG"])
def test_gray_images_have_one_channel(tmp_path, suffix):
    settings = {"lossless": True} if suffix == ".webp" else {}
    found = one(tmp_path / "a", suffix, Image.fromarray(GRAY), **settings)
    if suffix == ".webp":  # has no gray of its own
        assert found.shape == (6, 8, 3)
        found = found[..., :1]
    np.testing.assert_array_equal(found[..., 0], GRAY)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_color_images_have_three(tmp_path, suffix):
    np.testing.assert_array_equal(one(tmp_path / "a", suffix, Image.fromarray(COLOR)), COLOR)


def test_jpeg_is_turned_upright(tmp_path):
    smooth = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned by 90 degrees, clockwise
    found = one(tmp_path / "a", ".jpg", Image.fromarray(smooth), exif=exif, quality=95)
    assert found.shape == (24, 16, 1)
    assert np.abs(found[..., 0].astype(int) - np.rot90(smooth, -1)).max() < 12


def test_depth_palette_and_transparency(tmp_path):
    wide = Image.fromarray((GRAY.astype(np.uint16) << 8) + 77)
    np.testing.assert_array_equal(one(tmp_path / "a", ".png", wide)[..., 0], GRAY)
    np.testing.assert_array_equal(one(tmp_path / "a", ".tif", wide)[..., 0], GRAY)
    bits = one(tmp_path / "a", ".png", Image.fromarray(GRAY > 99))
    np.testing.assert_array_equal(bits[..., 0], np.where(GRAY > 99, 255, 0))
    palette = Image.fromarray(GRAY // 80).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(one(tmp_path / "a", ".png", palette), 255 * np.eye(3, dtype=np.uint8)[GRAY // 80])
    palette.putpalette([0, 0, 0, 99, 99, 99, 255, 255, 255])
    np.testing.assert_array_equal(one(tmp_path / "a", ".gif", palette)[..., 0], np.array([0, 99, 255])[GRAY // 80])
    half = np.where(np.arange(8) < 4, 255, 0).astype(np.uint8)[None].repeat(6, 0)
    clear = one(tmp_path / "a", ".png", Image.fromarray(np.dstack([COLOR, half])))
    np.testing.assert_array_equal(clear, np.where(half[..., None] > 0, COLOR, 255))
    ink = one(tmp_path / "a", ".jpg", Image.new("CMYK", (8, 6), (0, 255, 255, 0)), quality=95)
    assert ink[0, 0, 0] > 200 and ink[0, 0, 1:].max() < 60, "red"


def test_sizes_are_unified(tmp_path):
    folder = tmp_path / "photos" / "unlabeled"
    folder.mkdir(parents=True)
    for i, size in enumerate([(90, 30), (12, 200), (64, 64)]):
        picture(i, size).save(folder / f"{i}.png")
    arrays = load(tmp_path / "photos")
    assert arrays.x_train.shape == (3, 1, 64, 64)
    assert "resized to 64 x 64 pixels, as dataset.size is null; files are 30 x 90 to 200 x 12" in arrays.notes[0]
    np.testing.assert_array_equal(arrays.x_train[2, 0], np.asarray(picture(2, (64, 64))))
    assert load(tmp_path / "photos", size=20, channels=3).x_train.shape == (3, 3, 20, 20)
    assert not load(tmp_path / "photos", size=20).notes
    striped = np.tile(np.array([[0, 255]], dtype=np.uint8), (640, 320))
    gray = one(tmp_path / "b", ".png", Image.fromarray(striped))
    assert gray.shape == (64, 64, 1) and np.abs(gray.astype(int) - 127).max() < 6, "every pixel counts"


def test_which_files_count(tmp_path):
    folder = tmp_path / "photos"
    tree(folder, {"unlabeled/a": 2, "unlabeled/a/b": 1, "elsewhere": 1})
    picture(0).save(folder / "unlabeled" / ".hidden.png")
    (folder / ".thumbnails").mkdir()
    picture(0).save(folder / ".thumbnails" / "0.png")
    shutil.move(folder / "elsewhere", tmp_path / "elsewhere")
    (folder / "unlabeled" / "link").symlink_to(tmp_path / "elsewhere")
    picture(0).save(folder / "unlabeled" / "späte Aufnahme\u202f1.png")
    names = ["a/00.png", "a/01.png", "a/b/00.png", "link/00.png", "späte Aufnahme\u202f1.png"]
    assert load(folder).ids_train.tolist() == [f"unlabeled/{name}" for name in names]


def test_one_folder_and_a_file_of_labels(tmp_path):
    tree(tmp_path / "photos", {"": 6, "night": 2})
    (tmp_path / "photos" / "labels.csv").write_text("\ufeffpath,label\n00.png,Normal\n./01.png,-1\nnight\\00.png,\n")
    arrays = load(tmp_path / "photos", labels_file=str(tmp_path / "photos" / "labels.csv"))
    assert arrays.y_train.tolist() == [1, -1, 0, 0, 0, 0, 0, 0] and not arrays.notes
    assert arrays.ids_train.tolist()[-1] == "night/01.png"


# ------------------------------------------------------------------------------------------------------------ bad input


def wreck(folder: Path, what: str) -> None:
    if what == "no image":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "a.txt").touch()
    elif what == "a file":
        shutil.rmtree(folder)
        folder.touch()
    elif what == "a pipe":
        shutil.rmtree(folder)
        os.mkfifo(folder)
    elif what == "no folder":
        shutil.rmtree(folder)
    elif what == "a link that leads nowhere":
        shutil.rmtree(folder)
        folder.symlink_to(folder)
    elif what == "nothing unlabeled":
        shutil.rmtree(folder / "unlabeled")
    elif what == "one kind to test":
        shutil.rmtree(folder / "test" / "anomaly")
    elif what == "images astray":
        shutil.move(folder / "labeled" / "anomaly", folder / "labeled" / "anomalies")
    elif what == "a loop":
        (folder / "unlabeled" / "loop").symlink_to(folder)
    elif what == "a pipe among images":
        os.mkfifo(folder / "unlabeled" / "pipe.png")
    elif what == "a dead link among images":
        (folder / "unlabeled" / "dead.png").symlink_to(folder / "nowhere.png")
    elif what == "a name in two lines":
        picture(0).save(folder / "unlabeled" / "a\nb.png")
    elif what == "only broken ones":
        for path in folder.rglob("*.png"):
            path.write_text("")
    elif what == "floats":
        Image.fromarray(np.zeros((12, 12), np.float32)).save(folder / "unlabeled" / "float.tif")


WRECKED = {
    "no image": ("no image in it", ".png"),
    "a file": ("is a file", "folder of images"),
    "a pipe": ("neither a file nor a folder",),
    "no folder": ("no such folder",),
    "a link that leads nowhere": ("leads nowhere",),
    "nothing unlabeled": ("0 of 8 training images are unlabeled", "at least 2"),
    "one kind to test": ("all 6 test images are normal", "both kinds"),
    "images astray": ("4 images lie outside of unlabeled/, labeled/normal/", "labeled/anomalies/00.png", "labels_file"),
    "a loop": ("unlabeled/loop leads back",),
    "a pipe among images": ("unlabeled/pipe.png is no file",),
    "a dead link among images": ("unlabeled/dead.png (No such file or directory)",),
    "a name in two lines": ("'unlabeled/a\\nb.png'", "rename"),
    "only broken ones": ("no image can be read", "(42)"),
    "floats": ("unlabeled/float.tif (its pixels are numbers of 32 bits (F)", "8 or 16"),
}


@pytest.mark.parametrize("what", WRECKED)
def test_a_folder_that_is_wrong(photos, tmp_path, what):
    wreck(photos, what)
    line = refused_by(lambda: load(photos), *WRECKED[what])
    assert line.startswith(f"dataset.path={photos}: ")
    assert not (tmp_path / "cache").exists()


def test_nothing_labeled(command, photos):
    shutil.rmtree(photos / "labeled")
    line = command(*SHORT).err
    assert line.count("\n") == 1 and "error: dataset.labels=known: elite_svdd learns from labels" in line


LABELS = {
    b"": ("its first line is empty", "path,label"),
    b"labeled/normal/00.png,normal\n": ("its first line is labeled/normal/00.png,normal",),
    b"path,label,path\n": ("expected path,label, each once",),
    b"path,label,picked\nlabeled/normal/00.png,1,no\n": ("column picked holds no; expected yes or nothing",),
    b"path,label\nlabeled/normal/00.png\n": ("line 2 does not have 2 values",),
    b"path,label\nlabeled/normal/00.png,good\nlabeled/normal/01.png,bad\n": ("holds bad, good", "normal, anomaly"),
    b"path,label\nnowhere.png,normal\n": ("1 of 1 are none of the images: nowhere.png",),
    b"path,label\ntest/normal/00.png,1\ntest/normal/00.png,-1\n": ("line 3 gives test/normal/00.png another label",),
    "path,label\nlabeled/normal/ö.png,1\n".encode("latin1"): ("UTF-8",),
    b"path,label\ntest/normal/00.png,\n": ("1 of 10 test images have no label",),
    b'path,label\n"test,1\n': ("is no CSV file",),
    None: ("no such file", "path,label"),
}


@pytest.mark.parametrize("text", LABELS)
def test_a_file_of_labels_that_is_wrong(photos, tmp_path, text):
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_bytes(text)
    words = LABELS[text]
    line = refused_by(lambda: load(photos, labels_file=str(file)), *words)
    assert line.startswith("dataset.path=" if "test images" in words[0] else f"dataset.labels_file={file}: ")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"labels": "guess"}, ("labels=guess: must be known or classes",)),
        ({"labels": "classes"}, ("32 images lie outside of train/CLASS/ and test/CLASS/: labeled/anomaly/00.png",)),
        ({"size": 2}, ("size=2: must be a number of pixels from 4 to 4096, or None",)),
        ({"channels": 2}, ("channels=2: must be 1, 3 or auto",)),
        ({"test_fraction": 1}, ("test_fraction=1: must be a number between 0 and 1",)),
        ({"labels": "classes", "labels_file": "a.csv"}, ("dataset.labels_file=a.csv", "labels=known")),
    ],
)
def test_settings_that_are_wrong(photos, settings, words):
    refused_by(lambda: load(photos, **settings), *words)


@pytest.mark.parametrize(
    "typed, words",
    [
        ("dataset.size=big", ("dataset.size=big", "4 to 4096, or null")),
        ("dataset.path=nowhere", ("dataset.path=nowhere: no such folder",)),
    ],
)
def test_what_is_typed(command, photos, typed, words):
    refused(command(*SHORT, typed), *words)
