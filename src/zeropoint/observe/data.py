"""Texts become windows of tokens: a seeded sample to calibrate on, or the whole text in order to judge on.

A .txt file is one stream of UTF-8 text, exactly as it stands; a .jsonl file has one document on each line:

    {"text": "..."}    or    {"messages": [{"role": "user", "content": "..."}, ...]}

Messages pass through the model's chat template. The tokens of all documents are joined, with the tokenizer's first eos
between two documents if it has one, and cut into windows that do not overlap: window i holds the tokens
[i * length, (i + 1) * length). A last, shorter piece belongs to no window. No bos is added.

Every file is read to its end, so that a sample is drawn from all of it. Memory holds a piece of text and the chosen
windows, whatever the size of the file; only the judge, who wants all windows, holds 4 bytes for each token.
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, InputError, TextError
from zeropoint.models.parts import Config

Tokens: TypeAlias = NDArray[np.int32]

PIECE_CHARS = 1 << 16
"""Longer texts are tokenized in pieces of at most this many characters, which end where a line does if one does."""

MAX_LINE_BYTES = 1 << 26
"""A line of a .jsonl file, one document, is in memory as a whole."""

RANDOM = "random tokens"
"""The name of what is calibrated on where no text is."""

JSONL_FORM = '{"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}'


class TextTokenizer(Protocol):
    """What this file needs of a tokenizer; checkpoint/tokenizer.py has it."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, the most usual one first; () if there is none."""

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The tokens that the model wants in front of every text, such as bos; () if there are none."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without bos and eos."""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return the text of a conversation."""


@dataclass(frozen=True)
class TextSource:
    """The file that windows come from.

    sha256: of the file's bytes. documents: those with at least one token. tokens: in the whole file, eos between
    documents included. windows: how many fit into them.
    """

    name: str
    sha256: str
    documents: int
    tokens: int
    windows: int


@dataclass(frozen=True, eq=False)
class Batches:
    """A sample of windows to calibrate on; iterating gives int32 (batch, length), the last one maybe with fewer rows.

    tokens: int32 (samples, length), in random order. note: why there are fewer samples than asked for, or None.
    """

    tokens: Tokens
    batch: int
    source: TextSource
    note: str | None

    def __iter__(self) -> Iterator[Tokens]:
        """Yield the batches in order."""
        return (self.tokens[start : start + self.batch] for start in range(0, len(self.tokens), self.batch))

    def __len__(self) -> int:
        """Return how many batches there are."""
        return (len(self.tokens) + self.batch - 1) // self.batch


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows to judge on, in the order of the text.

    tokens: int32 (windows, length); the first token of each window is context only and is not scored.
    note: which part of the text this is, or None for all of it.
    """

    tokens: Tokens
    source: TextSource
    note: str | None


TEXTS = Path(__file__).parents[1] / "texts"


def bundled_text(name: Literal["calibration", "judge"]) -> Path:
    """Return the path of a text that comes with zeropoint; texts/SOURCES.md says what it is made of."""
    return TEXTS / f"{name}.txt"


def calibration_batches(
    path: str | Path, tokenizer: TextTokenizer, *, samples: int, length: int, seed: int, batch: int
) -> Batches:
    """Draw `samples` different windows of `length` tokens from the whole text, each with the same probability.

    The draw depends on the seed, the tokens and the length only, on no machine and no version of numpy; a larger sample
    begins with the smaller one. If the text has fewer windows, all of them are returned, and `note` says so.

    Raises: TextError if the file cannot be read as text, or is shorter than one window.
    """
    # Each window draws a number, and the lowest `samples` numbers win: a sample without replacement in one pass.
    # random_raw, because numpy promises the stream of a bit generator for ever, and that of a Generator not (NEP 19).
    bits = np.random.PCG64(seed)
    stream = _TokenStream(Path(path), tokenizer)
    kept: list[tuple[int, int, Tokens]] = []
    for index, window in enumerate(stream.windows(length)):
        entry = (-int(bits.random_raw()), -index, window)
        if len(kept) < samples:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    source = stream.source(length)
    kept.sort(key=lambda entry: entry[:2], reverse=True)
    note = None
    if len(kept) < samples:
        note = f"{samples} windows were asked for; the text has {len(kept)} of {length} tokens, all are used"
    return Batches(np.stack([window for _, _, window in kept]), batch, source, note)


