"""A study's runs, from run directories or a file of cells, and as a data frame. The only module that imports pandas."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from elite_pl.errors import InputError, one_line
from elite_pl.files import MOST, atomic_write, parse_json, read_text
from elite_pl.runs.identity import BEFORE, BOOKKEEPING
from elite_pl.runs.results import AUROC, check_metrics, read_metrics

if TYPE_CHECKING:
    import pandas

SETTING = ("dataset", "pollution", "label_ratio")  # runs that differ here are never averaged unless one asks for it
REPEATS = ("normal_class", "seed")  # these are averaged over
ORIGIN = ("study", "commit")  # where runs of the same config come from; telling these apart keeps the copies of a run
IGNORED = (*BOOKKEEPING, "dataset.source")  # keys that do not make another run, or repeat one that does
# Root keys that older runs do not have, and what they were.
ADDED = {key: value for key, value in BEFORE.items() if "." not in key and not isinstance(value, dict)}
UNSET = "–"  # how a setting is shown that a run does not have
HIDDEN, HIDDEN_SHARE = "data/hidden_anomalies", "data/pollution_unlabeled"
DEEPEST = 50  # levels of a configuration
SHOWN = 10  # lines of what is left out; more are counted

log = logging.getLogger("elite_pl")

# OmegaConf reads the same ten times slower, and what a run keeps is resolved already.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Run:
    """A finished run.

    Attributes:
        directory: Its run directory, or the file of cells that it is kept in.
        metrics: The content of its `metrics.json`.
        study: The name of its study: of its directory, of its file of cells or of the folder that has `cells.jsonl`.
    """

    directory: Path
    metrics: dict[str, Any]
    study: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.yaml` with dotted keys, read only when it is needed, because that takes time."""
        path = self.directory / "config.yaml"
        try:
            return flat(_parse_yaml(read_text(path)))
        except Exception as error:  # YAML's or the file system's
            reason = _reason(error)
            raise InputError(f"{path}: cannot be read ({reason}); remove {self.directory} and repeat the run") from None

    def __getitem__(self, key: str) -> Any:
        """A value of `metrics.json`, else of `config.yaml` (`method.optimizer.lr`), None where neither has it.

        A root key that the run is older than has the value of `ADDED`. Text is on one line, without what a terminal
        would obey.
        """
        if key == "study":
            value = self.study
        elif key in self.metrics:
            value = self.metrics[key]
        else:
            value = self.config.get(key, ADDED.get(key))
        return printable(value) if isinstance(value, str) else value

    @property
    def auroc(self) -> float:
        """The ROC AUC of the test set, in percent."""
        return self.percent(AUROC)

    @property
    def unit(self) -> str:
        """What its seeds share the difficulty of: the data set and its normal class."""
        return f"{self['dataset']}, {self['normal_class']}"

    def percent(self, measure: str) -> float:
        """A measure of the test set in percent.

        Raises:
            InputError: If the run does not have it.
        """
        value = self.metrics.get(measure)
        if not isinstance(value, int | float):
            raise InputError(f"{self.directory}: a run has no {measure}")
        return 100 * float(value)

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that makes it this run and no other, but for what is averaged over.

        A key that is as `BEFORE` is left out: older runs do not have it.
        """
        own = {k: v for k, v in self.config.items() if not k.startswith(IGNORED) and k not in REPEATS}
        return {k: v for k, v in own.items() if k not in BEFORE or v != BEFORE[k]}

    @cached_property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(epoch, value) pairs by column of its `history.csv`, without empty cells; nothing where there is none."""
        found: dict[str, list[tuple[int, float]]] = {}
        path = self.directory / "history.csv"
        if not path.is_file():
            return found
        try:
            for row in csv.DictReader(read_text(path).splitlines()):
                epoch = int(row.pop("epoch"))
                for name, value in row.items():
                    if value:
                        found.setdefault(name, []).append((epoch, float(value)))
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            log.warning("%s: cannot be read (%s), so curves are drawn without it", path, _reason(error))
            return {}
        return found


def _reason(error: Exception) -> str:
    """The reason why a file cannot be read, on one short line."""
    return one_line(error)[:200]


