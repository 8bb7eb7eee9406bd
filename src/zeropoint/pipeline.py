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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.blocks import (
    Beside,
    FinishedBlock,
    Plans,
    in_blocks,
    needs,
    needs_shadow,
    quantized_blocks,
    scope_of,
    stage_names,
    written_dtype,
)
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.embeddings import quantize_table, table_schemes
from zeropoint.errors import InputError, RecipeError, SchemeError
from zeropoint.evaluation.results import (
    RECORD,
    GainRow,
    LayerRow,
    QuantizeResult,
    RefineRow,
    Text,
    TransformRow,
    machine,
    peak_memory_bytes,
    versions,
)
from zeropoint.evaluation.run import size_of
from zeropoint.models.parts import linear_names
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Batches, bundled_text, calibration_batches, random_batches, require_readable
from zeropoint.observe.shadow import Shadow
from zeropoint.plan import Cost, costs_of
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Choice, Recipe, load_recipe, resolve
from zeropoint.refine.distill import Head, Windows
from zeropoint.refine.tuned import TunedBlock, TunedGain
from zeropoint.runtime.choices import CONFIG_KEY, Choices
from zeropoint.runtime.ops_torch import DifferentiableOps, TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.stages import FLOAT, Stages
from zeropoint.transforms.hadamard import Rotation
from zeropoint.transforms.outer import HEAD, Outer, find_rotation
from zeropoint.types import InputScheme, Scheme

ACTIVATION_MEMORY_BYTES = 2 << 30
"""Activations of the calibration text above this wait on disk, unless the caller sets another limit."""

