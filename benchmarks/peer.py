"""Another engine in a process of its own, spoken to as src/zeropoint/evaluation/speed_process.py describes.

    PYTHON benchmarks/peer.py transformers FOLDER --dtype bfloat16 --threads 2
    PYTHON benchmarks/peer.py llama FILE.gguf --threads 2 [--no-extra-bufts]

It runs under the interpreter that has the engine and needs nothing else: neither zeropoint nor msgspec.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

CONTEXT = 32  # tokens before those whose decoding is measured: speed_process.CONTEXT


class Engine(Protocol):
    """What loads a model and runs it. vocab: how many tokens it knows."""

    vocab: int

    def reset(self) -> None:
        """Forget all tokens."""

    def feed(self, tokens: list[int]) -> int:
        """Append tokens and return the likeliest one after them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("transformers", "llama"))
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--no-extra-bufts", action="store_true")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints must not come between
    started_s = time.perf_counter()
    if arguments.engine == "transformers":
        engine: Engine = Transformers(arguments.model, arguments.dtype, arguments.threads)
    else:
        engine = LlamaCpp(arguments.model, arguments.threads, extra_bufts=not arguments.no_extra_bufts)
    load_s = time.perf_counter() - started_s
    decode(engine, 1)
    say(answers, do="loaded", load_s=load_s)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "memory":
            say(answers, do="peak", peak_memory_bytes=peak_memory_bytes())
        else:
            measure = prefill if asked["do"] == "prefill" else decode
            say(answers, do="measured", elapsed_s=measure(engine, asked["tokens"]))


class Transformers:
    """A folder, by transformers in torch."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.vocab = self._model.config.vocab_size
        self._past: Any = None

    def reset(self) -> None:  # noqa: D102 - as Engine says
        self._past = None

    def feed(self, tokens: list[int]) -> int:  # noqa: D102 - as Engine says
        ids = self._torch.tensor([tokens])
        out = self._model(input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = out.past_key_values
        return int(out.logits[0, -1].argmax())


class LlamaCpp:
    """A .gguf file, by llama.cpp through llama-cpp-python.

    extra_bufts: whether weights are repacked for AMX; as installed from PyPI every quantized format crashes there.
    """

    def __init__(self, model: str, threads: int, *, extra_bufts: bool) -> None:
        import llama_cpp
        import numpy as np

        low = llama_cpp.llama_cpp
        defaults = low.llama_model_default_params

        def params() -> Any:
            made = defaults()
            if not extra_bufts:
                made.use_extra_bufts = False
            return made

        low.llama_model_default_params = params  # Llama() has no option for it
        self._numpy, self._low = np, low
        self._llama = llama_cpp.Llama(
            model, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab = self._llama.n_vocab()

    def reset(self) -> None:  # noqa: D102 - as Engine says
        self._llama.reset()

    def feed(self, tokens: list[int]) -> int:  # noqa: D102 - as Engine says
        self._llama.eval(tokens)
        logits = self._low.llama_get_logits(self._llama.ctx)  # of the last token, the only one that has any
        return int(self._numpy.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


def prefill(engine: Engine, count: int) -> float:
    engine.reset()
    prompt = prompt_tokens(count, engine.vocab)
    return seconds(lambda: engine.feed(prompt))


def decode(engine: Engine, count: int) -> float:
    engine.reset()
    token = engine.feed(prompt_tokens(CONTEXT, engine.vocab))

    def steps() -> None:
        nonlocal token
        for _ in range(count):
            token = engine.feed([token])

    return seconds(steps)


def prompt_tokens(count: int, vocab: int) -> list[int]:
    return random.Random(0).choices(range(vocab), k=count)


def seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def peak_memory_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def say(answers: Any, **message: object) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
