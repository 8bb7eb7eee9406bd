"""The most memory and the most disk of a run, part by part, and what a limit makes of them.

A run is a few phases after one another, and each holds some things at once:

    embed     the embedding as it is stored, the embedded texts
    observe   the block so far, the texts, one batch on its way through a stage, the statistics of its input
    round     the block so far, the texts, H and its inverse, and for each worker one weight in a few copies
    run       the block so far, the texts, one batch on its way through a stage
    judge     two versions of the block, the texts, the held-out windows
    refine    the block with its latents and gradients; or all blocks, and the head
    head      rows of the head as floats, logits of some tokens; embedding and head as they are written

What a limit can move is the texts, which wait on disk, and the workers, who are fewer then; everything else is the
least that the model needs. Peaks are those of the process that quantizes, over what Python and torch take themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from zeropoint import heap
from zeropoint.errors import RecipeError
from zeropoint.models.parts import Flow, Stage, branch, kinds_of_blocks
from zeropoint.planning.schemes import Plans, has_shadow, needed, reads_text, scopes
from zeropoint.recipe import Recipe
from zeropoint.runtime.weights import HEAD_VALUES, Weights

FLOAT_BYTES = 4
BASE_BYTES = 350 << 20
"""What Python, torch and our code take by themselves, 300 MB, and the buffers and threads of products (docs/log.md)."""

MARGIN = 0.97
"""How much of a limit is planned with: a plan is not exact, and a limit is kept."""

ACTIVATION_BYTES = 2 << 30
"""Activations of the texts above this wait on disk where no limit is given."""

WEIGHT_COPIES = 3.25
"""Copies of a weight in float32 while it is rounded: itself, what is left to round or its errors, its codes."""

UNEVEN = 2.0
"""How many times its share an expert may be sent."""

LOGIT_COPIES = 5.0
"""Copies of the logits of some tokens while two distributions are held against one another."""

LOGIT_ROWS = 256


@dataclass(frozen=True)
class Phase:
    """What one part of the work holds at once, in bytes. texts: of the activations, which can wait on disk."""

    name: str
    needs: Mapping[str, int]
    texts: int = 0

    @property
    def size_bytes(self) -> int:
        """The sum, without the texts."""
        return sum(self.needs.values())

    def within(self, limits: Limits) -> Phase:
        """Return the phase with as many of the texts as may be in memory among its needs."""
        return Phase(self.name, {**self.needs, "texts": min(self.texts, limits.activation_bytes)}, self.texts)


@dataclass(frozen=True)
class Limits:
    """What a run may keep in memory.

    activation_bytes: of the texts, in all. workers: weights rounded at once. tight: whether what malloc keeps of freed
    memory has to go back to the system before much is needed.
    """

    activation_bytes: int = ACTIVATION_BYTES
    workers: int = 2
    tight: bool = False


@dataclass(frozen=True)
class Memory:
    """The memory and the disk of a run.

    peak: the phase that takes the most, with the texts. least_bytes: the least limit that can be kept.
    spilled_bytes: of the texts that wait on disk. state_bytes: what the next block begins with, on disk after each.
    """

    limits: Limits
    peak: Phase
    least_bytes: int
    spilled_bytes: int
    state_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most memory of the run."""
        return self.peak.size_bytes


def plan_memory(weights: Weights, plans: Plans, recipe: Recipe, *, workers: int, limit_bytes: int | None) -> Memory:
    """Return what a run will take, kept below a limit where there is one.

    workers: threads there are. limit_bytes: of --max-memory, None for none.
    Raises: RecipeError if the model needs more than the limit, with the least that it needs.
    """
    work = _Work(weights, plans, recipe)
    least = max(phase.size_bytes for phase in work.phases(1))
    if limit_bytes is None:
        limits = Limits(ACTIVATION_BYTES, workers)
    else:
        if least > limit_bytes:
            raise RecipeError(
                f"{weights.checkpoint.path} with the recipe {recipe.name} needs at least {heap.as_limit(least)} of "
                f"memory, {_largest(work)}; it may take {limit_bytes / 1e9:.3f}GB; give more, or "
                "lower calibration.batch"
            )
        limits = _within(work, max(least, int(MARGIN * limit_bytes)), workers)
    phases = [phase.within(limits) for phase in work.phases(limits.workers)]
    return Memory(
        limits=limits,
        peak=max(phases, key=lambda phase: phase.size_bytes),
        least_bytes=least,
        spilled_bytes=max(0, max(phase.texts for phase in phases) - limits.activation_bytes),
        state_bytes=work.state_bytes(),
    )


