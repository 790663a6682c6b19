"""One run in as many processes as its trainer asks for, on this machine or on several."""

import os
import signal
import sys
import threading
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import multiprocessing

from elite_pl import records
from elite_pl.config import Config
from elite_pl.errors import InputError, TrainingError
from elite_pl.run import make_trainer, run

PATIENCE = 5  # seconds that the processes of a run get to end by themselves when one of them has failed
INTERRUPTED = "interrupted: the same command goes on from the last epoch"
trained = False  # whether this process has, and may hold threads that a fork would not get


def launch(config: Config, directory: Path, hash: str) -> dict[str, Any] | None:
    """Runs in this process, or starts a process for each of this machine's devices and waits for them.

    Lightning's own launchers do not suit: one executes the command line again, which in a sweep is the whole sweep in
    each process; the other trains in the processes and leaves what callbacks and trackers learned there behind. Here
    each process makes the whole run, as under torchrun and SLURM, whose processes are taken as they are; this process
    holds neither threads nor devices, so the next job of a sweep starts clean.

    Args:
        config: A checked configuration.
        directory: The run directory.
        hash: The hash of the configuration.

    Returns:
        What `metrics.json` holds; None where another process has written it.

    Raises:
        InputError: As `run`.
        TrainingError: As `run`, or if a process dies; the others are then ended.
    """
    global trained
    trainer = make_trainer(config, directory)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and not isinstance(trainer.strategy, Ddp):
        raise InputError(
            f"trainer.devices={config.trainer.devices}: several processes need trainer=ddp, and no strategy"
        )
    # Even a single process is started with Ddp: Lightning leaves its rank and its group where it has run.
    if not isinstance(trainer.strategy, Ddp) or environment is None or environment.creates_processes_externally:
        trained = True
        return run(config, directory, hash)
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if config.trainer.get("num_nodes", 1) > 1 and lacking:
        raise InputError(
            f"trainer.num_nodes={config.trainer.num_nodes}: each machine needs {', '.join(lacking)} set: "
            "address and a free port of the first machine, and its own number, from 0"
        )
    clean = sys.platform == "linux" and not ((trained and torch.get_num_threads() > 1) or torch.cuda.is_initialized())
    method = "fork" if clean else "spawn"
    address = {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    threads = max(1, (os.cpu_count() or 1) // trainer.num_devices)
    errors = get_context(method).SimpleQueue()
    arguments = (config, directory, hash, address, threads, errors)
    started = multiprocessing.start_processes(_process, arguments, trainer.num_devices, join=False, start_method=method)
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
    if environment.node_rank() > 0:
        return None
    found = records.finished(directory, hash)
    if found is None:
        raise InterruptionError(INTERRUPTED)
    return found


class InterruptionError(TrainingError):
    """A process was sent SIGTERM: by a person or a scheduler, or because another one had failed."""


def in_main_thread() -> bool:
    """Whether this thread may say what happens at a signal."""
    return threading.current_thread() is threading.main_thread()


def _process(
    local_rank: int, config: Config, directory: Path, hash: str, address: dict[str, str], threads: int, errors: Any
) -> None:
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
    try:
        run(config, directory, hash)
    except (InputError, TrainingError) as error:
        errors.put(error)
        sys.exit(1)
    except Exception as error:
        told = RuntimeError(f"process {local_rank}: {type(error).__name__}: {error}")
        told.add_note(traceback.format_exc()[-20000:])
        errors.put(told)
        sys.exit(1)


def _cause(codes: list[int | None], errors: Any) -> Exception:
    """What went wrong first: then the other processes fail, too, because they have lost one."""
    first = None if errors.empty() else errors.get()
    if isinstance(first, InputError | TrainingError) and not isinstance(first, InterruptionError):
        return first
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            how = signal.Signals(-code).name
            return TrainingError(
                f"process {number} of {len(codes)} died ({how}); the same command goes on from the last epoch"
            )
    return first or TrainingError(f"the processes ended with the codes {codes}")


class Ddp(DDPStrategy):
    """Lightning's DDP strategy, less its wrapper: `Detector.descend` averages the gradients itself.

    PyTorch's wrapper would overwrite the running statistics of all processes by the first one's, wants to be told of
    parameters that a loss leaves out, and gains nothing on networks of this size.
    """

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""
