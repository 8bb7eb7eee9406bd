"""The native runner: a checkpoint's weights in the layout of the kernels, and the program that runs them. No torch.

Nothing is held twice: a weight is read, put into panels, and dropped; embeddings are read some rows at a time. Tied
embeddings are one weight, whose rows are looked up and whose panels are multiplied.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from zeropoint import _native, heap
from zeropoint.checkpoint.reader import as_float32
from zeropoint.errors import InputError, InternalError
from zeropoint.models.parts import Block, Config, expert_names, last_norm, positions
from zeropoint.runtime.choices import CacheDtype, Choices
from zeropoint.runtime.ops_native import LayerPart, NativeLinear, NativeOps, Operation, compile_program
from zeropoint.runtime.runner import require_room
from zeropoint.runtime.weights import Weights
from zeropoint.types import PackedWeight, RunActivations, RunEmbeddings, Scheme, StoredArray

SLAB_BYTES = 8 << 20
"""Of a float weight, read and put into panels at once."""

_log = logging.getLogger(__name__)


class NativeRunner:
    """Runs a checkpoint with the kernels of this machine; see `zeropoint.runtime.runner.Runner`.

    activations: "int8" rounds what linears with integer weights read, as the file says or else in blocks of columns;
        "float" does not, whatever the file says. "bfloat16" does not either, and rounds what linears with bfloat16
        weights read to bfloat16, as models in bfloat16 are run elsewhere: with AMX those are then multiplied as such,
        16 tokens or more at a time. Without AMX, or for fewer tokens, the same numbers are multiplied as float32.
    embeddings: "int8" rounds an embedding and a head that the file has as floats to 8 bits with a scale for each row;
    integers stay as they are. cache: dtype of keys and values; int8 has a scale for each head and token. None is what
    the checkpoint asks for, see `zeropoint.runtime.choices`.
    Raises: CheckpointError if it asks for what there is not; InputError for such an argument, for threads below 1, or
        if ZEROPOINT_ISA names an instruction set that this machine does not have.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        threads: int | None = None,
        activations: RunActivations = "int8",
        embeddings: RunEmbeddings = "stored",
        cache: CacheDtype | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; it must be 1 or more")
        try:
            self.isa = _native.isa()
            """The instruction set in use: "portable", "avx2", "avx512vnni" or "amx"."""
        except ValueError as error:
            raise InputError(str(error)) from error
        self._config = weights.model.config
        asked = Choices.of(weights.checkpoint.config)
        if embeddings not in get_args(RunEmbeddings):
            raise InputError(f"embeddings is {embeddings!r}; it must be 'stored' or 'int8'")
        in_file = weights.stored_embeddings
        self.embeddings: str = embeddings if in_file == "stored" else in_file
        """What embedding and head are held as: "stored", floats as they are in the file, or "int8" or "int4"."""
        self.kv_cache = cache or asked.kv_cache
        """The dtype of keys and values."""
        self.cache_token_bytes = _cache_token_bytes(self._config, self.kv_cache)
        """Memory of the keys and values of one token, with their scales."""
        self._pool = _native.Pool(threads or _native.usable_cores())
        loader = _Loader(weights, self._pool)
        self._operations, self._head = _record(weights, loader, rounded=embeddings == "int8")
        self._program = self._compile(activations)
        heap.give_back()
        self.weight_bytes = loader.bytes
        """Memory that the weights take."""
        config = self._config
        unread = loader.expert_bytes * (config.experts - config.experts_per_token) // max(1, config.experts)
        self.token_bytes = loader.bytes - loader.looked_up_bytes - unread
        """Bytes of weights that are read for each token: its own experts, no embedding that is not the head."""
        self.expanded = tuple(loader.expanded)
        """Linears whose groups the kernels cannot run, which are held as float32 instead."""
        if self.expanded:
            _log.warning(
                "%d linears are held as float32: the kernels have no groups that are no multiples of 32 columns, and "
                "no scales on two levels (%s ...)",
                len(self.expanded),
                self.expanded[0],
            )

    @property
    def longest(self) -> int | None:
        """Tokens in a row that the model has positions for; None where there is no end."""
        return self._config.longest

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._pool.size

    def bandwidth(self, size_bytes: int = 512 << 20, repeats: int = 5) -> float:
        """Return the bytes per second at which these threads read memory, the best of some tries: decoding's limit."""
        return self._pool.stream(size_bytes, repeats)

    def session(self) -> NativeSession:
        """Return a session with an empty cache."""
        config = self._config
        cache = _native.Cache(config.layers, config.kv_heads, config.head_dim, self.kv_cache)
        return NativeSession(self._program, cache, config)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return logits (time, vocabulary)."""
        return self.session().logits(tokens, wanted=len(tokens))

    @property
    def has_integers(self) -> bool:
        """Whether any linear has integer weights, so that `activations` makes a difference."""
        return any(not weight.is_float for weight in self._linear_weights())

    def with_activations(self, activations: RunActivations) -> Self:
        """Return a runner of the same weights, in the same memory, that rounds activations otherwise."""
        other = copy.copy(self)
        other._program = self._compile(activations)
        return other

    def _compile(self, activations: RunActivations) -> _native.Program:
        if activations not in get_args(RunActivations):
            raise InputError(f"activations is {activations!r}; it must be 'int8', 'bfloat16' or 'float'")
        return compile_program(self._operations, head=self._head, pool=self._pool, activations=activations)

    def _linear_weights(self) -> Iterator[_native.Weight]:
        return (operation.detail["weight"] for operation in self._operations if operation.kind == "linear")


def _record(weights: Weights, loader: _Loader, *, rounded: bool) -> tuple[tuple[Operation, ...], int]:
    """Load all weights and return the operations of the model, and the index of the first one of the head."""
    model, ops = weights.model, NativeOps()
    embedding, *own_head = (table.name for table in weights.tables)
    table = loader.table(embedding, rounded=rounded)
    head = table
    if own_head:
        loader.looked_up_bytes += table.bytes
        head = loader.table(own_head[0], rounded=rounded)
    rows = {name: loader.row_table(name) for name in positions(model)}
    x = model.embed(ops, {f"{embedding}.weight": table} | rows, None)
    for index in range(model.config.layers):
        block = Block(model.config_of(index), ops, loader.block(index))
        x = block.run(model.flow_of(index), x, LayerPart(index))
    begin_head = len(ops.operations)
    norm = {name: loader.vector(name) for name in last_norm(model)}
    model.head(ops, norm | {f"{model.ends.head}.weight": head}, x)
    return tuple(ops.operations), begin_head


class NativeSession:
    """One conversation; see `zeropoint.runtime.runner.Session`."""

    def __init__(self, program: _native.Program, cache: _native.Cache, config: Config) -> None:
        self._program = program
        self._cache = cache
        self._config = config
        self._vocab_size = vocab_size = config.vocab_size
        self._row = np.empty((1, -(-vocab_size // _native.CHUNK) * _native.CHUNK), np.float32)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values."""
        return self._cache.bytes

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return float32 (vocabulary,) for what follows them."""
        self._program.run(self._cache, self._checked(tokens), self._row)
        return self._row[0, : self._vocab_size].copy()

    def logits(self, tokens: Sequence[int], *, wanted: int) -> NDArray[np.float32]:
        """Append tokens and return float32 (wanted, vocabulary) for the last of them."""
        rows = np.empty((wanted, self._row.shape[1]), np.float32)
        self._program.run(self._cache, self._checked(tokens), rows)
        return rows[:, : self._vocab_size]

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        if not 0 <= length <= self._cache.length:
            raise InternalError(f"a session of {self._cache.length} tokens cannot be rewound to {length}")
        self._cache.rewind(length)

    def _checked(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        if not ids.size:
            raise InternalError("there are no tokens to run")
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
            raise InputError(f"tokens are 0 to {self._vocab_size - 1}; got {int(ids.min())} to {int(ids.max())}")
        require_room(self._config, self.length + ids.size)
        return ids


class _Loader:
    """Reads weights from a checkpoint into panels."""

    def __init__(self, weights: Weights, pool: _native.Pool) -> None:
        self._weights = weights
        self._checkpoint = weights.checkpoint
        self._pool = pool
        self.bytes = 0
        self.looked_up_bytes = self.expert_bytes = 0
        self._experts = expert_names(weights.model)
        self.expanded: list[str] = []

    def block(self, index: int) -> dict[str, Any]:
        """Return the weights of a block by their local names, linears in panels."""
        prefix = f"{self._weights.model.block_name(index)}."
        found: dict[str, Any] = {}
        for full in self._weights.model.block_tensors(index):
            name = full.removesuffix(".weight")
            is_linear = full.endswith(".weight") and name in self._weights.schemes
            before = self.bytes
            found[full.removeprefix(prefix)] = self.linear(name) if is_linear else self.vector(full)
            self.expert_bytes += self.bytes - before if name in self._experts else 0
        return found

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a small tensor as float32."""
        return as_float32(self._checkpoint.read_array(name))

    def linear(self, name: str) -> NativeLinear:
        """Return the weight of a linear of a block, float or quantized, and how its input is rounded."""
        packed = self._weights.packed_linear(name)
        if packed is None:
            return NativeLinear(self._counted(self._float(f"{name}.weight")))
        weight = self._counted(self._packed(name, packed))
        shift = None
        if packed.input is not None and packed.input.scale is not None and packed.input.zero_point:
            # float64: the kernels' sums lose about as much again when this is added to them
            shift = (row_sums(packed) * -(packed.input.scale * packed.input.zero_point)).astype(np.float32)
        return NativeLinear(weight, packed.input, shift, self._outliers(packed.outliers))

    def _outliers(self, stored: StoredArray | None) -> _native.Weight | None:
        """Return the float columns of a quantized linear, as they are stored; None where there are none."""
        if stored is None or not stored.values.size:
            return None
        rows, cols = stored.values.shape
        weight = _native.float_weight(stored.dtype == "bfloat16", rows, cols)
        if stored.dtype == "bfloat16":
            weight.put_bf16(self._pool, 0, np.ascontiguousarray(stored.values, np.uint16))
        else:
            weight.put_f32(self._pool, 0, np.ascontiguousarray(stored.values, np.float32))
        return self._counted(weight)

    def table(self, name: str, *, rounded: bool) -> _native.Weight:
        """Return an embedding or a head: as it is stored, or, where it is float, rounded to 8 bits by rows."""
        scheme = self._weights.table_schemes[name]
        if scheme is not None:
            return self._counted(self._table_of_codes(name, scheme))
        full = f"{name}.weight"
        if not rounded:
            return self._counted(self._float(full))
        rows, cols = self._shape(full)
        weight = _native.codes_weight(8, rows, cols, cols, False, False)
        halves = self._comes_as_bfloat16(full)
        self._in_slabs(full, weight.round_bf16 if halves else weight.round_f32, as_stored=halves)
        return self._counted(weight)

    def row_table(self, name: str) -> _native.Weight:
        """Return a table whose rows are only looked up, as it is stored."""
        weight = self._counted(self._float(name))
        self.looked_up_bytes += weight.bytes
        return weight

    def _table_of_codes(self, name: str, scheme: Scheme) -> _native.Weight:
        """Return an embedding or a head from the integers of the file, read some rows at a time."""
        config = self._weights.model.config
        rows, cols = config.vocab_size, config.hidden_size
        group = scheme.group_size or cols
        if group < cols and group % _native.CHUNK:
            return self._packed(name, self._weights.packed_table(name, (0, rows)))
        halves = self._weights.packed_table(name, (0, 1)).scheme.scale_dtype == "bfloat16"
        weight = _native.codes_weight(scheme.bits, rows, cols, group, halves, False)
        for start, stop in _slabs(rows, cols):
            packed = self._weights.packed_table(name, (start, stop))
            weight.put_codes(self._pool, start, packed.words, packed.scale, None)
        return weight

    def _float(self, name: str) -> _native.Weight:
        halves = self._comes_as_bfloat16(name)
        weight = _native.float_weight(halves, *self._shape(name))
        self._in_slabs(name, weight.put_bf16 if halves else weight.put_f32, as_stored=halves)
        return weight

    def _packed(self, name: str, packed: PackedWeight) -> _native.Weight:
        rows, cols = packed.shape
        scheme = packed.scheme
        group = cols if scheme.granularity != "group" or scheme.group_size is None else scheme.group_size
        scale, zero_point = packed.scale, packed.zero_point
        if scheme.granularity == "tensor":
            scale = np.repeat(scale, rows, axis=0)
            zero_point = None if zero_point is None else np.repeat(zero_point, rows, axis=0)
        scale = np.ascontiguousarray(scale)
        if packed.minimum is not None or (group < cols and group % _native.CHUNK):
            return self._expanded(name, packed, scale, zero_point, group)
        halves = not bool((scale.view(np.uint32) & 0xFFFF).any())  # bfloat16 numbers
        weight = _native.codes_weight(scheme.bits, rows, cols, group, halves, zero_point is not None)
        zeros = None if zero_point is None else (zero_point.astype(np.int16) - scheme.q_min).astype(np.uint8)
        weight.put_codes(self._pool, 0, packed.words, scale, zeros)
        return weight

    def _expanded(
        self, name: str, packed: PackedWeight, scale: NDArray[np.float32], zero_point: Any, group: int
    ) -> _native.Weight:
        """Return as float32 what its codes stand for."""
        from zeropoint.formats import bits

        self.expanded.append(name)
        rows, cols = packed.shape
        codes = bits.unpack_array(packed.words.view(np.int32), packed.scheme.bits, cols).astype(np.float32)
        columns = np.arange(cols) // group
        if zero_point is not None:
            codes -= zero_point[:, columns]
        if packed.minimum is not None:
            codes -= packed.scheme.q_min
        codes *= scale[:, columns]
        if packed.minimum is not None:
            codes -= packed.minimum[:, columns]
        weight = _native.float_weight(False, rows, cols)
        weight.put_f32(self._pool, 0, codes)
        return weight

    def _in_slabs(self, name: str, put: Callable[[_native.Pool, int, Any], None], *, as_stored: bool) -> None:
        for start, stop in _slabs(*self._shape(name)):
            slab = self._checkpoint.read_array(name, rows=(start, stop))
            put(self._pool, start, slab if as_stored else as_float32(slab))

    def _shape(self, name: str) -> tuple[int, int]:
        rows, cols = self._info(name).shape
        return rows, cols

    def _comes_as_bfloat16(self, name: str) -> bool:
        """Say whether a matrix is read as the bits of bfloat16; a .gguf file gives float32, whatever it stores."""
        if self._info(name).dtype != "BF16":
            return False
        return self._checkpoint.read_array(name, rows=(0, 1)).dtype == np.uint16

    def _info(self, name: str) -> Any:
        return self._checkpoint.tensors[self._checkpoint.tied.get(name, name)]

    def _counted(self, weight: _native.Weight) -> _native.Weight:
        self.bytes += weight.bytes
        return weight


