"""The pictures of a run, and the numbers behind them. This and `report.figures` alone import matplotlib, no pyplot."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elite_pl.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by the color-blind. Black and gray are kept
# for axes and chance lines; yellow is too pale on paper. Shapes and hatches say it once more, for a print in gray.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
_CLASS_STYLE = {  # by class: (color, hatch)
    "normal": (BLUE, ""),
    "anomaly": (VERMILLION, "////"),
    "all": (BLUE, ""),
}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}
Margins = tuple[float, float, float, float]  # left, right, bottom, top
_Curve = tuple[str, Sequence[float], str, str]  # name, percent at each iteration (T,), color, dashes
_LINE_STYLE = {"normal": "-", "anomaly": "--", "all": "-"}


def roc_curve(
    scores: ArrayLike, is_anomaly: ArrayLike, max_points: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners of the ROC curve, with anomaly as the positive class; samples of equal score make one straight piece.

    Args:
        scores: Higher is more anomalous, (n,).
        is_anomaly: The truth, (n,), with both classes in it.
        max_points: The most points to return. They are spread evenly along the curve, ends included, so that what is
            left out is at most one part in `max_points` of its length.

    Returns:
        False and true positive rate, both (points,), from (0, 0) to (1, 1).
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(is_anomaly, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true, false = (np.append(0, np.cumsum(hit[order])[last_of_tie]) for hit in (positive, ~positive))
    # Points inside a straight piece say nothing: keep the corners (found in whole numbers, so exactly).
    turn = np.diff(false[:-1]) * np.diff(true[1:]) != np.diff(true[:-1]) * np.diff(false[1:])
    corner = np.concatenate([[True], turn, [True]])
    fpr, tpr = false[corner] / false[-1], true[corner] / true[-1]
    if max_points is not None and len(fpr) > max_points:
        along = fpr + tpr  # grows from 0 to 2 on every step, so it measures the way along the curve
        chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], max_points)).clip(0, len(along) - 1))
        fpr, tpr = fpr[chosen], tpr[chosen]
    return fpr, tpr


def class_histograms(
    values: ArrayLike, is_anomaly: ArrayLike | None, bins: int = 50
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Histograms of the classes over common bins.

    The bins span the middle 99 % of each class, and the outermost take what lies beyond: scores have long tails, and
    one far sample would press all others into one bin.

    Args:
        values: Scores, (n,).
        is_anomaly: The truth, (n,), or None where it is unknown.
        bins: Number of bins.

    Returns:
        Bin edges, (bins + 1,), and the counts of `normal` and `anomaly`, or of `all`, each (bins,).
    """
    values = np.asarray(values, dtype=np.float64)
    if is_anomaly is None:
        parts = {"all": values}
    else:
        truth = np.asarray(is_anomaly, dtype=bool)
        parts = {"normal": values[~truth], "anomaly": values[truth]}
    ends = np.array([np.quantile(part, [0.005, 0.995]) for part in parts.values() if len(part)])
    low, high = (ends[:, 0].min(), ends[:, 1].max()) if len(ends) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal up to rounding: one bin in the middle takes them all
        margin = 0.5 * max(1.0, abs(low))
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, bins + 1)
    return edges, {name: np.histogram(part.clip(edges[0], edges[-1]), edges)[0] for name, part in parts.items()}


