"""The format of `detector.pt`: written as a whole, and read without trusting the file. Torch and NumPy only.

It holds plain tensors and plain values. Reading runs no code of it and imports nothing that it names: the archive is
looked at before it is unpacked, and each value before it is used.

In it: `format_version`, `method`, `network` and `score` (see `Recipe`), their `state` (weights and buffers by name),
`sample_shape` as the network sees it, `preprocessing`, `features` (or None, see `FrozenFeatures`), `samples` (what raw
ones are like, see `SampleFormat`), `encoding` (of the rows of a table, see `Encoding`, or None), `threshold`,
`columns`, `calibration` and `alarms` (see `TrainedDetector`, or None; not there in older files), `margin` (or None),
`training_scores` (or None) and the `config` of the training.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import elite_pl
from elite_pl.addresses import PUBLIC, renamed
from elite_pl.algorithm.calibration import Calibration
from elite_pl.annotations import is_of
from elite_pl.data.encoding import Encoding
from elite_pl.data.preprocessing import Preprocessing, Size
from elite_pl.data.sample_format import VALUES, SampleFormat
from elite_pl.errors import input_errors, one_line
from elite_pl.files import atomic_write
from elite_pl.models.recipe import Part

FORMAT_VERSION = 2  # 1 has no number in it: the files of commit 31a127d

# All that the pickle inside may name.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
GLOBALS |= {f"torch {kind}Storage" for kind in ("Bool", "Byte", "Double", "Float", "Int", "Long")}

DEEPEST = 20  # containers in each other
MOST = 2**20  # values in a file; a table of 20,000 columns has 800,000, at 32 words a column
LARGEST = 2**27  # numbers in a sample


def write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes a detector file, whole or not at all.

    Args:
        path: The file.
        content: Its content, less the version of the format.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a detector file, of this format or an older one.

    Returns:
        The content that was written. All values are of the right types, and all tensors finite; whether the weights are
        those of the network remains to be seen.

    Raises:
        InputError: If it is no such file, is damaged, or is of a newer format; names the file.
    """
    with input_errors(os.fspath(path)):
        content = _unpacked(Path(path))
        _check_plain(content)
        version = content.get("format_version", 1) if isinstance(content, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError("is not a detector file")
        if version > FORMAT_VERSION:
            reads = f"elite_pl {elite_pl.__version__} reads versions up to {FORMAT_VERSION}"
            raise ValueError(f"has version {version} of the format, and {reads}; update elite_pl")
        if version == 1:
            content = _of_31a127d(content)
        content = {"columns": None, "calibration": None, "alarms": None, **content}  # not in older files
        _check_types(content)
        return content


def _unpacked(path: Path) -> Any:
    """Loads the content that `torch.save` wrote to a file."""
    if not path.is_file():
        raise ValueError(f"{'is not a' if path.exists() else 'no such'} file; expected the path of a detector.pt")
    with path.open("rb") as file:
        try:
            _check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpacking of a foreign file stumbles over
            raise ValueError(f"is not a detector file, or damaged ({one_line(error)[:200]})") from error


def _check_archive(file: BinaryIO) -> None:
    """Refuses a file that is no archive of plain tensors and values, or that would take more memory than its size."""
    if file.read(4) != b"PK\x03\x04":  # by which torch, too, tells archives from bare pickles
        raise ValueError("no archive")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("compressed")
        if sum(part.file_size for part in parts) > file.seek(0, os.SEEK_END):
            raise ValueError("parts that overlap")
        if archive.testzip() is not None:
            raise ValueError("bytes that are not as written")
        (pickled,) = (part for part in parts if part.filename.endswith("data.pkl"))
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and argument not in GLOBALS:
                raise ValueError(f"names {argument or 'an object'}, which is neither a tensor nor a plain value")


def _check_plain(content: Any) -> None:
    """Refuses anything but tensors and plain values, and implausibly many of them."""
    left: list[tuple[Any, int]] = [(content, 0)]
    count = 1
    while left:
        value, depth = left.pop()
        if isinstance(value, dict | list | tuple):
            count += len(value)
            if depth >= DEEPEST or count > MOST:
                raise ValueError("is not a detector file: values without end")
            if isinstance(value, dict):
                value = [*value, *value.values()]
            left += [(item, depth + 1) for item in value]
        elif isinstance(value, Tensor):
            # An expanded tensor has more numbers than bytes.
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("is not a detector file: a tensor that its bytes do not make up")
            if not value.isfinite().all():
                raise ValueError("holds numbers that are NaN or infinite")
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"is not a detector file: holds a {type(value).__name__}")


