"""A conversation with a model: each question is answered in the light of all that was said before.

Every turn renders the whole conversation with the model's chat template. The session keeps its cache from turn to turn,
and only what follows the longest beginning that both have in common is computed; so a turn costs what is new in it,
and a template that rewrites its past, as some do, is still right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zeropoint.errors import InputError
from zeropoint.runtime.decode import Pieces, tokens_after
from zeropoint.runtime.generate import LanguageModel
from zeropoint.runtime.sampler import Sampler


class Conversation:
    """A conversation with `model`, under the instruction `system` if there is one.

    Raises: CheckpointError if the model has no chat template; TextError if its template takes no such instruction.
    """

    def __init__(self, model: LanguageModel, system: str | None = None) -> None:
        self._model = model
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._system)
        self._session = model.session()
        self._tokens: list[int] = []  # the session holds the first session.length of them
        model.tokenizer.chat([*self._system, {"role": "user", "content": ""}])

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """What was said: {"role": "system" | "user" | "assistant", "content": ...}, the oldest first."""
        return tuple(dict(message) for message in self._messages)

    def ask(
        self, text: str, *, max_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """Yield the answer to `text` piece by piece, until an end token, `max_tokens` tokens or the end of the context.

        Question and answer are part of the conversation from then on; of an answer that is broken off (the iterator is
        closed, interrupted, or the next question comes) what was yielded.
        Raises: InputError if the context has no room for an answer, or TextError if the template refuses the messages;
            then the conversation is as it was. InputError for options of sampling out of range.
        """
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        messages = [*self._messages, {"role": "user", "content": text}]
        tokens = self._model.tokenizer.encode(self._model.tokenizer.chat(messages))
        room = self._model.config.max_positions - len(tokens)
        if room < 1:
            raise InputError(
                f"the conversation has {len(tokens)} tokens with this message, and the model's context is "
                f"{self._model.config.max_positions}; begin a new one, or say something shorter"
            )
        # one token is always fed, as the logits of the last one are not kept
        known = min(_common(self._tokens[: self._session.length], tokens), len(tokens) - 1)
        self._session.rewind(known)
        answer = {"role": "assistant", "content": ""}
        self._messages, self._tokens = [*messages, answer], tokens
        return self._answer(answer, tokens, known, sampler, min(max_tokens, room))

    def reset(self) -> None:
        """Forget what was said; the system's instruction stays."""
        self._messages = list(self._system)

    def _answer(
        self, answer: dict[str, str], tokens: list[int], known: int, sampler: Sampler, max_tokens: int
    ) -> Iterator[str]:
        """Yield the answer; `tokens` and `answer` grow with it, so that nothing is left to do when it is broken off."""
        if tokens is not self._tokens:
            return
        pieces = Pieces(self._model.tokenizer)
        ends = self._model.tokenizer.eos_ids
        for token in tokens_after(self._session, tokens[known:], sampler, ends=ends, max_tokens=max_tokens):
            tokens.append(token)
            for piece in pieces.add(token):
                answer["content"] += piece
                yield piece
                if tokens is not self._tokens:  # the next question came meanwhile, and the session is its
                    return
        for piece in pieces.rest():
            answer["content"] += piece
            yield piece


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest beginning that both have."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
