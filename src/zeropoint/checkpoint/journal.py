"""The journal of an unfinished output: what is done, so that a run that was killed goes on from there.

    .out.partial/journal.jsonl        a step a line, each with the sha256 of its own text

A step is appended when all files that it names are on the disk, their bytes and their names. It counts when its line is
whole: of a line that a power cut has torn, and of whatever follows it, nothing is taken. A file that no step names is
what a dead run had not finished.

The first step says what the run was started with. Only a run with all the same can go on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from zeropoint.errors import CheckpointError, InternalError

T = TypeVar("T")

JOURNAL = "journal.jsonl"

BEGIN = "begin"
"""The kind of the first step, whose data is what the run was started with: {"recipe.weights.bits": "4", ...}."""

MAX_BYTES = 1 << 30
"""A journal is smaller: a model of a hundred thousand tensors takes 30 MB."""

_SHOWN = 3
"""So many differences are named in a message."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the output. file: the part it is in. sha256: of its bytes, as they were in memory."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    file: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run that is on the disk.

    kind: "begin", "block", ... tensors: those of the output that it added, by name. files: all files that it made, with
    their sizes in bytes. state: the one of them that holds what the next step begins with, or None. data: whatever else
    the caller wants back, JSON.
    """

    kind: str
    tensors: dict[str, Stored] = {}
    files: dict[str, int] = {}
    state: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")

    def read(self, kind: type[T]) -> T:
        """Return the data as a `kind`. Raises: CheckpointError if it is none."""
        try:
            return msgspec.json.decode(self.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InternalError) as error:
            raise CheckpointError(
                f"{JOURNAL}: a step {self.kind!r} is not as this version writes it ({error}); --restart begins anew"
            ) from error


class _Line(msgspec.Struct, frozen=True):
    sha256: str
    step: msgspec.Raw


class Journal:
    """The journal in `folder`, to read and to append to. steps: those that are on the disk."""

    def __init__(self, folder: Path) -> None:
        """Open it. What follows the last whole line is cut off by the next `append`.

        Raises: CheckpointError if it cannot be read; OSError.
        """
        self._file = folder / JOURNAL
        self.steps, self._size = read_journal(self._file) if self._file.exists() else ([], 0)

    def append(self, step: Step) -> None:
        """Write one step and bring it to the disk. Raises: OSError."""
        line = line_of(step)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            os.ftruncate(descriptor, self._size)
            os.lseek(descriptor, self._size, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._size += len(line)
        self.steps.append(step)


def line_of(step: Step) -> bytes:
    """Return the line of a step."""
    text = msgspec.json.encode(step)
    return msgspec.json.encode(_Line(hashlib.sha256(text).hexdigest(), msgspec.Raw(text))) + b"\n"


def read_journal(file: Path) -> tuple[list[Step], int]:
    """Return the steps of a journal up to the first line that is not whole, and the bytes that they take.

    Raises: CheckpointError if the file is larger than any journal, or cannot be read.
    """
    try:
        if file.is_symlink() or not file.is_file():
            raise CheckpointError(f"{file}: is no file of its own, so not a journal of ours; --restart begins anew")
        if file.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{file}: is larger than any journal; --restart begins anew")
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}; --restart begins anew") from error
    steps: list[Step] = []
    size = 0
    for line in content.splitlines(keepends=True):
        step = _whole(line)
        if step is None:
            break
        steps.append(step)
        size += len(line)
    return steps, size


def _whole(line: bytes) -> Step | None:
    """Return the step of a line, or None if the line is not what `line_of` wrote."""
    try:
        found = msgspec.json.decode(line, type=_Line)
        step = msgspec.json.decode(found.step, type=Step)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    plain = all(_is_plain(name) for name in (*step.files, *(stored.file for stored in step.tensors.values())))
    return step if plain and line == line_of(step) else None


def _is_plain(name: str) -> bool:
    """Say whether a file lies in the folder itself: nothing else is read, and nothing else removed."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return what is not the same, as the end of a sentence; "" if everything is."""
    changed = [
        f"{key} was {before.get(key, 'not set')}, now {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more
