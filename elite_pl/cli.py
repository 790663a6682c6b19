"""What the commands share: one line for whatever is wrong, exit codes, quiet libraries. Light, so that help is fast."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from elite_pl import config, errors
from elite_pl.errors import InputError

log = logging.getLogger("elite_pl")
BAD_INPUT = (InputError, HydraException, OmegaConfBaseException)  # what a user can mend
INTERRUPTED = "interrupted: the same command goes on from the last epoch"


@contextmanager
def exit_codes() -> Iterator[None]:
    """Inside runs a command: it exits with 2 and one line for bad input, as after SIGINT when it is interrupted."""
    try:
        yield
    except (*BAD_INPUT, OSError) as error:
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
        log.info(INTERRUPTED)
        sys.exit(128 + signal.SIGINT)


def say(error: str) -> None:
    """Prints an error on standard error."""
    print(f"error: {error}", file=sys.stderr)


def log_to_stderr() -> None:
    """Lets our own progress be read, and nothing else; Hydra's errors reach us instead of a page of advice."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [logging.StreamHandler()], False


def quiet_runs(quiet: bool) -> None:
    """Whether what single runs tell is left out, as in a sweep, which has one line a run."""
    for name in ("runs.run", "progress"):
        logging.getLogger(f"elite_pl.{name}").setLevel(logging.WARNING if quiet else logging.NOTSET)


def silence_advice() -> None:
    """Hides what libraries advise or deprecate inside themselves: nothing that a user could mend."""
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch\.jit|torch\.utils\._pytree")


def one_line(error: BaseException) -> str:
    """What went wrong, on one line; of Hydra's and OmegaConf's errors what a user needs of them."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(_explanation(error).split())
    return errors.one_line(error)


def _explanation(error: BaseException) -> str:
    """What is wrong with what was typed, from an error of Hydra or OmegaConf."""
    lines = [line.strip() for line in str(error).splitlines()]
    if lines[0].startswith("Error merging override") and error.__cause__ is not None:
        typed, cause = lines[0].removeprefix("Error merging override "), str(error.__cause__).splitlines()[0]
        return f"{typed}: {cause}"
    if lines[0].startswith("LexerNoViableAltException"):
        key, _, value = lines[0].removeprefix("LexerNoViableAltException: ").partition("=")
        return f"{key}={value}: has characters that need quotes; '{key}=\"{value}\"'"
    unknown = re.match(r"Could not override '([^']+)'", lines[0])
    if unknown and any(line.startswith("To append to your config") for line in lines):
        key = unknown.group(1)
        close = difflib.get_close_matches(key, [f.name for f in fields(config.Config)] + ["experiment"], n=1)
        hint = f"did you mean {close[0]}?" if close else "--help lists the root keys, --cfg job all of them"
        return f"{key}: no such key; {hint}"
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", lines[0]):
        return f"{missing.group(1)}: has no value; give {missing.group(1)}=VALUE"
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    kept = " ".join(line for line in lines if not re.match("full_key|object_type|reference_type", line))
    return re.sub(", set env var HYDRA_FULL_ERROR=1[^.]*", "", kept)
