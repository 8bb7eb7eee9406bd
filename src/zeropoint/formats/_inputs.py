"""What compressed-tensors says about the input of a linear: `input_activations` of its group, and two tensors.

    dynamic   strategy "token": the reader finds a scale for each token, and nothing is stored
    static    strategy "tensor", and    NAME.input_scale       float32 (1,)
                                        NAME.input_zero_point  int8 (1,), asymmetric only

The reader computes as qparams/inputs.py does, in the dtype that the model is opened in: in float32 its integers are
ours; in bfloat16 it rounds the scale and the quotient too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from zeropoint.errors import CheckpointError
from zeropoint.types import InputParams, InputScheme, StoredArray

if TYPE_CHECKING:
    from torch import Tensor


class Arguments(msgspec.Struct, frozen=True):
    """What a config group says of weights and of inputs alike; keys that are not listed do not change the numbers."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    dynamic: bool | str = False


class Stored(Arguments, frozen=True):
    """`input_activations` of a config group."""

    outlier_threshold: Annotated[float, msgspec.Meta(gt=0)] | None = None


def tensor_names(name: str, scheme: InputScheme | None) -> tuple[str, ...]:
    """Return the names of the tensors that a file holds for the input of the linear `name`."""
    if scheme is None or scheme.dynamic:
        return ()
    parts = ("input_scale",) if scheme.symmetric else ("input_scale", "input_zero_point")
    return tuple(f"{name}.{part}" for part in parts)


def to_store(params: InputParams) -> list[Tensor]:
    """Return the tensors of `tensor_names`, in their order."""
    import torch

    if params.scale is None:
        return []
    scale = torch.tensor([params.scale], dtype=torch.float32)
    zero_point = torch.tensor([params.zero_point], dtype=torch.int8)
    return [scale] if params.scheme.symmetric else [scale, zero_point]


def read(name: str, stored: Mapping[str, StoredArray], scheme: InputScheme | None) -> InputParams | None:
    """Return how the input of linear `name` is rounded; `tensor_names` are in `stored`.

    Raises: CheckpointError, with the tensor's name, if one has not the dtype, shape or range it must.
    """
    import numpy as np

    if scheme is None or scheme.dynamic:
        return None if scheme is None else InputParams(scheme)
    scale = stored[f"{name}.input_scale"]
    if scale.dtype not in ("bfloat16", "float16", "float32") or scale.values.size != 1:
        raise CheckpointError(
            f"{name}.input_scale is {scale.dtype} {scale.values.shape}; it must be one bfloat16, float16 or float32"
        )
    values = scale.values.reshape(1)
    if scale.dtype == "bfloat16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    found = float(values[0])
    if not 0 < found < float("inf"):
        raise CheckpointError(f"{name}.input_scale is {found}; a scale must be positive and finite")
    if scheme.symmetric:
        return InputParams(scheme, found)
    zero_point = stored[f"{name}.input_zero_point"]
    if zero_point.dtype != "int8" or zero_point.values.size != 1:
        raise CheckpointError(
            f"{name}.input_zero_point is {zero_point.dtype} {zero_point.values.shape}; it must be one int8"
        )
    return InputParams(scheme, found, int(zero_point.values.reshape(1)[0]))


def to_config(scheme: InputScheme | None) -> dict[str, Any] | None:
    """Return `input_activations` for the group of a scheme."""
    if scheme is None:
        return None
    return {
        "dynamic": scheme.dynamic,
        "group_size": None,
        "num_bits": scheme.bits,
        "strategy": "token" if scheme.dynamic else "tensor",
        "symmetric": scheme.symmetric,
        "type": "int",
        **({} if scheme.outlier_threshold is None else {"outlier_threshold": scheme.outlier_threshold}),
    }


def from_config(where: str, stored: Stored | None) -> InputScheme | None:
    """Return the scheme that `input_activations` describes.

    Raises: CheckpointError, beginning with `where`, for what is not integers of 8 bits by token or static by tensor.
    """
    if stored is None:
        return None
    strategy = stored.strategy or "tensor"
    dynamic = strategy == "token"
    if stored.type != "int" or stored.num_bits != 8 or stored.dynamic is not dynamic or strategy not in _STRATEGIES:
        raise CheckpointError(
            f"{where}: input_activations of type {stored.type!r}, {stored.num_bits} bits, strategy {strategy!r}, "
            f"dynamic {stored.dynamic} are not supported; int of 8 bits is, dynamic by token or static by tensor"
        )
    if dynamic and not stored.symmetric:
        raise CheckpointError(f"{where}: input_activations that are dynamic and asymmetric are not supported")
    return InputScheme(stored.num_bits, dynamic, stored.symmetric, stored.outlier_threshold)


_STRATEGIES = ("token", "tensor")
