"""Bit for bit what the compressed-tensors package packs, writes into config.json and makes of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor, PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle import apply_quantization_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from golden.formats import qtensor
from zeropoint.formats import bits, compressed_tensors
from zeropoint.qparams.affine import dequantize
from zeropoint.types import Granularity, ScaleDtype, Scheme

LAYER = "layer"


def theirs(scheme: Scheme, targets: list[str] | None = None) -> QuantizationScheme:
    weights = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        strategy=scheme.granularity,
        group_size=scheme.group_size,
    )
    return QuantizationScheme(targets=targets or ["Linear"], weights=weights)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 100),
    width=st.integers(2, 8),
    dim=st.sampled_from([0, 1]),
    seed=st.integers(0, 9999),
)
def test_packing_is_theirs(rows: int, cols: int, width: int, dim: Literal[0, 1], seed: int) -> None:
    half = 1 << (width - 1)
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-half, half, (rows, cols), generator=random, dtype=torch.int8)
    packed = bits.pack(codes, width, dim=dim)
    assert torch.equal(packed, pack_to_int32(codes, width, packed_dim=dim))
    assert torch.equal(unpack_from_int32(packed, width, codes.shape, packed_dim=dim), codes)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", range(2, 9))
def test_tensors_are_theirs_and_they_read_ours(
    width: int, scale_dtype: ScaleDtype, symmetric: bool, granularity: Granularity
) -> None:
    size = 16 if granularity == "group" else None
    scheme = Scheme(width, symmetric, granularity, size, scale_dtype=scale_dtype)
    q = qtensor((9, 48), scheme)
    ours = {name.removeprefix(f"{LAYER}."): tensor for name, tensor in compressed_tensors.pack(LAYER, q).items()}
    weight = dequantize(q.codes, q.qparams, scheme)
    # They quantize the float weights again: a scale per tensor has no second dimension there.
    state = {"weight": weight, "weight_scale": ours["weight_scale"]}
    if q.qparams.zero_point is not None:
        zero_point = q.qparams.zero_point.to(torch.int8)
        state["weight_zero_point"] = zero_point.reshape(1) if granularity == "tensor" else zero_point
    compressed = PackedQuantizationCompressor.compress(state, theirs(scheme))
    assert sorted(compressed) == sorted(ours)
    for part, tensor in ours.items():
        assert tensor.dtype == compressed[part].dtype, part
        assert torch.equal(tensor, compressed[part]), part
    in_float32 = {**ours, "weight_scale": ours["weight_scale"].float()}
    assert torch.equal(PackedQuantizationCompressor.decompress(in_float32, theirs(scheme))["weight"], weight)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, True, "group", 32),
        Scheme(3, True, "channel", None),
        Scheme(8, True, "group", 16),
        Scheme(8, False, "tensor", None),
        Scheme(4, False, "group", 32),
    ],
)
def test_the_configuration_is_theirs(scheme: Scheme, tmp_path: Path) -> None:
    model = nn.ModuleDict({name: nn.Linear(64, 48, bias=False) for name in ("q_proj", "k_proj", "lm_head")})
    wanted = QuantizationConfig(config_groups={"group_0": theirs(scheme)}, ignore=["k_proj", "lm_head"])
    apply_quantization_config(model, wanted, show_progress=False)
    nn.init.ones_(model.get_parameter("q_proj.weight_scale"))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    (tmp_path / "config.json").write_text("{}")
    compressor.update_config(str(tmp_path))
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    ours = compressed_tensors.config({"q_proj": scheme, "k_proj": None})
    if not scheme.symmetric and scheme.granularity != "tensor":
        assert ours.pop("dequantize")  # for transformers: test_opens_in_transformers.py
    assert ours == written


def resolved(config: dict[str, Any], names: list[str]) -> dict[str, Scheme | None]:
    """Say what the package makes of a configuration, in our words."""
    with torch.device("meta"):
        model = nn.Module()
        for name in names:
            block, _, child = name.rpartition(".")
            if not hasattr(model, block):
                model.add_module(block, nn.Module())
            model.get_submodule(block).add_module(child, nn.Linear(64, 64, bias=False))
    apply_quantization_config(model, QuantizationConfig.model_validate(config), show_progress=False)
    found: dict[str, Scheme | None] = {}
    for name in names:
        scheme = getattr(model.get_submodule(name), "quantization_scheme", None)
        args = scheme.weights if scheme is not None else None
        found[name] = args and Scheme(args.num_bits, args.symmetric, args.strategy, args.group_size)
    return found


NAMES = [f"{block}.{child}" for block in ("a", "x") for child in ("q_proj", "k_proj", "up_proj", "down_proj")]
PATTERNS = ["Linear", "Module", "re:.*_proj$", "re:a", r"re:x\.[qk]_proj", "re:.*up", "re:_proj", "q_proj", *NAMES]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), st.integers(2, 8)), min_size=1))
def test_they_find_in_our_configuration_the_scheme_of_every_layer(widths: dict[str, int | None]) -> None:
    layers = {name: Scheme(widths[name] or 4, True, "group", 32) if widths.get(name) else None for name in NAMES}
    if any(layers.values()):
        assert resolved(compressed_tensors.config(layers), NAMES) == layers


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4), min_size=1, max_size=4),
    ignore=st.lists(st.sampled_from(PATTERNS[2:]), max_size=3),
)
def test_we_find_in_any_configuration_the_scheme_that_they_find(groups: list[list[str]], ignore: list[str]) -> None:
    config = compressed_tensors.config({"a.q_proj": Scheme()}) | {
        "config_groups": {
            str(index): theirs(Scheme(2 + index, True, "group", 32), targets).model_dump(mode="json")
            | {"format": "pack-quantized"}
            for index, targets in enumerate(groups)
        },
        "ignore": ignore,
    }
    assert compressed_tensors.schemes(config, NAMES) == resolved(config, NAMES)
