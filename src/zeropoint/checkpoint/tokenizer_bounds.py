"""What a tokenizer.json may do to a text: make it larger by a factor that is known, and search it with quick patterns.

The file is a program of small steps. Each may lengthen a text, and steps after one another multiply: twelve that put
eight letters for one make 70,000,000,000 of it. So the factors are multiplied beforehand, each as large as its step can
be, and a product beyond all use is refused. Tokenizers that exist have a few dozen at most.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zeropoint import documents
from zeropoint.errors import CheckpointError
from zeropoint.patterns import PatternError, require_quick

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_GROWTH = 4000.0
"""Two forms of Unicode, each 18 times at most, and some spare."""

MAX_WORD_CHARS = 1000
"""WordPiece tries every end of a word for every token of it: of longer ones it makes one unknown token."""

_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")
_FACTORS: Mapping[str, float] = {
    "NFC": 18, "NFD": 18, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 9, "ByteLevel": 4, "Metaspace": 2,
}  # fmt: skip


class BoundsError(ValueError):
    """What a tokenizer might do, the end of a sentence."""


@contextmanager
def package_errors(sentence: str, end: str = "") -> Iterator[None]:
    """Turn whatever the tokenizers package raises in the block into a CheckpointError.

    It raises nothing narrower than Exception, and where its Rust panics not even that. sentence, end: what the message
    has before and behind the reason.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{sentence} ({str(error)[:200]}){end}") from error
        raise


def require_bounded(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that might blow a text up, or search it for ever. Raises: BoundsError."""
    before = [_steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)]
    for steps in ([step for part in before for step in part], _steps(tokenizer.decoder)):
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
        if growth > MAX_GROWTH:
            raise BoundsError(f"may make a text {growth:.3g} times as long; {MAX_GROWTH:g} is allowed")
        try:
            require_quick(pattern for step in steps if (pattern := _regex(step)) is not None)
        except PatternError as error:
            raise BoundsError(f"has a pattern that cannot be used: {error}") from error
    for step in _steps(tokenizer.post_processor):
        if sum("Sequence" in piece for piece in step.get("single") or ()) > 1:
            raise BoundsError("repeats the text in its post_processor")
    if getattr(tokenizer.model, "max_input_chars_per_word", 0) > MAX_WORD_CHARS:
        raise BoundsError(f"takes words of more than {MAX_WORD_CHARS} characters")


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps that a part of a tokenizer consists of, sequences taken apart."""
    return [] if part is None else list(_flat(documents.parse_json(part.__getstate__())))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((step[key] for key in _LISTS if isinstance(step.get(key), list)), None)
    if inner is None:
        yield step
    else:
        for each in inner:
            yield from _flat(each)


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times as long a step may make a text, in characters."""
    match step.get("type"):
        case "Replace":
            new, (kind, old) = len(step["content"]), next(iter(step["pattern"].items()))
            # a pattern may match nothing, before each character and behind the last
            return max(1.0, new / len(old)) if kind == "String" and old else 1.0 + new
        case "Prepend":
            return 1.0 + len(step["prepend"])
        case "Precompiled":
            table = base64.b64decode(step["precompiled_charsmap"])
            texts = table[4 + int.from_bytes(table[:4], "little") :]
            return max(1.0, *map(float, map(len, texts.split(b"\0"))))
        case kind:
            return _FACTORS.get(str(kind), 1.0)


def _regex(step: Mapping[str, Any]) -> str | None:
    pattern = step.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None
