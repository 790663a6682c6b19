"""Encodes rows of a table as vectors: fitted on training rows, stored as plain numbers and words. NumPy only.

A column of a table is an array (n,), and its type says its kind: floats and integers are numbers (NaN: missing),
datetime64 are dates (NaT: missing), objects, strings and booleans are words (None or NaN: missing). `Coded` words are
looked at faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KINDS = {"i": "numbers", "u": "numbers", "f": "numbers", "M": "dates", "O": "words", "U": "words", "b": "words"}
VERSION = 1  # of the plain form
NORMAL_QUARTILE = 0.6745  # half the interquartile range of a standard normal distribution


def kind_of(name: str, values: np.ndarray) -> str:
    """The kind of a column: `"numbers"`, `"dates"` or `"words"`.

    Raises:
        ValueError: If it is something else.
    """
    if values.ndim != 1 or values.dtype.kind not in KINDS:
        raise ValueError(f"column {name} is of type {values.dtype}; expected numbers, words or dates")
    return KINDS[values.dtype.kind]


def as_numbers(name: str, values: np.ndarray) -> np.ndarray:
    """Numbers as they are, dates in days since 1970, in float64 with NaN for what is missing.

    Raises:
        ValueError: If one is infinite.
    """
    if values.dtype.kind == "M":
        days = values.astype("datetime64[us]").astype(np.int64) / 86_400e6
        return np.where(np.isnat(values), np.nan, days)
    numbers = values.astype(np.float64)
    if np.isinf(numbers).any():
        raise ValueError(f"column {name} holds infinite numbers; expected finite ones, or nothing")
    return numbers


def as_words(values: np.ndarray) -> list[str | None]:
    """Words with None for what is missing."""
    if values.dtype.kind == "b":
        return ["true" if value else "false" for value in values.tolist()]
    return [None if word is None or word != word else str(word) for word in values.tolist()]


@dataclass(frozen=True)
class Coded:
    """A column of words that holds each different one once, however many rows have it.

    Attributes:
        words: The different ones, a column (k,).
        place: Where in `words` that of each row is, (n,).
    """

    words: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.place)


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, or of dates: asinh((x - center) / scale), which keeps outliers apart and near.

    Attributes:
        name: Of the column.
        kind: `"numbers"` or `"dates"`.
        center: The median of the training rows, which also stands for what is missing.
        scale: The standard deviation that they would have if their quartiles were those of a normal distribution.
        missing: Whether a second feature says that the number is missing: where one was in the training rows.
    """

    name: str
    kind: str
    center: float
    scale: float
    missing: bool

    @classmethod
    def fit(cls, name: str, kind: str, numbers: np.ndarray) -> Numbers:
        """From training rows, of which at least one has a number."""
        there = numbers[~np.isnan(numbers)]
        low, center, high = np.quantile(there, [0.25, 0.5, 0.75])
        scale = (high - low) / (2 * NORMAL_QUARTILE) or there.std() or 1.0
        return cls(name, kind, float(center), float(scale), len(there) < len(numbers))

    @property
    def features(self) -> list[str]:
        """Names of its features."""
        return [self.name, f"{self.name} missing"] if self.missing else [self.name]

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Maps a column (n,) to features (n, 1 or 2)."""
        if (kind := kind_of(self.name, values)) != self.kind:
            if any(word is not None for word in as_words(values)):
                raise ValueError(f"column {self.name} holds {kind} where {self.kind} are expected")
            values = np.full(len(values), np.nan)
        numbers = as_numbers(self.name, values)
        gone = np.isnan(numbers)
        with np.errstate(over="ignore"):
            distance = np.where(gone, 0.0, (numbers - self.center) / self.scale)
        features = np.arcsinh(np.clip(distance, -1e300, 1e300))
        return np.stack([features, gone], axis=1) if self.missing else features[:, None]


@dataclass(frozen=True)
class Words:
    """A column of words: one feature for each of the most frequent, one for all others, seen or not.

    Attributes:
        name: Of the column.
        kind: `"words"`.
        categories: The words that have a feature of their own, the most frequent first.
        missing: Whether one more feature says that there is none: where one was missing in the training rows; else a
            missing word is as one of the others.
    """

    name: str
    kind: str
    categories: list[str]
    missing: bool

    @classmethod
    def fit(cls, name: str, counts: Mapping[str, int], missing: bool, most: int) -> Words:
        """From how often each word is in the training rows, with at most so many categories."""
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(name, "words", ranked[:most], missing)

    @property
    def features(self) -> list[str]:
        """Names of its features."""
        return [*(f"{self.name}={word}" for word in (*self.categories, "…")), *[f"{self.name} missing"] * self.missing]

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Maps a column (n,) to features (n, categories + 1 or 2)."""
        other = len(self.categories)
        places: dict[str | None, int] = {word: i for i, word in enumerate(self.categories)}
        for i, word in enumerate(self.categories):
            if word.lower() in ("true", "false"):  # each writer of tables has its own spelling
                for spelling in (word.lower(), word.title(), word.upper()):
                    places.setdefault(spelling, i)
        if self.missing:
            places[None] = other + 1
        found = [places.get(word, other) for word in as_words(values)]
        return np.eye(other + 1 + self.missing, dtype=np.float32)[found]


