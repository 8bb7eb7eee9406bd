from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import zeropoint
from in_onnxruntime import InOnnxRuntime
from tiny import LLAMA3_SCALING, make_llama, quantized
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, InternalError, OutputError, SchemeError
from zeropoint.exporting import _onnx_blocks
from zeropoint.progress import Progress
from zeropoint.recipe import load_recipe
from zeropoint.runtime.weights import Weights
from zeropoint.verification import logits_by_block

QUICK = ["rounding=rtn", "range=minmax"]
GROUPS = [*QUICK, "weights.group_size=32"]
TOKENS = [(7 * i) % 290 for i in range(40)]

NEAR = 2e-5
"""Of the largest logit: products of float32, in another order."""

INT4, INT8 = "MatMulNBits of 4 bits", "MatMulNBits of 8 bits"


def make(folder: Path, recipe: str, overrides: list[str], **sizes: Any) -> Path:
    model = make_llama(folder / "model", **sizes)
    zeropoint.quantize(model, folder / "quantized", recipe=load_recipe(recipe, overrides))
    return folder / "quantized"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("tiny"))


FLOAT_AND_8_BITS = (
    'rules=[{ layers = "*.o_proj", keep_float = true }, { layers = "*.up_proj", weights = { bits = 8 } }]'
)

