"""The ops of `models.parts.Ops` as nodes of a graph: running a model's flow through them writes down what it computes.

So every architecture in models/ has a graph, by the very lines that calibrate and run it. An array is its name in the
graph. Everything is float32; linears of integers are MatMulNBits, which reads its inputs as they are.

    rope        RotaryEmbedding, with angles of `position_ids` that are computed in the graph, once for each rope
    attention   past keys and new ones, scores, mask, softmax, in plain operators
    mask        a token sees what is not after it, within the window, where `attention_mask` is not 0
    experts     the tokens that are sent to one, by NonZero and Gather: an expert computes for those alone

Operators are those of ONNX's opset 23, but for MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from zeropoint.errors import InternalError
from zeropoint.exporting import _onnx_blocks
from zeropoint.exporting._onnx_graph import Graph, Stored
from zeropoint.models.rope import Rope
from zeropoint.types import Scheme

OPSET = 23
MICROSOFT = "com.microsoft"
"""The domain of the operators that only ONNX Runtime has."""

INPUT_IDS, ATTENTION_MASK, POSITION_IDS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
"""With the number of a block, and "key" or "value". All names are those of optimum and onnxruntime-genai."""

FLOAT32_INPUTS = 1
"""accuracy_level of MatMulNBits: its inputs are float32 in the product, too."""

DTYPES: Mapping[str, str] = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}
"""Floats of a folder, and what ONNX calls them."""

LOWEST = float(np.finfo(np.float32).min)
"""Of a score that is hidden. Not infinity: a padded token sees nothing, and would be NaN, and its values after it."""


@dataclass(frozen=True)
class Matrix:
    """A weight of a linear, or a table.

    name: in the folder, without ".weight". dtype: of its floats, as the folder calls it.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme | None
    dtype: str