@dataclass(frozen=True)
class Encoding:
    """Maps the columns of a table to vectors.

    Attributes:
        columns: Those that become features, in the order of the features.
        dropped: Those that do not, and why.
        label_column: The column that holds labels, which is no feature; None for none.
        id_column: The column that names the rows, which is no feature; None for none.
    """

    columns: tuple[Numbers | Words, ...]
    dropped: dict[str, str]
    label_column: str | None = None
    id_column: str | None = None

    @classmethod
    def fit(
        cls,
        columns: Mapping[str, np.ndarray | Coded],
        max_categories: int = 32,
        label_column: str | None = None,
        id_column: str | None = None,
    ) -> Encoding:
        """Learns from training rows, whatever their labels.

        A column is dropped if it holds one value only, nothing at all, or the number or a word of its own in each row.

        Args:
            columns: Columns by name, (n,) each, without labels and ids.
            max_categories: How many words of a column get a feature of their own.
            label_column: See `Encoding`.
            id_column: See `Encoding`.

        Raises:
            ValueError: If no column is left, or one cannot be encoded.
        """
        kept: list[Numbers | Words] = []
        dropped: dict[str, str] = {}
        for name, column in columns.items():
            values = column.words[column.place] if isinstance(column, Coded) else column
            kind = kind_of(name, values)
            if kind == "words":
                words = as_words(values)
                counts = Counter(word for word in words if word is not None)
                missing, distinct = None in words, len(counts)
            else:
                numbers = as_numbers(name, values)
                missing = bool(np.isnan(numbers).any())
                distinct = len(np.unique(numbers[~np.isnan(numbers)]))
            if distinct == 0:
                dropped[name] = "nothing in it"
            elif distinct == 1 and not missing:
                dropped[name] = "the same in every row"
            elif distinct == len(values) and kind == "words":
                dropped[name] = "another word in every row"
            elif distinct == len(values) and kind == "numbers" and _number_rows(numbers):
                dropped[name] = "the number of the row"
            elif kind == "words":
                kept.append(Words.fit(name, counts, missing, max_categories))
            else:
                kept.append(Numbers.fit(name, kind, numbers))
        if not kept:
            raise ValueError("no column is left to learn from; expected at least one that differs between rows")
        return cls(tuple(kept), dropped, label_column, id_column)

    @property
    def features(self) -> list[str]:
        """Names of the features, in their order."""
        return [feature for column in self.columns for feature in column.features]

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the columns that it reads, by name: see `kind_of`."""
        return {column.name: column.kind for column in self.columns}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those columns of a table that it was not fitted with, and that `transform` does not read."""
        known = {column.name for column in self.columns} | {*self.dropped, self.label_column, self.id_column}
        return [name for name in names if name not in known]

    def transform(self, columns: Mapping[str, np.ndarray | Coded]) -> np.ndarray:
        """Encodes rows; what is missing or new in them has its place.

        Args:
            columns: Columns by name, (n,) each, in any order.

        Returns:
            Vectors (n, features), float32.

        Raises:
            ValueError: If a column is not there, or of another kind than in the training rows.
        """
        if absent := [column.name for column in self.columns if column.name not in columns]:
            raise ValueError(f"has no column {', '.join(absent)}; expected those of the training rows")
        vectors = np.empty((len(columns[self.columns[0].name]), len(self.features)), dtype=np.float32)
        start = 0
        for column in self.columns:
            end = start + len(column.features)
            values = columns[column.name]
            if isinstance(values, Coded):
                vectors[:, start:end] = column.transform(values.words)[values.place]
            else:
                vectors[:, start:end] = column.transform(values)
            start = end
        return vectors

    def to_plain(self) -> dict[str, Any]:
        """Dictionaries, lists, numbers and words, as a detector file holds them."""
        return {**asdict(self), "columns": [asdict(column) for column in self.columns], "version": VERSION}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Encoding:
        """The inverse of `to_plain`.

        Raises:
            ValueError: If it is not what `to_plain` gives.
        """
        if not isinstance(plain, Mapping) or plain.get("version") != VERSION:
            raise ValueError(f"is not the encoding of a table of version {VERSION}")
        try:
            columns = tuple(_column(column) for column in plain["columns"])
            dropped, label, id = plain["dropped"], plain["label_column"], plain["id_column"]
            texts = [*dropped, *dropped.values(), *(name for name in (label, id) if name is not None)]
            if not columns or not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise ValueError("is not the encoding of a table, or is damaged") from None
        return cls(columns, dict(dropped), label, id)


def _number_rows(numbers: np.ndarray) -> bool:
    """Returns whether distinct numbers are whole ones with few gaps, such as row numbers after a split."""
    return len(numbers) >= 20 and bool((numbers == np.floor(numbers)).all() and np.ptp(numbers) < 2 * len(numbers))


def _column(plain: Mapping[str, Any]) -> Numbers | Words:
    """A column from its plain form.

    Raises:
        KeyError: If something is missing.
        TypeError: If something is not what it should be.
    """
    name, kind, missing = plain["name"], plain["kind"], plain["missing"]
    if not isinstance(name, str) or not isinstance(missing, bool):
        raise TypeError
    if kind == "words":
        categories = plain["categories"]
        if not isinstance(categories, list) or not all(isinstance(word, str) for word in categories):
            raise TypeError
        return Words(name, kind, categories, missing)
    center, scale = plain["center"], plain["scale"]
    numbers = all(isinstance(number, float) and math.isfinite(number) for number in (center, scale))
    if kind not in ("numbers", "dates") or not numbers or scale <= 0:
        raise TypeError
    return Numbers(name, kind, center, scale, missing)
