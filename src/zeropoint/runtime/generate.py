"""A model that is loaded whole and answers: logits, text, text as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, load_tokenizer
from zeropoint.errors import InputError
from zeropoint.models.parts import Config
from zeropoint.runtime.cache import TorchLayerCache
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.sampler import Sampler
from zeropoint.runtime.weights import Weights


def load(path: str | Path) -> LanguageModel:
    """Load a checkpoint, float or quantized: a folder or a .gguf file.

    Raises: CheckpointError or ArchitectureError if it is none that can be read.
    """
    return LanguageModel(path)


class LanguageModel:
    """A float or quantized checkpoint, run by the torch ops in float32. Made by `load`."""

    def __init__(self, path: str | Path) -> None:
        self._weights = Weights(open_checkpoint(path))
        self._model = self._weights.model
        self._ops = TorchOps()
        self._blocks = [self._weights.block(index, self._ops) for index in range(self._model.config.layers)]
        self._embedding = self._weights.embedding()
        self._head = self._weights.head(self._ops)
        self._tokenizer: Tokenizer | None = None

    @property
    def config(self) -> Config:
        """The numbers of the architecture."""
        return self._model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read when it is first needed."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._weights.checkpoint)
        return self._tokenizer

    def logits(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Return float32 logits (time, vocabulary), one row for each of `tokens` (time,)."""
        return self._forward(torch.as_tensor(tokens)[None], None)[0]

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """Return the continuation of `prompt`; see `stream`."""
        return "".join(self.stream(prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed))

    def stream(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """Yield the continuation of `prompt` piece by piece, until an end token or `max_tokens` tokens.

        The prompt is taken as it is; `tokenizer.chat` renders messages as a prompt.
        Raises: InputError if the prompt is empty or longer than the model's context.
        """
        tokens = self.tokenizer.encode(prompt)
        room = self._model.config.max_positions
        if not 0 < len(tokens) < room:
            raise InputError(f"the prompt has {len(tokens)} tokens; this model takes 1 to {room - 1}")
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        return self._stream(tokens, sampler, min(max_tokens, room - len(tokens)))

    def new_cache(self) -> list[TorchLayerCache]:
        """Return an empty cache, one part for each block."""
        return [TorchLayerCache() for _ in self._blocks]

    def next_logits(self, tokens: Tensor, past: list[TorchLayerCache]) -> Tensor:
        """Append int tokens (1, time) to the cache and return float32 logits (vocabulary,) for what follows them."""
        return self._forward(tokens, past)[0, -1]

    def _stream(self, tokens: list[int], sampler: Sampler, max_tokens: int) -> Iterator[str]:
        past = self.new_cache()
        pieces = Pieces(self.tokenizer)
        step = tokens
        for _ in range(max_tokens):
            token = sampler.choose(self.next_logits(torch.tensor([step]), past))
            if token in self.tokenizer.eos_ids:
                break
            yield from pieces.add(token)
            step = [token]
        yield from pieces.rest()

    @torch.inference_mode()
    def _forward(self, tokens: Tensor, past: list[TorchLayerCache] | None) -> Tensor:
        """Return logits: of all positions without a cache, of the last one with it."""
        x = self._model.embed(self._ops, self._embedding, tokens)
        for index, block in enumerate(self._blocks):
            x = block.run(self._model.flow, x, past[index] if past is not None else None)
        logits: Tensor = self._model.head(self._ops, self._head, x if past is None else x[:, -1:])
        return logits


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
