"""Every file in refine/ is found, says what it works on, and never makes a tiny model worse by what it is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import zeropoint
from tiny import TEXT, make_llama
from zeropoint import find
from zeropoint.evaluation.results import QuantizeResult
from zeropoint.planning.schemes import Scope
from zeropoint.recipe import load_recipe

METHODS = find.names("refine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refine")
    (folder / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    return make_llama(folder / "model")


def quantize(model: Path, output: Path, method: str) -> QuantizeResult:
    settings = ["weights.group_size=16", "calibration.samples=8", "calibration.length=24", f'refine=["{method}"]']
    if find.load("refine", method).SCOPE != "layer":
        settings += ["refine.0.steps=4", "refine.0.every=2"]
    recipe = load_recipe("w3a16", settings)
    return zeropoint.quantize(model, output, recipe=recipe, calibration=model.parent / "text.txt")


@pytest.mark.parametrize("method", METHODS)
def test_it_says_what_it_works_on_and_has_a_page(method: str) -> None:
    assert find.load("refine", method).SCOPE in get_args(Scope)
    assert (Path(__file__).parents[2] / "docs" / f"{method}.md").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_worse_and_the_same_input_gives_the_same_bytes(method: str, model: Path, tmp_path: Path) -> None:
    first = quantize(model, tmp_path / "a", method)
    quantize(model, tmp_path / "b", method)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert [row.stage for row in first.gains] == ["nearest", "gptq", method]
    assert all(row.error_after <= row.error_before for row in first.refined)
    assert first.held_out_tokens == 4 * 24
    plain = zeropoint.quantize(
        model,
        tmp_path / "plain",
        recipe=load_recipe("w3a16", ["weights.group_size=16", "calibration.samples=8", "calibration.length=24"]),
        calibration=model.parent / "text.txt",
    )
    assert first.size.linear_bytes == plain.size.linear_bytes
