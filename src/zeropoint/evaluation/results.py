"""What the commands give back: plain structs, printed by --json, kept beside the weights, shown by report/.

An Interval95 is (low, high). Sizes are in bytes, times in seconds, shares in [0, 1], KL and losses in nats per token.
JSON knows neither NaN nor infinity, and a result has no use for them: a struct that would hold one is refused when it
is made. What cannot be known is None, and its docstring says when.
"""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import msgspec

from zeropoint import documents
from zeropoint.errors import InputError, InternalError, OutputError

Interval95: TypeAlias = tuple[float, float]
Verdict: TypeAlias = Literal["EQUIVALENT", "DEGRADED", "INCONCLUSIVE"]
Role: TypeAlias = Literal["linear", "embedding", "head", "other"]

RECORD = "zeropoint.json"
"""The file beside a model's weights that says how it was made: a QuantizeResult."""

RESULTS = "results.json"
"""The file beside a model's weights that says what it lost: an Evaluation."""

BENCH = "bench.json"
"""The file beside a model's weights that says how fast it runs, where somebody has kept that: a Bench."""

MANIFEST = "zeropoint-manifest.json"
"""The file beside a model's weights by which `verify` knows them again: a Manifest."""

MAX_BYTES = 1 << 28
"""A result is smaller: a row for each of a hundred thousand layers takes 100 MB."""

FALLBACK_LIMIT = 0.1
"""Share of the layers that may have come out otherwise than asked before a run counts as failed."""

MEASURED_WITH = ("zeropoint", "torch", "numpy", "tokenizers", "gguf")
"""The packages whose versions can change a number."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A struct of finite numbers that is kept as one JSON document, its keys in the order of its fields.

    Raises: InternalError, naming the field, when a number is NaN, infinite or of more than 64 bits.
    """

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            for where, number in _numbers(getattr(self, name), name):
                if isinstance(number, int) and number.bit_length() > 64:
                    raise InternalError(f"{type(self).__name__}.{where} has {number.bit_length()} bits; 64 are enough")
                if isinstance(number, float) and not math.isfinite(number):
                    raise InternalError(f"{type(self).__name__}.{where} is {number}; results hold finite numbers only")

    def save(self, path: str | Path) -> None:
        """Write the struct to `path`, which has either its former or its new content at any moment.

        Raises: OutputError if it cannot be written.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(_laid_out(msgspec.json.encode(self)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputError(f"{path}: the result cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return what `save` wrote. Keys that this version does not know are passed over.

        Raises: InputError if the file is missing, or is not the JSON document of this struct.
        """
        path = Path(path)
        try:
            return msgspec.json.decode(documents.read_bytes(path, MAX_BYTES), type=cls)
        except OSError as error:
            raise InputError(f"{path}: no readable result ({error.strerror})") from error
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
            documents.MalformedError,
            InternalError,  # a number that is none
        ) as error:
            raise InputError(f"{path}: not {cls.__name__} as zeropoint writes it: {error}; make it again") from error


class Text(Result, frozen=True, kw_only=True):
    """A text that was calibrated or judged on.

    sha256: of the file. windows of `length` tokens. seed: of the choice of windows, None where all were taken in order.
    note: what a reader should know about the text, or None.
    """

    name: str
    sha256: str
    windows: int
    length: int
    seed: int | None = None
    note: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return self.windows * self.length


class Bar(Result, frozen=True, kw_only=True):
    """How many values lie in [low, high)."""

    low: float
    high: float
    count: int


class Channel(Result, frozen=True, kw_only=True):
    """One input of a linear and how large it is: ratio, of its root mean square to the median one's."""

    index: int
    ratio: float