CASES: dict[str, tuple[str, list[str], dict[str, Any], dict[str, int]]] = {
    "groups of 32": ("w4a16", GROUPS, {}, {"FLOAT": 6, INT4: 14}),
    "zero points": ("w4a16_asym", GROUPS, {"dtype": "bfloat16"}, {"BFLOAT16": 1, "FLOAT": 5, INT4: 14}),
    "8 bits per channel": ("w8a16", QUICK, {"dtype": "float16"}, {"FLOAT16": 1, "FLOAT": 5, INT8: 14}),
    "8 bits with zero points": ("w8a16", [*QUICK, "weights.symmetric=false"], {}, {"FLOAT": 6, INT8: 14}),
    "2 bits": ("w2a16", GROUPS, {}, {"FLOAT": 6, "MatMulNBits of 2 bits": 14}),
    "3 bits": ("w3a16", GROUPS, {}, {"FLOAT": 6, INT4: 14}),
    "groups of 48, which are three blocks": (
        "w4a16",
        [*QUICK, "weights.group_size=48"],
        {"hidden": 96, "heads": 6},
        {"FLOAT": 6, INT4: 14},
    ),
    "biases and a head of its own": (
        "w4a16",
        GROUPS,
        {"attention_bias": True, "mlp_bias": True, "tied": False, "dtype": "bfloat16"},
        {"BFLOAT16": 2, "FLOAT": 19, INT4: 14},
    ),
    "llama3's rope": ("w4a16", GROUPS, {"rope_scaling": LLAMA3_SCALING, "head_dim": 32}, {"FLOAT": 6, INT4: 14}),
    "int8 embeddings, tied": ("w4a16", [*GROUPS, "embeddings=int8"], {}, {"FLOAT": 5, INT4: 14, INT8: 1}),
    "int4 embeddings": ("w4a16", [*GROUPS, "embeddings=int4"], {"tied": False}, {"FLOAT": 5, INT4: 16}),
    "some layers float": (
        "w4a16",
        [*GROUPS, FLOAT_AND_8_BITS],
        {"dtype": "bfloat16"},
        {"BFLOAT16": 3, "FLOAT": 5, INT4: 10, INT8: 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_gives_the_logits_of_the_folder(case: str, tmp_path: Path) -> None:
    recipe, overrides, sizes, types = CASES[case]
    out = make(tmp_path, recipe, overrides, **sizes)
    result = zeropoint.export(out, tmp_path / "onnx", format="onnx")
    assert result.types == types
    weights = Weights(open_checkpoint(out))
    wanted = logits_by_block(weights, TOKENS)
    model = InOnnxRuntime(tmp_path / "onnx")
    assert np.abs(model.logits([TOKENS])[0] - wanted).max() < NEAR * np.abs(wanted).max()
    values = sum(int(np.prod(weights.model.shape(f"{name}.weight"))) for name in weights.schemes)
    assert result.checked > values  # and tables, gains, biases


def test_the_graph_is_one_that_onnx_accepts_and_names_what_others_expect(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "out", format="onnx")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    caches = [f"{index}.{kind}" for index in range(2) for kind in ("key", "value")]
    wanted = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{each}" for each in caches)]
    assert [each.name for each in model.graph.input] == wanted
    assert [each.name for each in model.graph.output] == ["logits", *(f"present.{each}" for each in caches)]
    linears = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    read = [{each.name: each.i for each in node.attribute} for node in linears]
    assert len(read) == 14
    assert all((each["bits"], each["block_size"], each["accuracy_level"]) == (4, 32, 1) for each in read)
    sides = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    ours = {"model.onnx", "model.onnx.data", "config.json", "genai_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*sides, *ours}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "quantization_config" not in config
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [2, 0]
    assert genai["model"]["decoder"]["num_key_value_heads"] == 2


def test_two_exports_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        zeropoint.export(folder, tmp_path / name, format="onnx")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name


def test_tokens_that_are_padded_change_nothing(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "out", format="onnx")
    model = InOnnxRuntime(tmp_path / "out")
    short, long = TOKENS[:9], TOKENS[10:30]
    alone = []
    for tokens in (short, long):
        model.forget(1)
        alone.append(model.logits([tokens])[0])
    model.forget(2)
    padding = len(long) - len(short)
    together = model.logits([[0] * padding + short, long], [[0] * padding + [1] * len(short), [1] * len(long)])
    for found, wanted in zip((together[0, padding:], together[1]), alone, strict=True):
        assert np.abs(found - wanted).max() < NEAR * np.abs(wanted).max()


def test_a_tied_embedding_of_integers_is_in_the_file_once(tmp_path: Path) -> None:
    out = make(tmp_path, "w4a16", [*GROUPS, "embeddings=int8"])
    zeropoint.export(out, tmp_path / "out", format="onnx")
    model = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    read = [node.op_type for node in model.graph.node if "model.embed_tokens.B" in node.input]
    assert read == ["Gather", "MatMulNBits"]


def test_a_value_that_is_not_that_of_the_folder_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = _onnx_blocks.pack

    def wrong(weight: Any) -> Any:
        parts = packed(weight)
        parts["B"][-1, -1, -1] ^= 1
        return parts

    monkeypatch.setattr(_onnx_blocks, "pack", wrong)
    with pytest.raises(InternalError, match=r"rows 0 to 64 of model\.layers\.0\.self_attn\.q_proj are not those"):
        zeropoint.export(folder, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wider_than_its_scheme_and_inputs_that_are_not_rounded_are_said(tmp_path: Path) -> None:
    out = make(tmp_path / "3", "w3a16", GROUPS)
    (note,) = zeropoint.export(out, tmp_path / "three", format="onnx").notes
    assert note == "int3 g32 sym is stored in 4 bits, none of its values changed"
    out = make(tmp_path / "8", "w8a8", [*QUICK, "transforms=[]"])
    (note,) = zeropoint.export(out, tmp_path / "eight", format="onnx").notes
    assert "inputs were to be rounded (int8 token)" in note


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = make(tmp_path, "w4a16", [*QUICK, "weights.group_size=8"])
    with pytest.raises(SchemeError, match=r"layers\.0\.self_attn\.q_proj: groups of 8 columns"):
        zeropoint.export(out, tmp_path / "out", format="onnx")
    assert not any("out" in path.name for path in tmp_path.iterdir())


def test_without_the_package_it_is_said_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'zeropoint\[onnx\]'"):
        zeropoint.export(folder, tmp_path / "out", format="onnx")


def test_ctrl_c_leaves_nothing_and_an_output_is_replaced_only_when_asked(folder: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("write", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zeropoint.export(folder, tmp_path / "out", format="onnx", progress=stop)
    assert list(tmp_path.iterdir()) == []
    zeropoint.export(folder, tmp_path / "out", format="onnx")
    with pytest.raises(OutputError, match="exists already"):
        zeropoint.export(folder, tmp_path / "out", format="onnx")
    zeropoint.export(folder, tmp_path / "out", format="onnx", overwrite=True)
    assert InOnnxRuntime(tmp_path / "out").logits([[1, 2]]).shape == (1, 2, 300)
