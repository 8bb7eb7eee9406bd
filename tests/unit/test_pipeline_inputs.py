"""What the pipeline finds for the inputs of linears."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import make_llama
from zeropoint import evaluate, inspect
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.evaluation.results import Evaluation, QuantizeResult
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import bundled_text, calibration_batches
from zeropoint.observe.walk import observe, walk
from zeropoint.pipeline import quantize
from zeropoint.qparams.choose_input import choose_input_range, needs
from zeropoint.qparams.inputs import input_params
from zeropoint.recipe import load_recipe
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import InputScheme, QTensor

SMALL = ["calibration.samples=4", "calibration.length=32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("rule", ["minmax", "percentile", "moving_average", "auto"])
def test_every_stage_is_observed_as_the_written_model_feeds_it(base: Path, tmp_path: Path, rule: str) -> None:
    overrides = [
        *SMALL,
        "transforms=[]",
        "static_error_limit=none",
        f"activation_range={rule}",
    ]  # the original's weights are those that are fed
    quantize(base, tmp_path / "out", recipe=load_recipe("w8a8_static", overrides))
    weights, original = Weights(open_checkpoint(tmp_path / "out")), Weights(open_checkpoint(base))
    text = calibration_batches(
        bundled_text("calibration"), load_tokenizer(weights.checkpoint), samples=4, length=32, seed=0, batch=4
    )
    ops, seen = TorchOps(), 0
    with torch.inference_mode(), Activations(limit_bytes=1 << 30) as activations:
        activations.extend(weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch))
        for visit in walk(weights.model, partial(weights.block, ops=ops), activations):
            stats, scheme = observe(visit, needs(rule)), InputScheme(dynamic=False, symmetric=False)
            names = [f"{weights.model.block_name(visit.index)}.{local}" for local in visit.stage.linears]
            found = choose_input_range(stats, rule, None, scheme, [original.float_linear(name) for name in names])
            expected = input_params(found.low, found.high, scheme)
            for name in names:
                linear = weights.linear(name)
                assert isinstance(linear, QTensor)
                assert linear.input == expected
                seen += 1
    assert seen == 14


def test_a_row_says_how_the_input_is_rounded(base: Path, tmp_path: Path) -> None:
    overrides = [
        "rounding=rtn",
        "range=minmax",
        "transforms=[]",
        "rules.0.layers=*.down_proj",
        "rules.0.activations=float",
    ]
    result = quantize(base, tmp_path / "out", recipe=load_recipe("w8a8", [*SMALL, *overrides]))
    assert result.calibration is None  # dynamic scales need none
    assert {(row.kind == "down_proj", row.input_scheme) for row in result.layers} == {
        (True, None),
        (False, "int8 token"),
    }
    assert QuantizeResult.load(tmp_path / "out" / "zeropoint.json") == result


def test_a_range_that_measures_outputs_leaves_transformed_weights_to_be_quantized(base: Path, tmp_path: Path) -> None:
    smooth = [*SMALL, "transforms=[{method = 'smoothquant', strength = 0.5}]"]
    stored = []
    for rule in ("minmax", "auto"):
        recipe = load_recipe("w8a8_static", [*smooth, f"activation_range={rule}"])
        quantize(base, tmp_path / rule, recipe=recipe)
        weights = Weights(open_checkpoint(tmp_path / rule))
        names = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj"))
        stored.append([weights.restored_linear(name) for name in names])
    assert all(torch.equal(one, other) for one, other in zip(*stored, strict=True))


def test_inputs_above_the_limit_are_dynamic_in_the_file_and_named_in_the_result(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w8a8_static", [*SMALL, "static_error_limit=1e-4"])
    result = quantize(base, tmp_path / "out", recipe=recipe)
    for row in result.layers:
        assert row.input_error is not None
        above = row.input_error > 1e-4
        assert row.input_scheme == ("int8 token" if above else "int8 static asym")
        assert row.fallbacks == ((f"{row.name}: {row.input_fallback}",) if above else ())
    dynamic = {row.name for row in result.layers if row.input_fallback is not None}
    assert 0 < len(dynamic) < len(result.layers)
    for block in range(2):  # one input, one way to round it
        stem = f"model.layers.{block}.self_attn"
        assert len({f"{stem}.{name}_proj" in dynamic for name in "qkv"}) == 1
    weights = Weights(open_checkpoint(tmp_path / "out"))
    assert {name for name, scheme in weights.inputs.items() if scheme == InputScheme()} == dynamic
    assert QuantizeResult.load(tmp_path / "out" / "zeropoint.json") == result
    judged = evaluate(tmp_path / "out", reference=base, text=bundled_text("judge"), length=32, max_windows=4)
    named = Evaluation.load(tmp_path / "out" / "results.json").fallbacks
    assert named == judged.fallbacks == tuple(fallback for row in result.layers for fallback in row.fallbacks)
    assert all(row.stored == "int8 channel sym" for row in inspect(tmp_path / "out").tensors if row.role == "linear")


def test_a_limit_of_nothing_gives_the_file_of_the_dynamic_recipe(base: Path, tmp_path: Path) -> None:
    unsmoothed = [*SMALL, "transforms=[]"]
    quantize(base, tmp_path / "none", recipe=load_recipe("w8a8_static", [*unsmoothed, "static_error_limit=0"]))
    quantize(base, tmp_path / "dynamic", recipe=load_recipe("w8a8", unsmoothed))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "dynamic" / name).read_bytes()


def test_inputs_with_massive_activations_are_dynamic_where_the_recipe_says_so(base: Path, tmp_path: Path) -> None:
    massive = make_llama(tmp_path / "massive")
    tensors = load_file(massive / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"][7] = 20_000.0
    save_file(tensors, massive / "model.safetensors", metadata={"format": "pt"})
    plain, found = [*SMALL, "transforms=[]", "static_error_limit=none"], []
    for asked in ("static", "dynamic"):
        recipe = load_recipe("w8a8_static", [*plain, f"massive_inputs={asked}"])
        result = quantize(massive, tmp_path / asked, recipe=recipe)
        found.append({row.name: row.input_fallback for row in result.layers if row.input_fallback is not None})
    assert found[0] == {}
    gate, up, down = (f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down"))
    assert set(found[1]) == {gate, up, down}  # gate and up make more of channel 7 than any other input has
    assert "massive activation at position" in str(found[1][gate])
    assert "channel 7:" in str(found[1][gate])
    assert found[1][gate] == found[1][up] != found[1][down]
    groups = json.loads((tmp_path / "dynamic" / "config.json").read_text())["quantization_config"]["config_groups"]
    targets = {group["input_activations"]["strategy"]: group["targets"] for group in groups.values()}
    assert set(targets["token"]) == set(found[1])
    assert len(targets["tensor"]) == 11
