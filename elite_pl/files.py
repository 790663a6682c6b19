"""Files that are whole or not there: written beside their place, then moved into it; and foreign ones read safely."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet takes for the beginning of one
MOST = 16 * 2**20  # bytes of a file, or of a line, that is read as text; what we write is far smaller


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends well and vanishes when it does not.

    A reader sees the old file or the new one, and an interrupted run (an exception, Ctrl-C) leaves no part of a file.

    Args:
        path: The file to write. Its directory must be there.

    Yields:
        A path in the same directory (a move across file systems is not atomic) with the same suffix (`numpy.savez` and
        Matplotlib go by it), at which nothing is yet.

    Raises:
        OSError: If it cannot be written; names `path`, and the reason even where PyTorch keeps it to itself.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        reason = _refusal(error, temporary)
        temporary.unlink(missing_ok=True)
        if reason is None:
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error


def temporary_beside(path: Path) -> Path:
    """A path in the same directory with the same suffix, at which nothing is; see `remove_temporaries`."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")


def _refusal(error: BaseException, temporary: Path) -> OSError | None:
    """The operating system's reason why a file could not be written; None if something else went wrong."""
    if isinstance(error, OSError):
        return error if error.errno and error.filename in (None, str(temporary)) else None
    if isinstance(error, RuntimeError) and re.search("inline_container|iostream", str(error)):  # PyTorch says no more
        try:
            with open(temporary, "ab") as file:
                file.write(bytes(2**16))
        except OSError as refusal:
            return refusal
    return None


def _plain(value: Any) -> Any:
    """NumPy scalars, arrays and tensors as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a JSON file")


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes JSON atomically, floats with all their digits, keys in their order.

    Raises:
        ValueError: If there is a NaN or an infinity in it, which JSON does not have.
    """
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False, default=_plain)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def csv_text(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV, floats with all their digits.

    Text that a spreadsheet would run as a formula (`=cmd|...`) gets a quote before it.
    Source: https://owasp.org/www-community/attacks/CSV_Injection.

    >>> print(csv_text(["name", "change"], [["=1+1", "-0.5"]]), end="")
    name,change
    '=1+1,-0.5
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(map(without_formula, row) for row in [header, *rows])
    return file.getvalue()


def without_formula(value: object) -> object:
    """A value as `csv_text` writes it."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        with contextlib.suppress(ValueError):
            float(value)
            return value
        return f"'{value}"
    return value


def with_formula(text: str) -> str:
    """A text of `csv_text` without the quote that keeps a spreadsheet from running it."""
    return text[1:] if text.startswith(tuple(f"'{sign}" for sign in _FORMULA)) else text


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads the text of an untrusted file.

    Raises:
        OSError: If it is not there, or may not be read.
        ValueError: If it is something else (a directory, a pipe that would be waited for), not UTF-8, or huge.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_size > MOST:
        raise ValueError(f"it has {found.st_size:,} bytes, and {MOST:,} at most are read")
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def remove_temporaries(directory: Path) -> None:
    """Removes what `atomic_write` left where its process was killed; no other process may write to the directory."""
    for path in directory.glob(".*"):
        if re.search(r"\.\d+\.[0-9a-f]{8}(\.|$)", path.name):
            path.unlink(missing_ok=True)


def discard(directory: Path) -> None:
    """Removes a directory with all in it, and the parents that this leaves empty."""
    shutil.rmtree(directory)
    prune(directory.parent)


def prune(directory: Path) -> None:
    """Removes a directory if it is empty, and the parents that this leaves empty."""
    for place in (directory, *directory.parents):
        try:
            place.rmdir()
        except OSError:  # not empty, or the working directory
            return
