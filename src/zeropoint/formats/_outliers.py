"""Outlier columns in a compressed-tensors folder: an extension that only zeropoint reads, and that others refuse.

    NAME.outlier_columns  int32 (k,)      the columns that stay float, ascending; k may be 0
    NAME.outlier_weight   float (rows, k)   their weights, in the dtype of the model's float weights

beside the tensors of the quantized weight, whose codes stand for 0 in these columns. The package has no such thing, and
a reader that left it out would open the model and give wrong answers. So each group of config.json says it twice, and
either is enough for the package to refuse the model before a weight is read (tests/parity/test_outliers_are_refused):

    "format": "zeropoint-outliers"                       no name of a format that the package has
    "input_activations": {..., "outlier_threshold": 6}   a key that the package forbids there

The name of the method must stay "compressed-tensors": at another one transformers warns, and loads the codes as floats.
vLLM was not run; its source has no scheme for a format of another name, and raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from zeropoint.errors import CheckpointError, InternalError
from zeropoint.types import InputScheme, QTensor, StoredArray

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "zeropoint-outliers"
NOTE = (
    "outlier columns stay float, which only zeropoint can run: the compressed-tensors package, "
    "and transformers with it, refuses the model"
)


def stored(scheme: InputScheme | None) -> bool:
    """Say whether linears with this input have outlier columns, or could have some."""
    return scheme is not None and scheme.outlier_threshold is not None


def tensor_names(name: str, scheme: InputScheme | None) -> tuple[str, ...]:
    """Return the names of the tensors that a file holds for the outlier columns of the linear `name`."""
    return (f"{name}.outlier_columns", f"{name}.outlier_weight") if stored(scheme) else ()


def to_store(name: str, q: QTensor) -> list[Tensor]:
    """Return the tensors of `tensor_names`, in their order.

    Raises: InternalError, with the name, if there are other columns than weights for them.
    """
    import torch

    columns = () if q.input is None else q.input.outliers
    found = None if q.outliers is None else tuple(q.outliers.shape)
    expected = (q.shape[0], len(columns)) if q.input is not None and stored(q.input.scheme) else None
    if found != expected:
        raise InternalError(f"{name}: outlier weights of shape {found} are not {expected}")
    return [] if q.outliers is None else [torch.tensor(columns, dtype=torch.int32), q.outliers.clone().contiguous()]


def read(
    name: str, tensors: Mapping[str, StoredArray], scheme: InputScheme | None, shape: tuple[int, int]
) -> tuple[tuple[int, ...], StoredArray | None]:
    """Return the outlier columns of linear `name`, and their weights; () and None where the scheme has no threshold.

    tensors: those of `tensor_names` are among them. shape: of the linear's weight.
    Raises: CheckpointError, with the tensor's name, if one has not the dtype, shape or values it must.
    """
    if not stored(scheme):
        return (), None
    rows, cols = shape
    columns, weight = (tensors[part] for part in tensor_names(name, scheme))
    if columns.dtype != "int32" or columns.values.ndim != 1:
        raise CheckpointError(
            f"{name}.outlier_columns is {columns.dtype} {columns.values.shape}; it must be int32, of one dimension"
        )
    found = tuple(columns.values.tolist())
    if any(not 0 <= column < cols for column in found) or any(a >= b for a, b in pairwise(found)):
        raise CheckpointError(f"{name}.outlier_columns must be ascending and from 0 to {cols - 1}")
    if weight.dtype not in ("bfloat16", "float16", "float32") or weight.values.shape != (rows, len(found)):
        raise CheckpointError(
            f"{name}.outlier_weight is {weight.dtype} {weight.values.shape}; it must be bfloat16, float16 or float32 "
            f"({rows}, {len(found)})"
        )
    return found, weight
