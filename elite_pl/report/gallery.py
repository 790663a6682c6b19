"""Reviewing suspicious training samples: an HTML page with boxes to tick, and a contact sheet."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elite_pl.data.arrays import pixels
from elite_pl.data.encoding import Encoding, Numbers
from elite_pl.data.rows import Rows
from elite_pl.data.sources.images import thumbnail
from elite_pl.data.splits import NORMAL
from elite_pl.files import atomic_write
from elite_pl.report.audit import FOLDER, AuditedRun

SIDE = 160  # pixels of a thumbnail
SMALL = 64  # up to so many pixels a side a picture is kept without loss
FAR = 5  # features of a row that are shown
ENOUGH = 10_000  # samples that tell the medians of all
_TEMPLATE = Path(__file__).with_name("gallery.html")


# ------------------------------------------------------------------------------------------------------------ samples


def picture(run: AuditedRun, index: int) -> Image.Image:
    """A training sample as a person sees it: of a folder of images the file, of arrays their pixels."""
    if run.source["_target_"] == FOLDER:
        return Image.fromarray(thumbnail(Path(run.source["path"]).expanduser() / run.name(index), SIDE))
    image = Image.fromarray(pixels(run.arrays.x_train[index]))
    image.thumbnail((SIDE, SIDE))
    return image


def data_address(image: Image.Image) -> str:
    """Returns a picture as a data URL."""
    file = io.BytesIO()
    kind = "PNG" if max(image.size) <= SMALL else "JPEG"
    image.save(file, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


class Deviations:
    """Tells by which features a row stands out: those that are farthest from the median of the training samples.

    Distances are in standard deviations of a normal distribution with the same quartiles; of a word, in those of how
    often it occurs.

    Args:
        run: The run, of vectors.
    """

    def __init__(self, run: AuditedRun) -> None:
        self.rows = Rows(run.arrays.x_train)
        some = self.rows[np.unique(np.linspace(0, len(self.rows) - 1, min(ENOUGH, len(self.rows))).astype(int))]
        some = some.astype(np.float64)
        low, self.center, high = np.quantile(some, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / 1.349
        self.scale = np.where(spread > 0, spread, some.std(axis=0))
        self.names = [f"feature {i}" for i in range(self.rows.shape[1])]
        self.numbers: dict[int, Numbers] = {}
        self.words: list[int] = []  # and what is missing: features that are 0 or 1
        if run.arrays.encoding is not None:
            encoding = Encoding.from_plain(run.arrays.encoding)
            self.names = encoding.features
            starts = np.cumsum([0, *(len(column.features) for column in encoding.columns[:-1])]).tolist()
            columns = zip(starts, encoding.columns, strict=True)
            self.numbers = {start: column for start, column in columns if isinstance(column, Numbers)}
            self.words = [i for i in range(len(self.names)) if i not in self.numbers]

    def of(self, index: int) -> list[tuple[str, str | None, str]]:
        """The features of a sample that stand out: name, value (None for a word), distance."""
        x = self.rows[np.array([index])][0].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.nan_to_num((x - self.center) / self.scale, posinf=0, neginf=0)
        values: list[str | None] = [f"{value:.4g}" for value in x]
        for i, column in self.numbers.items():
            distance[i] = np.sinh(x[i])  # the inverse of its encoding
            values[i] = _value(column, float(distance[i]))
        for i in self.words:
            values[i], distance[i] = None, distance[i] if x[i] else 0  # a word that it has not says little
        far = np.argsort(-np.abs(distance), kind="stable")[:FAR]
        return [(self.names[i], values[i], f"{distance[i]:+.1f}σ") for i in far.tolist() if abs(distance[i]) > 0]


def _value(column: Numbers, distance: float) -> str:
    """A number or date of a table, from its distance to the median."""
    value = column.center + column.scale * distance
    if column.kind == "dates":
        return str(np.datetime64(int(np.clip(value, -700_000, 2_900_000)), "D"))  # years of four digits
    return f"{value:.6g}"


# -------------------------------------------------------------------------------------------------------------- files


def gallery(run: AuditedRun, top: int) -> str:
    """The page: the most suspicious samples, with boxes to tick, in one file that loads nothing.

    Args:
        run: The run.
        top: How many samples are shown.
    """
    audit, metrics = run.audit, run.metrics
    images = run.arrays.x_train.ndim == 4
    deviations = None if images else Deviations(run)
    verdicts = [""] * len(audit) if audit.flagged is None else np.where(audit.flagged, "anomaly", "normal").tolist()
    samples: list[dict[str, Any]] = []
    for i, index in enumerate(audit.index[:top].tolist()):
        chance = float(audit.probability[i])
        samples.append(
            {
                "index": index,
                "name": run.name(index),
                "rank": i + 1,
                "suspicion": f"{audit.suspicion[i]:.3g}",
                "probability": None if np.isnan(chance) else round(chance, 4),
                "verdict": verdicts[i],
                "truth": "" if audit.truth is None else "anomaly" if audit.truth[i] else "normal",
                "nearest": audit.nearest[i].tolist(),
                **({"far": deviations.of(index)} if deviations else {"picture": data_address(picture(run, index))}),
            }
        )
    near = set(audit.nearest[:top].ravel().tolist())
    labeled = [
        {
            "index": index,
            "name": run.name(index),
            "label": "normal" if y == NORMAL else "anomaly",
            "picked": run.arrays.picked_train is not None and bool(run.arrays.picked_train[index]),
            **({"picture": data_address(picture(run, index))} if images and index in near else {}),
        }
        for index, y in zip(run.split.labeled.tolist(), run.split.labeled_y.tolist(), strict=True)
    ]
    rest = zip(audit.index[top:].tolist(), verdicts[top:], strict=True)
    content = {
        "about": about(run, len(samples)),
        "store": f"elite_pl gallery {metrics.get('config_hash')} {metrics.get('data/fingerprint')}",
        "pictures": images,
        "pixelated": images and max(run.arrays.x_train.shape[2:]) <= SMALL and run.source["_target_"] != FOLDER,
        "column": run.column,
        "known": run.arrays.labels == "known",
        "samples": samples,
        "labeled": labeled,
        "rest": [[index, run.name(index)] for index, verdict in rest if verdict != "anomaly"],
    }
    return _page(f"Audit of {run.arrays.name}", content)


def about(run: AuditedRun, shown: int) -> str:
    """A line below the title: what is shown, and of how many."""
    audit, metrics = run.audit, run.metrics
    taken = "" if audit.flagged is None else f", of which {int(audit.flagged.sum()):,} are taken for anomalies"
    all_or_top = "All are here" if shown == len(audit) else f"The {shown:,} most suspicious are here (--top)"
    method = f"{metrics.get('method')} on {metrics.get('backbone')}"
    return f"{method}: {len(audit):,} unlabeled training samples{taken}. {all_or_top}, the most suspicious first."


def _page(title: str, content: dict[str, Any]) -> str:
    """The template, filled; its policy lets the browser run this script and load nothing."""
    page = _TEMPLATE.read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = f"default-src 'none'; img-src data:; style-src {digest('style')}; script-src {digest('script')}"
    plain = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # so that nothing in it ends the script
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    parts = {"policy": policy, "title": escape(title), "data": plain}
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], page)


def contact_sheet(path: Path, run: AuditedRun, top: int = 100, columns: int = 10) -> None:
    """Draws the most suspicious images side by side, with rank and suspicion below each.

    Args:
        path: The picture.
        run: The run, of images.
        top: How many.
        columns: In a line.
    """
    tile, gap, text = 112, 10, 18
    count = min(top, len(run.audit))
    size = (columns * (tile + gap) + gap, -(-count // columns) * (tile + gap + text) + gap)
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for i in range(count):
        image = picture(run, int(run.audit.index[i])).convert("RGB")
        larger = tile / max(image.size)
        smooth = Image.Resampling.NEAREST if larger > 2 else Image.Resampling.LANCZOS
        image = image.resize([max(1, round(larger * side)) for side in image.size], smooth)
        x, y = gap + i % columns * (tile + gap), gap + i // columns * (tile + gap + text)
        draw.rectangle((x, y, x + tile - 1, y + tile - 1), fill="#eceef1")
        sheet.paste(image, (x + (tile - image.width) // 2, y + (tile - image.height) // 2))
        draw.text((x, y + tile + 2), f"{i + 1}", "#5c6370", font)
        draw.text((x + tile, y + tile + 2), f"{run.audit.suspicion[i]:.3g}", "#1c1e21", font, anchor="ra")
    with atomic_write(path) as temporary:
        sheet.save(temporary)