def _parse_yaml(text: str) -> dict[Any, Any]:
    """The keys of a YAML file, without what a run does not write.

    A few lines of aliases can mean gigabytes, and a loader in C that is led too deep ends the process.

    Raises:
        ValueError: If there are no keys, or aliases, or too many levels.
        YAMLError: If it is not YAML.
    """
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or level > DEEPEST:
            raise ValueError(f"it has aliases, or more than {DEEPEST} levels")
    content = yaml.load(text, Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys")
    return content


def printable(text: str) -> str:
    """Returns a text on one line, with unprintable characters as spaces."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def flat(config: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def find_runs(place: Path) -> tuple[list[Run], list[str]]:
    """The finished runs below a directory, in the order of their paths, or in a file of cells.

    Returns:
        The runs, and a line on each one that cannot be read.

    Raises:
        InputError: If there is no such place, or a file holds no cell at all.
    """
    if place.is_file():
        return _read_cells(place)
    if not place.is_dir():
        raise InputError(f"{place}: no such directory; name the study directory of a sweep, OUTPUT_DIR/STUDY")
    runs, left_out = [], []
    for path in sorted(place.rglob("metrics.json")):
        try:
            runs.append(Run(path.parent, read_metrics(path), _study(place, path.parent)))
        except (OSError, ValueError) as error:
            left_out.append(f"{path}: cannot be read ({_reason(error)}); remove it and repeat the run")
    return runs, left_out


def _study(place: Path, run: Path) -> str:
    """The study that a run below `place` belongs to: OUTPUT_DIR holds one folder more than OUTPUT_DIR/STUDY."""
    parts = run.relative_to(place).parts
    return parts[0] if len(parts) == 4 else place.resolve().name


def _read_cells(path: Path) -> tuple[list[Run], list[str]]:
    """The runs that `write_cells` kept; see `find_runs`."""
    study = path.resolve().parent.name if path.stem == "cells" else path.stem
    runs, left_out = [], []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST), ""), 1):
                try:
                    cell = parse_json(line)
                    run = Run(path, check_metrics(cell["metrics"]), study)
                    run.config = dict(cell["config"])
                    runs.append(run)
                except (ValueError, KeyError, TypeError) as error:
                    left_out.append(f"{path}: line {number} holds no cell ({_reason(error)}); write it by --cells")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"{path}: cannot be read as cells ({reason}); write it by --cells") from None
    if left_out and not runs:
        raise InputError(left_out[0])
    return runs, left_out


def read_studies(places: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs of studies that have a test ROC AUC, with their configurations.

    Returns:
        The runs, and a line on each one that cannot be read; see `find_runs`.

    Raises:
        InputError: If a study has none.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    for place in places:
        found, faults = find_runs(place)
        before = len(runs)
        for run in found:
            try:
                if AUROC in run.metrics and run.config is not None:  # reads it
                    runs.append(run)
            except InputError as error:
                faults.append(str(error))
        if len(runs) == before:
            nothing = f"{place}: no finished run with a test set in it (a run's metrics.json holds {AUROC})"
            raise InputError(faults[0] if faults else nothing)
        left_out += faults
    return runs, left_out


def shortened(left_out: Sequence[str], words: str = "left out") -> list[str]:
    """Warnings of what is left out: at most `SHOWN` lines, and how many more there are."""
    more = len(left_out) - SHOWN
    return [f"{words}: {line}" for line in left_out[:SHOWN]] + [f"{words}: {more} more"] * (more > 0)


def write_cells(path: Path, runs: Iterable[Run]) -> None:
    """Keeps runs in one file, a line per run: its metrics, and its config without what does not make another run."""
    lines = []
    for run in runs:
        left_out = (*IGNORED, "dataset.path")  # a place on one machine; the fingerprint tells the data
        config = {key: value for key, value in run.config.items() if not key.startswith(left_out)}
        lines.append(json.dumps({"metrics": run.metrics, "config": config}, default=str, skipkeys=True) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_failures(place: Path) -> list[dict[str, Any]]:
    """Reads the failed cells below a study's directory, less those that a later try has finished.

    Returns:
        The flat objects of `failed.json` (coordinates, `error`, `time`) with `study`, and the config with dotted keys
        where it is there; none for a file of cells.
    """
    if not place.is_dir():
        return []
    paths = [path for path in sorted(place.rglob("failed.json")) if not (path.parent / "metrics.json").exists()]
    found = []
    for path in paths:
        failure: dict[str, Any] = {"study": _study(place, path.parent)}
        try:
            failure = dict(parse_json(read_text(path))) | failure
            failure = Run(path.parent, {}, "").config | failure
        except (OSError, ValueError, TypeError) as error:  # a failure all the same
            failure.setdefault("error", f"{path}: cannot be read ({_reason(error)})")
        found.append(failure)
    return found


def without_copies(runs: Iterable[Run], told_apart: Sequence[str] = ()) -> list[Run]:
    """Each run once, where studies hold runs of the same config, but once for each value of the keys told apart."""
    keys = [key for key in ORIGIN if key in told_apart]
    return list(
        {(run.metrics.get("config_hash", run.directory), *(run[key] for key in keys)): run for run in runs}.values()
    )


def check_cells(runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Refuses to average over runs that differ in more than normal class and seed.

    Args:
        runs: The runs.
        keys: The keys that the table tells apart.

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


def values_of(runs: Iterable[Run], key: str) -> list[Any]:
    """The values of a key: numbers in order, then the others by name; studies and commits as they appear."""
    found = list({str(run[key]): run[key] for run in runs}.values())
    if key in ORIGIN:
        return found

    def order(value: Any) -> tuple[bool, float, str]:
        try:
            return False, float(value), ""
        except (TypeError, ValueError):
            return True, 0.0, str(value)

    return sorted(found, key=order)


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[list[str], list[Run]]]:
    """The runs by the values of keys, in order of those."""
    if not keys:
        return [([], list(runs))]
    found = []
    for value in values_of(runs, keys[0]):
        part = [run for run in runs if str(run[keys[0]]) == str(value)]
        found += [([str(value), *values], group) for values, group in grouped(part, keys[1:])]
    return found


def common_and_different(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, dict[str, Counter[str]]]]:
    """The settings that runs have in common, and those in which they differ.

    Returns:
        The settings with one value in all runs, and for each other one (`UNSET` counts as a value) the number
        of runs by method and value, as text.
    """
    settings = [run.settings for run in runs]
    common: dict[str, Any] = {}
    different: dict[str, dict[str, Counter[str]]] = {}
    for key in sorted({key for setting in settings for key in setting}):
        values = [str(setting.get(key, UNSET)) for setting in settings]
        if len(set(values)) == 1:
            common[key] = settings[0][key]
            continue
        for run, value in zip(runs, values, strict=True):
            different.setdefault(key, {}).setdefault(str(run["method"]), Counter())[value] += 1
    return common, different


def data_frame(*studies: str | Path, keep_copies: bool = False) -> pandas.DataFrame:
    """Studies as one data frame, a row per run.

    Args:
        studies: OUTPUT_DIR/STUDY, or a file of cells, as in `python -m elite_pl.report`.
        keep_copies: Whether a run that several studies hold is a row in each of them, to compare studies or commits.

    Returns:
        The columns: `study`; everything of `metrics.json` (ROC AUC in 0..1, coordinates, counts, versions); then the
        settings in which the runs differ, by their config keys; last `directory`.

    Raises:
        InputError: If a study cannot be read, or pandas is not installed; a single run that cannot is warned of.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise InputError("pandas is not installed; pip install pandas, or elite_pl with the extra `pandas`") from None

    every, left_out = read_studies(map(Path, studies))
    if left_out:
        warnings.warn("\n".join(shortened(left_out)), stacklevel=2)
    runs = without_copies(every, ORIGIN if keep_copies else ())
    settings = [run.settings for run in runs]
    keys = [key for key in sorted({key for setting in settings for key in setting}) if key not in runs[0].metrics]
    differing = [key for key in keys if len({str(setting.get(key)) for setting in settings}) > 1]
    return pandas.DataFrame(
        [
            {"study": run.study, **run.metrics, **{k: setting.get(k) for k in differing}, "directory": run.directory}
            for run, setting in zip(runs, settings, strict=True)
        ]
    )


def counted(values: Iterable[Any], text: Callable[[Any], str] = str) -> str:
    """Values with the number of times each occurs, the most frequent first: `2.15.0 (290), 2.14.0 (10)`."""
    found = Counter(map(text, values)).most_common()
    return found[0][0] if len(found) == 1 else ", ".join(f"{value} ({count})" for value, count in found)
