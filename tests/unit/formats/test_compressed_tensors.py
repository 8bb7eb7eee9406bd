from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zeropoint
from golden.formats import qtensor
from zeropoint.errors import CheckpointError, InternalError, SchemeError
from zeropoint.formats.compressed_tensors import config, pack, schemes, supports, tensor_names, unpack
from zeropoint.types import InputParams, InputScheme, QParams, QTensor, ScaleDtype, Scheme

LAYER = "model.layers.0.mlp.down_proj"
INT4 = Scheme(4, True, "group", 32)
INT4_ASYMMETRIC = Scheme(4, False, "group", 32)
INT8 = Scheme(8, True, "channel", None)


def packed(scheme: Scheme = INT4, shape: tuple[int, int] = (6, 64)) -> dict[str, Tensor]:
    return pack(LAYER, qtensor(shape, scheme))


def stored(**changes: object) -> dict[str, Any]:
    """A configuration as the package writes it; `changes` go into its one group's weights."""
    made = config({LAYER: INT4})
    made["config_groups"]["group_0"]["weights"] |= changes
    return made


# Outlier columns


OUTLIERS = InputScheme(outlier_threshold=6.0)


def with_outliers(columns: tuple[int, ...] = (2, 5)) -> QTensor:
    q = qtensor((4, 64), INT8)
    return replace(q, input=InputParams(OUTLIERS, outliers=columns), outliers=torch.ones(4, len(columns)))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("outlier_columns", torch.tensor([2, 5])),
        ("outlier_columns", torch.tensor([[2, 5]], dtype=torch.int32)),
        ("outlier_columns", torch.tensor([5, 2], dtype=torch.int32)),
        ("outlier_columns", torch.tensor([2, 2], dtype=torch.int32)),
        ("outlier_columns", torch.tensor([-1, 2], dtype=torch.int32)),
        ("outlier_columns", torch.tensor([2, 64], dtype=torch.int32)),
        ("outlier_weight", torch.ones(4, 3)),
        ("outlier_weight", torch.ones(3, 2)),
        ("outlier_weight", torch.ones(4, 2, dtype=torch.int8)),
    ],
)
def test_outlier_columns_that_are_wrong_are_refused_by_name(part: str, wrong: Tensor) -> None:
    tensors = pack(LAYER, with_outliers())
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.{part} "):
        unpack(LAYER, tensors | {f"{LAYER}.{part}": wrong}, INT8, OUTLIERS)
    del tensors[f"{LAYER}.{part}"]
    with pytest.raises(CheckpointError, match=f"{part} missing"):
        unpack(LAYER, tensors, INT8, OUTLIERS)


def test_outlier_columns_and_their_weights_belong_together() -> None:
    q = with_outliers()
    for wrong in (replace(q, outliers=None), replace(q, outliers=torch.ones(4, 3)), replace(q, input=None)):
        with pytest.raises(InternalError, match=LAYER):
            pack(LAYER, wrong)


@pytest.mark.parametrize("scheme", [INT8, INT4])
def test_outliers_have_a_format_of_their_own_and_no_other(scheme: Scheme) -> None:
    made = config({LAYER: scheme}, {LAYER: OUTLIERS})
    group = made["config_groups"]["group_0"]
    assert made["quant_method"] == "compressed-tensors"
    assert made["format"] == group["format"] == "zeropoint-outliers"
    assert group["input_activations"]["outlier_threshold"] == 6.0
    usual = config({LAYER: scheme}, {LAYER: InputScheme()})
    assert "outlier_threshold" not in usual["config_groups"]["group_0"]["input_activations"]
    group["format"] = usual["format"]
    with pytest.raises(CheckpointError, match=r"format .* is not supported.*'zeropoint-outliers'"):
        schemes(made, (LAYER,))
    usual["config_groups"]["group_0"]["format"] = "zeropoint-outliers"
    with pytest.raises(CheckpointError, match="format 'zeropoint-outliers' is not supported"):
        schemes(usual, (LAYER,))


# What can be stored


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_to_eight_bits_are_supported_with_every_granularity(bits: int, symmetric: bool) -> None:
    assert supports(Scheme(bits, symmetric, "group", 64), (576, 1536)) is None
    assert supports(Scheme(bits, symmetric, "channel", None), (576, 577)) is None
    assert supports(Scheme(bits, symmetric, "tensor", None), (1, 1)) is None


