"""Outlier columns from calibration to the written file, on a tiny model with a planted outlier channel."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.evaluation.results import QuantizeResult
from zeropoint.inspection import inspect
from zeropoint.pipeline import quantize
from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.recipe import load_recipe
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.runtime.torch_runner import TorchRunner
from zeropoint.runtime.weights import Weights
from zeropoint.types import QTensor

SMALL = ["calibration.samples=4", "calibration.length=32"]
PLAIN = ["transforms=[]", "rounding=rtn", "range=minmax"]
TOKENS = list(range(7, 300, 11))
CHANNEL, SIZE = 17, 60.0
READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
SCHEMES = {
    "dynamic": ["activations.dynamic=true"],
    "static": ["activations.dynamic=false", "activations.symmetric=false"],
    "gptq": ["rounding=gptq", "rounding.act_order=false", "range=mse"],
    "int4": ["weights.bits=4", "weights.granularity=group", "weights.group_size=32", "rounding=gptq"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose norms make one channel 60 times larger, and whose linears take it as much smaller."""
    folder = make_llama(tmp_path_factory.mktemp("models") / "planted", hidden=64, intermediate=96, tied=False)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[CHANNEL] *= SIZE
        if name.split(".")[-2] in READERS:
            tensor[:, CHANNEL] /= SIZE
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def error(folder: Path, base: Path) -> float:
    """The mean squared error of the logits."""
    found = TorchRunner(Weights(open_checkpoint(folder))).logits(TOKENS)
    return float(np.square(found - TorchRunner(Weights(open_checkpoint(base))).logits(TOKENS)).mean())


def made(base: Path, output: Path, *overrides: str) -> QuantizeResult:
    return quantize(base, output, recipe=load_recipe("w8a8", [*SMALL, *PLAIN, *overrides]))


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_a_planted_outlier_costs_less_when_it_stays_float(base: Path, tmp_path: Path, name: str) -> None:
    made(base, tmp_path / "plain", *SCHEMES[name])
    result = made(base, tmp_path / "mixed", *SCHEMES[name], "activations.outlier_threshold=12")
    assert {row.outlier_columns for row in result.layers if row.kind in READERS} == {1}
    assert {row.outlier_columns for row in result.layers if row.kind not in READERS} == {0}
    assert error(tmp_path / "mixed", base) < error(tmp_path / "plain", base) / 20


@pytest.mark.parametrize("name", SCHEMES)
def test_the_file_holds_the_columns_and_nothing_else_sees_them(base: Path, tmp_path: Path, name: str) -> None:
    made(base, tmp_path / "out", *SCHEMES[name], "activations.outlier_threshold=12")
    weights, original = Weights(open_checkpoint(tmp_path / "out")), Weights(open_checkpoint(base))
    for layer in weights.schemes:
        q, weight = weights.linear(layer), original.float_linear(layer)
        assert isinstance(q, QTensor)
        assert q.input is not None
        assert q.outliers is not None
        columns = list(q.input.outliers)
        assert columns == ([CHANNEL] if layer.rpartition(".")[2] in READERS else [])
        assert torch.equal(q.outliers, weight[:, columns])
        assert not dequantize(q.codes, q.qparams, q.scheme)[:, columns].any()
        assert torch.equal(weights.restored_linear(layer)[:, columns], weight[:, columns])
        if name in ("dynamic", "static"):  # min-max of each row
            others = [column for column in range(weight.shape[1]) if column not in columns]
            assert torch.equal(q.qparams.scale, choose_qparams(weight[:, others], q.scheme, "minmax").scale)
        if name == "static" and columns:
            assert q.input.scale is not None
            assert 255 * q.input.scale < 24  # the planted channel reaches far more