SLAB_VALUES = 1 << 21
"""Values of a tensor in a block type that are in float32 at once, where it is copied to the output."""

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
    planned: Callable[[Sequence[Cost]], None] | None = None,
) -> QuantizeResult:
    """Quantize a checkpoint and write the result to a new folder.

    model: a Hugging Face folder or a .gguf file. output: the folder to make; it appears when complete and checked.
    recipe: a preset's name, a TOML file or a Recipe. calibration: a .txt or .jsonl file; None is the bundled text.
    activation_memory_bytes: what may be kept in memory of the text's activations; the rest waits on disk. planned: told
    what each stage of the work will take, when nothing has refused the recipe and before the work begins.

    Raises: InputError, by one of its subclasses, for all that is wrong with what was given; nothing is left under
    the output's name then.
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
    plans, file_format = _planned(weights, recipe)
    rotation = _rotation(weights, recipe)
    outer = None if rotation is None else _outer(weights, rotation)
    tables = table_schemes(weights, recipe, file_format)
    note: str | None = file_format.note(file_format.config(_schemes(plans), _inputs(plans), tables))
    if note is not None:
        _log.warning("%s", note)
    if planned is not None:
        planned(costs_of(weights, recipe))
    ops = TorchOps(getattr(torch, recipe.calibration.dtype))
    text = _text(weights, recipe, calibration) if _wants_text(plans, recipe) else None
    inputs = _inputs(plans)
    run = _Run(weights, plans, recipe, ops, text, report, outer)
    rows: list[LayerRow] = []
    transformed: list[TransformRow] = []
    with Writer(output, source=Path(model), overwrite=overwrite) as writer, torch.inference_mode():
        with ExitStack() as stack:

            def make_store() -> Activations:
                return stack.enter_context(Activations(limit_bytes=activation_memory_bytes, folder=writer.folder))

            for block in run.blocks(make_store):
                for layer in block.layers:
                    writer.add(file_format.pack(layer.name, layer.qtensor))
                    inputs[layer.name] = layer.input_scheme
                for name in block.float_names:
                    writer.add({name: block.rewritten[name] if name in block.rewritten else _as_written(weights, name)})
                rows += [layer.row for layer in block.layers]
                transformed += block.transforms
            gains = run.gains()
            spilled_bytes = run.most_spilled_bytes
        for table in weights.tables if tables else ():
            quantized = quantize_table(weights, table, tables[table.name], recipe.range, file_format)
            writer.add(quantized.tensors)
            rows.append(quantized.row)
        skipped = tuple(name for name in weights.skipped() if outer is None or name != HEAD)
        for name in _outer_floats(weights, tables) if outer is None else skipped:
            writer.add({name: run.outer[name] if name in run.outer else _as_written(weights, name)})
        for name, tensor in () if outer is None else outer.tensors():
            writer.add({name: tensor})
        weights.checkpoint.copy_side_files(writer.folder)
        config = _config(weights, recipe, file_format.config(_schemes(plans), inputs, tables))
        writer.finish(config if outer is None else config | outer.config())
        written = Weights(open_checkpoint(writer.folder))
        result = QuantizeResult(
            zeropoint=zeropoint.__version__,
            model=str(model),
            output=str(output),
            recipe=recipe.to_dict(),
            calibration=None if text is None else _described(text, recipe, run.held_out),
            layers=tuple(rows),
            transforms=tuple(transformed),
            refined=tuple(run.refined),
            gains=gains,
            held_out_tokens=run.held_out * recipe.calibration.length,
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


class _Run:
    """What happens between the reading and the writing: the blocks one after the other, then all of them together.

    refined: what the methods of `refine` did. outer: tensors outside the blocks that were changed, as they are written.
    """

    def __init__(
        self,
        weights: Weights,
        plans: Plans,
        recipe: Recipe,
        ops: TorchOps,
        text: Batches | None,
        report: ProgressCallback,
        rotated: Outer | None,
    ) -> None:
        self._weights, self._plans, self._recipe, self._ops, self._report = weights, plans, recipe, ops, report
        self._text, self._rotated = text, rotated
        self._stores: list[Activations] = []
        self._beside = Beside()
        self._divergences: list[tuple[str, float]] = []
        self.refined: list[RefineRow] = []
        self.outer: dict[str, Tensor] = {}

    @property
    def held_out(self) -> int:
        """How many windows of the text are held out: fewer than asked for, if it is short."""
        if self._text is None:
            return 0
        options, found = self._recipe.calibration, len(self._text.tokens)
        return min(options.held_out, max(found - options.samples, found // 8))

    @property
    def most_spilled_bytes(self) -> int:
        """The most bytes of activations that were on disk at any time."""
        return sum(store.most_spilled_bytes for store in self._stores)

    def blocks(self, make_store: Callable[[], Activations]) -> Iterator[FinishedBlock]:
        """Yield every block when nothing will change it any more. make_store: returns a place for activations."""

        def store() -> Activations:
            self._stores.append(make_store())
            return self._stores[-1]

        activations, layers = store(), self._weights.model.config.layers
        if self._text is not None:
            self._begin(activations, store)
        self._report(Progress("quantize", 0, layers))
        together: list[FinishedBlock] = []
        whole_model = [choice for choice in self._recipe.refine if scope_of(choice) == "model"]
        rotation = None if self._rotated is None else self._rotated.rotation
        for block in quantized_blocks(
            self._weights, self._plans, self._recipe, self._ops, activations, self._beside, rotation
        ):
            self.refined += block.refined
            if whole_model:
                together.append(block)
            else:
                yield block
            self._report(Progress("quantize", block.index + 1, layers, block.name))
        self._judge_stages()
        if whole_model:
            self._refine_together([block.tuned for block in together if block.tuned is not None], whole_model)
        for block in together:
            yield block.tuned_with_model()

    def gains(self) -> tuple[GainRow, ...]:
        """Return what each stage of the work was worth, when all blocks are done."""
        seconds = self._beside.seconds
        return tuple(GainRow(stage=stage, kl=kl, seconds=seconds.get(stage)) for stage, kl in self._divergences)

    def _begin(self, activations: Activations, store: Callable[[], Activations]) -> None:
        """Embed the text, for the walk and for what runs beside it."""
        recipe, held_out = self._recipe, self._held_out()
        activations.extend(self._embed(self._learned_from()))
        if needs_shadow(self._plans, recipe):
            self._beside.shadow = Shadow(store())
            self._beside.shadow.activations.copy(activations)
        if any(scope_of(choice) == "block" for choice in recipe.refine):
            self._beside.before = store()
        if len(held_out):
            self._beside.stages = Stages(stage_names(recipe), torch.cat(list(self._embed(held_out))))

    def _judge_stages(self) -> None:
        stages = self._beside.stages
        if stages is None:
            return
        head = self._weights.head(self._ops)

        def logits(x: Tensor) -> Tensor:
            own = x if self._rotated is None else self._rotated.rotation.undo(x)
            found: Tensor = self._weights.model.head(self._ops, head, own)
            return found

        self._divergences += stages.divergences(logits).items()

    def _refine_together(self, blocks: Sequence[TunedBlock], choices: Iterable[Choice]) -> None:
        """Tune the whole model by the methods of `refine` that do that."""
        model, shadow, text = self._weights.model, self._beside.shadow, self._text
        assert shadow is not None
        assert text is not None
        ops = DifferentiableOps()
        norm_name = model.outer_tensors()[1]
        with torch.inference_mode(False):  # what was made in inference mode takes no part in gradients
            ends = {name: tensor.clone() for name, tensor in self._weights.head(ops).items()}
        norm = TunedGain(ends[norm_name].float(), written_dtype(self._weights.checkpoint.tensors[norm_name]))
        head = Head(model, norm_name, norm, ends[norm_name].float(), ends["lm_head.weight"])
        learned_from = Windows(list(self._embed(self._learned_from())), _Outputs(shadow.activations))
        stages = self._beside.stages
        held_out = Windows(learned_from.starts[:1], learned_from.goals[:1])
        if stages is not None:
            held_out = Windows([*self._embed(self._held_out())], torch.split(stages.outputs(FLOAT), text.batch))
        for choice in choices:
            started_s = time.perf_counter()
            outcome = find.load("refine", choice.method).refine(
                blocks,
                head,
                learned_from,
                held_out,
                choice.load_options("refine"),
                gradient_ops=ops,
                seed=self._recipe.calibration.seed,
                progress=lambda done, steps, name=choice.method: self._report(Progress(name, done, steps)),
            )
            self._beside.seconds[choice.method] += time.perf_counter() - started_s
            self.refined.append(RefineRow(block=None, method=choice.method, **vars(outcome)))
            self._divergences.append((choice.method, outcome.error_after))
        self.outer[norm_name] = norm.stored()

    def _embed(self, tokens: Tensor) -> Iterator[Tensor]:
        assert self._text is not None
        embedded = self._weights.embed(self._ops, tokens, self._text.batch)
        return embedded if self._rotated is None else map(self._rotated.embedded, embedded)

    def _learned_from(self) -> Tensor:
        tokens = self._tokens()
        return tokens[: len(tokens) - self.held_out]

    def _held_out(self) -> Tensor:
        tokens = self._tokens()
        return tokens[len(tokens) - self.held_out :]

    def _tokens(self) -> Tensor:
        assert self._text is not None
        return torch.from_numpy(self._text.tokens).long()


class _Outputs(Sequence[Tensor]):
    """The residual streams of activations, batch by batch."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations

    def __len__(self) -> int:
        return len(self._activations)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._activations[index].x


