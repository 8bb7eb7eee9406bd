"""The whole flow on one screen: read, observe, choose, round, pack, write, one block at a time.

    checkpoint --Weights--> block --walk--> statistics of a stage's input --choose--> scales --round--> integers
                            |   ^                                                                          |
                   transforms   +----------- the quantized weights, for what runs next <-------------------+--> Writer

Where inputs are rounded too, what runs next does it: later stages are observed as they will be fed. The statistics of
a stage are those of its input before it is rounded.

What is judged later is the written file, never anything in here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.checkpoint.reader import TensorInfo, open_checkpoint
from zeropoint.checkpoint.safetensors_header import DTYPES
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import InputError, NonFiniteError, RecipeError, SchemeError
from zeropoint.evaluation.layers import weight_error
from zeropoint.evaluation.results import (
    RECORD,
    LayerRow,
    QuantizeResult,
    StageRow,
    Text,
    TransformRow,
    machine,
    peak_memory_bytes,
    versions,
)
from zeropoint.evaluation.run import size_of
from zeropoint.evaluation.size import BLOCK_TYPES
from zeropoint.models.parts import Block, linear_names
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Batches, bundled_text, calibration_batches, require_readable
from zeropoint.observe.massive import MassiveActivations, Place
from zeropoint.observe.walk import Visit, observe, walk
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.qparams import outliers, static_or_dynamic
from zeropoint.qparams.affine import restore
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.static_or_dynamic import ChosenInput, choose_static
from zeropoint.qparams.statistics import of_type
from zeropoint.recipe import LayerPlan, Recipe, load_recipe, resolve
from zeropoint.refine import bias_correction
from zeropoint.refine.bias_correction import corrected_bias, rounded_means
from zeropoint.rounding.ladder import Rounded, round_weight
from zeropoint.rounding.objective import relative_output_error
from zeropoint.runtime.choices import CONFIG_KEY, Choices
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.threads import a_thread_each, map_each
from zeropoint.transforms.apply import Applied, apply
from zeropoint.transforms.fold import changed
from zeropoint.transforms.hadamard import Rotation
from zeropoint.transforms.outer import HEAD, Outer, find_rotation
from zeropoint.types import ChannelMean, InputParams, InputScheme, Scheme, SecondMoment, Stats

ACTIVATION_MEMORY_BYTES = 2 << 30
"""Activations of the calibration text above this wait on disk, unless the caller sets another limit."""

SLAB_VALUES = 1 << 21
"""Values of a tensor in a block type that are in float32 at once, where it is copied to the output."""

Plans = Mapping[str, LayerPlan | None]

_log = logging.getLogger(__name__)


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
    rotation = find_rotation(recipe.transforms, weights.model, seed=recipe.calibration.seed)
    outer = None if rotation is None else _outer(weights, rotation)
    note: str | None = file_format.note(_inputs(plans))
    if note is not None:
        _log.warning("%s", note)
    ops = TorchOps(getattr(torch, recipe.calibration.dtype))
    text = _text(weights, recipe, calibration) if recipe.transforms or _needs(plans.values()) else None
    rows: list[LayerRow] = []
    inputs = _inputs(plans)
    transformed: list[TransformRow] = []
    with Writer(output, source=Path(model), overwrite=overwrite) as writer, torch.inference_mode():
        with Activations(limit_bytes=activation_memory_bytes, folder=writer.folder) as activations:
            if text is not None:
                embedded = weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch)
                activations.extend(embedded if outer is None else map(outer.embedded, embedded))
            report(Progress("quantize", 0, weights.model.config.layers))
            for block in _quantized_blocks(weights, plans, recipe, ops, activations, rotation):
                for layer in block.layers:
                    writer.add(file_format.pack(layer.name, layer.rounded.qtensor))
                    inputs[layer.name] = layer.input_scheme
                for name in block.float_names:
                    writer.add({name: block.rewritten[name] if name in block.rewritten else _as_written(weights, name)})
                rows += [layer.row for layer in block.layers]
                transformed += block.transforms
                report(Progress("quantize", block.index + 1, weights.model.config.layers, block.name))
            spilled_bytes = activations.most_spilled_bytes
        skipped = tuple(name for name in weights.skipped() if outer is None or name != HEAD)
        for name in skipped if outer is not None else (*weights.model.outer_tensors(), *skipped):
            writer.add({name: _as_written(weights, name)})
        for name, tensor in () if outer is None else outer.tensors():
            writer.add({name: tensor})
        weights.checkpoint.copy_side_files(writer.folder)
        config = _config(weights, recipe, file_format, plans, inputs)
        writer.finish(config if outer is None else config | outer.config())
        written = Weights(open_checkpoint(writer.folder))
        result = QuantizeResult(
            zeropoint=zeropoint.__version__,
            model=str(model),
            output=str(output),
            recipe=recipe.to_dict(),
            calibration=None if text is None else _described(text, recipe),
            layers=tuple(rows),
            transforms=tuple(transformed),
            skipped=skipped,
            format_note=note,
            transform_note=None if outer is None else outer.note(),
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
    weights = Weights(open_checkpoint(model))
    _planned(weights, recipe)
    find_rotation(recipe.transforms, weights.model, seed=recipe.calibration.seed)


def _planned(weights: Weights, recipe: Recipe) -> tuple[Plans, ModuleType]:
    """Return the plan of every linear and the format's module."""
    plans = _without_bias(weights, resolve(recipe, linear_names(weights.model)))
    file_format = find.load("formats", recipe.format, error=RecipeError)
    _refuse_early(weights, plans, file_format)
    return plans, file_format


