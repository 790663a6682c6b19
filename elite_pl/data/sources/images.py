"""Reads image files: finds them, decodes them into pixels, and caches the result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock

from elite_pl.data.sources.user_data import some
from elite_pl.errors import one_line
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
AT_ONCE = 64  # images that wait in memory for their turn


# --------------------------------------------------------------------------------------------------------------- files


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a folder and of those in it, as paths relative to it, sorted: images by their names, and others.

    Raises:
        ValueError: If symbolic links form a cycle, or something with the name of an image is not a file.
    """
    images: list[str] = []
    others: list[str] = []

    def walk(here: str, above: set[tuple[int, int]]) -> None:
        found = os.stat(folder / here)
        if (me := (found.st_dev, found.st_ino)) in above:
            raise ValueError(f"{here} leads back to a folder that it lies in; remove that symbolic link")
        for entry in list(os.scandir(folder / here)):  # which leaves it closed
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
    if strange := [name for name in images if re.search("[\0-\x1f\ud800-\udfff]", name)]:
        raise ValueError(f"the name {strange[0]!a} cannot be written into a table; rename the file")
    return sorted(images), sorted(others)


_contents: dict[str, str] = {}


def content(folder: Path) -> str:
    """The SHA-256 over relative paths and contents of all images, wherever the folder lies.

    Read once as long as no file is written to: a sweep asks for each of its cells.

    Raises:
        ValueError: As `image_names`.
    """
    names, _ = image_names(folder)
    stats = [(name, *_stat(folder / name)) for name in names]
    key = hashlib.sha256(f"{folder.resolve()} {stats}".encode()).hexdigest()
    if key not in _contents:
        digest, estimate = hashlib.sha256(), Estimate("reading the images", len(names))
        for name in names:
            digest.update(f"{name}\0".encode())
            with contextlib.suppress(OSError), open(folder / name, "rb") as file:  # else it is broken
                digest.update(hashlib.file_digest(file, "sha256").digest())
            estimate.step()
        _contents[key] = digest.hexdigest()
    return _contents[key]


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
    width asked for; all of its pixels contribute: shrinking averages them instead of picking some.

    Args:
        path: Of the file.
        shape: (channels, height, width) of the result; 1 channel for gray, 3 for color.

    Returns:
        Pixels, uint8, of this shape.

    Raises:
        Exception: Whatever the decoding of a foreign file stumbles over.
    """
    from PIL import Image

    channels, height, width = shape
    image = _upright(path, max(height, width)).convert("L" if channels == 1 else "RGB")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def thumbnail(path: Path, side: int) -> np.ndarray:
    """Decodes an image in its own proportions, no side of it longer than so many pixels.

    Returns:
        Pixels, uint8, (height, width, 3).

    Raises:
        Exception: As `read_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, as in `_attempts`
        image = _upright(path, side).convert("RGB")
    image.thumbnail((side, side))
    return np.asarray(image)


def _upright(path: Path, side: int) -> Image.Image:
    """An image as a person sees it, of 8 bits a channel; of a JPEG perhaps no more than is needed for such sides."""
    from PIL import ImageOps

    with _opened(path) as file:
        file.draft(file.mode, (2 * side,) * 2)  # JPEG can leave out what nobody will see
        file.load()
        image: Image.Image = file
        with contextlib.suppress(Exception):  # of EXIF that cannot be read: it turns nothing
            image = ImageOps.exif_transpose(file)
        return _eight_bits(image)


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
    """Yields the result of a function for each name, or the reason for its failure as text."""
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
        ValueError: If it holds numbers whose black and white levels are unknown.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are numbers of 32 bits ({image.mode}); expected 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def decoded(
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
            raise ValueError(f"no image can be read: {explained(broken)}")
        if broken and not skip_broken:
            raise ValueError(f"{explained(broken)}; dataset.skip_broken=true leaves them out")

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_suffix(".lock")):
            if not (target.is_file() and about.is_file()):
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
        notes.append(f"resized to {SIZE} x {SIZE} pixels, as dataset.size is null; files are {span} (height x width)")
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


def explained(broken: dict[str, str]) -> str:
    """Broken images by name, with what is wrong with them."""
    return f"broken images ({len(broken)}): " + some([f"{name} ({reason})" for name, reason in broken.items()])


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
