"""Images in folders of one's own, decoded once into a file that is read by index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock

from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.sources.given import check_known, existing, relabeled, some
from elite_pl.data.splits import ANOMALY, NORMAL, UNLABELED, stratified
from elite_pl.errors import InputError, input_errors, one_line
from elite_pl.files import atomic_write, prune, write_json
from elite_pl.progress import Estimate

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # none that starts a program
SIZE = 64  # pixels of the sides of images that differ in size or are larger, unless `dataset.size` says it
AT_ONCE = 256  # images that wait in memory for their turn
PLACES = {
    ("unlabeled",): UNLABELED,
    ("labeled", "normal"): NORMAL,
    ("labeled", "anomaly"): ANOMALY,
    ("test", "normal"): NORMAL,
    ("test", "anomaly"): ANOMALY,
}


def image_folder(
    path: str,
    labels: str,
    labels_file: str | None,
    size: int | None,
    channels: int | str,
    skip_broken: bool,
    test_fraction: float,
    cache: str,
) -> Arrays:
    """Loads images from a folder and the folders in it; names that begin with a dot are passed over.

    With labels="known" the folders say the labels: `unlabeled/`, `labeled/normal/`, `labeled/anomaly/`, and for a test
    part `test/normal/`, `test/anomaly/`. A `labels_file` changes them; with one, images may lie anywhere else, too, and
    are unlabeled unless it names them. With labels="classes" they are `train/CLASS/` and `test/CLASS/`.

    Images are turned upright (EXIF), laid over white where they are transparent, cut down to 8 bits, and resized to
    squares (see `read_image`). Of an animation the first frame counts.

    Args:
        path: Of the folder.
        labels: "known" or "classes".
        labels_file: A CSV file with columns path (relative to the folder) and label, see `given.relabeled`; or None.
        size: Pixels of the sides that images are resized to. None: they stay as they are if all have one size of at
            most `SIZE` pixels a side, else `SIZE`.
        channels: 1 for gray, 3 for colour; "auto": 1 if all files are stored in gray.
        skip_broken: Whether to go on without images that cannot be read.
        test_fraction: Share of each class of `train/` that is put aside where there is no `test/`.
        cache: Folder for the decoded images, which are made once for the same files.

    Returns:
        The arrays, memory-mapped, named after the folder, with the relative paths as ids.

    Raises:
        InputError: If the folder is not as described, or an image cannot be read.
    """
    if labels not in ("known", "classes"):
        raise InputError(f"dataset.labels={labels}: unknown; known (folders say normal or anomaly) or classes")
    if size is not None and size < 4:
        raise InputError(f"dataset.size={size}: too small; 4 pixels or more, or null")
    if channels not in ("auto", 1, 3):
        raise InputError(f"dataset.channels={channels}: must be 1 (gray), 3 (colour) or auto")
    if not 0 < test_fraction < 1:
        raise InputError(f"dataset.test_fraction={test_fraction}: not a share; a number between 0 and 1")
    if labels_file is not None and labels == "classes":
        raise InputError(f"dataset.labels_file={labels_file}: is for dataset.labels=known")
    with input_errors(f"dataset.path={path}"):
        folder = existing(path, "a folder of images is right", folder=True)
        names, others = image_names(folder)
        if labels_file is not None:
            others = [name for name in others if (folder / name).resolve() != Path(labels_file).expanduser().resolve()]
        if not names:
            raise ValueError(f"no image in it; {', '.join(SUFFIXES)} are right")
        if labels == "known":
            y, in_test = _known(np.array(names), labels_file)
        else:
            y, in_test = _classes(np.array(names), test_fraction)
        order = np.concatenate([np.flatnonzero(~in_test), np.flatnonzero(in_test)])  # so that each part is one piece
        names = [names[i] for i in order]
        pixels, broken, notes = _decoded(folder, names, size, channels, skip_broken, Path(cache))
        kept = np.array([name not in broken for name in names])
        ids, y, n_train = np.array(names)[kept], y[order][kept], np.count_nonzero(kept & ~in_test[order])
        if labels == "known":
            check_known(y[:n_train], y[n_train:], "images")
        name = folder.resolve().name
        arrays = make_arrays(name, pixels[:n_train], y[:n_train], pixels[n_train:], y[n_train:], labels=labels)
    if others:
        notes.append(f"not taken for images by their names: {some(others)}")
    if broken:
        notes.append(f"left out, broken: {_explained(broken)}")
    return replace(arrays, ids_train=ids[:n_train], ids_test=ids[n_train:], notes=tuple(notes))


# ------------------------------------------------------------------------------------------- which files, and as what


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a folder and of those in it, as paths relative to it, sorted: images by their names, and others.

    Raises:
        ValueError: If there is no end to it, or what has the name of an image is no file.
    """
    images: list[str] = []
    others: list[str] = []

    def walk(here: str, above: set[tuple[int, int]]) -> None:
        found = os.stat(folder / here)
        if (me := (found.st_dev, found.st_ino)) in above:
            raise ValueError(f"{here} leads back to a folder that it lies in; remove that symbolic link")
        for entry in os.scandir(folder / here):
            name = f"{here}/{entry.name}" if here else entry.name
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):
                walk(name, above | {me})
            elif os.path.splitext(name)[1].lower() not in SUFFIXES:
                others.append(name)
            elif os.path.exists(entry.path) and not os.path.isfile(entry.path):
                raise ValueError(f"{name} is no file but a pipe, a socket or a device; remove it")
            else:
                images.append(name)

    walk("", set())
    if strange := [name for name in images if not name.isprintable()]:
        raise ValueError(f"the name {strange[0]!a} cannot be written into a table; rename the file")
    return sorted(images), sorted(others)


