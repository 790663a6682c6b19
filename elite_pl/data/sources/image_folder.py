"""A user's own images, in folders whose names are their labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from elite_pl.annotations import checked
from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.preprocessing import Size
from elite_pl.data.sources.images import SUFFIXES, decoded, explained, image_names
from elite_pl.data.sources.user_data import Fraction, Labels, check_tested, check_unlabeled, existing, relabeled, some
from elite_pl.data.splits import ANOMALY, NORMAL, UNLABELED, stratified
from elite_pl.errors import InputError, input_errors

PLACES = {
    ("unlabeled",): UNLABELED,
    ("labeled", "normal"): NORMAL,
    ("labeled", "anomaly"): ANOMALY,
    ("test", "normal"): NORMAL,
    ("test", "anomaly"): ANOMALY,
}


@checked
def image_folder(
    path: str,
    labels: Labels,
    labels_file: str | None,
    size: Size | None,
    channels: Literal[1, 3, "auto"],
    skip_broken: bool,
    test_fraction: Fraction,
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
        labels_file: A CSV file with columns path (relative to the folder) and label, see `user_data.relabeled`.
        size: Pixels of the sides that images are resized to. None: they stay as they are if all have one size of at
            most `SIZE` pixels a side, else `SIZE`.
        channels: 1 for gray, 3 for color; "auto": 1 if all files are stored in gray.
        skip_broken: Whether to go on without images that cannot be read.
        test_fraction: Share of each class of `train/` that is put aside where there is no `test/`.
        cache: Folder for the decoded images, which are made once for the same files.

    Returns:
        The arrays, memory-mapped, named after the folder, with the relative paths as ids.

    Raises:
        InputError: If the folder is not as described, or an image cannot be read.
    """
    if labels_file is not None and labels == "classes":
        raise InputError(f"dataset.labels_file={labels_file}: is for dataset.labels=known")
    with input_errors(f"dataset.path={path}"):
        folder = existing(path, "expected a folder of images", folder=True)
        names, others = image_names(folder)
        if labels_file is not None:
            others = [name for name in others if (folder / name).resolve() != Path(labels_file).expanduser().resolve()]
        if not names:
            raise ValueError(f"no image in it; expected {', '.join(SUFFIXES)}")
        if labels == "known":
            y, in_test, picked = _known(np.array(names), labels_file)
        else:
            (y, in_test), picked = _classes(np.array(names), test_fraction), np.zeros(len(names), dtype=bool)
        order = np.concatenate([np.flatnonzero(~in_test), np.flatnonzero(in_test)])  # so that each part is one piece
        names = [names[i] for i in order]
        pixels, broken, notes = decoded(folder, names, size, channels, skip_broken, Path(cache))
        kept = np.array([name not in broken for name in names])
        ids, y, picked = np.array(names)[kept], y[order][kept], picked[order][kept]
        n_train = np.count_nonzero(kept & ~in_test[order])
        if labels == "known":
            check_unlabeled(y[:n_train], "images")
            check_tested(y[n_train:], "images")
        name = folder.resolve().name
        arrays = make_arrays(name, pixels[:n_train], y[:n_train], pixels[n_train:], y[n_train:], labels=labels)
    if others:
        notes.append(f"not taken for images by their names: {some(others)}")
    if broken:
        notes.append(f"left out {explained(broken)}")
    named = {"ids_train": ids[:n_train], "ids_test": ids[n_train:], "id_name": "path"}
    return replace(arrays, **named, picked_train=picked[:n_train], notes=tuple(notes))


def _known(names: np.ndarray, labels_file: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels by folder and file, which images are the test set, and which were picked."""
    places = [next((p for p in PLACES if tuple(name.split("/")[: len(p)]) == p), None) for name in names.tolist()]
    astray = [name for name, place in zip(names.tolist(), places, strict=True) if place is None]
    if astray and labels_file is None:
        right = ", ".join("/".join(place) + "/" for place in PLACES)
        raise ValueError(f"{len(astray)} images lie outside of {right}: {some(astray)}; or give dataset.labels_file")
    y = np.array([PLACES.get(place, UNLABELED) if place else UNLABELED for place in places])
    in_test = np.array([place is not None and place[0] == "test" for place in places])
    picked = np.zeros(len(names), dtype=bool)
    if labels_file is not None:
        y, picked = relabeled(y, names, labels_file, "images")
    check_unlabeled(y[~in_test], "images")  # before hours of decoding
    check_tested(y[in_test], "images")
    return y, in_test, picked


def _classes(names: np.ndarray, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes by folder, and which images are the test set."""
    parts = [name.split("/") for name in names.tolist()]
    astray = ["/".join(part) for part in parts if part[0] not in ("train", "test") or len(part) < 3]
    if astray:
        raise ValueError(f"{len(astray)} images lie outside of train/CLASS/ and test/CLASS/: {some(astray)}")
    y, in_test = np.array([part[1] for part in parts]), np.array([part[0] == "test" for part in parts])
    if not in_test.any():
        in_test[stratified(y, test_fraction)[1]] = True
        if not in_test.any():
            raise ValueError("every class of train/ has one image only; give two or more, or a folder test/")
    if in_test.all():
        raise ValueError("no image in train/CLASS/; those in test/ are not learned from")
    return y, in_test
