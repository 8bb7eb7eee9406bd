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

    def embed(self, tokens: Tensor, table: Tensor | QTensor, factor: float = 1.0) -> Tensor:
        if isinstance(table, Tensor):
            found = F.embedding(tokens, table).float()
        else:
            rows = tokens.flatten()
            codes = QTensor(table.codes[rows], QParams(table.qparams.scale[rows], None), table.scheme)
            found = restore(codes).view(*tokens.shape, -1)
        return found if factor == 1.0 else found * factor

    def positions(self, tokens: Tensor, table: Tensor, start: int) -> Tensor:
        return table[start : start + tokens.shape[-1]].float().expand(*tokens.shape, -1)

    def linear(self, x: Tensor, weight: TorchLinear, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        rows = (rows if weight.input is None else round_input(rows, weight.input)).to(self.dtype)
        y = rows @ weight.values if bias is None else torch.addmm(bias.to(self.dtype), rows, weight.values)
        return y.float().view(*x.shape[:-1], y.shape[-1])

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), gain.float() + offset if offset else gain.float(), eps)

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), gain.float(), bias.float(), eps)

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)

    def split(self, x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return torch.split(x, list(widths), dim=-1)

    def rope(self, x: Tensor, rope: Rope, start: int) -> Tensor:
        cos, sin = (t[start : start + x.shape[-2]] for t in _rope_table(rope, _table_length(start + x.shape[-2])))
        return _rotated(x, cos, sin)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: TorchLayerCache | None,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        k, v = self._cached(k), self._cached(v)
        if past is not None:
            k, v = past.append(k, v)
        q, k, v = (t.to(self.dtype) for t in (q, k, v))
        mask = _mask(q.shape[-2], k.shape[-2], window)
        if softcap is not None:
            y = _capped_attention(q, k, v, mask, scale=scale, softcap=softcap)
        else:
            grouped = q.shape[1] != k.shape[1]
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
            )
        return y.float().transpose(1, 2).flatten(-2)

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        return _ACTIVATIONS[activation](gate).mul_(up)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return _ACTIVATIONS[activation](x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return x.div_(cap).tanh_().mul_(cap)

    def route(self, x: Tensor, count: int, *, normalized: bool) -> Tensor:
        weights, chosen = torch.topk(torch.softmax(x, dim=-1), count, dim=-1)
        if normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return torch.zeros_like(x).scatter(-1, chosen, weights)

    def sent(self, x: Tensor, routes: Tensor, expert: int) -> Tensor:
        return x.flatten(0, 1)[_tokens_of(routes, expert)][None]

    def add_sent(self, total: Tensor | None, y: Tensor, routes: Tensor, expert: int) -> Tensor:
        tokens = _tokens_of(routes, expert)
        weighed = y[0] * routes.flatten(0, 1)[tokens, expert, None]
        rows = y.new_zeros(routes[..., 0].numel(), y.shape[-1]) if total is None else total.flatten(0, 1)
        return rows.index_add(0, tokens, weighed).view(*routes.shape[:2], -1)


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
        return _rotated(x, cos, sin)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: TorchLayerCache | None,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        mask = _mask(q.shape[-2], k.shape[-2], window)
        if softcap is not None:
            y = _capped_attention(q, k, v, mask, scale=scale, softcap=softcap)
        else:
            shared = q.shape[1] // k.shape[1]  # the fast kernel has no gradient for grouped heads
            k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        return y.transpose(1, 2).flatten(-2)

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        return _DIFFERENTIABLE[activation](gate) * up

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return _DIFFERENTIABLE[activation](x)

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return torch.tanh(x / cap) * cap


def _tokens_of(routes: Tensor, expert: int) -> Tensor:
    """Return the numbers of the tokens, over all sequences, that are sent to an expert."""
    return routes[..., expert].flatten().nonzero()[:, 0]


def _mask(time: int, total: int, window: int | None) -> Tensor | None:
    """Return what the last `time` of `total` tokens see: bool (time, total); None if that is all up to themselves.

    None is for time = total only, where the kernels know such a mask by themselves.
    """
    windowed = window is not None and window < total
    if time == total and not windowed:
        return None
    sees = torch.ones(time, total, dtype=torch.bool).tril(diagonal=total - time)
    return sees.triu(diagonal=total - time - window + 1) if window is not None and windowed else sees


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float | None, softcap: float
) -> Tensor:
    """Return attention with capped scores, which no kernel of torch has: (batch, heads, time, head_dim).

    The scores of one sequence and one head of keys are in memory at once. mask: of `_mask`.
    """
    heads, time, head_dim = q.shape[1:]
    kv_heads, total = k.shape[1:3]
    sees = torch.ones(time, total, dtype=torch.bool).tril() if mask is None else mask
    grouped = q.view(len(q), kv_heads, heads // kv_heads, time, head_dim)
    grouped = grouped * (head_dim**-0.5 if scale is None else scale)

    def of_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.tanh(q @ k.T / softcap) * softcap  # (heads of this group, time, total)
        return torch.softmax(scores.masked_fill(~sees, -torch.inf), dim=-1) @ v

    rows = [torch.cat([of_head(*head) for head in zip(*row, strict=True)]) for row in zip(grouped, k, v, strict=True)]
    return torch.stack(rows)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (..., time, head_dim) with its first features rotated. cos, sin: (time, half of those features)."""
    half = cos.shape[-1]
    low, high, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)


def _table_length(positions: int) -> int:
    """Round up to a power of two, so that decoding token by token builds few tables."""
    return 1 << max(8, (positions - 1).bit_length())


@lru_cache(maxsize=8)
def _rope_table(rope: Rope, positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every angle, times the rope's factor: float32 (positions, rotated / 2)."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), torch.from_numpy(rope.frequencies()))
    return angles.cos() * rope.factor, angles.sin() * rope.factor
