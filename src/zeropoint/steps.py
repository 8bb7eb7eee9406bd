"""A run as steps: embeddings, each block, the rest. Each is on the disk when the next is done, and never done again.

    tables   embedding and head as integers, where the recipe wants that
    block    one block as it is written, and what the next one begins with: the activations of all texts
    rest     what tunes the whole model, its last norm, and all that is copied

A step's record holds the rows that a result has of it, so that a run which goes on after a power cut ends as one that
was never disturbed. Where the whole model is tuned together blocks wait, on the disk and in memory, for its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from zeropoint import find, heap
from zeropoint.blocks import (
    Beside,
    FinishedBlock,
    Layer,
    as_laid_out,
    quantized_blocks,
    stage_names,
    written_dtype,
)
from zeropoint.checkpoint.writer import Writer
from zeropoint.embeddings import quantize_table
from zeropoint.evaluation.results import (
    GainRow,
    LayerRow,
    Probe,
    RefineRow,
    Result,
    Sufficiency,
    TransformRow,
    peak_memory_bytes,
)
from zeropoint.evaluation.size import in_blocks
from zeropoint.models.parts import outer_tensors
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Batches
from zeropoint.observe.shadow import Shadow
from zeropoint.planning.memory import Limits
from zeropoint.planning.schemes import Plans, has_shadow, scope_of, scopes, stores_of
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Choice, Recipe
from zeropoint.refine.distill import Head, Windows
from zeropoint.refine.tuned import TunedBlock, TunedGain, TunedLinear
from zeropoint.runtime.ops_torch import DifferentiableOps, TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.stages import FLOAT, Stages
from zeropoint.transforms.outer import Outer
from zeropoint.types import InputScheme, Scheme
from zeropoint.verification import probe_of

SLAB_VALUES = 1 << 21
"""Values of a tensor in a block type that are in float32 at once, where it is copied to the output."""

PROBE_TOKENS = 16
"""Tokens that run through the model beside the text, so that `verify` can tell whether the file does the same."""


class Tables(Result, frozen=True, kw_only=True):
    """What a result has of the first step. looked_up: the file of the probe's rows, of an embedding in integers."""

    layers: tuple[LayerRow, ...]
    looked_up: str | None = None


class Done(Result, frozen=True, kw_only=True):
    """What a result has of one block.

    inputs: how each linear reads its input. seconds: of the stages of the work so far, by method. elapsed_s: of the
    whole run so far, earlier ones included. kept: the file of what waits for the whole model to be tuned; or None.
    """

    layers: tuple[LayerRow, ...]
    inputs: dict[str, InputScheme | None]
    transforms: tuple[TransformRow, ...]
    refined: tuple[RefineRow, ...]
    sufficiency: tuple[Sufficiency, ...]
    seconds: dict[str, float]
    elapsed_s: float
    peak_memory_bytes: int
    most_spilled_bytes: int
    kept: Kept | None = None


class Kept(Result, frozen=True, kw_only=True):
    """A block that waits. file: its tensors. floats: names as in FinishedBlock. gains: dtypes they are stored in."""

    file: str
    floats: tuple[str, ...]
    gains: dict[str, str]


class Rest(Result, frozen=True, kw_only=True):
    """What a result has of all that follows the blocks. probe: what the last block gives, one row for each token."""

    refined: tuple[RefineRow, ...]
    gains: tuple[GainRow, ...]
    probe: tuple[tuple[float, ...], ...]


