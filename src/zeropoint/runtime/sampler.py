"""From logits to the next token: greedy, or nucleus sampling at a temperature, with a seed of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from zeropoint.errors import InputError


class Sampler:
    """Chooses tokens.

    temperature: 0 is greedy; above 0 logits are divided by it. top_p: the smallest set of tokens whose probabilities
    sum to at least top_p is kept, in (0, 1].
    Raises: InputError for values outside these ranges.
    Source of top_p: Holtzman et al. 2019, arXiv:1904.09751.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number such as 0.8")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}; it must be above 0 and at most 1, such as 0.9")
        self._temperature = temperature
        self._top_p = top_p
        self._random = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """Return the next token for float32 logits (vocabulary,)."""
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities, tokens = torch.softmax(logits / self._temperature, dim=-1).sort(descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens; 0 for the first
        kept = torch.where(before < self._top_p, probabilities, 0.0)
        return int(tokens[torch.multinomial(kept, 1, generator=self._random)])