def _slabs(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of rows that are read and put into panels at once: whole panels, all but the last."""
    step = max(1, SLAB_BYTES // (4 * cols * _native.PANEL)) * _native.PANEL
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def row_sums(packed: PackedWeight) -> NDArray[np.float64]:
    """Return the sum of each row of what a packed weight stands for: exact sums of integers times scales.

    sum_k W[r, k] = sum over groups g of S[r, g] * (sum of the codes of g - columns of g * Z[r, g])
    """
    from zeropoint.formats import bits

    rows, cols = packed.shape
    group = packed.scheme.group_size if packed.scheme.granularity == "group" else None
    starts = np.arange(0, cols, group or cols)
    lengths = np.diff(np.append(starts, cols))
    sums = np.empty((rows, len(starts)), np.int64)
    step = max(1, SLAB_BYTES // (8 * cols))
    for first in range(0, rows, step):
        codes = bits.unpack_array(packed.words[first : first + step].view(np.int32), packed.scheme.bits, cols)
        sums[first : first + step] = np.add.reduceat(codes, starts, axis=1, dtype=np.int64)
    if packed.zero_point is not None:
        sums -= lengths * packed.zero_point.astype(np.int64)
    total: NDArray[np.float64] = (packed.scale.astype(np.float64) * sums).sum(axis=1)
    return total


def _cache_token_bytes(config: Config, cache: CacheDtype) -> int:
    if cache not in ("float16", "float32", "int8"):
        raise InputError(f"the cache of keys and values is {cache!r}; it must be 'float16', 'float32' or 'int8'")
    head_dim = -(-config.head_dim // 16) * 16  # native/program.h pads it
    scale_bytes = 4 if cache == "int8" else 0
    return 2 * config.layers * config.kv_heads * (head_dim * np.dtype(cache).itemsize + scale_bytes)