def require_fits(model: str | Path, recipe: Recipe) -> None:
    """Refuse a recipe that `quantize` would refuse for this model before it begins; no weight and no text is read.

    Raises: InputError, by one of its subclasses.
    """
    recipe.check()
    weights = Weights(open_checkpoint(model))
    _planned(weights, recipe)
    _rotation(weights, recipe)


def _rotation(weights: Weights, recipe: Recipe) -> Rotation | None:
    """Return the rotation of the residual stream that the recipe asks for, if it asks for one."""
    rotation = find_rotation(recipe.transforms, weights.model, seed=recipe.calibration.seed)
    together = [choice.method for choice in recipe.refine if scope_of(choice) == "model"]
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
    names = weights.model.outer_tensors()
    dtypes = {
        name: written_dtype(weights.checkpoint.tensors[weights.checkpoint.tied.get(name, name)]) for name in names
    }
    return Outer(weights.checkpoint, weights.model, rotation, dtypes)


def _planned(weights: Weights, recipe: Recipe) -> tuple[Plans, ModuleType]:
    """Return the plan of every linear and the format's module."""
    plans = _without_bias(weights, resolve(recipe, linear_names(weights.model)))
    file_format = find.load("formats", recipe.format, error=RecipeError)
    _refuse_early(weights, plans, file_format, table_schemes(weights, recipe, file_format))
    return plans, file_format


