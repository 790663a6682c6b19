"""Compares a finished run's data set with the one that is here now: its hash does not cover torchvision's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from elite_pl.addresses import PUBLIC, renamed
from elite_pl.data.sources.torchvision_sets import official_files, torchvision_set
from elite_pl.files import parse_json, read_text, write_json
from elite_pl.runs.spec import RunSpec

_State = tuple[tuple[str, int, int], ...]


def of_other_data(spec: RunSpec, metrics: Mapping[str, Any]) -> str:
    """The difference between the data at hand and those of a finished run.

    Args:
        spec: A run with the same hash.
        metrics: Those of the finished run.

    Returns:
        The place of the files with both fingerprints; nothing if they are the same, or it is unknown.

    Raises:
        InputError: If the files at hand are damaged.
    """
    recorded, source = metrics.get("data/fingerprint"), spec.plain["dataset"]["source"]
    if recorded is None or renamed(source, PUBLIC).get("_target_") != "elite_pl.data.torchvision_set":
        return ""
    name, root = source["name"], source["root"]
    files = official_files(name, root)  # nothing is downloaded to find out
    if not files:
        return ""
    state = tuple((path.name, found.st_size, found.st_mtime_ns) for path in files for found in [path.stat()])
    here = _fingerprint(name, root, files[0].parent.absolute(), state, Path(spec.plain["output_dir"]))
    if here == recorded:
        return ""
    return f"the {name} files in {files[0].parent} (fingerprint {here}) are not those that it was made on ({recorded})"


@cache
def _fingerprint(name: str, root: str, place: Path, state: _State, output_dir: Path) -> str:
    """The fingerprint of official files, taken once as long as they are not written to: that needs PyTorch.

    `OUTPUT_DIR/fingerprints.json` keeps it: by the place of files, their names, sizes and times, and the fingerprint.
    """
    path, key = output_dir / "fingerprints.json", os.fspath(place)
    try:
        kept = dict(parse_json(read_text(path)))
    except (OSError, ValueError, TypeError):  # not there, or damaged
        kept = {}
    match kept.get(key):
        case {"files": files, "fingerprint": str(fingerprint)} if files == [list(file) for file in state]:
            return fingerprint
    fingerprint = torchvision_set(name, root).fingerprint
    with contextlib.suppress(OSError):  # what is kept saves time, and nothing else
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, kept | {key: {"files": state, "fingerprint": fingerprint}})
    return fingerprint