@pytest.mark.parametrize(
    ("scheme", "shape", "reason"),
    [
        (Scheme(bits=1), (4, 64), "codes of 1 bits"),
        (Scheme(bits=9), (4, 64), "codes of 9 bits"),
        (Scheme(group_size=None), (4, 64), "group_size None; use one of 8, 16, 32, 64"),
        (Scheme(group_size=0), (4, 64), "group_size 0; use one of 8, 16, 32, 64"),
        (Scheme(group_size=128), (4, 64), "use a group_size of 8, 16, 32, 64, or granularity = 'channel'"),
        (Scheme(group_size=128), (4, 576), "576 columns do not split into groups of 128"),
        (Scheme(group_size=4), (4, 7), "use a group_size of 1, 7"),
        (Scheme(), (0, 64), "no values"),
        (Scheme(), (4, 0), "no values"),
    ],
)
def test_the_reason_against_a_scheme_says_what_would_fit(scheme: Scheme, shape: tuple[int, int], reason: str) -> None:
    assert reason in (supports(scheme, shape) or "")


# Tensors


@pytest.mark.parametrize(
    ("scheme", "shapes"),
    [
        (INT4, {"weight_packed": (6, 8), "weight_scale": (6, 2), "weight_shape": (2,)}),
        (INT8, {"weight_packed": (6, 16), "weight_scale": (6, 1), "weight_shape": (2,)}),
        (Scheme(3, True, "tensor", None), {"weight_packed": (6, 6), "weight_scale": (1,), "weight_shape": (2,)}),
        (
            INT4_ASYMMETRIC,
            {"weight_packed": (6, 8), "weight_scale": (6, 2), "weight_shape": (2,), "weight_zero_point": (1, 2)},
        ),
        (
            Scheme(8, False, "channel", None),
            {"weight_packed": (6, 16), "weight_scale": (6, 1), "weight_shape": (2,), "weight_zero_point": (2, 1)},
        ),
        (
            Scheme(4, False, "tensor", None),
            {"weight_packed": (6, 8), "weight_scale": (1,), "weight_shape": (2,), "weight_zero_point": (1,)},
        ),
    ],
)
def test_a_weight_becomes_these_tensors(scheme: Scheme, shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = packed(scheme)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{LAYER}.{part}": shape for part, shape in shapes.items()
    }
    assert tuple(tensors) == tensor_names(LAYER, scheme)
    assert tensors[f"{LAYER}.weight_shape"].tolist() == [6, 64]


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
def test_scales_are_stored_in_their_dtype_and_found_in_it(scale_dtype: ScaleDtype) -> None:
    q = qtensor((6, 64), replace(INT4, scale_dtype=scale_dtype))
    tensors = pack(LAYER, q)
    assert tensors[f"{LAYER}.weight_scale"].dtype == getattr(torch, scale_dtype)
    back = unpack(LAYER, tensors, INT4)
    assert back.scheme.scale_dtype == scale_dtype
    assert back.qparams.scale.dtype == torch.float32
    assert torch.equal(back.qparams.scale, q.qparams.scale)


