"""A tiny model's blocks, rounded to nearest and ready to be tuned, and what the float model makes of some inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.qparams.affine import quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.refine.tuned import TunedBlock, TunedGain, TunedLinear
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import QTensor, Scheme


def tiny_weights(folder: Path) -> Weights:
    """Return a tiny Llama in float32."""
    return Weights(open_checkpoint(make_llama(folder, dtype="float32")))


def tuned_block(weights: Weights, index: int, *, bits: int = 3, learns: bool = True) -> TunedBlock:
    """Return a block whose linears are rounded to nearest in groups of 16."""
    scheme = Scheme(bits, True, "group", 16)
    model = weights.model
    read = weights.float_block(index, {}).tensors
    linears, gains = {}, {}
    for name in (name for stage in model.flow for name in stage.linears):
        w = read[f"{name}.weight"]
        qparams = choose_qparams(w, scheme, "minmax")
        linears[name] = TunedLinear(QTensor(quantize(w, qparams, scheme), qparams, scheme), w if learns else None)
    for full, tensor in read.items():
        if tensor.ndim == 1:
            gains[full.removesuffix(".weight")] = TunedGain(tensor, torch.float32)
    return TunedBlock(model.config_of(index), model.flow, linears, gains, {})


def outputs(weights: Weights, index: int, x: Tensor) -> Tensor:
    """Return what the float block makes of x (windows, time, hidden)."""
    ops = TorchOps()
    return weights.block(index, ops).run(weights.model.flow, x.clone())
