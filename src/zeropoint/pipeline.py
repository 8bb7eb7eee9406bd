"""The whole flow on one screen: read, observe, choose, round, pack, write, one block at a time.

    checkpoint --Weights--> block --walk--> statistics of a stage's input --choose--> scales --round--> integers
                            |   ^                                                                          |
                   transforms   +----------- the quantized weights, for what runs next <-------------------+--> Writer

Where inputs are rounded too, what runs next does it: later stages are observed as they will be fed. The statistics of
a stage are those of its input before it is rounded.

What is judged later is the written file, never anything in here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import zeropoint
from zeropoint.blocks import written_dtype
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import RecipeError
from zeropoint.evaluation.results import (
    MANIFEST,
    RECORD,
    Manifest,
    Plan,
    QuantizeResult,
    Text,
    machine,
    peak_memory_bytes,
    resident_bytes,
    versions,
)
from zeropoint.evaluation.size import in_blocks, size_of
from zeropoint.heap import available_bytes, map_large
from zeropoint.models.parts import outer_tensors
from zeropoint.observe.data import Batches, bundled_text, calibration_batches, random_batches, require_readable
from zeropoint.planning import schemes
from zeropoint.planning.memory import Memory
from zeropoint.planning.plan import Prepared, describe, fallbacks, memory_of, prepare
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.runtime.choices import CONFIG_KEY, Choices
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.steps import Steps
from zeropoint.transforms.hadamard import Rotation
from zeropoint.transforms.outer import Outer, find_rotation
from zeropoint.verification import hashes_of, hashes_of_files, require_verified, verify_apart

BENCH_S = 0.5
"""What measuring the machine may take before a run."""

_log = logging.getLogger(__name__)


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    recipe: str | Path | Recipe = "w4a16",
    calibration: str | Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    max_memory_bytes: int | None = None,
    progress: ProgressCallback | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> QuantizeResult:
    """Quantize a checkpoint and write the result to a new folder.

    A run that was killed, was stopped or met a full disk is gone on with when the same is asked for again.

    model: a Hugging Face folder or a .gguf file. output: the folder to make; it appears when complete and checked.
    recipe: a preset's name, a TOML file or a Recipe. calibration: a .txt or .jsonl file; None is the bundled text.
    restart: begin anew where an unfinished run could be gone on with. max_memory_bytes: what the process may take; the
    text's activations wait on disk if need be, and malloc of the GNU C library keeps less of what is freed, from then
    on. None: as much as the work needs, and what is available. planned: told
    what the run will take, before the work begins; without it this machine is not measured, and no time is planned.

    Raises: InputError, by one of its subclasses, for all that is wrong with what was given; InternalError if the
    written model is not what was computed. Nothing is under the output's name then.
    """
    started_s = time.perf_counter()
    report = progress or (lambda step: None)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe.check()
    if calibration is not None and recipe.calibration.tokens == "random":
        raise RecipeError(
            f"recipe {recipe.name} calibrates on random tokens, and {calibration} is given too; leave it out, or write "
            "calibration.tokens = 'text'"
        )
    weights = Weights(open_checkpoint(model))
    prepared = prepare(weights, recipe)
    plans, file_format, tables = prepared.plans, prepared.file_format, prepared.tables
    rotation = _rotation(weights, recipe)
    outer = None if rotation is None else _outer(weights, rotation)
    note = prepared.note
    for said in (note, *fallbacks(prepared)):
        if said is not None:
            _log.warning("%s", said)
    memory = _memory(prepared, max_memory_bytes)
    if memory.limits.tight:
        map_large()
    bench_s = 0.0 if planned is None else BENCH_S
    expected = describe(prepared, model, memory, max_memory_bytes=max_memory_bytes, bench_s=bench_s)
    if planned is not None:
        planned(expected)
    ops = TorchOps(getattr(torch, recipe.calibration.dtype))
    text = _text(weights, recipe, calibration) if schemes.reads_text(plans, recipe) else None
    source = hashes_of(weights.checkpoint, report)
    begun = _begun(recipe, source, text)
    with (
        Writer(output, begun=begun, source=Path(model), overwrite=overwrite, restart=restart) as writer,
        torch.inference_mode(),
    ):
        steps = Steps(
            weights, plans, recipe, ops, text, report, outer, schemes=tables, file_format=file_format, writer=writer
        )
        steps.run(memory.limits)
        assert steps.rest is not None
        weights.checkpoint.copy_side_files(writer.folder)
        config = _config(
            weights,
            recipe,
            file_format.config(
                schemes.schemes_of(plans),
                schemes.inputs_of(plans) | steps.inputs,
                tables,
                head=weights.model.ends.head,
                part=weights.model.part,
            ),
        )
        writer.finish(config if outer is None else config | outer.config())
        written = Weights(open_checkpoint(writer.folder))
        manifest = Manifest(
            zeropoint=zeropoint.__version__,
            begun=begun,
            source=source,
            tensors=writer.hashes(),
            files=hashes_of_files(writer.folder),
            probe=steps.probe(written),
        )
        manifest.save(writer.folder / MANIFEST)
        report(Progress("verify", 0, 1))
        verification = verify_apart(writer.folder, max_memory_bytes=max_memory_bytes)
        report(Progress("verify", 1, 1))
        result = QuantizeResult(
            zeropoint=zeropoint.__version__,
            model=str(model),
            output=str(output),
            recipe=recipe.to_dict(),
            calibration=None if text is None else _described(text, recipe, steps.held_out),
            layers=tuple(steps.layers),
            transforms=tuple(row for done in steps.done for row in done.transforms),
            refined=(*(row for done in steps.done for row in done.refined), *steps.rest.refined),
            gains=steps.rest.gains,
            sufficiency=tuple(row for done in steps.done for row in done.sufficiency),
            held_out_tokens=steps.held_out * recipe.calibration.length,
            skipped=tuple(name for name in weights.skipped() if outer is None or name != outer.head),
            left_out=weights.left_out,
            format_note=note,
            transform_note=None if outer is None else outer.note(),
            size=size_of(written),
            source_bytes=size_of(weights).total_bytes,
            elapsed_s=time.perf_counter() - started_s + steps.earlier_s,
            peak_memory_bytes=max(peak_memory_bytes(), *(done.peak_memory_bytes for done in steps.done)),
            spilled_bytes=max(done.most_spilled_bytes for done in steps.done),
            resumed_blocks=steps.resumed,
            plan=expected,
            verification=verification,
            versions=versions(),
            machine=machine(),
        )
        result.save(writer.folder / RECORD)
        require_verified(verification, output)
        writer.commit()
    return result


def _memory(prepared: Prepared, max_memory_bytes: int | None) -> Memory:
    """Return the memory of a run: what it was given, or what is available if it would take more than that.

    Raises: RecipeError if neither is enough.
    """
    threads = torch.get_num_threads()
    memory = memory_of(prepared, threads=threads, max_memory_bytes=max_memory_bytes)
    available = available_bytes() + resident_bytes()  # what we have is in the plan's peak too
    return (
        memory if memory.peak_bytes <= available else memory_of(prepared, threads=threads, max_memory_bytes=available)
    )


def _begun(recipe: Recipe, source: Mapping[str, str], text: Batches | None) -> dict[str, str]:
    """Return all that decides over the bytes of the output, for a run that goes on with what another has done."""
    begun = {f"recipe {key}": value for key, value in _flat(recipe.to_dict())}
    begun |= {f"model {file}": digest for file, digest in source.items()}
    begun |= {f"version of {name}": version for name, version in versions().items() if name != "python"}
    if text is not None:
        begun["calibration text"] = text.source.sha256
    return begun


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ("weights.bits", "4") and the like of nested tables and lists."""
    if isinstance(values, Mapping | list | tuple):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), json.dumps(values)


