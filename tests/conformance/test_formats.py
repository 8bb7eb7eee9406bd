"""Every file in formats/ is found and held to the same contract."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from golden.formats import SAMPLES, golden_path, packed, qtensor, read
from zeropoint import find
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.types import (
    Granularity,
    InputParams,
    InputScheme,
    PackedWeight,
    QParams,
    QTensor,
    ScaleDtype,
    Scheme,
    StoredArray,
)

FORMATS = find.names("formats")
LAYER = "model.layers.0.self_attn.q_proj"


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    granularity: Granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    size = draw(st.sampled_from([1, 2, 5, 8, 32, 64])) if granularity == "group" else None
    scale_dtype: ScaleDtype = draw(st.sampled_from(["bfloat16", "float16", "float32"]))
    return Scheme(
        draw(st.integers(2, 8)), draw(st.booleans()), granularity, size, narrow=draw(st.booleans()),
        scale_dtype=scale_dtype,
    )  # fmt: skip


@st.composite
def qtensors(draw: st.DrawFn) -> QTensor:
    scheme = draw(schemes())
    rows = draw(st.integers(1, 40))
    cols = draw(st.integers(1, 80)) if draw(st.booleans()) else draw(st.integers(1, 8)) * (scheme.group_size or 1)
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def integers(*shape: int) -> Tensor:
        return torch.randint(scheme.q_min, scheme.q_max + 1, shape, generator=random)

    groups = (1, 1) if scheme.granularity == "tensor" else (rows, scheme.groups(cols))
    scale = (torch.rand(groups, generator=random) + 0.01).to(getattr(torch, scheme.scale_dtype)).float()
    zero_point = None if scheme.symmetric else integers(*groups).to(torch.int32)
    return QTensor(integers(rows, cols).to(torch.int8), QParams(scale, zero_point), scheme)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)


def test_there_is_a_format() -> None:
    assert "compressed_tensors" in FORMATS
    assert "bits" not in FORMATS


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(q=qtensors())
def test_what_is_unpacked_is_what_was_packed(name: str, q: QTensor) -> None:
    module = find.load("formats", name)
    if module.supports(q.scheme, q.shape) is not None:
        with pytest.raises(SchemeError, match=LAYER):
            module.pack(LAYER, q)
        return
    tensors = module.pack(LAYER, q)
    assert tuple(tensors) == module.tensor_names(LAYER, q.scheme)
    assert described(tensors) == module.layout(LAYER, q.scheme, q.shape, float_dtype="bfloat16")
    back = module.unpack(LAYER, tensors, q.scheme)
    assert same(back.codes, q.codes)
    assert same(back.qparams.scale, q.qparams.scale)
    assert same(back.qparams.zero_point, q.qparams.zero_point)
    assert back.scheme == q.scheme
    stored = {part: as_read(tensor) for part, tensor in tensors.items()}
    packed_weight = module.read_packed(LAYER, stored, q.scheme)
    assert packed_weight.shape == q.shape
    assert packed_weight.scheme == q.scheme
    assert unpacked(packed_weight) == (q.codes.int() + (1 << (q.scheme.bits - 1))).tolist()
    assert same(torch.from_numpy(packed_weight.scale), q.qparams.scale)
    if q.qparams.zero_point is None:
        assert packed_weight.zero_point is None
    else:
        assert same(torch.from_numpy(packed_weight.zero_point), q.qparams.zero_point.to(torch.int8))


def described(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def as_read(tensor: Tensor) -> StoredArray:
    """A tensor as `Checkpoint.read_array` reads it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return StoredArray((tensor.view(torch.uint16) if dtype == "bfloat16" else tensor).numpy(), dtype)


def unpacked(weight: PackedWeight) -> list[list[int]]:
    """The codes of a packed weight by the definition: the bits of a row as one integer, cut from its lowest bit on."""
    assert weight.words.dtype == np.uint32
    bits, cols = weight.scheme.bits, weight.shape[1]
    streams = [sum(word << (32 * index) for index, word in enumerate(row)) for row in weight.words.tolist()]
    return [[stream >> (index * bits) & ((1 << bits) - 1) for index in range(cols)] for stream in streams]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(scheme=schemes(), skipped=st.booleans())
