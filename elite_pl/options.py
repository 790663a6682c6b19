"""Commands with plain options: what is wrong on one line, and exit codes. Imports nothing, so that they start fast."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from elite_pl.errors import InputError, full_disk, one_line


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, and prints what stands below the options as it is.

    Args:
        command: The module's name in `elite_pl`.
        description: A line on its purpose.
        epilog: Text below the options; None for none.
    """

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        layout = argparse.HelpFormatter if epilog is None else argparse.RawDescriptionHelpFormatter
        super().__init__(f"python -m elite_pl.{command}", None, description, epilog, formatter_class=layout)

    def add_detector(self) -> None:
        """Adds the trained detector that a command takes."""
        self.add_argument("detector", metavar="DETECTOR", help="a detector.pt")
        weights = "of the pretrained network whose features the detector takes"
        self.add_argument("--weights", metavar="FILE", help=weights)

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        raise InputError(f"{message}; see --help")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Runs a command in the block: errors become one line and an exit code; when it is ended, it cleans up."""
    log = logging.getLogger("elite_pl")  # warnings, as they are
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [logging.StreamHandler()], False
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
        sys.stdout.flush()  # else it is too late to say what could not be printed
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `| head` has read enough
        drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1 if full_disk(error) else 2)
    finally:
        signal.signal(signal.SIGTERM, ended)
        log.handlers, log.propagate = before


def drop_output() -> None:
    """Discards further output, because its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