@pytest.mark.parametrize("scale", [0.1, 1e30, 0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_storing_would_change_is_a_fault_of_ours(scale: float) -> None:
    q = qtensor((6, 64), replace(INT4, scale_dtype="float16"))
    q.qparams.scale[2, 1] = scale
    with pytest.raises(InternalError, match=rf"{LAYER}: .*not positive, finite and exact in float16"):
        pack(LAYER, q)


@pytest.mark.parametrize("zero_point", [None, torch.full((6, 2), 8), torch.full((6, 2), -9), torch.zeros(6, 1)])
def test_zero_points_that_break_their_promise_are_a_fault_of_ours(zero_point: Tensor | None) -> None:
    q = qtensor((6, 64), INT4_ASYMMETRIC)
    with pytest.raises(InternalError, match=f"{LAYER}: zero points"):
        pack(LAYER, QTensor(q.codes, QParams(q.qparams.scale, zero_point), q.scheme))


def test_a_symmetric_weight_with_zero_points_is_a_fault_of_ours() -> None:
    q = qtensor((6, 64), INT4_ASYMMETRIC)
    with pytest.raises(InternalError, match=f"{LAYER}: zero points belong to an asymmetric weight"):
        pack(LAYER, QTensor(q.codes, q.qparams, INT4))


def test_scales_of_another_granularity_are_a_fault_of_ours() -> None:
    q = qtensor((6, 64), INT4)
    with pytest.raises(InternalError, match=r"\(6, 2\) are not \(6, 1\)"):
        pack(LAYER, QTensor(q.codes, q.qparams, Scheme(4, True, "channel", None)))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"])
def test_a_missing_tensor_is_named(part: str) -> None:
    tensors = packed(INT4_ASYMMETRIC)
    del tensors[f"{LAYER}.{part}"]
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.{part} missing"):
        unpack(LAYER, tensors, INT4_ASYMMETRIC)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("weight_packed", torch.zeros(6, 8), r"float32 \(6, 8\); 64 columns of 4 bits are int32 \(6, 8\)"),
        ("weight_packed", torch.zeros(6, 7).int(), r"int32 \(6, 7\); 64 columns of 4 bits are int32 \(6, 8\)$"),
        ("weight_packed", torch.zeros(5, 8).int(), r"int32 \(5, 8\)"),
        ("weight_scale", torch.ones(6, 1), r"must be bfloat16 or float16 or float32 \(6, 2\)"),
        ("weight_scale", torch.ones(6, 2).double(), r"float64 \(6, 2\); it must be bfloat16"),
        ("weight_scale", torch.zeros(6, 2), "not positive and finite"),
        ("weight_scale", torch.full((6, 2), torch.nan), "not positive and finite"),
        ("weight_scale", torch.full((6, 2), torch.inf), "not positive and finite"),
        ("weight_shape", torch.tensor([6, 64, 1]), "two integers"),
        ("weight_shape", torch.tensor([6.0, 64.0]), "two integers"),
        ("weight_shape", torch.tensor([6, 65]), "65 columns do not split into groups of 32"),
        ("weight_shape", torch.tensor([6, -64]), "no values"),
        ("weight_zero_point", torch.zeros(6, 2).int(), r"must be int32 \(1, 2\), or int8 \(6, 2\)"),
        ("weight_zero_point", torch.full((6, 2), 8, dtype=torch.int8), r"outside \[-8, 7\]"),
    ],
)
def test_a_tensor_that_cannot_be_right_is_refused(part: str, tensor: Tensor, message: str) -> None:
    tensors = packed(INT4_ASYMMETRIC) | {f"{LAYER}.{part}": tensor}
    with pytest.raises(CheckpointError, match=message):
        unpack(LAYER, tensors, INT4_ASYMMETRIC)


def test_the_old_layout_of_three_bits_is_recognised() -> None:
    scheme = Scheme(3, True, "group", 32)
    tensors = packed(scheme) | {f"{LAYER}.weight_packed": torch.zeros(6, 7, dtype=torch.int32)}  # 10 codes a word
    with pytest.raises(CheckpointError, match=r"compressed-tensors before 0\.18"):
        unpack(LAYER, tensors, scheme)


def test_zero_points_that_are_not_packed_are_read() -> None:
    q = qtensor((6, 64), INT4_ASYMMETRIC)
    assert q.qparams.zero_point is not None
    plain = {f"{LAYER}.weight_zero_point": q.qparams.zero_point.to(torch.int8)}
    back = unpack(LAYER, pack(LAYER, q) | plain, INT4_ASYMMETRIC)
    assert back.qparams.zero_point is not None
    assert back.qparams.zero_point.dtype == torch.int32
    assert torch.equal(back.qparams.zero_point, q.qparams.zero_point)


# Configuration


def test_one_scheme_is_written_for_every_linear() -> None:
    made = config({LAYER: INT4, "model.layers.1.mlp.down_proj": INT4, "model.layers.1.mlp.up_proj": None})
    assert [group["targets"] for group in made["config_groups"].values()] == [["Linear"]]
    assert made["ignore"] == ["model.layers.1.mlp.up_proj", "lm_head"]
    assert "dequantize" not in made


