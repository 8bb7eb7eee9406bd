"""What the record of a run says of how weights and inputs are spread, and of whether the calibration was enough."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import zeropoint.blocks
from architectures import make
from reference.spreading import disagreement
from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.evaluation.results import RECORD, QuantizeResult
from zeropoint.observe.data import bundled_text, calibration_batches
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import QTensor

SMALL = ["calibration.samples=6", "calibration.length=32", "calibration.held_out=0"]
TUNED = "[{method='descent'}, {method='learned', steps=4, every=2}, {method='distill', steps=2, every=1}]"
RECIPES = {
    "effort 0": ("w4a16", ["rounding=rtn", "calibration.tokens=random", "weights.group_size=32"]),
    "gptq": ("w4a16_asym", ["weights.group_size=32", "transforms=['smoothquant']"]),
    "refined": ("w4a16", ["weights.group_size=32", "rounding=gptaq", f"refine={TUNED}"]),
    "two levels": ("gguf_q4_k", []),
    "inputs": ("w8a8_static", ["activations.outlier_threshold=3"]),
    "tensor": ("w8a16", ["weights.granularity=tensor"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return make_llama(folder, hidden=256, intermediate=256, heads=4, head_dim=64, tied=False)


@pytest.mark.parametrize("name", RECIPES)
def test_every_linear_is_described_whatever_the_method(model: Path, tmp_path: Path, name: str) -> None:
    recipe, changes = RECIPES[name]
    result = quantize(model, tmp_path / "out", recipe=load_recipe(recipe, [*SMALL, *changes]))
    written = Weights(open_checkpoint(tmp_path / "out"))
    for row in result.layers:
        q, spread = written.linear(row.name), row.spreading
        assert isinstance(q, QTensor)
        assert spread is not None
        weights = row.shape[0] * row.shape[1]
        assert sum(bar.count for bar in spread.weights) == sum(spread.codes) == weights
        assert len(spread.codes) == 2**q.scheme.bits
        if name != "refined":  # the last method tunes the whole model, and rows are from before it
            counts = np.bincount(q.codes.numpy().ravel().astype(int) - spread.code_low, minlength=len(spread.codes))
            assert spread.codes == tuple(counts.tolist())
        assert row.sqnr_db is not None
        lost = 10 ** (-row.sqnr_db / 10)
        assert spread.clipped_error + spread.rounded_error == pytest.approx(lost, rel=1e-9)
        assert sum(bar.count for bar in spread.inputs) % row.shape[1] == 0
        assert spread.inputs
        assert spread.loud[0].ratio == max(one.ratio for one in spread.loud) >= 1
    assert QuantizeResult.load(tmp_path / "out" / RECORD) == result


def test_sufficiency_is_of_the_windows_that_were_read(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w4a16", [*SMALL, "weights.group_size=32", "calibration.batch=4"])
    result = quantize(model, tmp_path / "out", recipe=recipe)
    inputs = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    assert [row.layer for row in result.sufficiency] == [
        f"model.layers.{block}.{name}" for block in range(2) for name in inputs
    ]
    assert all(0 < row.disagreement < 1 for row in result.sufficiency)
    weights = Weights(open_checkpoint(model))
    text = calibration_batches(
        bundled_text("calibration"), load_tokenizer(weights.checkpoint), samples=6, length=32, seed=0, batch=4
    )
    x = torch.cat(list(weights.embed(TorchOps(), torch.from_numpy(text.tokens).long(), 4)))
    gain = weights.read("model.layers.0.input_layernorm.weight").float()
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain
    expected = disagreement(normed.double().numpy())
    assert result.sufficiency[0].disagreement == pytest.approx(expected, rel=1e-4)


def test_without_a_text_inputs_are_left_out(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w4a16", ["rounding=rtn", "range=minmax", "weights.group_size=32"])
    result = quantize(model, tmp_path / "out", recipe=recipe)
    assert result.sufficiency == ()
    for row in result.layers:
        assert row.spreading is not None
        assert (row.spreading.inputs, row.spreading.loud) == ((), ())
        assert row.spreading.weights


def test_embeddings_are_left_out(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w8a16", ["rounding=rtn", "range=minmax", "embeddings=int8"])
    rows = quantize(model, tmp_path / "out", recipe=recipe).layers
    assert {row.name for row in rows if row.spreading is None} == {"model.embed_tokens", "lm_head"}


def test_experts_are_described_but_for_hundreds_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "model", "mixtral", "window")
    changes = ["weights.group_size=16", "calibration.tokens=random", *SMALL]
    result = quantize(tmp_path / "model", tmp_path / "all", recipe=load_recipe("w4a16", changes))
    assert all(row.spreading is not None for row in result.layers)
    assert not [row.layer for row in result.sufficiency if "experts" in row.layer]
    assert result.sufficiency
    monkeypatch.setattr(zeropoint.blocks, "SPREAD_LAYERS", len(result.layers) - 1)
    fewer = quantize(tmp_path / "model", tmp_path / "few", recipe=load_recipe("w4a16", changes))
    for row, before in zip(fewer.layers, result.layers, strict=True):
        is_expert = row.sent_tokens is not None
        expected = None if is_expert else before.spreading
        assert msgspec.structs.replace(before, spreading=expected) == row
    assert any(row.spreading is None for row in fewer.layers)


def test_the_record_of_a_large_model_stays_small(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w8a16", [*SMALL, "calibration.tokens=random"])
    result = quantize(model, tmp_path / "out", recipe=recipe)
    (tmp_path / "record").mkdir()
    path = tmp_path / "record" / RECORD
    msgspec.structs.replace(result, layers=result.layers * 16).save(path)  # of 32 blocks
    assert path.stat().st_size < 2_000_000
    msgspec.structs.replace(result, layers=()).save(path)
    assert QuantizeResult.load(path).layers == ()
