"""Hostile bytes from good ones: damage that no format minds, and damage that its format still parses.

`mutate` depends on the random generator and the seeds alone, so a case can be made again from its number.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

CANARY = "canary"
"""The name, without its ending, of files that lie outside of what is read."""

DEEP, DEEPER = 300, 10_000
NUMBERS = (
    *("0", "1", "-1", "2", "3", "7", "1e-320", "0.5", "-0.0", "1e999", "NaN", "-Infinity", "1" * 400, "9" * 5000),
    *("255", "65536", str(2**31 - 1), str(2**31), str(2**32), str(2**63 - 1), str(2**63), str(-(2**63)), str(2**64)),
)
TEXTS = (
    *("", "a", "\ud800", "\udfff\ud800", "\x00", "\x1b[2J", "ÿ" * 50, "a" * 66_000, "\u202e", "\U0010ffff"),
    *("/proc/version", "../canary.safetensors", "../../canary.json", ".", "..", "/", "C:\\x", "model.safetensors", "~"),
    *("F32", "BF16", "I8", "float", "int", "none", "null", "NaN", "group", "channel", "tensor", "token", "weight"),
    *(
        "re:" + "(a+)+" * 9,
        "re:(.*)*x",
        "re:(?:a|.)*b",
        "re:(.+)\\1+$",
        "re:" + ".*" * 40,
        "re:[",
        "*" * 60,
        "[!a-" * 20,
    ),
    *("{{ 9 ** 9 ** 9 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
    *(
        "{{ 'a' * 10 ** 12 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% include '/proc/version' %}",
        "{{ 'a'.ljust(10 ** 11) }}",
    ),
    *(
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ '\\ud800' }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ messages }}",
    ),
)
RAW = (
    *("null", "true", "false", "[]", "{}", "[[]]", "[0, 0]", "[-1]", "[1, 2, 3, 4, 5]", '{"a": 1, "a": 2}', "[null]"),
    *("[" * DEEP + "]" * DEEP, "[" * DEEPER + "]" * DEEPER, '{"a":' * DEEP + "1" + "}" * DEEP, '{"a":' * DEEPER),
    *('["' + '","'.join(map(str, range(2000))) + '"]', '{"type": "Sequence"}', '{"type": "Replace"}', '["re:(a|a)*$"]'),
    '{"type":"Sequence","normalizers":['
    + ",".join(['{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaa"}'] * 12)
    + "]}",
    '{"type":"Split","pattern":{"Regex":"(a|aa|.)*$b"},"behavior":"Isolated","invert":false}',
)  # fmt: skip
VALUES = tuple(struct.pack("<f", float(text)) for text in ("nan", "inf", "-inf", "0", "-1", "1e-40", "3e38", "7e4"))
INTEGERS = (0, 1, 2, 3, 8, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(random: Random, seeds: Sequence[bytes], kind: str) -> bytes:
    """Return bytes made of one of `seeds`. kind: "json", "jsonl", "safetensors", "toml", "text" or "binary"."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if kind != "binary" and random.random() < 0.75:
            data = STRUCTURED[kind](random, data)
        else:
            data = random.choice(DAMAGES)(random, data, random.choice(seeds))
    return data


# Damage to any bytes


