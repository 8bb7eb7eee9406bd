"""One block after the other: transformed, observed, rounded stage by stage, refined. What `pipeline` is made of.

    block --transforms--> float block --walk--> statistics --> scales --> codes --refine--> FinishedBlock

Beside the walk run, where a recipe asks for them, the float model (observe/shadow.py) and the held-out windows
(stages.py).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType

import msgspec
import torch
from torch import Tensor

from zeropoint import find, heap
from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.evaluation.layers import weight_error
from zeropoint.evaluation.results import LayerRow, RefineRow, StageRow, Sufficiency, TransformRow
from zeropoint.evaluation.size import float_name
from zeropoint.evaluation.spreading import InputSpreading, input_spreading, spreading
from zeropoint.models.parts import Block, FloatBlock
from zeropoint.observe.activations import Activations
from zeropoint.observe.glance import Glance
from zeropoint.observe.massive import MassiveActivations, Place
from zeropoint.observe.shadow import DRIFT, Shadow, drift
from zeropoint.observe.walk import Visit, observe, require_finite_output, visits
from zeropoint.planning.memory import Limits
from zeropoint.planning.schemes import Plans, Scope, scope_of
from zeropoint.qparams import outliers, static_or_dynamic
from zeropoint.qparams.affine import restore
from zeropoint.qparams.static_or_dynamic import ChosenInput, choose_static
from zeropoint.qparams.statistics import of_type
from zeropoint.recipe import Choice, LayerPlan, Recipe
from zeropoint.refine import bias_correction
from zeropoint.refine.bias_correction import corrected_bias, rounded_means
from zeropoint.refine.learned import Sample
from zeropoint.refine.tuned import TunedBlock, TunedGain, TunedLinear
from zeropoint.rounding.linear import round_linear
from zeropoint.runtime.ops_torch import DifferentiableOps, TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.stages import FLOAT, NEAREST, Stages
from zeropoint.threads import a_thread_each, map_each
from zeropoint.transforms.apply import Applied, apply
from zeropoint.transforms.fold import changed
from zeropoint.transforms.hadamard import Rotation
from zeropoint.types import ChannelMean, InputParams, InputScheme, QTensor, SecondMoment, Stats

SPREAD_LAYERS = 1024
"""In a model with more quantized linears it is not kept how those of experts are spread: each is 5 kB."""


@dataclass(frozen=True)
class Layer:
    """One linear after rounding.

    name: full, without ".weight". versions: the weight after each stage of the work; the last one is written. row: of
    that one. bias: corrected, as it is written; or None. aim: what the codes stand for at best. measure: returns the
    row of another version. The last two are None where no code will change any more.
    """

    name: str
    versions: Mapping[str, QTensor]
    row: LayerRow
    bias: Tensor | None
    aim: Tensor | None
    measure: Callable[[QTensor], LayerRow] | None

    @property
    def qtensor(self) -> QTensor:
        """The weight as it is now."""
        return _last(self.versions)

    @property
    def input_scheme(self) -> InputScheme | None:
        """How its input is rounded in the end."""
        params = self.qtensor.input
        return None if params is None else params.scheme

    def refined(self, method: str, qtensor: QTensor) -> Layer:
        """Return the layer with a better version."""
        assert self.measure is not None
        return replace(self, versions={**self.versions, method: qtensor}, row=self.measure(qtensor))

    def of_expert(self, sent_tokens: int, *, from_all: bool) -> Layer:
        """Return the layer with what is to be said of an expert's."""
        measure = self.measure

        def said(row: LayerRow) -> LayerRow:
            return msgspec.structs.replace(row, sent_tokens=sent_tokens, from_all=from_all)

        later = None if measure is None else (lambda qtensor: said(measure(qtensor)))
        return replace(self, row=said(self.row), measure=later)

    def settled(self, qtensor: QTensor) -> Layer:
        """Return the layer with this version alone, and nothing of what only finding it has needed."""
        return replace(self, versions={"written": qtensor}, aim=None, measure=None)


