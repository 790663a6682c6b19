"""Checks arguments by their annotations: types, choices (`Literal`) and ranges (`Range`), in one place.

Methods, scores, networks and splits are decorated with `checked`, which reports a wrong argument in the caller's
terms. A configuration is compared by the same `check`, which names its keys (`config.instantiate`).
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """The allowed values of a type: `Annotated[float, Range("a number above 1", lambda value: value > 1)]`.

    Attributes:
        words: The condition in words.
        holds: Whether a value of the type is that.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Range:
    """The whole numbers from the least one on."""
    return Range(f"a whole number of at least {least}", lambda value: value >= least)


Count = Annotated[int, Range("a whole number, not negative", lambda value: value >= 0)]
Positive = Annotated[float, Range("a positive, finite number", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Range("a finite number, not negative", lambda value: 0 <= value < math.inf)]
Finite = Annotated[float, Range("a finite number", math.isfinite)]
Share = Annotated[float, Range("a number in [0, 1)", lambda value: 0 <= value < 1)]
Fraction = Annotated[float, Range("a number from 0 to 1", lambda value: 0 <= value <= 1)]

_LISTS = (list, tuple, Sequence)
_GROUPS = (dict, Mapping)
_PLAIN: dict[Any, Any] = {int: Integral, float: Real, str: str, bool: bool, NoneType: NoneType}
_CALLED = {int: "a whole number", float: "a number", str: "a word", bool: "True or False", NoneType: "None"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function refuse, with a `ValueError` that names it, an argument that its annotation does not allow."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*values: P.args, **options: P.kwargs) -> R:
        check(dict(zip(names, values, strict=False)) | options, argument_kinds(function))
        return function(*values, **options)

    return call


def check(arguments: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Compares arguments with annotations, as far as these say something of plain values.

    Args:
        arguments: Values by name.
        kinds: Annotations by name; see `argument_kinds`.

    Raises:
        ValueError: If a value is not of its kind; names the argument, the value, and what is right.
    """
    for name, value in arguments.items():
        if name in kinds and not is_of(value, kinds[name]):
            raise ValueError(f"{name}={value}: must be {_words(kinds[name])}")


def argument_kinds(target: Any) -> dict[str, Any]:
    """The types of a callable's arguments by name; of a class also those that it hands on to its bases."""
    found: dict[str, Any] = {}
    classes = reversed(target.__mro__) if isinstance(target, type) else []
    for function in [vars(base).get("__init__") for base in classes] or [target]:
        with contextlib.suppress(Exception):  # an annotation that cannot be looked up tells nothing
            found |= get_type_hints(function, include_extras=True)
    return found


def is_of(value: Any, kind: Any) -> bool:
    """Returns whether a value fits an annotation; annotations of other kinds are not checked.

    >>> is_of([128, 64], tuple[int, ...]), is_of(True, int | None), is_of(0.0, Positive)
    (True, False, False)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(is_of(value, part) for part in parts)
    if origin is Annotated:
        return is_of(value, parts[0]) and all(part.holds(value) for part in parts[1:] if isinstance(part, Range))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind is bool or not isinstance(value, bool))
    if origin in _LISTS and isinstance(value, Sequence) and not isinstance(value, str):
        return all(any(is_of(item, part) for part in parts if part is not Ellipsis) for item in value)
    if origin in _GROUPS and isinstance(value, Mapping):
        return all(is_of(item, parts[1]) for item in value.values())
    asks = origin in (*_LISTS, *_GROUPS, Callable) or (isinstance(kind, type) and kind not in (object, Any))
    return not (asks and isinstance(value, str | int | float | bool | None))


def _words(*kinds: Any) -> str:
    """A description of the values that any of several kinds allow."""
    *others, last = dict.fromkeys(word for kind in kinds for word in _alternatives(kind))
    pause = "," if any(" " in word for word in others) else ""
    return f"{', '.join(others)}{pause} or {last}" if others else last


def _alternatives(kind: Any) -> list[str]:
    """A description of each alternative of a kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        said = [part for part in parts if part in _CALLED or get_origin(part)] or parts  # a class says little
        return [word for part in said for word in _alternatives(part)]
    if origin is Annotated:
        words = [part.words for part in parts[1:] if isinstance(part, Range)]
        return words or _alternatives(parts[0])
    if origin is Literal:
        return [str(choice) for choice in parts]
    if origin in _LISTS:
        items = [part for part in parts if part is not Ellipsis]
        example = "[a, b]" if str in items else "[1, 2]"
        return [f"a list such as {example}" + (f", each {_words(*items)}" if items else "")]
    if origin in _GROUPS:
        return ["a group of keys" + ("" if parts[1] is Any else f", each {_words(parts[1])}")]
    return ["a callable" if origin is Callable else _CALLED.get(kind, str(getattr(kind, "__name__", kind)))]
