"""What the pipeline finds for the inputs of linears."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.evaluation.results import QuantizeResult
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
    quantize(base, tmp_path / "out", recipe=load_recipe("w8a8_static", [*SMALL, f"activation_range={rule}"]))
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
    overrides = ["rules.0.layers=*.down_proj", "rules.0.activations=float"]
    result = quantize(base, tmp_path / "out", recipe=load_recipe("w8a8", [*SMALL, *overrides]))
    assert result.calibration is None  # dynamic scales need none
    assert {(row.kind == "down_proj", row.input_scheme) for row in result.layers} == {
        (True, None),
        (False, "int8 token"),
    }
    assert QuantizeResult.load(tmp_path / "out" / "zeropoint.json") == result


def test_a_range_that_measures_outputs_leaves_the_transformed_weights_to_be_quantized(base: Path, tmp_path: Path) -> None:
    smooth = [*SMALL, "transforms=[{method = 'smoothquant', strength = 0.5}]"]
    stored = []
    for rule in ("minmax", "auto"):
        recipe = load_recipe("w8a8_static", [*smooth, f"activation_range={rule}"])
        quantize(base, tmp_path / rule, recipe=recipe)
        weights = Weights(open_checkpoint(tmp_path / rule))
        names = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj"))
        stored.append([weights.restored_linear(name) for name in names])
    assert all(torch.equal(one, other) for one, other in zip(*stored, strict=True))
