"""Tables of a configuration file into structs, with errors that say what to change.

msgspec alone would name neither the table nor what is allowed, so each key is converted by itself.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from farm.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


class Place(NamedTuple):
    """Where a table stands: the file, and the table's name as it is written there."""

    file: str
    table: str

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.table} {text}")


def read_table(kind: type[S], table: object, place: Place) -> S:
    """One struct from one table.

    Raises:
        ConfigError: file, table, key, value and what is allowed there.
    """
    if not isinstance(table, Mapping):
        raise place.error(f"is {show(table)}; it must be a table")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise place.error(f"has no key {key!r}{did_you_mean(key, fields)}")
        field = fields[key]
        inner = _without_none(field.type)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            values[field.name] = read_table(inner, value, Place(place.file, f"{place.table[:-1]}.{key}]"))
            continue
        item = _struct_in(inner, dict)
        if item is not None and isinstance(value, Mapping):
            values[field.name] = {
                name: read_table(item, row, Place(place.file, f"{place.table[:-1]}.{key}.{name}]"))
                for name, row in value.items()
            }
            continue
        item = _struct_in(inner, list)
        if item is not None and isinstance(value, list):
            value = [
                msgspec.to_builtins(read_table(item, row, Place(place.file, f"[{place.table[:-1]}.{key}]] number {n}")))
                for n, row in enumerate(value, 1)
            ]
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            # Inside a list or table only msgspec knows where it went wrong.
            within = f" ({error})" if isinstance(value, list | dict) else ""
            raise place.error(f"{key} = {show(value)}: it must be {allowed(field.type)}{within}") from error
    for key, field in fields.items():
        if field.required and key not in table:
            raise place.error(f"lacks the key {key!r}: it must be {allowed(field.type)}")
    return kind(**values)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"


def show(value: object) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def allowed(annotation: Any) -> str:
    """What a field takes, in words. Fields of these structs are scalars, choices, tables or lists of one of these."""
    annotation = _without_none(annotation)
    meta = msgspec.Meta()
    if get_origin(annotation) is Annotated:
        annotation, meta = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(show(choice) for choice in get_args(annotation))
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        noun = "a whole number" if annotation is int else "a number"
        low = f"from {meta.ge:g}" if meta.ge is not None else f"above {meta.gt:g}" if meta.gt is not None else ""
        high = f"to {_plain(meta.le)}" if meta.le is not None else ""
        return " ".join(part for part in (noun, low, high) if part)
    if annotation is str:
        if meta.max_length is None:
            return "a text"
        return f"a text of {meta.min_length or 0} to {meta.max_length} characters"
    if _struct_in(annotation, list) or _struct_in(annotation, dict):
        return "tables of their own"
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return "a table of its own"
    kinds = get_args(annotation)
    if get_origin(annotation) is dict:
        return "a table of pairs of numbers" if get_origin(kinds[1]) is tuple else "a table"
    if get_origin(kinds[0]) is Literal:
        return "a list of " + ", ".join(show(choice) for choice in get_args(kinds[0]))
    return "a list"


def _plain(number: float | int) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        some = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(some) == 1:
            return some[0]
    return annotation


def _struct_in(annotation: Any, container: type[Any]) -> type[msgspec.Struct] | None:
    """The struct that this list or dict holds, None where it is none or holds others."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is container:
        item = get_args(annotation)[-1]
        if isinstance(item, type) and issubclass(item, msgspec.Struct):
            return item
    return None
