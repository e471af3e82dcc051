"""Checks a nested dict against a tree of dataclasses: names, types and ranges, in one walk.

A schema is a dataclass whose fields are sections (dataclasses) or options (see :func:`option`). Supported
option types: bool, int, float, str, Optional[...] of them, List[...] and Dict[str, ...].
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ppsr2q.core.errors import UserError

_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number",
               str: "text (quoted if it looks like a number)"}


def option(default: Any, help: str, *, choices: Optional[Sequence[Any]] = None, low: Optional[float] = None,
           high: Optional[float] = None, above: Optional[float] = None, below: Optional[float] = None,
           length: Optional[int] = None) -> Any:
    """A dataclass field with its limits: ``low <= v <= high``, ``above < v < below``, one of ``choices``.

    On lists and dicts the limits hold for every element; ``length`` is the number of elements. None, where
    the type allows it, needs no entry in ``choices``.
    """
    limits = dict(choices=choices, low=low, high=high, above=above, below=below, length=length)
    metadata = {"help": help, "limits": {key: value for key, value in limits.items() if value is not None}}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(schema: type) -> Any:
    """A dataclass field that holds another dataclass, with that one's defaults."""
    return dataclasses.field(default_factory=schema)


def check(tree: Any, schema: type, source: str, prefix: str = "") -> Dict[str, Any]:
    """Copy of a partial ``tree`` with every value in its declared type.

    Args:
        tree: nested dict as read from YAML; absent keys are allowed.
        schema: the dataclass it must fit.
        source: what the user wrote it in (a file name, an override); named in errors.

    Raises:
        UserError: not a mapping, unknown key, wrong type or out of range.
    """
    if not isinstance(tree, Mapping):
        where = f"{source}: {prefix[:-1]}" if prefix else source
        raise UserError(f"{where}: expected 'key: value' lines, got {tree!r}")
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    checked = {}
    for key, value in tree.items():
        if key not in fields:
            suggestion = _suggestion(str(key), prefix, list(fields))
            raise UserError(f"{source}: unknown key {prefix}{key}; {suggestion}")
        if dataclasses.is_dataclass(hints[key]):
            checked[key] = check(value, hints[key], source, f"{prefix}{key}.")
        else:
            limits = fields[key].metadata.get("limits", {})
            try:
                checked[key] = _convert(value, hints[key], limits)
            except ValueError as error:
                raise UserError(f"{source}: {prefix}{key} must be {_accepted(hints[key], limits)}, "
                                f"got {error}") from None
    return checked


def build(tree: Mapping[str, Any], schema: type) -> Any:
    """Instance of ``schema`` from a checked tree; absent keys take their defaults."""
    hints = typing.get_type_hints(schema)
    return schema(**{key: build(value, hints[key]) if dataclasses.is_dataclass(hints[key]) else value
                     for key, value in tree.items()})


def leaf_type(schema: type, path: Sequence[str]) -> Tuple[int, bool]:
    """How many names of a dotted ``path`` lead to an option, and whether that option is a dict."""
    hint: Any = schema
    for depth, name in enumerate(path):
        if not dataclasses.is_dataclass(hint):
            return depth, typing.get_origin(hint) is dict
        hint = typing.get_type_hints(hint).get(name)
    return len(path), typing.get_origin(hint) is dict


def options(schema: type, prefix: str = "") -> Iterator[Tuple[str, Any, str, str]]:
    """(dotted key, default, what is accepted, help) of every option, in order of declaration."""
    hints = typing.get_type_hints(schema)
    default = schema()
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options(hint, f"{prefix}{field.name}.")
        else:
            yield (f"{prefix}{field.name}", getattr(default, field.name),
                   _accepted(hint, field.metadata["limits"]), field.metadata["help"])


def _suggestion(key: str, prefix: str, names: List[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"expected one of: {', '.join(names)}"


def _split_optional(hint: Any) -> Tuple[Any, bool]:
    if typing.get_origin(hint) is typing.Union:
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return inner[0], True
    return hint, False


def _convert(value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """``value`` in type ``hint``. Raises ValueError with the description of the offending value."""
    hint, optional = _split_optional(hint)
    if value is None and optional:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        if not isinstance(value, list) or len(value) != limits.get("length", len(value)):
            raise ValueError(repr(value))
        return [_convert(item, arguments[0], limits) for item in value]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError(repr(value))
        return {key: _convert(item, arguments[1], limits) for key, item in value.items()}
    if hint is float and isinstance(value, str):
        value = _scientific(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**300 else math.inf
    if type(value) is not hint or (hint is float and not math.isfinite(value)) or not _within(value, limits):
        raise ValueError(repr(value))
    return value


def _scientific(text: str) -> Any:
    """YAML 1.1 reads 1e-2 as text (it wants 1.0e-2)."""
    try:
        return float(text)
    except ValueError:
        return text


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    return not ("choices" in limits and value not in limits["choices"]
                or "low" in limits and value < limits["low"]
                or "high" in limits and value > limits["high"]
                or "above" in limits and value <= limits["above"]
                or "below" in limits and value >= limits["below"])


def _accepted(hint: Any, limits: Mapping[str, Any]) -> str:
    hint, optional = _split_optional(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        count = f"{limits['length']} values" if "length" in limits else "values"
        text = f"a list of {count}, each {_accepted(arguments[0], limits)}"
    elif origin is dict:
        text = f"a mapping of names to values, each {_accepted(arguments[1], limits)}"
    elif "choices" in limits:
        text = "one of " + ", ".join(map(str, limits["choices"]))
    else:
        words = (("low", "at least"), ("above", "above"), ("high", "at most"), ("below", "below"))
        bounds = " and ".join(f"{word} {limits[key]}" for key, word in words if key in limits)
        text = f"{_TYPE_NAMES[hint]} {bounds}".rstrip()
    return f"{text}, or null" if optional else text
