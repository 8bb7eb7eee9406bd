"""A folder that we write opens in transformers, and gives the logits of our own dequantized weights.

What does not open there is tested as well: each refusal in formats/compressed_tensors.py stands for a failure here,
and falls when a later release no longer fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import zeropoint
from tiny import make_llama
from zeropoint.formats import compressed_tensors as ours
from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import split
from zeropoint.types import QTensor, Scheme

TOKENS = torch.arange(40).reshape(2, 20) * 7 % 300
TOLERANCE = 1e-5
"""The weights are equal bit for bit and so are the operations; what is left is the order of a sum."""

INT4 = Scheme(4, True, "group", 32)
ASYMMETRIC = Scheme(4, False, "group", 32, scale_dtype="float32")

SYMMETRIC_SCHEMES = [
    *(Scheme(bits, True, "group", 32) for bits in range(2, 9)),
    Scheme(4, True, "group", 64),
    Scheme(4, True, "channel", None),
    Scheme(4, True, "tensor", None),
    Scheme(8, True, "channel", None),
    replace(INT4, scale_dtype="float16"),
    replace(INT4, scale_dtype="float32"),
    replace(INT4, narrow=True),
    Scheme(4, False, "tensor", None),
]
"""Schemes that open whatever the dtype of their scales; zero points per tensor are not packed."""

ASYMMETRIC_SCHEMES = [
    *(replace(ASYMMETRIC, bits=bits) for bits in (2, 3, 4, 8)),
    replace(ASYMMETRIC, granularity="channel", group_size=None),
    replace(ASYMMETRIC, granularity="channel", group_size=None, bits=8),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with biases and its own head, bfloat16 on disk as real models are."""
    folder = tmp_path_factory.mktemp("llama")
    return make_llama(folder, hidden=64, intermediate=128, attention_bias=True, tied=False, dtype="bfloat16")


def round_to_nearest(weight: Tensor, scheme: Scheme) -> QTensor:
    values = split(weight.float(), scheme).values
    qparams = from_range(values.amin(-1), values.amax(-1), scheme)
    return QTensor(quantize(weight.float(), qparams, scheme), qparams, scheme)


def write(
    base: Path,
    folder: Path,
    scheme_of: Callable[[str], Scheme | None],
    quantization_config: dict[str, Any] | None = None,
) -> tuple[Path, dict[str, Tensor]]:
    """Quantize the linears of the blocks and write the folder; return it and the float weights it stands for."""
    stored = load_file(base / "model.safetensors")
    floats: dict[str, Tensor] = {}
    layers: dict[str, Scheme | None] = {}
    for name in [name.removesuffix(".weight") for name in stored if name.endswith("_proj.weight")]:
        layers[name] = scheme = scheme_of(name)
        if scheme is not None:
            q = round_to_nearest(stored.pop(f"{name}.weight"), scheme)
            floats[f"{name}.weight"] = dequantize(q.codes, q.qparams, scheme)
            stored |= ours.pack(name, q)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = quantization_config or ours.config(layers)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, floats


