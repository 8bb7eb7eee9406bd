from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from zeropoint.errors import CheckpointError, InternalError
from zeropoint.formats import _tables
from zeropoint.formats import compressed_tensors as ours
from zeropoint.types import QParams, QTensor, Scheme, StoredArray

TABLE, HEAD = "model.embed_tokens", "lm_head"
INT8 = Scheme(8, granularity="channel", group_size=None)
INT4 = Scheme(4, group_size=64)
LINEAR, ASYMMETRIC = Scheme(4), Scheme(4, symmetric=False)


def table(rows: int, cols: int, scheme: Scheme) -> QTensor:
    codes = (torch.arange(rows * cols) * 7 % 2**scheme.bits + scheme.q_min).to(torch.int8).reshape(rows, cols)
    scale = 2.0 ** -torch.arange(1, rows * scheme.groups(cols) + 1).remainder(5).float()
    return QTensor(codes, QParams(scale.reshape(rows, -1), None), scheme)


def rows_of(q: QTensor, start: int, stop: int) -> QTensor:
    return replace(q, codes=q.codes[start:stop], qparams=QParams(q.qparams.scale[start:stop], None))


def stored(tensors: dict[str, torch.Tensor]) -> dict[str, StoredArray]:
    return {
        name: StoredArray(
            (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy(), str(t.dtype).removeprefix("torch.")
        )
        for name, t in tensors.items()
    }


def test_8_bits_are_bytes_and_a_scale_for_each_row() -> None:
    q = table(5, 64, INT8)
    made = ours.pack_table(TABLE, [q])
    assert {name: (t.dtype, tuple(t.shape)) for name, t in made.items()} == {
        f"{TABLE}.weight": (torch.int8, (5, 64)),
        f"{TABLE}.weight_scale": (torch.bfloat16, (5, 1)),
    }
    assert torch.equal(made[f"{TABLE}.weight"], q.codes)


def test_4_bits_are_words_and_a_scale_for_each_group() -> None:
    made = ours.pack_table(TABLE, [table(5, 128, INT4)])
    assert {name: (t.dtype, tuple(t.shape)) for name, t in made.items()} == {
        f"{TABLE}.weight_packed": (torch.int32, (5, 16)),
        f"{TABLE}.weight_scale": (torch.bfloat16, (5, 2)),
    }


def test_a_tied_table_has_its_codes_once_and_its_scales_under_both_names() -> None:
    made = ours.pack_table(TABLE, [table(5, 64, INT8)], HEAD)
    assert tuple(made) == (f"{TABLE}.weight", f"{TABLE}.weight_scale", f"{HEAD}.weight_scale")
    assert torch.equal(made[f"{TABLE}.weight_scale"], made[f"{HEAD}.weight_scale"])
    # nobody else reads fewer bits, so that nothing is there twice
    assert tuple(ours.pack_table(TABLE, [table(5, 64, INT4)], HEAD)) == ours.table_tensor_names(TABLE, INT4)


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=Scheme.label)
def test_slabs_give_the_tensors_of_the_whole(scheme: Scheme) -> None:
    q = table(11, 128, scheme)
    whole = ours.pack_table(TABLE, [q], HEAD)
    parts = ours.pack_table(TABLE, [rows_of(q, 0, 4), rows_of(q, 4, 8), rows_of(q, 8, 11)], HEAD)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("scheme", [INT8, INT4, replace(INT8, scale_dtype="float32")], ids=Scheme.label)
def test_some_rows_are_read_as_all_of_them(scheme: Scheme) -> None:
    q = table(11, 128, scheme)
    tensors = stored(ours.pack_table(TABLE, [q]))
    some = {name: replace(array, values=array.values[3:9]) for name, array in tensors.items()}
    back = ours.unpack_table(TABLE, some, scheme, 128)
    assert torch.equal(back.codes, q.codes[3:9])
    assert torch.equal(back.qparams.scale, q.qparams.scale[3:9])
    assert back.scheme == scheme


def test_rows_of_two_schemes_are_no_table() -> None:
    with pytest.raises(InternalError, match=f"{TABLE}: the rows of a table have one scheme"):
        ours.pack_table(TABLE, [table(2, 64, INT8), table(2, 64, INT4)])


