"""Output of scores: CSV or Parquet, written chunk by chunk."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from elite_pl.data.sources.table import import_polars
from elite_pl.errors import InputError
from elite_pl.files import atomic_write, csv_text, without_formula

Write = Callable[[Mapping[str, Any]], None]  # adds rows: arrays and lists of one length, by the names of the columns


def check_output(path: str | None, *inputs: str) -> None:
    """Refuses a path that scores cannot be written to, before anything is scored.

    Args:
        path: As it was typed; None for standard output.
        inputs: Files that are read, and must stay.

    Raises:
        InputError: Says what would be right.
    """
    if path is None:
        return
    place = Path(path)
    if place.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"--output {path}: is neither .csv nor .parquet by its name")
    if place.suffix.lower() == ".parquet":
        import_polars(f"--output {path}")
    if place.is_dir() or not place.parent.is_dir():
        what = "is a folder" if place.is_dir() else f"there is no folder {place.parent}"
        raise InputError(f"--output {path}: {what}; expected the path of a file in a folder that is there")
    if place.exists() and any(Path(one).exists() and place.samefile(one) for one in inputs):
        raise InputError(f"--output {path}: is read, too; expected another file")


@contextmanager
def output(path: str | None, columns: Mapping[str, type]) -> Iterator[Write]:
    """Opens a table for writing, which is complete or absent after the block.

    Args:
        path: A CSV or Parquet file; None for standard output, as CSV.
        columns: The names of the columns, with the type of their values: `int`, `float` or `str`.

    Yields:
        A function that appends rows.
    """
    if path is None:
        yield _csv(sys.stdout.buffer, columns)
        sys.stdout.buffer.flush()
        return
    with atomic_write(path) as temporary:
        if Path(path).suffix.lower() == ".csv":
            with open(temporary, "wb") as file:
                yield _csv(file, columns)
            return
        rows = temporary.with_suffix(".csv")  # Parquet cannot be added to
        try:
            with open(rows, "wb") as file:
                yield _csv(file, columns, for_people=False)
            _to_parquet(rows, temporary, columns)
        finally:
            rows.unlink(missing_ok=True)


def _csv(file: IO[bytes], columns: Mapping[str, type], for_people: bool = True) -> Write:
    """Returns a function that adds rows to a CSV file; `for_people` escapes spreadsheet formulas."""
    file.write(csv_text(columns, []).encode())
    polars = importlib.util.find_spec("polars") is not None

    def write(rows: Mapping[str, Any]) -> None:
        if not polars:
            first, *others = zip(*(_plain(values) for values in rows.values()), strict=True)
            file.write(csv_text(first, others).encode())
            return
        import polars as pl

        safe = {name: _safe(values) if for_people else values for name, values in rows.items()}
        pl.DataFrame(safe).write_csv(file, include_header=False)

    return write


def _plain(values: Any) -> Sequence[Any]:
    return values.tolist() if hasattr(values, "tolist") else values


def _safe(values: Any) -> Any:
    return [without_formula(value) for value in values] if isinstance(values, list) else values


def _to_parquet(rows: Path, target: Path, columns: Mapping[str, type]) -> None:
    import polars as pl

    types = {int: pl.Int64, float: pl.Float64, str: pl.String}
    schema = {name: types[kind] for name, kind in columns.items()}
    pl.scan_csv(rows, schema=schema).with_columns(pl.col(pl.String).fill_null("")).sink_parquet(target)