@contextmanager
def figure_at(
    path: str | os.PathLike[str], width: float, height: float, margins: Margins | None = None
) -> Iterator[Figure]:
    """A figure to draw on, saved to `path` as a whole when the block ends well.

    Args:
        path: The picture to write.
        width: In inches.
        height: In inches.
        margins: Around the axes, in inches; None measures them by drawing everything twice, in twice the time.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained" if margins is None else None)
        if margins is not None:
            left, right, bottom, top = margins
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        yield figure
        options: dict[str, Any] = {}
        if Path(path).suffix == ".png":
            options["pil_kwargs"] = {"compress_level": 1}  # files a tenth larger, encoded in less time
        with atomic_write(path) as temporary:
            figure.savefig(temporary, **options)


@contextmanager
def axes_at(
    path: str | os.PathLike[str], width: float, height: float, margins: Margins | None = None
) -> Iterator[Axes]:
    """The same with one pair of axes."""
    with figure_at(path, width, height, margins) as figure:
        yield figure.add_subplot()


def roc_plot(path: str | os.PathLike[str], scores: ArrayLike, is_anomaly: ArrayLike, title: str) -> None:
    """Draws the ROC curve with its area; see `roc_curve` for the arguments."""
    fpr, tpr = roc_curve(scores, is_anomaly)
    area = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    with axes_at(path, 3.4, 3.4, (0.5, 0.1, 0.45, 0.3)) as axes:
        axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="chance 50.0 %")
        axes.plot(fpr, tpr, color=BLUE, linewidth=1.8, label=f"ROC AUC {100 * area:.1f} %", clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
        axes.set(xlabel="false positive rate", ylabel="true positive rate (anomaly = positive)")
        axes.legend(loc="lower right", reverse=True)


def _histogram_plot(
    path: str | os.PathLike[str], values: ArrayLike, is_anomaly: ArrayLike | None, label: str, line: tuple[float, str]
) -> None:
    """Two overlaid histograms, each as a share of its class, since test sets hold nine times more anomalies."""
    bins = int(np.clip(2 * np.sqrt(np.size(values)), 10, 50))
    edges, counts = class_histograms(values, is_anomaly, bins)
    position, name_of_line = line
    with axes_at(path, 5.2, 2.8, (0.55, 0.12, 0.45, 0.3)) as axes:
        for name, count in counts.items():
            color, hatch = _CLASS_STYLE[name]
            share = 100 * count / max(1, count.sum())
            look: dict[str, Any] = {"facecolor": (color, 0.25), "edgecolor": color, "hatch": hatch, "linewidth": 1.4}
            axes.stairs(share, edges, fill=True, label=f"{name} (n = {count.sum()})", **look)
        if np.isfinite(position):
            axes.axvline(position, color="0.2", linestyle="--", linewidth=1, label=name_of_line)
        axes.set(xlabel=label, ylabel="share of the class (%)", ylim=(0, None))
        # Above the axes, where there is never anything to cover.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2, handlelength=1.6)


def score_plot(
    path: str | os.PathLike[str], scores: ArrayLike, is_anomaly: ArrayLike | None, threshold: float | None
) -> None:
    """Draws the histograms of the score by true class, and the threshold where there is one."""
    line = (np.nan if threshold is None else threshold, "threshold")
    _histogram_plot(path, scores, is_anomaly, "score Ω (higher = more anomalous)", line)


def suspicion_plot(path: str | os.PathLike[str], suspicion: ArrayLike, is_anomaly: ArrayLike | None) -> None:
    """Draws the histograms of the meta-gradient's suspicion of the training samples by true class; its sign decides."""
    _histogram_plot(path, suspicion, is_anomaly, "suspicion: mean of −d (positive = anomalous)", (0.0, "sign rule"))


def curves_plot(
    path: str | os.PathLike[str], epoch: ArrayLike, auroc: ArrayLike | None, labeled_loss: ArrayLike | None
) -> None:
    """Draws the ROC AUC and the labeled loss over the epochs, one above the other (Fig. 7a, b of the ELITE paper).

    Args:
        path: The picture to write.
        epoch: From 1, (epochs,).
        auroc: Of the test set, in 0..1, (epochs,), NaN where it was not measured; None without a test set.
        labeled_loss: L_v of all labeled samples (Eq. 6), (epochs,); None without one.
    """
    epoch = np.asarray(epoch)
    panels: list[tuple[ArrayLike, str, str, str]] = []
    if auroc is not None:
        panels.append((100 * np.asarray(auroc, dtype=np.float64), "ROC AUC, test (%)", BLUE, "o"))
    if labeled_loss is not None:
        panels.append((labeled_loss, "labeled loss (Eq. 6)", VERMILLION, "s"))
    with figure_at(path, 4.4, 0.6 + 1.7 * len(panels), (0.7, 0.12, 0.45, 0.12)) as figure:
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (values, label, color, shape) in zip(column, panels, strict=True):
            values = np.asarray(values, dtype=np.float64)
            there = np.isfinite(values)
            size = 3.5 if there.sum() <= 40 else 0
            axes.plot(epoch[there], values[there], color=color, marker=shape, markersize=size, linewidth=1.6)
            axes.set_ylabel(label)
            axes.grid(axis="y", color="0.9", linewidth=0.8)
        if labeled_loss is not None:
            column[-1].set_ylim(0, None)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.get_major_locator().set_params(integer=True)


