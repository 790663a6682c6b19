"""The grid of a study: the axes along which it is drawn, what else changes along them, and missing cells."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from elite_pl.report.figures import Line, Panel
from elite_pl.report.statistics import confidence_interval, mean_std
from elite_pl.runs.results import AUROC
from elite_pl.studies.read import HIDDEN_SHARE, ORIGIN, REPEATS, SETTING, Run, grouped, values_of

AXES = ("pollution", "label_ratio", "method.meta_scale")  # of Figures 3 to 6
# Of Figure 7 (a, b), as their axes are called. The hinge is in units of Ω: only over C does it compare methods.
MEASURES = {"test/auroc": "ROC AUC (%)", "labeled/loss": "labeled loss $L_v / C$"}
# Quantities of a split that may change along an axis, and the axis meant to change each, if any.
_QUANTITIES = {HIDDEN_SHARE: "pollution", "data/unlabeled": "", "data/labeled": "label_ratio"}

# Facts that may differ between runs of one configuration, and their consequences.
_BESIDE = {"threads": "their last digits may differ", "data/fingerprint": "they are not of the same data"}
_LARGEST = 1e100  # number that is drawn; NaN is none
_FEW = 5  # lines of a table that a note names; more are counted


def default_rows(runs: Sequence[Run]) -> list[str]:
    """The default rows of a table: data set, pollution, label ratio, method, and η_M if a method sweeps it."""
    sweeps = any(len(values_of(group, AXES[2])) > 1 for _, group in grouped(runs, ["method"]))
    return [*SETTING, *([AXES[2]] if sweeps else []), "method"]


def is_number(value: Any) -> bool:
    """Returns whether a value can stand on an axis; truth values cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def swept(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """The keys with numbers along which at least one line has two points: those of the paper, and others told apart."""
    found = []
    for axis in [key for key in dict.fromkeys((*AXES, *keys)) if key in keys and key not in (*REPEATS, *ORIGIN)]:
        rest = [key for key in keys if key != axis]
        numbers = [run for run in runs if is_number(run[axis])]
        if any(len(values_of(group, axis)) > 1 for _, group in grouped(numbers, rest)):
            found.append(axis)
    return found


def _kinds(keys: Sequence[str], axis: str | None) -> tuple[list[str], list[str]]:
    """The keys that make panels, and those that make lines, of which the method comes first."""
    rest = [key for key in keys if key != axis]
    lines = [key for key in rest if key not in SETTING]
    return [key for key in rest if key in SETTING], sorted(lines, key=lambda key: key != "method")


def title(keys: Sequence[str], values: Sequence[str]) -> str:
    """`mnist, pollution 0.1`: values with their keys, where they do not speak for themselves; nothing for None."""
    named = [
        value if key in ("dataset", "method", *ORIGIN) else f"{key.removeprefix('method.')} {value}"
        for key, value in zip(keys, values, strict=True)
        if value != "None"
    ]
    return ", ".join(named)


def line_names(runs: Sequence[Run], keys: Sequence[str], against: str) -> dict[str, int]:
    """A number for each name that a line of any figure may get: the method that all are compared with comes first."""
    found: dict[str, None] = {}
    for axis in (None, *swept(runs, keys)):
        lines = _kinds(keys, axis)[1]
        ordered = sorted(grouped(runs, lines), key=lambda entry: entry[0][:1] != [against])
        found |= {title(lines, values): None for values, _ in ordered}
    return {name: i for i, name in enumerate(found)}


def sweep_panels(runs: Sequence[Run], keys: Sequence[str], axis: str) -> list[Panel]:
    """Mean test ROC AUC in percent with its confidence interval along an axis; panels with one point only are left out.

    Args:
        runs: Finished runs.
        keys: The keys that tell methods apart.
        axis: The key that makes x.

    Returns:
        A panel for each data set and other setting.
    """
    settings, lines = _kinds(keys, axis)
    shown = [key for key in settings if key == "dataset" or len(values_of(runs, key)) > 1]
    panels = []
    for _, group in grouped([run for run in runs if is_number(run[axis])], settings):
        if len(values_of(group, axis)) < 2:
            continue
        drawn = []
        for values, line in grouped(group, lines):
            points = []
            for _, cell in grouped(line, [axis]):
                auroc = [run.auroc for run in cell]
                low, high = confidence_interval(auroc, [run.unit for run in cell])
                points.append((float(cell[0][axis]), statistics.fmean(auroc), max(low, 0.0), min(high, 100.0)))
            drawn.append(Line(title(lines, values), *zip(*points, strict=True)))
        panels.append(Panel(title(shown, [str(group[0][key]) for key in shown]), drawn))
    return panels


def epoch_panels(runs: Sequence[Run], keys: Sequence[str], measure: str) -> list[Panel]:
    """A measure over the epochs, mean ± standard deviation over the runs of a line, from `history.csv`.

    Args:
        runs: Finished runs; those kept as cells have no history.
        keys: The keys that tell methods apart.
        measure: A column of `history.csv`, such as `test/auroc`.

    Returns:
        A panel for each data set and setting in which the measure is known at two epochs and more.
    """
    settings, lines = _kinds(keys, None)
    shown = [key for key in settings if key == "dataset" or len(values_of(runs, key)) > 1]
    panels = []
    for _, group in grouped(runs, settings):
        drawn = []
        for values, line in grouped(group, lines):
            by_epoch: dict[int, list[float]] = {}
            for run in line:
                unit = 0.01 if measure == AUROC else run["train/margin"]
                for epoch, value in run.history.get(measure, []) if unit else []:
                    if abs(value / unit) < _LARGEST:
                        by_epoch.setdefault(epoch, []).append(value / unit)
            if len(by_epoch) < 2:
                continue
            points = [(epoch, *mean_std(found)) for epoch, found in sorted(by_epoch.items())]
            band = [(epoch, mean, mean - std, mean + std) for epoch, mean, std in points]
            drawn.append(Line(title(lines, values), *zip(*band, strict=True)))
        if drawn:
            panels.append(Panel(title(shown, [str(group[0][key]) for key in shown]), drawn))
    return panels


def confounds(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """A line for each axis and data set along which something else changes too: the split's sizes, or a setting."""
    found = []
    for axis in swept(runs, keys):
        settings, lines = _kinds(keys, axis)
        shown = [key for key in settings if key == "dataset" or len(values_of(runs, key)) > 1]
        for _, group in grouped([run for run in runs if is_number(run[axis])], settings):
            moves = [
                _move(key, [[run[key] for run in part] for _, part in grouped(group, [axis])])
                for key, meant in _QUANTITIES.items()
                if meant != axis
            ]
            for values, line in grouped(group, lines):
                moves += _moving_settings(line, axis, title(lines, values), keys)
            if moves := [move for move in moves if move]:
                place = title(shown, [str(group[0][key]) for key in shown])
                found.append(f"Along {axis} ({place}) more than {axis} changes: {'; '.join(dict.fromkeys(moves))}.")
    return found


def averaged_over(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """A line for each fact of `_BESIDE` that differs between runs which a table averages: its values, and where."""
    told = list(dict.fromkeys(("dataset", *keys)))
    shown = [key for key in told if key == "method" or len(values_of(runs, key)) > 1]
    found = []
    for key, words in _BESIDE.items():
        places: list[str] = []
        values: dict[str, None] = {}
        for _, group in grouped([run for run in runs if run[key] is not None], told):
            if len(differ := values_of(group, key)) > 1:
                places.append(title(shown, [str(group[0][k]) for k in shown]))
                values |= dict.fromkeys(map(str, differ))
        if places:
            more = f"; and {len(places) - _FEW} more" if len(places) > _FEW else ""
            where = "; ".join(places[:_FEW]) + more
            found.append(f"Runs with `{key}` {' and '.join(values)} are averaged: {words} ({where}).")
    return found


def _move(key: str, cells: Sequence[Sequence[Any]]) -> str:
    """`data/labeled rises from 20 to 100`, nothing if it stays (or is unknown)."""
    if any(not is_number(value) for cell in cells for value in cell):
        return ""
    means = [statistics.fmean(cell) for cell in cells]
    if len({f"{mean:.4g}" for mean in means}) == 1:
        return ""
    steps = [after - before for before, after in itertools.pairwise(means)]
    word = "falls" if max(steps) <= 0 else "rises" if min(steps) >= 0 else "goes"
    if key == HIDDEN_SHARE:
        return f"hidden pollution (`{key}`) {word} from {100 * means[0]:.1f} % to {100 * means[-1]:.1f} %"
    return f"`{key}` {word} from {means[0]:g} to {means[-1]:g}"


def _moving_settings(runs: Sequence[Run], axis: str, name: str, keys: Sequence[str]) -> list[str]:
    """The settings of a line that differ between the points of an axis."""
    points = [part for _, part in grouped(runs, [axis])]
    moves = []
    for key in sorted({key for run in runs for key in run.settings} - {axis, *keys}):
        values = [", ".join(sorted({str(run.config.get(key)) for run in part})) for part in points]
        if len(set(values)) > 1:
            moves.append(f"`{key}` of {name} is {', '.join(dict.fromkeys(values))}")
    return moves


def missing(
    runs: Sequence[Run], failures: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[tuple[dict[str, str], list[tuple[str, ...]]]]:
    """The cells of the full grid that have neither a run nor a failure.

    The grid of each study and data set has all combinations of the values that occur in it: of pollution, label ratio,
    method (with what else is told apart), normal class and seed.

    Returns:
        For each setting and method with a gap: its coordinates, and (normal class, seed) of what is not there.
    """
    variants = [key for key in keys if key not in (*SETTING, *REPEATS, *ORIGIN)]
    axes = [[key] for key in SETTING[1:]] + [variants] + [[key] for key in REPEATS]
    order = [key for group in axes for key in group]
    found = []
    for (study, dataset), group in ((tuple(values), group) for values, group in grouped(runs, ["study", "dataset"])):
        failed = [f for f in failures if f["study"] == study and str(f.get("dataset")) == dataset]
        known: list[Any] = [*group, *(f for f in failed if all(key in f for key in order))]
        have = {tuple(str(cell[key]) for key in order) for cell in known}
        grid = [dict.fromkeys(tuple(str(cell[key]) for key in part) for cell in known) for part in axes]
        gaps: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for combination in itertools.product(*grid):
            cell = tuple(itertools.chain(*combination))
            if cell not in have:
                gaps.setdefault(cell[: -len(REPEATS)], []).append(cell[-len(REPEATS) :])
        for values, cells in gaps.items():
            place = dict(zip(order, values, strict=False))
            found.append(({"study": study, "dataset": dataset, **place}, sorted(cells)))
    return found
