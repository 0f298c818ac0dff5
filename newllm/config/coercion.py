"""Values as typed, brought to the type that an option's annotation asks for."""

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from newllm.suggest import nearest

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def coerce(value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it, without losing anything: 5 -> 5.0 for a float, 5e3 -> 5000 for an int.

    bool is no number and a number is no bool; nan and infinity are no numbers either; lists go element by
    element; of a union, the first member that takes the value unchanged, else the first that can. Raises ValueError,
    with what was expected as its text.
    """
    if annotation is Any:
        return value
    for strict in (True, False):
        fits, result = _fit(value, annotation, strict)
        if fits:
            return result
    raise ValueError(f"expected {expected(annotation)}" + _hint(value, annotation))


def expected(annotation: Any) -> str:
    """The annotation in words, for error sentences and the help page."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return " or ".join(_typed(value) for value in args)
    if origin in (Union, UnionType):
        return " or ".join(expected(member) for member in args)
    if origin is list or annotation is list:
        member: Any = args[0] if args else Any
        example = "[1,2]" if member is int else "[0.5,1]" if member is float else "[a,b]"
        return f"a list, as in {example}"
    if origin is dict or annotation is dict:
        return "a mapping"
    return "any value"


def _typed(value: Any) -> str:
    """A literal as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _fit(value: Any, annotation: Any, strict: bool) -> tuple[bool, Any]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for member in args:
            fits, result = _fit(value, member, strict)
            if fits:
                return True, result
        return False, None
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args), value
    if origin is list or annotation is list:
        if not isinstance(value, list | tuple):
            return False, None
        items = [_fit(item, args[0] if args else Any, strict) for item in value]
        return all(fits for fits, _ in items), [item for _, item in items]
    if origin is dict or annotation is dict:
        return isinstance(value, Mapping), value
    if annotation in _PLAIN:
        if not _finite(value):
            return False, None
        if type(value) is annotation:
            return True, value
        return (False, None) if strict else _convert(value, annotation)
    return True, value  # a class of the user's: its constructor checks


def _convert(value: Any, annotation: type) -> tuple[bool, Any]:
    if annotation is float and type(value) is int:
        return True, float(value)
    if annotation is int and type(value) is float and value.is_integer():
        return True, int(value)
    if annotation is str and type(value) is int:  # a folder called 42
        return True, str(value)
    return False, None


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _hint(value: Any, annotation: Any) -> str:
    if not _finite(value):
        return " (a finite one)"
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    close = nearest(value, [word for word in words if isinstance(word, str)]) if isinstance(value, str) else None
    return f" (did you mean {close}?)" if close else ""
