"""From logits to text: the loop that chooses token after token, and the text that they complete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from zeropoint.checkpoint.tokenizer import Tokenizer
from zeropoint.runtime.runner import Session
from zeropoint.runtime.sampler import Sampler


def tokens_after(
    session: Session, tokens: Sequence[int], sampler: Sampler, *, ends: Collection[int], max_tokens: int
) -> Iterator[int]:
    """Append `tokens` to the session and yield what follows, until one of `ends`, which is left out, or `max_tokens`.

    A token is appended to the session when the one after it is asked for.
    """
    for _ in range(max_tokens):
        token = sampler.choose(session.next_logits(tokens))
        if token in ends:
            return
        yield token
        tokens = (token,)


class Pieces:
    """Turns tokens into text as they come; a character whose bytes are not complete yet waits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # since the last piece, and the token before it for the space between words
        self._shown = ""

    def add(self, token: int) -> Iterator[str]:
        """Take one token and yield the text that it completes, if any."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if len(text) > len(self._shown) and not text.endswith("\ufffd"):
            yield text[len(self._shown) :]
            self._tokens = self._tokens[-1:]
            self._shown = self._tokenizer.decode(self._tokens)

    def rest(self) -> Iterator[str]:
        """Yield what is still waiting at the end."""
        text = self._tokenizer.decode(self._tokens)[len(self._shown) :]
        if text:
            yield text
