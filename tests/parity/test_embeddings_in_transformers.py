"""What transformers does with embedding and head as integers: int8 it opens, with our numbers; the rest is refused.

Why the rest is refused stands here too: how each case fails without the refusal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import zeropoint
from tiny import make_llama
from zeropoint.recipe import load_recipe

TOKENS = list(range(7, 300, 11))
TOLERANCE = 1e-5
"""The weights are equal bit for bit; what is left is the order of a sum."""
SMALL = ["rounding=rtn", "range=minmax", "weights.group_size=32"]


def make(tmp_path: Path, embeddings: str, *, tied: bool, recipe: str = "w4a16") -> Path:
    base = make_llama(tmp_path / "base", hidden=64, intermediate=128, tied=tied, dtype="bfloat16")
    settings = SMALL if recipe.startswith("w4") else SMALL[:2]
    zeropoint.quantize(base, tmp_path / "out", recipe=load_recipe(recipe, [*settings, f"embeddings={embeddings}"]))
    return tmp_path / "out"


def ours(folder: Path) -> np.ndarray[Any, Any]:
    return zeropoint.load(folder, runtime="torch").logits(TOKENS)


@torch.no_grad()
def theirs(folder: Path) -> np.ndarray[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return np.asarray(model(torch.tensor([TOKENS])).logits[0])


def difference(folder: Path) -> float:
    expected = ours(folder)
    assert np.abs(expected).max() > 1  # logits of a model that says something
    return float(np.abs(theirs(folder) - expected).max())


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    change(config["quantization_config"])
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("recipe", ["w4a16", "w8a16", "w4a8"])
def test_int8_opens_and_gives_our_logits(tmp_path: Path, tied: bool, recipe: str) -> None:
    folder = make(tmp_path, "int8", tied=tied, recipe=recipe)
    # inputs in 8 bits: a sum in another order pushes some of them over the edge of a step
    assert difference(folder) <= (TOLERANCE if recipe.endswith("a16") else 0.05)


def test_what_transformers_saves_again_is_still_ours_to_read(tmp_path: Path) -> None:
    folder = make(tmp_path, "int8", tied=True)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert np.array_equal(ours(tmp_path / "again"), ours(folder))


@pytest.mark.filterwarnings("ignore")
def test_the_scales_of_a_tied_head_are_wanted_under_its_own_name(tmp_path: Path) -> None:
    folder = make(tmp_path, "int8", tied=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight_scale"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert found["missing_keys"] == {"lm_head.weight_scale"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("embeddings", "recipe"), [("int4", "w4a16"), ("int8", "w4a16_asym"), ("int4", "w4a16_asym")])
def test_what_it_cannot_run_is_refused_by_name(tmp_path: Path, embeddings: str, recipe: str, tied: bool) -> None:
    folder = make(tmp_path, embeddings, tied=tied, recipe=recipe)
    with pytest.raises(ValueError, match="zeropoint-embedding"):
        theirs(folder)


@pytest.mark.filterwarnings("ignore")
def test_packed_codes_of_an_embedding_do_not_open(tmp_path: Path) -> None:
    folder = make(tmp_path, "int4", tied=False)

    def as_the_package_would(config: dict[str, Any]) -> None:
        config["config_groups"]["group_1"]["format"] = config["format"] = "pack-quantized"

    with pytest.raises(AttributeError, match="'Embedding' object has no attribute 'weight'"):
        theirs(changed(folder, tmp_path / "changed", as_the_package_would))


@pytest.mark.filterwarnings("ignore")
def test_beside_packed_zero_points_an_int8_embedding_does_not_open(tmp_path: Path) -> None:
    folder = make(tmp_path, "int8", tied=False, recipe="w4a16_asym")

    def as_the_package_would(config: dict[str, Any]) -> None:
        config["config_groups"]["group_1"]["format"] = "int-quantized"

    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        theirs(changed(folder, tmp_path / "changed", as_the_package_would))
