"""How near the linear kernels come to memory's bandwidth, and to oneDNN. The last line is one JSON document.

    python benchmarks/kernels.py [--threads 2] [--rounds 9] [--sizes 4096 8192] [--only vector|matrix]

Vector: one row through different matrices, one after the other, more than any cache holds; the share is of the
bandwidth measured in the same round. Matrix: 512 rows through matrices of 4096 x 4096, beside torch with as many
threads; operations are 2 * rows * rows of the weight * columns. Both run as a model does: programs of steps, with a
barrier after each (native/program.h). ZEROPOINT_ISA chooses the instruction set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from origin import origin
from turns import Runs, in_turns
from zeropoint import _native

COLD_BYTES = 384 << 20
"""Of weights that a pass reads: twelve times a cache of 32 MB, so that none of the next pass is left in it."""

STREAM_BYTES = 512 << 20
ROWS, SIZE, MATRICES = 512, 4096, 4

Kind = Literal["4 bits g64", "8 bits", "w8a8", "bf16", "fp32"]
KINDS: tuple[Kind, ...] = ("4 bits g64", "8 bits", "w8a8", "bf16", "fp32")
"""w8a8 is 8 bits whose inputs have a scale for each row, as files declare them; otherwise each block has one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=_native.usable_cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--only", choices=("vector", "matrix"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pool = _native.Pool(arguments.threads)
    vectors, matrices = [], []
    if arguments.only != "matrix":
        print(f"{'one row':12} {'size':>6} {'GB/s':>7} {'stream':>7} {'share':>7} {'lowest to highest':>19}")
        for size in arguments.sizes:
            for kind in KINDS:
                vectors.append(measure_vector(pool, kind, size, arguments.rounds))
                print(vector_row(vectors[-1]), flush=True)
    if arguments.only != "vector":
        print(f"{ROWS} rows of {SIZE} x {SIZE}, TOP/s")
        matrices = measure_matrices(pool, arguments.rounds)
        for row in matrices:
            print(matrix_row(row), flush=True)
    document = {"isa": _native.isa(), "threads": arguments.threads, "rounds": arguments.rounds, **origin()}
    print(json.dumps({**document, "vector": vectors, "matrix": matrices}))


# One row


def measure_vector(pool: Any, kind: Kind, size: int, rounds: int) -> dict[str, Any]:
    weights = [make_weight(pool, kind, size)]
    while sum(weight.bytes for weight in weights) < COLD_BYTES:
        weights.append(make_weight(pool, kind, size))
    run, size_bytes = program_of(pool, weights, kind, rows=1), sum(weight.bytes for weight in weights)
    rates = {
        "stream": lambda: pool.stream(STREAM_BYTES, 3),
        "kernel": lambda: size_bytes / fastest(run, tries=3),
    }
    runs = in_turns(rates, rounds)
    share, low, high = runs["kernel"].over(runs["stream"])
    return {
        "kind": kind,
        "size": size,
        "matrices": len(weights),
        "bytes_per_s": runs["kernel"].median,
        "stream_bytes_per_s": runs["stream"].median,
        "share": share,
        "share_low": low,
        "share_high": high,
    }


def vector_row(row: dict[str, Any]) -> str:
    return (
        f"{row['kind']:12} {row['size']:6} {row['bytes_per_s'] / 1e9:7.2f} {row['stream_bytes_per_s'] / 1e9:7.2f} "
        f"{row['share']:7.1%} {row['share_low']:8.1%} to {row['share_high']:7.1%}"
    )


# Many rows


