"""The exceptions that the commands turn into one line, and how a message comes onto it."""

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


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
