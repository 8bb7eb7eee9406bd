"""The nouns that flow through zeropoint: Scheme, InputScheme, QParams, InputParams, QTensor, PackedWeight, Stats.

One formula is behind all of them, with Z an integer inside [q_min, q_max] and a range that always contains 0:

    q = clamp(round(r / S + Z), q_min, q_max)          r' = S * (q - Z)

Codes are signed everywhere in memory (4 bits: -8..7), whether the scheme is symmetric or not; a file format that
stores them with an offset adds it while packing. Nothing here imports torch: the headers of a model can be read,
and the command line can start, without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Granularity: TypeAlias = Literal["tensor", "channel", "group"]
"""How many values share one scale. For a weight of shape (rows, cols) the scales have the shape

tensor   (1, 1)
channel  (rows, 1)                        one scale for each output row
group    (rows, ceil(cols / group_size))  the last group is shorter when group_size does not divide cols
"""

ScaleDtype: TypeAlias = Literal["bfloat16", "float16", "float32"]

HEADS_OF = {"embed_tokens": "lm_head", "wte": "lm_head", "embed_in": "embed_out"}
"""What the last part of an embedding's name may be, and what the head of such a model is called."""


@dataclass(frozen=True)
class Scheme:
    """How the numbers of one tensor are stored, before any value is known.

    bits: 2..8. group_size: columns per group, only with granularity "group".
    narrow: leave out the lowest code, so that the grid is [-q_max, q_max].
    scale_dtype: the dtype of the stored scale. Scales are rounded to it when they are chosen, so that the integers
        are found with the very scale that the file will hold. bfloat16 values in the normal range of float16 are
        exact in float16 too, and never under- or overflow (docs/decisions/0002-scales-in-bfloat16.md).
    scale_bits: significant bits of a scale; None: as many as its dtype has (8, 11, 24). With 7 every product of a scale
        and a number below 16 is a float16 number, as the minima of GGUF's Q4_1 have to be.
    super_size: columns whose groups have scales and minima on two levels, as GGUF's Q4_K (see Levels); None: every
        scale is a number of its own, and zero points are integers.
    """

    bits: int = 4
    symmetric: bool = True
    granularity: Granularity = "group"
    group_size: int | None = 64
    narrow: bool = False
    scale_dtype: ScaleDtype = "bfloat16"
    scale_bits: int | None = None
    super_size: int | None = None

    @property
    def q_min(self) -> int:
        """The lowest code: -2^(bits-1), or one more when narrow."""
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def q_max(self) -> int:
        """The highest code: 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, cols: int) -> int:
        """Return how many scales one row of `cols` columns has."""
        if self.granularity != "group" or self.group_size is None:
            return 1
        return -(-cols // self.group_size)

    def group_cols(self, cols: int) -> int:
        """Return how many columns of a row of `cols` share a scale; in the last group there may be fewer."""
        return cols if self.groups(cols) == 1 else self.group_size or cols

    def one_level(self) -> Scheme:
        """Return the scheme with scales that are numbers of their own, and with integer zero points."""
        return replace(self, super_size=None)

    def label(self) -> str:
        """Return a short name for tables, such as "int4 g64 sym" or "int4 g32/256 asym"."""
        where = f"g{self.group_size}" if self.granularity == "group" else self.granularity
        where += "" if self.super_size is None else f"/{self.super_size}"
        return f"int{self.bits} {where} {'sym' if self.symmetric else 'asym'}"


def divisors(cols: int) -> tuple[int, ...]:
    """Return the group sizes that cut `cols` columns without a rest, ascending."""
    small = [size for size in range(1, math.isqrt(cols) + 1) if cols % size == 0]
    return tuple(sorted({*small, *(cols // size for size in small)}))


@dataclass(frozen=True)
class InputScheme:
    """How the input of a linear is rounded to integers when the model runs.

    bits: 8; codes are -128..127. dynamic: each token has a scale of its own, found when the token is there, and
    Z = 0. Otherwise static: one scale for all tokens, found by calibration, with Z = 0 when symmetric.
    outlier_threshold: columns that reached this magnitude in calibration stay float (qparams/outliers.py); None: none.
    """

    bits: int = 8
    dynamic: bool = True
    symmetric: bool = True
    outlier_threshold: float | None = None

    @property
    def q_min(self) -> int:
        """The lowest code: -2^(bits-1)."""
        return -(1 << (self.bits - 1))

    @property
    def q_max(self) -> int:
        """The highest code: 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def label(self) -> str:
        """Return a short name for tables, such as "int8 token", "int8 static asym" or "int8 token <6"."""
        kind = "token" if self.dynamic else f"static {'sym' if self.symmetric else 'asym'}"
        below = "" if self.outlier_threshold is None else f" <{self.outlier_threshold:g}"
        return f"int{self.bits} {kind}{below}"