class Spreading(Result, frozen=True, kw_only=True):
    """How the values of one quantized linear are spread, and what its grid made of them.

    weights: bars of the float weight, as the grid was put on it. code_low: the smallest code; codes: how many weights
    have code_low, code_low + 1 and so on. clipped_error, rounded_error: squared error of the weights outside the ends
    of their grids, and of the others, relative to the squares of all weights; they sum to the squared relative error.
    inputs: bars of what the linear reads, of some tokens of the calibration; loud: its largest inputs, the largest
    first. Both are empty where no input was observed. The first and the last bar may be wider than the others.
    """

    weights: tuple[Bar, ...]
    code_low: int
    codes: tuple[int, ...]
    clipped_error: float
    rounded_error: float
    inputs: tuple[Bar, ...] = ()
    loud: tuple[Channel, ...] = ()


class Sufficiency(Result, frozen=True, kw_only=True):
    """How far the statistics of a calibration depend on the windows that were drawn, by layer.

    disagreement: relative distance between the mean squares of the inputs in the even and in the odd windows:
    |a - b| / |a + b|, over all channels. It falls like the root of the number of windows.
    """

    layer: str
    disagreement: float


class LayerRow(Result, frozen=True, kw_only=True):
    """One quantized linear.

    name: full, without ".weight". kind: its last part ("q_proj"). scheme: its label. input_scheme: that of its input;
    None where it stays float. rounding: the method that gave the integers. fallback: the rung that was taken instead of
    what was asked for, and why; or None. input_fallback: why the input is dynamic although a static scale was asked
    for, or None. input_error: squared relative error of the output of all layers that share the input, from rounding it
    with the static scale; None where the recipe sets no limit to it.
    sqnr_db: of the weight; None when nothing was lost. cosine: between the weight and what its codes stand for.
    output_error: squared relative error of the layer's output on the calibration tokens, tr(E H E^T) / tr(W H W^T);
    None when there were none. bias_shift: the most that a bias was changed to take back the mean of that error, and of
    what rounding the input does; None where no bias is corrected. outlier_columns: how many stay float; None where the
    recipe sets no threshold. sent_tokens: of the calibration, that an expert was sent; None where all tokens go
    through. from_all: statistics are of all tokens, because it was sent so few. spreading: None of embeddings and
    heads, of experts where there are more than a thousand linears, and if it was made before that was kept.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    scheme: str
    rounding: str
    fallback: str | None
    sqnr_db: float | None
    cosine: float
    output_error: float | None
    input_scheme: str | None = None
    input_fallback: str | None = None
    input_error: float | None = None
    bias_shift: float | None = None
    outlier_columns: int | None = None
    sent_tokens: int | None = None
    from_all: bool = False
    spreading: Spreading | None = None

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was done otherwise than asked, a sentence each that begins with the layer's name."""
        return tuple(f"{self.name}: {why}" for why in (self.fallback, self.input_fallback) if why is not None)


class Size(Result, frozen=True, kw_only=True):
    """Where the bytes of a checkpoint are.

    total_bytes = linear_bytes + float_linear_bytes + embedding_bytes + head_bytes + other_bytes + overhead_bytes.

    linear_bytes: all that stands for the quantized linears: code_bytes + scale_bytes + zero_point_bytes +
        outlier_bytes, the columns that stay float. In a block type such as Q4_1 the scales lie between the codes, and
        all of it is code_bytes.
    linear_weights: how many weights they have. float_linear_bytes, float_linear_weights: the same of the linears that
    stayed float. embedding_bytes, head_bytes: with their scales; of a head that is the embedding its copy of these, or
    0. other_bytes: norms, biases and what the architecture does not use. overhead_bytes: stored shapes and file
    headers. weights: of the whole model.
    bits_per_weight: 8 * linear_bytes / linear_weights, None when nothing is quantized.
    bits_per_weight_model: 8 * total_bytes / weights.
    """

    total_bytes: int
    linear_bytes: int
    code_bytes: int
    scale_bytes: int
    zero_point_bytes: int
    float_linear_bytes: int
    embedding_bytes: int
    head_bytes: int
    other_bytes: int
    overhead_bytes: int
    linear_weights: int
    float_linear_weights: int
    weights: int
    bits_per_weight: float | None
    bits_per_weight_model: float
    outlier_bytes: int = 0


