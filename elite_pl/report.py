"""The command `python -m elite_pl.report`: the table and the picture of a study, from the files of its runs."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

from omegaconf import OmegaConf

from elite_pl.errors import InputError
from elite_pl.files import atomic_write
from elite_pl.plots import comparison_plot
from elite_pl.tracking import BOOKKEEPING

SETTING = ("dataset", "pollution", "label_ratio")  # runs that differ here are never averaged unless one asks for it
REPEATS = ("normal_class", "seed")  # these are averaged over
IGNORED = (*BOOKKEEPING, "dataset.source")  # keys that do not make another run, or repeat one that does
AUROC, HIDDEN = "test/auroc", "data/hidden_anomalies"


@dataclass
class Run:
    """A finished run.

    Attributes:
        directory: Its run directory.
        metrics: What its `metrics.json` holds.
    """

    directory: Path
    metrics: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        """What its `config.yaml` holds, with dotted keys; read when it is asked for, because that takes its time."""
        path = self.directory / "config.yaml"
        try:
            return flat(cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.load(path))))
        except Exception as error:  # OmegaConf's, YAML's or the file system's
            raise InputError(f"{path}: cannot be read ({error}); remove it and repeat the run") from None

    def __getitem__(self, key: str) -> Any:
        """A value of `metrics.json`, else of `config.yaml` (`method.optimizer.lr`), None where neither has it."""
        return self.metrics[key] if key in self.metrics else self.config.get(key)

    @property
    def auroc(self) -> float:
        """The ROC AUC of the test part, in percent."""
        return 100 * self.metrics[AUROC]


def flat(config: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def read_study(directory: Path) -> list[Run]:
    """The finished runs that have a test ROC AUC, below a directory in the order of their paths, or in a cells file.

    Raises:
        InputError: If there is none, or one cannot be read.
    """
    if directory.is_file():
        return read_cells(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; name the study directory of a sweep, OUTPUT_DIR/STUDY")
    runs = []
    for path in sorted(directory.rglob("metrics.json")):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); remove it and repeat the run") from None
        if isinstance(metrics, dict) and AUROC in metrics:
            runs.append(Run(path.parent, metrics))
    if not runs:
        raise InputError(f"{directory}: no finished run with a test part in it (a run's metrics.json holds {AUROC})")
    return runs


def read_cells(path: Path) -> list[Run]:
    """The runs that `write_cells` kept.

    Raises:
        InputError: If the file cannot be read as such.
    """
    runs = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            cell = json.loads(line)
            run = Run(path, cell["metrics"])
            run.config = cell["config"]
            runs.append(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as cells ({error!r}); write it by --cells") from None
    return runs


def write_cells(path: Path, runs: Iterable[Run]) -> None:
    """Keeps runs in one file, a line a run: its metrics, and its config without what does not make another run."""
    lines = []
    for run in runs:
        left_out = (*IGNORED, "dataset.path")  # a place on one machine; the fingerprint tells the data
        config = {key: value for key, value in run.config.items() if not key.startswith(left_out)}
        lines.append(json.dumps({"metrics": run.metrics, "config": config}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def without_copies(runs: Iterable[Run]) -> list[Run]:
    """Each run once, where studies hold runs of the same config."""
    return list({run.metrics.get("config_hash", run.directory): run for run in runs}.values())


def check_cells(runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Refuses to average over runs that differ in more than normal class and seed.

    Args:
        runs: The runs.
        keys: What the table tells apart.

    Raises:
        InputError: Names what two runs of one cell differ in.
    """
    cells: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        cell = tuple(str(run[key]) for key in (*keys, *REPEATS))
        if (other := cells.setdefault(cell, run)) is not run:
            differ = [
                key
                for key in sorted(run.config.keys() | other.config.keys())
                if run.config.get(key) != other.config.get(key) and not key.startswith(IGNORED)
            ]
            raise InputError(
                f"{run.directory} and {other.directory} would be averaged, but differ in "
                f"{', '.join(differ) or 'their configuration'}; add such a key to --rows {','.join(keys)}"
            )


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 in the denominator); that of a single value is NaN."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    """`12.3 ± 4.5`, or the mean alone where there is no error."""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}")


def paired(runs: Iterable[Run], baseline: Sequence[Run], keys: Sequence[str]) -> tuple[float, float, int] | None:
    """How far a baseline is ahead of runs on the same cells: the same data set, split and seed.

    Args:
        runs: Runs to compare.
        baseline: The runs that they are compared with, at most one a cell.
        keys: What makes a cell.

    Returns:
        Mean of the differences (baseline - run) in points of ROC AUC, its standard error (standard deviation over the
        root of n), and n; None if no cell has both.
    """

    def cell(run: Run) -> tuple[str, ...]:
        return tuple(str(run[key]) for key in keys)

    theirs = {cell(run): run.auroc for run in baseline}
    differences = [theirs[cell(run)] - run.auroc for run in runs if cell(run) in theirs]
    if not differences:
        return None
    mean, deviation = mean_std(differences)
    return mean, deviation / len(differences) ** 0.5, len(differences)


def values_of(runs: Iterable[Run], key: str) -> list[Any]:
    """The values that a key takes, numbers in their order, then the others by name."""
    found = {str(run[key]): run[key] for run in runs}.values()

    def order(value: Any) -> tuple[bool, float, str]:
        try:
            return False, float(value), ""
        except (TypeError, ValueError):
            return True, 0.0, str(value)

    return sorted(found, key=order)


def table(
    runs: Sequence[Run], rows: Sequence[str], column: str | None = None, against: str = "elite_svdd"
) -> tuple[list[str], list[list[str]], str]:
    """The table of a study: ROC AUC in %, mean ± standard deviation over runs.

    Args:
        runs: Finished runs.
        rows: Keys whose values make the rows; those that are the same everywhere go into the caption, `method` not.
        column: A key whose values become columns, beside one over all of them; None for that one alone.
        against: The method that the others are compared with, on the same cells.

    Returns:
        Header, rows of text and caption.

    Raises:
        InputError: If a cell would average over different experiments.
    """
    rows = [key for key in rows if key != column]
    told_apart = [*rows, *([column] if column and column not in REPEATS else [])]
    check_cells(runs, told_apart)
    shown = [key for key in rows if key == "method" or len(values_of(runs, key)) > 1]
    constant = [f"{key} {runs[0][key]}" for key in rows if key not in shown and runs[0][key] is not None]
    columns = values_of(runs, column) if column else []
    baseline = [run for run in runs if run["method"] == against]
    cell = [key for key in dict.fromkeys((*SETTING, *REPEATS, *told_apart)) if not key.startswith("method")]
    hidden = values_of(runs, HIDDEN)
    counted = len(hidden) > 1 and all(isinstance(count, int) for count in hidden)
    compared = len(baseline) == len({tuple(str(run[key]) for key in cell) for run in baseline}) != 0
    compared = compared and len(baseline) < len(runs)

    header = [*shown, *(f"{column} {value}" for value in columns), "all" if column else "ROC AUC (%)", "runs"]
    header += ["hidden anomalies"] * counted + [f"{against} ahead by"] * compared
    body = []
    for values, group in grouped(runs, shown):
        line = list(values)
        for part in [[run for run in group if str(run[column or ""]) == str(value)] for value in columns] + [group]:
            line.append(plus_minus(*mean_std([run.auroc for run in part])) if part else "")
        line.append(str(len(group)))
        if counted:
            line.append(f"{statistics.fmean(run[HIDDEN] for run in group):.1f}")
        if compared:
            others = [run for run in group if run["method"] != against]
            difference = paired(others, baseline, cell)
            line.append(f"{plus_minus(*difference[:2], sign='+')} (n = {difference[2]})" if difference else "")
        body.append(line)

    caption = ["ROC AUC in %, mean ± standard deviation over runs"]
    if compared:
        caption.append(f"`{against} ahead by`: points, mean ± standard error of the differences over the same splits")
    if len(hidden) == 1 and isinstance(hidden[0], int):
        constant.append(f"{hidden[0]} hidden anomalies among {runs[0]['data/unlabeled']} unlabeled samples")
    return header, body, ". ".join([", ".join(constant), *caption] if constant else caption) + "."


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[list[str], list[Run]]]:
    """The runs by the values of keys, in order of those."""
    if not keys:
        return [([], list(runs))]
    found = []
    for value in values_of(runs, keys[0]):
        part = [run for run in runs if str(run[keys[0]]) == str(value)]
        found += [([str(value), *values], group) for values, group in grouped(part, keys[1:])]
    return found


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand below each other in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def line(cells: Sequence[str], pad: Callable[[str, int], str] = str.ljust) -> str:
        return "| " + " | ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, body)])


def picture(path: Path, runs: Sequence[Run], rows: Sequence[str], column: str | None) -> None:
    """Draws methods side by side, grouped by the column's key, else by what the rows tell apart beside the method."""
    keys = [column] if column else [k for k in rows if k != "method" and len(values_of(runs, k)) > 1]
    keys = keys or ["normal_class"]
    points = []
    for values, group in grouped(runs, keys):
        name = values[0] if len(keys) == 1 else ", ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True))
        points += [(method, name, run.metrics[AUROC]) for (method,), part in grouped(group, ["method"]) for run in part]
    comparison_plot(path, points, " and ".join(key.replace("_", " ") for key in keys))


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        raise InputError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 2 for bad input."""
    parser = Parser(prog="python -m elite_pl.report", description=(__doc__ or "").split(": ", 1)[1].capitalize())
    parser.add_argument(
        "study", nargs="+", type=Path, help="OUTPUT_DIR/STUDY, or a file of cells; several are put together"
    )
    parser.add_argument(
        "--rows",
        default=",".join((*SETTING, "method")),
        metavar="KEYS",
        help="keys of metrics.json or config.yaml, with commas, that make the rows (default: %(default)s)",
    )
    parser.add_argument("--columns", metavar="KEY", help="a key whose values become columns, such as normal_class")
    parser.add_argument(
        "--against", default="elite_svdd", metavar="METHOD", help="compare the others with it (default: %(default)s)"
    )
    parser.add_argument("--cells", type=Path, metavar="FILE", help="keep the runs in a file, to be read as a study")
    try:
        options = parser.parse_args(arguments)
        runs = without_copies(run for directory in options.study for run in read_study(directory))
        rows = options.rows.split(",")
        for key in [*rows, *filter(None, [options.columns])]:
            if key not in SETTING and all(run[key] is None for run in runs):
                raise InputError(f"{key}: no run has such a key; see metrics.json and config.yaml of one")
        header, body, caption = table(runs, rows, options.columns, options.against)
        text = f"{markdown(header, body)}\n\n{caption}\n"
        if options.cells:
            write_cells(options.cells, runs)
        first = options.cells or options.study[0]
        place = first if first.is_dir() else first.parent
        with atomic_write(place / "table.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        picture(place / "comparison.png", runs, rows, options.columns)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{text}\ntable    {place / 'table.md'}\npicture  {place / 'comparison.png'}\nruns     {place}")


if __name__ == "__main__":
    main()