def measure_matrices(pool: Any, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind, with the peer that it is compared with."""
    operations = 2.0 * ROWS * SIZE * SIZE
    ours = {f"our {kind}": program_of(pool, make_several(pool, kind), kind, rows=ROWS) for kind in KINDS}
    calls = ours | without_slow(torch_calls())
    rates = {name: lambda call=call: operations * MATRICES / fastest(call, tries=2) for name, call in calls.items()}
    runs = in_turns(rates, rounds)
    int8 = max((name for name in runs if name.startswith("torch int8")), key=lambda name: runs[name].median)
    against = {"8 bits": int8, "w8a8": int8, "bf16": "torch bf16", "fp32": "torch fp32", "4 bits g64": "our 8 bits"}
    rows = [compared(runs, f"our {kind}", against[kind]) for kind in KINDS]
    return rows + [{"kind": name, "operations_per_s": runs[name].median} for name in runs if name.startswith("torch")]


def compared(runs: dict[str, Runs], name: str, other: str) -> dict[str, Any]:
    ratio, low, high = runs[name].over(runs[other])
    speeds = {"operations_per_s": runs[name].median, "other_operations_per_s": runs[other].median}
    return {"kind": name, "against": other, **speeds, "ratio": ratio, "ratio_low": low, "ratio_high": high}


def matrix_row(row: dict[str, Any]) -> str:
    start = f"{row['kind']:26} {row['operations_per_s'] / 1e12:7.3f}"
    if "against" not in row:
        return start
    return (
        f"{start}  x{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}) of {row['against']}, "
        f"{row['other_operations_per_s'] / 1e12:.3f}"
    )


def without_slow(calls: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Return the calls without forms of int8 that take three times the fastest: without VNNI _int_mm takes seconds."""
    seconds = {name: fastest(call, tries=1) for name, call in calls.items() if name.startswith("torch int8")}
    slow = [name for name in seconds if seconds[name] > 3 * min(seconds.values())]
    for name in slow:
        print(f"{name} is left out: {2e-12 * ROWS * SIZE * SIZE * MATRICES / seconds[name]:.3f} TOP/s")
    return {name: call for name, call in calls.items() if name not in slow}


def torch_calls() -> dict[str, Callable[[], object]]:
    """Return what torch has for the same product: MATRICES of them a call. int8 in every form that it has."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, SIZE, generator=random)
    codes = [torch.randint(-127, 128, (SIZE, SIZE), generator=random, dtype=torch.int8) for _ in range(MATRICES)]
    x8 = (x * 30).round().clamp(-127, 127).to(torch.int8)
    floats = [code.float() / 127 for code in codes]
    halves = [weight.bfloat16() for weight in floats]
    x16 = x.bfloat16()
    calls: dict[str, Callable[[], object]] = {
        "torch int8 _int_mm": lambda: [torch._int_mm(x8, code.T) for code in codes],
        "torch bf16": lambda: [torch.nn.functional.linear(x16, weight) for weight in halves],
        "torch fp32": lambda: [torch.nn.functional.linear(x, weight) for weight in floats],
    }
    return calls | packed_int8(x, floats, codes)


def packed_int8(x: Tensor, floats: list[Tensor], codes: list[Tensor]) -> dict[str, Callable[[], object]]:
    """Return oneDNN's int8 linears on weights in its own layout: dynamic, which rounds x too, and on integers.

    Not every build of torch has them; what is missing is said, not passed over.
    """
    found: dict[str, Callable[[], object]] = {}
    try:
        scale = [float(weight.abs().max()) / 127 for weight in floats]
        dynamic = [
            torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(weight, s, 0, torch.qint8), None)
            for weight, s in zip(floats, scale, strict=True)
        ]
        torch.ops.quantized.linear_dynamic(x, dynamic[0], False)
        found["torch int8 dynamic"] = lambda: [torch.ops.quantized.linear_dynamic(x, w, False) for w in dynamic]
    except RuntimeError as error:
        print(f"torch int8 dynamic: {str(error).splitlines()[0]}")
    try:
        prepacked = [torch.ops.onednn.qlinear_prepack(code.contiguous(), [ROWS, SIZE]) for code in codes]
        ones, zeros = torch.ones(SIZE), torch.zeros(SIZE, dtype=torch.int32)
        x8 = (x * 30).round().clamp(-128, 127).to(torch.int16).add(128).to(torch.uint8)

        def onednn() -> list[Tensor]:
            return [
                torch.ops.onednn.qlinear_pointwise(
                    x8, 1.0, 128, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
                )
                for weight in prepacked
            ]

        onednn()
        found["torch int8 onednn.qlinear"] = onednn
    except (RuntimeError, AttributeError) as error:
        print(f"torch int8 onednn.qlinear: {str(error).splitlines()[0]}")
    return found


# Ours


def make_several(pool: Any, kind: Kind) -> list[Any]:
    return [make_weight(pool, kind, SIZE) for _ in range(MATRICES)]


def make_weight(pool: Any, kind: Kind, size: int) -> Any:
    """Return a weight (size, size) in panels; put in by slabs, so that its source is never whole in memory."""
    random = np.random.Generator(np.random.PCG64(0))
    step = 512
    if kind in ("bf16", "fp32"):
        weight = _native.float_weight(kind == "bf16", size, size)
        values = random.standard_normal((step, size), dtype=np.float32)
        for start in range(0, size, step):
            if kind == "bf16":
                weight.put_bf16(pool, start, np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)))
            else:
                weight.put_f32(pool, start, values)
        return weight
    bits, group = (4, 64) if kind == "4 bits g64" else (8, size)
    weight = _native.codes_weight(bits, size, size, group, bits == 4, False)
    words = random.integers(0, 2**32, (step, size * bits // 32), dtype=np.uint32)
    scales = np.full((step, size // group), 2.0**-7, np.float32)
    for start in range(0, size, step):
        weight.put_codes(pool, start, words, scales, None)
    return weight


def program_of(pool: Any, weights: list[Any], kind: Kind, *, rows: int) -> Callable[[], object]:
    """Return what runs `rows` rows through every weight: each reads the same input, rounded once if it has codes."""
    size = weights[0].cols
    table = _native.float_weight(False, _native.PANEL, size)
    values = np.random.Generator(np.random.PCG64(1)).standard_normal((_native.PANEL, size), dtype=np.float32)
    table.put_f32(pool, 0, values)
    program = _native.Program(pool)
    x, y, result = (program.slot(size) for _ in range(3))
    program.embed(table, x)
    quantized = -1
    if not weights[0].is_float:
        declared = kind == "w8a8"
        quantized = program.quantized(size, weights[0].declared_block if declared else weights[0].block)
        program.quantize(x, quantized, "token" if declared else "blocks")
    for weight in weights:
        program.linear(x, quantized, [(weight, None, y)], False)
    program.begin_head()
    program.add(x, y, result)
    program.set_result(result)
    tokens, logits = np.arange(rows, dtype=np.int32) % _native.PANEL, np.empty((1, size), np.float32)

    def run() -> None:
        program.run(_native.Cache(0, 1, 16, "float16"), tokens, logits)

    return run


def fastest(call: Callable[[], object], *, tries: int) -> float:
    """Return the seconds of the fastest of some calls: a round is short, and what else the machine does is not ours."""
    seconds = []
    for _ in range(tries):
        started_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


if __name__ == "__main__":
    main()