@dataclass(frozen=True)
class Past:
    """The cache of one block, which comes into the graph under one name and goes out under another.

    heads: of queries. length: the graph has positions from `position_ids`.
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    length: int = 0


class OnnxOps:
    """Ops on names in a graph. Weights are Matrix, gains and biases names of stored tensors; see `models.parts.Ops`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shared: dict[tuple[object, ...], str] = {}

    def prepare(self, weight: Matrix) -> Matrix:
        """Return the weight as it is."""
        return weight

    def embed(self, tokens: str, table: Matrix, factor: float = 1.0) -> str:
        """Return rows of a table; those of integers by S * (u - z), see `_onnx_blocks`."""
        node, graph = self.graph.node, self.graph
        if table.scheme is None:
            found = self._float32(node("Gather", self._floats(table), tokens, axis=0), table)
        else:
            stored = self._integers(table)
            codes = self._codes(node("Gather", stored["B"], tokens, axis=0), _onnx_blocks.stored_bits(table.scheme))
            scale = node("Unsqueeze", node("Gather", stored["scales"], tokens, axis=0), graph.integers(-1))
            found = node("Reshape", node("Mul", codes, scale), graph.integers(0, 0, table.shape[1]))
        return found if factor == 1.0 else node("Mul", found, graph.number(factor))

    def positions(self, tokens: str, table: Matrix, start: int) -> str:
        """Return the rows of `position_ids`, from row `start` on, of a float table."""
        rows = self.graph.node("Add", POSITION_IDS, self.graph.integer(start)) if start else POSITION_IDS
        return self._float32(self.graph.node("Gather", self._floats(table), rows, axis=0), table)

    def linear(self, x: str, weight: Matrix, bias: str | None) -> str:
        """Return x W^T + b."""
        node = self.graph.node
        if weight.scheme is None:
            values = self._float32(self._floats(weight), weight)
            y = node("MatMul", x, node("Transpose", values, perm=(1, 0)))
        else:
            rows, cols = weight.shape
            y = node(
                "MatMulNBits",
                x,
                *self._integers(weight).values(),
                domain=MICROSOFT,
                K=cols,
                N=rows,
                bits=_onnx_blocks.stored_bits(weight.scheme),
                block_size=_onnx_blocks.block_of(weight.scheme, cols)[0],
                accuracy_level=FLOAT32_INPUTS,
            )
        return y if bias is None else node("Add", y, bias)

    def rms_norm(self, x: str, gain: str, eps: float, offset: float = 0.0) -> str:
        """Return x / sqrt(mean(x^2) + eps) * (gain + offset); that sum is computed once, when the graph is loaded."""
        gain = self.graph.node("Add", gain, self.graph.number(offset)) if offset else gain
        return self.graph.node("RMSNormalization", x, gain, axis=-1, epsilon=eps)

    def layer_norm(self, x: str, gain: str, bias: str, eps: float) -> str:
        """Return the layer norm over the last axis."""
        return self.graph.node("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps)

    def split_heads(self, x: str, heads: int) -> str:
        """Return (batch, heads, time, head_dim)."""
        return self.graph.node(
            "Transpose", self.graph.node("Reshape", x, self.graph.integers(0, 0, heads, -1)), perm=(0, 2, 1, 3)
        )

    def split(self, x: str, widths: tuple[int, ...]) -> tuple[str, ...]:
        """Return x in parts of so many features."""
        return self.graph.parts("Split", x, self.graph.integers(*widths), count=len(widths), axis=-1)

    def rope(self, x: str, rope: Rope, start: int) -> str:
        """Rotate by the angles of `position_ids`, which say where the tokens start, too."""
        cos, sin = (self._once(partial(self._angles, rope, op), op, rope) for op in ("Cos", "Sin"))
        return self.graph.node("RotaryEmbedding", x, cos, sin, rotary_embedding_dim=rope.rotated)

    def attention(
        self,
        q: str,
        k: str,
        v: str,
        past: Past,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> str:
        """Return attention over past and new keys. Queries that share a head of keys are rows of one product."""
        node, graph = self.graph.node, self.graph
        q = node("Mul", q, graph.number(past.head_dim**-0.5 if scale is None else scale))
        q = node("Reshape", q, graph.integers(0, past.kv_heads, -1, past.head_dim))
        k, v = self._appended(past, "key", k), self._appended(past, "value", v)
        scores = node("MatMul", q, node("Transpose", k, perm=(0, 1, 3, 2)))
        if softcap is not None:
            scores = self.softcap(scores, softcap)
        group = past.heads // past.kv_heads
        mask = self._once(lambda: self._mask(window, group), "mask", window, group)
        y = node("MatMul", node("Softmax", node("Add", scores, mask), axis=-1), v)
        y = node("Transpose", node("Reshape", y, graph.integers(0, past.heads, -1, past.head_dim)), perm=(0, 2, 1, 3))
        return node("Reshape", y, graph.integers(0, 0, past.heads * past.head_dim))

    def gated(self, gate: str, up: str, activation: str) -> str:
        """Return activation(gate) * up."""
        return self.graph.node("Mul", self.activate(gate, activation), up)

    def activate(self, x: str, activation: str) -> str:
        """Return activation(x)."""
        node = self.graph.node
        if activation == "silu":
            return node("Mul", x, node("Sigmoid", x))
        if activation == "relu":
            return node("Relu", x)
        return node("Gelu", x, approximate={"gelu": "none", "gelu_pytorch_tanh": "tanh"}[activation])

    def add(self, x: str, y: str) -> str:
        """Return x + y."""
        return self.graph.node("Add", x, y)

    def softcap(self, x: str, cap: float) -> str:
        """Return cap * tanh(x / cap)."""
        node, constant = self.graph.node, self.graph.number(cap)
        return node("Mul", node("Tanh", node("Div", x, constant)), constant)

    def route(self, x: str, count: int, *, normalized: bool) -> str:
        """Return the weights of all experts, 0 of those that a token is not sent to."""
        node, graph = self.graph.node, self.graph
        all_weights = node("Softmax", x, axis=-1)
        weights, chosen = graph.parts("TopK", all_weights, graph.integers(count), count=2, axis=-1)
        if normalized:
            weights = node("Div", weights, node("ReduceSum", weights, graph.integers(-1)))
        return node("ScatterElements", node("Mul", all_weights, graph.number(0)), chosen, weights, axis=-1)

    def sent(self, x: str, routes: str, expert: int) -> str:
        """Return the rows of x that are sent to an expert: (1, tokens, features)."""
        return self.graph.node("Gather", _rows(self.graph, x), self._tokens(routes, expert), axis=0)

    def add_sent(self, total: str | None, y: str, routes: str, expert: int) -> str:
        """Return `total`, zeros where it is None, with y times its route added to the rows that were sent."""
        node, graph = self.graph.node, self.graph
        tokens = self._tokens(routes, expert)
        weights = node("Gather", self._column(routes, expert), tokens, axis=0)
        weighed = node("Squeeze", node("Mul", y, node("Unsqueeze", weights, graph.integers(-1))), graph.integers(0))
        if total is None:
            tokens_in_all, features = node("Size", self._column(routes, expert)), node("Shape", y, start=2)
            lengths = node("Concat", node("Unsqueeze", tokens_in_all, graph.integers(0)), features, axis=0)
            rows = node("ConstantOfShape", lengths)
        else:
            rows = _rows(graph, total)
        rows = node("ScatterND", rows, node("Transpose", tokens, perm=(1, 0)), weighed, reduction="add")
        batch_and_time = node("Shape", routes, end=2)
        return node("Reshape", rows, node("Concat", batch_and_time, graph.integers(-1), axis=0))

    def _column(self, routes: str, expert: int) -> str:
        """Return the weights of one expert: (all tokens,)."""
        node, graph = self.graph.node, self.graph
        return self._once(
            lambda: node("Gather", _rows(graph, routes), graph.integer(expert), axis=1), "column", routes, expert
        )

    def _tokens(self, routes: str, expert: int) -> str:
        """Return the numbers of the tokens that are sent to an expert: int64 (1, tokens)."""
        return self._once(lambda: self.graph.node("NonZero", self._column(routes, expert)), "tokens", routes, expert)

    def _once(self, make: Callable[[], str], *key: object) -> str:
        """Return what `make` has recorded for this key, the first time it was asked for."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _floats(self, weight: Matrix) -> str:
        name = f"{weight.name}.weight"
        return self.graph.store(Stored(name, DTYPES[weight.dtype], weight.shape, name))

    def _float32(self, x: str, weight: Matrix) -> str:
        return x if weight.dtype == "F32" else self.graph.node("Cast", x, to="FLOAT")

    def _integers(self, weight: Matrix) -> dict[str, str]:
        """Return the names of the tensors of a weight, by the input of MatMulNBits and in the order of those."""
        if weight.scheme is None:
            raise InternalError(f"{weight.name}: is float, and was to be integers")
        found = {}
        for part, shape in _onnx_blocks.shapes(weight.scheme, *weight.shape).items():
            dtype = "FLOAT" if part == "scales" else "UINT8"
            found[part] = self.graph.store(Stored(f"{weight.name}.{part}", dtype, shape, weight.name, part))
        return found

    def _codes(self, packed: str, bits: int) -> str:
        """Return u - 2^(bits-1) as float32 (batch, time, blocks, block) of bytes (batch, time, blocks, bytes)."""
        node, graph = self.graph.node, self.graph
        if bits < 8:
            shifted = [node("BitShift", packed, graph.byte(places), direction="RIGHT") for places in range(0, 8, bits)]
            masked = [node("BitwiseAnd", each, graph.byte((1 << bits) - 1)) for each in shifted]
            apart = [node("Unsqueeze", each, graph.integers(-1)) for each in masked]
            packed = node("Reshape", node("Concat", *apart, axis=-1), graph.integers(0, 0, 0, -1))
        return node("Sub", node("Cast", packed, to="FLOAT"), graph.number(1 << (bits - 1)))

    def _angles(self, rope: Rope, op: str) -> str:
        """Return the cosines or sines of all angles: (batch, time, rotated / 2)."""
        node, graph = self.graph.node, self.graph
        positions = node("Unsqueeze", node("Cast", POSITION_IDS, to="FLOAT"), graph.integers(-1))
        turned = node(op, node("Mul", positions, graph.constant(rope.frequencies())))
        return turned if rope.factor == 1.0 else node("Mul", turned, graph.number(rope.factor))

    def _appended(self, past: Past, kind: str, new: str) -> str:
        """Return the cache with what is new behind it: (batch, kv_heads, total, head_dim), an output of the graph."""
        graph, sizes = self.graph, (past.kv_heads, past.head_dim)
        held = graph.given(PAST.format(past.index, kind), "FLOAT", "batch", sizes[0], "past", sizes[1])
        name = graph.node("Concat", held, new, axis=2, name=PRESENT.format(past.index, kind))
        graph.gives(name, "batch", sizes[0], "total", sizes[1])
        return name

    def _mask(self, window: int | None, group: int) -> str:
        """Return what is added to scores, 0 or LOWEST: (batch, 1, group * time, total), `group` times the same."""
        node, graph = self.graph.node, self.graph
        total = node("Squeeze", node("Shape", ATTENTION_MASK, start=1))
        past = node("Sub", total, node("Squeeze", node("Shape", INPUT_IDS, start=1)))
        step = graph.integer(1)
        rows = node("Unsqueeze", node("Range", past, total, step), graph.integers(-1))  # of the new tokens
        cols = node("Range", graph.integer(0), total, step)
        sees = node("LessOrEqual", cols, rows)
        if window is not None:
            sees = node("And", sees, node("Greater", cols, node("Sub", rows, graph.integer(window))))
        there = node("Cast", node("Unsqueeze", ATTENTION_MASK, graph.integers(1, 2)), to="BOOL")
        mask = node("Where", node("And", sees, there), graph.number(0), graph.number(LOWEST))
        return node("Tile", mask, graph.integers(1, 1, group, 1))


def _rows(graph: Graph, x: str) -> str:
    """Return (batch, time, features) as (batch * time, features)."""
    return graph.node("Flatten", x, axis=2)