def _of_31a127d(content: dict[str, Any]) -> dict[str, Any]:
    """Converts the content of a file of the first format to the current one."""
    fitted = {"IsolationForest": "IsolationTrees", "Ocsvm": "KernelExpansion", "Ssad": "KernelExpansion"}
    try:
        config = renamed(content["config"], PUBLIC)
        method, made = config["method"], content["preprocessing"]
        shape, margin, size = content["sample_shape"], content["margin"], made["size"]
        name = method["_target_"].removeprefix("elite_pl.methods.")
        if name in fitted:
            network, score = None, Part(f"elite_pl.models.{fitted[name]}", {})
        else:
            network, score = Part.of(config["backbone"]), Part.of(method["score"])
        if network is not None and "batch_norm" in network.arguments:
            network.arguments["norm"] = "batch" if network.arguments.pop("batch_norm") else "none"
        values = "any"
        if len(shape) == 3 and not made["contrast"]:  # which makes bytes and fractions alike
            values = "whole" if float(made["scale"]) > 1 else "unit"
        elif made["shift"].ndim == 0:
            values = "unit"
        return {
            "method": method["name"],
            "network": network and network._asdict(),
            "score": score._asdict(),
            "augmentation": None,
            "members": [],
            "state": content["score"],
            "sample_shape": shape,
            "preprocessing": {**made, "feature_map": None},
            "features": None,
            "samples": {
                "shape": shape if size is None else [shape[0], None, None],
                "channels_last": False,
                "values": values,
            },
            "encoding": None,
            "threshold": content["threshold"],
            "margin": None if margin is None else float(margin),
            "training_scores": None,
            "config": config,
        }
    except (AttributeError, IndexError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"is not a detector file: lacks what one holds ({one_line(error)})") from error


def _check_types(content: dict[str, Any]) -> None:
    """Checks the types of the values of a file."""
    rules: dict[str, Callable[[Any], bool]] = {
        "method": lambda value: isinstance(value, str),
        **OF_A_SCORE,
        "preprocessing": lambda value: _is_preprocessing(value, content["sample_shape"]),
        "members": lambda value: _is_members(value, content["preprocessing"]["shift"]),
        "features": lambda value: value is None or _is_features(value),
        "samples": _is_format,
        "columns": lambda value: value is None or _are_names(value, content["samples"]["shape"]),
        "encoding": lambda value: value is None or _is_encoding(value, content["samples"]["shape"]),
        "threshold": _is_finite,
        "calibration": lambda value: value is None or _is_calibration(value),
        "alarms": lambda value: value is None or _is_finite(value),
        "margin": lambda value: value is None or _is_finite(value),
        "training_scores": lambda value: value is None or (isinstance(value, Tensor) and value.ndim == 1),
        "config": lambda value: isinstance(value, dict),
    }
    for key, rule in rules.items():
        if key not in content or not rule(content[key]):
            raise ValueError(f"is not a detector file: {key} is missing, or not what it should be")


def _is_finite(value: Any) -> bool:
    """Returns whether it is a finite float."""
    return isinstance(value, float) and math.isfinite(value)


def _is_calibration(value: Any) -> bool:
    """Returns whether it is a `Calibration`."""
    if not _has(value, Calibration._fields) or not all(isinstance(part, Tensor) for part in value.values()):
        return False
    score, probability = value["score"], value["probability"]
    return (
        score.dtype == probability.dtype == torch.float64
        and score.ndim == 1
        and len(score) > 0
        and score.shape == probability.shape
        and bool((score.diff() > 0).all() and (probability.diff() >= 0).all())
        and bool((probability >= 0).all() and (probability <= 1).all())
    )


def _has(value: Any, keys: Iterable[str]) -> bool:
    """Returns whether it is a dictionary with these keys and no others."""
    return isinstance(value, dict) and set(value) == set(keys)


def _is_part(value: Any) -> bool:
    """Returns whether it is a `Part`."""
    return (
        _has(value, Part._fields)
        and isinstance(value["constructor"], str)
        and isinstance(value["arguments"], dict)
        and all(isinstance(name, str) for name in value["arguments"])
    )


def _is_state(value: Any) -> bool:
    """Returns whether it holds nothing but tensors."""
    return isinstance(value, dict) and all(isinstance(part, Tensor) for part in value.values())


