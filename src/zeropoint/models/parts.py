"""What every decoder is built of: the `Ops` it is written against, and the stages its blocks run through.

A block is a sequence of stages. A stage is a set of linears that read the same input, and the arithmetic around them:

    state --enter--> input (batch, time, cols) --linears--> outputs --leave--> state

The residual stream x and the branch y are all that lives between two stages. So one description serves the forward
pass (run every stage), calibration (stop at a stage's input, quantize its linears, go on with the quantized ones) and
transforms (`fed_by` names what the input's scale can be folded into).

`Array` is whatever the ops compute with: a torch tensor here, a buffer of the native runtime there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.models.rope import Rope

Array = Any
"""(batch, time, features) unless a signature says otherwise."""


class LayerCache(Protocol):
    """Keys and values of one block for the tokens seen so far."""

    @property
    def length(self) -> int:
        """Tokens already in the cache: the position of the next one."""


class Ops(Protocol):
    """The arithmetic of a decoder. Shapes are (batch, time, features); heads are split by `split_heads`."""

    def prepare(self, weight: Array) -> Array:
        """Return a linear's weight (rows, cols), float or quantized, in the layout that `linear` wants."""

    def embed(self, tokens: Array, table: Array, factor: float = 1.0) -> Array:
        """Return the rows of `table` (vocabulary, hidden) for int tokens (batch, time), times `factor`."""

    def positions(self, tokens: Array, table: Array, start: int) -> Array:
        """Return the rows start, start + 1, ... of `table` (positions, hidden), one for each of the tokens."""

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Return x W^T + b for a prepared weight."""

    def rms_norm(self, x: Array, gain: Array, eps: float, offset: float = 0.0) -> Array:
        """Return x / sqrt(mean(x^2) + eps) * (gain + offset) over the last axis: of heads, over each head."""

    def layer_norm(self, x: Array, gain: Array, bias: Array, eps: float) -> Array:
        """Return (x - mean(x)) / sqrt(var(x) + eps) * gain + bias over the last axis; var divides by its length."""

    def split_heads(self, x: Array, heads: int) -> Array:
        """Return (batch, heads, time, head_dim) of (batch, time, heads * head_dim)."""

    def split(self, x: Array, widths: tuple[int, ...]) -> tuple[Array, ...]:
        """Return x (..., sum of widths) in parts of so many features, in their order: of heads, of each head's."""

    def rope(self, x: Array, rope: Rope, start: int) -> Array:
        """Rotate (batch, heads, time, head_dim) by the angles of the positions start, start + 1, ... and its factor."""

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        past: Any,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Array:
        """Return causal attention (batch, time, heads * head_dim); k and v may have fewer heads, shared by groups.

        With `past`, a LayerCache of these ops or None, k and v are appended to it and attention runs over all it holds.
        window: a token sees itself and the window - 1 tokens before it; None: all before it. scale: of the scores;
        None: 1 / sqrt(head_dim). softcap: scores become softcap * tanh(score / softcap); None: they stay.
        """

    def gated(self, gate: Array, up: Array, activation: str) -> Array:
        """Return activation(gate) * up."""

    def activate(self, x: Array, activation: str) -> Array:
        """Return activation(x)."""

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y."""

    def softcap(self, x: Array, cap: float) -> Array:
        """Return cap * tanh(x / cap)."""

    def route(self, x: Array, count: int, *, normalized: bool) -> Array:
        """Return softmax(x) (batch, time, experts) with 0 for all but the `count` largest of each token.

        normalized: those are divided by their sum.
        """

    def sent(self, x: Array, routes: Array, expert: int) -> Array:
        """Return the rows of x (batch, time, features) that are sent to an expert: (1, tokens, features)."""

    def add_sent(self, total: Array | None, y: Array, routes: Array, expert: int) -> Array:
        """Return `total`, zeros where it is None, with y times its route added to the rows that were sent.

        total: (batch, time, features). y: what the expert made of what `sent` returned.
        """


@dataclass(frozen=True)
class State:
    """What lives between two stages of a block.

    x: the residual stream (batch, time, hidden). y: the input of the next stage where that is not a function of x.
    waiting: what a stage further on adds to the stream; None where there is none. read, routes: between the experts of
    a block what all of them read, and the weight of each expert for each token (batch, time, experts), 0 where the
    token is not sent to it.
    """

    x: Array
    y: Array | None = None
    past: LayerCache | None = None
    waiting: Array | None = None
    read: Array | None = None
    routes: Array | None = None


Rows = slice | list[int]
"""Some rows of a linear."""


@dataclass(frozen=True)
class Stage:
    """Linears that read the same input, and the arithmetic before and after them.

    linears: local names, such as "self_attn.q_proj". fed_by: the norm or the linear whose output scale can be folded
    into this input, or None. fed_rows: which rows of that linear make the input; None: all. residual, values: what a
    rotation may rely on; the defaults promise nothing.
    residual: "reads" if the input is the RMS norm `fed_by` of the residual stream, "adds" if the output is added to the
    stream as it is, "apart" if neither it nor the arithmetic around it touches the stream. values: whether the input is
    attention over the outputs of `fed_by`, which mixes tokens and no features of a head.
    router: the linears stay float, whatever is asked for. expert: which one this is part of; the input is that of the
    tokens that are sent to it, (1, tokens, cols), and may be of none. of_all: returns it for all tokens.
    """

    linears: tuple[str, ...]
    fed_by: str | None
    enter: Callable[[Block, State], Array]
    leave: Callable[[Block, State, tuple[Array, ...]], State]
    residual: Literal["reads", "adds", "apart"] | None = None
    values: bool = False
    fed_rows: Callable[[Config], Rows] | None = None
    router: bool = False
    expert: int | None = None
    of_all: Callable[[Block, State], Array] | None = None

    def share(self, config: Config) -> float:
        """Return the part of all tokens that goes through the stage, where each expert is sent as many."""
        return 1.0 if self.expert is None else config.experts_per_token / config.experts

    def rows_of(self, config: Config) -> Rows:
        """Return the rows of `fed_by` that make the input, in the order of its columns."""
        return slice(None) if self.fed_rows is None else self.fed_rows(config)


Flow = tuple[Stage, ...]


@dataclass(frozen=True)
class Config:
    """The numbers of a decoder, or of one of its blocks, as its file in models/ read them from config.json.

    head_dim: features of one head. rope: None where positions are not told. window, attention_scale, attention_softcap:
    as `Ops.attention` has them. logit_softcap: as `Ops.softcap` has it; None for none. norm_offset: what is added to
    every stored gain. layer_norm: norms take the mean away, and have a bias. parallel: attention and MLP of a block
    read the same stream. embedding_factor: what an embedded token is multiplied by. learned_positions: each of
    max_positions has a row that is added to what is embedded. experts: of a block; 0 for none. experts_per_token: to
    which a token is sent; normalized_routes: their weights are divided by their sum. transposed: float files of it have
    the weights of linears as (cols, rows).
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    rope: Rope | None
    window: int | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    norm_offset: float = 0.0
    layer_norm: bool = False
    parallel: bool = False
    embedding_factor: float = 1.0
    learned_positions: bool = False
    experts: int = 0
    experts_per_token: int = 0
    normalized_routes: bool = False
    transposed: bool = False

    @property
    def longest(self) -> int | None:
        """Return the most tokens that the model can be run for, one after the other; None for any number."""
        if self.learned_positions:
            return self.max_positions
        return None if self.rope is None else self.rope.longest


