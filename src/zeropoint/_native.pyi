"""The native runtime: weights in panels, programs of steps, threads. See native/ for what is behind it."""

import numpy
from numpy.typing import NDArray

CHUNK: int = 32

PANEL: int = 16

def isas() -> list[str]:
    """Return the instruction sets that this machine has, in rising order."""

def isa() -> str:
    """Return the one in use; ValueError if ZEROPOINT_ISA names none of them."""

def usable_cores() -> int:
    """Return the cores of this process: its affinity, and its container's quota."""

class Pool:
    """A few threads that wait for work."""

    def __init__(self, threads: int) -> None: ...
    @property
    def size(self) -> int: ...
    def stream(self, bytes: int, repeats: int) -> float:
        """Return the bytes per second at which memory can be read, the best of `repeats`."""

class Weight:
    """A weight in panels of 16 rows."""

    def put_codes(
        self,
        pool: Pool,
        first: int,
        words: NDArray[numpy.uint32],
        scales: NDArray[numpy.float32],
        zeros: NDArray[numpy.uint8] | None,
    ) -> None: ...
    def put_bf16(self, pool: Pool, first: int, values: NDArray[numpy.uint16]) -> None: ...
    def put_f32(self, pool: Pool, first: int, values: NDArray[numpy.float32]) -> None: ...
    def round_f32(self, pool: Pool, first: int, values: NDArray[numpy.float32]) -> None: ...
    def round_bf16(self, pool: Pool, first: int, values: NDArray[numpy.uint16]) -> None: ...
    def read_row(self, row: int, values: NDArray[numpy.float32]) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def declared_block(self) -> int: ...
    @property
    def is_bf16(self) -> bool: ...
    @property
    def is_float(self) -> bool: ...
    @property
    def bytes(self) -> int: ...

def codes_weight(bits: int, rows: int, cols: int, group: int, scales16: bool, zeros: bool) -> Weight: ...
def float_weight(halves: bool, rows: int, cols: int) -> Weight: ...
def linear(
    pool: Pool,
    weight: Weight,
    x: NDArray[numpy.float32],
    y: NDArray[numpy.float32],
    floats: bool = False,
    repeats: int = 1,
    kind: str = "blocks",
    scale: float = 1.0,
    zero: int = 0,
) -> None: ...
def quantize(
    x: NDArray[numpy.float32],
    q: NDArray[numpy.int8],
    scales: NDArray[numpy.float32],
    sums: NDArray[numpy.int32],
    block: int,
    kind: str = "blocks",
    scale: float = 1.0,
    zero: int = 0,
) -> None: ...
def pack_codes(codes: NDArray[numpy.int8], words: NDArray[numpy.int32], bits: int) -> None:
    """Write each row of signed codes as one stream of bits; see zeropoint/formats/bits.py."""

def lost(weight: NDArray[numpy.float32], restored: NDArray[numpy.float32]) -> tuple[float, float, float, float, float]:
    """Return the float64 sums of w^2, (r - w)^2, w r and r^2, and the largest |r - w|."""

def clipped(
    weight: NDArray[numpy.float32],
    restored: NDArray[numpy.float32],
    scale: NDArray[numpy.float32],
    zero: NDArray[numpy.float32] | None,
    group: int,
    q_min: int,
    q_max: int,
) -> float:
    """Return the float64 sum of (r - w)^2 over the values outside the ends of their grids."""

def count_bars(values: NDArray[numpy.float32], per_width: float, counts: NDArray[numpy.int64]) -> None:
    """Add how many values lie below, in each of the equal bars around 0, and above: see native/sums.h."""

def count_codes(codes: NDArray[numpy.int8], counts: NDArray[numpy.int64]) -> None:
    """Add how many codes are -128, -127 ... 127."""

def search_ranges(
    values: NDArray[numpy.float32],
    weights: NDArray[numpy.float32],
    both: NDArray[numpy.float32],
    single: NDArray[numpy.float32],
    low: NDArray[numpy.float32],
    high: NDArray[numpy.float32],
    q_min: int,
    q_max: int,
    symmetric: bool,
    stored: str,
    p: float,
) -> None:
    """Replace the seen ranges by those with the smallest error: see RangeSearch in native/kernels.h."""

def round_columns(
    w: NDArray[numpy.float32],
    factor: NDArray[numpy.float32],
    scale: NDArray[numpy.float32],
    zero: NDArray[numpy.float32] | None,
    group: NDArray[numpy.int32],
    codes: NDArray[numpy.int8],
    q_min: int,
    q_max: int,
) -> None:
    """Round a block of columns: see RoundColumns in native/kernels.h."""

class Cache:
    """Keys and values of one conversation."""

    def __init__(self, layers: int, kv_heads: int, head_dim: int, dtype: str) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def rewind(self, length: int) -> None: ...

class Program:
    """A model as a list of steps."""

    def __init__(self, pool: Pool) -> None: ...
    def slot(self, width: int) -> int: ...
    def quantized(self, width: int, block: int) -> int: ...
    def rope_table(self, frequencies: NDArray[numpy.float32], factor: float = 1.0) -> int: ...
    def embed(self, table: Weight, out: int, factor: float = 1.0, first_position: int = -1) -> None: ...
    def norm(self, a: int, gain: NDArray[numpy.float32], eps: float, out: int, heads: int = 1) -> None: ...
    def layer_norm(
        self, a: int, gain: NDArray[numpy.float32], bias: NDArray[numpy.float32], eps: float, out: int
    ) -> None: ...
    def slice(self, a: int, first: int, out: int, heads: int = 1) -> None: ...
    def take(self, a: int, columns: NDArray[numpy.int32], taken: int, others: int) -> None: ...
    def quantize(self, a: int, out: int, kind: str = "blocks", scale: float = 1.0, zero: int = 0) -> None: ...
    def restore(self, quantized: int, out: int, zero: int = 0) -> None: ...
    def halve(self, a: int, out: int) -> None: ...
    def linear(
        self,
        a: int,
        quantized: int,
        parts: list[tuple[Weight, NDArray[numpy.float32] | None, int]],
        add: bool,
        halves: bool = False,
    ) -> None: ...
    def rope(self, a: int, heads: int, head_dim: int, table: int) -> None: ...
    def attention(
        self,
        q: int,
        k: int,
        v: int,
        out: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        layer: int,
        window: int = 0,
        scale: float = 0.0,
        softcap: float = 0.0,
    ) -> None: ...
    def gated(self, gate: int, up: int, out: int, activation: int) -> None: ...
    def activate(self, a: int, activation: int) -> None: ...
    def add(self, a: int, b: int, out: int) -> None: ...
    def softcap(self, a: int, cap: float) -> None: ...
    def clear(self, out: int) -> None: ...
    def route(self, a: int, out: int, chosen: int, normalized: bool) -> None: ...
    def send(self, a: int, out: int) -> None: ...
    def collect(self, a: int, routes: int, out: int) -> None: ...
    def set_expert(self, expert: int) -> None: ...
    def begin_head(self) -> None: ...
    def set_result(self, slot: int) -> None: ...
    def run(self, cache: Cache, tokens: NDArray[numpy.int32], logits: NDArray[numpy.float32]) -> None: ...
    @property
    def bytes(self) -> int: ...
