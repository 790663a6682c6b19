"""Tables that are larger than the memory, read some rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elite_pl.data.sources.table import (
    MISSING,
    NOT_UTF8,
    check_lines,
    cleaned,
    csv_header,
    first_line,
    parquet_errors,
    table_file,
)

if TYPE_CHECKING:
    import polars as pl

BLOCK = 2**24  # bytes of a CSV file that are read at a time
LONGEST = 2**27  # bytes of a line; after so many an open quotation mark is taken for a mark like any other
ROWS = 2**16  # of a Parquet file


class TableParts(ABC):
    """A table whose rows are read in parts.

    Attributes:
        columns: The names of its columns.
    """

    columns: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows, which of a CSV file takes a look at all of it."""

    def parts(self, rows: range | None = None) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
        """Yields parts in their order, as `table.read_table` has the whole: without rows in which there is no value.

        Args:
            rows: The first of the rows that are read, and the one after the last; None for all.

        Yields:
            The numbers of the part's rows in the file, from 0, shape (n,), and the part.

        Raises:
            ValueError: If the file is damaged.
        """
        import polars as pl

        for first, part in self._pieces(rows):
            part = cleaned(part)
            there = ~part.select(pl.all_horizontal(pl.all().is_null())).to_series()
            yield first + there.arg_true().to_numpy(), part.filter(there)

    @abstractmethod
    def _pieces(self, rows: range | None) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yields parts as they are in the file, each with the number of its first row."""


def open_table(path: str, kinds: Mapping[str, str]) -> TableParts:
    """Opens a CSV or Parquet file.

    Args:
        path: As it was typed.
        kinds: The kind of each column, see `Encoding.kinds`.

    Raises:
        ValueError: If it is not there, or has no first line with names.
    """
    file, is_parquet = table_file(path)
    return _Parquet(file) if is_parquet else _Csv(file, kinds)


class _Parquet(TableParts):
    def __init__(self, path: Path) -> None:
        import polars as pl

        with parquet_errors():
            self.frame = pl.scan_parquet(path, glob=False)
            self.columns = self.frame.collect_schema().names()

    def __len__(self) -> int:
        import polars as pl

        with parquet_errors():
            return self.frame.select(pl.len()).collect().item()

    def _pieces(self, rows: range | None) -> Iterator[tuple[int, pl.DataFrame]]:
        rows = range(len(self)) if rows is None else rows
        for start in rows[::ROWS]:
            with parquet_errors():
                part = self.frame.slice(start, min(ROWS, rows.stop - start)).collect()
            yield start, part


class _Csv(TableParts):
    def __init__(self, path: Path, kinds: Mapping[str, str]) -> None:
        self.path, self.kinds = path, kinds
        self.separator, self.columns = csv_header(path)

    def __len__(self) -> int:
        return sum(self._height(block) for block in self._blocks())

    def _pieces(self, rows: range | None) -> Iterator[tuple[int, pl.DataFrame]]:
        start, lines = 0, 1
        for block in self._blocks():
            if rows is None:
                part, first = self._parsed(block, lines), start
                start += part.height
            else:
                first, before = max(start, rows.start), start
                start += self._height(block)
                if first >= min(start, rows.stop):
                    if before >= rows.stop:
                        return
                    lines += block.count(b"\n")
                    continue
                part = self._parsed(block, lines)[first - before : rows.stop - before]
            lines += block.count(b"\n")
            yield first, part

    def _blocks(self) -> Iterator[bytes]:
        """Yields whole lines: a line does not end within quotation marks."""
        with open(self.path, "rb") as file:
            file.readline()
            rest = b""
            while piece := file.read(BLOCK):
                rest += piece
                end = rest.rfind(b"\n") + 1
                while rest.count(b'"', 0, end) % 2 and len(rest) < LONGEST:
                    end = rest.rfind(b"\n", 0, rest.rfind(b'"', 0, end)) + 1
                if end:
                    yield rest[:end]
                rest = rest[end:]
            if rest:
                yield rest

    def _height(self, block: bytes) -> int:
        """Counts the rows of a block."""
        import polars as pl

        try:
            return self._read(block, set(), columns=[0]).height
        except pl.exceptions.PolarsError as error:
            raise self._told(error, block) from None

    def _parsed(self, block: bytes, lines: int) -> pl.DataFrame:
        """The rows of a block that comes after so many lines."""
        import polars as pl

        numbers = {name for name, kind in self.kinds.items() if kind == "numbers"}
        try:
            try:
                part = self._read(block, numbers)  # twice as fast as to read text that becomes numbers
            except pl.exceptions.PolarsError:
                part = self._read(block, set())
        except pl.exceptions.PolarsError as error:
            raise self._told(error, block, lines) from None
        if part[:, -1].has_nulls() and block.count(self.separator.encode()) != part.height * (part.width - 1):
            self._check_lines(block, lines)  # it may have too short a line
        return part

    def _told(self, error: Exception, block: bytes, lines: int = 0) -> ValueError:
        """Makes an error that says why polars cannot read a block."""
        if "utf-8" in str(error):
            return ValueError(NOT_UTF8)
        self._check_lines(block, lines)
        return ValueError(f"is no CSV file ({first_line(error)})")

    def _check_lines(self, block: bytes, lines: int) -> None:
        check_lines(block.decode().splitlines(keepends=True), self.separator, len(self.columns), lines)

    def _read(self, block: bytes, numbers: set[str], columns: list[int] | None = None) -> pl.DataFrame:
        import polars as pl

        return pl.read_csv(
            block,
            has_header=False,
            separator=self.separator,
            schema={name: pl.Float64 if name in numbers else pl.String for name in self.columns},
            columns=columns,
            null_values=list(MISSING) if numbers else None,
        )