@dataclass(frozen=True)
class Levels:
    """The scales and minima of a scheme with a super_size: small integers times two float16 numbers.

        S = d * k        M = d_min * m        r' = S * (q - q_min) - M

    d: float32 (rows, supers), > 0, and d_min: the same, >= 0; both exact in float16. k: uint8 (rows, groups) in 1..63,
    m: the same, in 0..63. S and M are exact in float32, and so is S * (q - q_min).
    """

    d: Tensor
    d_min: Tensor
    k: Tensor
    m: Tensor


@dataclass(frozen=True)
class QParams:
    """The scale and the zero point of every group of one tensor.

    scale: float32 (rows, groups), > 0, finite, exactly representable in the scheme's scale_dtype.
    zero_point: int32 (rows, groups) in [q_min, q_max]; None when the scheme is symmetric (Z = 0).
    Per tensor both are (1, 1); per channel (rows, 1).
    levels: what the scales and minima of a scheme with a super_size are made of; None for all others. The scale is then
        the product of two numbers, and zero_point is real, q_min + M / S: float32, rounded, for finding codes with.
    """

    scale: Tensor
    zero_point: Tensor | None
    levels: Levels | None = None


@dataclass(frozen=True)
class InputParams:
    """How one linear rounds its input.

    scale > 0 and zero_point in [q_min, q_max]: of a static scheme, else None, 0. outliers: the columns that are not
    rounded, ascending; the others are rounded as if these held 0.
    """

    scheme: InputScheme
    scale: float | None = None
    zero_point: int = 0
    outliers: tuple[int, ...] = ()


