"""NaN or infinity in a stored tensor is found when the tensor is first read, and said with its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zeropoint.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

SLAB_VALUES = 1 << 18
"""Looked at together: the answers for so many values are in memory, whatever the size of the tensor."""


def require_finite(name: str, values: Tensor) -> Tensor:
    """Return `values`, a contiguous tensor or some rows of one, if there is no NaN or infinity among them.

    Raises: NonFiniteError with the tensor's name.
    """
    import torch

    if values.is_floating_point():
        for slab in torch.split(values.reshape(-1), SLAB_VALUES):
            wrong = slab.numel() - int(torch.isfinite(slab).sum())
            if wrong:
                raise NonFiniteError(
                    f"{name}: {wrong} of {slab.numel()} values are NaN or infinite; only finite numbers can be "
                    "quantized, get the file again"
                )
    return values