def test_the_configuration_says_which_layer_has_which_scheme(name: str, scheme: Scheme, skipped: bool) -> None:
    module = find.load("formats", name)
    layers = {LAYER: scheme, "model.layers.1.self_attn.q_proj": None if skipped else scheme, "lm_head": None}
    stored = json.loads(json.dumps(module.config(layers)))
    found = module.schemes(stored, tuple(layers))
    assert found["lm_head"] is None
    assert (found["model.layers.1.self_attn.q_proj"] is None) == skipped
    q = qtensor((4, scheme.group_size or 8), scheme)
    back = module.unpack(LAYER, module.pack(LAYER, q), found[LAYER])
    # A grid without its lowest code is written as the full grid, of which it is a part.
    assert back.scheme == dataclasses.replace(scheme, narrow=False)
    assert same(back.codes, q.codes)
    assert same(back.qparams.zero_point, q.qparams.zero_point)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layer", SAMPLES)
def test_packed_tensors_can_be_saved_and_keep_nothing_of_the_weight_alive(
    name: str, layer: str, tmp_path: Path
) -> None:
    module = find.load("formats", name)
    q = qtensor(*SAMPLES[layer])
    tensors = module.pack(layer, q)
    theirs = {t.untyped_storage().data_ptr() for t in (q.codes, q.qparams.scale, q.qparams.zero_point) if t is not None}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for tensor in tensors.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    save_file(tensors, tmp_path / "packed.safetensors")
    back = module.unpack(layer, load_file(tmp_path / "packed.safetensors"), q.scheme)
    assert same(back.codes, q.codes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_is_named_in_the_refusal(name: str) -> None:
    module = find.load("formats", name)
    scheme = dataclasses.replace(Scheme(), bits=9)
    assert "9 bits" in module.supports(scheme, (4, 64))
    codes = torch.zeros(4, 64, dtype=torch.int8)
    with pytest.raises(SchemeError, match=rf"{LAYER}.*9 bits"):
        module.pack(LAYER, QTensor(codes, QParams(torch.ones(4, 1), None), scheme))


@pytest.mark.parametrize("name", FORMATS)
def test_the_golden_file_is_unchanged(name: str) -> None:
    path = golden_path(name)
    assert path.exists(), f"write it once: python tests/golden/formats.py {name}"
    tensors, configs = read(path)
    made, described = packed(name)
    assert configs == described
    assert sorted(tensors) == sorted(made)
    for tensor_name, tensor in made.items():
        assert same(tensors[tensor_name], tensor), tensor_name


@pytest.mark.parametrize("name", FORMATS)
def test_the_golden_file_is_still_read(name: str) -> None:
    module = find.load("formats", name)
    tensors, configs = read(golden_path(name))
    for layer, stored in configs.items():
        scheme = module.schemes(json.loads(stored), (layer,))[layer]
        q = qtensor(*SAMPLES[layer])
        back = module.unpack(layer, tensors, scheme)
        assert same(back.codes, q.codes)
        assert same(back.qparams.scale, q.qparams.scale)
        assert same(back.qparams.zero_point, q.qparams.zero_point)


INPUTS = (InputScheme(), InputScheme(dynamic=False), InputScheme(dynamic=False, symmetric=False))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("inputs", INPUTS, ids=InputScheme.label)
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(8, True, "channel", None), Scheme(8, False, "tensor", None)])
def test_how_the_input_is_rounded_comes_back(name: str, inputs: InputScheme, scheme: Scheme) -> None:
    module = find.load("formats", name)
    zero_point = 0 if inputs.symmetric else -37
    params = InputParams(inputs) if inputs.dynamic else InputParams(inputs, 0.12345679104328156, zero_point)
    q = dataclasses.replace(qtensor((5, 64), scheme), input=params)
    tensors = module.pack(LAYER, q)
    assert tuple(tensors) == module.tensor_names(LAYER, scheme, inputs)
    assert described(tensors) == module.layout(LAYER, scheme, q.shape, inputs, float_dtype="bfloat16")
    back = module.unpack(LAYER, tensors, scheme, inputs)
    assert back.input == params
    assert same(back.codes, q.codes)
    stored = {part: as_read(tensor) for part, tensor in tensors.items()}
    packed_weight = module.read_packed(LAYER, stored, scheme, inputs)
    assert packed_weight.input == params
    assert unpacked(packed_weight) == (q.codes.int() + (1 << (scheme.bits - 1))).tolist()
    layers = {LAYER: scheme, "other": scheme, "float": None}
    config = json.loads(json.dumps(module.config(layers, {LAYER: inputs, "other": None})))
    assert module.input_schemes(config, tuple(layers)) == {LAYER: inputs, "other": None, "float": None}
    assert module.schemes(config, tuple(layers)) == layers


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", [(), (0,), (1, 7, 63)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(8, True, "channel", None)])
def test_outlier_columns_come_back(
    name: str, columns: tuple[int, ...], dtype: torch.dtype, scheme: Scheme, tmp_path: Path
) -> None:
    module = find.load("formats", name)
    inputs = InputScheme(outlier_threshold=6.5)
    weight = torch.randn(5, len(columns), generator=torch.Generator().manual_seed(3)).to(dtype)
    params = InputParams(inputs, outliers=columns)
    q = dataclasses.replace(qtensor((5, 64), scheme), input=params, outliers=weight)
    made = module.pack(LAYER, q)
    assert tuple(made) == module.tensor_names(LAYER, scheme, inputs)
    save_file(made, tmp_path / "packed.safetensors")
    tensors = load_file(tmp_path / "packed.safetensors")
    back = module.unpack(LAYER, tensors, scheme, inputs)
    assert back.input == params
    assert same(back.outliers, weight)
    assert same(back.codes, q.codes)
    stored = {part: as_read(tensor) for part, tensor in tensors.items()}
    packed_weight = module.read_packed(LAYER, stored, scheme, inputs)
    assert packed_weight.input == params
    assert packed_weight.outliers.dtype == str(dtype).removeprefix("torch.")
    assert np.array_equal(packed_weight.outliers.values, as_read(weight).values)
    layers = {LAYER: scheme, "other": scheme, "float": None}
    config = json.loads(json.dumps(module.config(layers, {LAYER: inputs, "other": InputScheme()})))
    assert module.input_schemes(config, tuple(layers)) == {LAYER: inputs, "other": InputScheme(), "float": None}
    assert module.note(config) is not None
    assert module.note(module.config(layers, {LAYER: InputScheme(), "other": InputScheme()})) is None


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100, deadline=None)
@given(q=qtensors(), at=st.integers(0, 40))
def test_a_table_comes_back_from_its_rows(name: str, q: QTensor, at: int) -> None:
    module = find.load("formats", name)
    if module.supports_table(q.scheme, q.shape) is not None:
        return
    rows, cols = q.shape
    parts = [slice(0, min(at, rows)), slice(min(at, rows), rows)]
    slabs = [
        dataclasses.replace(q, codes=q.codes[part], qparams=QParams(q.qparams.scale[part], None))
        for part in parts
        if part.start < part.stop
    ]
    tensors = module.pack_table("table", slabs)
    assert tuple(tensors) == module.table_tensor_names("table", q.scheme)
    stored = {part: as_read(tensor) for part, tensor in tensors.items()}
    back = module.unpack_table("table", stored, q.scheme, cols)
    assert same(back.codes, q.codes)
    assert same(back.qparams.scale, q.qparams.scale)
    assert back.scheme == q.scheme
    words = unpacked(module.read_table("table", stored, q.scheme, cols))
    assert words == (q.codes.int() + (1 << (q.scheme.bits - 1))).tolist()
    found = module.table_schemes(
        json.loads(json.dumps(module.config({LAYER: Scheme()}, None, {"lm_head": q.scheme}))), ["lm_head", "other"]
    )
    assert found["other"] is None
    assert dataclasses.replace(q.scheme, narrow=False, scale_dtype="bfloat16") == found["lm_head"]


@pytest.mark.parametrize("name", FORMATS)
def test_parameters_of_an_input_that_are_wrong_are_refused_by_name(name: str) -> None:
    module = find.load("formats", name)
    inputs = InputScheme(dynamic=False, symmetric=False)
    q = dataclasses.replace(qtensor((4, 64), Scheme()), input=InputParams(inputs, 0.5, 3))
    tensors = module.pack(LAYER, q)
    scale, zero_point = module.tensor_names(LAYER, Scheme(), inputs)[-2:]
    for part, wrong in (
        (scale, torch.zeros(1)),
        (scale, torch.tensor([torch.nan])),
        (scale, torch.ones(2)),
        (scale, torch.ones(1, dtype=torch.int32)),
        (zero_point, torch.ones(1)),
        (zero_point, torch.ones(2, dtype=torch.int8)),
    ):
        with pytest.raises(CheckpointError, match=part):
            module.unpack(LAYER, tensors | {part: wrong}, Scheme(), inputs)
    del tensors[scale]
    with pytest.raises(CheckpointError, match=f"{scale} missing"):
        module.unpack(LAYER, tensors, Scheme(), inputs)
