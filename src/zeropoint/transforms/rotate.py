"""Rotation: the residual stream is put into a basis in which no channel is an outlier, and so are the values of heads.

    x' = x Q        W' = W diag(g) Q      of every linear that reads the stream through a norm of gain g, now 1
                    W' = Q^T W, b' = b Q  of every linear that adds to it
    v' = v R        head by head: the rows of v_proj and its bias, and the columns of o_proj

An RMS norm without its gain commutes with Q, because it divides by the length of x; attention mixes tokens and no
features of a value. Q and R are Hadamard matrices with random signs (hadamard.py). Weights and inputs then have no
large columns, and one scale serves all of them.

Q is that of the whole model: embedding, last norm and head take part (outer.py). Nothing is rotated at run time, since
the readers of the file would not do it: the input of down_proj, a product, stays as it is, and so do queries and keys.
Source: Ashkboos et al. 2024 (QuaRot), arXiv:2404.00456, section 4, stages 1a and 1b without the online rotations;
the seeds of a random Q matter, Liu et al. 2024 (SpinQuant), arXiv:2405.16406.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from zeropoint.errors import SchemeError
from zeropoint.models.parts import Config, FloatBlock, Flow, Rows, Stage
from zeropoint.transforms import OutputError, Rewritten, StageNote
from zeropoint.transforms.fold import with_rows
from zeropoint.transforms.hadamard import Rotation, rotation
from zeropoint.types import Stats

NEEDS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """residual: rotate the stream. heads: rotate values. seed: of the signs; None is the calibration's."""

    residual: bool = True
    heads: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


def residual_rotation(config: Config, options: Options) -> Rotation | None:
    """Return Q, or None where the stream is to stay as it is."""
    return rotation(config.hidden_size, options.seed or 0) if options.residual else None


def transform(
    block: FloatBlock,
    flow: Flow,
    stats: Mapping[Stage, Mapping[str, Stats]],
    options: Options,
    error: OutputError,
) -> Rewritten:
    """Return the block of the rotated stream: x Q -> y Q. The strength of a stage is 1 where its input is rotated.

    Raises: SchemeError where a stage touches the stream in a way that does not commute with Q.
    """
    tensors = dict(block.tensors)
    q = residual_rotation(block.config, options)
    if q is not None:
        for stage in flow:
            _rotate_stream(tensors, stage, q, block)
    if options.heads:
        r = rotation(block.config.head_dim, options.seed or 0)
        for stage in flow:
            if stage.values:
                _rotate_values(tensors, stage, stage.rows_of(block.config), r)
    for name, dtype in block.dtypes.items():
        if tensors[name] is not block.tensors[name]:
            tensors[name] = tensors[name].to(dtype).float()
    moved = ((stage.values and options.heads) or (stage.residual == "reads" and options.residual) for stage in flow)
    notes = tuple(StageNote(stage.linears, float(its)) for stage, its in zip(flow, moved, strict=True))
    return Rewritten(replace(block, tensors=tensors), notes)


def why_not(flow: Flow) -> str | None:
    """Return why a stream that passes through these stages cannot be rotated, or None."""
    for stage in flow:
        if stage.residual is None:
            return f"what {', '.join(stage.linears)} do with the residual stream does not commute with a rotation"
    return None


def _rotate_stream(tensors: dict[str, Tensor], stage: Stage, q: Rotation, block: FloatBlock) -> None:
    """Rotate in place what a stage reads from the residual stream or adds to it."""
    offset = block.config.norm_offset
    if stage.residual is None:
        raise SchemeError(f"{block.name}: {why_not((stage,))}; leave rotate out, or set its residual = false")
    if stage.residual == "reads":
        gain = tensors[f"{stage.fed_by}.weight"] + offset
        if gain.ndim != 1 or f"{stage.fed_by}.bias" in tensors:
            raise SchemeError(
                f"{block.name}: {stage.fed_by} is no RMS norm, and no other commutes with a rotation; "
                "leave rotate out, or set its residual = false"
            )
    for name in stage.linears:
        weight = tensors[f"{name}.weight"]
        if stage.residual == "reads":
            tensors[f"{name}.weight"] = q.rotate(weight, gain)
        elif stage.residual == "adds":
            tensors[f"{name}.weight"] = q.rotate(weight.T).T.contiguous()
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = q.rotate(tensors[f"{name}.bias"])
    if stage.residual == "reads":
        tensors[f"{stage.fed_by}.weight"] = torch.ones_like(gain) - offset


def _rotate_values(tensors: dict[str, Tensor], stage: Stage, rows: Rows, r: Rotation) -> None:
    """Rotate in place the outputs of the linear that makes the values, and the columns that read them, head by head.

    rows: of that linear, which make the values.
    """
    for name in (f"{stage.fed_by}.weight", f"{stage.fed_by}.bias"):
        if name in tensors:
            part = tensors[name][rows]  # (kv heads * head_dim, hidden), or without hidden
            rotated = _in_heads(part.T, r).T.contiguous() if part.ndim == 2 else _in_heads(part, r)
            tensors[name] = with_rows(tensors[name], rows, rotated)
    for name in stage.linears:
        tensors[f"{name}.weight"] = _in_heads(tensors[f"{name}.weight"], r)


def _in_heads(x: Tensor, r: Rotation) -> Tensor:
    """Return x (..., heads * head_dim) with the features of each head rotated."""
    return r.rotate(x.reshape(*x.shape[:-1], -1, r.size)).flatten(-2)
