from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import zeropoint
from reference import awq_words, gptq_words
from tiny import make_llama, quantized
from zeropoint.errors import OutputError, SchemeError
from zeropoint.exporting import awq, gptq
from zeropoint.exporting._integers import Integers
from zeropoint.progress import Progress
from zeropoint.recipe import load_recipe
from zeropoint.types import Scheme

QUICK = ["rounding=rtn", "range=minmax"]


@st.composite
def weights(draw: st.DrawFn, bits: st.SearchStrategy[int]) -> Integers:
    symmetric = draw(st.booleans())
    by_group = draw(st.booleans())
    scheme = Scheme(draw(bits), symmetric, "group" if by_group else "channel", 32 if by_group else None)
    rows, cols = 16 * draw(st.integers(1, 2)), 32 * draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = scheme.groups(cols)
    codes = random.integers(scheme.q_min, scheme.q_max + 1, (rows, cols), dtype=np.int8)
    scale = np.exp2(random.uniform(-10, 2, (rows, groups))).astype(np.float16).astype(np.float32)
    zero_point = random.integers(scheme.q_min + 1, scheme.q_max + 1, (rows, groups), dtype=np.int8)
    return Integers(codes, scale, None if symmetric else zero_point, scheme)


def read(target: ModuleType, parts: dict[str, Any], weight: Integers) -> list[list[float]]:
    """The weight by the reference, element by element."""
    lists = {name: values.tolist() for name, values in parts.items()}
    rows, cols = weight.codes.shape
    size = cols // weight.scale.shape[1]
    tensors = lists["qweight"], lists["qzeros"], lists["scales"]
    if target is gptq:
        bits = weight.scheme.bits
        return [[gptq_words.value(*tensors, lists["g_idx"], bits, o, c) for c in range(cols)] for o in range(rows)]
    return [[awq_words.value(*tensors, size, o, c) for c in range(cols)] for o in range(rows)]


@settings(deadline=None, max_examples=8)
@given(weights(st.sampled_from([2, 4, 8])))
def test_gptq_words_are_the_values_of_the_weight_and_come_back(weight: Integers) -> None:
    parts = gptq.pack("w", weight)
    assert np.array_equal(read(gptq, parts, weight), weight.values().astype(np.float64))
    assert_the_same(gptq.unpack(parts, weight.scheme), weight)


@settings(deadline=None, max_examples=8)
@given(weights(st.just(4)))
def test_awq_words_are_the_values_of_the_weight_and_come_back(weight: Integers) -> None:
    parts = awq.pack("w", weight)
    assert np.array_equal(read(awq, parts, weight), weight.values().astype(np.float64))
    assert_the_same(awq.unpack(parts, weight.scheme), weight)


def assert_the_same(found: Integers, weight: Integers) -> None:
    zero_point = np.zeros_like(weight.scale) if weight.zero_point is None else weight.zero_point
    assert np.array_equal(found.codes, weight.codes)
    assert np.array_equal(found.scale, weight.scale)
    assert found.zero_point is not None
    assert np.array_equal(found.zero_point, zero_point)


def test_symmetric_zeros_are_seven_everywhere_and_a_lowest_zero_point_is_refused() -> None:
    symmetric = Integers(
        np.zeros((8, 32), np.int8), np.ones((8, 1), np.float32), None, Scheme(4, True, "channel", None)
    )
    assert (gptq.pack("w", symmetric)["qzeros"] == 0x77777777).all()
    assert (awq.pack("w", symmetric)["qzeros"].view(np.uint32) == 0x88888888).all()
    zeros = np.full((8, 1), -8, np.int8)
    lowest = Integers(symmetric.codes, symmetric.scale, zeros, Scheme(4, False, "channel", None))
    with pytest.raises(SchemeError, match=r"w: 8 of 8 zero points are the lowest code.*export as awq"):
        gptq.pack("w", lowest)
    assert np.array_equal(awq.unpack(awq.pack("w", lowest), lowest.scheme).zero_point, zeros)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "scheme", "shape", "part"),
    [
        (gptq, Scheme(3, True, "group", 32), (32, 64), "not 3"),
        (gptq, Scheme(4, True, "tensor", None), (32, 64), "by channel or group"),
        (gptq, Scheme(4, True, "group", 32), (12, 64), "words of 8"),
        (awq, Scheme(8, True, "group", 32), (32, 64), "not 8.*export as gptq"),
        (awq, Scheme(4, True, "group", 32), (12, 64), "12 outputs"),
        (awq, Scheme(4, False, "tensor", None), (32, 64), "by channel or group"),
    ],
)
def test_what_a_layout_does_not_hold_is_refused_with_what_would_fit(
    target: ModuleType, scheme: Scheme, shape: tuple[int, int], part: str
) -> None:
    assert re.search(part, target.supports(scheme, shape))


# Folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("target", ["gptq", "awq"])
def test_a_folder_has_the_tensors_the_config_and_the_files_of_its_readers(
    target: str, folder: Path, tmp_path: Path
) -> None:
    result = zeropoint.export(folder, tmp_path / "out", format=target)
    assert result.types == {target: 14, "as stored": 6}
    assert result.checked == sum(2 * size for size in (64 * 64, 32 * 64, 32 * 64, 64 * 64, 96 * 64, 96 * 64, 64 * 96))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    shapes = {"gptq": ((8, 96), (2, 12)), "awq": ((64, 12), (2, 12))}[target]
    assert tensors[f"{name}.qweight"].shape == shapes[0]
    assert tensors[f"{name}.qzeros"].shape == shapes[1]
    assert tensors[f"{name}.scales"].dtype == torch.float16
    assert torch.equal(tensors["model.norm.weight"], load_file(folder / "model.safetensors")["model.norm.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == (target, 4, 32)
    assert config.get("desc_act", False) is False
    assert config.get("sym", True) is True
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*copied, "config.json", "model.safetensors"}


def made(folder: Path, *overrides: str, recipe: str = "w4a16", **sizes: Any) -> Path:
    model = make_llama(folder / "model", **sizes)
    settings_ = load_recipe(recipe, [*QUICK, "weights.group_size=32", *overrides])
    zeropoint.quantize(model, folder / "q", recipe=settings_)
    return folder / "q"


def test_float_layers_are_named_in_the_config(tmp_path: Path) -> None:
    out = made(tmp_path, 'rules=[{ layers = "*.0.self_attn.o_proj", keep_float = true }]')
    layer = "model.layers.0.self_attn.o_proj"
    for target, key, value in (
        ("awq", "modules_to_not_convert", [layer]),
        ("gptq", "dynamic", {r"-:^model\.layers\.0\.self_attn\.o_proj$": {}}),
    ):
        zeropoint.export(out, tmp_path / target, format=target)
        assert json.loads((tmp_path / target / "config.json").read_text())["quantization_config"][key] == value


def test_scales_that_bfloat16_would_round_are_said_for_a_bfloat16_model(tmp_path: Path) -> None:
    out = made(tmp_path, "weights.scale_dtype=float16", dtype="bfloat16")
    assert "ask it for float16" in zeropoint.export(out, tmp_path / "awq", format="awq").notes[0]


def test_several_schemes_and_integer_embeddings_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    cases = {
        "rule": (['rules=[{ layers = "*.o_proj", weights = { bits = 8 } }]'], "one scheme for a model"),
        "table": (["embeddings=int8"], 'embeddings = "stored"'),
    }
    for name, (overrides, match) in cases.items():
        out = made(tmp_path / name, *overrides)
        with pytest.raises(SchemeError, match=match):
            zeropoint.export(out, tmp_path / "out", format="gptq")
    assert not any("out" in path.name for path in tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_and_an_output_is_replaced_only_when_asked(folder: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("write", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zeropoint.export(folder, tmp_path / "out", format="gptq", progress=stop)
    assert list(tmp_path.iterdir()) == []
    zeropoint.export(folder, tmp_path / "out", format="gptq")
    with pytest.raises(OutputError, match="exists already"):
        zeropoint.export(folder, tmp_path / "out", format="awq")
    zeropoint.export(folder, tmp_path / "out", format="awq", overwrite=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"