def _per_sample(index: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the values of each index, shape (number of different indices,)."""
    _, which = np.unique(index, return_inverse=True)
    return np.bincount(which, values) / np.bincount(which)


def meta_gradient_plot(
    path: str | os.PathLike[str],
    iteration: ArrayLike,
    index: ArrayLike,
    minus_meta_gradient: ArrayLike,
    is_anomaly: ArrayLike,
) -> None:
    """Draws how -M = ŷ|M| tells normal and anomalous training samples apart as training goes on (Sec. 5.5.2, Fig. 7c).

    Above: the distribution over the samples of each class, and that of each sample's mean over the iterations, in units
    of the batch mean of |M|, because the scale of M changes by decades and what counts is how samples of one batch
    compare. Below: how often the sign is right, and how well M ranks, with a dot an iteration, because the signs of all
    samples may flip together from step to step. Lines and bands pool the iterations of 25 spans.

    Args:
        path: The picture to write.
        iteration: (T,), T > 0.
        index: Which sample it is, (T, n).
        minus_meta_gradient: (T, n), NaN where a batch had no more samples.
        is_anomaly: 1 anomaly, 0 normal, -1 unknown, (T, n).
    """
    iteration, index, truth = np.asarray(iteration), np.asarray(index), np.asarray(is_anomaly)
    values = np.asarray(minus_meta_gradient, dtype=np.float64)
    there = np.isfinite(values)
    mean = np.nanmean(np.abs(values), axis=1, keepdims=True)
    values = np.divide(values, mean, out=np.where(there, 0.0, np.nan), where=mean > 0)
    parts = {"normal": there & (truth == 0), "anomaly": there & (truth == 1), "all": there & (truth < 0)}
    parts = {name: part for name, part in parts.items() if part.any()}

    right: list[_Curve] = []
    for name, part in parts.items():
        positive = [100 * np.mean(v[p] >= 0) if p.any() else np.nan for v, p in zip(values, part, strict=True)]
        found, sign = (positive, "+1") if name == "normal" else ([100 - share for share in positive], "−1")
        right.append((f"{name}, ŷ = {sign}", found, _CLASS_STYLE[name][0], _LINE_STYLE[name]))
    below = [("share (%)", right)]
    if {"normal", "anomaly"} <= parts.keys():
        area = [_auroc(*row) for row in zip(values, parts["normal"], parts["anomaly"], strict=True)]
        below.append(("ROC AUC (%)", [("M as a score", area, "0.1", "-")]))

    heights = [2.2, *(1.0 for _ in below)]
    with figure_at(path, 6.4, 1.4 + sum(heights), (0.75, 0.2, 0.45, 0.55)) as figure:
        cells = figure.subplots(len(heights), 2, sharex="col", sharey="row", width_ratios=[3, 1], height_ratios=heights)
        (over, beside), *rows = cells
        _draw_distributions(over, beside, iteration, index, values, parts)
        for (axes, corner), (label, curves) in zip(rows, below, strict=True):
            _draw_percentages(axes, corner, iteration, curves)
            axes.set_ylabel(label)
        rows[-1][0].set(xlim=(0, iteration[-1]), xlabel="iteration")


def _spans(iteration: NDArray[Any]) -> tuple[list[NDArray[Any]], list[float]]:
    """The places of the iterations of each of 25 spans, or as many as there are, and its middle."""
    spans = np.array_split(np.arange(len(iteration)), min(25, len(iteration)))
    return spans, [iteration[span].mean() for span in spans]


def _draw_distributions(
    over: Axes,
    beside: Axes,
    iteration: NDArray[Any],
    index: NDArray[Any],
    values: NDArray[np.float64],
    parts: Mapping[str, NDArray[np.bool_]],
) -> None:
    """Draws how the values of each class are distributed, over the iterations and by the means of the samples.

    Args:
        over: The axes over the iterations.
        beside: Those to their right.
        iteration: (T,).
        index: Which sample it is, (T, n).
        values: (T, n).
        parts: Which values are of a class, (T, n).
    """
    spans, middle = _spans(iteration)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    quantiles = {}
    for name, part in parts.items():
        pooled = [values[span][part[span]] for span in spans]
        quantiles[name] = np.array([np.quantile(some, levels) if len(some) else [np.nan] * 5 for some in pooled]).T
    bound = 1.05 * max(float(np.nanmax(np.abs(quantile))) for quantile in quantiles.values()) or 1.0
    edges = np.linspace(-bound, bound, 61)

    shown = []
    for name, part in parts.items():
        (color, hatch), style = _CLASS_STYLE[name], _LINE_STYLE[name]
        fill: dict[str, Any] = {"facecolor": (color, 0.25), "edgecolor": color, "hatch": hatch}
        low, lower, median, upper, high = quantiles[name]
        over.fill_between(middle, low, high, facecolor=(color, 0.12), edgecolor=color, linestyle=style, linewidth=0.6)
        band = over.fill_between(middle, lower, upper, **fill, linewidth=0)
        shown += [(band, *over.plot(middle, median, color=color, linestyle=style, linewidth=2))]
        count = np.histogram(_per_sample(index[part], values[part]).clip(-bound, bound), edges)[0]
        share = 100 * count / count.sum()
        beside.stairs(share, edges, orientation="horizontal", fill=True, **fill, linewidth=1.2)
    for axes in (over, beside):
        axes.axhline(0, color="0.2", linewidth=0.8)
    over.set(ylim=(-bound, bound), ylabel="ŷ·|M| / batch mean of |M|\n(positive = normal)")
    over.legend(
        shown,
        list(parts),
        title="median, middle 50 % and 90 % of the samples",
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
    )
    beside.set(xlim=(0, None), xlabel="share of the class (%)", title="each sample's mean")
    beside.tick_params(labelbottom=True)


def _draw_percentages(axes: Axes, corner: Axes, iteration: NDArray[Any], curves: Sequence[_Curve]) -> None:
    """Draws a dot an iteration and a line through the means of spans, with the legend in a corner of its own."""
    spans, middle = _spans(iteration)
    for name, found, color, style in curves:
        percent = np.asarray(found)
        there = np.isfinite(percent)
        axes.plot(iteration[there], percent[there], ".", color=color, alpha=0.35, markersize=2.5, mew=0)
        mean = [np.mean(percent[span][there[span]]) if there[span].any() else np.nan for span in spans]
        axes.plot(middle, mean, color=color, linestyle=style, linewidth=1.8, label=name)
    axes.set(ylim=(-4, 104), yticks=[0, 50, 100])
    axes.axhline(50, color="0.6", linewidth=0.8, zorder=0)
    corner.set_axis_off()
    handles = axes.get_legend_handles_labels()
    corner.legend(*handles, loc="center", borderpad=0, handlelength=1.6, handletextpad=0.6)


def _auroc(value: NDArray[np.float64], normal: NDArray[np.bool_], anomaly: NDArray[np.bool_]) -> float:
    """The chance that a normal sample of a batch (n,) has a larger value than an anomaly, in %; NaN without both."""
    difference = value[normal][:, None] - value[anomaly]
    return 100 * float(np.mean(difference > 0) + np.mean(difference == 0) / 2) if difference.size else np.nan


def recorded_plots(directory: Path) -> list[Path]:
    """Draws the pictures of what a run recorded while it trained anew, from its `history.csv` and `meta_gradient.npz`.

    Args:
        directory: The run directory.

    Returns:
        The pictures: `curves.png`, `meta_gradient.png`; one that there is nothing for is left out.
    """
    written = []
    with (directory / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {
        key: np.array([float(row[key] or "nan") for row in rows])
        for key in ("epoch", "test/auroc", "labeled/loss")
        if key in rows[0]
    }
    if len(columns) > 1:
        written.append(directory / "curves.png")
        curves_plot(written[-1], columns["epoch"], columns.get("test/auroc"), columns.get("labeled/loss"))
    if (directory / "meta_gradient.npz").is_file():
        with np.load(directory / "meta_gradient.npz") as recording:
            if len(recording["iteration"]):
                written.append(directory / "meta_gradient.png")
                meta_gradient_plot(written[-1], **recording)
    return written