def _without_bias(weights: Weights, plans: Plans) -> Plans:
    """Return the plans, with no correction of a bias where a layer has none."""
    model = weights.model
    tensors = {name for index in range(model.config.layers) for name in model.block_tensors(index)}
    return {
        name: plan if plan is None or f"{name}.bias" in tensors else replace(plan, bias_correction=False)
        for name, plan in plans.items()
    }


def _wants_text(plans: Plans, recipe: Recipe) -> bool:
    return bool(recipe.transforms or recipe.refine or needs(plans.values()))


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


def _outer_floats(weights: Weights, tables: Mapping[str, Scheme]) -> Iterator[str]:
    """Yield the tensors outside the blocks that stay float: without a table that was quantized, under either name."""
    written = {f"{name}.weight" for name in tables}
    yield from (name for name in (*weights.model.outer_tensors(), *weights.skipped()) if name not in written)


def _as_written(weights: Weights, name: str) -> Tensor:
    """Return a tensor that stays float as the output has it: as stored, but bfloat16 where it was in a block type."""
    info = weights.checkpoint.tensors[name]
    if not in_blocks(info):
        return weights.checkpoint.read(name)
    written = torch.empty(info.shape, dtype=written_dtype(info))
    # in slabs: an embedding in float32 beside itself in bfloat16 would be the most memory that a small model takes
    step = max(1, SLAB_VALUES // max(1, written[0].numel()))
    for start in range(0, len(written), step):
        stop = min(start + step, len(written))
        written[start:stop] = torch.from_numpy(weights.checkpoint.read_array(name, rows=(start, stop)))
    return written


def _config(weights: Weights, recipe: Recipe, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the output. quantization: its `quantization_config`."""
    config = {**weights.checkpoint.config, "quantization_config": quantization}
    config.pop(CONFIG_KEY, None)  # the recipe decides, not what the source was to be run with
    config |= Choices(kv_cache=recipe.kv_cache).to_config()
    if any(in_blocks(info) for info in weights.checkpoint.tensors.values()):
        config["dtype"] = "bfloat16"
    return config


def _refuse_early(weights: Weights, plans: Plans, file_format: ModuleType, tables: Mapping[str, Scheme]) -> None:
    """Raise for what could otherwise fail hours later: a quantized input, schemes that the format cannot store."""
    if weights.is_quantized:
        raise InputError(
            f"{weights.checkpoint.path} is quantized already; quantize the float model that it was made from"
        )
    for name, plan in plans.items():
        if plan is not None:
            rows, cols = weights.checkpoint.tensors[f"{name}.weight"].shape
            reason = file_format.supports(plan.scheme, (rows, cols))
            if reason is not None:
                raise SchemeError(f"{name}: {reason}")
    file_format.config(_schemes(plans), _inputs(plans), tables)


def _schemes(plans: Plans) -> dict[str, Scheme | None]:
    return {name: None if plan is None else plan.scheme for name, plan in plans.items()}


def _inputs(plans: Plans) -> dict[str, InputScheme | None]:
    return {name: None if plan is None else plan.activations for name, plan in plans.items()}
