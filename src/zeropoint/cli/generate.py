"""`zeropoint generate`: text from a model, as it comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, sampling_options, threads_option


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
    as_json: bool,
) -> None:
    """Generate text with OUT, a folder or a .gguf file, float or quantized."""
    from zeropoint.runtime.generate import load

    if prompt == "-":
        prompt = sys.stdin.read()
    loaded = load(model)
    rendered = loaded.tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
    started_s = time.perf_counter()
    pieces = loaded.stream(rendered, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if as_json:
        text = "".join(pieces)
        console.show_json({"prompt": rendered, "text": text, "elapsed_s": time.perf_counter() - started_s})
        return
    for piece in pieces:
        console.show_text(piece)
    console.show_text("\n")
