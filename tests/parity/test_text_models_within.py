"""The text model of a checkpoint that sees images is quantized and the rest is not; transformers opens the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import zeropoint
from architectures import SMALL, VARIANTS
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import ArchitectureError
from zeropoint.recipe import load_recipe
from zeropoint.runtime.generate import load
from zeropoint.runtime.weights import Weights

TOKENS = torch.randint(1, 190, (1, 60), generator=torch.Generator().manual_seed(1))
SIGHT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **SMALL},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **SIGHT},
        "image_token_index": 199,
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **SMALL, **VARIANTS["gemma3_text"]["plain"]},
        "vision_config": {"model_type": "siglip_vision_model", **SIGHT},
        "mm_tokens_per_image": 4,
        "image_token_index": 199,
        "boi_token_index": 198,
        "eoi_token_index": 197,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **SMALL, **VARIANTS["mistral"]["window"]},
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **SIGHT},
        "image_token_index": 199,
    },
}


NEWER = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def rename(folder: Path) -> None:
    """Call the tensors as the modules are called since transformers 5, which saves them by their older names."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        (new,) = [new + name.removeprefix(old) for old, new in NEWER if name.startswith(old)]
        renamed[new] = tensor
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=[(kind, names) for kind in MODELS for names in ("saved", "renamed")], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    kind, names = request.param
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MODELS[kind])
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(tmp_path / "model")
    if names == "renamed":
        rename(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize(
    "options",
    [{"runtime": "torch"}, {"runtime": "native", "activations": "float", "kv_cache": "float32"}],
    ids=["torch", "native"],
)
def test_logits_of_text_equal_those_of_transformers(pair: tuple[Any, Path], options: dict[str, Any]) -> None:
    theirs, folder = pair
    with torch.no_grad():
        expected = theirs(TOKENS).logits[0]
    ours = torch.from_numpy(load(folder, **options).logits(TOKENS[0].tolist()))
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("rules", ["[]", '[{layers=["*self_attn*"], weights={bits=8}}]'], ids=["one", "two schemes"])
def test_the_text_model_is_quantized_and_the_rest_is_not_touched(pair: tuple[Any, Path], rules: str) -> None:
    _, folder = pair
    out = folder.parent / "out"
    changes = ["weights.group_size=16", 'rounding="rtn"', 'range="minmax"', f"rules={rules}"]
    done = zeropoint.quantize(folder, out, recipe=load_recipe("w4a16", changes))
    before, after = (load_file(each / "model.safetensors") for each in (folder, out))
    others = [name for name in before if "language_model" not in name and "lm_head" not in name]
    assert len(others) > 20
    assert set(done.skipped) == set(others)
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert len(done.layers) == 14
    theirs = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(TOKENS).logits[0]
    ours = torch.from_numpy(zeropoint.load(out, runtime="torch").logits(TOKENS[0].tolist()))
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    sight = dict(theirs.named_modules())["model.vision_tower"]
    assert not any(hasattr(module, "quantization_scheme") for module in sight.modules())


def test_where_no_text_model_is_found_it_is_said(pair: tuple[Any, Path]) -> None:
    _, folder = pair
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.replace("language_model", "writer"): t for name, t in tensors.items()}, folder / "model.safetensors"
    )
    with pytest.raises(ArchitectureError, match=r"has its text model under .*language_model\. or language_model"):
        Weights(open_checkpoint(folder))


def test_a_text_model_that_is_not_covered_is_named(pair: tuple[Any, Path]) -> None:
    _, folder = pair
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "rwkv"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match=r"model_type is 'rwkv'; the architectures that have a file"):
        Weights(open_checkpoint(folder))


@pytest.mark.parametrize("text", [[], "llama", 3], ids=str)
def test_a_text_config_that_is_no_table_is_refused(text: object, tmp_path: Path) -> None:
    from zeropoint.models import load_model

    with pytest.raises(ArchitectureError, match=r"text_config is .*; a table belongs there"):
        load_model({"model_type": "llava", "text_config": text}, ["model.language_model.norm.weight"])