class Steps:
    """The steps of one run, those that an earlier one has done among them.

    done: of each block. tables, rest: None before they are done.
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
        *,
        schemes: Mapping[str, Scheme],
        file_format: ModuleType,
        writer: Writer,
    ) -> None:
        """Take over what the writer has of an earlier run. schemes: of the tables that become integers."""
        self._weights, self._plans, self._recipe, self._ops, self._report = weights, plans, recipe, ops, report
        self._text, self._rotated = text, rotated
        self._schemes, self._format, self._writer = schemes, file_format, writer
        self._started_s = time.perf_counter()
        self._stores: list[Activations] = []
        self._together: list[FinishedBlock] = []
        self._divergences: list[tuple[str, float]] = []
        self._refined: list[RefineRow] = []
        self._outer: dict[str, Tensor] = {}
        self._state: str | None = None
        self.tables: Tables | None = None
        self.done: list[Done] = []
        self.rest: Rest | None = None
        self.resumed = 0
        """Blocks that an earlier run has done."""
        for step in writer.steps:
            if step.kind == "tables":
                self.tables = step.read(Tables)
            elif step.kind == "block":
                self.done.append(step.read(Done))
                self._state = step.state
            elif step.kind == "rest":
                self.rest = step.read(Rest)
        self.resumed = len(self.done)

    @property
    def held_out(self) -> int:
        """How many windows of the text are held out: fewer than asked for, if it is short."""
        if self._text is None:
            return 0
        options, found = self._recipe.calibration, len(self._text.tokens)
        return min(options.held_out, max(found - options.samples, found // 8))

    @property
    def layers(self) -> list[LayerRow]:
        """The rows of all weights that were quantized."""
        blocks = [row for done in self.done for row in done.layers]
        return blocks + list(() if self.tables is None else self.tables.layers)

    @property
    def inputs(self) -> dict[str, InputScheme | None]:
        """How each linear of the blocks reads its input."""
        return {name: scheme for done in self.done for name, scheme in done.inputs.items()}

    @property
    def earlier_s(self) -> float:
        """What earlier runs have worked on it, up to the last block that they finished."""
        return self.done[self.resumed - 1].elapsed_s if self.resumed else 0.0

    def probe(self, written: Weights) -> Probe:
        """Return what the probe gives behind the head of the written file."""
        assert self.rest is not None
        x = torch.tensor([self.rest.probe])
        logits = written.logits(self._ops)(x)[0]
        return probe_of(probe_tokens(written.model.config.vocab_size), logits.float().numpy())

    def run(self, limits: Limits) -> None:
        """Do all steps that are not done; after the last one `Writer.finish` has all tensors.

        limits: what may be in memory of the texts, and how many weights are rounded at once.
        """
        if self.tables is None:
            self._quantize_tables()
        if self.rest is not None:
            return
        count = stores_of(self._plans, self._recipe)
        with ExitStack() as stack:

            def store() -> Activations:
                made = Activations(limit_bytes=limits.activation_bytes // count, folder=self._writer.work)
                self._stores.append(stack.enter_context(made))
                return made

            self._quantize_blocks(store, limits)

    def _quantize_tables(self) -> None:
        rows: list[LayerRow] = []
        looked_up: str | None = None
        tokens = probe_tokens(self._weights.model.config.vocab_size)
        for table in self._weights.tables if self._schemes else ():
            scheme = self._schemes[table.name]
            made = quantize_table(self._weights, table, scheme, self._recipe.range, self._format, rows=tokens)
            self._writer.add(made.tensors)
            looked_up = looked_up or self._writer.keep({"rows": made.looked_up})  # the first table is the embedding
            rows.append(made.row)
        self.tables = Tables(layers=tuple(rows), looked_up=looked_up)
        self._writer.step("tables", self.tables)

    def _quantize_blocks(self, store: Callable[[], Activations], limits: Limits) -> None:
        model, layers, start = self._weights.model, self._weights.model.config.layers, len(self.done)
        activations, beside = store(), Beside(probe=torch.zeros(0))
        if has_shadow(self._plans, self._recipe):
            beside.shadow = Shadow(store())
        if "block" in scopes(self._recipe):
            beside.before = store()
        if start:
            self._go_on(activations, beside)
            self._report(Progress("quantize", start, layers, f"goes on after {model.block_name(start - 1)}"))
        else:
            self._begin(activations, beside)
            self._report(Progress("quantize", 0, layers))
        rotation = None if self._rotated is None else self._rotated.rotation
        whole_model = [choice for choice in self._recipe.refine if scope_of(choice) == "model"]
        for block in quantized_blocks(
            self._weights,
            self._plans,
            self._recipe,
            self._ops,
            activations,
            beside,
            rotation,
            start=start,
            limits=limits,
        ):
            kept = self._keep(block) if whole_model else None
            if kept is None:
                self._add(block)
            self._record(block, beside, kept)
            self._writer.step("block", self.done[-1], _State(activations, beside))
            self._report(Progress("quantize", block.index + 1, layers, block.name))
            del block  # while the next one is made its codes would be as much as a matrix of the largest ones
        still_read = beside.shadow.activations if whole_model and beside.shadow is not None else None
        for store_ in self._stores:  # what the head needs next is large
            if store_ is not still_read:
                store_.clear()
        if limits.tight:
            heap.give_back()
        self._judge_stages(beside)
        if whole_model:
            self._refine_together(beside, whole_model)
        for block in self._together:
            self._add(block.tuned_with_model())
        self._add_outer()
        gains = [GainRow(stage=stage, kl=kl, seconds=beside.seconds.get(stage)) for stage, kl in self._divergences]
        probe = tuple(tuple(row) for row in beside.probe[0].tolist())
        self.rest = Rest(refined=tuple(self._refined), gains=tuple(gains), probe=probe)
        self._writer.step("rest", self.rest)

    def _begin(self, activations: Activations, beside: Beside) -> None:
        """Embed the text, for the walk and for what runs beside it."""
        beside.probe = self._embedded_probe()
        if self._text is None:
            return
        activations.extend(self._embed(self._learned_from()))
        if beside.shadow is not None:
            beside.shadow.activations.copy(activations)
        held_out = self._held_out()
        if len(held_out):
            beside.stages = Stages(stage_names(self._recipe), torch.cat(list(self._embed(held_out))))

    def _go_on(self, activations: Activations, beside: Beside) -> None:
        """Put everything where the last block that is done has left it."""
        assert self._state is not None
        _State(activations, beside).restore(self._writer.tensors_in(self._state))
        beside.seconds.update(self.done[-1].seconds)
        self._together = [self._waiting(index, done) for index, done in enumerate(self.done) if done.kept is not None]

    def _record(self, block: FinishedBlock, beside: Beside, kept: Kept | None) -> None:
        before = self.done[-1] if self.done else None
        elapsed_s = time.perf_counter() - self._started_s
        self.done.append(
            Done(
                layers=tuple(layer.row for layer in block.layers),
                inputs={layer.name: layer.input_scheme for layer in block.layers},
                transforms=block.transforms,
                refined=block.refined,
                sufficiency=block.sufficiency,
                seconds=dict(beside.seconds),
                elapsed_s=elapsed_s + self.earlier_s,
                peak_memory_bytes=max(peak_memory_bytes(), before.peak_memory_bytes if before else 0),
                most_spilled_bytes=max(
                    sum(store.most_spilled_bytes for store in self._stores), before.most_spilled_bytes if before else 0
                ),
                kept=kept,
            )
        )

    def _add(self, block: FinishedBlock) -> None:
        """Write the tensors of a block that nothing will change any more."""
        for layer in block.layers:
            self._writer.add(self._format.pack(layer.name, layer.qtensor))
        for name in block.float_names:
            self._writer.add(
                {name: block.rewritten[name] if name in block.rewritten else as_written(self._weights, name)}
            )

    def _add_outer(self) -> None:
        """Write what lies outside the blocks, but for tables that are integers."""
        weights, rotated = self._weights, self._rotated
        skipped = tuple(name for name in weights.skipped() if rotated is None or name != rotated.head)
        for name in _outer_floats(weights, self._schemes) if rotated is None else skipped:
            self._writer.add({name: self._outer[name] if name in self._outer else as_written(weights, name)})
        for name, tensor in () if rotated is None else rotated.tensors():
            self._writer.add({name: tensor})

    def _keep(self, block: FinishedBlock) -> Kept:
        """Let a block wait for the whole model to be tuned."""
        assert block.tuned is not None
        self._together.append(block)
        tensors = {f"fixed.{name}": tensor for name, tensor in block.tuned.fixed.items()}
        tensors |= {f"gains.{name}": gain.weight() for name, gain in block.tuned.gains.items()}
        tensors |= {f"rewritten.{name}": tensor for name, tensor in block.rewritten.items()}
        for layer in block.layers:
            packed = self._format.pack(layer.name, layer.qtensor)
            tensors |= {f"packed.{name}": tensor for name, tensor in packed.items()}
        return Kept(
            file=self._writer.keep(tensors),
            floats=block.float_names,
            gains={name: _name_of(gain.stored().dtype) for name, gain in block.tuned.gains.items()},
        )

    def _waiting(self, index: int, done: Done) -> FinishedBlock:
        """Return a block that an earlier run has let wait."""
        assert done.kept is not None
        tensors = self._writer.tensors_in(done.kept.file)
        model, prefix = self._weights.model, self._weights.model.block_name(index)
        layers: list[Layer] = []
        for row in done.layers:
            plan = self._plans[row.name]
            assert plan is not None
            read = done.inputs[row.name]
            names = self._format.tensor_names(row.name, plan.scheme, read)
            qtensor = self._format.unpack(
                row.name, {name: tensors[f"packed.{name}"] for name in names}, plan.scheme, read
            )
            layers.append(Layer(row.name, {"written": qtensor}, row, None, None, None))
        linears = {
            layer.name.removeprefix(f"{prefix}."): TunedLinear(layer.qtensor)
            for layer in layers
            if layer.qtensor.outliers is None
        }
        gains = {
            name: TunedGain(tensors[f"gains.{name}"], getattr(torch, dtype), model.config.norm_offset)
            for name, dtype in done.kept.gains.items()
        }
        block = TunedBlock(model.config_of(index), model.flow_of(index), linears, gains, _under("fixed.", tensors))
        rewritten = _under("rewritten.", tensors)
        return FinishedBlock(index, prefix, tuple(layers), done.kept.floats, rewritten, (), (), (), block)

    def _judge_stages(self, beside: Beside) -> None:
        stages = beside.stages
        if stages is None:
            return
        head = self._weights.logits(self._ops)

        def logits(x: Tensor) -> Tensor:
            return head(x if self._rotated is None else self._rotated.rotation.undo(x))

        self._divergences += stages.divergences(logits).items()

    def _refine_together(self, beside: Beside, choices: Iterable[Choice]) -> None:
        """Tune the whole model by the methods of `refine` that do that."""
        model, shadow, text = self._weights.model, beside.shadow, self._text
        blocks = [block.tuned for block in self._together if block.tuned is not None]
        assert shadow is not None
        assert text is not None
        ops = DifferentiableOps()
        norm_name = f"{model.ends.norm}.weight"
        with torch.inference_mode(False):  # what was made in inference mode takes no part in gradients
            ends = {name: tensor.clone() for name, tensor in self._weights.head(ops).items()}
        dtype = written_dtype(self._weights.checkpoint.tensors[norm_name])
        norm = TunedGain(ends[norm_name].float(), dtype, model.config.norm_offset)
        head = Head(model, norm_name, norm, ends)
        learned_from = Windows(list(self._embed(self._learned_from())), _Outputs(shadow.activations))
        stages = beside.stages
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
            beside.seconds[choice.method] += time.perf_counter() - started_s
            self._refined.append(RefineRow(block=None, method=choice.method, **vars(outcome)))
            self._divergences.append((choice.method, outcome.error_after))
        self._outer[norm_name] = norm.stored()
        beside.probe = self._embedded_probe()
        for block in blocks:
            beside.probe = block.prepare(self._ops).run(block.flow, beside.probe)

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

    def _embedded_probe(self) -> Tensor:
        """Return the probe's tokens as the file embeds them: (1, tokens, hidden)."""
        assert self.tables is not None
        weights = self._weights
        table, tokens = f"{weights.tables[0].name}.weight", probe_tokens(weights.model.config.vocab_size)
        if self.tables.looked_up is None:
            rows = torch.cat([weights.float_rows(table, token, token + 1) for token in tokens])
        else:
            rows = self._writer.tensors_in(self.tables.looked_up)["rows"]
        looked_up = {table: rows} | weights.positions()
        embedded: Tensor = weights.model.embed(self._ops, looked_up, torch.arange(len(tokens))[None])
        return embedded if self._rotated is None else self._rotated.embedded(embedded)


