"""Scales in a compressed-tensors folder: how they are written without changing one, and read without trusting them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

from zeropoint.errors import CheckpointError, InternalError
from zeropoint.types import QTensor, ScaleDtype, Scheme, StoredArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def to_store(name: str, q: QTensor) -> Tensor:
    """Return the scale in its stored dtype and shape, having checked that this changes no value."""
    import torch

    scale = q.qparams.scale
    stored = scale.to(getattr(torch, q.scheme.scale_dtype), copy=True).contiguous()
    exact = _positive_and_finite(scale) and torch.equal(stored.to(scale.dtype), scale)
    if tuple(scale.shape) != shape_of(q.scheme, q.shape) or not exact:
        raise InternalError(
            f"{name}: scales of shape {tuple(scale.shape)} are not {shape_of(q.scheme, q.shape)}, "
            f"or not positive, finite and exact in {q.scheme.scale_dtype}"
        )
    return stored.reshape(1) if q.scheme.granularity == "tensor" else stored


def read(
    name: str, stored: StoredArray, scheme: Scheme, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], ScaleDtype]:
    """Return the scales in the shape of QParams, and the dtype they are stored in.

    Raises: CheckpointError, with the name, if they have not the dtype, shape or range they must.
    """
    import numpy as np

    expected = shape_of(scheme, shape)
    values = stored.values
    fits = values.size == 1 if scheme.granularity == "tensor" else values.shape == expected
    if not fits or stored.dtype not in get_args(ScaleDtype):
        raise CheckpointError(
            f"{name} is {stored.dtype} {values.shape}; it must be {' or '.join(get_args(ScaleDtype))} {expected}"
        )
    if stored.dtype == "bfloat16":  # the upper half of a float32
        scale = (values.astype(np.uint32) << 16).view(np.float32).reshape(expected)
    else:
        scale = values.astype(np.float32).reshape(expected)
    if not ((scale > 0) & np.isfinite(scale)).all():
        raise CheckpointError(f"{name} holds a scale that is not positive and finite")
    return scale, cast(ScaleDtype, stored.dtype)


def shape_of(scheme: Scheme, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of QParams for a weight of `shape`; per tensor the file has (1,) instead of (1, 1)."""
    rows, cols = shape
    return (1, 1) if scheme.granularity == "tensor" else (rows, scheme.groups(cols))


def _positive_and_finite(scale: Tensor) -> bool:
    return bool(((scale > 0) & scale.isfinite()).all())
