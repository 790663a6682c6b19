"""The exceptions that the commands turn into one line, and how a message comes onto it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: a key, a value or a file that the user can mend.

    The commands print the message on one line of standard error and exit with code 2, without a traceback. It names the
    key or file, says what is wrong with it and what would be right.
    """


class TrainingError(RuntimeError):
    """Training went wrong in a way that has a likely cause to name; the commands exit with code 1."""


@contextmanager
def input_errors(source: str) -> Iterator[None]:
    """Inside, a `ValueError` is bad input from a named source; functions need not know who calls them.

    Args:
        source: The key or file, such as `dataset.path=a.npz`; it goes before the message.

    Raises:
        InputError: In the place of a `ValueError`.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error


def full_disk(error: BaseException) -> bool:
    """Whether it is the disk (or what one may use of it) that is full: nothing of what was typed is wrong then."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def foreseen(error: BaseException) -> bool:
    """Whether one line says all that there is to say: where it went wrong is of no interest."""
    named_file = isinstance(error, OSError) and error.filename is not None
    return isinstance(error, InputError | TrainingError) or named_file or full_disk(error)


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, its class where it has none; that of a file names the file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        place = os.fsdecode(error.filename2 or error.filename)
        if full_disk(error):
            return f"{place}: the disk {_mount_point(place)} is full; make room, and the same command goes on"
        return f"{place}: {error.strerror}"
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of `os.getcwd`
        return "the working directory has been removed; go to one that is there"
    return " ".join(str(error).split()) or type(error).__name__


def _mount_point(place: str) -> str:
    """The directory at which the file system of a file is mounted."""
    place = os.path.realpath(place)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place
