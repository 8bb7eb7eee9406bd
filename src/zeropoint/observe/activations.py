"""The activations of a set of texts between two stages of the walk: in memory up to a limit, on disk past it.

One slot holds one batch. What a slot holds is exactly what lives between two stages: the residual stream and, in the
middle of a block, the branch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from zeropoint.models.parts import State


@dataclass(frozen=True)
class _Slot:
    """A state in memory, or the files that hold its tensors."""

    state: State | None
    files: tuple[Path | None, Path | None] = (None, None)
    size_bytes: int = 0


class Activations:
    """A list of states, one per batch, that keeps at most `limit_bytes` of them in memory.

    Use it as a context manager: leaving it removes the files.
    folder: where the files go; None is the system's folder for temporary files.
    """

    def __init__(self, *, limit_bytes: int, folder: Path | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._folder = folder
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        self._slots: list[_Slot] = []
        self._held_bytes = 0
        self.most_spilled_bytes = 0
        """The most bytes that were on disk at any time."""

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[State]:
        """Yield the states in the order of the batches."""
        return (self._load(slot) for slot in self._slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots.clear()
        if self._spill is not None:
            self._spill.cleanup()

    def extend(self, inputs: Iterable[Tensor]) -> None:
        """Append one slot for each residual stream (batch, time, hidden)."""
        for x in inputs:
            self._slots.append(self._store(State(x), len(self._slots)))

    def map(self, step: Callable[[State], State]) -> None:
        """Replace every state by step(state), batch by batch."""
        for index, slot in enumerate(self._slots):
            state = self._load(slot)
            if slot.state is not None:
                self._held_bytes -= slot.size_bytes
            self._slots[index] = _Slot(None)  # the old state is free before the new one is made
            del slot
            self._slots[index] = self._store(step(state), index)

    def _store(self, state: State, index: int) -> _Slot:
        size_bytes = sum(t.numel() * t.element_size() for t in (state.x, state.y) if t is not None)
        if self._held_bytes + size_bytes <= self._limit_bytes:
            self._held_bytes += size_bytes
            return _Slot(state, size_bytes=size_bytes)
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="zeropoint-activations-", dir=self._folder)
        files = tuple(self._save(t, f"{index}-{part}.npy") for part, t in (("x", state.x), ("y", state.y)))
        spilled = _Slot(None, (files[0], files[1]), size_bytes)
        on_disk = size_bytes + sum(slot.size_bytes for slot in self._slots if slot.state is None)
        self.most_spilled_bytes = max(self.most_spilled_bytes, on_disk)
        return spilled

    def _save(self, tensor: Tensor | None, name: str) -> Path | None:
        if tensor is None or self._spill is None:
            return None
        path = Path(self._spill.name) / name
        np.save(path, tensor.numpy())
        return path

    @staticmethod
    def _load(slot: _Slot) -> State:
        if slot.state is not None:
            return slot.state
        x, y = (None if file is None else torch.from_numpy(np.load(file)) for file in slot.files)
        return State(x, y)
