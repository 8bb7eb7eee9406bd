"""`plan`: what `quantize` will do with a model, from config.json and the headers of its files.

zeropoint.plan("SmolLM2-135M", recipe="w4a16", bench_s=0)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import zeropoint
from zeropoint import _native
from zeropoint.checkpoint.reader import TensorInfo, open_checkpoint
from zeropoint.evaluation.results import Plan, PlanRow, PlanStage
from zeropoint.evaluation.size import size_of
from zeropoint.models.parts import expert_names, outer_tensors
from zeropoint.planning import schemes
from zeropoint.planning.memory import Memory, plan_memory
from zeropoint.planning.output import planned_size, planned_tensors
from zeropoint.planning.schemes import Plans
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

LOADS = "zeropoint, vLLM and transformers (with the package compressed-tensors) load it"
"""What is said where a format has no note about who cannot."""

SHARD_BYTES = 5_000_000_000
"""Of the files of the output: one of them is beside its parts while it is written."""

STREAM_BYTES = 96 << 20
"""Read to measure the bandwidth: more than caches hold, and less than a run takes, whose peak it must not become."""

STREAM_TRIES = 3
"""Of which the best counts: the limit is what memory can do."""

BENCH_S = 10.0
"""What the measurements of a plan may take."""


@dataclass(frozen=True)
class Prepared:
    """What a model and a recipe make of one another, before any weight is read; all that can be refused is.

    note: what has to be said about who can open the output, or None.
    """

    weights: Weights
    recipe: Recipe
    plans: Plans
    tables: Mapping[str, Scheme]
    file_format: ModuleType
    note: str | None


def plan(
    model: str | Path,
    *,
    recipe: str | Path | Recipe = "w4a16",
    max_memory_bytes: int | None = None,
    threads: int | None = None,
    bench_s: float = BENCH_S,
) -> Plan:
    """Return what quantizing a checkpoint will take and give.

    model: a Hugging Face folder or a .gguf file, of which headers are read. recipe: a preset's name, a TOML file or a
    Recipe. max_memory_bytes: what quantize may take. threads: None is all cores. bench_s: how long this machine may be
    measured, for times and speeds; 0 leaves them out, and imports no torch.
    Raises: InputError, by one of its subclasses, for all that `quantize` would refuse before it begins, and for a
    memory that is too small.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    prepared = prepare(Weights(open_checkpoint(model)), recipe)
    memory = memory_of(prepared, threads=threads, max_memory_bytes=max_memory_bytes)
    return describe(prepared, model, memory, max_memory_bytes=max_memory_bytes, bench_s=bench_s, threads=threads)


def prepare(weights: Weights, recipe: Recipe) -> Prepared:
    """Return what a recipe makes of a model. Raises: InputError, as `plan`."""
    plans, file_format = schemes.planned(weights, recipe)
    tables = schemes.table_schemes(weights, recipe, file_format)
    model = weights.model
    planned, inputs = schemes.schemes_of(plans), schemes.inputs_of(plans)
    config = file_format.config(planned, inputs, tables, head=model.ends.head, part=model.part)
    note = file_format.note(config, experts=model.config.experts > 0, transposed=model.config.transposed)
    return Prepared(weights, recipe, plans, tables, file_format, note)


def memory_of(prepared: Prepared, *, threads: int | None, max_memory_bytes: int | None) -> Memory:
    """Return the memory of a run. Raises: RecipeError if it needs more than the limit."""
    return plan_memory(
        prepared.weights,
        prepared.plans,
        prepared.recipe,
        workers=threads or _native.usable_cores(),
        limit_bytes=max_memory_bytes,
    )


def describe(
    prepared: Prepared,
    model: str | Path,
    memory: Memory,
    *,
    max_memory_bytes: int | None,
    bench_s: float,
    threads: int | None = None,
) -> Plan:
    """Return the plan of a run whose memory is known."""
    weights, recipe, plans = prepared.weights, prepared.recipe, prepared.plans
    unties = any(choice.method == "rotate" and choice.options.get("residual", True) for choice in recipe.transforms)
    tensors = planned_tensors(weights, plans, prepared.tables, prepared.file_format, unties=unties)
    size = planned_size(weights, plans, prepared.tables, tensors)
    apart = unties or weights.tables[0].also is None  # one row is looked up, and another table is the head
    stages: tuple[PlanStage, ...] = ()
    bandwidth: float | None = None
    if bench_s > 0:
        from zeropoint.planning.work import seconds_by_stage

        stages = tuple(PlanStage(stage=s, seconds=t) for s, t in seconds_by_stage(weights, recipe, plans, bench_s))
        bandwidth = _native.Pool(threads or _native.usable_cores()).stream(STREAM_BYTES, STREAM_TRIES)
    config, experts = weights.model.config, expert_names(weights.model)
    expert_bytes = sum(info.size_bytes for name, info in tensors.items() if name.rpartition(".")[0] in experts)
    unread = expert_bytes * (config.experts - config.experts_per_token) // max(1, config.experts)
    beside_bytes = 2 * memory.state_bytes + memory.spilled_bytes
    return Plan(
        zeropoint=zeropoint.__version__,
        model=str(model),
        model_type=weights.model.config.model_type,
        recipe=recipe.to_dict(),
        rows=tuple(_rows(prepared, tensors)),
        size=size,
        source_bytes=size_of(weights).total_bytes,
        peak_memory_bytes=memory.peak_bytes,
        peak_phase=memory.peak.name,
        peak_needs={name: need for name, need in memory.peak.needs.items() if need},
        least_memory_bytes=memory.least_bytes,
        max_memory_bytes=max_memory_bytes,
        spilled_bytes=memory.spilled_bytes,
        disk_bytes=size.total_bytes + max(beside_bytes, min(SHARD_BYTES, size.total_bytes)),
        stages=stages,
        elapsed_s=sum(stage.seconds for stage in stages) if stages else None,
        token_bytes=size.total_bytes - size.overhead_bytes - (size.embedding_bytes if apart else 0) - unread,
        bandwidth_bytes_per_s=bandwidth,
        loads=prepared.note or LOADS,
        notes=tuple(_notes(prepared)),
    )


