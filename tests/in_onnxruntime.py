"""An exported folder in plain ONNX Runtime: tokens in, logits out, with keys and values handed on from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CACHE = "past_key_values."


class InOnnxRuntime:
    """A session, with its cache.

    mask: 1 for tokens, 0 for padding; of all tokens so far, as many as the cache holds.
    """

    def __init__(self, folder: Path) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.forget(1)

    def forget(self, batch: int) -> None:
        """Begin again, with so many sequences."""
        self.mask = np.ones((batch, 0), np.int64)
        self.cache = {
            each.name: np.zeros((batch, each.shape[1], 0, each.shape[3]), np.float32)
            for each in self.session.get_inputs()
            if each.name.startswith(CACHE)
        }

    def logits(
        self, tokens: Sequence[Sequence[int]], mask: Sequence[Sequence[int]] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens (batch, time) to the cache and return logits (batch, time, vocabulary)."""
        given = np.array(tokens, np.int64)
        more = np.ones_like(given) if mask is None else np.array(mask, np.int64)
        self.mask = np.concatenate([self.mask, more], axis=1)
        positions = np.maximum(self.mask.cumsum(axis=1) - 1, 0)[:, -given.shape[1] :]
        names = [each.name for each in self.session.get_outputs()]
        inputs = {"input_ids": given, "attention_mask": self.mask, "position_ids": positions, **self.cache}
        made = dict(zip(names, self.session.run(names, inputs), strict=True))
        self.cache = {name: made[name.replace(CACHE, "present.")] for name in self.cache}
        found: NDArray[np.float32] = made["logits"]
        return found
