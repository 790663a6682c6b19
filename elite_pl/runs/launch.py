"""One run in as many processes as its trainer asks for, on this machine or on several."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from typing import Any

import torch
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import multiprocessing

from elite_pl.cli import INTERRUPTED
from elite_pl.errors import AloneError, InputError, TrainingError, foreseen, one_line
from elite_pl.runs.build import PER_CORE
from elite_pl.runs.results import finished
from elite_pl.runs.run import run
from elite_pl.runs.run_together import run_together
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.startup import keep_freed_memory

PATIENCE = 5  # seconds that the processes of a run get to end by themselves when one of them has failed
trained = False  # whether this process has, and may hold threads that a fork would not get


def launch(spec: RunSpec) -> dict[str, Any] | None:
    """Runs in this process, or starts a process for each of this machine's devices and waits for them.

    Lightning's own launchers do not suit: one executes the command line again, which in a sweep is the whole sweep in
    each process; the other trains in the processes and leaves what callbacks and trackers learned there behind. Here
    each process makes the whole run, as under torchrun and SLURM, whose processes are taken as they are; this process
    holds neither threads nor devices, so the next job of a sweep starts clean.

    Args:
        spec: The run.

    Returns:
        The content of `metrics.json`; None where another process has written it.

    Raises:
        InputError: As `run`.
        TrainingError: As `run`, or if a process dies; the others are then ended.
    """
    global trained
    # Even a single process is started with Ddp: Lightning leaves its rank and its group where it has run.
    if not takes_processes(spec) or started_for():
        trained = True
        keep_freed_memory()
        return run(spec)
    devices = local_devices(spec)
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if (nodes := spec.plain["trainer"].get("num_nodes", 1)) > 1 and lacking:
        raise InputError(
            f"trainer.num_nodes={nodes}: each machine needs {', '.join(lacking)} set: "
            "address and a free port of the first machine, and its own number, from 0"
        )
    # Neither threads nor a GPU's driver, which has been asked for its devices, go along with a fork.
    clean = sys.platform == "linux" and not ((trained and torch.get_num_threads() > 1) or torch.cuda.is_available())
    method = "fork" if clean else "spawn"
    lightning = LightningEnvironment()
    address = {"MASTER_ADDR": lightning.main_address, "MASTER_PORT": str(lightning.main_port)}
    threads = max(1, (os.cpu_count() or 1) // devices)
    errors = get_context(method).SimpleQueue()
    arguments = (spec, address, threads, errors)
    started = multiprocessing.start_processes(_process, arguments, devices, join=False, start_method=method)
    assert started is not None
    at_sigterm = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)) if in_main_thread() else None
    try:
        while not started.join(grace_period=PATIENCE):
            pass
    except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException):
        raise _cause([process.exitcode for process in started.processes], errors) from None
    except KeyboardInterrupt:
        sys.exit(1)  # as Lightning does
    finally:
        if at_sigterm is not None:
            signal.signal(signal.SIGTERM, at_sigterm)
        for process in started.processes:
            if process.is_alive():  # this process was interrupted
                process.kill()
                process.join()
    if lightning.node_rank() > 0:
        return None
    metrics = finished(spec.directory, spec.hash)
    if metrics is None:
        raise InterruptionError(INTERRUPTED)
    return metrics


def launch_together(specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, dict[str, Any] | Exception]]:
    """Makes runs by one training in this process; see `run_together`."""
    global trained
    if takes_processes(specs[0]) or started_for():
        raise AloneError("several processes make each run")
    trained = True
    keep_freed_memory()
    yield from run_together(specs)


def started_for() -> bool:
    """Returns whether torchrun, SLURM or a person has started this process as one of those that make a run."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect() or "LOCAL_RANK" in os.environ


def takes_processes(spec: RunSpec) -> bool:
    """Returns whether a run is made by processes of its own, and not by this one.

    Raises:
        InputError: If it has several devices, and no strategy that knows what to do with them.
    """
    trainer = spec.plain["trainer"]
    strategy, nodes = trainer.get("strategy"), trainer.get("num_nodes", 1)
    if not isinstance(nodes, int) or nodes < 1:
        raise InputError(f"trainer.num_nodes={nodes}: must be a number of machines, at least 1")
    if isinstance(strategy, dict) and strategy.get("_target_") == "elite_pl.runs.Ddp":
        return True
    if (devices := local_devices(spec)) * nodes > 1:
        raise InputError(f"trainer.devices={devices}: several processes need trainer=ddp, and no strategy")
    return False


def local_devices(spec: RunSpec) -> int:
    """Returns the number of devices of this machine that a run takes, counted as Lightning would.

    Raises:
        InputError: If there are not so many, or it cannot be said.
    """
    trainer = spec.plain["trainer"]
    kind, asked = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    if kind in ("auto", "gpu") and CUDAAccelerator.is_available():
        kind = "cuda"
    accelerator: type[CUDAAccelerator] | type[CPUAccelerator] = CUDAAccelerator if kind == "cuda" else CPUAccelerator
    if asked == "auto":
        return accelerator.auto_device_count()
    try:
        parsed = accelerator.parse_devices(asked)
    except (TypeError, MisconfigurationException) as error:
        raise InputError(f"trainer.devices={asked}: {one_line(error)}") from error
    count = parsed if isinstance(parsed, int) else len(parsed or [])
    most = accelerator.auto_device_count() if kind == "cuda" else PER_CORE * (os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise InputError(f"trainer.devices={asked}: must be from 1 to {most} on this machine")
    return count


class InterruptionError(TrainingError):
    """A process was sent SIGTERM: by a person or a scheduler, or because another one had failed."""


def in_main_thread() -> bool:
    """Returns whether this thread may install signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _process(local_rank: int, spec: RunSpec, address: dict[str, str], threads: int, errors: Any) -> None:
    """The run of one process; what goes wrong is told to the process that waits."""
    # PyTorch asks for SIGINT when the waiting process dies, which a command in the background ignores.
    multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    os.environ |= {**address, "LOCAL_RANK": str(local_rank)}

    def end(*_: Any) -> None:
        errors.put(InterruptionError(INTERRUPTED))
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    if "OMP_NUM_THREADS" not in os.environ:  # Lightning would set its own number, whatever the configuration says
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        run(spec)
    except Exception as error:
        told = error
        if not foreseen(error):
            told = RuntimeError(f"process {local_rank}: {type(error).__name__}: {error}")
            told.add_note(traceback.format_exc()[-20000:])
        errors.put(told)
        sys.exit(1)


def _cause(codes: list[int | None], errors: Any) -> Exception:
    """Returns the first error; the other processes fail later only because they have lost one."""
    first = None if errors.empty() else errors.get()
    if first is not None and foreseen(first) and not isinstance(first, InterruptionError):
        return first
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            how = signal.Signals(-code).name
            return TrainingError(
                f"process {number} of {len(codes)} died ({how}); the same command resumes from the last epoch"
            )
    return first or TrainingError(f"the processes ended with the codes {codes}")


class Ddp(DDPStrategy):
    """Lightning's DDP strategy, less its wrapper: `Detector.descend` averages the gradients itself.

    PyTorch's wrapper would overwrite the running statistics of all processes by the first one's, wants to be told of
    parameters that a loss leaves out, and gains nothing on networks of this size.
    """

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""
