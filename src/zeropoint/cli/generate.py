"""`zeropoint generate`: text from a model, as it comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import click

from zeropoint.cli import console
from zeropoint.cli.options import (
    example,
    json_option,
    native_options,
    runtime_option,
    sampling_options,
    threads_option,
)
from zeropoint.types import RunActivations


@click.command(
    epilog=example(
        'zeropoint generate SmolLM2-w4 --prompt "The capital of France is"',
        'zeropoint generate out --chat --prompt "Tell me a story." --temperature 0.8 --top-p 0.9 --seed 1',
    )
)
@click.argument("model", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", required=True, help="The text to go on from; - reads it from stdin.")
@sampling_options(max_tokens=128)
@click.option(
    "--chat/--raw", default=False, help="Put the prompt into the model's chat template, or take it as it is (default)."
)
@runtime_option
@native_options
@threads_option
@json_option
def command(
    *,
    model: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    chat: bool,
    runtime: Literal["native", "torch"],
    embeddings: Literal["stored", "int8"],
    activations: RunActivations,
    kv_cache: Literal["float16", "int8"] | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Generate text with OUT, a folder or a .gguf file, float or quantized."""
    started_s = time.perf_counter()
    from zeropoint.runtime.generate import load

    if prompt == "-":
        prompt = sys.stdin.read()
    loaded = load(
        model, runtime=runtime, threads=threads, embeddings=embeddings, activations=activations, kv_cache=kv_cache
    )
    load_s = time.perf_counter() - started_s
    rendered = loaded.tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
    stream = loaded.stream(rendered, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if not as_json:
        for piece in stream:
            console.show_text(piece)
        console.show_text("\n")
        return
    from zeropoint.evaluation.results import Generation, peak_memory_bytes

    text = "".join(stream)
    result = Generation(
        prompt=rendered,
        text=text,
        prompt_tokens=stream.prompt_tokens,
        tokens=stream.tokens,
        load_s=load_s,
        first_token_s=None if stream.first_token_s is None else stream.first_token_s - started_s,
        tokens_per_s=stream.tokens_per_s,
        elapsed_s=time.perf_counter() - started_s,
        peak_memory_bytes=peak_memory_bytes(),
        runtime=runtime,
        isa=loaded.runner.isa,
    )
    console.show_json(result)
