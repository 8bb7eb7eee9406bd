"""TOML documents: read key by key against a type, changed by KEY=VALUE, written.

msgspec checks one value against one type. What it does not say is where the value stood, what it was, what is allowed
instead, and that a dataclass has no such key; `read_table` does.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_type_hints

import msgspec

from zeropoint import documents, find
from zeropoint.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a value stands, for messages: `str` gives "w4a16.toml: rules.0.weights.bits"."""

    source: str
    keys: tuple[str, ...] = ()

    def at(self, *keys: str) -> Place:
        """Return the place under these keys."""
        return replace(self, keys=(*self.keys, *keys))

    def __str__(self) -> str:
        return f"{self.source}: {'.'.join(self.keys)}" if self.keys else self.source


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the document.

    Raises: RecipeError with the line and the column when the text is not TOML, or with what no recipe holds.
    """
    try:
        return _loads(text)
    except tomllib.TOMLDecodeError as error:  # its message ends in "(at line 3, column 7)"
        raise RecipeError(f"{source}: not TOML: {error}") from error
    except documents.MalformedError as error:
        raise RecipeError(f"{source}: {error}; no recipe needs that") from error


def parse_value(text: str) -> object:
    """Return the TOML value that the text is (3, true, "x", [1, 2]), or else the text itself (rtn).

    Raises: RecipeError for what no recipe holds.
    """
    try:
        document = _loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        return text
    except documents.MalformedError as error:
        raise RecipeError(f"the value {text[:60]!r} {error}; no recipe needs that") from error
    return document["value"] if len(document) == 1 else text  # more keys: the text had lines of its own


def _loads(text: str) -> dict[str, Any]:
    """Return the document. Raises: TOMLDecodeError; MalformedError for what is TOML and nothing to go on with."""
    documents.require_plain(text)
    if any(part.count(".") > documents.MAX_DEPTH for part in re.split(r"[\n,=\[{]", text)):
        # tomllib takes the square of a key's length: 18 s for one of 64 kB
        raise documents.MalformedError(f"has a key of more than {documents.MAX_DEPTH} parts")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise documents.MalformedError(f"is nested more than {documents.MAX_DEPTH} deep") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise documents.MalformedError(f"cannot be read ({error})") from error
    documents.require_plain(document, max_integer=1 << 63)
    return document


# Reading against a type


def read_table(
    kind: type, table: object, place: Place, *, limits: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the values of `table` converted to the types of the fields of `kind`, a dataclass or struct.

    limits: types that stand in for those of `kind`. A field that the table does not name is left out.
    Raises: RecipeError for a key that is no field, with the nearest that is one, or a value that is not allowed.
    """
    types = {**get_type_hints(kind, include_extras=True), **(limits or {})}
    given = read_keys(table, place)
    for key in given:
        if key not in types:
            raise unknown_key(place.at(key), types)
    return {key: read_value(types[key], value, place.at(key)) for key, value in given.items()}


def read_keys(table: object, place: Place) -> Mapping[str, Any]:
    """Return `table` if it is one with text for keys, else raise RecipeError."""
    if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
        raise RecipeError(f"{place} is {table!r}; allowed is a table of keys and values")
    return table


def read_value(kind: type[T], value: object, place: Place) -> T:
    """Return `value` as the type `kind`, whose limits count, else raise RecipeError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{place} is {value!r}; allowed is {allowed(kind)}") from error


def unknown_key(place: Place, known: Sequence[str] | Mapping[str, Any]) -> RecipeError:
    """Return the error for a key that is not among the known ones."""
    names = sorted(known)
    keys = f"the keys here are {', '.join(names)}" if names else "there are no keys here"
    return RecipeError(f"{place} is not a key that is known; {keys}{find.nearest(place.keys[-1], names)}")


def allowed(kind: object) -> str:
    """Return in words what a type allows: "a whole number from 2 to 8"."""
    return _in_words(msgspec.inspect.type_info(kind))


def _in_words(info: msgspec.inspect.Type) -> str:
    match info:
        case msgspec.inspect.IntType():
            words = f"a whole number{_limits(info)}"
        case msgspec.inspect.FloatType():
            words = f"a number{_limits(info)}"
        case msgspec.inspect.BoolType():
            words = "true or false"
        case msgspec.inspect.StrType():
            words = "text in quotes"
        case msgspec.inspect.DictType():
            words = "a table"
        case msgspec.inspect.LiteralType(values=values):
            words = ("one of " if len(values) > 1 else "") + ", ".join(map(repr, values))
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            words = f"a list, each item {_in_words(info.item_type)}"
        case msgspec.inspect.UnionType(types=types):
            words = " or ".join(_in_words(t) for t in types if not isinstance(t, msgspec.inspect.NoneType))
        case _:
            words = f"a {type(info).__name__.removesuffix('Type').lower()}"
    return words


def _limits(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    """Return " from 2 to 8", " above 0 and below 1" and the like; nothing where there is no limit."""
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    words = {"of at least": info.ge, "above": info.gt, "of at most": info.le, "below": info.lt}
    return " and".join(f" {word} {limit}" for word, limit in words.items() if limit is not None)


# Changing


def table_at(document: dict[str, Any], keys: Sequence[str], *, lists: Sequence[str] = ()) -> dict[str, Any] | list[Any]:
    """Return the table or list under the keys, making what is not there; the keys named in `lists` are made as lists.

    A number is a place in a list; the one after the last adds a table.
    Raises: RecipeError if there is a value under one of the keys but the last, or no such place in a list.
    """
    node: Any = document
    for depth, key in enumerate(keys):
        if isinstance(node, list):
            index = _index(node, key, keys[:depth])
            node.extend([{}] if index == len(node) else [])
            node = node[index]
        else:
            node = node.setdefault(key, [] if key in lists else {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"{'.'.join(keys[: depth + 1])} is {node!r}, which has no keys of its own")
    return node  # type: ignore[no-any-return]


def assign(node: dict[str, Any] | list[Any], keys: Sequence[str], value: object) -> None:
    """Put `value` into the table or list `node`, which lies under all but the last of the keys."""
    if isinstance(node, list):
        index = _index(node, keys[-1], keys[:-1])
        node[index : index + 1] = [value]
    else:
        node[keys[-1]] = value


def _index(node: Sequence[Any], key: str, parents: Sequence[str]) -> int:
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) > len(node):
        where = ".".join(parents)
        raise RecipeError(f"{key!r} is no place in {where}; allowed is a number from 0 to {len(node)}, which adds one")
    return int(key)


# Writing


def write(document: Mapping[str, Any]) -> str:
    """Return the document as TOML: single values, then its tables, then its lists of tables; deeper tables in one line.

    Raises: RecipeError for a value that TOML has no form for, such as None.
    """
    plain = {key: value for key, value in document.items() if not _has_sections(value)}
    blocks = ["\n".join(_lines(plain))] if plain else []
    for key, value in document.items():
        if isinstance(value, Mapping):
            blocks.append("\n".join([f"[{_key(key)}]", *_lines(value)]))
        elif _has_sections(value):
            blocks += ["\n".join([f"[[{_key(key)}]]", *_lines(item)]) for item in value]
    return "\n\n".join(blocks) + "\n"


def _has_sections(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    return (f"{_key(key)} = {_value(value)}" for key, value in table.items())


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():  # repr gives 1e-05, inf and nan as TOML writes them
            return repr(value)
        case str():  # JSON's escapes are TOML's, but JSON lets the delete character stand
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            return "{ " + ", ".join(_lines(value)) + " }" if value else "{}"
        case _:
            raise RecipeError(f"{value!r} cannot be written as TOML; leave its key out")