class StageRow(Result, frozen=True, kw_only=True):
    """What a transform did to the linears of a block that share one input.

    linears: without the block's name. strength: 0 where they stayed as they were. fallback: why they had to, or None.
    """

    linears: tuple[str, ...]
    strength: float
    fallback: str | None = None


class TransformRow(Result, frozen=True, kw_only=True):
    """What one transform did to one block.

    error_before, error_after: mean over some tokens of what the output of the block, quantized by rounding to nearest,
    loses: squared, relative to the token's output.
    """

    block: str
    method: str
    stages: tuple[StageRow, ...]
    error_before: float
    error_after: float


class RefineRow(Result, frozen=True, kw_only=True):
    """What a method of `refine` did to one block, or to the whole model (block None).

    error_before, error_after: what it is judged by, on windows that it has not learned from; steps: how many it took.
    """

    block: str | None
    method: str
    error_before: float
    error_after: float
    steps: int


class GainRow(Result, frozen=True, kw_only=True):
    """One stage of the work and the model it would have made.

    stage: "nearest", a rounding or a method of `refine`. kl: mean KL(float || stage) of a held-out token, nats.
    seconds: that it took, with what was observed for it; None where it is part of another one's.
    """

    stage: str
    kl: float
    seconds: float | None = None


class Probe(Result, frozen=True, kw_only=True):
    """A few tokens, and what the quantized blocks gave for them while they were made.

    ids: of the likeliest successors of each token, and their logprobs, in nats. spread: the standard deviation of all
    log-probabilities, in nats.
    """

    tokens: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    spread: float


class Manifest(Result, frozen=True, kw_only=True):
    """By what an output can be known again. All hashes are sha256.

    begun: all that decided over its bytes. source: of every file of the model that was read. tensors: of the bytes of
    each tensor, as they were in memory. files: of the other files.
    """

    zeropoint: str
    begun: dict[str, str]
    source: dict[str, str]
    tensors: dict[str, str]
    files: dict[str, str]
    probe: Probe


class Agreement(Result, frozen=True, kw_only=True):
    """How near a model is to another one on so many tokens of the bundled text.

    made_from_it: whether the hashes say that it was made from the other one. kl: mean, in nats per token. top1: share
    of tokens with the same likeliest successor.
    """

    made_from_it: bool
    tokens: int
    kl: float
    top1: float


class EngineRow(Result, frozen=True, kw_only=True):
    """What an engine computes from a model, beside what we do.

    version: of the engine; None where it could not be asked. kl: KL(ours || engine), mean in nats per token; top1:
    share of tokens with the same likeliest successor; largest: difference of a log-probability. problem: why there is
    nothing to compare, or that it is not the same; None where all is well.
    """

    engine: str
    version: str | None = None
    tokens: int = 0
    kl: float | None = None
    top1: float | None = None
    largest: float | None = None
    problem: str | None = None


class Engines(Result, frozen=True, kw_only=True, tag="engines", tag_field="result"):
    """A model in the engines that others run it with. verification: of the folder; None for what was exported."""

    model: str
    rows: tuple[EngineRow, ...]
    verification: Verification | None = None


class Verification(Result, frozen=True, kw_only=True, tag="verification", tag_field="result"):
    """Whether a folder is what was computed: it is, if there are no problems, a sentence each.

    tensors, size_bytes: what was read. difference: of logits from those of the run, relative to their spread; None if
    they were not computed. loads: what can load the folder, a sentence; None if it is damaged. reference: None if there
    was none.
    """

    tensors: int
    size_bytes: int
    difference: float | None
    problems: tuple[str, ...]
    loads: str | None
    reference: Agreement | None = None


class PlanRow(Result, frozen=True, kw_only=True):
    """Tensors of a plan that are alike.

    kind: the last part of their names. count: how many there are. shape: of each, as floats. stored: what they will be,
    a scheme's label or a dtype. rounding: the method; None where they stay floats, and why says why. size_bytes: of all
    of them in the output.
    """

    kind: str
    count: int
    shape: tuple[int, ...]
    stored: str
    rounding: str | None
    why: str | None
    size_bytes: int