@dataclass(frozen=True)
class Block:
    """One decoder block ready to run: its weights by local name ("self_attn.q_proj.weight"), linears prepared.

    config: that of the block, which may differ from the model's.
    """

    config: Config
    ops: Ops
    weights: dict[str, Array]

    def linear(self, name: str, x: Array) -> Array:
        """Apply the linear called `name`."""
        return self.ops.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Array) -> Array:
        """Apply the norm called `name`."""
        return norm(self.ops, self.config, self.weights, name, x)

    def finish(self, stage: Stage, state: State) -> State:
        """Run one stage from state to state."""
        x = stage.enter(self, state)
        return stage.leave(self, state, tuple(self.linear(name, x) for name in stage.linears))

    def run(self, flow: Flow, x: Array, past: LayerCache | None = None) -> Array:
        """Run the whole block: (batch, time, hidden) -> (batch, time, hidden)."""
        state = State(x, past=past)
        for stage in flow:
            state = self.finish(stage, state)
        return state.x


@dataclass(frozen=True)
class FloatBlock:
    """One decoder block as floats, for what rewrites it before it is quantized.

    name: "model.layers.3". tensors: float32, by local name; linears (rows, cols). dtypes: of the tensors that are
    written as floats, in which their values are exact; what is not in it becomes integers and may take any value.
    """

    name: str
    config: Config
    tensors: Mapping[str, Array]
    dtypes: Mapping[str, Any]

    def prepare(self, ops: Ops, flow: Flow) -> Block:
        """Return the block ready to run."""
        linears = {f"{name}.weight" for stage in flow for name in stage.linears}
        weights = {name: ops.prepare(t) if name in linears else t for name, t in self.tensors.items()}
        return Block(self.config, ops, weights)


