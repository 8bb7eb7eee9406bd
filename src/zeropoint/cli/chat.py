"""`zeropoint chat`: a conversation, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, native_options, runtime_option, sampling_options, threads_option
from zeropoint.errors import InputError
from zeropoint.types import RunActivations


@click.command(
    epilog=example(
        "zeropoint chat SmolLM2-w4",
        'zeropoint chat SmolLM2-w4 --system "Answer in one sentence." --temperature 0.8 --top-p 0.9',
    )
)
@click.argument("model", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@sampling_options(max_tokens=512)
@runtime_option
@native_options
@threads_option
def command(
    *,
    model: Path,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    runtime: Literal["native", "torch"],
    embeddings: Literal["stored", "int8"],
    activations: RunActivations,
    kv_cache: Literal["float16", "int8"] | None,
    threads: int | None,
) -> None:
    """Talk with OUT, a folder or a .gguf file that has a chat template.

    Each line of stdin is one message. /reset forgets the conversation; /exit, Ctrl-D or Ctrl-C ends it. Ctrl-C during
    an answer ends the answer alone.
    """
    from zeropoint.runtime.conversation import Conversation
    from zeropoint.runtime.generate import load
    from zeropoint.runtime.sampler import Sampler

    Sampler(temperature=temperature, top_p=top_p, seed=seed)  # refuses what is out of range before a model is loaded
    loaded = load(
        model, runtime=runtime, threads=threads, embeddings=embeddings, activations=activations, kv_cache=kv_cache
    )
    conversation = Conversation(loaded, system=system)
    for line in _lines():
        if line == "/reset":
            conversation.reset()
            continue
        try:
            answer = conversation.ask(line, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
            for piece in answer:
                console.show_text(piece)
        except KeyboardInterrupt:  # ends the answer; what was said of it is part of the conversation
            pass
        except InputError as error:  # such as a full context, after which somebody may want to /reset
            if not console.asks():
                raise
            console.complain(str(error))
            continue
        console.show_text("\n")


def _lines() -> Iterator[str]:
    """Yield what is said, without empty lines, until the end is asked for."""
    while True:
        try:
            line = console.ask("> ")
        except KeyboardInterrupt:
            console.show_text("\n")
            return
        if line is None or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()
