"""The exceptions that the commands turn into one line, and how a message comes onto it."""

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: a key, a value or a file that the user can mend.

    The commands print the message on one line of standard error and exit with code 2, without a traceback. It names the
    key or file, says what is wrong with it and what would be right.
    """


class TrainingError(RuntimeError):
    """Training went wrong in a way that has a likely cause to name; the commands exit with code 1."""


class LabelError(ValueError):
    """There are none of the labels that a method learns from, or too few; the commands say which key gives more."""


class AloneError(RuntimeError):
    """A run that was to be made together with others has to be made by itself; the message says why."""


# Python's words in messages, and how a configuration spells them.
TYPED = {"None": "null", "True": "true", "False": "false", "a callable": "a group of keys with a _target_"}


def as_typed(message: str) -> str:
    """A message about arguments in the words of the configuration."""
    return re.sub(rf"\b({'|'.join(TYPED)})\b", lambda word: TYPED[word[0]], message)


@contextmanager
def input_errors(
    source: str, arguments: Collection[str] = (), kinds: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """Turns a `ValueError` in the block into bad input from a named source, whoever calls the function that raises it.

    Args:
        source: The key or file, such as `dataset.path=a.npz`; it goes before the message.
        arguments: Arguments that have keys of their own under that key: a message that begins with one of these
            names, or a place below it, such as `lr=-1: must be positive`, is about the key `source.lr`, and says it as
            it is typed.
        kinds: Exceptions besides `InputError` that are bad input.

    Raises:
        InputError: Instead of one of them. A `LabelError` passes, for a caller that knows where labels come from.
    """
    try:
        yield
    except (InputError, LabelError):
        raise
    except kinds as error:
        message = str(error)
        if (named := re.match(r"(\w+)(?:\.\w+)*[=:]", message)) and named[1] in arguments:
            raise InputError(f"{source}.{as_typed(message)}") from error
        raise InputError(f"{source}: {message}") from error


def full_disk(error: BaseException) -> bool:
    """Returns whether the disk (or a quota) is full: the input is not wrong then."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def foreseen(error: BaseException) -> bool:
    """Returns whether one line says everything, so that a traceback would not help."""
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
