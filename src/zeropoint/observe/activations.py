"""The activations of a set of texts between two stages of the walk: in memory up to a limit, on disk past it.

One slot holds one batch: exactly what lives between two stages, the residual stream and, in the middle of a block, the
branch and what waits to be added. The residual stream of a slot in memory stays in the same buffer for the whole walk:
a new one for each block, among the branches that come and go, broke the heap into holes, and the process grew from
block to block (docs/log.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zeropoint.models.parts import State


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
        self.most_spilled_bytes = 0
        """The most bytes that were on disk at any time."""

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[State]:
        """Yield the states in the order of the batches; each holds until the next `map`."""
        return (slot.load() for slot in self._slots)

    def __getitem__(self, index: int) -> State:
        """Return the state of one batch; it holds until the next `map`."""
        return self._slots[index].load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Let go of all that is held, and remove the files."""
        self._slots.clear()
        if self._spill is not None:
            self._spill.cleanup()
            self._spill = None

    def extend(self, inputs: Iterable[Tensor]) -> None:
        """Append one slot for each residual stream (batch, time, hidden)."""
        for x in inputs:
            self._slots.append(_Slot())
            self._store(State(x), len(self._slots) - 1)

    def copy(self, other: Activations) -> None:
        """Hold what `other` holds between two blocks, in buffers of its own."""
        for index, state in enumerate(other):
            if index == len(self._slots):
                self.extend([state.x.clone()])
            else:
                self._store(State(state.x), index)

    def map(self, step: Callable[[State], State]) -> None:
        """Replace every state by step(state), batch by batch."""
        for index, slot in enumerate(self._slots):
            self._store(step(slot.load()), index)

    def _store(self, state: State, index: int) -> None:
        slot = self._slots[index]
        others = sum(other.held_bytes for other in self._slots) - slot.held_bytes
        if others + _bytes(state) <= self._limit_bytes:
            slot.hold(state)
            return
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="zeropoint-activations-", dir=self._folder)
        slot.write(state, Path(self._spill.name) / str(index))
        self.most_spilled_bytes = max(self.most_spilled_bytes, sum(other.file_bytes for other in self._slots))


class _Slot:
    """One state, in memory or in files."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._files: dict[str, Path] | None = None
        self.file_bytes = 0

    @property
    def held_bytes(self) -> int:
        return 0 if self._state is None else _bytes(self._state)

    def load(self) -> State:
        if self._state is not None:
            return self._state
        assert self._files is not None
        found: dict[str, Any] = {name: torch.from_numpy(np.load(file)) for name, file in self._files.items()}
        return replace(State(found["x"]), **found)

    def hold(self, state: State) -> None:
        if self._state is not None and state.x is not self._state.x:
            state = replace(state, x=self._state.x.copy_(state.x))
        self._state = state
        self._files, self.file_bytes = None, 0

    def write(self, state: State, stem: Path) -> None:
        """Save each array of the state as STEM-NAME.npy, and free the buffers."""
        self._files = {name: stem.with_name(f"{stem.name}-{name}.npy") for name in _arrays(state)}
        for name, array in _arrays(state).items():
            np.save(self._files[name], array.numpy())
        self.file_bytes = _bytes(state)
        self._state = None


def _arrays(state: State) -> dict[str, Tensor]:
    """Return what lives between two stages, by the names of State."""
    found = ((field.name, getattr(state, field.name)) for field in fields(state) if field.name != "past")
    return {name: array for name, array in found if array is not None}


def _bytes(state: State) -> int:
    return sum(array.numel() * array.element_size() for array in _arrays(state).values())
