"""The sweep of a study: Hydra's combinations of values, of which only the cells that are not finished are launched."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config
from elite_pl.cli import exit_code, one_line
from elite_pl.errors import AloneError, InputError
from elite_pl.files import atomic_write, discard
from elite_pl.options import drop_output
from elite_pl.progress import Estimate, duration
from elite_pl.runs.identity import config_hash
from elite_pl.runs.results import AUROC, finished
from elite_pl.runs.spec import RunSpec
from elite_pl.studies.cells import ELSEWHERE, Outcome, claim, known
from elite_pl.studies.reuse import Finished, finished_elsewhere

log = logging.getLogger("elite_pl")
# Keys in which cells that are trained together may differ.
DIFFERENT = ("seed", "normal_class", "pollution", "label_ratio", "label_noise", "labeled_anomaly_classes", "n_train")

Together = Callable[[Sequence[RunSpec]], Iterator[tuple[RunSpec, Outcome | str]]]


@dataclass
class Cell:
    """One run of a sweep.

    Attributes:
        overrides: The settings of the sweep.
        name: Those that are not the same in all cells.
        directory: Its run directory.
        hash: The hash of its configuration.
        row: Its settings but normal class and seed, over which it is averaged.
        kind: Its settings but those in which cells that are trained together may differ.
        outcome: None as long as it is to be run.
    """

    overrides: list[str]
    name: str
    directory: Path = Path()
    hash: str = ""
    row: str = ""
    kind: str = ""
    outcome: Outcome | None = None


class Sweep(Sweeper):
    """Every combination, like Hydra's basic sweeper, but only the cells that are not finished are launched.

    A cell that another process is at work on is left out at first, and looked at again when the others are done.

    Args:
        max_batch_size: How many cells the launcher gets at a time; None for all.
        params: The sweep of an experiment.
        stack: How many cells are trained as one, where they can be; None for each by itself.
    """

    codes: ClassVar[list[int]]  # of the command that waits for the sweep; Hydra drops what a sweeper returns
    together: ClassVar[Together]

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, Any] | None = None,
        stack: int | None = None,
    ) -> None:
        for key, number, otherwise in (("max_batch_size", max_batch_size, "all"), ("stack", stack, "one by one")):
            if number is not None and number < 1:
                raise InputError(f"hydra.sweeper.{key}={number}: must be at least 1, or null for {otherwise}")
        self.max_batch_size, self.stack, self.params = max_batch_size, stack or 1, params or {}
        self.cells: list[Cell] = []
        self.alone: set[str] = set()  # reasons that were told

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands over."""
        self.loader, self.master = hydra_context.config_loader, config
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.parsed: dict[str, tuple[str, Any]] = {}
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Cell]:
        """Runs the cells, even if some fail, and reports the outcomes at the end.

        Args:
            arguments: The overrides that were typed.
        """
        elsewhere = finished_elsewhere(self.master.reuse)
        swept = [f"{key}={value}" for key, value in self.params.items()]
        combinations = self.combinations([*swept, *arguments])
        if not combinations:
            raise InputError(f"{' '.join([*swept, *arguments])}: a sweep over no values; give each key one at least")
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
        left = [cell for cell in self.cells if cell.outcome is None]
        while left:
            self.pending, self.clock = left, [time.monotonic()]
            if self.stack > 1:
                self.launch_together(left)
            self.launch([cell for cell in left if cell.outcome is None])
            left = [cell for cell in left if self.is_left(cell)]
        self.summarize()
        outcomes = [cell.outcome for cell in self.cells]
        self.codes.extend(1 if o is None else o.code for o in outcomes if o is None or o.state != "elsewhere")
        if place.is_dir() and {path.name for path in place.iterdir()} <= {"multirun.yaml"}:
            discard(place)  # a sweep of which nothing came
        return self.cells

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every cell once, the last key moving fastest; of two for one key the later counts."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra loads its plugins anew at its start

        (found,) = BasicSweeper.split_arguments(self.parser.parse_overrides(arguments), None)
        return [list(overrides) for overrides in dict.fromkeys(map(tuple, found))]

    def cell(self, overrides: list[str], names: set[str], elsewhere: Mapping[str, Finished]) -> Cell:
        """A cell, with its outcome if it is known without running it.

        Args:
            overrides: The settings of the sweep.
            names: The keys that it sets to several values.
            elsewhere: See `finished_elsewhere`.

        Raises:
            HydraException: If there is no such key or option.
        """
        cell = Cell(overrides, " ".join(text for text in overrides if text.split("=")[0] in names))
        cfg = self.compose(overrides)
        try:
            spec = RunSpec.of(cast(config.Config, cfg))
            cell.directory, cell.hash = spec.directory, spec.hash
            cell.row = config_hash(spec.plain | {"normal_class": None, "seed": None})
            if self.stack > 1:
                cell.kind = config_hash(spec.plain | dict.fromkeys(DIFFERENT))
            cell.outcome = known(spec, elsewhere)
        except Exception as error:
            if exit_code(error) != 2:
                raise
            cell.outcome = Outcome("refused", error=one_line(error))
        return cell

    def compose(self, overrides: list[str]) -> DictConfig:
        """The configuration of a cell; what differs in root values alone is composed once, for that takes its time.

        Args:
            overrides: The settings of the sweep.

        Raises:
            HydraException: If there is no such key or option, or a value is of the wrong type.

        Returns:
            The configuration; that of a later cell takes its place.
        """
        root = {f.name for f in fields(config.Config)} - set(config.GROUPS)
        values = {text: text.split("=")[0] for text in overrides if text.split("=")[0] in root}
        rest = [text for text in overrides if text not in values]
        kind = (*rest, *values.values())
        if kind not in self.composed:
            cfg = self.loader.load_sweep_config(self.master, rest)
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            with contextlib.suppress(OmegaConfBaseException):  # which the cell tells
                config.settle(cfg, set(values.values()))
            self.composed[kind] = cfg
        cfg = self.composed[kind]
        try:
            for text in values:
                if text not in self.parsed:
                    (override,) = self.parser.parse_overrides([text])
                    self.parsed[text] = override.key_or_group, override.value()
                OmegaConf.update(cfg, *self.parsed[text])
        except OmegaConfBaseException:
            return self.loader.load_sweep_config(self.master, overrides)  # which says what is wrong
        return cfg

    def launch(self, cells: list[Cell]) -> None:
        """Runs cells with the launcher that was chosen, `max_batch_size` at a time.

        Hydra's basic launcher, which runs them in this process, gets one at a time, so that each is told at once; what
        the workers of the others have finished is looked for from time to time.
        """
        here = self.runs_here
        size = 1 if here else self.max_batch_size or len(cells)
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            over = threading.Event()
            watcher = threading.Thread(target=self.watch, args=(over,), daemon=True)
            if not here:
                watcher.start()
            results: Sequence[JobReturn] = []
            try:
                results = self.launcher.launch([cell.overrides for cell in batch], initial_job_idx=start)
            except Exception as error:  # a worker that was killed, a cluster that is full: the other cells are safe
                log.error("error: %s: %s: %s", type(self.launcher).__name__, type(error).__name__, one_line(error))
                self.codes.append(1)
            finally:
                if not here:
                    over.set()
                    watcher.join()
            if not results:
                self.look()
            for cell, result in zip(batch, results, strict=False):
                returned = result._return_value
                failure = Outcome("failed", str(cell.directory), error=f"{type(returned).__name__}: {returned}")
                self.settle(cell, returned if isinstance(returned, Outcome) else failure)

    @property
    def runs_here(self) -> bool:
        """Whether the launcher runs the cells in this process."""
        return type(self.launcher).__name__ == "BasicLauncher"

    def launch_together(self, cells: list[Cell]) -> None:
        """Runs cells that can be trained together, `stack` at a time; the others keep no outcome.

        Why these are left is told once.
        """
        if not self.runs_here:
            self.tell_alone(f"{type(self.launcher).__name__} runs cells in processes of their own")
            return
        kinds: dict[str, list[Cell]] = {}
        for cell in cells:
            kinds.setdefault(cell.kind, []).append(cell)
        for kind in kinds.values():
            try:
                for start in range(0, len(kind), self.stack):
                    self.launch_stack(kind[start : start + self.stack])
            except AloneError as error:
                self.tell_alone(str(error))

    def launch_stack(self, cells: list[Cell]) -> None:
        """Runs cells as one training, as far as they can be.

        Raises:
            AloneError: If cells of their kind cannot.
        """
        by_hash = {cell.hash: cell for cell in cells}
        specs = [RunSpec.of(cast(config.Config, copy.deepcopy(self.compose(cell.overrides)))) for cell in cells]
        for spec, outcome in Sweep.together(specs):
            if isinstance(outcome, str):
                self.tell_alone(outcome)
            else:
                self.settle(by_hash[spec.hash], outcome)

    def tell_alone(self, reason: str) -> None:
        """Says once why cells are trained one by one."""
        if reason not in self.alone:
            self.alone.add(reason)
            log.info("hydra.sweeper.stack=%d: trained one by one: %s", self.stack, reason)

    def is_left(self, cell: Cell) -> bool:
        """Returns whether another process was at work on a cell, and has gone before it was finished."""
        if cell.outcome is None or cell.outcome.state != "elsewhere":
            return False
        with claim(cell.directory) as ours:
            if ours:
                metrics = finished(cell.directory, cell.hash)
                cell.outcome = None if metrics is None else Outcome("before", str(cell.directory), metrics)
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
            if cell.outcome is None and (metrics := finished(cell.directory, cell.hash)):
                self.settle(cell, Outcome("run", str(cell.directory), metrics))

    def settle(self, cell: Cell, outcome: Outcome) -> None:
        """Records the outcome of a cell, and prints it once."""
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
        """Reports the progress of the study on one line."""
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
        """Reports the outcome of the study, with the reasons for cells that were not run or failed."""
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


def register(codes: list[int], together: Together) -> None:
    """Puts our sweep into the place of Hydra's basic one.

    A plugin with a name of its own would have to lie in a package `hydra_plugins`, where Hydra does not find it in an
    editable install.

    Args:
        codes: Gets the exit codes of the cells.
        together: Makes runs by one training: yields the outcome of each that it has made, and why others have to be
            made by themselves.
    """
    Sweep.codes, Sweep.together = codes, staticmethod(together)
    Plugins.instance().class_name_to_class[config.BASIC] = Sweep


def in_sweep() -> bool:
    """Returns whether the run at hand is a cell of a `Sweep`, led by this process or another."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.sweeper._target_ == config.BASIC


def print_result(outcome: Outcome) -> None:
    """Prints the ROC AUC, if there is one, and the run directory."""
    try:
        if AUROC in outcome.metrics:
            print(f"ROC AUC {outcome.metrics[AUROC]:.4f}")
        if outcome.directory:  # of several processes that make one run, the first has it
            print(outcome.directory, flush=True)
    except BrokenPipeError:  # `| head` reads no more; what is asked for is done all the same
        drop_output()
