"""The ops of `models.parts.Ops` in torch: for calibration and evaluation, and as the reference that kernels must equal.

Everything runs under `torch.inference_mode` of the caller and may overwrite the fresh outputs of a linear, never a
weight and never an argument that a caller still needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zeropoint.errors import InputError
from zeropoint.models.rope import Rope
from zeropoint.qparams.affine import restore
from zeropoint.qparams.inputs import round_input
from zeropoint.runtime.cache import TorchLayerCache, in_halves, in_int8
from zeropoint.runtime.choices import CacheDtype
from zeropoint.types import InputParams, QParams, QTensor

_ACTIVATIONS = {
    "silu": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu_,
}

_DIFFERENTIABLE = _ACTIVATIONS | {"silu": F.silu, "relu": F.relu}

_CACHED: dict[str, Callable[[Tensor], Tensor]] = {"float16": in_halves, "float32": lambda x: x, "int8": in_int8}


@dataclass(frozen=True)
class TorchLinear:
    """A prepared weight: transposed, (cols, rows), contiguous; and how what it is multiplied with is rounded."""

    values: Tensor
    input: InputParams | None


class TorchOps:
    """Ops on torch tensors.

    dtype: of the linears and the attention. Norms, rope, softmax and the residual stream stay float32.
    kv_cache: what keys and values are rounded to, as if each had been in a cache of the native runtime.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, *, kv_cache: CacheDtype = "float32") -> None:
        if kv_cache not in _CACHED:
            raise InputError(f"the cache of keys and values is {kv_cache!r}; it must be one of {', '.join(_CACHED)}")
        self.dtype = dtype
        self._cached = _CACHED[kv_cache]

    def prepare(self, weight: Tensor | QTensor) -> TorchLinear:
        """Return the weight transposed, in `self.dtype`, and how it wants its input.

        On AVX2 the product with a transposed copy is up to twice as fast as F.linear's (docs/log.md).
        """
        values = restore(weight) if isinstance(weight, QTensor) else weight
        # transposed and converted in one go: a large head in float32 twice would be the most memory of a run
        transposed = torch.empty(values.shape[::-1], dtype=self.dtype).copy_(values.T)
        return TorchLinear(transposed, weight.input if isinstance(weight, QTensor) else None)

    def embed(self, tokens: Tensor, table: Tensor | QTensor) -> Tensor:
        if isinstance(table, Tensor):
            return F.embedding(tokens, table).float()
        rows = tokens.flatten()
        found = QTensor(table.codes[rows], QParams(table.qparams.scale[rows], None), table.scheme)
        return restore(found).view(*tokens.shape, -1)

    def linear(self, x: Tensor, weight: TorchLinear, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = (rows if weight.input is None else round_input(rows, weight.input)).to(self.dtype)
        y = rows @ weight.values if bias is None else torch.addmm(bias.to(self.dtype), rows, weight.values)
        return y.float().view(*x.shape[:-1], -1)

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), gain.float(), eps)

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)

    def rope(self, x: Tensor, rope: Rope, start: int) -> Tensor:
        cos, sin = (t[start : start + x.shape[-2]] for t in _rope_table(rope, _table_length(start + x.shape[-2])))
        low, high = x.chunk(2, dim=-1)  # (batch, heads, time, head_dim / 2) each
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, past: TorchLayerCache | None) -> Tensor:
        seen = 0
        k, v = self._cached(k), self._cached(v)
        if past is not None:
            seen = past.length
            k, v = past.append(k, v)
        q, k, v = (t.to(self.dtype) for t in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        if seen == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            time, total = q.shape[-2], k.shape[-2]
            mask = torch.ones(time, total, dtype=torch.bool).tril(diagonal=total - time)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return y.float().transpose(1, 2).flatten(-2)

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        return _ACTIVATIONS[activation](gate).mul_(up)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class DifferentiableOps(TorchOps):
    """The same in float32, for gradients: weights are plain (rows, cols), nothing is overwritten, nothing rounded."""

    def prepare(self, weight: Tensor | QTensor) -> Tensor:  # type: ignore[override]
        """Return the weight as plain float32 (rows, cols)."""
        return restore(weight) if isinstance(weight, QTensor) else weight.float()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        return F.linear(x, weight, bias)

    def rope(self, x: Tensor, rope: Rope, start: int) -> Tensor:
        cos, sin = (
            t[start : start + x.shape[-2]].clone() for t in _rope_table(rope, _table_length(start + x.shape[-2]))
        )
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, past: TorchLayerCache | None) -> Tensor:
        shared = q.shape[1] // k.shape[1]  # the fast kernel has no gradient for grouped heads
        k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        return _DIFFERENTIABLE[activation](gate) * up


def _table_length(positions: int) -> int:
    """Round up to a power of two, so that decoding token by token builds few tables."""
    return 1 << max(8, (positions - 1).bit_length())


@lru_cache(maxsize=8)
def _rope_table(rope: Rope, positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every angle: float32 (positions, head_dim / 2)."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), torch.from_numpy(rope.frequencies()))
    return angles.cos(), angles.sin()