def random_batches(vocab_size: int, *, samples: int, length: int, seed: int, batch: int) -> Batches:
    """Return windows of tokens that are drawn alike from the whole vocabulary: statistics without any text.

    What comes out of them is coarse, but norms, biases and outlier channels show themselves with any tokens.
    """
    raw = np.random.PCG64(seed).random_raw(samples * length)
    tokens = (raw % np.uint64(vocab_size)).astype(np.int32).reshape(samples, length)
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
    return Batches(tokens, batch, TextSource(RANDOM, digest, samples, tokens.size, samples), None)


def judging_windows(
    path: str | Path, tokenizer: TextTokenizer, *, length: int, max_windows: int | None = None
) -> Windows:
    """Return the windows of a text in order: all, or `max_windows` of them spread evenly from its start to its end.

    Raises: TextError if the file cannot be read as text, or is shorter than one window; if a window has no token to
    score.
    """
    if length < 2:
        raise TextError(f"windows of {length} tokens leave nothing to score after the context; use at least 2")
    stream = _TokenStream(Path(path), tokenizer)
    windows = list(stream.windows(length))
    source = stream.source(length)
    note = None
    if max_windows is not None and max_windows < len(windows):
        note = f"{max_windows} of the text's {len(windows)} windows, evenly spread"
        # (2k + 1) / (2n): the middles of n equal parts
        windows = [windows[(2 * k + 1) * len(windows) // (2 * max_windows)] for k in range(max_windows)]
    return Windows(np.stack(windows), source, note)


def require_readable(text: Batches | Windows, config: Config) -> None:
    """Refuse windows that a model cannot read: longer than its context, or with tokens that it does not have.

    Raises: TextError for the length, CheckpointError for a tokenizer that belongs to another model.
    """
    length, largest = text.tokens.shape[1], int(text.tokens.max())
    if length > config.max_positions:
        raise TextError(
            f"windows of {length} tokens are longer than the model's context of {config.max_positions}; use shorter "
            "ones (calibration.length to quantize, --length to evaluate)"
        )
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{text.source.name}: tokenizer.json makes token {largest} of it, and the model has the tokens 0 to "
            f"{config.vocab_size - 1}; use the tokenizer.json that belongs to the model"
        )


class _TokenStream:
    """The tokens of a file, window by window, counted on the way."""

    def __init__(self, path: Path, tokenizer: TextTokenizer) -> None:
        self.path = path
        self.tokenizer = tokenizer
        self.documents = 0
        self.tokens = 0

    def windows(self, length: int) -> Iterator[Tokens]:
        """Yield int32 (length,), the file's windows in order.

        The first tokens of each give way to those that the model wants in front of every text: Gemma without its bos is
        another model.
        """
        start = np.array(self.tokenizer.start_ids[:length], np.int32)
        rest = np.zeros(0, np.int32)
        for piece in self._pieces():
            self.tokens += len(piece)
            rest = np.concatenate([rest, np.asarray(piece, np.int32)])
            full = len(rest) // length * length
            for window in rest[:full].reshape(-1, length):
                yield np.concatenate([start, window[len(start) :]])  # a view would keep the whole piece alive
            rest = rest[full:]

    def source(self, length: int) -> TextSource:
        """Return the facts about the file once its windows are drawn.

        Raises: TextError if there was no window.
        """
        if self.tokens < length:
            raise TextError(
                f"{self.path}: {self.tokens} tokens, and one window needs {length}; "
                "give a longer text, or ask for shorter windows"
            )
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return TextSource(self.path.name, digest, self.documents, self.tokens, self.tokens // length)

    def _pieces(self) -> Iterator[list[int]]:
        """Yield the tokens of each piece of text, and of the eos between two documents."""
        for document in read_documents(self.path, self.tokenizer):
            counted = False
            for text in document:
                ids = self.tokenizer.encode(text)
                if ids and not counted:
                    if self.documents:
                        yield list(self.tokenizer.eos_ids[:1])
                    self.documents += 1
                    counted = True
                yield ids


def read_documents(path: str | Path, tokenizer: TextTokenizer) -> Iterator[Iterator[str]]:
    """Yield the documents of a .txt or .jsonl file, each as the pieces of text that it consists of, in order.

    Raises: TextError naming the file, the place in it, what was found and what is allowed.
    """
    path = Path(path)
    form = _form(path)
    if form == ".txt":
        yield _pieces(_decoded(path))
    else:
        for text in _jsonl_texts(path, tokenizer):
            yield _pieces(text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))


def _form(path: Path) -> str:
    """Return ".txt" or ".jsonl" if the path is a readable file of that kind with something in it."""
    form = path.suffix.lower()
    try:
        if not path.exists():
            raise TextError(f"{path}: there is no such file; give a text as .txt (UTF-8) or .jsonl")
        if not path.is_file():
            raise TextError(f"{path}: not a file; give one text as .txt (UTF-8) or .jsonl")
        if form not in (".txt", ".jsonl"):
            raise TextError(f"{path}: the name ends in neither .txt (UTF-8) nor .jsonl (on each line {JSONL_FORM})")
        with path.open("rb") as file:
            if not file.read(1):
                raise TextError(f"{path}: the file is empty; give a text with at least one window of tokens")
    except OSError as error:
        raise TextError(f"{path}: the file cannot be opened ({error.strerror}); give one that can be read") from error
    return form


def _decoded(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 16)
            undecoded = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - undecoded, error) from error
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(chunk)
            if not chunk:
                return


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Join chunks of any size and cut them into pieces of at most PIECE_CHARS characters.

    The cuts depend on the text alone, and lie at a line's start where there is one.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        while len(rest) > PIECE_CHARS:
            cut = _last_line_start(rest[: PIECE_CHARS + 1])
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _last_line_start(text: str) -> int:
    """Return where to cut a text, at least 1 and below its length.

    Best is behind a single line end between two visible characters: byte-level tokenizers never join tokens across it,
    whereas they treat a run of white space differently at the end of a text.
    """
    end = len(text) - 1
    while (end := text.rfind("\n", 1, end)) > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
    return text.rfind("\n", 0, len(text) - 1) + 1 or len(text) - 1


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str | msgspec.UnsetType = msgspec.UNSET
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET


def _jsonl_texts(path: Path, tokenizer: TextTokenizer) -> Iterator[str]:
    """Yield the text of each line of a .jsonl file; empty lines are left out."""
    decoder = msgspec.json.Decoder(_Line)
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
            if len(raw) > MAX_LINE_BYTES:
                raise TextError(f"{path}, line {number}: has more than {MAX_LINE_BYTES} bytes; split the document")
            try:
                line = raw.decode().removeprefix("\ufeff" if number == 1 else "").strip(" \t\r\n")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset, error) from error
            offset += len(raw)
            if line:
                yield _line_text(f"{path}, line {number}", line, decoder, tokenizer)


def _line_text(where: str, line: str, decoder: msgspec.json.Decoder[_Line], tokenizer: TextTokenizer) -> str:
    try:
        content = decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad_line(where, line, str(error)) from error
    if isinstance(content.text, str) and content.messages is msgspec.UNSET:
        return content.text
    if isinstance(content.messages, list) and content.text is msgspec.UNSET:
        messages = [{"role": message.role, "content": message.content} for message in content.messages]
        try:
            return tokenizer.chat(messages, add_generation_prompt=False)
        except InputError as error:
            raise type(error)(f"{where}: {error}") from error
    raise _bad_line(where, line, "it has " + ("both fields" if content.text is not msgspec.UNSET else "neither field"))


def _bad_line(where: str, line: str, reason: str) -> TextError:
    return TextError(f"{where}: {reason}; got {json.dumps(line[:60], ensure_ascii=False)}, allowed is {JSONL_FORM}")


def _not_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> TextError:
    """Return the error for bytes that are not UTF-8. offset: of error.object in the file."""
    byte = error.object[error.start]
    return TextError(
        f"{path}: not UTF-8: byte 0x{byte:02x} at offset {offset + error.start} ({error.reason}); "
        "convert the file to UTF-8, for example with iconv"
    )
