from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import gguf_blocks as reference
from zeropoint.errors import CheckpointError, InternalError, SchemeError
from zeropoint.exporting._integers import Integers
from zeropoint.formats import _super_blocks, compressed_tensors
from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.levels import qparams_of
from zeropoint.types import InputParams, InputScheme, Levels, QTensor, Scheme, StoredArray

NAME = "model.layers.0.mlp.down_proj"
BLOCKS = f"{NAME}.weight_blocks"


@st.composite
def weights(draw: st.DrawFn) -> QTensor:
    rows, supers = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponents = random.integers(-24, 5, (2, rows, supers))
    d, d_min = np.ldexp(random.integers(1, 2048, (2, rows, supers)), exponents).astype(np.float16).astype(np.float32)
    k = random.integers(1, 64, (rows, 8 * supers), dtype=np.uint8)
    m = random.integers(0, 64, (rows, 8 * supers), dtype=np.uint8)
    codes = torch.from_numpy(random.integers(-8, 8, (rows, 256 * supers), dtype=np.int8))
    levels = Levels(*(torch.from_numpy(part) for part in (d, d_min * random.integers(0, 2), k, m)))
    return QTensor(codes, qparams_of(levels, _super_blocks.SCHEME), _super_blocks.SCHEME)


@settings(deadline=None, max_examples=80)
@given(weights())
def test_blocks_come_back_as_they_were_and_are_what_every_reader_makes_of_them(q: QTensor) -> None:
    tensors = compressed_tensors.pack(NAME, q)
    assert list(tensors) == [BLOCKS]
    back = compressed_tensors.unpack(NAME, tensors, q.scheme)
    assert back.qparams.levels is not None
    assert q.qparams.levels is not None
    assert torch.equal(back.codes, q.codes)
    assert back.codes.dtype == torch.int8
    for name in ("d", "d_min", "k", "m"):
        assert torch.equal(getattr(back.qparams.levels, name), getattr(q.qparams.levels, name)), name
    values = dequantize(q.codes, q.qparams, q.scheme).numpy()
    data = tensors[BLOCKS].numpy()
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q4_K)
    assert np.array_equal(theirs, values)
    exact = np.array(list(reference.values(data.tobytes(), "Q4_K"))).reshape(values.shape)
    assert np.array_equal(exact.astype(np.float32), values)
    packed = compressed_tensors.read_packed(NAME, {BLOCKS: StoredArray(data, "uint8")}, q.scheme)
    assert packed.shape == q.shape
    assert np.array_equal(Integers.of(packed).values(), values)


def made() -> QTensor:
    levels = Levels(torch.ones(2, 1), torch.ones(2, 1), torch.ones(2, 8).byte(), torch.zeros(2, 8).byte())
    codes = torch.zeros(2, 256, dtype=torch.int8)
    return QTensor(codes, qparams_of(levels, _super_blocks.SCHEME), _super_blocks.SCHEME)


@pytest.mark.parametrize(
    "changes",
    [
        {"d": torch.full((2, 1), 1 + 2.0**-12)},
        {"d": torch.zeros(2, 1)},
        {"d_min": torch.full((2, 1), -1.0)},
        {"d_min": torch.full((2, 1), torch.inf)},
        {"k": torch.zeros(2, 8).byte()},
        {"k": torch.full((2, 8), 64).byte()},
        {"m": torch.full((2, 8), 64).byte()},
    ],
)
def test_what_a_block_does_not_hold_is_never_written(changes: dict[str, torch.Tensor]) -> None:
    q = made()
    assert q.qparams.levels is not None
    wrong = replace(q, qparams=replace(q.qparams, levels=replace(q.qparams.levels, **changes)))
    with pytest.raises(InternalError, match=NAME):
        compressed_tensors.pack(NAME, wrong)
    with pytest.raises(InternalError, match=NAME):
        compressed_tensors.pack(NAME, replace(q, input=InputParams(InputScheme())))


def test_files_that_hold_something_else_are_refused_by_name() -> None:
    tensors = compressed_tensors.pack(NAME, made())
    good = tensors[BLOCKS]
    no_scale, no_number = good.clone(), good.clone()
    no_scale[0, 4:8] = 0
    no_number[1, :2] = 255
    wrong = [good[:, :-1], good[0], good.to(torch.int16), good[:, :0], no_scale, no_number]
    for tensor in wrong:
        with pytest.raises(CheckpointError, match=BLOCKS):
            compressed_tensors.unpack(NAME, {BLOCKS: tensor}, _super_blocks.SCHEME)
    with pytest.raises(CheckpointError, match=f"{BLOCKS} missing"):
        compressed_tensors.unpack(NAME, {}, _super_blocks.SCHEME)


@pytest.mark.parametrize(
    ("scheme", "cols", "part"),
    [
        (_super_blocks.SCHEME, 576, "576 columns do not split"),
        (replace(_super_blocks.SCHEME, bits=5), 256, "only those of Q4_K"),
        (replace(_super_blocks.SCHEME, group_size=64), 256, "only those of Q4_K"),
        (replace(_super_blocks.SCHEME, super_size=512), 512, "only those of Q4_K"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_what_would_fit(scheme: Scheme, cols: int, part: str) -> None:
    reason = compressed_tensors.supports(scheme, (4, cols))
    assert reason is not None
    assert part in reason
    with pytest.raises(SchemeError, match=NAME):
        compressed_tensors.pack(NAME, replace(made(), scheme=scheme, codes=torch.zeros(4, cols, dtype=torch.int8)))


def test_the_configuration_says_it_and_who_can_open_it() -> None:
    layers = {NAME: _super_blocks.SCHEME, "a.q_proj": Scheme(5, True, "group", 32), "a.float": None}
    config = json.loads(json.dumps(compressed_tensors.config(layers)))
    assert compressed_tensors.schemes(config, tuple(layers)) == layers
    assert "only zeropoint can run" in (compressed_tensors.note(config) or "")
    assert "dequantize" not in config
    for value in (0, -256, 128, 2**70):
        group = next(each for each in config["config_groups"].values() if "super_size" in each["weights"])
        group["weights"]["super_size"] = value
        with pytest.raises(CheckpointError, match="quantization_config"):
            compressed_tensors.schemes(config, tuple(layers))
