"""What every observer asks of activations: finite numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from zeropoint.errors import NonFiniteError


def check_finite(summary: Tensor, x: Tensor) -> None:
    """Raise NonFiniteError when `summary`, which NaN or infinity anywhere in `x` makes non-finite, is not finite.

    The summary is what the observer computes anyway (extremes, a sum of squares): no second pass over x. The message
    says "activations"; the walk, which knows it, adds the layer's name.
    """
    if bool(torch.isfinite(summary).all()):
        return
    wrong = int((~torch.isfinite(x)).sum())
    if wrong:
        raise NonFiniteError(f"{wrong} of {x.numel()} activations are NaN or infinite; statistics need finite numbers")
    raise NonFiniteError(f"the activations reach {float(x.abs().max()):.4g}, whose square float32 cannot hold")
