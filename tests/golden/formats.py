"""Quantized weights for the tests of formats, and the golden files that `pack` is compared with.

    python tests/golden/formats.py compressed_tensors      writes tests/golden/compressed_tensors.safetensors anew

Golden files are written once, on purpose, and read by every later version: a change in them is a change of the format,
and a model written before it can no longer be read. Their content comes from integer arithmetic alone, so that no
library's random numbers can change it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zeropoint import find
from zeropoint.qparams.levels import qparams_of
from zeropoint.types import Levels, QParams, QTensor, Scheme

FOLDER = Path(__file__).parent

SAMPLES: dict[str, tuple[tuple[int, int], Scheme]] = {
    "four": ((6, 64), Scheme(4, True, "group", 32)),
    "narrow": ((6, 64), Scheme(4, True, "group", 64, narrow=True)),
    "three": ((5, 40), Scheme(3, True, "channel", None)),
    "two": ((3, 33), Scheme(2, True, "tensor", None)),
    "eight": ((4, 24), Scheme(8, True, "group", 8, scale_dtype="float16")),
    "four_asymmetric": ((9, 64), Scheme(4, False, "group", 16, scale_dtype="float32")),
    "five_asymmetric": ((7, 21), Scheme(5, False, "channel", None)),
    "super_blocks": ((3, 512), Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)),
    "eight_asymmetric": ((4, 24), Scheme(8, False, "tensor", None)),
}
"""One layer each; between them every granularity, symmetric or not, every scale dtype, straddling and padded rows."""


def qtensor(shape: tuple[int, int], scheme: Scheme) -> QTensor:
    """Return a weight whose codes and zero points run through the whole grid, and whose scales are exact in 8 bits."""
    rows, cols = shape
    levels = scheme.q_max - scheme.q_min + 1
    codes = (torch.arange(rows * cols) * 5 + torch.arange(rows * cols) // 7) % levels + scheme.q_min
    groups = (1, 1) if scheme.granularity == "tensor" else (rows, scheme.groups(cols))
    ordinal = torch.arange(groups[0] * groups[1]).reshape(groups)
    if scheme.super_size is not None:
        supers = torch.arange(rows * cols // scheme.super_size).reshape(rows, -1)
        d, d_min = ((1024 + 37 * (supers + at)).float() * 2.0**-24 for at in (0, 1))
        k, m = ((ordinal * step % 63 + least).to(torch.uint8) for step, least in ((11, 1), (17, 0)))
        qparams = qparams_of(Levels(d, d_min, k, m), scheme)
        return QTensor(codes.to(torch.int8).reshape(shape), qparams, scheme)
    scale = (128 + ordinal % 128).float() * 2.0 ** (-12 - ordinal % 3)
    zero_point = (ordinal * 3 % levels + scheme.q_min).to(torch.int32)
    return QTensor(
        codes.to(torch.int8).reshape(shape), QParams(scale, None if scheme.symmetric else zero_point), scheme
    )


def golden_path(name: str) -> Path:
    """Return the golden file of the format `name`."""
    return FOLDER / f"{name}.safetensors"


def packed(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what the format `name` makes of the samples it supports: the tensors, and the configuration of each."""
    module = find.load("formats", name)
    tensors: dict[str, Tensor] = {}
    configs = {}
    for layer, (shape, scheme) in SAMPLES.items():
        if module.supports(scheme, shape) is None:
            tensors |= module.pack(layer, qtensor(shape, scheme))
            configs[layer] = json.dumps(module.config({layer: scheme, "float": None}), sort_keys=True)
    return tensors, configs


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and configurations of a golden file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


if __name__ == "__main__":
    made, described = packed(sys.argv[1])
    save_file(made, golden_path(sys.argv[1]), metadata=described)