def _within(work: _Work, limit_bytes: int, workers: int) -> Limits:
    """Return as many workers as fit below the limit, and what they leave for the texts."""
    fits = (n for n in range(workers, 1, -1) if all(phase.size_bytes <= limit_bytes for phase in work.phases(n)))
    workers = next(fits, 1)
    room = ACTIVATION_BYTES
    for phase in work.phases(workers):
        if phase.size_bytes + phase.texts > limit_bytes:
            room = min(room, limit_bytes - phase.size_bytes)
    return Limits(room, workers, tight=True)


def _largest(work: _Work) -> str:
    """Return in a few words what the least memory is needed for."""
    peak = max(work.phases(1), key=lambda phase: phase.size_bytes)
    what = max(peak.needs, key=lambda name: peak.needs[name])
    return f"{peak.needs[what] / 1e9:.2f}GB of it for {what}, in the phase {peak.name!r}"


class _Work:
    """The shapes of a model and what a recipe does with them.

    needed: statistics of inputs, by name. scopes: of the methods of `refine`. walks: models that run over the texts.
    flows: of each kind of block.
    """

    def __init__(self, weights: Weights, plans: Plans, recipe: Recipe) -> None:
        self.weights, self.recipe = weights, recipe
        self.needed, self.scopes = needed(plans), scopes(recipe)
        self.reads_text = reads_text(plans, recipe)
        self.walks = 2 if has_shadow(plans, recipe) else 1
        self._kinds = kinds_of_blocks(weights.model)
        self.flows = [weights.model.flow_of(index) for index in self._kinds]

    def phases(self, workers: int) -> Iterator[Phase]:
        """Yield what each part of the work holds, without the texts."""
        base = {"python and torch": BASE_BYTES, "kept by malloc": heap.KEPT_BYTES}
        recipe, block = self.recipe, self._block_floats() * FLOAT_BYTES
        if self.reads_text:
            yield Phase("embed", base | {"embedding": self._table_bytes(0)}, self.text_bytes(before=False))
        beside = {"float block": block} if self.walks > 1 else {}
        if recipe.transforms:
            beside = {"float block": (2 if beside else 1) * block}
            yield Phase(
                "transform",
                base | {"float block": 2 * block, "trial": 2 * block, "batch": 2 * self._batch_bytes()},
                self.text_bytes(),
            )
        windows = {"windows": self._held_out_bytes()} if self.reads_text else {}
        for flow in self.flows:
            yield from self._of_block(flow, base, beside | windows, workers)
        if self.reads_text and recipe.calibration.held_out:
            judged = {"block": block, "version": block}
            yield Phase("judge", base | beside | windows | judged, self.text_bytes())
        yield from self._refinements(base, block)
        vocab, hidden = self.weights.model.config.vocab_size, self.weights.model.config.hidden_size
        slab = min(HEAD_VALUES, vocab * hidden)
        stored = max(self._table_bytes(0), self._table_bytes(-1))  # as they are written, or read as a whole
        head = {"head": max(stored, slab * FLOAT_BYTES + self._table_bytes(-1) * slab // (vocab * hidden))}
        logits = LOGIT_COPIES * LOGIT_ROWS * self.weights.model.config.vocab_size * FLOAT_BYTES
        yield Phase("head", base | head | {"logits": int(logits) if recipe.calibration.held_out else 0})

    def _of_block(self, flow: Flow, base: dict[str, int], beside: dict[str, int], workers: int) -> Iterator[Phase]:
        """Yield the phases of the stages of a block, of which more and more is in memory."""
        done = 0
        for stage, following in zip(flow, (*flow[1:], None), strict=True):
            branches = [self._branch(stage), 0 if following is None else self._branch(following)]
            shapes = [self._shape(stage, name) for name in stage.linears]
            cols = shapes[0][1]
            here = base | beside | {"block": done * FLOAT_BYTES, "codes": self._versions() * done}
            texts = [self.text_bytes(branch) if self.reads_text else 0 for branch in branches]
            moments = self._moments() * cols * cols * FLOAT_BYTES
            if self.needed:
                yield Phase("observe", here | {"statistics": moments, "batch": self._stage_bytes(stage)}, texts[0])
            at_once = sorted((rows * each for rows, each in shapes), reverse=True)[:workers]
            inverse = cols * cols * FLOAT_BYTES if self.recipe.rounding.method != "rtn" else 0  # beside H, for all
            yield Phase(
                "round",
                here
                | {
                    "statistics": moments,
                    "inverse": inverse,
                    "weights": int(WEIGHT_COPIES * FLOAT_BYTES * sum(at_once)),
                },
                texts[0],
            )
            done += sum(rows * each for rows, each in shapes)
            if self.reads_text:
                run = {"block": done * FLOAT_BYTES, "batch": self._stage_bytes(stage)}
                yield Phase("run", here | run, max(texts))

    def _refinements(self, base: dict[str, int], block: int) -> Iterator[Phase]:
        for scope in self.scopes:
            window = self._batch_bytes() // max(1, self.recipe.calibration.batch)
            if scope == "block":
                copies = {"latents": 3 * block, "gradients": 4 * block, "float block": 2 * block, "windows": 4 * window}
                yield Phase("refine", base | {"block": block} | copies, self.text_bytes())
            elif scope == "model":
                codes = self._block_floats() * self.weights.model.config.layers
                gradients = {"codes": codes, "gradients": 4 * block, "windows": 4 * window}
                starts = self.text_bytes(before=False)
                yield Phase(
                    "refine", base | gradients | {"head": 2 * self._head_bytes(), "starts": starts // 2}, starts // 2
                )

    def text_bytes(self, branch: int = 0, *, before: bool = True) -> int:
        """Return what all texts take with a branch of so many features beside the residual stream."""
        options, hidden = self.recipe.calibration, self.weights.model.config.hidden_size
        kept = hidden if before and "block" in self.scopes else 0
        return options.samples * options.length * FLOAT_BYTES * (self.walks * (hidden + branch) + kept)

    def state_bytes(self) -> int:
        """Return what a block leaves on the disk for the next one."""
        return self.text_bytes(before=False) + self._held_out_bytes() if self.reads_text else 0

    def _moments(self) -> int:
        """Return how many matrices as large as H are kept of an input."""
        return ("second_moment" in self.needed) + ("drift" in self.needed)

    def _shape(self, stage: Stage, name: str) -> tuple[int, int]:
        tensors, model = self.weights.checkpoint.tensors, self.weights.model
        names = (f"{model.block_name(index)}.{name}.weight" for index in self._kinds)
        rows, cols = next(tensors[each] for each in names if each in tensors).shape
        return rows, cols

    def _block_floats(self) -> int:
        """Return how many weights the linears of the largest block have."""
        return max(
            sum(math.prod(self._shape(stage, name)) for stage in flow for name in stage.linears) for flow in self.flows
        )

    def _stage_bytes(self, stage: Stage) -> int:
        """Return what a batch takes on its way through a stage: its input, its outputs, and heads in another order."""
        options = self.recipe.calibration
        shapes = [self._shape(stage, name) for name in stage.linears]
        values = shapes[0][1] + sum(rows for rows, _ in shapes)
        config = self.weights.model.config
        if any(after.values for flow in self.flows for before, after in pairwise(flow) if before is stage):
            # queries and keys are rotated, keys and values repeated for the heads that share them
            values += (3 * config.heads + 2 * config.kv_heads) * config.head_dim
        return options.batch * options.length * values * FLOAT_BYTES

    def _branch(self, stage: Stage) -> int:
        """Return the features of what is kept beside the residual stream in front of a stage."""
        config = self.weights.model.config
        y = self._shape(stage, stage.linears[0])[1] if stage.enter is branch else 0
        if stage.expert is not None:  # what all experts read, the routes, and the sum; more tokens than is its share
            return int(y * min(1.0, UNEVEN * stage.share(config))) + 2 * config.hidden_size + config.experts
        behind_attention = any(stage in flow[2:] for flow in self.flows)
        return y + (config.hidden_size if config.parallel and behind_attention else 0)

    def _batch_bytes(self) -> int:
        return max(self._stage_bytes(stage) for flow in self.flows for stage in flow)

    def _versions(self) -> int:
        """Return how many versions of a weight are kept until its block is done: one for each stage of the work."""
        return 1 + (self.recipe.rounding.method != "rtn") + sum(scope != "model" for scope in self.scopes)

    def _held_out_bytes(self) -> int:
        """Return what the held-out windows take: for each stage of the work, the float model among them."""
        options, config = self.recipe.calibration, self.weights.model.config
        return (1 + self._versions()) * options.held_out * options.length * config.hidden_size * FLOAT_BYTES

    def _table_bytes(self, index: int) -> int:
        name, checkpoint = f"{self.weights.tables[index].name}.weight", self.weights.checkpoint
        return checkpoint.tensors[checkpoint.tied.get(name, name)].size_bytes

    def _head_bytes(self) -> int:
        """Return the head as it is stored and in float32."""
        config = self.weights.model.config
        return self._table_bytes(-1) + config.vocab_size * config.hidden_size * FLOAT_BYTES
