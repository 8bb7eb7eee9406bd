from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import architectures
import tiny
from gguf_files import write_gguf
from zeropoint.checkpoint import open_checkpoint
from zeropoint.checkpoint.gguf_architectures._rope import llama3_scaling
from zeropoint.checkpoint.gguf_header import _QuickReader, read_header
from zeropoint.checkpoint.gguf_source import CHUNK_BYTES, Gguf, dequantize
from zeropoint.checkpoint.reader import TensorInfo, read_into
from zeropoint.errors import CheckpointError

EVERY_OPTION: dict[str, Any] = {
    "tied": False,
    "attention_bias": True,
    "mlp_bias": True,
    "hidden": 96,
    "heads": 6,
    "kv_heads": 3,
    "head_dim": 32,
    "rope_scaling": tiny.LLAMA3_SCALING,
}


@pytest.mark.parametrize("options", [{}, EVERY_OPTION, {"kv_heads": 1}, {"kv_heads": 4}])
def test_a_gguf_file_holds_the_tensors_of_the_folder_it_was_made_from(tmp_path: Path, options: dict[str, Any]) -> None:
    """Names, shapes and the order of the rows of q and k, which llama.cpp's converter permutes."""
    folder = open_checkpoint(tiny.make_llama(tmp_path / "m", **options))
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", **options))
    assert file.tensors.keys() == folder.tensors.keys()
    assert file.tied == folder.tied
    for name, info in folder.tensors.items():
        assert torch.equal(file.read(name), folder.read(name)), name
        assert file.tensors[name].shape == info.shape
        assert file.tensors[name].name == name


@pytest.mark.parametrize("options", [{}, EVERY_OPTION])
def test_config_is_that_of_the_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = open_checkpoint(tiny.make_llama(tmp_path / "m", **options)).config
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", **options)).config
    assert file == folder | {"rms_norm_eps": float(np.float32(tiny.NORM_EPS)), "unk_token_id": 0}


def test_config_is_what_transformers_makes_of_the_same_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tiny.make_gguf(tmp_path / "m.gguf")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).to_dict()
    ours = open_checkpoint(path).config
    # ours alone: the tensors are read as float32. Theirs alone: which version, a name where a path belongs, defaults
    left_out = transformers.LlamaConfig().to_dict() | {"_model_name_or_path": "Tiny"}
    differs = {key for key in ours.keys() | theirs.keys() if ours.get(key, left_out.get(key)) != theirs.get(key)}
    assert differs == {"architectures", "dtype", "_name_or_path"}
    again = transformers.LlamaConfig(**ours).to_dict()
    assert {key: again[key] for key in ours if key != "dtype"} == {key: ours[key] for key in ours if key != "dtype"}


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_matrices_are_what_the_package_makes_of_their_blocks(tmp_path: Path, quantization: str) -> None:
    kind = gguf.GGMLQuantizationType[quantization]
    folder = open_checkpoint(tiny.make_llama(tmp_path / "m"))
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", quantization=quantization))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        blocks = gguf.quants.quantize(folder.read(name).numpy(), kind)
        assert np.array_equal(file.read(name).numpy(), gguf.quants.dequantize(blocks, kind))
        assert file.tensors[name].dtype == quantization
        assert file.tensors[name].size_bytes == blocks.nbytes
        assert file.read(name).dtype == torch.float32


@pytest.mark.parametrize("quantization", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_rows_are_a_part_of_the_whole_also_where_heads_are_interleaved(tmp_path: Path, quantization: str) -> None:
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", quantization=quantization))
    for name, info in file.tensors.items():
        whole = file.read_array(name)
        assert whole.dtype == np.float32
        for rows in ((0, info.shape[0]), (0, 1), (5, 13), (4, 4)):
            assert np.array_equal(file.read_array(name, rows=rows), whole[slice(*rows)]), name


def test_only_the_rows_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", quantization="Q8_0"))
    read: list[int] = []

    def counting(info: TensorInfo, buffer: memoryview, *, start: int = 0) -> None:
        read.append(len(buffer))
        read_into(info, buffer, start=start)

    monkeypatch.setattr("zeropoint.checkpoint.gguf_source.read_into", counting)
    file.read_array("model.embed_tokens.weight", rows=(100, 110))
    assert sum(read) == 10 * 64 // 32 * 34  # ten rows of two blocks of 34 bytes


KINDS = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_dequantized_in_chunks_as_in_one_piece(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    blocks = 2 * CHUNK_BYTES // bytes_per_block + 3
    raw = np.random.default_rng(0).integers(0, 256, blocks * bytes_per_block, dtype=np.uint8)
    (tmp_path / "raw").write_bytes(b"odd" + raw.tobytes())
    info = TensorInfo("t", kind.name, (blocks, values_per_block), raw.nbytes, tmp_path / "raw", offset=3)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(blocks, -1), kind)
    assert np.array_equal(dequantize(info), expected, equal_nan=True)


def test_type_that_the_package_cannot_dequantize_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(64))
    info = TensorInfo("t", "I32", (16,), 64, tmp_path / "raw")
    with pytest.raises(CheckpointError, match="t is stored as I32, which the gguf package cannot dequantize"):
        dequantize(info)


