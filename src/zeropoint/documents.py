"""What a JSON or TOML document from outside may be, before anything looks into it.

Python's parsers take documents that break what comes later: nested so deeply that showing them overflows the stack,
halves of characters that no file and no terminal takes, keys that are said twice and mean one thing here and another
elsewhere, numbers that are none or have thousands of digits. No model and no recipe has them, so they are refused here,
once, and so is what is too large to be such a document.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_INTEGER = 1 << 128
"""Above 10^30, which tokenizer_config.json has where a tokenizer has no limit."""

MAX_JSON_BYTES = 1 << 26
"""An index of a million tensors; as objects of Python twenty times as much."""

READ_BYTES = 1 << 20


class MalformedError(ValueError):
    """What is wrong with a document, the end of a sentence; whoever knows the file's name puts it in front."""


def read_bytes(file: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a file; no more than its first bytes are read of one that never ends.

    Raises: MalformedError if it has more than `limit` bytes; OSError.
    """
    content = bytearray()
    with file.open("rb") as opened:
        while part := opened.read(min(READ_BYTES, limit + 1 - len(content))):  # read(n) takes n bytes first
            content += part
    if len(content) > limit:
        raise MalformedError(f"is larger than {limit} bytes")
    return bytes(content)


def parse_json(content: bytes) -> Any:
    """Return the JSON document. Raises: MalformedError."""
    document = load_json(content)
    require_plain(document)
    return document


def load_json(content: bytes) -> Any:
    """Return the JSON document, of any depth and with any numbers but those that JSON does not have.

    Raises: MalformedError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise MalformedError("says the same thing twice")
        return found

    def no_number(word: str) -> NoReturn:
        raise MalformedError(f"holds {word}, which is no number")

    try:
        return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=no_number)
    except MalformedError:
        raise
    except RecursionError as error:
        raise MalformedError(f"is nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise MalformedError(f"is not JSON ({error})") from error


def require_plain(document: object, *, max_integer: int = MAX_INTEGER) -> None:
    """Refuse depth, halves of characters, and numbers that are none or beyond `max_integer`. Raises: MalformedError."""
    rest = [(document, 0)]
    while rest:
        value, depth = rest.pop()
        match value:
            case str():
                if not _is_text(value):
                    raise MalformedError("holds half of a character, a surrogate that stands alone")
            case float():
                if not math.isfinite(value):
                    raise MalformedError(f"holds {value}, which is no number to count with")
            case int():
                if not -max_integer <= value < max_integer:
                    raise MalformedError(f"holds a whole number of {value.bit_length()} bits")
            case dict() | list():
                if depth >= MAX_DEPTH:
                    raise MalformedError(f"is nested more than {MAX_DEPTH} deep")
                if isinstance(value, dict):
                    rest += [(key, depth) for key in value]
                rest += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
