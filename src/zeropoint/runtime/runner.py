"""What runs a model: tokens in, logits out. Sampling, text and conversations are written against this alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import InputError
from zeropoint.models.parts import Config


class Session(Protocol):
    """One conversation: a cache of keys and values that holds the tokens seen so far."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens, at least one, to the cache and return float32 (vocabulary,) for what follows them.

        If it is interrupted, `length` still says which tokens the cache holds: the old ones, or these too.
        Raises: InternalError if there are no tokens.
        """

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`.

        Raises: InternalError if the cache does not hold so many.
        """


class Runner(Protocol):
    """A model that is loaded and computes."""

    @property
    def isa(self) -> str | None:
        """The instruction set that its kernels use, or None where it does not choose them."""

    def session(self) -> Session:
        """Return a session with an empty cache."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (time, vocabulary), one row for each of the tokens, at least one."""


def require_room(config: Config, length: int) -> None:
    """Refuse more tokens in a row than a model has positions for. Raises: InputError."""
    if config.longest is not None and length > config.longest:
        raise InputError(
            f"{length} tokens are more than the {config.longest} that this model has positions for; give fewer"
        )
