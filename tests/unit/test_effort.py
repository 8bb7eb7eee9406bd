from __future__ import annotations

from pathlib import Path

import pytest

import zeropoint
from tiny import TEXT, make_llama
from zeropoint.effort import EFFORTS, at_effort
from zeropoint.errors import RecipeError
from zeropoint.planning import work
from zeropoint.planning.rates import Rates
from zeropoint.recipe import load_recipe, override, presets

SMALL = ["weights.group_size=16", "calibration.length=24", "calibration.samples=8"]


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_changes_how_codes_are_found_and_nothing_else(preset: str, effort: int) -> None:
    before = load_recipe(preset)
    after = at_effort(before, effort)
    after.check()
    for key in ("weights", "activations", "rules", "format", "kv_cache", "embeddings", "activation_range", "name"):
        assert getattr(after, key) == getattr(before, key)
    assert all(transform in after.transforms for transform in before.transforms)


def test_each_effort_does_more_than_the_one_before() -> None:
    work = [at_effort(load_recipe("w4a16"), effort) for effort in EFFORTS]
    assert [recipe.rounding.method for recipe in work] == ["rtn", "gptq", "gptaq", "gptaq"]
    assert [len(recipe.refine) for recipe in work] == [0, 0, 2, 2]
    assert work[0].calibration.tokens == "random"


def test_what_is_set_by_hand_comes_last() -> None:
    recipe = override(at_effort(load_recipe("w4a16"), 3), ["refine.1.steps=7", "calibration.samples=5"])
    assert recipe.refine[1].options == {"steps": 7}
    assert recipe.calibration.samples == 5


def test_effort_0_reads_no_text(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    recipe = override(at_effort(load_recipe("w4a16"), 0), SMALL)
    result = zeropoint.quantize(model, tmp_path / "out", recipe=recipe)
    assert result.calibration is not None
    assert result.calibration.name == "random tokens"
    assert result.gains == ()
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"calibrates on random tokens, and \S+ is given too; leave it out"):
        zeropoint.quantize(model, tmp_path / "out2", recipe=recipe, calibration=text)


def test_the_plan_names_every_stage_and_grows_with_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(dict.fromkeys(("product", "forward", "trial", "rtn", "gptq", "gptaq", "descent"), 1e-9))
    monkeypatch.setattr(work, "measure", lambda *given: rates)
    model = make_llama(tmp_path / "model")
    totals = []
    for effort in EFFORTS:
        recipe = override(at_effort(load_recipe("w4a16"), effort), SMALL[:2])
        stages = zeropoint.plan(model, recipe=recipe, bench_s=0.1).stages
        expected = [*recipe.transforms, recipe.rounding, *recipe.refine]
        assert [stage.stage for stage in stages[:-1]] == [choice.method for choice in expected]
        assert all(stage.seconds > 0 for stage in stages)
        totals.append(sum(stage.seconds for stage in stages))
    assert totals[0] < totals[1] < totals[3]
