"""The runner on torch, in float32: slow, exact, and what another runtime is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeropoint.errors import InternalError
from zeropoint.runtime.cache import TorchLayerCache
from zeropoint.runtime.choices import CacheDtype, Choices
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.runner import require_room
from zeropoint.runtime.weights import Weights


def exact_unless_asked(weights: Weights) -> CacheDtype:
    """Return "int8" where the checkpoint asks for such keys and values; torch computes with float32 otherwise."""
    return "int8" if Choices.of(weights.checkpoint.config).kv_cache == "int8" else "float32"


class TorchRunner:
    """A float or quantized checkpoint, held as float32 and run by the torch ops; see `zeropoint.runtime.runner`.

    threads: of the whole process, as torch counts them; None leaves them as they are. cache: dtype that keys and values
    are rounded to, held as float32 all the same; None is int8 where the checkpoint asks for it, else float32.
    """

    isa: str | None = None

    def __init__(self, weights: Weights, *, threads: int | None = None, cache: CacheDtype | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = weights.model
        self._ops = TorchOps(kv_cache=cache or exact_unless_asked(weights))
        self._blocks = [weights.block(index, self._ops) for index in range(self._model.config.layers)]
        self._embedding = weights.embedding()
        self._head = weights.head(self._ops)

    def session(self) -> TorchSession:
        """Return a session with an empty cache."""
        return TorchSession(self, [TorchLayerCache() for _ in self._blocks])

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (time, vocabulary), one row for each of the tokens."""
        return self.run(tokens, None)

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], past: list[TorchLayerCache] | None) -> NDArray[np.float32]:
        """Return logits (time, vocabulary): of all tokens without a cache, of the last one with it."""
        start = past[0].length if past is not None else 0
        require_room(self._model.config, start + len(tokens))
        x = self._model.embed(self._ops, self._embedding, torch.as_tensor(tokens)[None], start)
        for index, block in enumerate(self._blocks):
            x = block.run(self._model.flow_of(index), x, past[index] if past is not None else None)
        logits: Tensor = self._model.head(self._ops, self._head, x if past is None else x[:, -1:])
        found: NDArray[np.float32] = logits[0].numpy()
        return found


class TorchSession:
    """One conversation with a TorchRunner."""

    def __init__(self, runner: TorchRunner, caches: list[TorchLayerCache]) -> None:
        self._runner = runner
        self._caches = caches
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to the cache and return float32 (vocabulary,) for what follows them."""
        if not tokens:
            raise InternalError("no tokens to append to a session")
        for cache in self._caches:  # a run that was interrupted has left tokens in some of them
            cache.rewind(self._length)
        logits: NDArray[np.float32] = self._runner.run(tokens, self._caches)[-1]
        self._length += len(tokens)
        return logits

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        if not 0 <= length <= self._length:
            raise InternalError(f"a session of {self._length} tokens cannot be rewound to {length}")
        self._length = length
