"""Detectors as files that need no elite_pl."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elite_pl.data.sources.images import FORMATS, SUFFIXES
from elite_pl.data.sources.table import MISSING
from elite_pl.deployment import standalone
from elite_pl.deployment.card import model_card
from elite_pl.deployment.graph import examples, missing_for_onnx, to_graph, write_onnx, write_torch
from elite_pl.deployment.inputs import image_shape
from elite_pl.deployment.scoring import Judge
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, temporary_beside, write_json
from elite_pl.runs.trained import TrainedDetector

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "directory": "_export"}  # of what is written if no name is given


def place_of(kind: str, detector: str, typed: str | None) -> Path:
    """Returns the path to which an export is written.

    Args:
        kind: One of `ENDINGS`.
        detector: The detector's file.
        typed: The place that a person has named; None for beside the detector's file.

    Raises:
        InputError: If it cannot go there, or what makes it is not installed.
    """
    if kind == "onnx" and (missing := missing_for_onnx()):
        raise InputError(f"--to onnx: {' and '.join(missing)} not installed; pip install 'elite_pl[onnx]'")
    place = Path(typed) if typed is not None else Path(detector).with_name(Path(detector).stem + ENDINGS[kind])
    if not place.parent.is_dir():
        raise InputError(f"--output {place}: there is no folder {place.parent}; expected a place in one that is there")
    if kind == "directory" and os.path.lexists(place):
        raise InputError(f"--output {place}: is there already; remove it, or name another place")
    if kind != "directory" and (place.is_dir() or place.suffix != ENDINGS[kind]):
        raise InputError(f"--output {place}: must end with {ENDINGS[kind]}")
    return place


def export(detector: TrainedDetector, kind: str, place: Path) -> None:
    """Writes a detector, whole or not at all.

    Args:
        detector: The detector.
        kind: `"onnx"`: one ONNX file; `"torch"`: one file for `torch.export.load`; `"directory"`: one of these with
            plain numbers, a program that scores samples, and a model card.
        place: Where.
    """
    if kind == "directory":
        with _new_directory(place) as temporary:
            model = "model.pt2" if missing_for_onnx() else "model.onnx"
            _write_graph(detector, temporary / model)
            write_json(temporary / "detector.json", plain_numbers(detector))
            shutil.copyfile(standalone.__file__, temporary / "score.py")
            (temporary / "README.md").write_text(model_card(detector, model), encoding="utf-8")
    else:
        with atomic_write(place) as temporary:
            _write_graph(detector, temporary)


def plain_numbers(detector: TrainedDetector) -> dict[str, Any]:
    """Returns the values that `standalone` needs beside the graph, ready for JSON."""
    example = examples(detector, 1)
    normal, calibration = Judge(detector.threshold, detector.training_scores).normal, detector.calibration
    return {
        "method": detector.method,
        "threshold": detector.threshold,
        "shape": list(example.shape[1:]),
        "type": str(example.dtype).removeprefix("torch."),
        "image": list(image_shape(detector)) if len(detector.samples.shape) > 1 else None,
        "values": detector.samples.values,
        "channels_last": detector.samples.channels_last,
        "suffixes": list(SUFFIXES),
        "formats": list(FORMATS),
        "encoding": detector.encoding and detector.encoding.to_plain(),
        "missing": list(MISSING),
        "calibration": calibration and {name: knots.tolist() for name, knots in calibration._asdict().items()},
        "normal_scores": [] if normal is None else normal.tolist(),
    }


def _write_graph(detector: TrainedDetector, path: Path) -> None:
    program = to_graph(detector)
    if path.suffix == ".onnx":
        write_onnx(program, detector, path)
    else:
        write_torch(program, path)


@contextmanager
def _new_directory(place: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `place` when the block ends well and vanishes when it does not."""
    temporary = temporary_beside(place)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, place)
    except BaseException:
        shutil.rmtree(temporary)
        raise
