"""The cells of a study: the outcome of each, which are finished already, and which process runs the others."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from elite_pl.errors import InputError
from elite_pl.files import prune, remove_temporaries
from elite_pl.runs.results import check_writable, finished
from elite_pl.runs.spec import RunSpec
from elite_pl.studies.data_at_hand import of_other_data
from elite_pl.studies.reuse import Finished, adopt

log = logging.getLogger("elite_pl")
ELSEWHERE = "is being run by another process"


@dataclass
class Outcome:
    """The outcome of a cell.

    Attributes:
        state: `run`, `before` (finished by an earlier command), `reused`, `failed`, `refused` (bad input) or
            `elsewhere` (another process has it).
        directory: Its run directory, empty where its configuration has none.
        metrics: The content of its `metrics.json`, if it is finished.
        error: One line on what went wrong.
    """

    state: str
    directory: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def code(self) -> int:
        """The exit code of a command that runs this cell alone."""
        return {"failed": 1, "elsewhere": 1, "refused": 2}.get(self.state, 0)


def first_process() -> bool:
    """Returns whether this is the first or only process of a run: torchrun and SLURM start one for each device.

    Raises:
        InputError: If the environment numbers the processes otherwise than they do.
    """
    ranks = {key: os.environ.get(key, "0") for key in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")}
    for key, rank in ranks.items():
        if not rank.isdecimal():
            raise InputError(f"{key}={rank}: must be the number of a process, as torchrun and SLURM set it; unset it")
    return not any(map(int, ranks.values()))


@contextmanager
def claim(directory: Path) -> Iterator[bool]:
    """Keeps a run directory to this process, on one machine or on several that share the file system.

    The lock is the operating system's: it goes with its process, however that ends.

    Args:
        directory: The run directory, which need not be there.

    Yields:
        Whether it is ours; if not, another process is at work on it.
    """
    path = directory.with_name(f".{directory.name}.lock")
    lock = FileLock(path, timeout=0.2, fallback_to_soft=False)
    try:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                break
            except FileNotFoundError:  # another process has just removed the folder, which was empty
                os.getcwd()  # fails where somebody has removed the working directory, too
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        log.warning("%s: its file system has no locks; start only one process on a study there", path.parent)
    try:
        remove_temporaries(directory)
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is ours; who waits for it sees that it is gone, and makes a new one
        lock.release()
        prune(path.parent)


def known(spec: RunSpec, elsewhere: Mapping[str, Finished]) -> Outcome | None:
    """The outcome of a cell that need not be run: it is finished here, or elsewhere and then adopted.

    One that is finished here, but on other data than there are now, is refused.

    Args:
        spec: The run.
        elsewhere: See `finished_elsewhere`.
    """
    if (metrics := finished(spec.directory, spec.hash)) is not None:
        if differ := of_other_data(spec, metrics):
            error = f"{spec.directory}: {differ}; give another study, or remove this run"
            return Outcome("refused", str(spec.directory), error=error)
        return Outcome("before", str(spec.directory), metrics)
    if (run := elsewhere.get(spec.hash)) is None:
        return None
    if differ := of_other_data(spec, run.metrics):
        log.warning("%s is not reused: %s", run.place, differ)
        return None
    if not first_process():  # which adopts it
        return Outcome("reused", str(spec.directory), run.metrics)
    check_writable(spec.directory)
    with claim(spec.directory) as ours:
        if not ours:
            return None
        if (metrics := finished(spec.directory, spec.hash)) is not None:
            return Outcome("before", str(spec.directory), metrics)
        metrics = adopt(run, spec)
        return None if metrics is None else Outcome("reused", str(spec.directory), metrics)