def test_several_schemes_are_written_by_the_names_of_their_layers() -> None:
    made = config({"a.q_proj": INT4, "a.k_proj": INT8, "b.q_proj": INT4, "b.k_proj": None, "lm_head": INT8})
    assert [group["targets"] for group in made["config_groups"].values()] == [
        ["a.q_proj", "b.q_proj"],
        ["a.k_proj", "lm_head"],
    ]
    assert made["ignore"] == ["b.k_proj"]


def test_schemes_that_the_configuration_cannot_tell_apart_are_one_group() -> None:
    made = config({"a": INT4, "b": replace(INT4, narrow=True), "c": replace(INT4, scale_dtype="float32")})
    assert [group["targets"] for group in made["config_groups"].values()] == [["Linear"]]


def test_a_model_in_which_nothing_is_quantized_is_refused() -> None:
    with pytest.raises(SchemeError, match="none of the 2 layers is quantized"):
        config({"a": None, "b": None})


def test_asymmetric_weights_tell_the_loader_to_unpack_their_zero_points() -> None:
    assert config({"a": INT4_ASYMMETRIC, "b": None})["dequantize"] is True
    assert "dequantize" not in config({"a": Scheme(4, False, "tensor", None)})


def test_asymmetric_groups_beside_another_scheme_are_refused() -> None:
    with pytest.raises(SchemeError, match="int8 channel sym and int4 g32 asym in one model"):
        config({"a": INT8, "b": INT4_ASYMMETRIC})
    per_tensor = Scheme(4, False, "tensor", None)
    assert schemes(config({"a": INT8, "b": per_tensor}), ("a", "b")) == {"a": INT8, "b": per_tensor}


written = st.one_of(
    st.none(),
    st.builds(Scheme, st.integers(2, 8), st.just(True), st.just("group"), st.sampled_from([8, 32, 128])),
    st.builds(Scheme, st.integers(2, 8), st.just(True), st.just("channel"), st.none()),
    st.builds(Scheme, st.integers(2, 8), st.booleans(), st.just("tensor"), st.none()),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.from_regex(r"model\.layers\.[0-9]\.[a-z]+_proj", fullmatch=True), written, max_size=8))
def test_reading_a_configuration_gives_back_the_schemes(layers: dict[str, Scheme | None]) -> None:
    if not any(layers.values()):
        return
    names = (*layers, "lm_head")
    assert schemes(json.loads(json.dumps(config(layers))), names) == {**layers, "lm_head": None}


def group(targets: list[str], bits: int = 4, **more: object) -> dict[str, Any]:
    return {"targets": targets, "weights": {"num_bits": bits, "group_size": 128, "strategy": "group"}, **more}


def test_a_configuration_of_llm_compressor_is_read() -> None:
    found = schemes(
        {
            "config_groups": {
                "group_0": {
                    "input_activations": None,
                    "output_activations": None,
                    "targets": ["Linear"],
                    "weights": {
                        "actorder": "weight",
                        "block_structure": None,
                        "dynamic": False,
                        "group_size": 128,
                        "num_bits": 4,
                        "observer": "minmax",
                        "observer_kwargs": {},
                        "strategy": "group",
                        "symmetric": False,
                        "type": "int",
                    },
                }
            },
            "format": "pack-quantized",
            "global_compression_ratio": 1.8,
            "ignore": ["lm_head", r"re:.*mlp\.gate$"],
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {"format": "dense"},
            "version": "0.9.0",
        },
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate", "lm_head"),
    )
    int4 = Scheme(4, False, "group", 128)
    assert found == {"model.layers.0.mlp.up_proj": int4, "model.layers.0.mlp.gate": None, "lm_head": None}


def test_a_name_comes_before_a_pattern_and_a_pattern_before_the_class() -> None:
    foreign = stored() | {
        "config_groups": {
            "class": group(["Linear"], 2),
            "pattern": group(["re:.*v_proj$"], 3),
            "name": group(["x.v_proj"], 4),
        }
    }
    found = schemes(foreign, ("x.v_proj", "b.v_proj", "b.k_proj"))
    assert {name: scheme and scheme.bits for name, scheme in found.items()} == {
        "x.v_proj": 4,
        "b.v_proj": 3,
        "b.k_proj": 2,
    }


def test_a_pattern_must_match_from_the_start_of_the_name() -> None:
    foreign = stored() | {"config_groups": {"0": group(["re:v_proj"])}}
    assert schemes(foreign, ("a.v_proj", "v_proj_x")) == {"a.v_proj": None, "v_proj_x": Scheme(4, True, "group", 128)}


