"""Gains that are stored less an offset; everything else of folding is in tests/conformance/test_transforms.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from unit.transforms.blocks import make
from zeropoint.transforms.fold import Fold, find_fold


@torch.inference_mode()
def test_a_channel_that_would_round_to_nothing_is_not_divided(tmp_path: Path) -> None:
    made = make(tmp_path / "model", dtype="bfloat16", norm_offset=1.0)
    fold = find_fold(made.block, made.flow, made.flow[0])
    assert isinstance(fold, Fold)
    scale = torch.full((64,), 2.0)
    scale[5] = 5000.0  # a gain of 1 / 5000, less 1, is -1 in bfloat16
    got = fold.apply(made.block, scale)
    name = "input_layernorm.weight"
    assert bool((got.tensors[name] + 1 != 0).all())
    assert torch.equal(got.tensors[name][5], made.block.tensors[name][5])
    expected = made.output()
    assert float((made.output(got) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.inference_mode()
def test_beside_float_weights_a_gain_with_an_offset_stays(tmp_path: Path) -> None:
    made = make(tmp_path / "model", dtype="bfloat16", norm_offset=1.0, kept=("self_attn.k_proj",))
    found = find_fold(made.block, made.flow, made.flow[0])
    assert found == "input_layernorm is stored less 1, so no scale is exact in self_attn.k_proj"
    plain = replace(made.block, config=replace(made.block.config, norm_offset=0.0))
    assert isinstance(find_fold(plain, made.flow, made.flow[0]), Fold)
