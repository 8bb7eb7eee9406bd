from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reference.smoothquant import shared, smooth
from unit.transforms.blocks import W8, Made, make
from zeropoint.models.parts import FloatBlock
from zeropoint.transforms import Rewritten
from zeropoint.transforms.smoothquant import Options, transform
from zeropoint.transforms.strengths import GRID, START
from zeropoint.types import InputScheme

INPUTS = [InputScheme(), InputScheme(dynamic=False), InputScheme(dynamic=False, symmetric=False)]


def smoothed(made: Made, strength: float) -> Rewritten:
    return transform(made.block, made.flow, made.stats(), Options(strength), lambda block: 0.0)


def double(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.85, 1.0])
@torch.inference_mode()
def test_the_formula_is_the_papers(strength: float, tmp_path: Path) -> None:
    made = make(tmp_path / "model", attention_bias=True, mlp_bias=True).with_outliers(8.0)
    got, inputs, before = smoothed(made, strength).block.tensors, made.inputs(), made.block.tensors
    for stage in made.flow:
        if stage.fed_by == "self_attn.v_proj":
            continue  # its columns share scales: below
        weights = [double(before[f"{name}.weight"]) for name in stage.linears]
        s, _, expected = smooth(double(inputs[stage]), weights, strength)
        for name, weight in zip(stage.linears, expected, strict=True):
            rows = smooth(double(inputs[made.flow[3]]), [double(before["mlp.down_proj.weight"])], strength)[0]
            wanted = weight / rows[:, None] if name == "mlp.up_proj" else weight
            if name != "self_attn.v_proj":
                assert np.allclose(double(got[f"{name}.weight"]), wanted, rtol=1e-5)
        feeder = double(before[f"{stage.fed_by}.{'bias' if stage.fed_by == 'mlp.up_proj' else 'weight'}"])
        part = got[f"{stage.fed_by}.{'bias' if stage.fed_by == 'mlp.up_proj' else 'weight'}"]
        assert np.allclose(double(part), feeder / s, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.inference_mode()
def test_columns_that_one_value_row_feeds_share_a_scale(kv_heads: int, tmp_path: Path) -> None:
    made = make(tmp_path / "model", kv_heads=kv_heads, attention_bias=True).with_outliers(8.0)
    got, stage = smoothed(made, 0.5).block.tensors, made.flow[1]
    group, head_dim = 4 // kv_heads, 16
    rows = [(j // head_dim // group) * head_dim + j % head_dim for j in range(64)]  # of v, for each column of o
    weight = double(made.block.tensors["self_attn.o_proj.weight"])
    s = shared(rows, double(made.inputs()[stage]), [weight], 0.5)
    assert np.allclose(double(got["self_attn.o_proj.weight"]), weight * s, rtol=1e-5)
    of_row = np.array([s[rows.index(row)] for row in range(kv_heads * head_dim)])
    bias = double(made.block.tensors["self_attn.v_proj.bias"])
    assert np.allclose(double(got["self_attn.v_proj.bias"]), bias / of_row, rtol=1e-5)


@pytest.mark.parametrize("inputs", INPUTS, ids=lambda scheme: scheme.label())
@torch.inference_mode()
def test_outliers_cost_several_times_less(inputs: InputScheme, tmp_path: Path) -> None:
    made = make(tmp_path / "model").with_outliers(50.0)
    # the functions of q and k stay tame, so that attention is no coin toss
    tensors = dict(made.block.tensors)
    for name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
        tensors[name] = tensors[name].clone()
        tensors[name][:, [1, 7]] = 0
    made = Made(FloatBlock(made.block.name, made.block.config, tensors, made.block.dtypes), made.flow, made.x)
    error = made.trial(inputs).error
    found = transform(made.block, made.flow, made.stats(), Options(), error)
    half = transform(made.block, made.flow, made.stats(), Options(0.5), error)
    before = error(made.block)
    assert error(half.block) < before / 4
    assert error(found.block) < before / 4
    assert error(found.block) <= error(half.block)


@torch.inference_mode()
def test_the_search_ends_where_no_neighbour_on_the_grid_is_better(tmp_path: Path) -> None:
    made = make(tmp_path / "model").with_outliers(8.0)
    error, stats = made.trial().error, made.stats()
    found = transform(made.block, made.flow, stats, Options(), error)
    assert any(note.strength in GRID for note in found.notes)
    by_hand = made.block
    for stage, note in zip(made.flow, found.notes, strict=True):
        tried = {0.0: by_hand}
        for strength in GRID:
            tried[strength] = transform(by_hand, (stage,), stats, Options(strength), error).block
        at = GRID.index(note.strength) if note.strength else START
        neighbours = (0.0, *GRID[max(0, at - 1) : at + 2])
        assert all(error(tried[note.strength]) <= error(tried[strength]) for strength in neighbours)
        by_hand = tried[note.strength]
    assert error(found.block) == error(by_hand)


@torch.inference_mode()
def test_a_search_that_finds_nothing_better_changes_nothing(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    found = transform(made.block, made.flow, made.stats(), Options(), lambda block: float(block is not made.block))
    assert all(tensor is made.block.tensors[name] for name, tensor in found.block.tensors.items())
    assert [note.strength for note in found.notes] == [0.0] * 4


@torch.inference_mode()
def test_dead_channels_keep_their_weights(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    made.block.tensors["input_layernorm.weight"][3] = 0
    for name in made.flow[0].linears:
        made.block.tensors[f"{name}.weight"][:, 5] = 0
    got = smoothed(made, 0.5).block.tensors
    assert torch.equal(got["self_attn.q_proj.weight"][:, 3], made.block.tensors["self_attn.q_proj.weight"][:, 3])
    assert got["input_layernorm.weight"][5] == made.block.tensors["input_layernorm.weight"][5]
    assert all(tensor.isfinite().all() for tensor in got.values())


@torch.inference_mode()
def test_a_stage_that_stays_float_is_left_alone(tmp_path: Path) -> None:
    made = make(tmp_path / "model", kept=("mlp.down_proj",))
    got = smoothed(made, 0.5)
    assert [note.strength for note in got.notes] == [0.5, 0.5, 0.5, 0.0]
    assert got.block.tensors["mlp.down_proj.weight"] is made.block.tensors["mlp.down_proj.weight"]


@torch.inference_mode()
def test_a_norm_that_feeds_two_stages_is_not_folded_into_and_said(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    flow = (*made.flow[:2], replace(made.flow[2], fed_by="input_layernorm"), made.flow[3])
    stats = {stage: made.stats()[old] for stage, old in zip(flow, made.flow, strict=True)}
    got = transform(made.block, flow, stats, Options(0.5), lambda block: 0.0)
    assert got.notes[0].fallback == "input_layernorm feeds mlp.gate_proj, mlp.up_proj too"
    assert got.notes[2].fallback is not None
    assert [note.strength for note in got.notes] == [0.0, 0.5, 0.0, 0.5]
    assert got.block.tensors["input_layernorm.weight"] is made.block.tensors["input_layernorm.weight"]


@torch.inference_mode()
def test_weights_that_stay_bfloat16_are_moved_by_powers_of_two(tmp_path: Path) -> None:
    made = make(tmp_path / "model", dtype="bfloat16", kept=("self_attn.k_proj",)).with_outliers(8.0)
    got = smoothed(made, 0.5).block.tensors["self_attn.k_proj.weight"]
    ratio = (got / made.block.tensors["self_attn.k_proj.weight"]).nan_to_num(1.0)
    assert torch.equal(ratio.log2(), ratio.log2().round())
    assert not torch.equal(ratio, torch.ones_like(ratio))


def test_the_trial_counts_what_is_quantized_only(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    with torch.inference_mode():
        assert made.trial(inputs=None, scheme=None).error(made.block) == 0  # type: ignore[arg-type]
        weights_only, both = made.trial(inputs=None).error(made.block), made.trial().error(made.block)
        coarse = made.trial(inputs=None, scheme=replace(W8, bits=4)).error(made.block)
    assert 0 < weights_only < both < coarse < 1


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_trial_leaves_outlier_columns_float(tmp_path: Path, dynamic: bool) -> None:
    made = make(tmp_path / "model").with_outliers(30.0)
    plain = InputScheme(dynamic=dynamic)
    with torch.inference_mode():
        errors = [
            made.trial(inputs=scheme).error(made.block) for scheme in (plain, replace(plain, outlier_threshold=20.0))
        ]
        none = made.trial(inputs=replace(plain, outlier_threshold=1e6)).error(made.block)
    assert errors[1] < errors[0] / 2
    assert none == errors[0]
