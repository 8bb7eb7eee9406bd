"""NaN and infinity are found when a tensor is first read or a block makes them, and said with the name of either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropoint
from tiny import make_gguf, make_llama
from zeropoint.checkpoint.finite import SLAB_VALUES, require_finite
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import NonFiniteError
from zeropoint.recipe import load_recipe

QUICK = ["range=minmax", "weights.group_size=32", "calibration.samples=2", "calibration.length=16"]
KINDS = [
    "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
    "model.layers.0.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight",
    "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.bias",
    "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.bias",
]  # fmt: skip


def change(model: Path, **values: float) -> None:
    tensors = load_file(model / "model.safetensors")
    for name, value in values.items():
        tensors[name].reshape(-1)[-1] = value
    save_file(tensors, model / "model.safetensors")


def quantize(model: Path, out: Path, *settings: str) -> None:
    zeropoint.quantize(model, out, recipe=load_recipe("w4a16", [*QUICK, *settings]))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("settings", [("rounding=gptq",), ("rounding=rtn", "embeddings=int8"), ("transforms=rotate",)])
def test_a_value_that_is_not_finite_is_refused_with_its_tensor(
    tmp_path: Path, name: str, value: float, settings: tuple[str, ...]
) -> None:
    model = make_llama(tmp_path / "model", tied=False, attention_bias=True, mlp_bias=True, hidden=32, vocab=260)
    change(model, **{name: value})
    with pytest.raises(NonFiniteError, match=rf"{name}: .*(NaN or infinite|not finite)"):
        quantize(model, tmp_path / "out", *settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_are_looked_at_too(tmp_path: Path, dtype: str) -> None:
    model = make_llama(tmp_path / "model", dtype=dtype)  # type: ignore[arg-type]
    change(model, **{"model.layers.1.mlp.up_proj.weight": float("inf")})
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of"):
        quantize(model, tmp_path / "out", "rounding=rtn")


def test_a_scale_of_a_gguf_file_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    file = make_gguf(tmp_path / "m.gguf", quantization="Q8_0")
    bad = bytearray(file.read_bytes())
    name = "model.layers.1.mlp.up_proj.weight"
    offset = open_checkpoint(file).tensors[name].offset
    bad[offset : offset + 2] = b"\x00\x7e"  # the scale of its first block, float16: NaN
    file.write_bytes(bad)
    with pytest.raises(NonFiniteError, match=f"{name}: 32 of"):
        quantize(file, tmp_path / "out", "rounding=rtn")


@pytest.mark.parametrize(
    "settings", [("rounding=gptq",), ("rounding=rtn",), ("rules.0.layers=*.1.*", "rules.0.keep_float=true")]
)
def test_activations_that_overflow_are_refused_with_the_block(tmp_path: Path, settings: tuple[str, ...]) -> None:
    model = make_llama(tmp_path / "model", tied=False)
    tensors = load_file(model / "model.safetensors")
    for part in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{part}.weight"] *= 1e25
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"block 1, (input of mlp\.down_proj|output): "):
        quantize(model, tmp_path / "out", "calibration.held_out=0", *settings)


def test_every_value_of_a_large_tensor_is_looked_at_in_slabs() -> None:
    values = torch.zeros(SLAB_VALUES + 3)
    assert require_finite("a", values) is values
    values[-1] = float("nan")
    with pytest.raises(NonFiniteError, match="a: 1 of 3 values"):
        require_finite("a", values)
    assert require_finite("b", torch.tensor([1, 2])).dtype == torch.int64
