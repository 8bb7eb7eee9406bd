"""Every reader of the package as one function, which reads a folder in which one file holds hostile bytes.

A reader may return, or raise an InputError with a sentence. Anything else is a fault.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import islice
from pathlib import Path

import msgspec
from rich.console import Console, RenderableType

import zeropoint
from fuzz.seeds import BEGUN, JOURNAL, SECRET, canaries
from zeropoint.checkpoint import rendering
from zeropoint.checkpoint.journal import Step, line_of
from zeropoint.checkpoint.reader import Checkpoint, open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import InputError
from zeropoint.evaluation.results import Evaluation
from zeropoint.inspection import inspect
from zeropoint.models.parts import linear_names, outer_tensors
from zeropoint.observe.data import calibration_batches, judging_windows
from zeropoint.recipe import Recipe, load_recipe, override, resolve
from zeropoint.report.terminal import checked, inspected
from zeropoint.runtime.weights import Weights
from zeropoint.verification import verify

rendering.SECONDS = 0.2
PROMPT = "The miller kept 3 cats, und die Mühle stand am Ufer.\n"
MESSAGES = ({"role": "user", "content": "What shall we do?"}, {"role": "assistant", "content": "Begin again."})
OUT = "copied"


class FaultError(Exception):
    """Something that must not happen has happened without an exception."""


@dataclass(frozen=True)
class Target:
    """base: the folder in seeds.py whose copy is read. file: in it, which gets the bytes. kind: as `mutate` takes it.

    read: the reader, given the folder. weight: how often it is drawn. fresh: whether it changes the folder.
    """

    name: str
    base: str
    file: str
    kind: str
    read: Callable[[Path], object]
    weight: int = 4
    fresh: bool = False


def read_weights(folder: Path) -> None:
    """Everything of a model but its run: header, config, schemes, every tensor, the files that are handed on."""
    checkpoint = open_checkpoint(folder)
    for info in checkpoint.tensors.values():
        if folder not in (info.file.parent, info.file):
            raise FaultError(f"a tensor is read from {info.file}")
    weights = Weights(checkpoint)
    for name in list(weights.schemes)[:8]:
        if weights.packed_linear(name) is None:
            checkpoint.read_array(f"{name}.weight")
    for name in outer_tensors(weights.model):
        if name.removesuffix(".weight") not in weights.table_schemes:
            checkpoint.read_array(name)


def run_model(folder: Path) -> None:
    """Load a model and run it."""
    model = zeropoint.load(folder, threads=1)
    if model.logits([1, 2]).shape != (2, model.config.vocab_size):
        raise FaultError("the logits have another shape")


def read_tokenizer(folder: Path) -> None:
    """Load a tokenizer, use it, and hand its files on."""
    checkpoint = open_checkpoint(folder)
    tokenizer = find_tokenizer(checkpoint)
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode(PROMPT, add_special_tokens=True)[:100])
        tokenizer.decode(list(range(min(tokenizer.vocab_size, 8))), skip_special_tokens=True)
    hand_on(checkpoint, folder)


def chat(folder: Path) -> None:
    """Render a conversation."""
    tokenizer = load_tokenizer(open_checkpoint(folder))
    tokenizer.encode(tokenizer.chat(MESSAGES)[:10_000])


def hand_on(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what an output gets of its source, which must not be anything outside of it."""
    out = folder / OUT
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        checkpoint.copy_side_files(out)
        for file in out.iterdir():
            if SECRET.encode() in file.read_bytes():
                raise FaultError(f"{file.name} holds what lies outside of the folder")
    finally:
        shutil.rmtree(out)


def read_gguf(folder: Path) -> None:
    """Everything of a GGUF file."""
    checkpoint = open_checkpoint(folder / "model.gguf")
    weights = Weights(checkpoint)
    for name in (*islice(weights.schemes, 3), weights.model.ends.embedding, weights.model.ends.norm):
        weights.checkpoint.read_array(f"{name}.weight")
    tokenizer = find_tokenizer(checkpoint)
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode(PROMPT))


def read_recipe(folder: Path) -> None:
    """Load a recipe, check it, apply it, and write it down."""
    recipe = load_recipe(folder / "mine.toml")
    recipe.check()
    recipe.to_toml()
    resolve(recipe, layers(folder))


def read_overrides(folder: Path) -> None:
    """What --set takes, a line each; bytes that are no text reach a command line as lone surrogates."""
    settings = (folder / "set").read_bytes().decode("utf-8", "surrogateescape").splitlines()
    recipe = override(_static(), settings) if len(settings) % 2 else load_recipe("w4a16", settings)
    recipe.check()
    recipe.to_toml()
    resolve(recipe, layers(folder))


