from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropoint as api
from e2e.cli import zeropoint
from tiny import make_gguf, make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.runtime.weights import Weights

SETTINGS = ("rounding=rtn", "range=minmax", "calibration.samples=8", "calibration.length=32")
SMALL = ("--recipe", "w8a16", *(part for setting in SETTINGS for part in ("--set", setting)))
ROUNDED = ("--set", "activations.dynamic=true")
SMOOTH = (*ROUNDED, "--set", "transforms=smoothquant")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama with biases, grouped queries and two large channels."""
    folder = make_llama(
        tmp_path_factory.mktemp("models") / "tiny", dtype="bfloat16", attention_bias=True, mlp_bias=True
    )
    with_outliers(folder / "model.safetensors")
    return folder


def with_outliers(file: Path) -> None:
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "layernorm" in name:
            tensor[[1, 7]] *= 6
    save_file(tensors, file, metadata={"format": "pt"})


def made(model: Path, output: Path, *settings: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    done = zeropoint("quantize", model, "--output", output, *SMALL, *settings, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return load_file(output / "model.safetensors"), result


def test_the_written_norms_and_biases_are_those_the_weights_were_made_for(model: Path, tmp_path: Path) -> None:
    """Norm times weight is the float model's, to half a step of the integers, though both are others."""
    before = load_file(model / "model.safetensors")
    got, result = made(model, tmp_path / "out", *SMOOTH, "--set", "transforms.0.strength=0.7")
    norm, bias = "model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.v_proj.bias"
    for name in (norm, bias):
        assert got[name].dtype == torch.bfloat16
        assert not torch.equal(got[name], before[name])
    assert torch.equal(got["model.norm.weight"], before["model.norm.weight"])
    for layer in ("self_attn.q_proj", "self_attn.v_proj"):
        weight = f"model.layers.1.{layer}.weight"
        restored = Weights(open_checkpoint(tmp_path / "out")).restored_linear(weight.removesuffix(".weight"))
        products = restored * got[norm].float(), before[weight].float() * before[norm].float()
        if layer == "self_attn.v_proj":  # its rows moved, and its bias with them
            products = (products[0] * (before[bias].float() / got[bias].float())[:, None], products[1])
        scale = got[f"{weight}_scale"].float()
        inside = restored.abs() < 126.5 * scale  # the largest weight of a row may be clipped by more
        if layer == "self_attn.q_proj":
            half_steps = scale / 2 * got[norm].float().abs()
            assert bool(((products[0] - products[1]).abs() <= half_steps * 1.001)[inside].all())
        assert torch.nn.functional.cosine_similarity(*products, dim=1).min() > 0.9995
    transforms = result["transforms"]
    assert isinstance(transforms, list)
    assert [row["block"] for row in transforms] == ["model.layers.0", "model.layers.1"]
    assert {stage["strength"] for row in transforms for stage in row["stages"]} == {0.7}
    assert all(row["error_after"] < row["error_before"] for row in transforms)


def test_strength_0_gives_the_bytes_of_no_transform(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path / "none", *ROUNDED)
    _, result = made(model, tmp_path / "zero", *SMOOTH, "--set", "transforms.0.strength=0")
    file = "model.safetensors"
    assert (tmp_path / "none" / file).read_bytes() == (tmp_path / "zero" / file).read_bytes()
    assert "smoothquant" in str(result["recipe"])


@pytest.mark.parametrize("recipe", [(), ("--recipe", "w4a16", "--set", "weights.group_size=32")], ids=["w8", "w4 gptq"])
def test_a_search_gives_the_same_bytes_on_any_number_of_threads(
    recipe: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    one, result = made(model, tmp_path / "1", *recipe, *SMOOTH, "--threads", "1")
    two, _ = made(model, tmp_path / "2", *recipe, *SMOOTH, "--threads", "2")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    transforms = result["transforms"]
    assert isinstance(transforms, list)
    assert all(row["error_after"] <= row["error_before"] for row in transforms)


def test_linears_that_a_rule_keeps_stay_exact(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "kept.toml"
    recipe.write_text(
        'weights = { bits = 8, granularity = "channel" }\nrounding = "rtn"\nrange = "minmax"\n'
        "calibration = { samples = 8, length = 32 }\ntransforms = [{ method = 'smoothquant', strength = 0.5 }]\n"
        '[[rules]]\nlayers = ["*.v_proj", "*.up_proj"]\nkeep_float = true\n'
    )
    api.quantize(model, tmp_path / "out", recipe=recipe)
    got, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.v_proj.weight"
    ratio = (got[name].float() / before[name].float()).nan_to_num(1.0).log2()
    assert got[name].dtype == torch.bfloat16
    assert torch.equal(ratio, ratio.round())
    assert ratio.any()


def test_a_gguf_file_is_transformed_like_a_folder(tmp_path: Path) -> None:
    source = make_gguf(tmp_path / "model.gguf", quantization="Q8_0")
    got, result = made(source, tmp_path / "out", *SMOOTH)
    assert result["transforms"]
    assert got["model.layers.0.input_layernorm.weight"].dtype == torch.float32


def test_an_unknown_transform_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = zeropoint("quantize", tmp_path / "nowhere", "-o", tmp_path / "out", "--set", "transforms=smothquant")
    assert done.returncode == 2
    assert "did you mean 'smoothquant'?" in done.stderr
