"""A user's own tables, CSV or Parquet, read by polars."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from elite_pl.annotations import at_least, checked
from elite_pl.data.arrays import Arrays, make_arrays
from elite_pl.data.encoding import Coded, Encoding, Words
from elite_pl.data.sources.user_data import (
    Fraction,
    Labels,
    check_classes,
    check_tested,
    check_unlabeled,
    existing,
    known,
    relabeled,
    some,
)
from elite_pl.data.splits import stratified
from elite_pl.errors import InputError, input_errors

if TYPE_CHECKING:
    import polars as pl

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
SEPARATORS = ",;\t|"
DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z")
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
NOT_UTF8 = "is not UTF-8; save it as UTF-8"
RIGHT = "expected the path of a CSV or Parquet file"


@checked
def table(
    path: str,
    test_path: str | None,
    labels: Labels,
    label_column: str | None,
    id_column: str | None,
    drop_columns: list[str],
    labels_file: str | None,
    max_categories: Annotated[int, at_least(1)],
    test_fraction: Fraction,
) -> Arrays:
    """Loads a table with a row per sample: numbers, words and dates, with gaps.

    See `Encoding` for what becomes of the columns; it is fitted on the training rows, whatever their labels. Labels and
    ids are no features.

    Args:
        path: Of a CSV file (UTF-8, with a line of names; separated by commas, semicolons, tabs or bars) or a Parquet
            file. In CSV what is empty, NA, NaN, null, None or ? is missing.
        test_path: A table of labeled rows to test on, with the same columns; None for none.
        labels: "known": the label column says normal, anomaly or nothing, or 1, -1 and 0. "classes": it holds classes.
        label_column: Its name; None if no row is labeled.
        id_column: The column that names the rows; None for none.
        drop_columns: Columns that are not to be learned from.
        labels_file: A CSV file with columns id (index without an id column) and label that changes labels, see
            `user_data.relabeled`; None for none.
        max_categories: How many words of a column get a feature of their own.
        test_fraction: With labels="classes" and no `test_path`: share of each class that is put aside for the test.

    Returns:
        The arrays, named after the file.

    Raises:
        InputError: If a table is not as described, or polars is not installed.
    """
    if id_column is not None and id_column == label_column:
        raise InputError(f"dataset.id_column={id_column}: holds the labels (dataset.label_column); give another column")
    if labels == "classes" and (label_column is None or labels_file is not None):
        key = "label_column" if label_column is None else "labels_file"
        raise InputError(f"dataset.{key}: dataset.labels=classes takes the classes from dataset.label_column")

    def read(key: str, path: str) -> tuple[pl.DataFrame, np.ndarray, np.ndarray | None]:
        with input_errors(f"dataset.{key}={path}"):
            frame = read_table(path, numbered=id_column is None)
            ids = None if id_column is None else np.array(_distinct(row_ids(frame, id_column), id_column))
            if label_column is None:
                return frame, np.zeros(len(frame), dtype=np.int64), ids
            found = texts(frame, label_column, "label_column")
            label = known if labels == "known" else _classes
            return frame, label(f"column {label_column}", found), ids

    frame, y, ids = read("path", path)
    if labels == "classes":
        with input_errors(f"dataset.path={path}"):
            check_classes(f"column {label_column}", y)
    picked = None
    if labels_file is not None:
        y, picked = relabeled(y, ids, labels_file, "rows")
    if test_path is not None:
        test_frame, y_test, ids_test = read("test_path", test_path)
    elif labels == "classes":
        in_train, in_test = stratified(y, test_fraction)
        if not len(in_test):
            raise InputError(f"dataset.path={path}: every class has one row only; give more, or dataset.test_path")
        test_frame, y_test, ids_test = frame[in_test], y[in_test], None if ids is None else ids[in_test]
        frame, y, ids = frame[in_train], y[in_train], None if ids is None else ids[in_train]
    else:
        test_frame, y_test, ids_test = frame[:0], y[:0], None if ids is None else ids[:0]

    if labels == "known":
        with input_errors(f"dataset.path={path}"):
            check_unlabeled(y, "rows")
        with input_errors(f"dataset.test_path={test_path}"):
            check_tested(y_test, "rows")
    with input_errors(f"dataset.path={path}"):
        if absent := [name for name in drop_columns if name not in frame.columns]:
            raise ValueError(f"has no column {some(absent)} (dataset.drop_columns); it has {some(frame.columns, 20)}")
        no_features = {label_column, id_column, *drop_columns}
        columns = columns_of(frame.select(name for name in frame.columns if name not in no_features))
        encoding = Encoding.fit(columns, max_categories, label_column, id_column)
        x = encoding.transform(columns)
        notes = [f"no feature: column {name}, {reason}" for name, reason in encoding.dropped.items()]
        notes += _doubts(frame, encoding)
    encoding = replace(encoding, dropped={**encoding.dropped, **dict.fromkeys(drop_columns, "dataset.drop_columns")})
    with input_errors(f"dataset.test_path={test_path}"):
        x_test = encoding.transform(columns_of(test_frame, encoding.kinds))
        if unknown := encoding.unknown(test_frame.columns):
            notes.append(f"passed over in dataset.test_path: {some(unknown)}, which the training rows lack")
    if (
        labels == "known"
        and label_column is not None
        and set(np.unique(y)) == {0, 1}
        and not {"0", "0.0"}.isdisjoint(texts(frame, label_column, "label_column"))
    ):
        notes.append(f"column {label_column}: 1 is normal and 0 unlabeled; an anomaly would be -1, and there is none")
    with input_errors(f"dataset.path={path}"):
        arrays = make_arrays(Path(path).stem, x, y, x_test, y_test, labels=labels)
    plain = encoding.to_plain()
    return replace(arrays, ids_train=ids, ids_test=ids_test, picked_train=picked, encoding=plain, notes=tuple(notes))


# ------------------------------------------------------------------------------------------------------------- reading


def read_table(path: str, numbered: bool = False) -> pl.DataFrame:
    """Reads a CSV or Parquet file; of CSV all columns are text.

    Args:
        path: As it was typed.
        numbered: Whether rows are known by their numbers in the file, and so none without a value may lie between them.

    Returns:
        The table, in whose text nothing but null is missing. Rows without any value are left out.

    Raises:
        InputError: If polars is not installed.
        ValueError: If there is no such file, or it is not what its name says.
    """
    import_polars("dataset=table")
    import polars as pl

    file, is_parquet = table_file(path)
    if is_parquet:
        with parquet_errors():
            frame = pl.read_parquet(file, glob=False)
    else:
        frame = _read_csv(file)
    frame = cleaned(frame)
    there = frame.select(~pl.all_horizontal(pl.all().is_null())).to_series().arg_true()
    if there.is_empty():
        raise ValueError("has no row with a value in it; expected one row per sample")
    if numbered and there[-1] >= len(there):
        gap = int(np.argmax(there.to_numpy() != np.arange(len(there))))
        raise ValueError(f"row {gap} (from 0) is empty; delete it, or name the rows by a column: dataset.id_column")
    return frame[there]


def import_polars(what: str) -> None:
    """Makes sure that polars is there.

    Raises:
        InputError: If it is not; says what needs it.
    """
    if importlib.util.find_spec("polars") is None:
        raise InputError(f"{what}: polars is not installed; pip install 'elite_pl[table]'")


def table_file(path: str) -> tuple[Path, bool]:
    """The path of a table, and whether it is a Parquet file and no CSV file.

    Raises:
        ValueError: If it is not there, or its name is that of something else.
    """
    file = existing(path, RIGHT)
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"is neither .csv nor .parquet; {RIGHT}")
    return file, kind in (".parquet", ".pq")


@contextmanager
def parquet_errors() -> Iterator[None]:
    """Turns errors of polars about a file in the block into a `ValueError`."""
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"cannot be read ({first_line(error)}); expected a Parquet file") from error


def cleaned(frame: pl.DataFrame) -> pl.DataFrame:
    """A table in whose text nothing but null is missing, and nothing is blank at the ends."""
    import polars as pl

    text = pl.col(pl.String).str.strip_chars()
    return frame.with_columns(pl.when(text.is_in(MISSING)).then(None).otherwise(text).name.keep())


def _read_csv(path: Path) -> pl.DataFrame:
    """Reads a CSV file as text.

    Raises:
        ValueError: If it is none.
    """
    import polars as pl

    separator, names = csv_header(path)
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema_length=0, glob=False)
        if frame.width == len(names):
            if frame[:, -1].has_nulls():  # as in a line that is too short, too
                _check_file(path, separator, len(names))
            return frame.rename(dict(zip(frame.columns, names, strict=True)))
    except (pl.exceptions.PolarsError, csv.Error) as error:
        if "utf-8" in str(error):
            raise ValueError(NOT_UTF8) from None
        _check_file(path, separator, len(names))
        raise ValueError(f"is no CSV file ({first_line(error)})") from error
    raise ValueError("has other columns than its first line says; write it anew")


def csv_header(path: Path) -> tuple[str, list[str]]:
    """Returns the separator of a CSV file and the names of its columns.

    Raises:
        ValueError: If it has none.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
        separator = max(SEPARATORS, key=first.count)
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None
    except csv.Error as error:
        raise ValueError(f"is no CSV file ({first_line(error)})") from error
    names = [name or f"unnamed_{i}" for i, name in enumerate(names)]
    if not first.strip():
        raise ValueError("its first line is empty; expected one with the names of the columns")
    if numbers := [name for name in names if re.fullmatch(r"-\d+|-?\d*\.\d+(e[+-]?\d+)?", name, re.IGNORECASE)]:
        raise ValueError(f"its first line holds {some(numbers)}; expected one with the names of the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"has more than one column {some(twice)}; expected each name once")
    return separator, names


def _check_file(path: Path, separator: str, width: int) -> None:
    """Refuses a CSV file in which a line has more or fewer values than the first."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        check_lines(file, separator, width)


def check_lines(lines: Iterable[str], separator: str, width: int, before: int = 0) -> None:
    """Refuses lines of a CSV file of which one has more or fewer values than the first line of the file.

    Args:
        lines: The lines.
        separator: The character between their values.
        width: How many values the first line has.
        before: How many lines of the file come before these.

    Raises:
        ValueError: Names the line.
    """
    reader = csv.reader(lines, delimiter=separator)
    for row in reader:
        if row and len(row) != width:
            found = f"{len(row)} values in line {before + reader.line_num}, {width} in the first line"
            raise ValueError(f"{found}; expected as many in each")


def first_line(error: Exception) -> str:
    """Returns the first line of an error of polars, without the advice that follows."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def texts(frame: pl.DataFrame, name: str, key: str) -> list[str | None]:
    """A column as text.

    Args:
        frame: The table.
        name: Of the column.
        key: The key that names it.

    Raises:
        ValueError: If it is not there.
    """
    import polars as pl

    if name not in frame.columns:
        what = "give the name of another, or null where there is none"
        raise ValueError(f"has no column {name} (dataset.{key}); it has {some(frame.columns, 20)}; {what}")
    try:
        return frame[name].cast(pl.String).to_list()
    except pl.exceptions.PolarsError:
        raise ValueError(f"column {name} is of type {frame[name].dtype}; expected words or whole numbers") from None


def row_ids(frame: pl.DataFrame, id_column: str) -> list[str]:
    """Returns the ids of the rows of a table; arguments and errors as in `texts`."""
    return [text or "" for text in texts(frame, id_column, "id_column")]


def _distinct(ids: list[str], id_column: str) -> list[str]:
    """Refuses ids of which several rows have the same, or none."""
    right = "expected another in each row; dataset.id_column=null numbers the rows"
    if empty := ids.count(""):
        raise ValueError(f"column {id_column} (dataset.id_column) is empty in {empty} of {len(ids)} rows; {right}")
    (most, count), *_ = Counter(ids).most_common(1)
    if count > 1:
        raise ValueError(f"column {id_column} (dataset.id_column) holds {some([most])} in {count} rows; {right}")
    return ids


def _classes(what: str, words: list[str | None]) -> np.ndarray:
    """Classes: whole numbers if all are, else words."""
    there = [word for word in words if word is not None]
    if len(there) < len(words):
        raise ValueError(f"{what} is empty in {len(words) - len(there)} of {len(words)} rows; expected a class in each")
    if all(re.fullmatch(r"[+-]?\d{1,18}(\.0)?", word) for word in there):
        return np.array([int(word.removesuffix(".0")) for word in there], dtype=np.int64)
    return np.array(there)


# ------------------------------------------------------------------------------------------------------------- columns


def columns_of(frame: pl.DataFrame, kinds: Mapping[str, str] | None = None) -> dict[str, np.ndarray | Coded]:
    """The columns of a table as an `Encoding` takes them.

    Args:
        frame: As `read_table` gives it.
        kinds: Which columns, and what they hold, see `Encoding.kinds`; None for all of them, whose text then is
            numbers, or dates in the order of ISO 8601, if all of it is.

    Raises:
        ValueError: If a column does not hold what it should, or nothing that can be learned from.
    """
    if kinds is None:
        return {name: _column(frame[name], None) for name in frame.columns}
    return {name: _column(frame[name], kind) for name, kind in kinds.items() if name in frame.columns}


def encoded(table: Any, encoding: Encoding) -> np.ndarray:
    """The rows of a table as vectors (n, features), float32.

    Args:
        table: A data frame of polars, or of pandas, or arrays (n,) by the names of the columns.
        encoding: The encoding of the columns.

    Raises:
        ValueError: If a column is not there, or does not hold what it should.
    """
    if type(table).__module__.startswith("polars."):
        return encoding.transform(columns_of(cleaned(table), encoding.kinds))
    return encoding.transform(
        {name: _unboxed(name, table[name], kind) for name, kind in encoding.kinds.items() if name in table}
    )


def _unboxed(name: str, values: Any, kind: str) -> np.ndarray | Coded:
    """A column (n,) without Python objects: text as in a file, dates without a time zone."""
    column = np.asarray(values)
    if column.dtype.kind not in "OU":
        return column
    cells = ["" if cell is None else cell for cell in column.tolist()]
    cells = ["" if str(cell).strip() in (*MISSING, "<NA>", "NaT") else cell for cell in cells]
    if kind == "dates" and all(cell == "" or isinstance(cell, date) for cell in cells):
        dates = [cell.replace(tzinfo=None) if isinstance(cell, datetime) else cell for cell in cells]
        return np.array([None if cell == "" else cell for cell in dates], dtype="datetime64[us]")
    text = [str(cell).strip() or None for cell in cells]
    if kind == "words":
        return np.array(text, dtype=object)
    import polars as pl

    return _column(pl.Series(name, text, dtype=pl.String), kind)


def _column(column: pl.Series, kind: str | None) -> np.ndarray | Coded:
    """One of `columns_of`."""
    import polars as pl

    readers = {"numbers": _numbers, "dates": _dates}
    if column.dtype == pl.String and kind != "words":
        for expected in [kind] if kind else readers:
            found = readers[expected](column)
            wrong = column.filter(found.is_null() & column.is_not_null())
            if wrong.is_empty():
                column = found
                break
            if kind:
                shown = some(wrong.unique(maintain_order=True).to_list(), 3)
                raise ValueError(f"column {column.name} holds {shown} where {kind} are expected")
    if column.dtype == pl.String and kind is None:
        _refuse_decimal_commas(column)
    dtype = column.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        right = f"expected numbers, words, dates or booleans; dataset.drop_columns=[{column.name}] leaves it out"
        raise ValueError(f"column {column.name} is of type {dtype}; {right}")
    if kind == "words" or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum):
        return _coded(column.cast(pl.String))
    if dtype in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.replace_time_zone(None).to_numpy()
    if dtype == pl.Duration:
        column = column.cast(pl.Duration("us"))
    return column.to_physical().cast(pl.Float64).to_numpy()


