"""The pictures of a run, and the numbers behind them. The only module that imports matplotlib, and never pyplot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elite_pl.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by the colour-blind. Black and grey are kept
# for axes and chance lines; yellow is too pale on paper. Shapes and hatches say it once more, for a print in grey.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
_SERIES = [(VERMILLION, "o"), (BLUE, "s"), (GREEN, "^"), (ORANGE, "D"), (SKY, "v"), (PURPLE, "P")]
_CLASS_STYLE = {  # by class: (colour, hatch)
    "normal": (BLUE, ""),
    "anomaly": (VERMILLION, "////"),
    "all": (BLUE, ""),
}


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
        is_anomaly: The truth, (n,), or None where nobody knows it.
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
def _axes(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Axes]:
    """Axes to draw on, in inches, saved to `path` as a whole when the block ends well."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "hatch.linewidth": 0.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        yield figure.add_subplot()
        with atomic_write(path) as temporary:
            figure.savefig(temporary)


def roc_plot(path: str | os.PathLike[str], scores: ArrayLike, is_anomaly: ArrayLike, title: str) -> None:
    """Draws the ROC curve with its area; see `roc_curve` for the arguments."""
    fpr, tpr = roc_curve(scores, is_anomaly)
    area = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    with _axes(path, 3.4, 3.4) as axes:
        axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="chance 50.0 %")
        axes.plot(fpr, tpr, color=BLUE, linewidth=1.8, label=f"ROC AUC {100 * area:.1f} %", clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
        axes.set(xlabel="false positive rate", ylabel="true positive rate (anomaly = positive)")
        axes.legend(loc="lower right", reverse=True)


def _histogram_plot(
    path: str | os.PathLike[str], values: ArrayLike, is_anomaly: ArrayLike | None, label: str, line: tuple[float, str]
) -> None:
    """Two overlaid histograms, each as a share of its class, since test parts hold nine times more anomalies."""
    bins = int(np.clip(2 * np.sqrt(np.size(values)), 10, 50))
    edges, counts = class_histograms(values, is_anomaly, bins)
    position, name_of_line = line
    with _axes(path, 4.4, 2.8) as axes:
        for name, count in counts.items():
            colour, hatch = _CLASS_STYLE[name]
            share = 100 * count / max(1, count.sum())
            look: dict[str, Any] = {"facecolor": (colour, 0.25), "edgecolor": colour, "hatch": hatch, "linewidth": 1.4}
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


def comparison_plot(
    path: str | os.PathLike[str], rows: Sequence[tuple[str, str, float]], group_label: str = "normal class"
) -> None:
    """Draws the ROC AUC of methods side by side: every run a small mark, mean ± standard deviation a large one.

    Args:
        path: The picture to write.
        rows: One (method, group, ROC AUC in 0..1) a run; methods and groups stand in order of appearance.
        group_label: What the groups are.
    """
    methods = list(dict.fromkeys(method for method, _, _ in rows))
    groups = list(dict.fromkeys(group for _, group, _ in rows))
    pitch = 0.72 / len(methods)
    labelled: set[str] = set()
    width = max(3.6, 0.8 + len(groups) * max(0.8, 0.17 * len(methods)))
    with _axes(path, width, 3.2) as axes:
        for i, method in enumerate(methods):
            colour, shape = _SERIES[i % len(_SERIES)]
            for j, group in enumerate(groups):
                points = 100 * np.array([auroc for m, g, auroc in rows if (m, g) == (method, group)])
                if not len(points):
                    continue
                centre = j + (i - (len(methods) - 1) / 2) * pitch
                # Runs to the right of their mean, so that neither hides the other.
                axes.plot(
                    np.full(len(points), centre + 0.3 * pitch),
                    points,
                    shape,
                    color=colour,
                    alpha=0.55,
                    markersize=2.8,
                    markeredgewidth=0,
                )
                axes.errorbar(
                    centre - 0.2 * pitch,
                    points.mean(),
                    points.std(ddof=1) if len(points) > 1 else 0.0,
                    fmt=shape,
                    color=colour,
                    markersize=5.5,
                    elinewidth=1.4,
                    capsize=2.5,
                    label=None if method in labelled else method,
                )
                labelled.add(method)
        for j in range(1, len(groups)):
            axes.axvline(j - 0.5, color="0.9", linewidth=0.8, zorder=0)
        axes.axhline(50, color="0.5", linestyle="--", linewidth=1, zorder=0)
        axes.text(len(groups) - 0.5, 50.4, "chance ", color="0.4", fontsize=7, ha="right", va="bottom")
        axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(min(45.0, axes.get_ylim()[0]), 102))
        axes.set_xticks(range(len(groups)), groups)
        axes.set(xlabel=group_label, ylabel="ROC AUC (%), mean ± std")
        axes.figure.legend(
            loc="outside upper center", ncols=max(1, int(width / 1.2)), columnspacing=1.2, handletextpad=0.4
        )
