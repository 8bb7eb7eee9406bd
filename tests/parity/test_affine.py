"""Scales, zero points, integers and values equal those of compressed-tensors, bit for bit, where both can say them."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.grouping import split
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Granularity, QParams, Scheme


def their_args(scheme: Scheme) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=scheme.bits,
        type="int",
        symmetric=scheme.symmetric,
        strategy=scheme.granularity,
        group_size=scheme.group_size if scheme.granularity == "group" else None,
    )


@pytest.mark.parametrize("kind", ["normal", "heavy tail", "one sided", "tiny"])
@pytest.mark.parametrize(
    ("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 32), ("group", 48)]
)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_everything_is_equal_with_float32_scales(
    bits: int, symmetric: bool, granularity: Granularity, group_size: int | None, kind: str
) -> None:
    scheme = Scheme(bits, symmetric, granularity, group_size, scale_dtype="float32")
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(bits))
    weight = {"normal": weight, "heavy tail": weight**5, "one sided": weight.abs(), "tiny": weight * 1e-20}[kind]
    args = their_args(scheme)
    low, high = minmax.from_values(split(weight, scheme), scheme, minmax.Options())
    scale, zero_point = calculate_qparams(low, high, args)
    ours = choose_qparams(weight, scheme, "minmax")
    assert torch.equal(ours.scale, scale)
    if ours.zero_point is None:
        assert not bool(zero_point.any())
    else:
        assert torch.equal(ours.zero_point, zero_point.to(torch.int32))
    codes = quantize(weight, ours, scheme)
    theirs = their_quantize(weight, scale, zero_point, args, dtype=torch.int8)
    assert torch.equal(codes, theirs)
    assert torch.equal(dequantize(codes, ours, scheme), their_dequantize(theirs, scale, zero_point, args))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_with_the_same_stored_scale_the_integers_are_equal(bits: int, symmetric: bool) -> None:
    scheme, weight = (
        Scheme(bits, symmetric, "group", 32),
        torch.randn(24, 96, generator=torch.Generator().manual_seed(0)),
    )
    ours: QParams = choose_qparams(weight, scheme, "mse")
    zero_point = torch.zeros_like(ours.scale) if ours.zero_point is None else ours.zero_point
    theirs = their_quantize(weight, ours.scale, zero_point.to(torch.int8), their_args(scheme), dtype=torch.int8)
    assert torch.equal(quantize(weight, ours, scheme), theirs)
