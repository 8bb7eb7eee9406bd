"""A model with scales on two levels does not open in transformers, which has no place for its tensors.

config.json says it twice; each of the two is enough.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny import make_llama
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe


@pytest.fixture(scope="module", params=[256, 96])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one group of layers, and one with two."""
    tmp_path = tmp_path_factory.mktemp("made")
    base = make_llama(tmp_path / "base", hidden=256, intermediate=request.param, layers=1)
    quantize(base, tmp_path / "out", recipe=load_recipe("gguf_q4_k", ["rounding=rtn", "range=minmax"]))
    return tmp_path / "out"


def without_size(group: dict[str, Any]) -> None:
    del group["weights"]["super_size"]


def without_format(group: dict[str, Any]) -> None:
    group["format"] = "pack-quantized"


def unchanged(group: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "named"),
    [(unchanged, "super_size"), (without_size, "zeropoint-q4_k"), (without_format, "super_size")],
)
def test_the_model_is_refused(made: Path, change: Callable[[dict[str, Any]], None], named: str, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(made, folder)
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        if group["format"] == "zeropoint-q4_k":
            change(group)
    if change is without_format and config["quantization_config"]["format"] == "zeropoint-q4_k":
        config["quantization_config"]["format"] = "pack-quantized"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