def test_gptq_puts_no_error_of_other_columns_on_them(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base")
    made(base, tmp_path / "out", *SCHEMES["gptq"], "activations.outlier_threshold=2.5")
    weights = Weights(open_checkpoint(tmp_path / "out"))
    for layer in weights.schemes:
        q = weights.linear(layer)
        assert isinstance(q, QTensor)
        assert q.input is not None
        assert q.input.outliers or layer.endswith(("down_proj", "o_proj"))
        assert not q.codes[:, list(q.input.outliers)].any()


def test_the_scale_of_a_weight_is_not_that_of_its_outliers(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.split(".")[-2] in READERS:
            tensor[:, CHANNEL] *= 1000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scales = []
    for model, output in ((base, tmp_path / "a"), (folder, tmp_path / "b")):
        made(model, output, "activations.outlier_threshold=12")
        q = Weights(open_checkpoint(output)).linear("model.layers.0.self_attn.q_proj")
        assert isinstance(q, QTensor)
        scales.append(q.qparams.scale)
    assert torch.equal(*scales)


def test_the_error_of_a_layer_is_that_of_its_whole_output(base: Path, tmp_path: Path) -> None:
    """As the rounding of the other columns is all that is lost, an output of mostly the outlier loses little of it."""
    folder = tmp_path / "large"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][:, CHANNEL] *= 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    errors = []
    for model, output in ((base, tmp_path / "a"), (folder, tmp_path / "b")):
        row = made(model, output, *SCHEMES["gptq"], "activations.outlier_threshold=12").layers[0]
        assert row.output_error is not None
        errors.append(row.output_error)
    assert 0 < errors[1] < errors[0] / 100


@pytest.mark.parametrize("name", SCHEMES)
def test_the_native_runtime_computes_what_torch_does(base: Path, tmp_path: Path, name: str) -> None:
    made(base, tmp_path / "out", *SCHEMES[name], "activations.outlier_threshold=12")
    weights = Weights(open_checkpoint(tmp_path / "out"))
    found = [NativeRunner(weights, cache="float32").logits([token]) for token in TOKENS]
    expected = [TorchRunner(weights).logits([token]) for token in TOKENS]
    differences = [float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)]
    assert np.median(differences) < 1e-4  # a tie between two codes may fall otherwise, see test_native_inputs


def test_weights_of_a_bfloat16_model_stay_bfloat16_and_count_as_bits(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", dtype="bfloat16")
    result = made(base, tmp_path / "out", "activations.outlier_threshold=2.5")
    q = Weights(open_checkpoint(tmp_path / "out")).linear("model.layers.0.self_attn.q_proj")
    assert isinstance(q, QTensor)
    assert q.outliers is not None
    assert q.outliers.dtype == torch.bfloat16
    counted = sum((row.outlier_columns or 0) * (2 * row.shape[0] + 4) for row in result.layers)
    assert result.size.outlier_bytes == counted > 0
    plain = made(base, tmp_path / "plain")
    assert plain.size.bits_per_weight is not None
    expected = plain.size.bits_per_weight + 8 * counted / plain.size.linear_weights
    assert result.size.bits_per_weight == pytest.approx(expected)


def test_smoothing_goes_with_outliers(base: Path, tmp_path: Path) -> None:
    result = made(base, tmp_path / "out", "activations.outlier_threshold=12", "transforms=['smoothquant']")
    assert all(row.error_after <= row.error_before for row in result.transforms)
    assert error(tmp_path / "out", base) < 0.1


def test_a_threshold_that_nothing_reaches_changes_no_logit(base: Path, tmp_path: Path) -> None:
    made(base, tmp_path / "plain")
    result = made(base, tmp_path / "none", "activations.outlier_threshold=100000")
    assert {row.outlier_columns for row in result.layers} == {0}
    for runner in (TorchRunner, NativeRunner):
        found = [runner(Weights(open_checkpoint(tmp_path / name))).logits(TOKENS) for name in ("plain", "none")]
        assert np.array_equal(*found)


def test_it_is_said_who_can_open_the_result_before_anything_is_read(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "zeropoint"):
        plain = made(base, tmp_path / "plain")
        assert not caplog.records
        result = made(base, tmp_path / "out", "activations.outlier_threshold=12")
    assert [record.getMessage() for record in caplog.records] == [result.format_note]
    assert result.format_note is not None
    assert "only zeropoint" in result.format_note
    assert plain.format_note is None
    assert QuantizeResult.load(tmp_path / "out" / "zeropoint.json") == result
    assert msgspec.json.decode(msgspec.json.encode(result.recipe)) == result.recipe


def test_an_inspection_counts_the_columns(base: Path, tmp_path: Path) -> None:
    made(base, tmp_path / "out", "activations.outlier_threshold=12")
    found = {row.kind: row for row in inspect(tmp_path / "out", reference=base).tensors if row.role == "linear"}
    assert {kind: row.outlier_columns for kind, row in found.items() if kind in READERS} == dict.fromkeys(READERS, 1)
    assert found["o_proj"].outlier_columns == 0
    assert found["q_proj"].size_bytes == 64 * 64 + 64 * 2 + 64 * 4 + 4
    assert found["q_proj"].sqnr_db is not None