@torch.no_grad()
def logits(folder: Path, weights: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if weights is not None:
        assert not model.load_state_dict(weights, strict=False).unexpected_keys
    found: Tensor = model(TOKENS).logits
    return found.float()


def difference(a: Tensor, b: Tensor) -> float:
    assert a.abs().max() > 1  # logits of a model that says something
    return float((a - b).abs().max())


@pytest.mark.parametrize("scheme", SYMMETRIC_SCHEMES + ASYMMETRIC_SCHEMES, ids=lambda s: f"{s.label()} {s.scale_dtype}")
def test_a_written_folder_opens_and_gives_our_logits(base: Path, tmp_path: Path, scheme: Scheme) -> None:
    folder, floats = write(base, tmp_path / "out", lambda name: scheme)
    assert difference(logits(folder), logits(base, floats)) <= TOLERANCE


@pytest.mark.parametrize("scheme", [INT4, ASYMMETRIC], ids=Scheme.label)
def test_layers_that_stay_float_are_left_alone(base: Path, tmp_path: Path, scheme: Scheme) -> None:
    folder, floats = write(base, tmp_path / "out", lambda name: None if "up_proj" in name else scheme)
    assert len(floats) == 12
    assert difference(logits(folder), logits(base, floats)) <= TOLERANCE


def test_a_tied_head_stays_float(tmp_path: Path) -> None:
    tied = make_llama(tmp_path / "tied", tied=True, dtype="bfloat16")
    folder, floats = write(tied, tmp_path / "out", lambda name: INT4)
    assert difference(logits(folder), logits(tied, floats)) <= TOLERANCE


def test_each_layer_gets_its_own_scheme(base: Path, tmp_path: Path) -> None:
    mixed = {
        "v_proj": Scheme(8, True, "channel", None),
        "down_proj": Scheme(3, True, "group", 16),
        "o_proj": Scheme(4, False, "tensor", None),
        "up_proj": None,
    }
    folder, floats = write(base, tmp_path / "out", lambda name: mixed.get(name.rpartition(".")[2], INT4))
    assert difference(logits(folder), logits(base, floats)) <= TOLERANCE


def test_a_model_opened_in_bfloat16_multiplies_its_weights_in_bfloat16(base: Path, tmp_path: Path) -> None:
    folder, floats = write(base, tmp_path / "out", lambda name: INT4)
    rounded = {name: weight.bfloat16() for name, weight in floats.items()}
    assert difference(logits(folder, dtype=torch.bfloat16), logits(base, rounded, dtype=torch.bfloat16)) == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_weights_are_rounded_to_the_dtype_of_their_scales(base: Path, tmp_path: Path, bits: int) -> None:
    folder, floats = write(base, tmp_path / "out", lambda name: Scheme(bits, False, "group", 32))
    found = logits(folder)
    rounded = {name: weight.bfloat16().float() for name, weight in floats.items()}
    assert difference(found, logits(base, rounded)) <= TOLERANCE
    assert difference(found, logits(base, floats)) > 1e-3


# What does not open, and is refused for that


def test_packed_zero_points_do_not_open_without_dequantize(base: Path, tmp_path: Path) -> None:
    as_the_package_writes = ours.config({"any": ASYMMETRIC})
    del as_the_package_writes["dequantize"]
    folder, _ = write(base, tmp_path / "out", lambda name: ASYMMETRIC, as_the_package_writes)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        logits(folder)


def test_dequantize_takes_the_first_scheme_for_every_layer(base: Path, tmp_path: Path) -> None:
    other = replace(ASYMMETRIC, group_size=16)
    config, second = ours.config({"any": ASYMMETRIC}), ours.config({"any": other})
    config["config_groups"]["group_1"] = second["config_groups"]["group_0"] | {"targets": ["re:.*v_proj"]}
    folder, _ = write(base, tmp_path / "out", lambda name: other if "v_proj" in name else ASYMMETRIC, config)
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        logits(folder)


@pytest.mark.parametrize("group_size", [48, 128])
def test_a_shorter_last_group_cannot_be_multiplied(
    base: Path, tmp_path: Path, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "supports", lambda scheme, shape: None)
    folder, _ = write(base, tmp_path / "out", lambda name: replace(INT4, group_size=group_size))
    with pytest.raises(ValueError, match="column shape must be divisble"):
        logits(folder)


def test_what_the_runtime_is_to_round_is_passed_over(base: Path, tmp_path: Path) -> None:
    recipe = zeropoint.Recipe(weights=INT4, rounding="rtn", range="minmax", kv_cache="int8", embeddings="int8")  # type: ignore[arg-type]
    zeropoint.quantize(base, tmp_path / "out", recipe=recipe)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(TOKENS[:1]).logits[0]
    ours = torch.from_numpy(
        zeropoint.load(tmp_path / "out", runtime="torch", kv_cache="float32").logits(TOKENS[0].tolist())
    )
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
