"""A model with outlier columns does not open in transformers, which would leave them out and give wrong answers.

config.json says it twice; each of the two is enough, and without both the model opens and is wrong.
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
from transformers import AutoModelForCausalLM

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe
from zeropoint.runtime.torch_runner import TorchRunner
from zeropoint.runtime.weights import Weights

TOKENS = list(range(7, 300, 11))
PRESETS = {"w8a8": "int-quantized", "w4a8": "pack-quantized"}


@pytest.fixture(scope="module", params=PRESETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with outlier columns, and the format that its tensors would have without them."""
    tmp_path = tmp_path_factory.mktemp("made")
    overrides = ["calibration.samples=4", "calibration.length=32", "activations.outlier_threshold=2.5"]
    overrides += ["weights.group_size=32"] if request.param == "w4a8" else []
    base = make_llama(tmp_path / "base", hidden=64, intermediate=128, tied=False)
    quantize(base, tmp_path / "out", recipe=load_recipe(request.param, overrides))
    return tmp_path / "out", PRESETS[request.param]


@torch.no_grad()
def theirs(folder: Path) -> np.ndarray[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return np.asarray(model(torch.tensor([TOKENS])).logits[0].float())


def without_threshold(config: dict[str, Any], _: str) -> None:
    for group in config["config_groups"].values():
        del group["input_activations"]["outlier_threshold"]


def without_format(config: dict[str, Any], usual: str) -> None:
    config["format"] = usual
    for group in config["config_groups"].values():
        group["format"] = usual


def changed(folder: Path, to: Path, *changes: Callable[[dict[str, Any], str], None], usual: str) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    for change in changes:
        change(config["quantization_config"], usual)
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_the_model_is_refused(made: tuple[Path, str]) -> None:
    with pytest.raises(ValueError, match="outlier_threshold"):
        theirs(made[0])


def test_the_format_alone_is_enough(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, usual = made
    with pytest.raises(ValueError, match="zeropoint-outliers"):
        theirs(changed(folder, tmp_path / "changed", without_threshold, usual=usual))


def test_the_threshold_alone_is_enough(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, usual = made
    with pytest.raises(ValueError, match="outlier_threshold"):
        theirs(changed(folder, tmp_path / "changed", without_format, usual=usual))


@pytest.mark.filterwarnings("ignore")
def test_without_both_it_opens_and_is_wrong(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, usual = made
    ours = TorchRunner(Weights(open_checkpoint(folder))).logits(TOKENS)
    found = theirs(changed(folder, tmp_path / "changed", without_threshold, without_format, usual=usual))
    assert np.abs(found - ours).max() > 1


@pytest.mark.filterwarnings("ignore")
def test_a_method_that_it_does_not_know_would_be_loaded_as_floats(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, usual = made

    def another_method(config: dict[str, Any], _: str) -> None:
        config["quant_method"] = "zeropoint"

    ours = TorchRunner(Weights(open_checkpoint(folder))).logits(TOKENS)
    found = theirs(changed(folder, tmp_path / "changed", another_method, usual=usual))
    assert not np.abs(found - ours).max() < 1
