"""The ops of `models.parts.Ops` for the native runtime: they compute nothing, they write down what is to be computed.

A model file is run once with these ops. What it does with the values is recorded and put into the form that
native/program.h executes; from then on a token is one call into C++, however many operations it takes:

    model file --NativeOps--> list of operations --compile--> steps: linears that read the same value in one step,
                                                              a residual added where its linear writes,
                                                              values rounded to int8 once for all that read them
                                                              and want them rounded alike,
                                                              outlier columns taken out first, and added as floats,
                                                              memory shared by values that do not live together
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zeropoint import _native
from zeropoint.errors import ArchitectureError
from zeropoint.models.rope import Rope
from zeropoint.types import InputParams, RunActivations

Kind = Literal[
    "embed",
    "positions",
    "norm",
    "linear",
    "rope",
    "attention",
    "gated",
    "activate",
    "add",
    "softcap",
    "slice",
    "route",
    "sent",
    "zeros",
    "add_sent",
]
FOR_ALL = -1
"""In the place of an expert: steps that run for all tokens."""

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")  # in the order of native/kernels.h


@dataclass(frozen=True)
class Value:
    """An activation, float32 (tokens, width), that some operation makes.

    heads: set where it is seen as heads. expert: set where it has rows for those tokens only that were sent to it.
    """

    index: int
    width: int
    heads: int | None = None
    expert: int | None = None


@dataclass(frozen=True)
class Operation:
    """One operation of the model. detail: what the kind needs besides values: weights, numbers."""

    kind: Kind
    inputs: tuple[Value, ...]
    out: Value
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NativeLinear:
    """The weight of a linear, and how the file says that its input is rounded; None where it says nothing.

    shift: float32 (rows,), what the zero point of the input takes from each output, -S_x Z_x times the sum of the row
    of weights: the kernels multiply integers that know no zero point. None where there is none.
    outliers: the float weights of the columns input.outliers; None where there are none.
    """

    weight: _native.Weight
    input: InputParams | None = None
    shift: NDArray[np.float32] | None = None
    outliers: _native.Weight | None = None

    @property
    def columns(self) -> tuple[int, ...]:
        """The outlier columns of the input."""
        return () if self.input is None else self.input.outliers


@dataclass(frozen=True)
class Reading:
    """How a linear reads its input: as it is, where nothing is set.

    block: in integers with a scale for so many columns. A row that is rounded as its file says has one scale, and the
        block is then as long as the scales of the weight allow.
    rounding: how the file says; without a block the integers are turned back into floats.
    halves: as bfloat16 numbers.
    """

    block: int | None = None
    rounding: InputParams | None = None
    halves: bool = False


@dataclass(frozen=True)
class LayerPart:
    """Which part of the cache a block writes to. length: 0; the position is known when the program runs."""

    layer: int
    length: int = 0


class NativeOps:
    """Records operations; it is given `NativeLinear`, `_native.Weight` for a table or a head, float32 for the rest."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def prepare(self, weight: NativeLinear) -> NativeLinear:
        """Return the weight, which is in panels already."""
        return weight

    def embed(self, tokens: None, table: _native.Weight, factor: float = 1.0) -> Value:
        """Record the look-up of the tokens at hand."""
        return self._record("embed", (), table.cols, table=table, factor=factor)

    def positions(self, tokens: None, table: _native.Weight, start: int) -> Value:
        """Record the look-up of the positions at hand; they begin at the length of the cache when the program runs."""
        return self._record("positions", (), table.cols, table=table, first=start)

    def linear(self, x: Value, weight: NativeLinear | _native.Weight, bias: NDArray[np.float32] | None) -> Value:
        """Record x W^T + b."""
        linear = weight if isinstance(weight, NativeLinear) else NativeLinear(weight)
        return self._record("linear", (x,), linear.weight.rows, linear=linear, weight=linear.weight, bias=bias)

    def rms_norm(self, x: Value, gain: NDArray[np.float32], eps: float, offset: float = 0.0) -> Value:
        """Record x / sqrt(mean(x^2) + eps) * (gain + offset), of each head where x is seen as heads."""
        out = self._record("norm", (x,), x.width, gain=gain + np.float32(offset), eps=eps, heads=x.heads or 1)
        return Value(out.index, out.width, x.heads)

    def layer_norm(self, x: Value, gain: NDArray[np.float32], bias: NDArray[np.float32], eps: float) -> Value:
        """Record (x - mean(x)) / sqrt(var(x) + eps) * gain + bias."""
        return self._record("norm", (x,), x.width, gain=gain, bias=bias, eps=eps)

    def split_heads(self, x: Value, heads: int) -> Value:
        """Return the same value, seen as heads."""
        return Value(x.index, x.width, heads)

    def split(self, x: Value, widths: tuple[int, ...]) -> tuple[Value, ...]:
        """Record a copy of each part of the features, of each head where x is seen as heads."""
        starts, heads = np.cumsum((0, *widths[:-1])).tolist(), x.heads or 1
        parts = [
            self._record("slice", (x,), heads * width, first=at, heads=heads)
            for at, width in zip(starts, widths, strict=True)
        ]
        return tuple(Value(part.index, part.width, x.heads) for part in parts)

    def rope(self, x: Value, rope: Rope, start: int) -> Value:
        """Record the rotation; where it starts is the length of the cache when the program runs."""
        out = self._record("rope", (x,), x.width, heads=x.heads, rope=rope)
        return Value(out.index, out.width, x.heads)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        past: LayerPart,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Value:
        """Record that k and v enter the cache and q attends to all of it, or to what its window leaves."""
        return self._record(
            "attention",
            (q, k, v),
            q.width,
            heads=q.heads,
            kv_heads=k.heads,
            layer=past.layer,
            window=window or 0,
            scale=scale or 0.0,
            softcap=softcap or 0.0,
        )

    def gated(self, gate: Value, up: Value, activation: str) -> Value:
        """Record activation(gate) * up."""
        return self._record("gated", (gate, up), gate.width, activation=_number_of(activation))

    def activate(self, x: Value, activation: str) -> Value:
        """Record activation(x)."""
        return self._record("activate", (x,), x.width, activation=_number_of(activation))

    def add(self, x: Value, y: Value) -> Value:
        """Record x + y."""
        return self._record("add", (x, y), x.width)

    def softcap(self, x: Value, cap: float) -> Value:
        """Record cap * tanh(x / cap)."""
        return self._record("softcap", (x,), x.width, cap=cap)

    def route(self, x: Value, count: int, *, normalized: bool) -> Value:
        """Record to which experts each token is sent, and with which weights."""
        return self._record("route", (x,), x.width, chosen=count, normalized=normalized)

    def sent(self, x: Value, routes: Value, expert: int) -> Value:
        """Record the copy of the rows that are sent to an expert."""
        out = self._record("sent", (x, routes), x.width, expert=expert)
        return Value(out.index, out.width, expert=expert)

    def add_sent(self, total: Value | None, y: Value, routes: Value, expert: int) -> Value:
        """Record that what an expert made is added, weighed, to the rows it was sent."""
        if total is None:
            total = self._record("zeros", (), y.width)
        out = self._record("add_sent", (total, y, routes), y.width)
        return Value(out.index, out.width)

    def _record(self, kind: Kind, inputs: tuple[Value, ...], width: int, **detail: Any) -> Value:
        expert = next((value.expert for value in inputs if value.expert is not None), None)
        out = Value(len(self.operations), width, expert=expert)
        self.operations.append(Operation(kind, inputs, out, detail))
        return out