def _known(names: np.ndarray, labels_file: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels by folder and file, and which images are the test part."""
    places = [next((p for p in PLACES if tuple(name.split("/")[: len(p)]) == p), None) for name in names.tolist()]
    astray = [name for name, place in zip(names.tolist(), places, strict=True) if place is None]
    if astray and labels_file is None:
        right = ", ".join("/".join(place) + "/" for place in PLACES)
        raise ValueError(f"{len(astray)} images lie outside of {right}: {some(astray)}; or give dataset.labels_file")
    y = np.array([PLACES.get(place, UNLABELED) if place else UNLABELED for place in places])
    in_test = np.array([place is not None and place[0] == "test" for place in places])
    if labels_file is not None:
        y = relabeled(y, names, labels_file, "images")
    check_known(y[~in_test], y[in_test], "images")  # before hours of decoding
    return y, in_test


def _classes(names: np.ndarray, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes by folder, and which images are the test part."""
    parts = [name.split("/") for name in names.tolist()]
    astray = ["/".join(part) for part in parts if part[0] not in ("train", "test") or len(part) < 3]
    if astray:
        raise ValueError(f"{len(astray)} images lie outside of train/CLASS/ and test/CLASS/: {some(astray)}")
    y, in_test = np.array([part[1] for part in parts]), np.array([part[0] == "test" for part in parts])
    if not in_test.any():
        in_test[stratified(y, test_fraction)[1]] = True
        if not in_test.any():
            raise ValueError("every class of train/ has one image only; two or more, or a folder test/")
    if in_test.all():
        raise ValueError("no image in train/CLASS/; those in test/ are not learned from")
    return y, in_test


_known_contents: dict[str, str] = {}


def content(folder: Path) -> str:
    """The SHA-256 over relative paths and contents of all images, wherever the folder lies.

    Read once as long as no file is written to: a sweep asks for each of its cells.

    Raises:
        ValueError: As `image_names`.
    """
    names, _ = image_names(folder)
    stats = [(name, *_stat(folder / name)) for name in names]
    key = hashlib.sha256(f"{folder.resolve()} {stats}".encode()).hexdigest()
    if key not in _known_contents:
        digest, estimate = hashlib.sha256(), Estimate("reading the images", len(names))
        for name in names:
            digest.update(f"{name}\0".encode())
            with contextlib.suppress(OSError), open(folder / name, "rb") as file:  # else it is broken
                digest.update(hashlib.file_digest(file, "sha256").digest())
            estimate.step()
        _known_contents[key] = digest.hexdigest()
    return _known_contents[key]


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere
        return -1, -1
    return found.st_size, found.st_mtime_ns


# -------------------------------------------------------------------------------------------------------------- pixels


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes an image.

    Of 16 bits the upper 8 are kept. Transparent images are laid over white. The image is stretched to the height and
    width asked for; each of its pixels counts, so that a small one is no sample of a large one's.

    Args:
        path: Of the file.
        shape: (channels, height, width) of the result; 1 channel for gray, 3 for colour.

    Returns:
        Pixels, uint8, of this shape.

    Raises:
        Exception: Whatever the decoding of a foreign file stumbles over.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    with _opened(path) as file:
        file.draft(file.mode, (2 * max(height, width),) * 2)  # JPEG can leave out what nobody will see
        file.load()
        image: Image.Image = file
        with contextlib.suppress(Exception):  # of EXIF that cannot be read: it turns nothing
            image = ImageOps.exif_transpose(file)
        image = _eight_bits(image)
    image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def read_images(folder: Path, names: list[str], shape: tuple[int, int, int]) -> Iterator[np.ndarray | str]:
    """Decodes images in their order, several at a time.

    Args:
        folder: Where they lie.
        names: Their paths in it.
        shape: (channels, height, width), see `read_image`.

    Yields:
        The pixels of each, or in place of those of a broken one what is wrong with it.
    """
    return _attempts(lambda name: read_image(folder / name, shape), names, "decoding the images")


def _attempts(function: Callable[[str], Any], names: list[str], what: str) -> Iterator[Any]:
    """Yields what a function has for each name, or as text why it has nothing."""
    from PIL import Image

    def attempt(name: str) -> Any:
        try:
            return function(name)
        except Image.UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # whatever the decoding of a foreign file stumbles over
            return getattr(error, "strerror", None) or one_line(error)

    estimate = Estimate(what, len(names))
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow: large images, odd metadata
        for start in range(0, len(names), AT_ONCE):
            for found in pool.map(attempt, names[start : start + AT_ONCE]):
                yield found
                estimate.step()


def _opened(path: Path) -> Image.Image:
    """An image whose header is read, of a format that is known to be harmless."""
    from PIL import Image

    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _look(path: Path) -> tuple[int, int, bool]:
    """Width and height of an image when it is upright, and whether it is stored in gray."""
    with _opened(path) as image:
        width, height = image.size
        with contextlib.suppress(Exception):  # as in `read_image`
            if image.getexif().get(0x0112, 1) >= 5:  # lies on its side
                width, height = height, width
        gray = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
        if image.mode in ("P", "PA"):
            palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
            gray = bool((palette == palette[:, :1]).all())
        return width, height, gray


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image without transparency, in a mode of 8 bits a channel.

    Raises:
        ValueError: If it holds numbers of which nobody knows what is black and what is white.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are numbers of 32 bits ({image.mode}); 8 or 16 bits are right")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _decoded(
    folder: Path, names: list[str], size: int | None, channels: int | str, skip_broken: bool, cache: Path
) -> tuple[np.ndarray, dict[str, str], list[str]]:
    """Pixels (n, C, H, W) of the images that can be read, memory-mapped; what is wrong with the others; and notes.

    Raises:
        ValueError: If none can be read, or one cannot and is not to be skipped.
    """
    import PIL

    identity = json.dumps([PIL.__version__, content(folder), names, size, channels])
    target = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:20]}.npy"
    about = target.with_suffix(".json")

    def check(broken: dict[str, str]) -> None:
        if len(broken) == len(names):
            raise ValueError(f"no image can be read: {_explained(broken)}")
        if broken and not skip_broken:
            raise ValueError(f"broken images: {_explained(broken)}; dataset.skip_broken=true leaves them out")

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_suffix(".lock")):
            if not target.is_file():
                shape, notes = _common_shape(folder, names, size, channels)
                with atomic_write(target) as temporary, open(temporary, "wb") as file:
                    check(broken := _write(file, read_images(folder, names, shape), names, shape))
                    write_json(about, {"broken": broken, "notes": notes})
    except BaseException:
        prune(cache)
        raise
    made = json.loads(about.read_text(encoding="utf-8"))
    check(made["broken"])
    return np.load(target, mmap_mode="r"), made["broken"], made["notes"]