class _State(Mapping[str, Tensor]):
    """What the next block begins with, by name; each tensor is read when it is asked for, if it waits on disk."""

    def __init__(self, activations: Activations, beside: Beside) -> None:
        self._stores = {"activations": activations}
        if beside.shadow is not None:
            self._stores["shadow"] = beside.shadow.activations
        self._beside = beside

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        yield "probe"
        for name, store in self._stores.items():
            yield from (f"{name}.{index}" for index in range(len(store)))
        if self._beside.stages is not None:
            yield from (f"stages.{name}" for name in self._beside.stages.states)

    def __getitem__(self, name: str) -> Tensor:
        if name == "probe":
            return self._beside.probe
        kind, _, which = name.partition(".")
        if kind == "stages" and self._beside.stages is not None:
            return self._beside.stages.states[which]
        found: Tensor = self._stores[kind][int(which)].x
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill what is empty with what was saved."""
        self._beside.probe = tensors["probe"]
        for kind, store in self._stores.items():
            count = sum(name.startswith(f"{kind}.") for name in tensors)
            store.extend(tensors[f"{kind}.{index}"] for index in range(count))
        states = _under("stages.", tensors)
        if states:
            self._beside.stages = Stages.at(states)


def probe_tokens(vocabulary: int) -> list[int]:
    """Return the tokens of the probe: the same for every model of that vocabulary."""
    random = torch.Generator().manual_seed(vocabulary)
    return torch.randint(vocabulary, (PROBE_TOKENS,), generator=random).tolist()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def as_written(weights: Weights, name: str) -> Tensor:
    """Return a tensor that stays float as the output has it: as it is stored, but bfloat16 for a block type.

    Raises: NonFiniteError for NaN or infinity in what the architecture uses; what else there is may hold them.
    """
    info = weights.checkpoint.tensors[weights.checkpoint.tied.get(name, name)]
    if not in_blocks(info):
        return as_laid_out(info, weights.checkpoint.read(name) if name in weights.skipped() else weights.read(name))
    written = torch.empty(info.shape, dtype=written_dtype(info))
    # in slabs: an embedding in float32 beside itself in bfloat16 would be the most memory that a small model takes
    step = max(1, SLAB_VALUES // max(1, written[0].numel()))
    for start in range(0, len(written), step):
        stop = min(start + step, len(written))
        written[start:stop] = weights.float_rows(name, start, stop)
    return written


def _outer_floats(weights: Weights, tables: Mapping[str, Scheme]) -> Iterator[str]:
    """Yield the tensors outside the blocks that stay float: without a table that was quantized, under either name."""
    written = {f"{name}.weight" for name in tables}
    yield from (name for name in (*outer_tensors(weights.model), *weights.skipped()) if name not in written)
