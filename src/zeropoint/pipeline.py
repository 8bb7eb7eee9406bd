"""The whole flow on one screen: read, observe, choose, round, pack, write, one block at a time.

    checkpoint --Weights--> block --walk--> statistics of a stage's input --choose--> scales --round--> integers
                              ^                                                                            |
                              +----------- the quantized weights, for what runs next <---------------------+--> Writer

What is judged later is the written file, never anything in here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import InputError, NonFiniteError, RecipeError, SchemeError
from zeropoint.evaluation.layers import weight_error
from zeropoint.evaluation.results import RECORD, LayerRow, QuantizeResult, Text, machine, peak_memory_bytes, versions
from zeropoint.evaluation.run import size_of
from zeropoint.evaluation.size import BLOCK_TYPES
from zeropoint.models.parts import linear_names
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Batches, bundled_text, calibration_batches, require_readable
from zeropoint.observe.walk import Visit, observe, walk
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.recipe import LayerPlan, Recipe, load_recipe, resolve
from zeropoint.rounding.ladder import Rounded, round_weight
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme, Stats

ACTIVATION_MEMORY_BYTES = 2 << 30
"""Activations of the calibration text above this wait on disk, unless the caller sets another limit."""

SLAB_VALUES = 1 << 21
"""Values of a tensor in a block type that are in float32 at once, where it is copied to the output."""

Plans = Mapping[str, LayerPlan | None]


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    recipe: str | Path | Recipe = "w4a16",
    calibration: str | Path | None = None,
    overwrite: bool = False,
    activation_memory_bytes: int = ACTIVATION_MEMORY_BYTES,
    progress: ProgressCallback | None = None,
) -> QuantizeResult:
    """Quantize a checkpoint and write the result to a new folder.

    model: a Hugging Face folder or a .gguf file. output: the folder to make; it appears when complete and checked.
    recipe: a preset's name, a TOML file or a Recipe. calibration: a .txt or .jsonl file; None is the bundled text.
    activation_memory_bytes: what may be kept in memory of the text's activations; the rest waits on disk.

    Raises: InputError, by one of its subclasses, for all that is wrong with what was given; nothing is left under
    the output's name then.
    """
    started_s = time.perf_counter()
    report = progress or (lambda step: None)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe.check()
    weights = Weights(open_checkpoint(model))
    plans, file_format = _planned(weights, recipe)
    ops = TorchOps(getattr(torch, recipe.calibration.dtype))
    text = _text(weights, recipe, calibration) if _needs(plans.values()) else None
    rows: list[LayerRow] = []
    with Writer(output, source=Path(model), overwrite=overwrite) as writer, torch.inference_mode():
        with Activations(limit_bytes=activation_memory_bytes, folder=writer.folder) as activations:
            if text is not None:
                activations.extend(weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch))
            report(Progress("quantize", 0, weights.model.config.layers))
            for block in _quantized_blocks(weights, plans, ops, activations):
                for layer in block.layers:
                    writer.add(file_format.pack(layer.name, layer.rounded.qtensor))
                writer.add({name: _as_written(weights, name) for name in block.float_names})
                rows += [layer.row for layer in block.layers]
                report(Progress("quantize", block.index + 1, weights.model.config.layers, block.name))
            spilled_bytes = activations.most_spilled_bytes
        for name in (*weights.model.outer_tensors(), *weights.skipped()):
            writer.add({name: _as_written(weights, name)})
        weights.checkpoint.copy_side_files(writer.folder)
        writer.finish(_config(weights, file_format, plans))
        written = Weights(open_checkpoint(writer.folder))
        result = QuantizeResult(
            zeropoint=zeropoint.__version__,
            model=str(model),
            output=str(output),
            recipe=recipe.to_dict(),
            calibration=None if text is None else _described(text, recipe),
            layers=tuple(rows),
            skipped=weights.skipped(),
            size=size_of(written),
            source_bytes=size_of(weights).total_bytes,
            elapsed_s=time.perf_counter() - started_s,
            peak_memory_bytes=peak_memory_bytes(),
            spilled_bytes=spilled_bytes,
            versions=versions(),
            machine=machine(),
        )
        result.save(writer.folder / RECORD)
        writer.commit()
    return result


def require_fits(model: str | Path, recipe: Recipe) -> None:
    """Refuse a recipe that `quantize` would refuse for this model before it begins; no weight and no text is read.

    Raises: InputError, by one of its subclasses.
    """
    recipe.check()
    _planned(Weights(open_checkpoint(model)), recipe)


def _planned(weights: Weights, recipe: Recipe) -> tuple[Plans, ModuleType]:
    """Return the plan of every linear and the format's module."""
    plans = resolve(recipe, linear_names(weights.model))
    file_format = find.load("formats", recipe.format, error=RecipeError)
    _refuse_early(weights, plans, file_format)
    return plans, file_format


@dataclass(frozen=True)
class _Layer:
    """One linear after rounding. name: full, without ".weight"."""

    name: str
    rounded: Rounded
    row: LayerRow


@dataclass(frozen=True)
class _Block:
    """One block after rounding. float_names: its tensors that are written as they are."""

    index: int
    name: str
    layers: tuple[_Layer, ...]
    float_names: tuple[str, ...]


def _quantized_blocks(weights: Weights, plans: Plans, ops: TorchOps, activations: Activations) -> Iterator[_Block]:
    """Walk through the model, quantize every stage before it runs, and yield each block when its last stage is done."""
    model = weights.model
    layers: list[_Layer] = []
    for visit in walk(model, partial(weights.block, ops=ops), activations):
        layers += _quantize_stage(visit, weights, plans, ops)
        if visit.stage is model.flow[-1]:
            quantized = {f"{layer.name}.weight" for layer in layers}
            names = tuple(name for name in model.block_tensors(visit.index) if name not in quantized)
            yield _Block(visit.index, model.block_name(visit.index), tuple(layers), names)
            layers = []


