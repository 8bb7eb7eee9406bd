"""[low, high] -> scale and zero point: the only owner of zero, tiny, huge and non-finite ranges.

    asymmetric   S = (high - low) / (q_max - q_min)                 Z = clamp(round(q_min - low / S), q_min, q_max)
    symmetric    S = max(|low|, |high|) / ((q_max - q_min) / 2)     Z = 0

The symmetric divisor is that of compressed-tensors, 7.5 for 4 bits: the grid [-8 S, 7 S] lies around the range with
half a step missing above and half a step to spare below. (The other convention, q_max, never uses the lowest code.)

What happens at the edges:

- A range that does not contain 0 is extended to it.
- S is rounded to the dtype it will be stored in before Z, or any code, is computed from it: to nearest, or up where
  nearest would leave an end of the range more than half a step outside the grid. That happens to 8-bit asymmetric
  scales in bfloat16, whose 8 bits of precision are one too few to hit the 255th step, and below the normal numbers
  of a dtype. There is no threshold: a range of 1e-30 is treated like a range of 1, as long as the dtype can hold its
  scale, and the smallest positive number of the dtype is used for ranges too small even for that.
- An empty range (all zeros) gets S = 1: zeros come back as zeros.
- A scale above the largest number of its dtype, or one with which S * (q - Z) could overflow float32, is refused;
  clipping the weights to make it fit would be a silent loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.qparams.grouping import check_scheme
from zeropoint.types import QParams, Scheme

_FLOAT32_MAX = torch.finfo(torch.float32).max
_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def from_range(low: Tensor, high: Tensor, scheme: Scheme) -> QParams:
    """Return the scale and zero point whose grid covers [low, high], element by element.

    low, high: (rows, groups), or any one shape; used as float32. Returns qparams of that shape.
    from_range(k * low, k * high) is k * from_range(low, high) exactly for every power of two k, as long as neither
    leaves the normal numbers of the scale's dtype.

    Raises: NonFiniteError for NaN or infinity; SchemeError for a range too wide for the scale's dtype. Neither
    message has the tensor's name, which is not known here.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3; the exact zero is theirs.
    """
    check_scheme(scheme)
    low, high = low.float(), high.float()
    require_finite(low, "lower ends of ranges")
    require_finite(high, "upper ends of ranges")
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = scheme.q_max - scheme.q_min
    if scheme.symmetric:
        return QParams(_scale(torch.maximum(-low, high), steps / 2, scheme), None)
    scale = _scale(high - low, steps, scheme)
    zero_point = torch.round(scheme.q_min - low / scale).clamp_(scheme.q_min, scheme.q_max)
    return QParams(scale, zero_point.to(torch.int32))


def _scale(extent: Tensor, steps: float, scheme: Scheme) -> Tensor:
    """Return extent / steps as float32 that the scheme's dtype can store, > 0. Raises: SchemeError when too large.

    extent: float32 >= 0, the length that `steps` steps have to cover.
    """
    dtype = _STORED[scheme.scale_dtype]
    significant = scheme.scale_bits
    # float64: below the normal numbers of float32 the quotient itself would lose the bits that decide between nearest
    # and up. Above, this is bit for bit the float32 quotient: 53 bits are more than twice 24 and two.
    wanted = extent.double() / steps
    nearest = (wanted if significant is None else _rounded(wanted, significant)).to(dtype)
    falls_short = (steps + 0.5) * nearest.double() < extent
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    if significant is not None:  # one of the fewer steps further; below the normal numbers those of the dtype are wider
        above = torch.maximum(above, (nearest.double() + _step(wanted, significant)).to(dtype))
    stored = torch.where(falls_short, above, nearest)
    scale = torch.where(extent == 0, 1.0, stored.float())
    furthest = -scheme.q_min if scheme.symmetric else scheme.q_max - scheme.q_min  # the largest |q - Z|
    if not bool((scale.double() * furthest <= _FLOAT32_MAX).all()):
        instead = "use scale_dtype = 'bfloat16'" if dtype == torch.float16 else "leave this tensor in float"
        raise SchemeError(
            f"values that reach {extent.max().item():.4g} need a scale of {wanted.max().item():.4g}, "
            f"which {scheme.label()} with {scheme.scale_dtype} scales cannot hold; {instead}"
        )
    return scale


def as_stored(scale: Tensor, scheme: Scheme) -> Tensor:
    """Return float32 scales as they come back from what the scheme stores; a gradient passes as if unchanged."""
    if scheme.scale_bits is not None:
        scale = scale + (_rounded(scale, scheme.scale_bits) - scale).detach()  # exact: the two are near
    return scale.to(_STORED[scheme.scale_dtype]).float()


def _rounded(values: Tensor, significant: int) -> Tensor:
    """Return the nearest numbers with so many significant bits, ties to even."""
    step = _step(values, significant)
    return torch.round(values.detach() / step) * step


def _step(values: Tensor, significant: int) -> Tensor:
    """Return how far apart numbers of so many significant bits are around `values`."""
    _, exponent = torch.frexp(values.detach())  # in [2^(exponent - 1), 2^exponent)
    return torch.ldexp(torch.ones_like(values), exponent - significant)


def require_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError if any of `what` is NaN or infinite, saying how many are and where the first one is."""
    # the extremes of what holds a NaN are NaN: one pass, and no mask as large as the values
    if values.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
        finite = torch.isfinite(values)
        where = torch.nonzero(~finite)
        raise NonFiniteError(
            f"{len(where)} of {values.numel()} {what} are NaN or infinite, the first at {tuple(where[0].tolist())}; "
            "only finite numbers can be quantized"
        )
