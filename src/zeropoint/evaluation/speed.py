"""How fast a model runs, how much memory it takes, and how near decoding comes to the limit: memory's bandwidth.

Each token reads all weights once, so tokens per second <= bandwidth / bytes per token. A machine's speed drifts, with
its temperature and with whoever shares it; so nothing is compared with a number from another minute. Everything is
measured in rounds:

    prefill A, prefill B, decode A, decode B, stream;   prefill A, prefill B, decode A, decode B, stream;   ...

and a ratio, or a share of the bandwidth, is between numbers of one round. Each model is in a process of its own
(speed_process.py), and one thing computes at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import zeropoint
from zeropoint import _native
from zeropoint.errors import InputError
from zeropoint.evaluation.results import Bench, ModelSpeed, Ratio, Spread, machine, versions
from zeropoint.evaluation.speed_process import (
    CONTEXT,
    Decode,
    Measured,
    Memory,
    Model,
    ModelProcess,
    NativeLoaded,
    Peak,
    Prefill,
    model_process,
)
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.choices import CacheDtype
from zeropoint.types import RunActivations, RunEmbeddings

STREAM_BYTES = 512 << 20
"""Read to measure the bandwidth; many times what caches hold."""

STREAM_TRIES = 3
"""In each round; the best counts, as the limit is what memory can do."""


def bench(
    model: str | Path,
    *,
    against: str | Path | None = None,
    prompt_tokens: int = 512,
    tokens: int = 128,
    runs: int = 5,
    threads: int | None = None,
    embeddings: RunEmbeddings = "stored",
    activations: RunActivations = "int8",
    kv_cache: CacheDtype | None = None,
    progress: ProgressCallback | None = None,
) -> Bench:
    """Measure the speed and the memory of `model`, a checkpoint, float or quantized, in the native runtime.

    against: another one, measured in turns with it. prompt_tokens: of a prefill. tokens: decoded one by one after a
    prompt of 32. runs: rounds. threads: None is all cores. embeddings, activations, kv_cache: as `zeropoint.load` takes
    them, for both models.
    Raises: InputError, by one of its subclasses, if a model cannot be read or its context is too short; ProcessError if
        a process that measures dies.
    """
    started_s = time.perf_counter()
    found = measure_speeds(
        (model, *([] if against is None else [against])),
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        runs=runs,
        threads=threads,
        embeddings=embeddings,
        activations=activations,
        kv_cache=kv_cache,
        progress=progress,
    )
    return Bench(
        zeropoint=zeropoint.__version__,
        model=found.models[0],
        against=found.models[1] if against is not None else None,
        prefill_ratio=_ratio(found.prefill),
        decode_ratio=_ratio(found.decode),
        bandwidth_bytes_per_s=_spread(found.bandwidths),
        prompt_tokens=prompt_tokens,
        context_tokens=CONTEXT,
        tokens=tokens,
        runs=runs,
        threads=found.threads,
        isa=found.isa,
        activations=activations,
        elapsed_s=time.perf_counter() - started_s,
        versions=versions(),
        machine=machine(),
    )


@dataclass(frozen=True)
class Speeds:
    """What was measured of several models in the same rounds.

    prefill, decode: tokens per second, of each model in each round. bandwidths: bytes per second, of each round.
    """

    models: tuple[ModelSpeed, ...]
    prefill: tuple[Sequence[float], ...]
    decode: tuple[Sequence[float], ...]
    bandwidths: Sequence[float]
    threads: int
    isa: str


def measure_speeds(
    models: Sequence[str | Path],
    *,
    prompt_tokens: int,
    tokens: int,
    runs: int,
    threads: int | None = None,
    embeddings: RunEmbeddings = "stored",
    activations: RunActivations = "int8",
    kv_cache: CacheDtype | None = None,
    progress: ProgressCallback | None = None,
) -> Speeds:
    """Measure models in turns; all of them are in memory at once, each in a process of its own.

    The options and what is raised are those of `bench`.
    """
    for name, count in (("prompt_tokens", prompt_tokens), ("tokens", tokens), ("runs", runs), ("threads", threads)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be 1 or more")
    report = progress or (lambda step: None)
    threads = threads or _native.usable_cores()
    with ExitStack() as stack:
        measured: list[_Measured] = []
        for path in models:
            asked = Model(
                path=str(path),
                threads=threads,
                embeddings=embeddings,
                activations=activations,
                kv_cache=kv_cache,
                positions=max(prompt_tokens, CONTEXT + tokens),
            )
            measured.append(_Measured(asked.path, *stack.enter_context(model_process(asked))))
        for each in measured:  # the first time allocates
            each.process.ask(Prefill(tokens=prompt_tokens), Measured)
        report(Progress("bench", 1, runs + 1, "loaded"))
        bandwidths: list[float] = []
        for run in range(runs):
            _round(measured, prompt_tokens, tokens)
            bandwidths.append(_native.Pool(threads).stream(STREAM_BYTES, STREAM_TRIES))
            report(Progress("bench", run + 2, runs + 1, f"run {run + 1}"))
        return Speeds(
            models=tuple(each.result(tokens, bandwidths) for each in measured),
            prefill=tuple(each.prefill for each in measured),
            decode=tuple(each.decode for each in measured),
            bandwidths=bandwidths,
            threads=threads,
            isa=measured[0].loaded.isa,
        )


@dataclass
class _Measured:
    """A model and what was measured of it: tokens per second, a number for each round."""

    path: str
    process: ModelProcess
    loaded: NativeLoaded
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def result(self, tokens: int, bandwidths: Sequence[float]) -> ModelSpeed:
        """Return it all. tokens: decoded in a run. bandwidths: bytes per second, of each round."""
        # the cache holds one token more at each step, and each step reads all of it
        mean_length = CONTEXT + (tokens + 1) / 2
        token_bytes = self.loaded.token_bytes + round(self.loaded.cache_token_bytes * mean_length)
        shares = [speed * token_bytes / limit for speed, limit in zip(self.decode, bandwidths, strict=True)]
        return ModelSpeed(
            model=self.path,
            prefill_tokens_per_s=_spread(self.prefill),
            decode_tokens_per_s=_spread(self.decode),
            token_bytes=token_bytes,
            bandwidth_share=_spread(shares),
            weight_bytes=self.loaded.weight_bytes,
            peak_memory_bytes=self.process.ask(Memory(), Peak).peak_memory_bytes,
            load_s=self.loaded.load_s,
            first_token_s=self.process.first_token_s,
            embeddings=self.loaded.embeddings,
            kv_cache=self.loaded.kv_cache,
            cache_token_bytes=self.loaded.cache_token_bytes,
        )


def _round(measured: Sequence[_Measured], prompt_tokens: int, tokens: int) -> None:
    """Measure every model once, in turns."""
    for each in measured:
        each.prefill.append(prompt_tokens / each.process.ask(Prefill(tokens=prompt_tokens), Measured).elapsed_s)
    for each in measured:
        each.decode.append(tokens / each.process.ask(Decode(tokens=tokens), Measured).elapsed_s)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), low=min(values), high=max(values))


def _ratio(values: Sequence[Sequence[float]]) -> Ratio | None:
    """Return the ratio of the first to the second, if there is a second."""
    if len(values) < 2:
        return None
    ratios = [ours / other for ours, other in zip(values[0], values[1], strict=True)]
    return Ratio(of_medians=median(values[0]) / median(values[1]), low=min(ratios), high=max(ratios))