class PlanStage(Result, frozen=True, kw_only=True):
    """One stage of the work and about how long it will take."""

    stage: str
    seconds: float


class Plan(Result, frozen=True, kw_only=True, tag="plan", tag_field="result"):
    """What a run of quantize will take and give, before it starts.

    rows: what becomes of the tensors. size: of the output. peak_memory_bytes: of the process; peak_needs: what is held
    then, in the phase peak_phase. least_memory_bytes: the lowest --max-memory that can be kept; max_memory_bytes: the
    one that was given. spilled_bytes: of the text's activations that wait on disk. disk_bytes: the most on disk while
    it runs, the output included. stages: empty, and elapsed_s None, if nothing was measured. token_bytes: read for a
    token while decoding. bandwidth_bytes_per_s: of the memory, measured; None if it was not. loads: what can load the
    output. notes: what else there is to say, a sentence each.
    """

    zeropoint: str
    model: str
    model_type: str
    recipe: dict[str, Any]
    rows: tuple[PlanRow, ...]
    size: Size
    source_bytes: int
    peak_memory_bytes: int
    peak_phase: str
    peak_needs: dict[str, int]
    least_memory_bytes: int
    max_memory_bytes: int | None
    spilled_bytes: int
    disk_bytes: int
    stages: tuple[PlanStage, ...]
    elapsed_s: float | None
    token_bytes: int
    bandwidth_bytes_per_s: float | None
    loads: str
    notes: tuple[str, ...]

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The most tokens per second that memory allows; None if its bandwidth was not measured."""
        return None if self.bandwidth_bytes_per_s is None else self.bandwidth_bytes_per_s / self.token_bytes


class QuantizeResult(Result, frozen=True, kw_only=True, tag="quantization", tag_field="result"):
    """What a run of quantize made; kept in the output as zeropoint.json.

    zeropoint: the version. recipe: every value spelled out; its name is recipe["name"]. calibration: None if no
    method needed one. layers: as they are before the whole model is refined, if it is. gains: by stage of the work,
    on so many held-out tokens of the calibration text. sufficiency: of each observed input, by the first linear that
    reads it, but for inputs of experts, and where there is one window only. skipped:
    tensors that were copied although the architecture does not use them. left_out: those that were not: masks and
    frequencies that whoever runs the model makes anew, and a head that is the embedding. source_bytes: of the model
    that was read. size: of the output; bits_per_weight counts scales and zero points. peak_memory_bytes: of the
    process. resumed_blocks: those that an earlier run had done; elapsed_s counts its time too. verification: what a
    fresh process said of the output; None if it was made before that. plan: what was expected; None if it was made
    before there were plans. spilled_bytes: the most activations that waited on disk at any time. format_note: what
    has to be said about who can open the output, or None. transform_note: what has to be said of tensors outside
    the blocks that a transform changed, or None.
    """

    zeropoint: str
    model: str
    output: str
    recipe: dict[str, Any]
    calibration: Text | None
    layers: tuple[LayerRow, ...]
    transforms: tuple[TransformRow, ...] = ()
    refined: tuple[RefineRow, ...] = ()
    gains: tuple[GainRow, ...] = ()
    held_out_tokens: int = 0
    sufficiency: tuple[Sufficiency, ...] = ()
    skipped: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    format_note: str | None = None
    transform_note: str | None = None
    size: Size
    source_bytes: int
    elapsed_s: float
    peak_memory_bytes: int
    spilled_bytes: int
    resumed_blocks: int = 0
    plan: Plan | None = None
    verification: Verification | None = None
    versions: dict[str, str]
    machine: str

    @property
    def fell_back(self) -> bool:
        """Whether more layers than FALLBACK_LIMIT allows took another rung of the ladder than was asked."""
        return sum(row.fallback is not None for row in self.layers) > FALLBACK_LIMIT * len(self.layers)


class Successor(Result, frozen=True, kw_only=True):
    """A token that may come next, as text, and its probability by each model."""

    token: str
    reference: float
    quantized: float


class Passage(Result, frozen=True, kw_only=True):
    """A place of the text where the two models differ much.

    window, position: of the token after which they do; kl: there, in nats. before: the text up to it, its last tokens.
    actual: the token that follows in the text. likeliest: by one model or the other, those of the reference first.
    reference, quantized: how each goes on by itself, its likeliest token each time; None where it was not asked to.
    """

    window: int
    position: int
    kl: float
    before: str
    actual: str
    likeliest: tuple[Successor, ...]
    reference: str | None = None
    quantized: str | None = None


class Evaluation(Result, frozen=True, kw_only=True, tag="evaluation", tag_field="result"):
    """What a written model lost against its reference; kept beside its weights as results.json.

    tokens: predictions judged, windows * (length - 1). Every interval is over windows, and None when there is only one.
    verdict: of ratio_interval95 against 1 + margin; explanation says it in a sentence. tokens_needed: how long a text
    would decide, in all; None when the verdict is given, or when nothing can be said.
    kl_p99: 99 % of the tokens have a smaller KL. kl_bars: how many tokens have which KL, in bars whose ends grow by
    a factor; passages: where it is largest, the worst first, at most one in a window. Both are empty if it was made
    before they were kept. top1_agreement: share of tokens with the same likeliest successor.
    runtime: what ran both models: "native" and the instruction set, or "torch". activations: "int8" if the quantized
    model rounded the inputs of its integer linears too, "bfloat16" if those of its bfloat16 ones, else "float".
    activations_kl: what "int8" alone costs, the mean KL from the same model with float inputs, in nats per token, on
    the first windows; None where it is not that.
    embeddings, kv_cache: what the quantized model was run with; the reference has its own embedding and float32.
    fallbacks: what was done otherwise than asked, a sentence each.
    """

    zeropoint: str
    model: str
    reference: str
    text: Text
    tokens: int
    verdict: Verdict
    explanation: str
    margin: float
    tokens_needed: int | None
    perplexity: float
    perplexity_reference: float
    perplexity_ratio: float
    ratio_interval95: Interval95 | None
    kl_mean: float
    kl_interval95: Interval95 | None
    kl_p99: float
    kl_max: float
    top1_agreement: float
    top1_interval95: Interval95 | None
    runtime: str
    activations: Literal["int8", "bfloat16", "float"]
    activations_kl: float | None
    embeddings: str = "stored"
    kv_cache: str = "float16"
    kl_bars: tuple[Bar, ...] = ()
    passages: tuple[Passage, ...] = ()
    size: Size
    size_reference: Size
    elapsed_s: float
    fallbacks: tuple[str, ...]
    versions: dict[str, str]
    machine: str


class TensorRow(Result, frozen=True, kw_only=True):
    """One weight of a checkpoint: a linear, float or quantized, or a tensor beside them.

    name: full; of a linear without ".weight". kind: its last part ("q_proj", "input_layernorm"). shape: of the weight,
    also where it is packed. stored: the scheme's label, or the dtype as the file calls it. size_bytes: with scales.
    outlier_columns: how many stay float; None where the file does not say.
    outlier_ratio: largest magnitude over root mean square; None when only headers were read.
    sqnr_db, cosine, max_abs_error: against the reference; None without one, sqnr_db also when nothing was lost.
    """

    name: str
    kind: str
    role: Role
    shape: tuple[int, ...]
    stored: str
    size_bytes: int
    outlier_columns: int | None = None
    outlier_ratio: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None


class Inspection(Result, frozen=True, kw_only=True, tag="inspection", tag_field="result"):
    """What is in a checkpoint. model_type: as config.json has it. tensors: in the order of the model."""

    path: str
    reference: str | None
    model_type: str
    tensors: tuple[TensorRow, ...]
    size: Size


class StaticRange(Result, frozen=True, kw_only=True):
    """What one way of rounding a linear's input to 8 bits costs.

    rule: of the range, or "dynamic per token", which has neither low and high nor a disagreement. scale, zero_point:
    what the range becomes. clipped: share of the calibration's values outside the grid; held_out: of the held-out ones.
    sqnr_db: of the input; None when nothing was lost. output_error: squared relative error of the layer's output, and
    its parts: clipping_error of the values outside, rounding_error of the others. disagreement: how far the ranges of
    two halves of the calibration lie apart, relative to the range: the root mean square over three ways to halve it.
    """

    rule: str
    low: float | None
    high: float | None
    scale: float | None
    zero_point: int | None
    clipped: float
    held_out: float
    sqnr_db: float | None
    output_error: float
    clipping_error: float
    rounding_error: float
    disagreement: float | None


class MassiveActivation(Result, frozen=True, kw_only=True):
    """A place of the windows, position and channel, and its largest value. ratio: to the median magnitude of all."""

    position: int
    channel: int
    value: float
    ratio: float


class InputRow(Result, frozen=True, kw_only=True):
    """What one linear reads, and what static ranges make of it.

    name: full. shape: of the weight. ranges: one for each rule; the last one is the dynamic scale. best: the static
    rule with the smallest output_error. auto: the rule that `auto` takes, from a sample of tokens; None where no rule
    could be applied. skipped: "RULE: why" for those that could not. massive: the largest places, by magnitude.
    median: magnitude of a value. first_token_ratio: mean largest magnitude of first tokens over that of the others;
    None when windows have one token. token_median, token_p99, token_largest: of the largest magnitude of each token.
    samples_to_add: so that `best` would come out within the tolerance again; 0 is enough.
    """

    name: str
    shape: tuple[int, int]
    ranges: tuple[StaticRange, ...]
    best: str | None
    auto: str | None
    skipped: tuple[str, ...]
    histogram: tuple[Bar, ...]
    massive: tuple[MassiveActivation, ...]
    median: float
    first_token_ratio: float | None
    token_median: float
    token_p99: float
    token_largest: float
    samples_to_add: int


class InputInspection(Result, frozen=True, kw_only=True, tag="input inspection", tag_field="result"):
    """What `zeropoint inspect --layer` measured.

    text: all windows; held_out_windows of them were kept from the ranges. scheme: label of the static integers.
    tolerance: of the disagreement of two calibrations that counts as enough.
    """

    zeropoint: str
    path: str
    layer: str
    text: Text
    held_out_windows: int
    scheme: str
    tolerance: float
    layers: tuple[InputRow, ...]
    elapsed_s: float
    peak_memory_bytes: int
    versions: dict[str, str]
    machine: str


class Spread(Result, frozen=True, kw_only=True):
    """A number that was measured in several runs: their median, the lowest and the highest."""

    median: float
    low: float
    high: float


class Ratio(Result, frozen=True, kw_only=True):
    """Between two numbers measured in turns: the ratio of their medians, the lowest and the highest of one round."""

    of_medians: float
    low: float
    high: float


class ModelSpeed(Result, frozen=True, kw_only=True):
    """How fast one model runs.

    prefill_tokens_per_s: of a prompt, up to the choice of the token after it. token_bytes: read for a token: weights,
    and keys and values at the mean length while decoding. bandwidth_share: of the bandwidth measured in the same round,
    what decode_tokens_per_s * token_bytes reaches. weight_bytes: memory of the weights. peak_memory_bytes: of the
    process that ran it. load_s: from the files to a model that is ready. first_token_s: from the start of the process
    to the first token after a prompt of context_tokens; no tokenizer is read. embeddings, kv_cache: what it was run
    with. cache_token_bytes: memory of the keys and values of one token, with their scales.
    """

    model: str
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    token_bytes: int
    bandwidth_share: Spread
    weight_bytes: int
    peak_memory_bytes: int
    load_s: float
    first_token_s: float
    embeddings: str
    kv_cache: str
    cache_token_bytes: int


class Bench(Result, frozen=True, kw_only=True, tag="bench", tag_field="result"):
    """What `zeropoint bench` measured, in rounds that hold every measurement once.

    against: a second model, or None; then the ratios, of the first to the second, are None too. bandwidth_bytes_per_s:
    of reading memory with the same threads. prompt_tokens: of a prefill. tokens: decoded one by one after
    context_tokens. isa: of the kernels. activations: as `zeropoint.load` takes them.
    """

    zeropoint: str
    model: ModelSpeed
    against: ModelSpeed | None
    prefill_ratio: Ratio | None
    decode_ratio: Ratio | None
    bandwidth_bytes_per_s: Spread
    prompt_tokens: int
    context_tokens: int
    tokens: int
    runs: int
    threads: int
    isa: str
    activations: str
    elapsed_s: float
    versions: dict[str, str]
    machine: str


class ComparisonRow(Result, frozen=True, kw_only=True):
    """One model of a comparison: the float one, whose recipe is None, or what a recipe made of it.

    name: how the recipe is called, or the float model's file. recipe: every value spelled out. error: why there are no
    numbers, or None. folder: where the model is kept, or None. reused: it was there already. What a model lost, and
    what its intervals are, is as in Evaluation; for the float one it is None, but for its perplexity. Speeds and
    peak_memory_bytes are as in ModelSpeed, None where they were not measured. quantize_s: also of a model that was
    reused, from its record.
    """

    name: str
    recipe: dict[str, Any] | None = None
    error: str | None = None
    folder: str | None = None
    reused: bool = False
    size: Size | None = None
    kl_mean: float | None = None
    kl_interval95: Interval95 | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    ratio_interval95: Interval95 | None = None
    top1_agreement: float | None = None
    top1_interval95: Interval95 | None = None
    peak_memory_bytes: int | None = None
    prefill_tokens_per_s: Spread | None = None
    decode_tokens_per_s: Spread | None = None
    quantize_s: float | None = None
    fallbacks: tuple[str, ...] = ()


class Comparison(Result, frozen=True, kw_only=True, tag="comparison", tag_field="result"):
    """What `zeropoint compare` measured. rows: the float model, then every recipe in the order given.

    text: what all were judged on; tokens: predictions judged. runtime: what ran them, None if nothing could be judged.
    runs, prompt_tokens, tokens_decoded, context_tokens: as in Bench; runs is 0 when speeds were not asked for.
    speed_error: why there are no speeds although they were, or None.
    """

    zeropoint: str
    model: str
    rows: tuple[ComparisonRow, ...]
    text: Text
    tokens: int
    runtime: str | None
    runs: int
    prompt_tokens: int
    tokens_decoded: int
    context_tokens: int
    threads: int
    speed_error: str | None
    elapsed_s: float
    versions: dict[str, str]
    machine: str

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return self.speed_error is None and all(row.error is None for row in self.rows)


class Generation(Result, frozen=True, kw_only=True, tag="generation", tag_field="result"):
    """What `zeropoint generate` said.

    prompt: as the model read it, with its chat template if asked for. load_s: from the files to a model that is ready.
    first_token_s: from the beginning of loading to the first token. tokens: generated; tokens_per_s: of those after the
    first. Both are None where there are none. isa: of the kernels of the native runtime, None for another one.
    """

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    load_s: float
    first_token_s: float | None
    tokens_per_s: float | None
    elapsed_s: float
    peak_memory_bytes: int
    runtime: str
    isa: str | None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose versions can change a number."""
    found = {"python": platform.python_version()}
    for package in MEASURED_WITH:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found