@dataclass(frozen=True)
class Ends:
    """The modules outside the blocks, by their full names. head: also where it is the embedding. positions: if any."""

    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    positions: str | None = None


class Model(Protocol):
    """What the class Model of a file in models/ provides.

    It is made by `from_config(config)`, of the content of config.json, which raises ArchitectureError for a value that
    would change the result and is not covered.
    """

    @property
    def config(self) -> Config:
        """The numbers of the model."""

    @property
    def ends(self) -> Ends:
        """What is outside the blocks."""

    @property
    def part(self) -> str | None:
        """Return what the part of a larger model is called that this is, in the names of its tensors; else None."""

    @property
    def flow(self) -> Flow:
        """Return the stages of a block; where not all are alike, of one with experts."""

    def flow_of(self, index: int) -> Flow:
        """Return the stages of one block."""

    def config_of(self, index: int) -> Config:
        """Return the config of one block."""

    def block_name(self, index: int) -> str:
        """Return the prefix of a block's tensors, such as "model.layers.3"."""

    def block_tensors(self, index: int) -> tuple[str, ...]:
        """Return the full names of all tensors of a block."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one of these tensors, as the config has it."""

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """Return what a checkpoint holds by the names, and in the parts, that this file has for it.

        tensors: as they are stored. What the architecture does not use comes back, too.
        """

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array, start: int = 0) -> Array:
        """Return (batch, time, hidden) for int tokens (batch, time), the first of which is at the position `start`."""

    def head(self, ops: Ops, weights: Mapping[str, Array], x: Array) -> Array:
        """Return logits (batch, time, vocabulary) of the last block's output."""


@dataclass(frozen=True)
class Table:
    """A weight with a row for each token of the vocabulary: the embedding, the head, or both in one.

    name: full, without ".weight". also: the other name of a tied one, under which nothing is stored.
    """

    name: str
    also: str | None = None


def tables(model: Model) -> tuple[Table, ...]:
    """Return the tables of a model: the embedding that is the head too, or the embedding and the head."""
    ends = model.ends
    if model.config.tied_embeddings:
        return (Table(ends.embedding, ends.head),)
    return Table(ends.embedding), Table(ends.head)


def last_norm(model: Model) -> tuple[str, ...]:
    """Return the full names of the last norm's tensors, its gain first."""
    kinds = ("weight", "bias") if model.config.layer_norm else ("weight",)
    return tuple(f"{model.ends.norm}.{kind}" for kind in kinds)


def positions(model: Model) -> tuple[str, ...]:
    """Return the full name of the table of learned positions, if there is one."""
    return () if model.ends.positions is None else (f"{model.ends.positions}.weight",)


def outer_tensors(model: Model) -> tuple[str, ...]:
    """Return the full names of the tensors outside the blocks: embedding, last norm, and the head if it is another."""
    embedding, *head = (f"{table.name}.weight" for table in tables(model))
    return (embedding, *positions(model), *last_norm(model), *head)


def kinds_of_blocks(model: Model) -> tuple[int, ...]:
    """Return the first block of each kind, those with `model.flow` first; one where all blocks are alike."""
    first: dict[int, int] = {}
    for index in range(model.config.layers):
        first.setdefault(id(model.flow_of(index)), index)
    return tuple(sorted(first.values(), key=lambda index: model.flow_of(index) is not model.flow))


def linear_names(model: Model) -> Iterator[str]:
    """Yield the full name of every linear of every block, in the order of the flow."""
    for index in range(model.config.layers):
        for stage in model.flow_of(index):
            for name in stage.linears:
                yield f"{model.block_name(index)}.{name}"


def norm(ops: Ops, config: Config, weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """Return the norm called `name`, of the kind that the config says, of x."""
    gain = weights[f"{name}.weight"]
    if config.layer_norm:
        return ops.layer_norm(x, gain, weights[f"{name}.bias"], config.norm_eps)
    return ops.rms_norm(x, gain, config.norm_eps, config.norm_offset)


def expert_names(model: Model) -> set[str]:
    """Return the full names of the linears that only the tokens sent to them read."""
    return {
        f"{model.block_name(index)}.{name}"
        for index in range(model.config.layers)
        for stage in model.flow_of(index)
        if stage.expert is not None
        for name in stage.linears
    }


# Two halves of a stage that most architectures share.


def branch(block: Block, state: State) -> Array:
    """Enter a stage whose input is the branch itself."""
    return state.y


def add_to_residual(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    """Leave a stage by adding its one output to the residual stream."""
    return replace(state, x=block.ops.add(state.x, outputs[0]), y=None)
