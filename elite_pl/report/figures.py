"""The figures of a study: lines with intervals, a panel per data set, a line per method, readable in gray print too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elite_pl.files import atomic_write
from elite_pl.runs.plots import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILLION, axes_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_COLORS = (VERMILLION, BLUE, GREEN, ORANGE, SKY, PURPLE)
_MARKERS = "os^DvPX<p>*h"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1.2)))

PANELS_A_ROW = 3
BANDS_A_PANEL = 6  # with more of them nothing can be seen


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: Its label in the legend; lines of one name look alike in all panels.
        x: Where it is known, ascending, (n,).
        y: Its values, (n,).
        low: Lower ends of their intervals, (n,), NaN where there is none.
        high: Upper ends, (n,).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Axes with a title."""

    title: str
    lines: Sequence[Line]


def plain(text: str) -> str:
    """A text that Matplotlib shows as it is: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def series(i: int) -> tuple[str, str, str, Any]:
    """The look of the i-th of many series: no two of 24 have the same marker (shape, filled or not); then again.

    Returns:
        Color, marker, color of the marker's face, dashes.
    """
    color = _COLORS[i % len(_COLORS)]
    face = "white" if i // len(_MARKERS) % 2 else color
    return color, _MARKERS[i % len(_MARKERS)], face, _DASHES[i % len(_DASHES)]


def lines_plot(
    paths: Sequence[str | os.PathLike[str]],
    panels: Sequence[Panel],
    order: Mapping[str, int],
    x_label: str,
    y_label: str,
    *,
    chance: bool = False,
    bands: bool = False,
) -> None:
    """Draws panels of lines under one legend, with an interval at each point, or as a band along the curve.

    Args:
        paths: The pictures to write, one for each format (.png, .svg).
        panels: The panels.
        order: A number for each name of a line, which stands for its look: the same in all figures of a report.
        x_label: Label of the x axis. It gets a logarithmic axis if it spans a factor of 20 and more.
        y_label: Label of the y axis, with its unit. It is logarithmic from a factor of 100 on, unless `chance`.
        chance: Whether y is a ROC AUC in percent: it ends at 100, and where 50 is in sight a line says what it is.
        bands: Bands instead of error bars, without marks: for many points.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = sorted({line.name for panel in panels for line in panel.lines}, key=order.__getitem__)
    xs = sorted({x for panel in panels for line in panel.lines for x in line.x})
    ys = [y for panel in panels for line in panel.lines for y in line.y]
    log_x = xs[0] > 0 and xs[-1] / xs[0] >= 20 and not bands
    log_y = not chance and min(ys) > 0 and max(ys) / min(ys) >= 100
    columns = min(PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    width = 1.0 + 2.9 * columns if columns > 1 else 4.6
    legend_rows = -(-len(names) // max(1, int(width / (0.55 + 0.075 * max(map(len, names))))))
    legend_columns = -(-len(names) // legend_rows)
    height = (2.7 if len(names) <= 8 else 3.4) * rows + 0.19 * legend_rows + 0.3

    def place(line: Line) -> np.ndarray:
        x = np.asarray(line.x, dtype=float)
        return x if bands else _beside(x, xs, names.index(line.name), len(names), log_x)

    style = STYLE | {"svg.hashsalt": "elite_pl"}  # the same figure gives the same file
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        handles: dict[str, Line2D] = {}
        for axes, panel in zip(grid.flat, panels, strict=False):
            handles |= _draw_lines(axes, panel.lines, order, place, bands)
            if log_x:
                axes.set_xscale("log")
            if log_y:
                axes.set_yscale("log")
            if not bands:  # where it was measured, and only there
                axes.set_xticks(xs if len(xs) <= 7 else xs[:: -(-len(xs) // 7)])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if chance:
                _draw_chance(axes, min(y for line in panel.lines for y in line.y))
            axes.grid(axis="y", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set(title=plain(panel.title), xlabel=x_label)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel(y_label)
        figure.legend(
            [handles[name] for name in names],
            list(map(plain, names)),
            loc="outside lower center",
            ncols=legend_columns,
            columnspacing=1.4,
            handlelength=3.2,  # long enough to tell dashes from dots
        )
        for path in paths:
            with atomic_write(path) as temporary:
                figure.savefig(temporary, metadata={"Date": None} if str(path).endswith(".svg") else None)


def _draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    order: Mapping[str, int],
    place: Callable[[Line], np.ndarray],
    bands: bool,
) -> dict[str, Line2D]:
    """Draws the lines of a panel, the first one on top, and returns them for the legend.

    Args:
        axes: The panel.
        lines: Its lines.
        order: As in `lines_plot`.
        place: Where the points of a line go along x, (n,).
        bands: As in `lines_plot`.
    """
    handles = {}
    for line in sorted(lines, key=lambda line: order[line.name], reverse=True):
        color, marker, face, dashes = series(order[line.name])
        first = order[line.name] == 0
        shown: dict[str, Any] = {
            "color": color,
            "linestyle": dashes,
            "linewidth": 1.9 if first else 1.2,
            "zorder": 3 if first else 2,
            "marker": marker,
        }
        x, y, low, high = place(line), *map(np.asarray, (line.y, line.low, line.high))
        if bands:
            if len(lines) <= BANDS_A_PANEL:
                axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            shown |= {"markevery": (order[line.name] % 5, 5), "markersize": 4}
        else:
            error = np.nan_to_num(np.array([y - low, high - y]).clip(min=0))
            axes.errorbar(x, y, error, fmt="none", ecolor=color, elinewidth=0.8, capsize=1.8, alpha=0.6)
            shown |= {"markersize": 5.5 if first else 4.5}
        (handles[line.name],) = axes.plot(x, y, markerfacecolor=face, label=line.name, **shown)
    return handles


def _draw_chance(axes: Axes, lowest: float) -> None:
    """Ends the axis of a ROC AUC in percent at 100, and draws chance if it is in sight above the lowest value."""
    axes.set(ylim=(5 * ((lowest - 4) // 5), 101.0))  # an interval may reach farther down
    if axes.get_ylim()[0] < 50:
        axes.axhline(50, color="0.5", linestyle=(0, (1, 2)), linewidth=1, zorder=0)
        axes.text(0.01, 50.4, "chance", color="0.4", fontsize=7, transform=axes.get_yaxis_transform())


def _beside(x: np.ndarray, xs: Sequence[float], i: int, count: int, log: bool) -> np.ndarray:
    """Moves the points of the i-th of `count` lines a little, so that error bars do not hide each other."""
    places = np.log(xs) if log else np.asarray(xs, dtype=float)
    gap = np.diff(places).min() if len(places) > 1 else 1.0
    shift = (i - (count - 1) / 2) * min(0.03, 0.3 / count) * gap
    return np.exp(np.log(x) + shift) if log else x + shift


def comparison_plot(
    path: str | os.PathLike[str], rows: Sequence[tuple[str, str, float]], group_label: str = "normal class"
) -> None:
    """Draws the ROC AUC of methods side by side: every run a small mark, mean ± standard deviation a large one.

    Args:
        path: The picture to write.
        rows: One (method, group, ROC AUC in 0..1) a run; methods and groups stand in order of appearance.
        group_label: Label of the groups.
    """
    methods = list(dict.fromkeys(method for method, _, _ in rows))
    groups = list(dict.fromkeys(group for _, group, _ in rows))
    pitch = 0.72 / len(methods)
    labeled: set[str] = set()
    width = max(3.6, 0.8 + len(groups) * max(0.8, 0.17 * len(methods)))
    with axes_at(path, width, 3.2) as axes:
        for i, method in enumerate(methods):
            color, marker, face, _ = series(i)
            for j, group in enumerate(groups):
                points = 100 * np.array([auroc for m, g, auroc in rows if (m, g) == (method, group)])
                if not len(points):
                    continue
                center = j + (i - (len(methods) - 1) / 2) * pitch
                # Runs to the right of their mean, so that neither hides the other.
                axes.plot(
                    np.full(len(points), center + 0.3 * pitch),
                    points,
                    marker,
                    color=color,
                    alpha=0.55,
                    markersize=2.8,
                    markeredgewidth=0,
                )
                axes.errorbar(
                    center - 0.2 * pitch,
                    points.mean(),
                    points.std(ddof=1) if len(points) > 1 else 0.0,
                    fmt=marker,
                    color=color,
                    markerfacecolor=face,
                    markersize=5.5,
                    elinewidth=1.4,
                    capsize=2.5,
                    label=None if method in labeled else plain(method),
                )
                labeled.add(method)
        for j in range(1, len(groups)):
            axes.axvline(j - 0.5, color="0.9", linewidth=0.8, zorder=0)
        axes.axhline(50, color="0.5", linestyle="--", linewidth=1, zorder=0)
        axes.text(len(groups) - 0.5, 50.4, "chance ", color="0.4", fontsize=7, ha="right", va="bottom")
        axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(min(45.0, axes.get_ylim()[0]), 102))
        axes.set_xticks(range(len(groups)), list(map(plain, groups)))
        axes.set(xlabel=plain(group_label), ylabel="ROC AUC (%), mean ± std")
        legend_rows = -(-len(labeled) // max(1, int(width / 1.2)))
        legend_columns = -(-len(labeled) // legend_rows)
        axes.figure.legend(loc="outside upper center", ncols=legend_columns, columnspacing=1.2, handletextpad=0.4)


def review_plot(path: str | os.PathLike[str], truth: np.ndarray) -> None:
    """Draws how many of the hidden anomalies are found against how much is reviewed, the most suspicious first.

    Args:
        path: The picture.
        truth: Which samples are anomalies, in the order in which they are reviewed, (n,) bool.
    """
    reviewed = 100 * np.arange(len(truth) + 1) / len(truth)
    hidden = truth.sum()
    found = 100 * np.concatenate([[0], np.cumsum(truth)]) / hidden
    share = 100 * hidden / len(truth)
    with axes_at(path, 4.2, 3.4) as axes:
        axes.plot([0, share, 100], [0, 100, 100], color="black", linestyle=":", linewidth=1, label="a perfect order")
        axes.plot([0, 100], [0, 100], color="gray", linestyle="--", linewidth=1, label="in any order")
        axes.plot(reviewed, found, color=VERMILLION, linewidth=2, label="by suspicion")
        axes.set(
            xlim=(0, 100), ylim=(0, 101), xlabel="unlabeled samples reviewed (%)", ylabel="hidden anomalies found (%)"
        )
        axes.legend(loc="lower right")