def machine() -> str:
    """Return what this machine computes with: "AMD EPYC 7763, 2 cores, Linux x86_64"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} core{'s' * (cores != 1)}, {platform.system()} {platform.machine()}"


def peak_memory_bytes() -> int:
    """Return the most memory that this process has had resident.

    From VmHWM where there is one: ru_maxrss begins with the memory of the process that started this one.
    """
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Return the memory that this process has resident; the most that it has had where the system does not tell."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration):  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


_NUMBER = rb'(?:"[^"\\\n]*": )?-?[0-9][0-9.eE+-]*'
_ONLY_NUMBERS = re.compile(rb"[\[{]\n\s*" + _NUMBER + rb"(?:,\n\s*" + _NUMBER + rb")*\n\s*[\]}]")
_BREAK = re.compile(rb"\n\s*")


def _laid_out(document: bytes) -> bytes:
    """Return JSON in lines for people, but a list or an object of numbers alone in one: there are thousands of bars.

    No string holds a line break as such, so that what is between two of them is what it looks like.
    """

    def one_line(found: re.Match[bytes]) -> bytes:
        return _BREAK.sub(b"", found[0].replace(b",\n", b", \n"))

    return _ONLY_NUMBERS.sub(one_line, msgspec.json.format(document, indent=2))


def _numbers(value: object, where: str) -> Iterator[tuple[str, float | int]]:
    """Yield every number in plain containers, with its place; nested structs have seen to their own."""
    if isinstance(value, float | int):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{where}.{key}")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{where}[{index}]")


class GroupAnatomy(Result, frozen=True, kw_only=True):
    """The values that share one scale, step by step; the first 256 of them where there are more.

    row, group: where it is; with one scale for the whole tensor the columns shown are those of that row. columns: of
    the group. rule, low, high, and exact_scale, S before it is rounded to its dtype: None where the file has S.
    zero_point: None when symmetric, real on two levels. minimum: M of two levels, else None. values, and positions
    r / S + Z among the codes: None of a quantized tensor. float_columns: those shown that are floats in the file, with
    code 0.
    """

    row: int
    group: int
    first_column: int
    columns: int
    rule: str | None
    low: float | None
    high: float | None
    exact_scale: float | None
    scale: float
    zero_point: float | None
    minimum: float | None
    values: tuple[float, ...] | None
    positions: tuple[float, ...] | None
    codes: tuple[int, ...]
    restored: tuple[float, ...]
    float_columns: tuple[int, ...]


class RangeRow(Result, frozen=True, kw_only=True):
    """What one range rule makes of a tensor.

    low, high, scale, zero_point: of the group of the excerpt; zero_point is None when symmetric. Of the tensor:
    clipped, the share of its values outside the range of their group; clipping_error and rounding_error, sums of
    squared errors of those and of the others, relative to the sum of squares; sqnr_db, None when nothing was lost.
    """

    rule: str
    low: float
    high: float
    scale: float
    zero_point: int | None
    clipped: float
    clipping_error: float
    rounding_error: float
    sqnr_db: float | None


class TensorInspection(Result, frozen=True, kw_only=True, tag="tensor inspection", tag_field="result"):
    """What `zeropoint inspect --tensor` shows: what quantization does to one matrix, or did.

    stored: what the file holds, such as "BF16", "Q4_1" or "int4 g64 sym". scheme: that of the codes. low, high, rms,
    outlier_ratio (the largest magnitude over rms), histogram: of the values; of a quantized tensor of what its codes
    stand for. rules, best: none of a quantized tensor; best is the one of the highest SQNR. rows_measured: that the
    rules and the codes were counted on. codes: how often each from q_min to q_max is used, by the excerpt's rule.
    """

    zeropoint: str
    path: str
    name: str
    shape: tuple[int, int]
    stored: str
    scheme: str
    scale_dtype: str
    q_min: int
    q_max: int
    groups: int
    low: float
    high: float
    rms: float
    outlier_ratio: float
    excerpt: GroupAnatomy
    rules: tuple[RangeRow, ...]
    best: str | None
    rows_measured: int
    histogram: tuple[Bar, ...]
    codes: tuple[int, ...]
