"""Scores new samples: `python score.py INPUT > scores.csv`, with NumPy, and onnxruntime or PyTorch.

INPUT: an array (.npy) as in the training, or a table (.csv) if it had one, or images if it had some, which take Pillow.
"""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MANY = 256  # samples at a time


def model() -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns a function that maps samples (n, ...) to their scores (n,) and to whether they are anomalies, (n,)."""
    if (HERE / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"samples": x})
    import torch

    graph = torch.export.load(HERE / "model.pt2").module()
    return lambda x: [part.numpy() for part in graph(torch.from_numpy(x))]


def number(text: str | None, kind: str) -> float:
    """A number, or a date as days since 1970; NaN for nothing."""
    if text is None or kind == "numbers":
        return np.nan if text is None else float(text)
    date = datetime.fromisoformat(text.replace("/", "-"))
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() / 86400


def encoded(rows: list[dict[str, str]], about: dict[str, Any]) -> np.ndarray:
    """Rows of a table as vectors, as in the training."""
    features: list[list[bool] | np.ndarray] = []
    for column in about["encoding"]["columns"]:
        cells = [(row[column["name"]] or "").strip() for row in rows]
        known = [None if cell in about["missing"] else cell for cell in cells]
        if column["kind"] == "words":
            words = column["categories"]
            features += [[cell == word for cell in known] for word in words]
            features.append([cell not in words and not (cell is None and column["missing"]) for cell in known])
        else:
            distance = (np.array([number(cell, column["kind"]) for cell in known]) - column["center"]) / column["scale"]
            features.append(np.arcsinh(np.clip(np.nan_to_num(distance), -1e300, 1e300)))
        if column["missing"]:
            features.append([cell is None for cell in known])
    return np.stack(features, axis=1)


def pixels(path: Path, about: dict[str, Any]) -> np.ndarray:
    """An image as in the training, unless it is of 16 bits or transparent."""
    from PIL import Image, ImageOps

    channels, height, width = about["image"]
    with Image.open(path) as file:
        file.draft(file.mode, (2 * max(height, width),) * 2)
        image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    x = np.array(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, channels)
    x = x if about["channels_last"] else x.transpose(2, 0, 1)
    return (x / np.float32(255) if about["type"] == "float32" else x).reshape(about["shape"])


def samples(path: Path, about: dict[str, Any]) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Some samples after each other: what names them, their names, and themselves, (n, ...)."""
    if path.suffix == ".npy":
        x = np.load(path, mmap_mode="r")
        for i in range(0, len(x), MANY):
            yield "index", [str(j) for j in range(i, min(i + MANY, len(x)))], x[i : i + MANY]
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            ids, numbered = about["encoding"]["id_column"], enumerate(csv.DictReader(file))
            while part := list(itertools.islice(numbered, MANY)):
                names = [row.get(ids or "", str(i)) for i, row in part]
                yield "id" if ids in part[0][1] else "index", names, encoded([row for _, row in part], about)
    else:
        for one in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            yield "path", [one.relative_to(path).as_posix() if path.is_dir() else one.name], pixels(one, about)[None]


if __name__ == "__main__":
    about = json.loads((HERE / "detector.json").read_text(encoding="utf-8"))
    run, normal = model(), np.array(about["normal_scores"])
    table = csv.writer(sys.stdout, lineterminator="\n")
    for i, (column, names, x) in enumerate(samples(Path(sys.argv[1]), about)):
        if i == 0:
            table.writerow([column, "score", "p_value", "verdict"])
        score, is_anomaly = run(np.ascontiguousarray(x, dtype=about["type"]))
        p_value = (len(normal) - np.searchsorted(normal, score) + 1) / (len(normal) + 1 if len(normal) else np.nan)
        verdict = np.where(is_anomaly, "anomaly", "normal").tolist()
        table.writerows(zip(names, score.tolist(), p_value.tolist(), verdict, strict=True))