def compile_program(
    operations: Sequence[Operation], *, head: int, pool: _native.Pool, activations: RunActivations
) -> _native.Program:
    """Return the program that computes the last operation's value.

    head: index of the first operation that is only needed where logits are wanted. activations: "int8", the inputs of
    linears with integer weights are rounded as their file says, or else to int8 in blocks of columns; "bfloat16", those
    of linears with bfloat16 weights are rounded to bfloat16; "float", none is. What is not rounded stays float32.
    """
    return _Compiler(operations, head, pool, activations).program


class _Compiler:
    """Emits the steps of a program, one operation or several at a time."""

    def __init__(
        self, operations: Sequence[Operation], head: int, pool: _native.Pool, activations: RunActivations
    ) -> None:
        self._operations = operations
        self._activations = activations
        self._last_use = {value.index: i for i, operation in enumerate(operations) for value in operation.inputs}
        self._slots: dict[int, int] = {}  # of a value that lives
        self._free: dict[int, list[int]] = {}  # slots by width
        self._quantized: dict[tuple[int, int], int] = {}  # quantized slot by width and block
        self._held: dict[int, tuple[int, InputParams | None]] = {}  # which value a quantized slot holds, rounded how
        self._ropes: dict[Rope, int] = {}
        self.program = _native.Program(pool)
        at = 0
        while at < len(operations):
            if at == head:
                self.program.begin_head()
            at = self._emit(at)
        self.program.set_result(self._slots[operations[-1].out.index])

    def _emit(self, at: int) -> int:
        """Emit the step that begins with operation `at`; return the index of the next operation."""
        operation = self._operations[at]
        expert = operation.detail.get("expert", operation.out.expert)
        self.program.set_expert(FOR_ALL if expert is None else expert)
        if operation.kind == "linear":
            return self._emit_linears(at)
        emit = getattr(self, f"_emit_{operation.kind}")
        emit(at, operation)
        self._release(at, operation)
        return at + 1

    def _emit_embed(self, at: int, operation: Operation) -> None:
        self.program.embed(operation.detail["table"], self._new(operation.out), operation.detail["factor"])

    def _emit_positions(self, at: int, operation: Operation) -> None:
        detail = operation.detail
        self.program.embed(detail["table"], self._new(operation.out), first_position=detail["first"])

    def _emit_norm(self, at: int, operation: Operation) -> None:
        source = self._slots[operation.inputs[0].index]
        detail, out = operation.detail, self._new(operation.out)
        if "bias" in detail:
            self.program.layer_norm(source, detail["gain"], detail["bias"], detail["eps"], out)
        else:
            self.program.norm(source, detail["gain"], detail["eps"], out, detail["heads"])

    def _emit_slice(self, at: int, operation: Operation) -> None:
        source = self._slots[operation.inputs[0].index]
        self.program.slice(source, operation.detail["first"], self._new(operation.out), operation.detail["heads"])

    def _emit_rope(self, at: int, operation: Operation) -> None:
        (x,) = operation.inputs
        self._take_over(at, x, operation.out)
        rope: Rope = operation.detail["rope"]
        if rope not in self._ropes:
            self._ropes[rope] = self.program.rope_table(rope.frequencies(), rope.factor)
        heads = operation.detail["heads"]
        self.program.rope(self._slots[operation.out.index], heads, x.width // heads, self._ropes[rope])

    def _emit_attention(self, at: int, operation: Operation) -> None:
        q, k, v = (self._slots[value.index] for value in operation.inputs)
        detail = operation.detail
        head_dim = operation.out.width // detail["heads"]
        out = self._new(operation.out)
        options = (detail[key] for key in ("layer", "window", "scale", "softcap"))
        self.program.attention(q, k, v, out, detail["heads"], detail["kv_heads"], head_dim, *options)

    def _emit_gated(self, at: int, operation: Operation) -> None:
        gate, up = operation.inputs
        slots = self._slots[gate.index], self._slots[up.index]
        self._take_over(at, gate, operation.out)
        self.program.gated(*slots, self._slots[operation.out.index], operation.detail["activation"])

    def _emit_activate(self, at: int, operation: Operation) -> None:
        (x,) = operation.inputs
        self._take_over(at, x, operation.out)
        self.program.activate(self._slots[operation.out.index], operation.detail["activation"])

    def _emit_add(self, at: int, operation: Operation) -> None:
        x, y = (self._slots[value.index] for value in operation.inputs)
        self.program.add(x, y, self._new(operation.out))

    def _emit_softcap(self, at: int, operation: Operation) -> None:
        (x,) = operation.inputs
        self._take_over(at, x, operation.out)
        self.program.softcap(self._slots[operation.out.index], operation.detail["cap"])

    def _emit_route(self, at: int, operation: Operation) -> None:
        source, detail = self._slots[operation.inputs[0].index], operation.detail
        self.program.route(source, self._new(operation.out), detail["chosen"], detail["normalized"])

    def _emit_sent(self, at: int, operation: Operation) -> None:
        source = self._slots[operation.inputs[0].index]
        self.program.send(source, self._new(operation.out))

    def _emit_zeros(self, at: int, operation: Operation) -> None:
        self.program.clear(self._new(operation.out))

    def _emit_add_sent(self, at: int, operation: Operation) -> None:
        total, y, routes = operation.inputs
        slots = self._slots[y.index], self._slots[routes.index]
        self._take_over(at, total, operation.out)
        self.program.collect(*slots, self._slots[operation.out.index])

    def _emit_linears(self, at: int) -> int:
        """Emit the linears from `at` on that read the same value; with the addition that follows a single one."""
        end = at
        while end < len(self._operations) and self._reads_the_same(self._operations[at], self._operations[end]):
            end += 1
        linears = self._operations[at:end]
        (x,) = linears[0].inputs
        add = self._addition(end) if len(linears) == 1 else None
        if add is not None:
            residual = add.inputs[0] if add.inputs[1].index == linears[0].out.index else add.inputs[1]
            self._take_over(end, residual, add.out)
            targets = [self._slots[add.out.index]]
        else:
            targets = [self._new(linear.out) for linear in linears]
        for columns, alike in self._by_outliers(linears):
            self._emit_alike(x, columns, [(linears[i], targets[i]) for i in alike], add=add is not None)
        last = end if add is None else end + 1
        for index in range(at, last):
            self._release(index, self._operations[index])
        return last

    def _emit_alike(
        self, x: Value, columns: tuple[int, ...], linears: Sequence[tuple[Operation, int]], *, add: bool
    ) -> None:
        """Emit linears with the same outlier columns, each with its target; `add`: onto it."""
        source = self._slots[x.index]
        if columns:
            taken, source = self._temporary(len(columns)), self._temporary(x.width)
            self.program.take(self._slots[x.index], np.array(columns, np.int32), taken, source)
        for reading, members in self._by_input([linear for linear, _ in linears]):
            shifted = reading.block is not None
            parts = [
                (linear.detail["weight"], _bias(linear, shifted=shifted), target)
                for linear, target in (linears[i] for i in members)
            ]
            self._emit_reading(x, source, reading, parts, add=add)
        if columns:
            self.program.linear(
                taken, -1, [(linear.detail["linear"].outliers, None, to) for linear, to in linears], True
            )
            self._free[len(columns)].append(taken)
            self._free[x.width].append(source)

    @staticmethod
    def _reads_the_same(first: Operation, other: Operation) -> bool:
        return other.kind == "linear" and other.inputs[0].index == first.inputs[0].index

    def _addition(self, at: int) -> Operation | None:
        """Return operation `at` if it adds what the linear before it made to a value that ends there."""
        if at >= len(self._operations) or self._operations[at].kind != "add":
            return None
        add, made = self._operations[at], self._operations[at - 1].out
        others = [value for value in add.inputs if value.index != made.index]
        dies = all(self._last_use[value.index] == at for value in add.inputs)
        return add if len(others) == 1 and dies else None

    def _emit_reading(
        self, x: Value, source: int, reading: Reading, parts: list[tuple[_native.Weight, Any, int]], *, add: bool
    ) -> None:
        """Emit linears that read x alike. source: as for `_rounded`."""
        if reading.block is not None:
            self.program.linear(source, self._rounded(x, source, reading.block, reading.rounding), parts, add)
            return
        if reading.rounding is None and not reading.halves:
            self.program.linear(source, -1, parts, add)
            return
        slot = self._temporary(x.width)
        if reading.rounding is None:
            self.program.halve(source, slot)
        else:  # of weights that are held as floats: to integers and back
            quantized = self._rounded(x, source, -(-x.width // _native.CHUNK) * _native.CHUNK, reading.rounding)
            self.program.restore(quantized, slot, reading.rounding.zero_point)
        self.program.linear(slot, -1, parts, add, reading.halves)
        self._free[x.width].append(slot)

    @staticmethod
    def _by_outliers(linears: Sequence[Operation]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Yield which of the linears leave the same columns of their input float."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i, operation in enumerate(linears):
            linear: NativeLinear = operation.detail["linear"]
            found.setdefault(linear.columns, []).append(i)
        yield from found.items()

    def _by_input(self, linears: Sequence[Operation]) -> Iterator[tuple[Reading, list[int]]]:
        """Yield which of the linears read the value alike."""
        found: dict[Reading, list[int]] = {}
        for i, operation in enumerate(linears):
            found.setdefault(self._reading(operation.detail["linear"]), []).append(i)
        yield from found.items()

    def _reading(self, linear: NativeLinear) -> Reading:
        weight = linear.weight
        if self._activations != "int8":
            return Reading(halves=self._activations == "bfloat16" and weight.is_bf16)
        if weight.is_float:
            return Reading(rounding=linear.input)
        return Reading(weight.block if linear.input is None else weight.declared_block, linear.input)

    def _rounded(self, x: Value, source: int, block: int, rounding: InputParams | None) -> int:
        """Return the quantized slot that holds x, after a step that fills it if it holds something else.

        source: the slot of x, or of what is left of it without outlier columns.
        """
        key = (x.width, block)
        if key not in self._quantized:
            self._quantized[key] = self.program.quantized(*key)
        slot = self._quantized[key]
        if self._held.get(slot) != (x.index, rounding):
            self.program.quantize(source, slot, *_kind(rounding))
            self._held[slot] = (x.index, rounding)
        return slot

    def _new(self, value: Value) -> int:
        slot = self._slots[value.index] = self._temporary(value.width)
        return slot

    def _temporary(self, width: int) -> int:
        """Return a slot that nothing lives in; whoever takes it puts it back into `_free`."""
        free = self._free.setdefault(width, [])
        return free.pop() if free else self.program.slot(width)

    def _take_over(self, at: int, value: Value, heir: Value) -> None:
        """Let `heir` be written over `value`, which operation `at` reads for the last time."""
        assert self._last_use[value.index] == at, "a value that is overwritten is read again"
        self._slots[heir.index] = self._slots.pop(value.index)

    def _release(self, at: int, operation: Operation) -> None:
        """Free the slots of the values that operation `at` read for the last time."""
        for value in operation.inputs:
            if self._last_use[value.index] == at and value.index in self._slots:
                self._free.setdefault(value.width, []).append(self._slots.pop(value.index))


def _number_of(activation: str) -> int:
    """Return what native/kernels.h calls an activation."""
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"hidden_act {activation!r} is not known to the native runtime; known are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS.index(activation)


def _kind(rounding: InputParams | None) -> tuple[str, float, int]:
    """Return what native/weight.h calls the rounding, its scale and its zero point."""
    if rounding is None:
        return "blocks", 1.0, 0
    return ("token", 1.0, 0) if rounding.scale is None else ("fixed", rounding.scale, rounding.zero_point)


def _bias(operation: Operation, *, shifted: bool) -> NDArray[np.float32] | None:
    """Return the bias of a linear; shifted: with what the zero point of its input takes from the outputs."""
    bias: NDArray[np.float32] | None = operation.detail["bias"]
    shift: NDArray[np.float32] | None = operation.detail["linear"].shift
    if not shifted or shift is None:
        return bias
    both: NDArray[np.float32] = shift if bias is None else bias + shift
    return both
