from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import InternalError
from zeropoint.evaluation.results import Size
from zeropoint.evaluation.size import linear_shape, measure_size, stored_bytes
from zeropoint.types import Scheme

FILE = Path("model.safetensors")
NAME = "model.layers.0.self_attn.q_proj"


def info(name: str, dtype: str, *shape: int, size_bytes: int | None = None) -> TensorInfo:
    width = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8}
    count = 1
    for length in shape:
        count *= length
    return TensorInfo(name, dtype, shape, count * width[dtype] if size_bytes is None else size_bytes, FILE)


def by_name(*infos: TensorInfo) -> dict[str, TensorInfo]:
    return {i.name: i for i in infos}


def packed(name: str, rows: int, cols: int, scheme: Scheme) -> list[TensorInfo]:
    """The headers of one linear as pack-quantized writes them."""
    groups = scheme.groups(cols)
    found = [
        info(f"{name}.weight_packed", "I32", rows, -(-cols * scheme.bits // 32)),
        info(f"{name}.weight_scale", "BF16", *((1,) if scheme.granularity == "tensor" else (rows, groups))),
        info(f"{name}.weight_shape", "I64", 2),
    ]
    if not scheme.symmetric:
        found.append(info(f"{name}.weight_zero_point", "I32", -(-rows * scheme.bits // 32), groups))
    return found


def parts(size: Size) -> int:
    linears = size.linear_bytes + size.float_linear_bytes
    return linears + size.embedding_bytes + size.head_bytes + size.other_bytes + size.overhead_bytes


def test_four_bits_in_groups_of_64_are_four_and_a_quarter() -> None:
    scheme = Scheme(bits=4, group_size=64)
    size = measure_size(by_name(*packed(NAME, 576, 1536, scheme)), {NAME: scheme})
    assert size.bits_per_weight == 4.25
    assert (size.linear_weights, size.code_bytes, size.scale_bytes) == (576 * 1536, 576 * 1536 // 2, 576 * 24 * 2)
    assert (size.zero_point_bytes, size.overhead_bytes) == (0, 16)


def test_a_super_block_is_four_and_a_half_with_its_scales() -> None:
    scheme = Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)
    blocks = info(f"{NAME}.weight_blocks", "U8", 576, 6 * 144)
    size = measure_size(by_name(blocks), {NAME: scheme})
    assert size.bits_per_weight == 4.5
    assert (size.linear_weights, size.code_bytes, size.scale_bytes) == (576 * 1536, 576 * 864, 0)
    assert linear_shape(NAME, by_name(blocks), scheme) == (576, 1536)


def test_zero_points_count() -> None:
    scheme = Scheme(bits=4, symmetric=False, group_size=64)
    size = measure_size(by_name(*packed(NAME, 576, 1536, scheme)), {NAME: scheme})
    assert size.bits_per_weight == 4.25 + 4 / 64
    assert size.zero_point_bytes == 576 * 24 // 2


def test_columns_that_stay_float_count() -> None:
    scheme = Scheme(bits=8, granularity="channel", group_size=None)
    stored = [
        info(f"{NAME}.weight", "I8", 576, 1536),
        info(f"{NAME}.weight_scale", "BF16", 576, 1),
        info(f"{NAME}.outlier_columns", "I32", 6),
        info(f"{NAME}.outlier_weight", "BF16", 576, 6),
    ]
    size = measure_size(by_name(*stored), {NAME: scheme})
    assert (size.outlier_bytes, size.overhead_bytes) == (6 * 4 + 576 * 6 * 2, 0)
    assert size.linear_bytes == size.code_bytes + size.scale_bytes + size.outlier_bytes
    assert size.bits_per_weight == 8 * (576 * 1536 + 576 * 2 + 6 * 4 + 576 * 6 * 2) / (576 * 1536)
    assert (size.linear_weights, size.weights) == (576 * 1536, 576 * 1536)


def test_a_shorter_last_group_counts_as_what_it_takes() -> None:
    scheme = Scheme(bits=4, group_size=128)
    size = measure_size(by_name(*packed(NAME, 576, 576, scheme)), {NAME: scheme})  # groups of 128, 128, 128, 128, 64
    assert size.linear_weights == 576 * 576
    assert size.bits_per_weight == pytest.approx(4 + 16 * 5 / 576)


@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 300),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([None, 1, 16, 64]),
    known=st.booleans(),
    headers=st.integers(0, 5000),
)
def test_every_byte_is_in_one_part(
    *, rows: int, cols: int, bits: int, symmetric: bool, group_size: int | None, known: bool, headers: int
) -> None:
    scheme = Scheme(bits, symmetric, "channel" if group_size is None else "group", group_size)
    tensors = by_name(
        *packed(NAME, rows, cols, scheme),
        info("model.layers.0.mlp.up_proj.weight", "BF16", rows, cols),
        info("model.embed_tokens.weight", "F32", 10, cols),
        info("model.norm.weight", "F32", cols),
    )
    stored = sum(i.size_bytes for i in tensors.values())
    schemes = {NAME: scheme, "model.layers.0.mlp.up_proj": None}
    shapes = {NAME: (rows, cols)} if known else None
    size = measure_size(tensors, schemes, shapes=shapes, file_bytes=stored + headers)
    assert parts(size) == size.total_bytes == stored + headers
    assert size.linear_bytes == size.code_bytes + size.scale_bytes + size.zero_point_bytes
    assert size.overhead_bytes == 16 + headers
    assert size.float_linear_weights == rows * cols
    if known or cols * bits % 32 == 0 or (group_size is not None and cols % group_size == 0):
        assert size.linear_weights == rows * cols
        assert size.weights == 2 * rows * cols + 11 * cols
    else:
        assert 0 <= size.linear_weights // rows - cols <= 31 // bits
    assert size.bits_per_weight == 8 * size.linear_bytes / size.linear_weights
    assert size.bits_per_weight_model == 8 * size.total_bytes / size.weights


def test_each_tensor_of_a_model_has_its_place() -> None:
    scheme = Scheme(bits=8, granularity="channel", group_size=None)
    tensors = by_name(
        *packed("model.layers.0.mlp.up_proj", 64, 32, scheme),
        info("model.layers.0.mlp.up_proj.bias", "F32", 64),
        info("model.layers.0.mlp.down_proj.weight", "F16", 32, 64),
        info("model.layers.0.input_layernorm.weight", "F32", 32),
        info("model.embed_tokens.weight", "BF16", 300, 32),
        info("lm_head.weight", "F32", 300, 32),
        info("vision.patch.weight", "F32", 5),
    )
    size = measure_size(tensors, {"model.layers.0.mlp.up_proj": scheme, "model.layers.0.mlp.down_proj": None})
    assert (size.code_bytes, size.scale_bytes) == (64 * 32, 64 * 2)
    assert (size.float_linear_bytes, size.embedding_bytes, size.head_bytes) == (32 * 64 * 2, 300 * 32 * 2, 300 * 32 * 4)
    assert size.other_bytes == 4 * (64 + 32 + 5)
    assert size.total_bytes == sum(i.size_bytes for i in tensors.values())


def test_a_quantized_head_counts_as_a_linear() -> None:
    scheme = Scheme(bits=8, group_size=32)
    size = measure_size(by_name(*packed("lm_head", 64, 32, scheme)), {"lm_head": scheme})
    assert (size.head_bytes, size.linear_weights, size.bits_per_weight) == (0, 64 * 32, 8.5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_integers_counts_its_weights_and_not_its_scales(bits: int) -> None:
    table = Scheme(8, granularity="channel", group_size=None) if bits == 8 else Scheme(4, group_size=32)
    codes = info("model.embed_tokens.weight", "I8", 300, 64) if bits == 8 else None
    codes = codes or info("model.embed_tokens.weight_packed", "I32", 300, 8)
    scales = info("model.embed_tokens.weight_scale", "BF16", 300, table.groups(64))
    again = info("lm_head.weight_scale", "BF16", 300, 1)
    tensors = by_name(*packed(NAME, 64, 64, Scheme(group_size=32)), codes, scales, again)
    size = measure_size(tensors, {NAME: Scheme(group_size=32)}, tables={"model.embed_tokens": table})
    assert size.weights == 300 * 64 + 64 * 64
    assert size.embedding_bytes == 300 * 64 * bits / 8 + 300 * 2 * table.groups(64)
    assert size.head_bytes == 300 * 2
    assert size.bits_per_weight == 4.5
    assert size.bits_per_weight_model == 8 * size.total_bytes / size.weights


def test_a_float_model_has_no_bits_of_quantized_linears() -> None:
    size = measure_size(by_name(info(f"{NAME}.weight", "BF16", 8, 16)), {NAME: None})
    assert (size.bits_per_weight, size.bits_per_weight_model) == (None, 16.0)
    assert size.linear_bytes == 0


def test_block_types_of_gguf_hold_their_scales() -> None:
    q4_1 = info(f"{NAME}.weight", "Q4_1", 8, 64, size_bytes=8 * 2 * 20)  # 32 weights in 20 bytes
    table = info("model.embed_tokens.weight", "Q8_0", 10, 64, size_bytes=10 * 2 * 34)
    size = measure_size(by_name(q4_1, table), {NAME: None})
    assert (size.bits_per_weight, size.linear_weights) == (5.0, 512)
    assert (size.embedding_bytes, size.weights) == (680, 512 + 640)


def test_unpacked_eight_bit_weights_count() -> None:
    scheme = Scheme(bits=8, granularity="channel", group_size=None)
    tensors = by_name(info(f"{NAME}.weight", "I8", 16, 30), info(f"{NAME}.weight_scale", "F32", 16, 1))
    size = measure_size(tensors, {NAME: scheme})
    assert size.linear_weights == 16 * 30
    assert size.bits_per_weight == pytest.approx(8 + 32 / 30)


def test_a_linear_without_a_matrix_is_an_error_with_its_name() -> None:
    with pytest.raises(InternalError, match=NAME):
        linear_shape(NAME, {}, Scheme())


def test_the_size_of_the_files_counts_each_once(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file, count in zip(files, (100, 23), strict=True):
        file.write_bytes(bytes(count))
    tensors = by_name(*(TensorInfo(str(i), "F32", (1,), 4, files[i % 2]) for i in range(5)))
    assert stored_bytes(tensors) == 123