def _common_shape(
    folder: Path, names: list[str], size: int | None, channels: int | str
) -> tuple[tuple[int, int, int], list[str]]:
    """The shape (C, H, W) that all images get, and what a person should know of it."""
    looks = _attempts(lambda name: _look(folder / name), names, "looking at the images")
    found = [look for look in looks if not isinstance(look, str)]
    sizes = sorted({(height, width) for width, height, _ in found})
    notes = []
    height = width = size or SIZE
    if size is None and len(sizes) == 1 and max(sizes[0]) <= SIZE:
        height, width = sizes[0]
    elif size is None and sizes:
        least, most = " x ".join(map(str, sizes[0])), " x ".join(map(str, sizes[-1]))
        span = least if least == most else f"{least} to {most}"
        notes.append(
            f"resized from {span} (height x width) to {SIZE} x {SIZE} pixels: dataset.size, if it is to be another"
        )
    if channels == "auto":
        channels = 1 if all(gray for *_, gray in found) else 3
    return (int(channels), height, width), notes


def _write(
    file: BinaryIO, images: Iterator[np.ndarray | str], names: list[str], shape: tuple[int, int, int]
) -> dict[str, str]:
    """Writes images as a .npy file, and returns what is wrong with those that cannot be read."""
    broken: dict[str, str] = {}

    def head(n: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(file, header)  # has room for any n

    head(len(names))
    for name, image in zip(names, images, strict=True):
        if isinstance(image, str):
            broken[name] = image
        else:
            file.write(image.tobytes())
    file.seek(0)
    head(len(names) - len(broken))
    return broken


def _explained(broken: dict[str, str]) -> str:
    """Broken images by name, with what is wrong with them."""
    return f"{len(broken)}: " + some([f"{name} ({reason})" for name, reason in broken.items()])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process decode for all; each does it for itself where the file system has no locks."""
    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
