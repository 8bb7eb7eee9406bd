"""What `embeddings = "int8"` and "int4" write, and what is run from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropoint
from reference.affine import quantize as reference_code
from reference.affine import scale_of
from tiny import make_gguf, make_llama
from zeropoint import embeddings
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import CheckpointError, InputError, NonFiniteError
from zeropoint.planning.schemes import int4
from zeropoint.recipe import Recipe
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
VOCAB, HIDDEN = 300, 64
TOKENS = list(range(3, 60))
RTN: dict[str, Any] = {"weights": Scheme(group_size=32), "rounding": "rtn", "range": "minmax"}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "model", tied=request.param, dtype="bfloat16")


def quantized(model: Path, output: Path, kind: Any, **more: Any) -> zeropoint.QuantizeResult:
    return zeropoint.quantize(model, output, recipe=Recipe(embeddings=kind, **RTN, **more))


def exact(folder: Path, runtime: Any, tokens: list[int] = TOKENS) -> np.ndarray[Any, Any]:
    options: dict[str, Any] = {"activations": "float"} if runtime == "native" else {}
    return zeropoint.load(folder, runtime=runtime, kv_cache="float32", **options).logits(tokens)


def stored_table(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """What the tensors of an int8 table stand for."""
    tensors = load_file(folder / "model.safetensors")
    found: np.ndarray[Any, Any] = (tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"].float()).numpy()
    return found


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 16 / HIDDEN), ("int4", 4 + 16 / HIDDEN)])
def test_the_file_shrinks_by_what_the_tables_are_smaller(model: Path, tmp_path: Path, kind: str, bits: float) -> None:
    plain, made = quantized(model, tmp_path / "plain", "stored"), quantized(model, tmp_path / "made", kind)
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    scales_again = 2 * VOCAB if tied and kind == "int8" else 0
    expected = VOCAB * HIDDEN * bits / 8
    assert plain.size.embedding_bytes == VOCAB * HIDDEN * 2
    assert made.size.embedding_bytes == expected
    assert made.size.head_bytes == (scales_again if tied else expected)
    assert made.size.weights == plain.size.weights
    assert made.size.bits_per_weight == plain.size.bits_per_weight
    files = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "made")]
    saved = (1 if tied else 2) * (VOCAB * HIDDEN * 2 - expected) - scales_again
    assert files[0] - files[1] == pytest.approx(saved, abs=400)  # names of tensors in the header


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_native_and_torch_run_the_same_numbers(model: Path, tmp_path: Path, kind: str) -> None:
    quantized(model, tmp_path / "out", kind)
    expected, found = exact(tmp_path / "out", "torch"), exact(tmp_path / "out", "native")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    runner = zeropoint.load(tmp_path / "out").runner
    assert isinstance(runner, NativeRunner)
    assert runner.embeddings == kind


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.05), ("int4", 0.8)])
def test_the_logits_are_those_of_the_float_tables_but_for_their_rounding(
    model: Path, tmp_path: Path, kind: str, most: float
) -> None:
    quantized(model, tmp_path / "plain", "stored")
    quantized(model, tmp_path / "made", kind)
    expected, found = (exact(tmp_path / name, "native") for name in ("plain", "made"))
    assert 0 < np.abs(found - expected).max() < most * np.abs(expected).max()


def test_codes_and_scales_are_those_of_the_formula(model: Path, tmp_path: Path) -> None:
    quantized(model, tmp_path / "out", "int8")
    source = load_file(model / "model.safetensors")[f"{EMBEDDING}.weight"].double()
    made = load_file(tmp_path / "out" / "model.safetensors")
    for row in range(0, VOCAB, 37):
        values = source[row].tolist()
        scale = float(torch.tensor(scale_of(min(values), max(values), 8, symmetric=True)).bfloat16())
        assert float(made[f"{EMBEDDING}.weight_scale"][row]) == scale
        assert made[f"{EMBEDDING}.weight"][row].tolist() == [reference_code(v, scale, 0, 8) for v in values]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_slabs_change_no_byte(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    whole = quantized(model, tmp_path / "whole", kind)
    monkeypatch.setattr(embeddings, "SLAB_VALUES", 7 * HIDDEN)
    slabs = quantized(model, tmp_path / "slabs", kind)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "slabs")]
    assert files[0] == files[1]
    assert slabs.layers[-1].sqnr_db == pytest.approx(whole.layers[-1].sqnr_db)


def test_the_result_has_a_row_for_each_table(model: Path, tmp_path: Path) -> None:
    result = quantized(model, tmp_path / "out", "int8")
    rows = [row for row in result.layers if row.name in (EMBEDDING, HEAD)]
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    assert [row.name for row in rows] == ([EMBEDDING] if tied else [EMBEDDING, HEAD])
    assert {(row.shape, row.scheme, row.rounding) for row in rows} == {((VOCAB, HIDDEN), "int8 channel sym", "rtn")}
    assert all(row.sqnr_db is not None and 35 < row.sqnr_db < 55 for row in rows)
    shown = {row.name.removesuffix(".weight"): row for row in zeropoint.inspect(tmp_path / "out").tensors}
    against = zeropoint.inspect(tmp_path / "out", reference=model).tensors
    measured = {row.name.removesuffix(".weight"): row for row in against}
    for row in rows:
        assert shown[row.name].stored == row.scheme
        assert shown[row.name].shape == row.shape
        assert shown[row.name].sqnr_db == row.sqnr_db == pytest.approx(measured[row.name].sqnr_db)


@pytest.mark.parametrize("given", ["both", "head"])
def test_a_tied_table_under_both_names_or_the_other_is_written_once(tmp_path: Path, given: str) -> None:
    plain = make_llama(tmp_path / "plain", dtype="bfloat16")
    other = make_llama(tmp_path / "other", dtype="bfloat16")
    tensors = load_file(other / "model.safetensors")
    tensors[f"{HEAD}.weight"] = tensors[f"{EMBEDDING}.weight"].clone()
    if given == "head":
        del tensors[f"{EMBEDDING}.weight"]
    save_file(tensors, other / "model.safetensors")
    for source in (plain, other):
        quantized(source, tmp_path / f"{source.name}-out", "int8")
    files = [(tmp_path / f"{name}-out" / "model.safetensors").read_bytes() for name in ("plain", "other")]
    assert files[0] == files[1]


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_table_of_a_gguf_file_is_quantized_from_its_values(tmp_path: Path, quantization: Any) -> None:
    source = make_gguf(tmp_path / "model.gguf", quantization=quantization)
    quantized(source, tmp_path / "out", "int8")
    values = open_checkpoint(source).read(f"{EMBEDDING}.weight").numpy()
    steps = np.abs(values).max(axis=1, keepdims=True) / 127.5
    # half a step; as much again at the upper end of the grid, where bfloat16 made the scale smaller
    assert np.all(np.abs(stored_table(tmp_path / "out", EMBEDDING) - values) < 1.01 * steps)


def test_float32_and_float16_tables_are_read_as_such(tmp_path: Path) -> None:
    made = []
    for dtype in ("float32", "float16"):
        source = make_llama(tmp_path / dtype, dtype=dtype)  # type: ignore[arg-type]
        quantized(source, tmp_path / f"{dtype}-out", "int8")
        made.append(stored_table(tmp_path / f"{dtype}-out", EMBEDDING))
    assert np.abs(made[0] - made[1]).max() < 0.02 * np.abs(made[0]).max()


@pytest.mark.parametrize(("cols", "group"), [(576, 64), (2048, 64), (96, 32), (80, 40), (50, 50), (67, 1)])
def test_int4_has_the_widest_groups_that_the_columns_and_the_kernels_allow(cols: int, group: int) -> None:
    assert int4(cols).group_size == group


def test_groups_that_no_kernel_has_run_as_floats(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "model", hidden=80, heads=2, intermediate=96)
    zeropoint.quantize(
        source, tmp_path / "out", recipe=Recipe(**RTN | {"weights": Scheme(group_size=16)}, embeddings="int4")
    )
    expected, found = exact(tmp_path / "out", "torch"), exact(tmp_path / "out", "native")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    runner = zeropoint.load(tmp_path / "out").runner
    assert isinstance(runner, NativeRunner)
    assert EMBEDDING in runner.expanded


def test_tables_can_be_all_that_is_quantized(model: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict({"embeddings": "int8", "rounding": "rtn", "rules": [{"layers": "*", "keep_float": True}]})
    result = zeropoint.quantize(model, tmp_path / "out", recipe=recipe)
    assert {row.name for row in result.layers} <= {EMBEDDING, HEAD}
    assert np.abs(exact(tmp_path / "out", "native") - exact(model, "native")).max() < 0.5
    with pytest.raises(InputError, match="is quantized already"):
        quantized(tmp_path / "out", tmp_path / "again", "int8")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_asking_for_int8_at_run_time_leaves_integers_as_they_are(model: Path, tmp_path: Path, kind: str) -> None:
    quantized(model, tmp_path / "out", kind)
    stored, asked = (zeropoint.load(tmp_path / "out", embeddings=choice) for choice in ("stored", "int8"))
    assert np.array_equal(stored.logits(TOKENS), asked.logits(TOKENS))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_panels_of_a_table_take_what_the_file_does(model: Path, tmp_path: Path, kind: str) -> None:
    quantized(model, tmp_path / "plain", "stored")
    quantized(model, tmp_path / "out", kind)
    plain, made = (NativeRunner(Weights(open_checkpoint(tmp_path / name))) for name in ("plain", "out"))
    tables = len(Weights(open_checkpoint(model)).tables)
    smaller = tables * VOCAB * HIDDEN * (2 - (1 if kind == "int8" else 0.5))
    assert plain.weight_bytes - made.weight_bytes == pytest.approx(smaller, rel=0.1)


def test_a_table_that_is_not_finite_is_an_error_with_its_name(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "model", tied=False)
    tensors = load_file(source / "model.safetensors")
    tensors[f"{HEAD}.weight"][200, 3] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(NonFiniteError, match=rf"{HEAD}\.weight: "):
        quantized(source, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_than_that_of_the_file_is_refused(model: Path, tmp_path: Path) -> None:
    quantized(model, tmp_path / "out", "int8")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": VOCAB - 8}))
    with pytest.raises(CheckpointError, match=rf"{EMBEDDING}\.weight has the shape \(300, 64\), .* vocabulary of 292"):
        zeropoint.load(tmp_path / "out")


def test_what_is_judged_is_what_the_file_holds(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The miller kept three cats, and the cats kept the mill free of mice. " * 20)
    quantized(model, tmp_path / "out", "int4")
    judged = [
        zeropoint.evaluate(tmp_path / "out", reference=model, text=text, length=32, max_windows=3, runtime=runtime)
        for runtime in ("native", "torch")
    ]
    assert [result.embeddings for result in judged] == ["int4", "int4"]
    assert judged[0].kl_mean == pytest.approx(judged[1].kl_mean, rel=0.1)  # native rounds activations, too
