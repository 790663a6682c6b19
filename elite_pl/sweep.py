"""A study: the cells of a sweep, which of them are finished, who runs them, and how far it has come."""

from __future__ import annotations

import copy
import errno
import itertools
import logging
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config, records, reuse
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, discard, prune, remove_temporaries
from elite_pl.progress import Estimate, duration

log = logging.getLogger("elite_pl")
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
AUROC = "test/auroc"
ELSEWHERE = "is being run by another process"


@dataclass
class Outcome:
    """What became of a cell.

    Attributes:
        state: `run`, `before` (finished by an earlier command), `reused`, `failed`, `refused` (bad input) or
            `elsewhere` (another process has it).
        directory: Its run directory, empty where its configuration has none.
        metrics: What its `metrics.json` holds, if it is finished.
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


# ------------------------------------------------------------------------------------------------ one run, one process


def first_process() -> bool:
    """Whether this is the first process of a run, or its only one: torchrun and SLURM start one for each device."""
    return not any(int(os.environ.get(key, 0)) for key in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


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
                continue
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


# --------------------------------------------------------------------------------------------- what is finished already


def known(
    plain: Mapping[str, Any], directory: Path, hash: str, elsewhere: Mapping[str, reuse.Finished]
) -> Outcome | None:
    """The outcome of a cell that need not be run: it is finished here, or elsewhere and then adopted."""
    if (metrics := records.finished(directory, hash)) is not None:
        return Outcome("before", str(directory), metrics)
    if hash not in elsewhere:
        return None
    if not first_process():  # which adopts it
        return Outcome("reused", str(directory), elsewhere[hash].metrics)
    records.check_writable(directory)
    with claim(directory) as ours:
        if not ours:
            return None
        if (metrics := records.finished(directory, hash)) is not None:
            return Outcome("before", str(directory), metrics)
        return Outcome("reused", str(directory), reuse.adopt(elsewhere[hash], directory, hash, plain))


# ------------------------------------------------------------------------------------------------------------ the sweep


@dataclass
class Cell:
    """One run of a sweep.

    Attributes:
        overrides: What the sweep sets.
        name: Those that are not the same in all cells.
        directory: Its run directory.
        hash: The hash of its configuration.
        row: What it has in common with the cells that it is averaged with: all but normal class and seed.
        outcome: None as long as it is to be run.
    """

    overrides: list[str]
    name: str
    directory: Path = Path()
    hash: str = ""
    row: str = ""
    outcome: Outcome | None = None


current: Sweep | None = None  # the sweep that this process leads
codes: list[int] = []  # exit codes of what this process ran


class Sweep(Sweeper):
    """Every combination, like Hydra's basic sweeper, but only the cells that are not finished are launched.

    A cell that another process is at work on is left out at first, and looked at again when the others are done.

    Args:
        max_batch_size: How many cells the launcher gets at a time; None for all.
        params: What an experiment sweeps.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.cells: list[Cell] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands over."""
        self.loader, self.master = hydra_context.config_loader, config
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Cell]:
        """Runs the cells, whatever becomes of any of them, and says at the end what did.

        Args:
            arguments: The overrides that were typed.
        """
        global current
        elsewhere = reuse.finished_elsewhere(self.master.reuse)
        swept = [f"{key}={value}" for key, value in self.params.items()]
        combinations = self.combinations([*swept, *arguments])
        values: dict[str, set[str]] = {}
        for text in itertools.chain(*combinations):
            values.setdefault(text.split("=")[0], set()).add(text)
        names = {key for key, texts in values.items() if len(texts) > 1}
        looking = Estimate("looking for finished cells", len(combinations))
        for overrides in combinations:
            self.cells.append(self.cell(list(overrides), names, elsewhere))
            looking.step()

        place = Path(self.master.hydra.sweep.dir)
        place.mkdir(parents=True, exist_ok=True)
        with atomic_write(place / "multirun.yaml") as temporary:
            OmegaConf.save(self.master, temporary)
        for cell in self.cells:
            if cell.outcome is not None:
                self.print(cell)
        current = self
        try:
            left = [cell for cell in self.cells if cell.outcome is None]
            while left:
                self.launch(left)
                left = [cell for cell in left if self.is_left(cell)]
        finally:
            current = None
        self.summarize()
        codes.extend(cell.outcome.code for cell in self.cells if cell.outcome and cell.outcome.state != "elsewhere")
        if place.is_dir() and {path.name for path in place.iterdir()} <= {"multirun.yaml"}:
            discard(place)  # a sweep of which nothing came
        return self.cells

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every cell, the last key moving fastest; of two for one key the later counts."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra loads its plugins anew at its start

        (found,) = BasicSweeper.split_arguments(self.parser.parse_overrides(arguments), None)
        return [list(overrides) for overrides in found]

    def cell(self, overrides: list[str], names: set[str], elsewhere: Mapping[str, reuse.Finished]) -> Cell:
        """A cell, with its outcome if it is known without running it.

        Args:
            overrides: What the sweep sets.
            names: The keys that it sets to several values.
            elsewhere: See `reuse.finished_elsewhere`.

        Raises:
            HydraException: If there is no such key or option.
        """
        cell = Cell(overrides, " ".join(text for text in overrides if text.split("=")[0] in names))
        cfg = self.compose(overrides)
        try:
            plain = config.plain(cfg)
            config.check(cast(config.Config, cfg))
        except (InputError, OmegaConfBaseException) as error:
            cell.outcome = Outcome("refused", error=one_line(error))
            return cell
        cell.directory, cell.hash = records.run_directory(plain), records.config_hash(plain)
        cell.row = records.config_hash(plain | {"normal_class": None, "seed": None})
        cell.outcome = known(plain, cell.directory, cell.hash, elsewhere)
        return cell

    def compose(self, overrides: list[str]) -> DictConfig:
        """The configuration of a cell; what differs in root values alone is composed once, for that takes its time.

        Args:
            overrides: What the sweep sets.

        Raises:
            HydraException: If there is no such key or option, or a value is of the wrong type.
        """
        root = {f.name for f in fields(config.Config)} - set(config.GROUPS)
        values = [text for text in overrides if text.split("=")[0] in root]
        rest = tuple(text for text in overrides if text not in values)
        if rest not in self.composed:
            cfg = self.loader.load_sweep_config(self.master, list(rest))
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            self.composed[rest] = cfg
        cfg = copy.deepcopy(self.composed[rest])
        try:
            for override in self.parser.parse_overrides(values):
                OmegaConf.update(cfg, override.key_or_group, override.value())
        except OmegaConfBaseException:
            return self.loader.load_sweep_config(self.master, overrides)  # which says what is wrong
        return cfg

    def launch(self, cells: list[Cell]) -> None:
        """Runs cells with the launcher that was chosen, `max_batch_size` at a time."""
        self.pending, self.clock = cells, [time.monotonic()]
        local = type(self.launcher).__name__ == "BasicLauncher"  # its jobs tell themselves
        size = self.max_batch_size or len(cells)
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            over = threading.Event()
            watcher = threading.Thread(target=self.watch, args=(over,), daemon=True)
            if not local:
                watcher.start()
            results: Sequence[JobReturn] = []
            try:
                results = self.launcher.launch([cell.overrides for cell in batch], initial_job_idx=start)
            except Exception as error:  # a worker that was killed, a cluster that is full: the other cells are safe
                log.error("error: %s: %s: %s", type(self.launcher).__name__, type(error).__name__, one_line(error))
                codes.append(1)
            finally:
                if not local:
                    over.set()
                    watcher.join()
            if not results:
                self.look()
            for cell, result in zip(batch, results, strict=False):
                returned = result._return_value
                failure = Outcome("failed", str(cell.directory), error=f"{type(returned).__name__}: {returned}")
                self.settle(cell, returned if isinstance(returned, Outcome) else failure)

    def is_left(self, cell: Cell) -> bool:
        """Whether another process was at work on a cell, and has gone before it was finished."""
        if cell.outcome is None or cell.outcome.state != "elsewhere":
            return False
        with claim(cell.directory) as ours:
            if ours:
                cell.outcome = known({}, cell.directory, cell.hash, {})
        if cell.outcome is not None and cell.outcome.state == "before":
            self.print(cell)
        return cell.outcome is None

    def watch(self, over: threading.Event) -> None:
        """Looks from time to time which cells the workers have finished, so that progress can be told."""
        while not over.is_set():
            start = time.monotonic()
            self.look()
            over.wait(max(1, 20 * (time.monotonic() - start)))  # a slow file system is asked less often

    def look(self) -> None:
        """Looks which of the cells at hand have been finished."""
        for cell in self.pending:
            if cell.outcome is None and (metrics := records.finished(cell.directory, cell.hash)):
                self.settle(cell, Outcome("run", str(cell.directory), metrics))

    def settle_job(self, number: int, outcome: Outcome) -> None:
        """Takes the outcome of the job of this number, which ran in this process."""
        self.settle(self.pending[number], outcome)

    def settle(self, cell: Cell, outcome: Outcome) -> None:
        """Notes what became of a cell, and prints it unless that was done before."""
        known_before = cell.outcome is not None
        cell.outcome = outcome
        if not known_before:
            self.print(cell)
            self.tell(cell)

    def print(self, cell: Cell) -> None:
        """Prints what a run prints to standard output."""
        if cell.outcome is not None and cell.outcome.code == 0:
            print_result(cell.outcome)

    def tell(self, cell: Cell) -> None:
        """Says on one line how far the study has come."""
        outcome = cell.outcome
        assert outcome is not None
        done = sum(other.outcome is not None for other in self.cells)
        if outcome.state == "elsewhere":
            words = ELSEWHERE
        elif outcome.error:
            words = f"{outcome.state}: {outcome.error}"
        elif AUROC in outcome.metrics:
            row = [
                other.outcome.metrics[AUROC]
                for other in self.cells
                if other.row == cell.row and other.outcome and AUROC in other.outcome.metrics
            ]
            words = f"ROC AUC {outcome.metrics[AUROC]:.4f}"
            words += f", mean {statistics.fmean(row):.4f} (n = {len(row)})" * (len(row) > 1)
        else:
            words = "done"
        if outcome.state in ("run", "failed"):
            self.clock.append(time.monotonic())
        left = sum(other.outcome is None for other in self.cells)
        if len(self.clock) > 1 and left:
            first = min(len(self.clock) - 2, 1)  # better without the first cell, which waits for PyTorch
            pace = (self.clock[-1] - self.clock[first]) / (len(self.clock) - 1 - first)
            words += f"; about {duration(pace * left)} left"
        count = len(self.cells)
        log.info("%s of %d  %s: %s", f"{done:{len(str(count))}}", count, cell.name or cell.directory.name, words)

    def summarize(self) -> None:
        """Says what became of the study, and why where that is not what was asked for."""
        words = {
            "run": "run",
            "before": "done already",
            "reused": "reused",
            "failed": "failed",
            "refused": "refused",
            "elsewhere": "being run by another process",
            "": "not run",
        }
        counts = Counter(cell.outcome.state if cell.outcome else "" for cell in self.cells)
        parts = [f"{counts[state]} {word}" for state, word in words.items() if counts[state]]
        log.info("%d cells: %s", len(self.cells), ", ".join(parts))
        for cell in self.cells:
            if cell.outcome is not None and cell.outcome.state == "elsewhere":
                log.info("%s %s", cell.directory, ELSEWHERE)
            elif cell.outcome is not None and cell.outcome.error:
                where = str(cell.outcome.directory or cell.name)
                error = cell.outcome.error.removeprefix(f"{where}: ")
                log.info("error: %s: %s", where, error)


def register() -> None:
    """Puts our sweep into the place of Hydra's basic one.

    A plugin with a name of its own would have to lie in a package `hydra_plugins`, where Hydra does not find it in an
    editable install.
    """
    Plugins.instance().class_name_to_class[BASIC] = Sweep


def settle(outcome: Outcome) -> None:
    """Hands the outcome of the run at hand to whom it concerns: the sweep that this process leads, or the user.

    A worker of a parallel launcher returns it, and its sweep says the rest.
    """
    hydra = HydraConfig.get()
    if current is not None:
        current.settle_job(hydra.job.num, outcome)
    elif not in_sweep():
        codes.append(outcome.code)
        if outcome.code == 0:
            print_result(outcome)


def in_sweep() -> bool:
    """Whether the run at hand is a cell of a `Sweep`, led by this process or another."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.sweeper._target_ == BASIC


def print_result(outcome: Outcome) -> None:
    """Prints the ROC AUC, if there is one, and the run directory."""
    if AUROC in outcome.metrics:
        print(f"ROC AUC {outcome.metrics[AUROC]:.4f}")
    if outcome.directory:  # of several processes that make one run, the first has it
        print(outcome.directory, flush=True)


def one_line(error: Exception) -> str:
    """What went wrong, on one line."""
    known = isinstance(error, HydraException | OmegaConfBaseException)
    text = config.explain(error) if known else str(error)
    return " ".join(text.split())