@cache
def _static() -> Recipe:
    return load_recipe("w8a8_static")


@cache
def layers(folder: Path) -> tuple[str, ...]:
    """The names of the linears of the quantized model beside `folder`."""
    return tuple(linear_names(Weights(open_checkpoint(folder.parent / "quantized")).model))


def read_record(folder: Path) -> None:
    """The record of a run, and what inspect shows of it."""
    show(inspected(inspect(folder)))


def read_results(folder: Path) -> None:
    """The result of a judgement."""
    Evaluation.load(folder / "results.json")


def read_manifest(folder: Path) -> None:
    """A manifest, and what verify makes of it."""
    checked(verify(folder))


def show(table: RenderableType) -> None:
    """Make a table as a terminal would see it."""
    Console(file=StringIO(), width=120).print(table)


def read_journal(folder: Path) -> None:
    """What an unfinished run has left; lines that hold a step are made whole, which hides no fault behind a hash."""
    file = folder / JOURNAL
    lines = []
    for line in b"" if file.is_symlink() else file.read_bytes().splitlines():
        try:
            lines.append(line_of(msgspec.json.decode(msgspec.json.decode(line)["step"], type=Step)))
        except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError, KeyError):
            lines.append(line)
    if not file.is_symlink():
        file.write_bytes(b"\n".join(line.rstrip(b"\n") for line in lines) + b"\n")
    with suppress(_EnoughError), Writer(folder / "out", begun=BEGUN) as writer:
        for step in writer.steps:
            step.read(dict)
        writer.hashes()
        raise _EnoughError("enough")
    for canary in canaries(folder.parent):
        if canary.read_text() != SECRET:
            raise FaultError(f"{canary.name} was changed")


class _EnoughError(InputError):
    """Leaves a run that is not to be finished."""


def read_text(folder: Path) -> None:
    """A text to calibrate or to judge on."""
    file = folder / "text.jsonl" if (folder / "text.jsonl").exists() else folder / "text.txt"
    tokenizer = plain_tokenizer(folder)
    calibration_batches(file, tokenizer, samples=2, length=8, seed=0, batch=1)
    judging_windows(file, tokenizer, length=8, max_windows=2)


@cache
def plain_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the model beside `folder`."""
    return load_tokenizer(open_checkpoint(folder.parent / "float"))


TARGETS = (
    Target("safetensors", "float", "model.safetensors", "safetensors", read_weights, 8),
    Target("safetensors_run", "float", "model.safetensors", "safetensors", run_model),
    Target("quantized", "quantized", "model.safetensors", "safetensors", read_weights, 6),
    Target("quantized_run", "quantized", "model.safetensors", "safetensors", run_model),
    Target("index", "sharded", "model.safetensors.index.json", "json", read_weights),
    Target("config", "float", "config.json", "json", read_weights, 8),
    Target("config_run", "float", "config.json", "json", run_model, 6),
    Target("quantization", "quantized", "config.json", "json", read_weights, 8),
    Target("quantization_run", "quantized", "config.json", "json", run_model),
    Target("tokenizer", "float", "tokenizer.json", "json", read_tokenizer, 6),
    Target("tokenizer_config", "float", "tokenizer_config.json", "json", read_tokenizer, 2),
    Target("generation_config", "float", "generation_config.json", "json", read_tokenizer, 2),
    Target("template", "float", "chat_template.jinja", "text", chat, 1),
    Target("gguf", "gguf", "model.gguf", "binary", read_gguf, 5),
    Target("recipe", "recipe", "mine.toml", "toml", read_recipe, 8),
    Target("set", "recipe", "set", "toml", read_overrides, 4),
    Target("record", "quantized", "zeropoint.json", "json", read_record, 1),
    Target("results", "quantized", "results.json", "json", read_results, 6),
    Target("manifest", "quantized", "zeropoint-manifest.json", "json", read_manifest, 2),
    Target("journal", "journal", JOURNAL, "jsonl", read_journal, 3, fresh=True),
    Target("jsonl", "jsonl", "text.jsonl", "jsonl", read_text, 3),
    Target("text", "text", "text.txt", "text", read_text, 1),
)


def faults(target: Target, folder: Path) -> tuple[str, str]:
    """Run a target on a folder; return how it ended, "read" or the name of the error, and "" or what is wrong then."""
    try:
        target.read(folder)
    except InputError as error:
        return type(error).__name__, wrong_message(str(error))
    return "read", ""


def wrong_message(message: str) -> str:
    """Return what is wrong with the message of an InputError, or ""."""
    if not message.strip() or len(message) > 4000:
        return f"a message of {len(message)} characters"
    if not all(char.isprintable() or char == "\n" for char in message):
        return f"a message with characters that cannot be printed: {message[:200]!r}"
    return ""
