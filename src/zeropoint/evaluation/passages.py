"""Where two models differ most, as text: the places of the largest KL, what each expects there, how each goes on.

`Worst` looks at the logits of a text as they go by, and keeps little: the largest KL of each of the WORST windows where
it is largest, with the few likeliest successors there. Texts are written when all windows have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeropoint.checkpoint.tokenizer import Tokenizer
from zeropoint.evaluation.results import Bar, Passage, Successor
from zeropoint.observe.data import Windows

WORST = 12
"""Windows that are shown, at most."""

LIKELIEST = 3
"""Successors of each model."""

SUCCESSORS = 5
"""Successors of both models together, at most."""

BEFORE = 60
"""Tokens of the text before."""

CONTINUED_TOKENS = 24

CONTINUED_SHARE = 0.03
"""Of the time of judging that continuations may take; the worst passage has them whatever they take."""

DECODED = 8
"""Times that a token takes longer where it comes alone than in a window: 4 to 9 on the demo model."""

FIRST_BAR = 1e-6
"""KL in nats where the second bar begins."""

BARS_PER_DECADE = 4

Continue = Callable[[Sequence[int], int], list[int]]
"""Returns the tokens, so many at most, with which a model goes on after a text."""


@dataclass(frozen=True)
class Place:
    """One token of the text. likeliest: (token, probability by the reference, by the quantized model)."""

    window: int
    position: int
    kl: float
    likeliest: tuple[tuple[int, float, float], ...]


class Worst:
    """The places with the largest KL, one in a window at most; of equals the first."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    def see(self, window: int, start: int, kl: Tensor, reference: Tensor, quantized: Tensor) -> None:
        """Take in tokens of a window, those from position `start` on.

        kl: (tokens,). reference, quantized: logits, (tokens, vocabulary). The windows come one after the other.
        """
        at = int(kl.argmax())
        largest = float(kl[at])
        here = next((place for place in self._places if place.window == window), None)
        rival = here or (min(self._places, key=_rank) if len(self._places) == WORST else None)
        if not largest > (0.0 if rival is None else rival.kl):
            return
        if rival is not None:
            self._places.remove(rival)
        self._places.append(Place(window, start + at, largest, likeliest(reference[at], quantized[at])))

    @property
    def places(self) -> list[Place]:
        """The places, the worst first."""
        return sorted(self._places, key=_rank, reverse=True)


def _rank(place: Place) -> tuple[float, int]:
    return place.kl, -place.window


def likeliest(reference: Tensor, quantized: Tensor) -> tuple[tuple[int, float, float], ...]:
    """Return the successors that one model or the other finds likeliest, those of the reference first.

    reference, quantized: logits, (vocabulary,).
    """
    p, q = torch.softmax(reference.double(), dim=0), torch.softmax(quantized.double(), dim=0)
    most = min(LIKELIEST, len(p))
    found = dict.fromkeys(torch.cat([p.topk(most).indices, q.topk(most).indices]).tolist())
    return tuple((token, float(p[token]), float(q[token])) for token in list(found)[:SUCCESSORS])


def passages(
    worst: Worst, windows: Windows, tokenizer: Tokenizer, continued: tuple[Continue, Continue] | None
) -> tuple[Passage, ...]:
    """Return the places as text. continued: how the reference and the quantized model go on; None: they are not asked.

    Only the worst of them are continued, as many as CONTINUED_SHARE allows; it counts tokens, not seconds, so that the
    same models and texts always give the same passages.
    """
    left = CONTINUED_SHARE * windows.tokens.size
    rows: list[Passage] = []
    for place in worst.places:
        tokens = windows.tokens[place.window].tolist()
        seen, actual = tokens[: place.position + 1], tokens[place.position + 1]
        takes = len(seen) + DECODED * CONTINUED_TOKENS
        both: tuple[str | None, str | None] = None, None
        if continued is not None and (not rows or takes <= left):
            left -= takes
            first, second = (text_after(tokenizer, seen, go_on(seen, CONTINUED_TOKENS)) for go_on in continued)
            both = first, second
        rows.append(
            Passage(
                window=place.window,
                position=place.position,
                kl=place.kl,
                before=_before(tokenizer, seen),
                actual=text_after(tokenizer, seen, [actual]),
                likeliest=tuple(
                    Successor(token=text_after(tokenizer, seen, [token]), reference=p, quantized=q)
                    for token, p, q in place.likeliest
                ),
                reference=both[0],
                quantized=both[1],
            )
        )
    return tuple(rows)


def text_after(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """Return what tokens add to the text of those before them, `_before`: with a space in front where there is one.

    A character that the tokens before have only begun belongs to it. Tokens without text are shown by their numbers.
    """
    known, whole = _before(tokenizer, before), tokenizer.decode([*before[-BEFORE:], *tokens])
    if whole.startswith(known) and len(whole) > len(known):
        return whole[len(known) :]
    return tokenizer.decode(tokens) or "".join(f"<{token}>" for token in tokens)


def _before(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of the last tokens, but for a last character that they have only begun."""
    return tokenizer.decode(tokens[-BEFORE:]).rstrip("\N{REPLACEMENT CHARACTER}")


def kl_bars(kl: NDArray[np.float32]) -> tuple[Bar, ...]:
    """Return how many tokens have which KL, >= 0: from 0 to FIRST_BAR, then BARS_PER_DECADE to a power of ten.

    The ends are the same for all models; the last bar is the one that holds the largest.
    """
    largest = float(kl.max())
    count = max(0, math.ceil(BARS_PER_DECADE * math.log10(max(largest, FIRST_BAR) / FIRST_BAR))) + 2
    ends = [0.0, *(float(f"{FIRST_BAR * 10 ** (step / BARS_PER_DECADE):.3g}") for step in range(count))]
    counts = np.histogram(kl.astype(np.float64), bins=np.array([*ends, math.inf]))[0]
    last = int(np.flatnonzero(counts)[-1])
    return tuple(Bar(low=ends[at], high=ends[at + 1], count=int(counts[at])) for at in range(last + 1))