def _flip(random: Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[_early(random, len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    cut, start = random.randrange(len(data) + 1), random.randrange(len(other) + 1)
    return data[:cut] + other[start : start + random.choice((1, 8, 100, 10_000))] + data[random.choice((cut, 0)) :]


def _number(random: Random, data: bytes, other: bytes) -> bytes:
    value, width = random.choice(INTEGERS), random.choice((1, 2, 4, 8))
    place = _early(random, max(len(data) - width, 1))
    return data[:place] + struct.pack("<Q", value)[:width] + data[place + width :]


def _remove(random: Random, data: bytes, other: bytes) -> bytes:
    start = _early(random, len(data) + 1)
    return data[:start] + data[start + random.choice((1, 2, 16, 1000)) :]


def _repeat(random: Random, data: bytes, other: bytes) -> bytes:
    start = _early(random, len(data) + 1)
    return data[:start] + data[start : start + 64] * random.choice((2, 3, 1000)) + data[start + 64 :]


DAMAGES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (_flip, _truncate, _splice, _number, _remove, _repeat)


def _early(random: Random, size: int) -> int:
    """Return a place in `size` bytes, often near the beginning: headers are there."""
    return random.randrange(max(1, min(size, random.choice((32, 512, size)))))


# Damage that still parses


def swap_json(random: Random, data: bytes) -> bytes:
    """Put something else at a place of a JSON document, take it away or say it twice."""
    try:
        document = json.loads(data)
        places = list(_places(document))
    except (ValueError, RecursionError):
        return _flip(random, data, data)
    if not places:
        return hostile(random).encode("utf-8", "surrogatepass")
    node, key = random.choice(places)
    action = random.randrange(6)
    if action == 0:
        del node[key]
    elif action == 1:
        other, its_key = random.choice(places)
        node[key] = json.loads(json.dumps(other[its_key]))
    elif action == 2 and type(node[key]) in (int, float):
        node[key] = random.choice((node[key] + 1, node[key] - 1, node[key] * 2, -node[key], str(node[key])))
    elif action == 3 and isinstance(node, dict):
        node[random.choice((*TEXTS, "@twice@"))] = "@here@"
    else:
        node[key] = "@here@"
    text = json.dumps(document).replace('"@here@"', hostile(random)).replace("@twice@", str(key))
    return text.encode("utf-8", "surrogatepass")


def hostile(random: Random) -> str:
    """Return a JSON value that few expect, as text."""
    group = random.choice((NUMBERS, TEXTS, RAW))
    return json.dumps(random.choice(TEXTS)) if group is TEXTS else random.choice(group)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    rest = [document] if isinstance(document, dict | list) else []
    while rest:
        node = rest.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key
            if isinstance(node[key], dict | list):
                rest.append(node[key])


def swap_line(random: Random, data: bytes) -> bytes:
    """The same with one line of a JSON Lines document."""
    lines = data.splitlines(keepends=True) or [b"{}\n"]
    index = random.randrange(len(lines))
    lines[index] = swap_json(random, lines[index]) + b"\n"
    if random.random() < 0.2:
        random.shuffle(lines)
    return b"".join(lines)


def swap_header(random: Random, data: bytes) -> bytes:
    """The same with the header of a safetensors file, whose length is set right; or another value of a tensor."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.4:
        start = min(8 + length, len(data))
        tensors = data[start:]
        for _ in range(random.choice((1, 1, 5))):
            place = 4 * random.randrange(len(tensors) // 4 + 1)
            tensors = tensors[:place] + random.choice(VALUES) + tensors[place + 4 :]
        return data[:start] + tensors[: len(data) - start]
    header = swap_json(random, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def swap_words(random: Random, data: bytes) -> bytes:
    """Put something else in the place of a value, a word or a line of a text such as TOML."""
    text = data.decode("utf-8", "surrogateescape")
    pattern = random.choice((r'"[^"\n]*"', r"\b\d[\w.]*", r"\w+", r"(?m)^.*$", r"(?<== ).*"))
    found = list(re.finditer(pattern, text))
    if found:
        start, end = random.choice(found).span()
        new = random.choice(
            (hostile(random), random.choice(TEXTS), random.choice(found).group(), "{a.b.c = 1}", "0xff")
        )
        if random.random() < 0.1:
            new = random.choice(("[", "{a=", "[[a]]\n", "a." * 9, "-", "'''")) * random.choice((1, DEEP, DEEPER))
        text = text[:start] + new + text[end:]
    return text.encode("utf-8", "surrogatepass" if random.random() < 0.5 else "replace")


STRUCTURED: dict[str, Callable[[Random, bytes], bytes]] = {
    "json": swap_json,
    "jsonl": swap_line,
    "safetensors": swap_header,
    "toml": swap_words,
    "text": swap_words,
}
