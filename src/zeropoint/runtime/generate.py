"""A model that is loaded whole and answers: logits, text, text as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from zeropoint.errors import InputError
from zeropoint.models.parts import Config
from zeropoint.runtime.choices import CacheDtype, require_possible
from zeropoint.runtime.decode import Pieces, tokens_after
from zeropoint.runtime.runner import Runner, Session
from zeropoint.runtime.sampler import Sampler
from zeropoint.runtime.weights import Weights
from zeropoint.types import RunActivations, RunEmbeddings


def load(
    path: str | Path,
    *,
    runtime: Literal["native", "torch"] = "native",
    threads: int | None = None,
    activations: RunActivations = "int8",
    embeddings: RunEmbeddings = "stored",
    kv_cache: CacheDtype | None = None,
) -> LanguageModel:
    """Load a checkpoint, float or quantized: a folder or a .gguf file.

    runtime: "native" computes with the integers and imports no torch; "torch" with the float32 they stand for.
    threads: to compute with; None is all cores. kv_cache: the dtype of keys and values, "float16", "float32" or "int8";
    None is what the checkpoint's recipe says, or else float16, and float32 in torch. The rest is of the native runtime:
    activations, whether the inputs of the quantized linears are rounded to 8 bits, "int8", or those of bfloat16 linears
    to bfloat16, "bfloat16", or none, "float"; embeddings, whether embedding
    and head are kept as they are stored, or "int8", rounded to 8 bits where they are stored as floats.
    Raises: CheckpointError or ArchitectureError if it is none that can be read; InputError for another runtime.
    """
    require_possible(runtime, activations=activations, embeddings=embeddings)
    weights = Weights(open_checkpoint(path))
    # before the weights: while it is read it takes several times what it takes then
    tokenizer = find_tokenizer(weights.checkpoint)
    runner: Runner
    if runtime == "native":
        from zeropoint.runtime.native_runner import NativeRunner

        runner = NativeRunner(weights, threads=threads, activations=activations, embeddings=embeddings, cache=kv_cache)
    else:
        from zeropoint.runtime.torch_runner import TorchRunner

        runner = TorchRunner(weights, threads=threads, cache=kv_cache)
    return LanguageModel(weights, runner, tokenizer)


class LanguageModel:
    """A checkpoint and the runner that computes it. Made by `load`."""

    def __init__(self, weights: Weights, runner: Runner, tokenizer: Tokenizer | None) -> None:
        self._weights = weights
        self.runner = runner
        """What computes: sessions of it, and for the native one its memory and speed."""
        self._tokenizer = tokenizer

    @property
    def config(self) -> Config:
        """The numbers of the architecture."""
        return self._weights.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises: CheckpointError if it has none."""
        return self._tokenizer or load_tokenizer(self._weights.checkpoint)

    def session(self) -> Session:
        """Return an empty session: what `zeropoint.runtime.conversation` keeps from one answer to the next."""
        return self.runner.session()

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (time, vocabulary), one row for each of `tokens` (time,)."""
        return self.runner.logits(tokens)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """Return the continuation of `prompt`; see `stream`."""
        return "".join(self.stream(prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed))

    def stream(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> TextStream:
        """Return the continuation of `prompt`, which comes piece by piece until an end token or `max_tokens` tokens.

        The prompt is taken as it is; `tokenizer.chat` renders messages as a prompt.
        Raises: InputError if the prompt is empty or longer than the model's context.
        """
        tokens = self.tokenizer.encode(prompt)
        room = self.config.max_positions
        if not 0 < len(tokens) < room:
            raise InputError(f"the prompt has {len(tokens)} tokens; this model takes 1 to {room - 1}")
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        following = tokens_after(
            self.session(),
            tokens,
            sampler,
            ends=self.tokenizer.eos_ids,
            max_tokens=min(max_tokens, room - len(tokens)),
        )
        return TextStream(following, Pieces(self.tokenizer), prompt_tokens=len(tokens))


class TextStream(Iterator[str]):
    """Text that comes piece by piece, and how it came.

    prompt_tokens: of the prompt. tokens: so far. first_token_s, last_token_s: when they came, by time.perf_counter;
    None before the first.
    """

    def __init__(self, following: Iterator[int], pieces: Pieces, *, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._text = self._come(following, pieces)

    def __next__(self) -> str:
        """Return the next piece."""
        return next(self._text)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first; None if there are none."""
        if self.first_token_s is None or self.last_token_s is None or self.tokens < 2:
            return None
        return (self.tokens - 1) / (self.last_token_s - self.first_token_s)

    def _come(self, following: Iterator[int], pieces: Pieces) -> Iterator[str]:
        for token in following:
            self.last_token_s = time.perf_counter()
            self.first_token_s = self.first_token_s or self.last_token_s
            self.tokens += 1
            yield from pieces.add(token)
        yield from pieces.rest()