def _is_members(value: Any, like: Tensor) -> bool:
    """Returns whether it is a list of what `Member.to_plain` returns, with numbers of the type of a tensor."""
    return isinstance(value, list) and all(
        _has(member, (*OF_A_SCORE, "feature_map"))
        and all(rule(member[key]) for key, rule in OF_A_SCORE.items())
        and (member["feature_map"] is None or _is_feature_map(member["feature_map"], like, member["sample_shape"]))
        for member in value
    )


def _is_shape(value: Any) -> bool:
    """Returns whether it is the shape of a vector or image that fits in memory; None is a side of any length."""
    if not isinstance(value, list) or not 1 <= len(value) <= 3:
        return False
    sides = [side for side in value if side is not None]
    return all(type(side) is int and side >= 1 for side in sides) and math.prod(sides) <= LARGEST


def _is_format(value: Any) -> bool:
    """Returns whether it is a `SampleFormat`."""
    return (
        _has(value, SampleFormat._fields)
        and _is_shape(value["shape"])
        and isinstance(value["channels_last"], bool)
        and value["values"] in VALUES
    )


def _are_names(value: Any, shape: list[int | None]) -> bool:
    """Returns whether they name the features of samples of a shape, each by another word."""
    return is_of(value, list[str]) and shape == [len(value)] and len({*value}) == len(value)


def _is_encoding(value: Any, shape: list[int | None]) -> bool:
    """Returns whether it is what `Encoding.to_plain` returns, and leads to samples of a shape."""
    try:
        return shape == [len(Encoding.from_plain(value).features)]
    except ValueError:
        return False


def _is_features(value: Any) -> bool:
    """Returns whether it is what `FrozenFeatures.to_plain` returns, but for what the network checks itself."""
    return (
        _has(value, ("library", "model", "image_size", "weights", "size", "scale"))
        and isinstance(value["weights"], str)
        and is_of(value["size"], Size | None)
        and value["scale"] in (1.0, 255.0)
    )


def _is_preprocessing(value: Any, shape: list[int]) -> bool:
    """Returns whether it is a `Preprocessing` that leads to samples of a shape."""
    if not _has(value, Preprocessing._fields):
        return False
    if (mapped := value["feature_map"]) is not None:
        if not _is_feature_map(mapped, value["shift"], shape):
            return False
        shape = list(mapped["mean"].shape) if "mean" in mapped else [1, value["size"], value["size"]]
    return (
        isinstance(value["contrast"], bool)
        and (value["size"] is None or shape[1:] == [value["size"]] * 2)
        and all(
            isinstance(part, Tensor) and part.is_floating_point() and list(part.shape) in ([], shape)
            for part in (value["shift"], value["scale"])
        )
        and bool((value["scale"] > 0).all())
    )


def _is_feature_map(value: Any, like: Any, shape: list[int]) -> bool:
    """Returns whether it is a feature map's `to_plain`, of a tensor's type, and makes samples of a shape."""
    if _has(value, ("cells", "orientations", "factor")):
        return (
            all(type(value[name]) is int and value[name] >= 2 for name in ("cells", "orientations"))
            and isinstance(value["factor"], Tensor)
            and isinstance(like, Tensor)
            and value["factor"].dtype == like.dtype
            and value["factor"].ndim == 0
            and len(shape) == 1
            and shape[0] % (4 * value["orientations"]) == 0
        )
    names = ("mean", "deviation", "quantiles", "factor")
    if not _has(value, (*names, "gaussian", "bins")):
        return False
    mean, deviation, quantiles, factor = tensors = [value[name] for name in names]
    gaussian, bins = value["gaussian"], value["bins"]
    return (
        all(isinstance(part, Tensor) and isinstance(like, Tensor) and part.dtype == like.dtype for part in tensors)
        and mean.ndim == 1
        and deviation.shape == mean.shape
        and quantiles.ndim == 2
        and quantiles.shape[1:] == mean.shape
        and factor.ndim == 0
        and bool((deviation > 0).all() and (quantiles.diff(dim=0) >= 0).all())
        and isinstance(gaussian, bool)
        and type(bins) is int
        and 0 <= bins < len(quantiles)
        and (bins == 0 or (len(quantiles) - 1) % bins == 0)
        and shape == [len(mean) * (1 + gaussian + bins)]
    )


# Entries of a score, whether it is the only one or a member of a mixture.
OF_A_SCORE: dict[str, Callable[[Any], bool]] = {
    "network": lambda value: value is None or _is_part(value),
    "score": _is_part,
    "augmentation": lambda value: value is None or _is_part(value),
    "state": _is_state,
    "sample_shape": lambda value: _is_shape(value) and None not in value,
}