def _without_bias(weights: Weights, plans: Plans) -> Plans:
    """Return the plans, with no correction of a bias where a layer has none."""
    model = weights.model
    tensors = {name for index in range(model.config.layers) for name in model.block_tensors(index)}
    return {
        name: plan if plan is None or f"{name}.bias" in tensors else replace(plan, bias_correction=False)
        for name, plan in plans.items()
    }


@dataclass(frozen=True)
class _Layer:
    """One linear after rounding. name: full, without ".weight". bias: corrected, as it is written; or None."""

    name: str
    rounded: Rounded
    row: LayerRow
    bias: Tensor | None

    @property
    def input_scheme(self) -> InputScheme | None:
        """How its input is rounded in the end."""
        params = self.rounded.qtensor.input
        return None if params is None else params.scheme


@dataclass(frozen=True)
class _Block:
    """One block after rounding.

    float_names: its tensors that are written as floats. rewritten: those of them that were changed.
    """

    index: int
    name: str
    layers: tuple[_Layer, ...]
    float_names: tuple[str, ...]
    rewritten: Mapping[str, Tensor]
    transforms: tuple[TransformRow, ...]


def _quantized_blocks(
    weights: Weights,
    plans: Plans,
    recipe: Recipe,
    ops: TorchOps,
    activations: Activations,
    rotation: Rotation | None,
) -> Iterator[_Block]:
    """Walk through the model, quantize every stage before it runs, and yield each block when its last stage is done."""
    model = weights.model
    source = _Source(weights, plans, recipe, ops, activations, rotation)
    layers: list[_Layer] = []
    for visit in walk(model, source.load, activations):
        layers += _quantize_stage(visit, source, plans, ops)
        if visit.stage is model.flow[-1]:
            quantized = {f"{layer.name}.weight" for layer in layers}
            names = tuple(name for name in model.block_tensors(visit.index) if name not in quantized)
            rewritten = source.rewritten(names)
            yield _Block(visit.index, model.block_name(visit.index), tuple(layers), names, rewritten, source.rows)
            layers = []