def require_fits(model: str | Path, recipe: Recipe) -> None:
    """Refuse a recipe that `quantize` would refuse for this model before it begins; no weight and no text is read.

    Raises: InputError, by one of its subclasses.
    """
    recipe.check()
    weights = Weights(open_checkpoint(model))
    prepare(weights, recipe)
    _rotation(weights, recipe)


def _rotation(weights: Weights, recipe: Recipe) -> Rotation | None:
    """Return the rotation of the residual stream that the recipe asks for, if it asks for one."""
    rotation = find_rotation(recipe.transforms, weights.model, seed=recipe.calibration.seed)
    together = [choice.method for choice in recipe.refine if schemes.scope_of(choice) == "model"]
    if rotation is not None and together:
        raise RecipeError(
            f"recipe {recipe.name}: {together[0]} tunes the head's norm, and a rotation of the residual stream folds "
            "it into the head; leave one of the two out, or set the rotation's residual = false"
        )
    if rotation is not None and recipe.embeddings != "stored":
        raise RecipeError(
            f"recipe {recipe.name}: embeddings = {recipe.embeddings!r} and a rotation of the residual stream, which "
            "rewrites the embedding; leave one of the two out, or set the rotation's residual = false"
        )
    return rotation


def _outer(weights: Weights, rotation: Rotation) -> Outer:
    names = outer_tensors(weights.model)
    dtypes = {
        name: written_dtype(weights.checkpoint.tensors[weights.checkpoint.tied.get(name, name)]) for name in names
    }
    return Outer(weights.checkpoint, weights.model, rotation, dtypes)


def _text(weights: Weights, recipe: Recipe, calibration: str | Path | None) -> Batches:
    options, config = recipe.calibration, weights.model.config
    windows = {
        "samples": options.samples + options.held_out,
        "length": options.length,
        "seed": options.seed,
        "batch": options.batch,
    }
    if options.tokens == "random":
        text = random_batches(config.vocab_size, **windows)
    else:
        file = bundled_text("calibration") if calibration is None else calibration
        text = calibration_batches(file, load_tokenizer(weights.checkpoint), **windows)
    require_readable(text, config)
    return text


def _described(text: Batches, recipe: Recipe, held_out: int) -> Text:
    windows, length = text.tokens.shape
    windows -= held_out
    source, seed = text.source, recipe.calibration.seed
    return Text(name=source.name, sha256=source.sha256, windows=windows, length=length, seed=seed, note=text.note)


def _config(weights: Weights, recipe: Recipe, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the output. quantization: its `quantization_config`."""
    config = {**weights.checkpoint.config, "quantization_config": quantization}
    config.pop(CONFIG_KEY, None)  # the recipe decides, not what the source was to be run with
    config |= Choices(kv_cache=recipe.kv_cache).to_config()
    if any(in_blocks(info) for info in weights.checkpoint.tensors.values()):
        config["dtype"] = "bfloat16"
    return config