@dataclass(frozen=True)
class FinishedBlock:
    """One block after rounding, and after what refines single blocks.

    float_names: its tensors that are written as floats. rewritten: those of them that were changed. sufficiency: of
    each input that was observed. tuned: what can be tuned with the whole model; None where nothing is to be.
    """

    index: int
    name: str
    layers: tuple[Layer, ...]
    float_names: tuple[str, ...]
    rewritten: Mapping[str, Tensor]
    transforms: tuple[TransformRow, ...]
    refined: tuple[RefineRow, ...]
    sufficiency: tuple[Sufficiency, ...]
    tuned: TunedBlock | None

    def tuned_with_model(self) -> FinishedBlock:
        """Return the block with what tuning the whole model has made of it."""
        assert self.tuned is not None
        layers = tuple(each.settled(_tuned(self.tuned, self.name, each)) for each in self.layers)
        gains = {f"{self.name}.{name}.weight": gain.stored() for name, gain in self.tuned.gains.items()}
        return replace(self, layers=layers, rewritten={**self.rewritten, **gains})


@dataclass
class Beside:
    """What runs beside the walk.

    probe: a few tokens that show at last whether the file does what the walk did: (1, tokens, hidden). The rest only
    where a recipe asks for it.
    shadow: the float model. before: the inputs of the block at hand, as the quantized blocks give them. stages: the
    held-out windows. seconds: what the stages of the work took so far, by method.
    """

    probe: Tensor
    shadow: Shadow | None = None
    before: Activations | None = None
    stages: Stages | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def stage_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the stages of the work that are told apart block by block."""
    rounding = () if recipe.rounding.method == "rtn" else (recipe.rounding.method,)
    return (NEAREST, *rounding, *(choice.method for choice in recipe.refine if scope_of(choice) != "model"))


def quantized_blocks(
    weights: Weights,
    plans: Plans,
    recipe: Recipe,
    ops: TorchOps,
    activations: Activations,
    beside: Beside,
    rotation: Rotation | None,
    *,
    limits: Limits,
    start: int = 0,
) -> Iterator[FinishedBlock]:
    """Walk through the model, quantize every stage before it runs, and yield each block when all texts are behind it.

    rotation: that of the activations, in whose basis a transform of the recipe brings the blocks. limits: of the memory
    that this takes. start: the block that the activations, and all that is beside them, are in front of.
    """
    source = _Source(weights, plans, recipe, ops, activations, rotation, limits)
    for index in range(start, weights.model.config.layers):
        yield _quantize_block(index, source, plans, ops, beside)


def _quantize_block(index: int, source: _Source, plans: Plans, ops: TorchOps, beside: Beside) -> FinishedBlock:
    flow, activations = source.weights.model.flow_of(index), source.activations
    block = source.load(index, linears=beside.shadow is not None)
    floats = source.floats  # read again where it is wanted, unless it runs beside all the time
    if beside.shadow is not None:
        kept = replace(block, weights=dict(block.weights))
        floats = partial(replace, kept)
        beside.shadow.enter(kept)
    if beside.before is not None:
        beside.before.copy(activations)
    layers: list[Layer] = []
    sufficiency: list[Sufficiency] = []
    least_tokens = source.recipe.calibration.expert_tokens
    for visit in visits(block, index, flow, activations, least_tokens=least_tokens):
        started_s = time.perf_counter()
        glance = Glance(len(activations))
        layers += _quantize_stage(visit, source, plans, ops, beside.shadow, glance)
        sufficiency += _sufficiency(visit, source, glance)
        beside.seconds[source.recipe.rounding.method] += time.perf_counter() - started_s
        if beside.shadow is not None:
            beside.shadow.finish(visit.stage, flow)
        if visit.stage is flow[-1]:
            finished = _finish(visit, floats, layers, sufficiency, source, ops, beside)
    beside.probe = require_finite_output(block.run(flow, beside.probe), index)
    return finished


def _sufficiency(visit: Visit, source: _Source, glance: Glance) -> list[Sufficiency]:
    """Return how far the windows agree, of an expert none: what it is sent says no more which window it is from."""
    apart = glance.disagreement() if visit.sent is None else None
    name = f"{source.weights.model.block_name(visit.index)}.{visit.stage.linears[0]}"
    return [] if apart is None else [Sufficiency(layer=name, disagreement=apart)]


def _finish(
    visit: Visit,
    floats: Callable[[], Block],
    layers: list[Layer],
    sufficiency: list[Sufficiency],
    source: _Source,
    ops: TorchOps,
    beside: Beside,
) -> FinishedBlock:
    """Refine the block whose layers are rounded, and run the held-out windows through all that it has been."""
    model, block, prefix = source.weights.model, visit.block, source.weights.model.block_name(visit.index)
    seen = {stage: _version(block, layers, prefix, stage, ops) for stage in stage_names(source.recipe)}
    refined: list[RefineRow] = []
    tuned = source.tuned(block, layers, prefix) if source.refinements("block") + source.refinements("model") else None
    for choice in source.refinements("block"):
        assert tuned is not None
        assert beside.before is not None
        assert beside.shadow is not None
        started_s = time.perf_counter()
        outcome = find.load("refine", choice.method).refine(
            tuned,
            _Samples(beside.before, beside.shadow.activations),
            choice.load_options("refine"),
            ops=ops,
            gradient_ops=DifferentiableOps(),
            seed=source.recipe.calibration.seed + visit.index,
        )
        beside.seconds[choice.method] += time.perf_counter() - started_s
        refined.append(RefineRow(block=prefix, method=choice.method, **vars(outcome)))
        layers = [layer.refined(choice.method, _tuned(tuned, prefix, layer)) for layer in layers]
        for name, gain in tuned.gains.items():
            source.rewrite(f"{prefix}.{name}.weight", gain.weight())
        block = tuned.prepare(ops)
        seen[choice.method] = partial(replace, block)  # as it is now: the next method goes on with `tuned` in place
    if refined and beside.before is not None:
        visit.block.weights.update(block.weights)
        visit.activations.copy(beside.before)  # once more through the block as it is now, up to its last stage
        for stage in model.flow_of(visit.index)[:-1]:
            visit.activations.map(partial(block.finish, stage))
    if beside.stages is not None:
        beside.stages.advance({FLOAT: floats, **seen}, model.flow_of(visit.index))
    quantized = {f"{layer.name}.weight" for layer in layers}
    names = tuple(name for name in model.block_tensors(visit.index) if name not in quantized)
    return FinishedBlock(
        index=visit.index,
        name=prefix,
        layers=tuple(layer.settled(layer.qtensor) for layer in layers),
        float_names=names,
        rewritten=source.rewritten(names),
        transforms=source.rows,
        refined=tuple(refined),
        sufficiency=tuple(sufficiency),
        tuned=_to_tune_with_model(tuned) if tuned is not None and source.refinements("model") else None,
    )


def _to_tune_with_model(block: TunedBlock) -> TunedBlock:
    """Return the block as it is now, with nothing of what only its own tuning needed."""
    linears = {name: TunedLinear(linear.qtensor()) for name, linear in block.linears.items()}
    gains = {name: TunedGain(gain.weight(), gain.stored().dtype, gain.offset) for name, gain in block.gains.items()}
    return TunedBlock(block.config, block.flow, linears, gains, block.fixed)


def _version(block: Block, layers: Sequence[Layer], prefix: str, stage: str, ops: TorchOps) -> Callable[[], Block]:
    """Return what makes the block as it is after a stage of the work."""
    versions = {layer.name: layer.versions.get(stage, layer.qtensor) for layer in layers}
    weights = dict(block.weights)

    def make() -> Block:
        prepared = {f"{name.removeprefix(prefix + '.')}.weight": ops.prepare(q) for name, q in versions.items()}
        return replace(block, weights=weights | prepared)

    return make


def _tuned(block: TunedBlock, prefix: str, layer: Layer) -> QTensor:
    linear = block.linears.get(layer.name.removeprefix(f"{prefix}."))
    return layer.qtensor if linear is None else linear.qtensor()


class _Samples(Sequence[Sample]):
    """The batches at a block: its inputs behind quantized blocks, and what the float model has behind it."""

    def __init__(self, inputs: Activations, outputs: Activations) -> None:
        self._inputs, self._outputs = inputs, outputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return Sample(self._inputs[index].x, self._outputs[index].x)


class _Source:
    """Where the float weights of the block at hand come from: the checkpoint, or what the transforms made of it.

    Only with transforms a block's float weights are in memory together, as a second copy beside those that run. rows:
    what the transforms did to the block.
    """

    def __init__(
        self,
        weights: Weights,
        plans: Plans,
        recipe: Recipe,
        ops: TorchOps,
        activations: Activations,
        rotation: Rotation | None,
        limits: Limits,
    ) -> None:
        self._rotation, self.limits = rotation, limits
        self.weights, self.recipe = weights, recipe
        self.rows: tuple[TransformRow, ...] = ()
        self._plans, self._ops, self.activations = plans, ops, activations
        self.spreads_experts = sum(plan is not None for plan in plans.values()) <= SPREAD_LAYERS
        self._rewritten: dict[str, Tensor] = {}
        self._transformed: FloatBlock | None = None
        self._index = 0

    def load(self, index: int, *, linears: bool) -> Block:
        """Return block `index` ready to run, transformed.

        linears: with those that will be quantized; who replaces them before they run needs none.
        """
        self._rewritten, self._transformed, self._index = {}, None, index
        names = self.weights.model.block_tensors(index)
        quantized = {f"{name}.weight" for name, plan in self._plans.items() if plan is not None}
        left_out = frozenset() if linears else frozenset(quantized.intersection(names))
        if not self.recipe.transforms:
            return self.weights.block(index, self._ops, without=left_out)
        prefix = f"{self.weights.model.block_name(index)}."
        dtypes = {name.removeprefix(prefix): self.dtype(name) for name in names if name not in quantized}
        read = self.weights.float_block(index, dtypes)
        flow = self.weights.model.flow_of(index)
        block, done = apply(
            read,
            index,
            flow,
            ops=self._ops,
            activations=self.activations,
            choices=self.recipe.transforms,
            plans={name.removeprefix(prefix): p for name, p in self._plans.items() if name.startswith(prefix)},
            seed=self.recipe.calibration.seed,
            rotation=self._rotation,
        )
        self.rows, self._transformed = tuple(map(_transform_row, done)), block
        self._rewritten = {f"{prefix}{name}": block.tensors[name] for name in changed(read.tensors, block.tensors)}
        here = {name: tensor for name, tensor in block.tensors.items() if f"{prefix}{name}" not in left_out}
        return replace(block, tensors=here).prepare(self._ops, flow)

    def floats(self) -> Block:
        """Return the block at hand as floats, ready to run, transformed."""
        if self._transformed is None:
            return self.weights.block(self._index, self._ops)
        return self._transformed.prepare(self._ops, self.weights.model.flow_of(self._index))

    def linear(self, name: str) -> Tensor:
        """Return the weight of the linear `name`, float32 (rows, cols)."""
        found = self._rewritten.get(f"{name}.weight")
        return self.weights.float_linear(name) if found is None else found

    def refinements(self, scope: Scope) -> list[Choice]:
        """Return the methods of the recipe's `refine` that work on that much at once, in their order."""
        return [choice for choice in self.recipe.refine if scope_of(choice) == scope]

    def tuned(self, block: Block, layers: Sequence[Layer], prefix: str) -> TunedBlock:
        """Return the block, whose linears are quantized, as one that can be tuned; gains are those of its norms."""
        flow = self.weights.model.flow_of(self._index)
        linears: dict[str, TunedLinear] = {}
        gains: dict[str, TunedGain] = {}
        fixed = {name: self.linear(f"{prefix}.{name}") for stage in flow for name in stage.linears}
        fixed = {f"{name}.weight": weight for name, weight in fixed.items()}
        for layer in layers:
            name = layer.name.removeprefix(f"{prefix}.")
            if layer.qtensor.outliers is None:
                linears[name] = TunedLinear(layer.qtensor, layer.aim)
                del fixed[f"{name}.weight"]
            else:  # with float columns it stays as it is
                fixed[f"{name}.weight"] = restore(layer.qtensor)
        for name, tensor in block.weights.items():
            if isinstance(tensor, Tensor) and tensor.ndim == 1 and name.endswith(".weight"):
                dtype = self.dtype(f"{prefix}.{name}")
                gains[name.removesuffix(".weight")] = TunedGain(tensor.float(), dtype, block.config.norm_offset)
            elif isinstance(tensor, Tensor):
                fixed[name] = tensor
        return TunedBlock(block.config, flow, linears, gains, fixed)

    def rewrite(self, name: str, tensor: Tensor) -> None:
        """Have `tensor` written under `name` instead of what the checkpoint has."""
        self._rewritten[name] = tensor

    def rewritten(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return those of the tensors `names` that were changed, as the output has them."""
        found = {name: self._rewritten[name].to(self.dtype(name)) for name in names if name in self._rewritten}
        return {name: as_laid_out(self.weights.checkpoint.tensors[name], tensor) for name, tensor in found.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the tensor `name`, which stays float, is written in."""
        return written_dtype(self.weights.checkpoint.tensors[name])


def as_laid_out(info: TensorInfo, tensor: Tensor) -> Tensor:
    """Return a tensor with its values in the order of the file that it came from, which may be transposed."""
    return tensor.T.contiguous() if info.transposed else tensor


def _transform_row(applied: Applied) -> TransformRow:
    return TransformRow(
        block=applied.block,
        method=applied.method,
        stages=tuple(StageRow(**vars(note)) for note in applied.notes),
        error_before=applied.error_before,
        error_after=applied.error_after,
    )


def _quantize_stage(
    visit: Visit, source: _Source, plans: Plans, ops: TorchOps, shadow: Shadow | None, glance: Glance
) -> list[Layer]:
    """Quantize the linears that share one input, and put them in the place of the float ones.

    glance: for what is observed of that input.
    """
    prefix = source.weights.model.block_name(visit.index)
    stage_plans = {name: plans[f"{prefix}.{name}"] for name in visit.stage.linears}
    needed = needs(stage_plans.values())
    stats = dict(observe(visit, needed - {DRIFT}, glance=glance))
    seen = input_spreading(glance) if visit.stage.expert is None or source.spreads_experts else None
    if DRIFT in needed:
        assert shadow is not None
        stats[DRIFT] = drift(visit, shadow)
    planned = {name: plan for name, plan in stage_plans.items() if plan is not None}
    if source.limits.tight:
        heap.give_back()

    inputs = _stage_inputs(visit, source, planned, stats, _massive(visit, planned.values()))
    corrected = [inputs[name] for name, plan in planned.items() if plan.bias_correction]
    means = rounded_means(visit.inputs(), {chosen.params for chosen in corrected if chosen is not None})

    for plan in planned.values():  # what layers with the same input share is worked out once, with all threads
        find.load("rounding", plan.rounding.method).importance(stats, plan.rounding.load_options("rounding"))

    def quantize_one(name: str) -> Layer:
        bias = visit.block.weights.get(f"{name}.bias") if planned[name].bias_correction else None
        layer = _quantize_layer(f"{prefix}.{name}", source, planned[name], inputs[name], stats, bias, means, seen)
        return layer if visit.sent is None else layer.of_expert(visit.sent, from_all=visit.from_all)

    with a_thread_each(source.limits.workers) as pool:
        layers = map_each(pool, quantize_one, planned)
    for name, layer in zip(planned, layers, strict=True):
        visit.block.weights[f"{name}.weight"] = ops.prepare(layer.qtensor)
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
    spread: InputSpreading | None,
) -> Layer:
    """Round one linear.

    bias: to be corrected, or None. means: of its input's columns, for each way to round it. spread: how its input is,
    None where the same is not to be kept of the linear.
    """
    weight = source.linear(name)
    columns = () if chosen is None else chosen.params.outliers
    to_round, of_rounded = outliers.zeroed(weight, columns), outliers.without(stats, columns)
    try:  # for the float input: its own rounding is an error that no other codes make smaller
        found = round_linear(to_round, plan, of_rounded)
    except (NonFiniteError, SchemeError) as error:
        raise type(error)(f"{name}.weight: {error}") from error
    rounded, aimed = found.rounded, found.aimed
    versions = {NEAREST: rounded.nearest}
    if source.recipe.rounding.method != "rtn" or plan.rounding.method != "rtn":
        versions[source.recipe.rounding.method] = rounded.qtensor
    for choice in source.refinements("layer"):
        module, options = find.load("refine", choice.method), choice.load_options("refine")
        versions[choice.method] = module.refine(aimed, _last(versions), of_rounded, options)
    if chosen is not None:
        versions = {
            stage: _with_input(q, chosen, weight, source.dtype(f"{name}.weight")) for stage, q in versions.items()
        }
    fallback = rounded.fallback or found.other_aim
    moment = stats.get("second_moment")
    seen = moment.matrix if isinstance(moment, SecondMoment) and moment.count and found.weighed else None

    def measure(qtensor: QTensor) -> LayerRow:
        codes_judged = qtensor.codes is rounded.qtensor.codes and aimed is weight  # by the same H, and not moved since
        judged = rounded.error if seen is not None and codes_judged else None
        return _row(name, weight, plan, qtensor, chosen, rounded.rounding, fallback, seen, judged, shift, spread)

    shift, written = None, None
    if bias is not None:
        written = _corrected(bias, weight, _last(versions), stats, chosen, means).to(source.dtype(f"{name}.bias"))
        shift = float((written.double() - bias.double()).abs().max())
    row = measure(_last(versions))
    more = bool(source.refinements("block"))
    return Layer(name, versions, row, written, aimed if more else None, measure if more else None)