@pytest.mark.parametrize("scheme", [ASYMMETRIC, Scheme(8, granularity="tensor", group_size=None)], ids=Scheme.label)
def test_zero_points_and_one_scale_for_all_are_refused(scheme: Scheme) -> None:
    reason = ours.supports_table(scheme, (10, 64))
    assert reason is not None
    assert "use symmetric scales, per channel or per group" in reason
    assert ours.supports_table(INT8, (10, 64)) is ours.supports_table(INT4, (10, 64)) is None
    assert "do not split into groups of 64" in str(ours.supports_table(INT4, (10, 96)))


@pytest.mark.parametrize("scheme", [INT8, INT4], ids=Scheme.label)
def test_a_table_of_another_width_or_dtype_is_refused_by_name(scheme: Scheme) -> None:
    tensors = stored(ours.pack_table(TABLE, [table(4, 128, scheme)]))
    codes, scale = tensors
    with pytest.raises(CheckpointError, match=rf"{codes} is int\d+ .* rows of"):
        ours.read_table(TABLE, tensors, scheme, 64)
    floats = StoredArray(np.zeros((4, 128), np.float32), "float32")
    with pytest.raises(CheckpointError, match=rf"{codes} is float32"):
        ours.read_table(TABLE, tensors | {codes: floats}, scheme, 128)
    with pytest.raises(CheckpointError, match=rf"{scale} is"):
        ours.read_table(TABLE, tensors | {scale: floats}, scheme, 128)
    negative = replace(tensors[scale], values=tensors[scale].values | np.uint16(0x8000))
    with pytest.raises(CheckpointError, match=rf"{scale} holds a scale that is not positive"):
        ours.read_table(TABLE, tensors | {scale: negative}, scheme, 128)


@pytest.mark.parametrize(
    ("linear", "scheme", "declared", "note"),
    [
        (LINEAR, INT8, "int-quantized", _tables.NOTE_INT8),
        (LINEAR, INT4, "zeropoint-embedding", _tables.NOTE),
        (ASYMMETRIC, INT8, "zeropoint-embedding", _tables.NOTE),
    ],
)
def test_the_configuration_says_what_a_table_is_and_who_opens_it(
    linear: Scheme, scheme: Scheme, declared: str, note: str
) -> None:
    config = ours.config({"a.q_proj": linear}, None, {TABLE: scheme, HEAD: scheme})
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert config["config_groups"]["group_1"]["targets"] == [TABLE, HEAD]
    assert config["config_groups"]["group_1"]["format"] == declared
    assert config["ignore"] == []
    assert ours.note(config) == note
    assert ours.table_schemes(config, [TABLE, HEAD]) == {TABLE: scheme, HEAD: scheme}
    assert ours.schemes(config, ["a.q_proj"]) == {"a.q_proj": linear}


def test_a_float_head_stays_in_the_list_of_what_is_ignored() -> None:
    config = ours.config({"a.q_proj": LINEAR, HEAD: None}, None, {TABLE: INT8})
    assert config["ignore"] == [HEAD]
    assert ours.table_schemes(config, [TABLE, HEAD]) == {TABLE: INT8, HEAD: None}
    plain = ours.config({"a.q_proj": LINEAR})
    assert ours.note(plain) is None
    assert ours.table_schemes(plain, [TABLE, HEAD]) == {TABLE: None, HEAD: None}


def test_a_model_may_have_nothing_but_its_tables_in_integers() -> None:
    config = ours.config({"a.q_proj": None}, None, {TABLE: INT8, HEAD: INT8})
    assert config["format"] == "int-quantized"
    assert ours.schemes(config, ["a.q_proj"]) == {"a.q_proj": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "pack-quantized"}, "format 'pack-quantized' is not supported for an embedding or a head in int8"),
        ({"input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"}}, "rounded inputs or outputs"),
        ({"output_activations": {"num_bits": 8}}, "rounded inputs or outputs"),
    ],
)
def test_a_table_that_others_wrote_in_another_way_is_refused(change: dict[str, object], said: str) -> None:
    config = ours.config({"a.q_proj": LINEAR}, None, {TABLE: INT8})
    config["config_groups"]["group_1"] |= change
    with pytest.raises(CheckpointError, match=f"group 'group_1': {said}"):
        ours.table_schemes(config, [TABLE])
