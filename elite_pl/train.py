"""The command `python -m elite_pl.train`. Light, so that `--help` answers at once; the work is in `run.py`."""

import logging
import math
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config, tracking
from elite_pl.errors import InputError, JobError, TrainingError
from elite_pl.files import discard

log = logging.getLogger("elite_pl")
codes: list[int] = []  # exit codes of the jobs that this process ran


@hydra.main(version_base="1.3", config_path="pkg://elite_pl.conf", config_name="train")
def job(cfg: config.Config) -> None:
    """One run; a sweep goes on after one that fails."""
    sweep = Path(HydraConfig.get().sweep.dir)
    try:
        config.check(cfg)
        place = place_in_sweep()
        logging.getLogger("elite_pl.run").setLevel(logging.WARNING if place else logging.NOTSET)  # one line a run
        plain = config.plain(cfg)
        directory, hash = tracking.run_directory(plain), tracking.config_hash(plain)
        metrics = tracking.finished(directory, hash)
        if metrics is None:
            tracking.check_writable(directory)
            silence_advice()
            from elite_pl.run import run  # imports torch and Lightning

            metrics = run(cfg, directory, hash)
        else:
            log.info("done before: nothing to run")
        if "test/auroc" in metrics:
            auroc = f"ROC AUC {metrics['test/auroc']:.4f}"
            print(auroc)
            if place:
                what = f"{cfg.method.name}, normal class {cfg.normal_class}, seed {cfg.seed}"
                log.info("%s  %s: %s", place, what, auroc)
        print(directory)
        codes.append(0)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        say(error)
        codes.append(2)
    except TrainingError as error:
        say(error)
        codes.append(1)
    except Exception:
        traceback.print_exc()
        codes.append(1)
    except SystemExit as exit:  # Lightning's at SIGTERM has no code, which would pass for success
        log.info("interrupted: the same command goes on from the last epoch")
        raise SystemExit(exit.code or 128 + signal.SIGTERM) from None
    finally:
        if HydraConfig.get().mode == RunMode.MULTIRUN and {p.name for p in sweep.iterdir()} <= {"multirun.yaml"}:
            discard(sweep)  # Hydra's record of a sweep of which nothing came
    if codes[-1] and multiprocessing.parent_process() is not None:
        raise JobError(codes[-1])


def place_in_sweep() -> str:
    """`k of n`, or nothing outside of a sweep; `run k` in a worker of a parallel launcher, which knows no more."""
    current = HydraConfig.get()
    if current.mode != RunMode.MULTIRUN:
        return ""
    if multiprocessing.parent_process() is not None:
        return f"run {current.job.num + 1}"
    typed = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith(("-", "hydra"))]
    swept = [f"{key}={value}" for key, value in (current.sweeper.params or {}).items()] + typed
    overrides = {override.get_key_element(): override for override in OverridesParser.create().parse_overrides(swept)}
    jobs = math.prod(len(list(o.sweep_string_iterator())) for o in overrides.values() if o.is_sweep_override())
    return f"{current.job.num + 1:{len(str(jobs))}} of {jobs}"


def say(error: Exception) -> None:
    """Prints an error on one line of standard error."""
    text = str(error) if isinstance(error, InputError | TrainingError) else config.explain(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


def silence_advice() -> None:
    """Hides what libraries advise or deprecate inside themselves: nothing that a user could mend."""
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch\.jit|torch\.utils\._pytree")


def main() -> None:
    """Runs the command line, and exits with 0 for success, 2 for bad input, 1 for a failure while running."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors reach us instead of a page of advice
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [logging.StreamHandler()], False
    config.register()
    try:
        job()
    except (HydraException, OmegaConfBaseException, InputError, OSError) as error:
        say(error)
        sys.exit(2)
    except JobError as failed:
        sys.exit(failed.args[0])
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