def _refuse_decimal_commas(text: pl.Series) -> None:
    """Refuses a column of numbers whose decimals come after a comma, which would be taken for words."""
    text = text.drop_nulls()
    with_comma = text.filter(text.str.contains(r"^[-+]?\d+,\d+$"))
    if len(with_comma) and text.str.contains(r"^[-+]?\d+(,\d+)?$").all():
        right = "expected a decimal point, and nothing between thousands"
        raise ValueError(f"column {text.name} holds numbers with a comma, such as {with_comma[0]}; {right}")


def _coded(text: pl.Series) -> Coded:
    """A column of words."""
    import polars as pl

    words = text.drop_nulls().unique()
    place = text.cast(pl.Enum(words)).to_physical().cast(pl.Int64).fill_null(len(words))
    return Coded(np.array([*words, None], dtype=object), place.to_numpy())


def _numbers(text: pl.Series) -> pl.Series:
    """Text as numbers, null where it is none."""
    import polars as pl

    return text.cast(pl.Float64, strict=False)


def _dates(text: pl.Series) -> pl.Series:
    """Text as times, null where it is no date that begins with the year."""
    import polars as pl

    found = pl.repeat(None, len(text), dtype=pl.Datetime("us"), eager=True)
    if not text.str.contains(r"^\d{4}[-/]\d\d?[-/]\d\d?").all():
        return found
    text = text.str.replace_all("/", "-").str.replace("T", " ")
    for format in DATES:
        times = text.str.to_datetime(format, time_unit="us", strict=False)
        found = found.fill_null(times.dt.replace_time_zone(None))
        if found.null_count() == text.null_count():
            break
    return found


def _doubts(frame: pl.DataFrame, encoding: Encoding) -> list[str]:
    """Notes for the user on columns that lose much in the encoding, or are perhaps meant otherwise."""
    import polars as pl

    notes = []
    for column in encoding.columns:
        if not isinstance(column, Words) or frame[column.name].dtype != pl.String:
            continue
        text = frame[column.name].drop_nulls()
        if (more := text.n_unique() - len(column.categories)) > 0:
            notes.append(f"column {column.name}: {more} rare words share a feature (dataset.max_categories)")
        words = text.filter(_numbers(text).is_null())
        if 0 < len(words) < len(text) / 2:
            shown = some(words.unique(maintain_order=True).to_list(), 3)
            notes.append(f"column {column.name}: taken for words, for {shown} among its numbers")
    return notes