def test_logits_are_those_of_the_folder_in_transformers(tmp_path: Path) -> None:
    """The end of the chain: names, permutation, biases, rope scaling and config together."""
    transformers = pytest.importorskip("transformers")
    folder = tiny.make_llama(tmp_path / "m", **EVERY_OPTION)
    file = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", **EVERY_OPTION))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**file.config))
    model.load_state_dict({name: file.read(name) for name in file.tensors})
    tokens = torch.arange(200).reshape(1, -1) % 259
    with torch.no_grad():
        # 1e-4: rms_norm_eps went through float32
        assert torch.allclose(model(tokens).logits, expected(tokens).logits, atol=1e-4)


# Headers


def test_header_is_what_the_package_reads_and_takes_few_parts(tmp_path: Path) -> None:
    path = tiny.make_gguf(tmp_path / "m.gguf", metadata={"general.quantization_version": 2, "a.flag": True, "a.x": 0.5})
    theirs, quick = gguf.GGUFReader(path), _QuickReader(path)
    assert read_header(path).metadata == {name: field.contents() for name, field in theirs.fields.items()}
    # the package keeps two arrays for each token: what makes it slow
    assert len(theirs.fields["tokenizer.ggml.tokens"].parts) > 600
    assert len(quick.fields["tokenizer.ggml.tokens"].parts) < 10


def test_vocabulary_of_100_000_tokens_is_read_in_less_than_a_second(tmp_path: Path) -> None:
    import time

    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama")
    writer.add_token_list([f"token {index}" for index in range(100_000)])
    writer.add_token_scores([0.5] * 100_000)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    best = math.inf
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        header = read_header(tmp_path / "big.gguf")
        best = min(best, time.perf_counter() - started)
    assert header.metadata["tokenizer.ggml.tokens"][-1] == "token 99999"
    assert best < 1  # 0.1 s; the package alone needs 4


def test_big_endian_file_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_token_list(["a", "b"])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match=r"is a big-endian GGUF file; convert it with gguf-convert-endian"):
        open_checkpoint(tmp_path / "m.gguf")


# What would change the result is never ignored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, r"general\.architecture is 'mamba'; GGUF files are read of gemma, gemma2"),
        ({"metadata": {"llama.attention.sliding_window": 4096}}, r"llama\.attention\.sliding_window is 4096"),
        ({"metadata": {"llama.logit_scale": 0.5}}, r"llama\.logit_scale is 0\.5, which may change"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, r"rope\.scaling\.type is 'yarn'; covered are"),
        ({"metadata": {"llama.attention.key_length": 8}}, "keys have 8 features, values or the rotation another"),
        ({"metadata": {"split.count": 3}}, r"is one of 3 parts; join them with llama\.cpp: llama-gguf-split"),
        ({"extra_tensors": {"blk.0.attn_q_norm.weight": np.ones(4)}}, r"'blk\.0\.attn_q_norm\.weight' is none of this"),
        ({"extra_tensors": {"unknown": np.ones(4)}}, "'unknown' is none of this"),
        ({"extra_tensors": {"blk.0.attn_q.bias": np.ones(64)}}, r"some of q_proj.* have a bias and model\.layers\.0"),
        ({"extra_tensors": {"rope_freqs.weight": np.linspace(1, 3, 8)}}, r"rope_freqs\.weight changes the rotary"),
        ({"extra_tensors": {"rope_freqs.weight": np.full(8, np.nan)}}, r"rope_freqs\.weight changes the rotary"),
        ({"extra_tensors": {"rope_freqs.weight": np.full(9, 2.0)}}, r"rope_freqs\.weight changes the rotary"),
    ],
)
def test_what_is_not_covered_is_refused_by_its_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", **options))
    assert "m.gguf" in str(caught.value)


