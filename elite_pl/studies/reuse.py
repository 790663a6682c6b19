"""Runs that other studies or files of cells hold already, and how a study takes them over."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from elite_pl.errors import InputError
from elite_pl.files import atomic_write
from elite_pl.runs.results import forget_failure, write_metrics
from elite_pl.runs.spec import RunSpec
from elite_pl.studies.read import read_cells


class Finished(NamedTuple):
    """A finished run: what its `metrics.json` holds, and the run directory or file of cells that it was found in."""

    metrics: dict[str, Any]
    place: Path


def finished_elsewhere(places: Sequence[str]) -> dict[str, Finished]:
    """The finished runs in studies and files of cells, by their hashes; of two with one hash the first.

    Args:
        places: Directories, in which run directories are looked for at any depth, files that `elite_pl.report --cells`
            wrote, or patterns of such (`benchmarks/results/*/cells.jsonl`).

    Raises:
        InputError: If there is no such place, or a file does not hold cells.
    """
    found: dict[str, Finished] = {}
    for pattern in places:
        paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
        if not paths:
            raise InputError(f"reuse={pattern}: no such file; name a study, OUTPUT_DIR/STUDY, or a file of cells")
        for path in paths:
            for run in _runs_below(path) if path.is_dir() else _cells_in(path):
                if isinstance(hash := run.metrics.get("config_hash"), str):
                    found.setdefault(hash, run)
    return found


def _runs_below(directory: Path) -> Iterator[Finished]:
    for path in sorted(directory.rglob("metrics.json")):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not finished, as in `results.finished`
            continue
        if isinstance(metrics, dict):
            yield Finished(metrics, path.parent)


def _cells_in(path: Path) -> Iterator[Finished]:
    try:
        for run in read_cells(path):
            yield Finished(run.metrics, path)
    except InputError as error:
        raise InputError(f"reuse={error}") from None


def adopt(run: Finished, spec: RunSpec) -> dict[str, Any]:
    """Makes a finished run a part of a study: its files are copied as far as there are any, and nothing is made up.

    Args:
        run: The run, which has the same hash.
        spec: What it is adopted as; it differs from the run in bookkeeping at most.

    Returns:
        What `metrics.json` then holds: that of the run, its commit too, and `reused_from`.
    """
    directory = spec.directory
    directory.mkdir(parents=True, exist_ok=True)
    if run.place.is_dir():
        for path in run.place.iterdir():
            own = path.name in ("metrics.json", "config.yaml", "failed.json", "last.ckpt") or path.name.startswith(".")
            if path.is_file() and not own:
                with atomic_write(directory / path.name) as temporary:
                    shutil.copyfile(path, temporary)
    with atomic_write(directory / "config.yaml") as temporary:
        OmegaConf.save(spec.plain, temporary)
    metrics = {"reused_from": run.place.as_posix(), **run.metrics}  # what was reused there keeps its origin
    write_metrics(directory, spec.hash, metrics)
    forget_failure(directory)
    return metrics
