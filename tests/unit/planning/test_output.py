from __future__ import annotations

from pathlib import Path

import pytest

import zeropoint
from tiny import make_gguf, make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.evaluation.size import size_of
from zeropoint.planning.output import planned_tensors
from zeropoint.planning.plan import prepare
from zeropoint.recipe import load_recipe
from zeropoint.runtime.weights import Weights

QUICK = ["rounding=rtn", "calibration.samples=2", "calibration.length=16", "calibration.held_out=0"]
SMALL = [*QUICK, "weights.group_size=16"]
RULE = 'rules=[{ layers = "*.down_proj", keep_float = true }, { layers = "*.o_proj", weights = { bits = 8 } }]'
ROTATED = ['transforms=["rotate"]']


@pytest.mark.parametrize(
    ("preset", "overrides", "sizes"),
    [
        ("w4a16", SMALL, {}),
        ("w4a16", [*SMALL, "embeddings=int8", RULE], {}),
        ("w4a16", [*SMALL, "embeddings=int4"], {"tied": False}),
        ("w4a16", [*SMALL, *ROTATED], {}),
        ("w4a16_asym", SMALL, {"dtype": "float32"}),
        ("w3a16", SMALL, {}),
        ("w8a8_static", QUICK, {}),
    ],
)
def test_the_output_has_the_tensors_and_the_bytes_that_were_planned(
    preset: str, overrides: list[str], sizes: dict[str, object], tmp_path: Path
) -> None:
    model = make_llama(tmp_path / "model", **sizes)  # type: ignore[arg-type]
    assert_as_planned(model, load_and_check(preset, overrides), tmp_path)


def test_a_gguf_file_in_block_types_is_planned_as_bfloat16(tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "model.gguf", quantization="Q8_0")
    assert_as_planned(model, load_and_check("w4a16", SMALL), tmp_path)


def load_and_check(preset: str, overrides: list[str]) -> zeropoint.Recipe:
    recipe = load_recipe(preset, overrides)
    recipe.check()
    return recipe


def assert_as_planned(model: Path, recipe: zeropoint.Recipe, folder: Path) -> None:
    plan = zeropoint.plan(model, recipe=recipe, bench_s=0)
    result = zeropoint.quantize(model, folder / "out", recipe=recipe)
    written = Weights(open_checkpoint(folder / "out"))
    assert plan.size == size_of(written) == result.size
    prepared = prepare(Weights(open_checkpoint(model)), recipe)
    unties = any(choice.method == "rotate" for choice in recipe.transforms)
    planned = planned_tensors(prepared.weights, prepared.plans, prepared.tables, prepared.file_format, unties=unties)
    found = {name: (info.dtype, info.shape) for name, info in written.checkpoint.tensors.items()}
    assert found == {name: (info.dtype, info.shape) for name, info in planned.items()}
    assert sum(row.size_bytes for row in plan.rows) == sum(
        info.size_bytes for info in written.checkpoint.tensors.values()
    )
