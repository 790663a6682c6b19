"""Runs that other studies or files of cells hold already, and how a study takes them over."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from elite_pl.errors import InputError, one_line
from elite_pl.files import atomic_write, discard
from elite_pl.runs.results import forget_failure, write_metrics
from elite_pl.runs.spec import RunSpec
from elite_pl.studies.read import find_runs, shortened

log = logging.getLogger("elite_pl")
OWN = ("metrics.json", "config.yaml", "failed.json", "last.ckpt")  # files of a run that are not copied


class Finished(NamedTuple):
    """A finished run: what its `metrics.json` holds, and the run directory or file of cells that holds it."""

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
            try:
                runs, left_out = find_runs(path)
            except InputError as error:
                raise InputError(f"reuse={error}") from None
            for line in shortened(left_out, "not reused"):
                log.warning(line)
            for run in runs:
                if isinstance(hash := run.metrics.get("config_hash"), str):
                    found.setdefault(hash, Finished(run.metrics, run.directory))
    return found


def adopt(run: Finished, spec: RunSpec) -> dict[str, Any] | None:
    """Adds a finished run to a study: copies those of its files that exist, and makes up no others.

    Args:
        run: The run, which has the same hash.
        spec: The run as which it is adopted; it differs from the run in bookkeeping at most.

    Returns:
        The content of `metrics.json` then: that of the run, its commit too, and `reused_from`; None if it cannot be
        copied, and nothing is left behind then.
    """
    directory = spec.directory
    fresh = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    metrics = {"reused_from": run.place.as_posix(), **run.metrics}  # what was reused there keeps its origin
    try:
        for path in run.place.iterdir() if run.place.is_dir() else ():
            if path.is_file() and path.name not in OWN and not path.name.startswith("."):
                with atomic_write(directory / path.name) as temporary:
                    shutil.copyfile(path, temporary)
        with atomic_write(directory / "config.yaml") as temporary:
            OmegaConf.save(spec.plain, temporary)
        write_metrics(directory, spec.hash, metrics)
    except (OSError, ValueError) as error:
        log.warning("not reused: %s: %s", run.place, one_line(error))
        if fresh:
            discard(directory)
        return None
    forget_failure(directory)
    return metrics