def _corrected(
    bias: Tensor,
    weight: Tensor,
    qtensor: QTensor,
    stats: Mapping[str, Stats],
    chosen: ChosenInput | None,
    means: Mapping[InputParams, Tensor],
) -> Tensor:
    """Return the bias of a linear as float64, with what rounding changes in the mean of its output taken back."""
    mean = of_type(stats, "channel_mean", ChannelMean).values
    return corrected_bias(bias, weight, restore(qtensor), mean, mean if chosen is None else means[chosen.params])


def _last(versions: Mapping[str, QTensor]) -> QTensor:
    return list(versions.values())[-1]


def _with_input(qtensor: QTensor, chosen: ChosenInput, weight: Tensor, dtype: torch.dtype) -> QTensor:
    """Return the weight with how its input is rounded, and with its float columns."""
    if chosen.params.scheme.outlier_threshold is None:
        return replace(qtensor, input=chosen.params)
    return replace(qtensor, input=chosen.params, outliers=weight[:, list(chosen.params.outliers)].to(dtype))


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
    name: str,
    weight: Tensor,
    plan: LayerPlan,
    qtensor: QTensor,
    chosen: ChosenInput | None,
    rounding: str,
    fallback: str | None,
    seen: Tensor | None,
    judged: float | None,
    shift: float | None,
    spread: InputSpreading | None,
) -> LayerRow:
    """Return the row of one linear.

    seen: the second moment of its input, None where nothing was measured. judged: its output error where that is known.
    spread: as in `_quantize_layer`.
    """
    restored = restore(qtensor)
    error = weight_error(weight, restored, seen if judged is None else None)
    return LayerRow(
        name=name,
        kind=name.rpartition(".")[2],
        shape=qtensor.shape,
        scheme=plan.scheme.label(),
        input_scheme=None if chosen is None else chosen.params.scheme.label(),
        input_fallback=None if chosen is None else chosen.fallback,
        input_error=None if chosen is None else chosen.error,
        rounding=rounding,
        fallback=fallback,
        sqnr_db=error.sqnr_db,
        cosine=error.cosine,
        output_error=error.output if judged is None else judged,
        bias_shift=shift,
        outlier_columns=None if qtensor.outliers is None else qtensor.outliers.shape[1],
        spreading=None if spread is None else spreading(weight, restored, qtensor, error, spread),
    )


def needs(plans: Iterable[LayerPlan | None]) -> frozenset[str]:
    """Return the names of the statistics that the methods of these layers need."""
    modules: list[ModuleType] = []
    found: set[str] = set()
    for plan in plans:
        if plan is not None:
            if _is_static(plan):
                found |= static_or_dynamic.needs(plan.activation_range.method, plan.static_error_limit)
            if plan.activations is not None and plan.activations.outlier_threshold is not None:
                found |= outliers.NEEDS
            if plan.bias_correction:
                found.update(bias_correction.NEEDS)
            modules += [find.load("qparams.ranges", plan.range.method), find.load("rounding", plan.rounding.method)]
    return frozenset(found.union(*(module.NEEDS for module in modules)))


def written_dtype(info: TensorInfo) -> torch.dtype:
    """Return the dtype of a tensor that stays float in the output: as stored, but bfloat16 for block types."""
    dtype: torch.dtype = getattr(torch, float_name(info))
    return dtype
