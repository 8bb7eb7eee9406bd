"""The bytes of exported weights, written once: a change in them is a change of what other engines are given.

    PYTHONPATH=src:tests python tests/golden/exports.py      writes tests/golden/exports.json anew

Codes, scales and zero points come from integer arithmetic alone, see formats.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from golden.formats import SAMPLES, qtensor
from zeropoint.exporting import _gguf_blocks, _onnx_blocks, awq, gptq
from zeropoint.exporting._integers import Integers
from zeropoint.formats import compressed_tensors
from zeropoint.types import Scheme

FILE = Path(__file__).parent / "exports.json"

BLOCKS: dict[str, tuple[tuple[int, int], Scheme]] = {
    "Q4_0": ((2, 64), Scheme(4, True, "group", 32)),
    "Q4_1": ((2, 64), Scheme(4, False, "group", 64)),
    "Q5_0": ((2, 64), Scheme(5, True, "group", 32)),
    "Q5_1": ((2, 32), Scheme(5, False, "group", 32)),
    "Q8_0": ((2, 32), Scheme(8, True, "channel", None)),
}


def integers(shape: tuple[int, int], scheme: Scheme) -> Integers:
    """Return the weight of formats.qtensor; scales have 6 significant bits, so that GGUF's minima are exact."""
    q = qtensor(shape, scheme)
    zero_point = None if q.qparams.zero_point is None else q.qparams.zero_point.numpy().astype(np.int8)
    scale = np.round(q.qparams.scale.numpy() * 2**13) / 2**13
    return Integers(q.codes.numpy(), scale.astype(np.float32), zero_point, scheme)


def packed() -> dict[str, list[str]]:
    """Return the rows of each sample as hexadecimal bytes."""
    found = {}
    for name, (shape, scheme) in BLOCKS.items():
        kind, reason = _gguf_blocks.block_type(scheme, shape[1])
        assert kind == name, reason
        found[name] = [row.tobytes().hex() for row in _gguf_blocks.pack(name, integers(shape, scheme), kind)]
    blocks = compressed_tensors.pack("golden", qtensor(*SAMPLES["super_blocks"]))["golden.weight_blocks"]
    found["Q4_K"] = [row.numpy().tobytes().hex() for row in blocks]
    for target in (gptq, awq):
        parts = target.pack("golden", integers((8, 32), Scheme(4, True, "group", 16)))
        found |= {f"{target.PACKING.name}.{part}": [values.tobytes().hex()] for part, values in parts.items()}
    parts = _onnx_blocks.pack(integers((2, 48), Scheme(4, False, "group", 16)))
    return found | {f"onnx.{part}": [values.tobytes().hex()] for part, values in parts.items()}


def read() -> dict[str, list[str]]:
    """Return what the file has."""
    content: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    FILE.write_text(json.dumps(packed(), indent=2) + "\n", encoding="utf-8")