@pytest.mark.parametrize("metadata", [{"llama.expert_count": 0}, {"llama.rope.scaling.type": "none"}, {"other.key": 7}])
def test_what_is_off_or_of_another_program_is_no_reason_to_refuse(tmp_path: Path, metadata: dict[str, Any]) -> None:
    plain = open_checkpoint(tiny.make_gguf(tmp_path / "plain.gguf"))
    assert open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", metadata=metadata)).config == plain.config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("llama.block_count", None, r"llama\.block_count is None; a positive number"),
        ("llama.block_count", 0, r"llama\.block_count is 0; a positive number"),
        ("llama.attention.head_count", [4, 4], r"llama\.attention\.head_count is \[4, 4\]; .* one for all layers"),
        ("llama.attention.layer_norm_rms_epsilon", math.nan, "layer_norm_rms_epsilon is nan; a positive number"),
        ("llama.rope.freq_base", "fast", r"llama\.rope\.freq_base is fast; a positive number"),
        ("tokenizer.ggml.bos_token_id", 300, r"bos_token_id is 300; the file has the tokens 0 to 299"),
    ],
)
def test_metadata_without_a_usable_number_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    checkpoint = Gguf(tiny.make_gguf(tmp_path / "m.gguf"))
    fields = replace(checkpoint.fields, metadata={**checkpoint.metadata, field: value})
    with pytest.raises(CheckpointError, match=message):
        checkpoint._architecture.config(fields)


@pytest.mark.parametrize("tokens", [None, 7])
def test_file_without_a_vocabulary_still_has_a_config(tmp_path: Path, tokens: object) -> None:
    checkpoint = Gguf(tiny.make_gguf(tmp_path / "m.gguf"))
    metadata = {**checkpoint.metadata, "tokenizer.ggml.tokens": tokens}
    make, fields = checkpoint._architecture.config, replace(checkpoint.fields, metadata=metadata)
    assert make(fields) == checkpoint.config
    del metadata["llama.vocab_size"]
    with pytest.raises(CheckpointError, match=r"llama\.vocab_size is None; a positive number"):
        make(fields)


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    for metadata in (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ):
        config = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", metadata=metadata)).config
        assert config["rope_parameters"] == {"rope_theta": tiny.THETA, "rope_type": "linear", "factor": 4.0}


def test_rope_factors_of_one_scale_nothing(tmp_path: Path) -> None:
    path = tiny.make_gguf(tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": np.ones(8)})
    assert open_checkpoint(path).config["rope_parameters"] == {"rope_theta": tiny.THETA, "rope_type": "default"}


@settings(max_examples=60, deadline=None)
@given(
    factor=st.integers(2, 64),
    low=st.sampled_from([1.0, 2.0]),
    ratio=st.sampled_from([4.0, 8.0]),
    context=st.sampled_from([4096, 8192, 32768]),
    sizes=st.sampled_from([(32, 10000.0), (64, 10000.0), (32, 500000.0), (64, 500000.0)]),
)
def test_llama3_scaling_is_recovered_from_its_factors(
    factor: int, low: float, ratio: float, context: int, sizes: tuple[int, float]
) -> None:
    """The factors are all that a GGUF file keeps; parameters that give other factors are never returned."""
    half, theta = sizes

    def divisors(scaling: dict[str, Any]) -> np.ndarray:
        frequency = theta ** -(np.arange(half) / half)
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        blend = (turns - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
        blend = np.clip(blend, 0, 1)
        return (1 / ((1 - blend) / scaling["factor"] + blend)).astype(np.float32)

    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    truth = divisors(dict(zip(names, (factor, low, low * ratio, context), strict=True)))
    if np.ptp(truth) == 0:
        return
    found = llama3_scaling(truth, theta)
    assert found is not None
    assert np.allclose(divisors(found), truth, rtol=1e-3)
    if low == 1.0:
        assert [found[name] for name in names] == [factor, 1.0, ratio, context]


def test_factors_that_no_llama3_scaling_gives_are_not_taken_for_one() -> None:
    good = llama3_scaling(np.array([1] * 20 + [1.2, 2.1, 4.9] + [8] * 9, dtype=np.float32), 500000.0)
    assert good is None
    assert llama3_scaling(np.array([0.5, 8], dtype=np.float32), 500000.0) is None
    assert llama3_scaling(np.array([], dtype=np.float32), 500000.0) is None


def test_rows_that_do_not_split_into_heads_are_refused(tmp_path: Path) -> None:
    path = tiny.make_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    key = b"llama.attention.head_count" + struct.pack("<I", gguf.GGUFValueType.UINT32)
    at = content.index(key) + len(key)
    path.write_bytes(content[:at] + struct.pack("<I", 5) + content[at + 4 :])
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has 64 rows, which do not split into 5 x 2 parts"):
        open_checkpoint(path).read("model.layers.0.self_attn.q_proj.weight")


def test_a_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    theirs = architectures.make(tmp_path / "m", "qwen2", "plain", vocab_size=300)
    for layer in theirs.model.layers:
        layer.self_attn.v_proj.bias = None
    with pytest.raises(CheckpointError, match="of q_proj, k_proj, v_proj have a bias and"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", theirs))