def _rows(prepared: Prepared, tensors: Mapping[str, TensorInfo]) -> Iterator[PlanRow]:
    """Yield what becomes of the tensors, those that are alike in one row."""
    weights, plans = prepared.weights, prepared.plans
    groups: dict[tuple[str, tuple[int, ...], str, str | None, str | None], list[int]] = {}
    model = weights.model
    used = {
        *outer_tensors(model),
        *(name for index in range(model.config.layers) for name in model.block_tensors(index)),
    }
    heads = {
        table.name: table.also for table in weights.tables if table.also is not None
    }  # what is stored for them too
    of_layer: Counter[str] = Counter()
    for name, info in tensors.items():
        of_layer[name.rpartition(".")[0]] += 0 if name.endswith(".bias") else info.size_bytes
    for name, info in weights.checkpoint.tensors.items():
        layer = name.removesuffix(".weight")
        kind = layer.rpartition(".")[2]
        plan = plans.get(layer)
        key: tuple[str, tuple[int, ...], str, str | None, str | None]
        if plan is not None and name != layer:
            read = "" if plan.activations is None else f" x {plan.activations.label()}"
            key = (kind, info.shape, f"{plan.scheme.label()}{read}", plan.rounding.method, None)
            size_bytes = of_layer[layer]
        elif layer in prepared.tables:
            key = (kind, info.shape, prepared.tables[layer].label(), "rtn", None)
            size_bytes = of_layer[layer] + of_layer[heads.get(layer, "")]
        else:
            size_bytes = tensors[name].size_bytes + of_layer[heads.get(layer, "")]
            key = (kind, info.shape, tensors[name].dtype, None, _why_float(name, layer, prepared, used=name in used))
        groups.setdefault(key, []).append(size_bytes)
    for (kind, shape, stored, rounding, why), sizes in groups.items():
        yield PlanRow(
            kind=kind, count=len(sizes), shape=shape, stored=stored, rounding=rounding, why=why, size_bytes=sum(sizes)
        )


def _why_float(name: str, layer: str, prepared: Prepared, *, used: bool) -> str:
    if layer in schemes.routers(prepared.weights.model):
        return "a router"
    if layer in prepared.plans and name != layer:
        return "keep_float in a rule of the recipe"
    if any(layer == table.name for table in prepared.weights.tables):
        return "embeddings = 'stored'"
    if not used:
        return "copied: the architecture does not use it"
    if layer == prepared.weights.model.ends.positions:
        return "positions"
    return "a bias" if name.endswith(".bias") else "a norm"


def fallbacks(prepared: Prepared) -> Iterator[str]:
    """Yield what linears have the recipe's fallback, and why."""
    weights, recipe = prepared.weights, prepared.recipe
    alike: dict[tuple[Scheme, int], Counter[str]] = {}
    for name, scheme in schemes.fallen_back(weights, prepared.plans, recipe).items():
        _, cols = weights.checkpoint.tensors[f"{name}.weight"].shape
        alike.setdefault((scheme, cols), Counter())[name.rpartition(".")[2]] += 1
    for (scheme, cols), kinds in alike.items():
        assert recipe.fallback is not None
        named = ", ".join(f"{kind} x{count}" for kind, count in kinds.items())
        said = f"{recipe.fallback.label()} instead of {scheme.label()}"
        yield f"{said}, which rows of {cols} columns do not fill: {named}"


def _notes(prepared: Prepared) -> Iterator[str]:
    """Yield what else there is to say."""
    recipe = prepared.recipe
    if recipe.activations is not None and recipe.activations.outlier_threshold is not None:
        yield "outlier columns are found by calibration; what they take is not in the size"
    yield from fallbacks(prepared)
    if "model" in schemes.scopes(recipe):
        yield "tuning the whole model is one step: a run that is killed in it begins that step again"