class _Source:
    """Where the float weights of the block at hand come from: the checkpoint, or what the transforms made of it.

    Only with transforms a block's float weights are in memory together, as a second copy beside those that run; each
    is let go when it is quantized. rows: what the transforms did to the block. rotation: that of the activations.
    """

    def __init__(
        self,
        weights: Weights,
        plans: Plans,
        recipe: Recipe,
        ops: TorchOps,
        activations: Activations,
        rotation: Rotation | None,
    ) -> None:
        self.weights = weights
        self.rows: tuple[TransformRow, ...] = ()
        self._plans, self._recipe, self._ops, self._activations = plans, recipe, ops, activations
        self._rotation = rotation
        self._rewritten: dict[str, Tensor] = {}

    def load(self, index: int) -> Block:
        """Return block `index` ready to run, transformed."""
        self._rewritten = {}
        if not self._recipe.transforms:
            return self.weights.block(index, self._ops)
        names = self.weights.model.block_tensors(index)
        prefix = f"{self.weights.model.block_name(index)}."
        quantized = {f"{name}.weight" for name, plan in self._plans.items() if plan is not None}
        dtypes = {name.removeprefix(prefix): self.dtype(name) for name in names if name not in quantized}
        read = self.weights.float_block(index, dtypes)
        flow = self.weights.model.flow
        block, done = apply(
            read,
            index,
            flow,
            ops=self._ops,
            activations=self._activations,
            choices=self._recipe.transforms,
            plans={name.removeprefix(prefix): p for name, p in self._plans.items() if name.startswith(prefix)},
            seed=self._recipe.calibration.seed,
            rotation=self._rotation,
        )
        self.rows = tuple(map(_transform_row, done))
        self._rewritten = {f"{prefix}{name}": block.tensors[name] for name in changed(read.tensors, block.tensors)}
        return block.prepare(self._ops, flow)

    def linear(self, name: str) -> Tensor:
        """Return the weight of the linear `name`, float32 (rows, cols)."""
        found = self._rewritten.get(f"{name}.weight")
        return self.weights.float_linear(name) if found is None else found

    def let_go(self, name: str) -> None:
        """Let go of the weight of the linear `name`, which has been asked for the last time."""
        self._rewritten.pop(f"{name}.weight", None)

    def rewrite(self, name: str, tensor: Tensor) -> None:
        """Have `tensor` written under `name` instead of what the checkpoint has."""
        self._rewritten[name] = tensor

    def rewritten(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the tensors `names` that were changed, as the output has them."""
        return {name: self._rewritten[name].to(self.dtype(name)) for name in names if name in self._rewritten}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the tensor `name`, which stays float, is written in."""
        return _written_dtype(self.weights.checkpoint.tensors[name])


def _outer(weights: Weights, rotation: Rotation) -> Outer:
    names = weights.model.outer_tensors()
    dtypes = {
        name: _written_dtype(weights.checkpoint.tensors[weights.checkpoint.tied.get(name, name)]) for name in names
    }
    return Outer(weights.checkpoint, weights.model, rotation, dtypes)


def _transform_row(applied: Applied) -> TransformRow:
    return TransformRow(
        block=applied.block,
        method=applied.method,
        stages=tuple(StageRow(**vars(note)) for note in applied.notes),
        error_before=applied.error_before,
        error_after=applied.error_after,
    )


def _quantize_stage(visit: Visit, source: _Source, plans: Plans, ops: TorchOps) -> list[_Layer]:
    """Quantize the linears that share one input, and put them in the place of the float ones."""
    prefix = source.weights.model.block_name(visit.index)
    stage_plans = {name: plans[f"{prefix}.{name}"] for name in visit.stage.linears}
    stats = observe(visit, _needs(stage_plans.values()))
    planned = {name: plan for name, plan in stage_plans.items() if plan is not None}

    inputs = _stage_inputs(visit, source, planned, stats, _massive(visit, planned.values()))
    corrected = [inputs[name] for name, plan in planned.items() if plan.bias_correction]
    means = rounded_means(visit.inputs(), {chosen.params for chosen in corrected if chosen is not None})

    def quantize_one(name: str) -> _Layer:
        bias = visit.block.weights.get(f"{name}.bias") if planned[name].bias_correction else None
        return _quantize_layer(f"{prefix}.{name}", source, planned[name], inputs[name], stats, bias, means)

    with a_thread_each() as pool:
        layers = map_each(pool, quantize_one, planned)
    for name, layer in zip(planned, layers, strict=True):
        visit.block.weights[f"{name}.weight"] = ops.prepare(layer.rounded.qtensor)
        if layer.bias is not None:
            visit.block.weights[f"{name}.bias"] = layer.bias
            source.rewrite(f"{layer.name}.bias", layer.bias)
    return layers


def _quantize_layer(
    name: str,
    source: _Source,
    plan: LayerPlan,
    chosen: ChosenInput | None,
    stats: Mapping[str, Stats],
    bias: Tensor | None,
    means: Mapping[InputParams, Tensor],
) -> _Layer:
    """Round one linear. bias: to be corrected, or None. means: of its input's columns, for each way to round it."""
    weight = source.linear(name)
    source.let_go(name)
    columns = () if chosen is None else chosen.params.outliers
    to_round, of_rounded = outliers.zeroed(weight, columns), outliers.without(stats, columns)
    rounding = find.load("rounding", plan.rounding.method)
    rounding_options = plan.rounding.load_options("rounding")
    range_options = plan.range.load_options("qparams.ranges")
    importance = rounding.importance(of_rounded, rounding_options)
    try:
        qparams = choose_qparams(to_round, plan.scheme, plan.range.method, range_options, importance)
    except (NonFiniteError, SchemeError) as error:
        raise type(error)(f"{name}.weight: {error}") from error
    # the codes are found for the float input: its rounding is an error of its own that no other code makes smaller
    rounded = round_weight(to_round, qparams, plan.scheme, of_rounded, plan.rounding.method, rounding_options)
    if chosen is not None:
        rounded = replace(rounded, qtensor=replace(rounded.qtensor, input=chosen.params))
        if chosen.params.scheme.outlier_threshold is not None:
            rounded = _with_outliers(rounded, weight, source.dtype(f"{name}.weight"), stats)
    row = _row(name, weight, plan, rounded, chosen, measured=importance is not None)
    if bias is None:
        return _Layer(name, rounded, row, None)
    mean = of_type(stats, "channel_mean", ChannelMean).values
    restored = restore(rounded.qtensor)
    found = corrected_bias(bias, weight, restored, mean, mean if chosen is None else means[chosen.params])
    written = found.to(source.dtype(f"{name}.bias"))
    shift = float((written.double() - bias.double()).abs().max())
    return _Layer(name, rounded, msgspec.structs.replace(row, bias_shift=shift), written)


def _with_outliers(rounded: Rounded, weight: Tensor, dtype: torch.dtype, stats: Mapping[str, Stats]) -> Rounded:
    """Return the layer with its float columns. stats: of the whole input, which its error is relative to."""
    assert rounded.qtensor.input is not None
    qtensor = replace(rounded.qtensor, outliers=weight[:, list(rounded.qtensor.input.outliers)].to(dtype))
    moment = stats.get("second_moment")
    seen = moment.matrix if isinstance(moment, SecondMoment) and moment.count else None
    return replace(rounded, qtensor=qtensor, error=relative_output_error(weight, restore(qtensor), seen))


def _stage_inputs(
    visit: Visit,
    source: _Source,
    planned: Mapping[str, LayerPlan],
    stats: Mapping[str, Stats],
    massive: Place | None,
) -> dict[str, ChosenInput | None]:
    """Return how each linear of a stage rounds its input: alike for all whose plans say the same."""
    prefix = source.weights.model.block_name(visit.index)
    found: dict[str, ChosenInput | None] = {}
    for name, plan in planned.items():
        alike = [other for other, its in planned.items() if _rounds_input(its) == _rounds_input(plan)]
        if alike[0] in found:
            found[name] = found[alike[0]]
            continue
        try:
            found[name] = _choose_input(plan, [f"{prefix}.{other}" for other in alike], visit, source, stats, massive)
        except (NonFiniteError, SchemeError) as error:
            raise type(error)(f"input of {prefix}.{name}: {error}") from error
    return found


def _rounds_input(plan: LayerPlan) -> object:
    return plan.activations, plan.activation_range


def _choose_input(
    plan: LayerPlan,
    names: Sequence[str],
    visit: Visit,
    source: _Source,
    stats: Mapping[str, Stats],
    massive: Place | None,
) -> ChosenInput | None:
    """Return how linears with this plan round the input that they share; None where it stays float."""
    scheme, choice = plan.activations, plan.activation_range
    if scheme is None:
        return None
    columns = outliers.outlier_columns(stats, scheme)
    if scheme.dynamic:
        return ChosenInput(InputParams(scheme, outliers=columns))
    if columns:
        stats = observe(visit, static_or_dynamic.needs(choice.method, plan.static_error_limit), without=columns)
    unserved = massive is not None and plan.massive_inputs == "dynamic" and massive.channel not in columns
    chosen = choose_static(
        stats,
        choice.method,
        choice.load_options("qparams.input_ranges"),
        scheme,
        lambda: (source.linear(name) for name in names),
        limit=plan.static_error_limit,
        massive=massive if unserved else None,
    )
    return replace(chosen, params=replace(chosen.params, outliers=columns))


def _massive(visit: Visit, plans: Iterable[LayerPlan]) -> Place | None:
    """Return the largest of the massive activations of a stage's input, if a static scale is not to serve them."""
    if not any(plan.massive_inputs == "dynamic" and _is_static(plan) for plan in plans):
        return None
    seen = MassiveActivations()
    for windows in visit.inputs():
        seen.update(windows)
    return next((place for place in seen.largest(1) if place.massive), None)


def _is_static(plan: LayerPlan) -> bool:
    return plan.activations is not None and not plan.activations.dynamic


def _row(
    name: str, weight: Tensor, plan: LayerPlan, rounded: Rounded, chosen: ChosenInput | None, *, measured: bool
) -> LayerRow:
    qtensor = rounded.qtensor
    error = weight_error(weight, restore(qtensor))
    return LayerRow(
        name=name,
        kind=name.rpartition(".")[2],
        shape=qtensor.shape,
        scheme=plan.scheme.label(),
        input_scheme=None if chosen is None else chosen.params.scheme.label(),
        input_fallback=None if chosen is None else chosen.fallback,
        input_error=None if chosen is None else chosen.error,
        rounding=rounded.rounding,
        fallback=rounded.fallback,
        sqnr_db=error.sqnr_db,
        cosine=error.cosine,
        output_error=rounded.error if measured else None,
        outlier_columns=None if qtensor.outliers is None else qtensor.outliers.shape[1],
    )


def _needs(plans: Iterable[LayerPlan | None]) -> frozenset[str]:
    """Return the names of the observers that the methods of these layers need."""
    modules: list[ModuleType] = []
    needs: set[str] = set()
    for plan in plans:
        if plan is not None:
            if _is_static(plan):
                needs |= static_or_dynamic.needs(plan.activation_range.method, plan.static_error_limit)
            if plan.activations is not None and plan.activations.outlier_threshold is not None:
                needs |= outliers.NEEDS
            if plan.bias_correction:
                needs.update(bias_correction.NEEDS)
            modules += [find.load("qparams.ranges", plan.range.method), find.load("rounding", plan.rounding.method)]
    return frozenset(needs.union(*(module.NEEDS for module in modules)))


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
    if not _in_blocks(info):
        return weights.checkpoint.read(name)
    written = torch.empty(info.shape, dtype=_written_dtype(info))
    # in slabs: an embedding in float32 beside itself in bfloat16 would be the most memory that a small model takes
    step = max(1, SLAB_VALUES // max(1, written[0].numel()))
    for start in range(0, len(written), step):
        stop = min(start + step, len(written))
        written[start:stop] = torch.from_numpy(weights.checkpoint.read_array(name, rows=(start, stop)))
    return written


def _written_dtype(info: TensorInfo) -> torch.dtype:
    """Return the dtype of a tensor that stays float in the output."""
    dtype: torch.dtype = torch.bfloat16 if _in_blocks(info) else getattr(torch, DTYPES[info.dtype].torch_name)
    return dtype


def _in_blocks(info: TensorInfo) -> bool:
    return info.dtype.startswith(BLOCK_TYPES)


def _config(
    weights: Weights,
    recipe: Recipe,
    file_format: ModuleType,
    plans: Plans,
    inputs: Mapping[str, InputScheme | None],
) -> dict[str, Any]:
    """Return the config.json of the output. inputs: as each linear rounds its own in the end."""
    config = {**weights.checkpoint.config, "quantization_config": file_format.config(_schemes(plans), inputs)}
    config.pop(CONFIG_KEY, None)  # the recipe decides, not what the source was to be run with
    config |= Choices(kv_cache=recipe.kv_cache, embeddings=recipe.embeddings).to_config()
    if any(_in_blocks(info) for info in weights.checkpoint.tensors.values()):
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
    file_format.config(_schemes(plans), _inputs(plans))


def _schemes(plans: Plans) -> dict[str, Scheme | None]:
    return {name: None if plan is None else plan.scheme for name, plan in plans.items()}


def _inputs(plans: Plans) -> dict[str, InputScheme | None]:
    return {name: None if plan is None else plan.activations for name, plan in plans.items()}
