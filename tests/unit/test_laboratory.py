from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import make_llama, quantized
from zeropoint.errors import InputError, RecipeError
from zeropoint.evaluation.results import InputInspection, InputRow
from zeropoint.laboratory import DYNAMIC, RULES, inspect_inputs, octave_bars, samples_to_add
from zeropoint.observe.histogram import Observer

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("laboratory") / "model", layers=3)


@pytest.fixture(scope="module")
def result(model: Path) -> InputInspection:
    return inspect_inputs(model, layer="re:.*[.]1[.]mlp[.].*", samples=25, length=32)


def row(result: InputInspection, name: str = DOWN) -> InputRow:
    return next(one for one in result.layers if one.name == name)


def test_every_layer_of_the_pattern_has_each_rule_and_the_dynamic_scale(result: InputInspection) -> None:
    assert [one.name.rpartition(".")[2] for one in result.layers] == ["gate_proj", "up_proj", "down_proj"]
    for one in result.layers:
        assert [r.rule for r in one.ranges] == [*RULES, DYNAMIC]
        assert one.best == min(one.ranges[:-1], key=lambda r: r.output_error).rule
        assert one.auto in RULES
        for r in one.ranges[:-1]:
            assert r.low is not None
            assert r.high is not None
            assert r.low <= 0 <= r.high
            assert 0 <= r.clipped < 1
            assert r.disagreement is not None
    gate, up = result.layers[:2]
    assert [(r.low, r.high, r.clipped) for r in gate.ranges] == [(r.low, r.high, r.clipped) for r in up.ranges]
    assert result.text.windows == 25
    assert result.held_out_windows == 5


def test_min_max_clips_nothing_that_it_has_seen_and_rounds_the_coarsest(result: InputInspection) -> None:
    minmax, *others = row(result).ranges[:-1]
    assert minmax.clipped == minmax.clipping_error == 0
    assert minmax.rounding_error == pytest.approx(minmax.output_error)
    assert all(one.rounding_error <= minmax.rounding_error * 1.05 for one in others)
    assert row(result).ranges[-1].output_error < minmax.output_error


def test_the_bars_count_every_value_of_the_calibration(result: InputInspection) -> None:
    bars = row(result).histogram
    assert sum(bar.count for bar in bars) == 20 * 32 * 96
    assert all(one.high == other.low for one, other in pairwise(bars))


def test_asked_for_rules_and_symmetric_ranges(model: Path) -> None:
    found = row(inspect_inputs(model, layer=DOWN, samples=9, length=32, rules=("mse", "auto"), symmetric=True))
    assert [one.rule for one in found.ranges] == ["mse", "auto", DYNAMIC]
    assert all(one.zero_point == 0 for one in found.ranges[:-1])


def test_a_massive_activation_of_the_first_token_is_found(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    weights = load_file(folder / "model.safetensors")
    # a norm whose gain is large in one channel: the input of q_proj has it at every position
    weights["model.layers.0.input_layernorm.weight"][7] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = inspect_inputs(folder, layer="*.q_proj", samples=9, length=16).layers[0]
    assert {at.channel for at in found.massive} == {7}
    assert found.massive[0].ratio > 1000
    assert found.first_token_ratio == pytest.approx(1, abs=1)


def test_what_cannot_be_inspected_is_said_in_a_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"matches none of the 21 layers; .*'model.layers.0.self_attn.q_proj'"):
        inspect_inputs(model, layer="down_proj")
    with pytest.raises(InputError, match="quantized already"):
        inspect_inputs(quantized(tmp_path), layer="*")
    with pytest.raises(RecipeError, match="did you mean 'entropy'"):
        inspect_inputs(model, layer="*", rules=("entropie",))
    with pytest.raises(InputError, match="4 windows of 16 tokens are too few"):
        inspect_inputs(model, layer="*", samples=4, length=16)


def test_samples_to_add_follow_the_root_of_their_number() -> None:
    t = 0.05
    assert samples_to_add(t, 100, t) == samples_to_add(math.sqrt(2) * t, 100, t) == 0
    assert samples_to_add(2 * math.sqrt(2) * t, 100, t) == 300
    # where the law holds, the advice brings two calibrations of means to the tolerance: simulated
    draws = torch.randn(4000, 400, generator=torch.Generator().manual_seed(0)).double() + 4
    n = 16
    halves = draws[:, : n // 2].mean(1) - draws[:, n // 2 : n].mean(1)
    disagreement = float(halves.square().mean().sqrt()) / 4
    enough = n + samples_to_add(disagreement, n, 0.05)
    wholes = draws[:, :enough].mean(1) - draws[:, enough : 2 * enough].mean(1)
    assert float(wholes.square().mean().sqrt()) / 4 == pytest.approx(0.05, rel=0.1)


def test_the_bars_are_powers_of_two_down_to_the_narrowest_range() -> None:
    observer = Observer()
    observer.update(torch.tensor([[-3.0, -0.1, 0.2, 0.3, 900.0]]))
    bars = octave_bars(observer.result(), [900.0, 7.0])
    filled = [(bar.low, bar.high, bar.count) for bar in bars if bar.count]
    assert filled == [(-4.0, -2.0, 1), (-2.0, 2.0, 3), (512.0, 1024.0, 1)]
    assert octave_bars(Observer().result(), []) == ()