def test_ignoring_the_class_ignores_every_linear() -> None:
    assert schemes(stored() | {"ignore": ["Linear"]}, (LAYER,)) == {LAYER: None}


@pytest.mark.parametrize(
    ("group_size", "expected"),
    [
        (None, Scheme(4, True, "tensor", None)),
        (-1, Scheme(4, True, "channel", None)),
        (32, Scheme(4, True, "group", 32)),
    ],
)
def test_a_strategy_that_is_not_written_follows_from_the_group_size(group_size: int | None, expected: Scheme) -> None:
    assert schemes(stored(strategy=None, group_size=group_size), (LAYER,)) == {LAYER: expected}


def test_the_format_of_a_group_comes_before_the_format_of_the_model() -> None:
    foreign = stored() | {"format": "mixed-precision"}
    assert schemes(foreign, (LAYER,)) == {LAYER: INT4}
    foreign["config_groups"]["group_0"]["format"] = None
    with pytest.raises(CheckpointError, match="group 'group_0': format 'mixed-precision' is not supported"):
        schemes(foreign, (LAYER,))


def test_a_group_without_weights_leaves_its_layers_float() -> None:
    assert schemes(stored() | {"config_groups": {"0": {"targets": ["Linear"], "weights": None}}}, (LAYER,)) == {
        LAYER: None
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 1}, "codes of 1 bits"),
        ({"num_bits": "4"}, r"Expected `int`, got `str` - at `\$.config_groups\[...\].weights.num_bits`"),
        ({"type": "float"}, "weights of type 'float'"),
        ({"dynamic": True}, "dynamic True"),
        ({"actorder": "group"}, "actorder 'group' regroups columns"),
        ({"actorder": True}, "actorder True regroups columns"),
        ({"strategy": "block"}, "strategy 'block' is not supported; only tensor, channel, group are"),
        ({"strategy": "group", "group_size": None}, "group_size None"),
    ],
)
def test_weights_that_are_not_supported_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        schemes(stored(**changes), (LAYER,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not supported"),
        ({"quantization_status": "frozen"}, "quantization_status 'frozen' is not supported"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "quantized KV cache"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transforms at run time"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "Expected `object`, got `array`"),
        ({"config_groups": {"0": group(["re:("])}}, r"'re:\(' is no regular expression"),
        (
            {"config_groups": {"0": group(["Linear"], format="int-quantized")}},
            "format 'int-quantized' is not supported",
        ),
        (
            {"config_groups": {"0": group(["Linear"], 8, input_activations={}, format="pack-quantized")}},
            "format 'pack-quantized' is not supported for int8 g128 sym with int8 static sym inputs",
        ),
        ({"config_groups": {"0": group(["Linear"], input_activations={"num_bits": 4})}}, "4 bits, strategy 'tensor'"),
        ({"config_groups": {"0": group(["Linear"], input_activations={"type": "float"})}}, "of type 'float'"),
        ({"config_groups": {"0": group(["Linear"], input_activations={"strategy": "token"})}}, "dynamic False are not"),
        ({"config_groups": {"0": group(["Linear"], input_activations={"dynamic": True})}}, "dynamic True are not"),
        (
            {
                "config_groups": {
                    "0": group(["Linear"], input_activations={"strategy": "token", "dynamic": True, "symmetric": False})
                }
            },
            "dynamic and asymmetric",
        ),
        ({"config_groups": {"0": {"targets": ["Linear"], "input_activations": {}}}}, "inputs of float weights"),
        ({"config_groups": {"0": group(["Linear"], output_activations={"num_bits": 8})}}, "output_activations"),
    ],
)
def test_models_that_are_not_supported_are_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        schemes(stored() | changes, (LAYER,))


def test_a_configuration_is_read_without_torch() -> None:
    code = (
        "import sys; from zeropoint.formats.compressed_tensors import config, schemes, supports\n"
        "from zeropoint.types import Scheme\n"
        "assert schemes(config({'a': Scheme()}), ['a', 'b'])['a'] == Scheme()\n"
        "assert supports(Scheme(), (64, 64)) is None\n"
        "assert 'torch' not in sys.modules"
    )
    source = Path(zeropoint.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(source)})
