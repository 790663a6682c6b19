"""The command `python -m elite_pl.train`. Light, so that `--help` answers at once; the work is in `run.py`."""

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config, records, reuse, sweep
from elite_pl.errors import InputError, TrainingError
from elite_pl.sweep import Outcome, codes, one_line

log = logging.getLogger("elite_pl")


@hydra.main(version_base="1.3", config_path="pkg://elite_pl.conf", config_name="train")
def job(cfg: config.Config) -> Outcome:
    """One run; a sweep goes on after one that fails."""
    in_sweep = sweep.in_sweep()
    for name in ("run", "progress"):  # in a sweep one line a run
        logging.getLogger(f"elite_pl.{name}").setLevel(logging.WARNING if in_sweep else logging.NOTSET)
    outcome = attempt(cfg)
    if not in_sweep and outcome.state == "before":
        log.info("done before: nothing to run")
    if not in_sweep and outcome.error:
        say(outcome.error)
    sweep.settle(outcome)
    return outcome


def attempt(cfg: config.Config) -> Outcome:
    """Runs what is not finished and what no other process is at work on."""
    try:
        config.check(cfg)
        plain = config.plain(cfg)
        directory, hash = records.run_directory(plain), records.config_hash(plain)
        elsewhere = {} if sweep.in_sweep() else reuse.finished_elsewhere(cfg.reuse)
        if (outcome := sweep.known(plain, directory, hash, elsewhere)) is not None:
            return outcome
        records.check_writable(directory)
        if not sweep.first_process():
            return run_here(cfg, directory, hash, plain)
        with sweep.claim(directory) as ours:
            if not ours:
                return Outcome("elsewhere", str(directory), error=f"{directory} {sweep.ELSEWHERE}")
            if (metrics := records.finished(directory, hash)) is not None:  # by another process, just now
                return Outcome("before", str(directory), metrics)
            return run_here(cfg, directory, hash, plain)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        return Outcome("refused", error=one_line(error))


def run_here(cfg: config.Config, directory: Path, hash: str, plain: dict[str, Any]) -> Outcome:
    """Runs one cell; if it fails, its directory says why until it succeeds.

    Raises:
        InputError: If the input is bad; a failure of it is not kept, because mended it is another run.
    """
    silence_advice()
    from elite_pl.launch import launch  # imports torch and Lightning

    try:
        metrics = launch(cfg, directory, hash)
    except (InputError, HydraException, OmegaConfBaseException):
        raise
    except SystemExit as exit:  # Lightning's at SIGTERM has no code, which would pass for success
        log.info("interrupted: the same command goes on from the last epoch")
        raise SystemExit(exit.code or 128 + signal.SIGTERM) from None
    except TrainingError as error:
        reason = one_line(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {one_line(error)}"
    else:
        if metrics is None:  # another process of the run says it
            return Outcome("run")
        records.forget_failure(directory)
        return Outcome("run", str(directory), metrics)
    with contextlib.suppress(OSError):  # a full disk may be what is wrong
        records.write_failure(directory, hash, plain, reason)
    return Outcome("failed", str(directory), error=reason)


def say(error: str) -> None:
    """Prints an error on standard error."""
    print(f"error: {error}", file=sys.stderr)


def silence_advice() -> None:
    """Hides what libraries advise or deprecate inside themselves: nothing that a user could mend."""
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch\.jit|torch\.utils\._pytree")


def main() -> None:
    """Runs the command line, and exits with 0 for success, 2 for bad input, 1 for a failure while running."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors reach us instead of a page of advice
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [logging.StreamHandler()], False
    config.register()
    sweep.register()
    try:
        job()
    except (HydraException, OmegaConfBaseException, InputError, OSError) as error:
        say(one_line(error))
        sys.exit(2)
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # Hydra's own, of no class of its own
            raise
        groups = (*config.GROUPS, "experiment")
        typed = [argument for argument in sys.argv[1:] if argument.split("=")[0] in groups]
        say(f"{' '.join(typed)}: a group takes the name of one of its options, which --help lists")
        sys.exit(2)
    except KeyboardInterrupt:
        log.info("interrupted: the same command goes on from the last epoch")
        sys.exit(128 + signal.SIGINT)
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