def _quantize_stage(visit: Visit, weights: Weights, plans: Plans, ops: TorchOps) -> list[_Layer]:
    """Quantize the linears that share one input, and put them in the place of the float ones."""
    prefix = weights.model.block_name(visit.index)
    stage_plans = {name: plans[f"{prefix}.{name}"] for name in visit.stage.linears}
    stats = observe(visit, _needs(stage_plans.values()))
    planned = {name: plan for name, plan in stage_plans.items() if plan is not None}

    def quantize_one(name: str) -> _Layer:
        with torch.inference_mode():  # holds for one thread only
            return _quantize_layer(f"{prefix}.{name}", weights, planned[name], stats)

    with _a_thread_each() as pool:
        layers = list(pool.map(quantize_one, planned))
    for name, layer in zip(planned, layers, strict=True):
        visit.block.weights[f"{name}.weight"] = ops.prepare(layer.rounded.qtensor)
    return layers


@contextmanager
def _a_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose workers compute on one thread each.

    Rounding is many small operations. Two threads inside each of them wait for one another more than they work: up to
    ten times slower beside another busy process (docs/log.md).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _quantize_layer(name: str, weights: Weights, plan: LayerPlan, stats: Mapping[str, Stats]) -> _Layer:
    weight = weights.float_linear(name)
    rounding = find.load("rounding", plan.rounding.method)
    rounding_options = plan.rounding.load_options("rounding")
    range_options = plan.range.load_options("qparams.ranges")
    importance = rounding.importance(stats, rounding_options)
    try:
        qparams = choose_qparams(weight, plan.scheme, plan.range.method, range_options, importance)
    except (NonFiniteError, SchemeError) as error:
        raise type(error)(f"{name}.weight: {error}") from error
    rounded = round_weight(weight, qparams, plan.scheme, stats, plan.rounding.method, rounding_options)
    return _Layer(name, rounded, _row(name, weight, plan, rounded, measured=importance is not None))


def _row(name: str, weight: Tensor, plan: LayerPlan, rounded: Rounded, *, measured: bool) -> LayerRow:
    qtensor = rounded.qtensor
    error = weight_error(weight, dequantize(qtensor.codes, qtensor.qparams, qtensor.scheme))
    return LayerRow(
        name=name,
        kind=name.rpartition(".")[2],
        shape=qtensor.shape,
        scheme=plan.scheme.label(),
        rounding=rounded.rounding,
        fallback=rounded.fallback,
        sqnr_db=error.sqnr_db,
        cosine=error.cosine,
        output_error=rounded.error if measured else None,
    )


def _needs(plans: Iterable[LayerPlan | None]) -> frozenset[str]:
    """Return the names of the observers that the methods of these layers need."""
    modules: list[ModuleType] = []
    for plan in plans:
        if plan is not None:
            modules += [find.load("qparams.ranges", plan.range.method), find.load("rounding", plan.rounding.method)]
    return frozenset(need for module in modules for need in module.NEEDS)


def _text(weights: Weights, recipe: Recipe, calibration: str | Path | None) -> Batches:
    options = recipe.calibration
    text = calibration_batches(
        bundled_text("calibration") if calibration is None else calibration,
        load_tokenizer(weights.checkpoint),
        samples=options.samples,
        length=options.length,
        seed=options.seed,
        batch=options.batch,
    )
    require_readable(text, weights.model.config)
    return text


def _described(text: Batches, recipe: Recipe) -> Text:
    windows, length = text.tokens.shape
    source, seed = text.source, recipe.calibration.seed
    return Text(name=source.name, sha256=source.sha256, windows=windows, length=length, seed=seed, note=text.note)


def _as_written(weights: Weights, name: str) -> Tensor:
    """Return a tensor that stays float as the output has it: as stored, but bfloat16 where it was in a block type."""
    info = weights.checkpoint.tensors[name]
    if not info.dtype.startswith(BLOCK_TYPES):
        return weights.checkpoint.read(name)
    written = torch.empty(info.shape, dtype=torch.bfloat16)
    # in slabs: an embedding in float32 beside itself in bfloat16 would be the most memory that a small model takes
    step = max(1, SLAB_VALUES // max(1, written[0].numel()))
    for start in range(0, len(written), step):
        stop = min(start + step, len(written))
        written[start:stop] = torch.from_numpy(weights.checkpoint.read_array(name, rows=(start, stop)))
    return written


def _config(weights: Weights, file_format: ModuleType, plans: Plans) -> dict[str, Any]:
    """Return the config.json of the output."""
    config = {**weights.checkpoint.config, "quantization_config": file_format.config(_schemes(plans))}
    if any(info.dtype.startswith(BLOCK_TYPES) for info in weights.checkpoint.tensors.values()):
        config["dtype"] = "bfloat16"
    return config


def _refuse_early(weights: Weights, plans: Plans, file_format: ModuleType) -> None:
    """Raise for what could otherwise fail hours later: a quantized input, schemes that the format cannot store."""
    if any(weights.schemes.values()):
        raise InputError(
            f"{weights.checkpoint.path} is quantized already; quantize the float model that it was made from"
        )
    for name, plan in plans.items():
        if plan is not None:
            rows, cols = weights.checkpoint.tensors[f"{name}.weight"].shape
            reason = file_format.supports(plan.scheme, (rows, cols))
            if reason is not None:
                raise SchemeError(f"{name}: {reason}")
    file_format.config(_schemes(plans))


def _schemes(plans: Plans) -> dict[str, Scheme | None]:
    return {name: None if plan is None else plan.scheme for name, plan in plans.items()}