@dataclass(frozen=True)
class QTensor:
    """One quantized weight: codes, parameters, scheme.

    codes: int8 (rows, cols), in [scheme.q_min, scheme.q_max], columns in the order of the float weight.
    input: how what the weight is multiplied with is rounded; None where it stays float.
    outliers: the float weights of the columns input.outliers, (rows, k), in the dtype they are stored in; their codes
        stand for 0. None where the input has no outlier threshold.
    """

    codes: Tensor
    qparams: QParams
    scheme: Scheme
    input: InputParams | None = None
    outliers: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight that the codes stand for."""
        rows, cols = self.codes.shape
        return rows, cols


@dataclass(frozen=True)
class StoredArray:
    """A tensor as a file holds it, without torch.

    values: any shape; what numpy lacks as its bits (bfloat16 in uint16). dtype: its name in torch ("bfloat16").
    """

    values: NDArray[np.generic]
    dtype: str


@dataclass(frozen=True)
class PackedWeight:
    """One quantized weight as it runs: its codes still packed, and no torch.

    words: uint32 (rows, ceil(cols * bits / 32)). A row is one little-endian stream of bits, code i in the bits
        [i * bits, (i + 1) * bits) from the lowest bit of the first word on, unsigned: q + 2^(bits - 1).
    scale: float32 (rows, groups), > 0 and finite; (1, 1) per tensor, (rows, 1) per channel.
    zero_point: int8, in the shape of scale, in [q_min, q_max], signed as q is; None when the scheme is symmetric, or
        has a super_size.
    shape: (rows, cols). input, outliers: as in QTensor.
    minimum: M of Levels, float32 in the shape of scale; None where the scheme has no super_size.
    """

    words: NDArray[np.uint32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8] | None
    shape: tuple[int, int]
    scheme: Scheme
    input: InputParams | None = None
    outliers: StoredArray | None = None
    minimum: NDArray[np.float32] | None = None


KVCache: TypeAlias = Literal["float16", "int8"]
"""What a recipe can ask of keys and values at run time: int8 has one scale for each head and token."""

RunActivations: TypeAlias = Literal["int8", "bfloat16", "float"]
"""How linears read their inputs in the native runtime, see `zeropoint.runtime.native_runner.NativeRunner`."""

Embeddings: TypeAlias = Literal["stored", "int8", "int4"]
"""What a recipe can ask the file to hold of embedding and head: the floats of the source, or integers."""

RunEmbeddings: TypeAlias = Literal["stored", "int8"]
"""What embedding and head are held as when a model runs: as in the file, or float ones rounded to int8 by rows."""

MassiveInputs: TypeAlias = Literal["static", "dynamic"]
"""What a recipe can ask for where a static scale would meet massive activations."""

MASSIVE_RATIO = 1000.0
"""Times the median magnitude: from here on an activation is called massive (Sun et al. 2024, arXiv:2402.17762)."""


# Statistics: what an observer says about the activations that it has seen. `count` is always a number of tokens.


@dataclass(frozen=True)
class MinMax:
    """low <= 0 <= high over every value seen: float32 scalars."""

    low: Tensor
    high: Tensor
    count: int


@dataclass(frozen=True)
class Histogram:
    """Counts of the values in equal bins.

    counts: float64 (bins,), the number of values in each bin; bin i covers [low + i*width, low + (i+1)*width).
    The bins cover every value seen and contain 0. width: > 0. low: the left edge of bin 0.
    seen_low, seen_high: the exact extremes of the values, with seen_low <= 0 <= seen_high.
    """

    counts: Tensor
    low: float
    width: float
    seen_low: float
    seen_high: float
    count: int


@dataclass(frozen=True)
class ChannelAbsMax:
    """The largest magnitude in each input column: float32 (cols,)."""

    values: Tensor
    count: int


@dataclass(frozen=True)
class ChannelAbsMean:
    """The mean magnitude of each input column: float64 (cols,)."""

    values: Tensor
    count: int


@dataclass(frozen=True)
class ChannelMean:
    """The mean of each input column: float64 (cols,)."""

    values: Tensor
    count: int


@dataclass(frozen=True)
class SecondMoment:
    """The mean of x x^T over tokens, H of GPTQ up to a factor.

    matrix: float32 (cols, cols), symmetric, positive semi-definite.
    """

    matrix: Tensor
    count: int

    @cached_property
    def known(self) -> dict[object, object]:
        """What was worked out from the matrix, for all who share it; whoever puts something in has the key."""
        return {}


@dataclass(frozen=True)
class Drift:
    """How far the layers below, once quantized, have moved an input x' from x, that of the float model.

    matrix: the mean of (x - x') x'^T over tokens, float32 (cols, cols).
    """

    matrix: Tensor
    count: int


@dataclass(frozen=True)
class BatchRanges:
    """The extremes of batches of tokens: low <= 0 <= high, float32 (batches,) each.

    tokens: float64 (batches,), how many are in each; a batch without any has the range 0, 0.
    """

    low: Tensor
    high: Tensor
    tokens: Tensor
    count: int


@dataclass(frozen=True)
class TokenAbsMax:
    """How many tokens have their largest magnitude in each sixteenth of an octave.

    counts: float64 (4096,); bin i holds the magnitudes whose upper 12 bits below the sign, as float32, are i.
    largest: of all tokens, exact.
    """

    counts: Tensor
    largest: float
    count: int


@dataclass(frozen=True)
class TokenSample:
    """A few tokens that stand for all.

    rows: float32 (kept, cols), all different. weights: float64 (kept,), > 0, how many of the `count` tokens each stands
    for; together `count`.
    """

    rows: Tensor
    weights: Tensor
    count: int


Stats: TypeAlias = (
    MinMax
    | Histogram
    | ChannelAbsMax
    | ChannelAbsMean
    | ChannelMean
    | SecondMoment
    | Drift
    | BatchRanges
    | TokenAbsMax
    | TokenSample
)


# What a range rule says about the input of a linear.


@dataclass(frozen=True)
class InputCandidate:
    """One range that was tried.

    error: squared relative error of the outputs when inputs are rounded with it; None when it was not measured.
    """

    rule: str
    low: float
    high: float
    error: float | None = None


@dataclass(frozen=True)
class InputRange:
    """low <= 0 <= high, the rule that gave it, and what it was chosen from: one candidate, or all that were measured.

    skipped: "RULE: why" for each rule that could not be applied.
    """

    low: float
    high: float
    rule: str
    candidates: tuple[InputCandidate, ...]
    skipped: tuple[str, ...] = ()
