"""Whether plain values, from a configuration or a file, are of the types that a constructor is annotated with."""

import contextlib
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def argument_types(target: Any) -> dict[str, Any]:
    """The types of a callable's arguments by name; of a class also those that it hands on to its bases."""
    found: dict[str, Any] = {}
    classes = reversed(target.__mro__) if isinstance(target, type) else []
    for function in [vars(base).get("__init__") for base in classes] or [target]:
        with contextlib.suppress(Exception):  # an annotation that cannot be looked up tells nothing
            found |= get_type_hints(function)
    return found


_PLAIN: dict[Any, Any] = {int: int, float: (int, float), str: str, bool: bool, type(None): type(None)}


def is_of(value: Any, kind: Any) -> bool:
    """Whether a plain value may be meant for an annotation; what is not plain is none of our business.

    >>> is_of([128, 64], tuple[int, ...]), is_of(True, int | None)
    (True, False)
    """
    if get_origin(kind) in (Union, UnionType):
        return any(is_of(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind is bool or not isinstance(value, bool))
    if get_origin(kind) in (list, tuple, Sequence) and isinstance(value, list):
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        return all(any(is_of(item, part) for part in parts) for item in value)
    plain_only = get_origin(kind) in (list, tuple, Sequence, Callable) or isinstance(kind, type)
    return not (plain_only and kind is not object and isinstance(value, str | int | float | bool | None))
