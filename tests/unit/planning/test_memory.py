from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.effort import EFFORTS, at_effort
from zeropoint.errors import RecipeError
from zeropoint.planning.memory import MARGIN, Memory, plan_memory
from zeropoint.planning.schemes import planned
from zeropoint.recipe import load_recipe, override
from zeropoint.runtime.weights import Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(
        open_checkpoint(make_llama(tmp_path_factory.mktemp("plans") / "model", hidden=128, intermediate=256))
    )


def memory(
    weights: Weights, *, limit: int | None = None, workers: int = 2, effort: int = 1, samples: int = 128
) -> Memory:
    settings = ["weights.group_size=16", f"calibration.samples={samples}"]
    recipe = override(at_effort(load_recipe("w4a16"), effort), settings)
    return plan_memory(weights, planned(weights, recipe)[0], recipe, workers=workers, limit_bytes=limit)


@pytest.mark.parametrize("effort", EFFORTS)
@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 2), workers=st.integers(1, 8), samples=st.integers(1, 10_000))
def test_a_limit_is_kept_and_only_the_texts_wait_for_it(
    effort: int, share: float, workers: int, samples: int, weights: Weights
) -> None:
    free = memory(weights, workers=workers, effort=effort, samples=samples)
    limit = free.least_bytes + int(share * (free.peak_bytes - free.least_bytes))
    kept = memory(weights, limit=limit, workers=workers, effort=effort, samples=samples)
    assert kept.peak_bytes <= limit
    assert kept.least_bytes == free.least_bytes
    assert 1 <= kept.limits.workers <= workers
    assert kept.spilled_bytes >= free.spilled_bytes
    if MARGIN * limit >= free.peak_bytes + 1:
        assert kept == replace(free, limits=replace(free.limits, tight=True))


@pytest.mark.parametrize("effort", EFFORTS)
def test_below_the_least_the_sentence_says_what_it_is_and_what_for(effort: int, weights: Weights) -> None:
    least = memory(weights, effort=effort).least_bytes
    assert memory(weights, limit=least, effort=effort).peak_bytes <= least
    said = r"needs at least (\d+\.\d\d)GB of memory, \d+\.\d\dGB of it for [a-z ]+, in the phase '\w+'; it may take "
    with pytest.raises(RecipeError, match=said + r"\d+\.\d+GB; give more, or lower calibration.batch") as refused:
        memory(weights, limit=least - 1, effort=effort)
    named = re.search(said, str(refused.value))
    assert named is not None
    assert memory(weights, limit=round(float(named[1]) * 1e9), effort=effort).least_bytes == least


def test_more_text_takes_disk_and_no_more_memory_than_the_default_allows(weights: Weights) -> None:
    few, many = memory(weights, samples=128), memory(weights, samples=1_000_000)
    assert few.spilled_bytes == 0
    assert many.spilled_bytes > 100 * few.peak_bytes
    assert many.peak_bytes < few.least_bytes + (2 << 30) + 1


@pytest.mark.parametrize(
    ("preset", "changes", "reads"),
    [("w8a8_static", [], True), ("w8a8", [], False), ("w8a8", ["bias_correction=true"], False), ("w4a16", [], False)],
)
def test_texts_count_wherever_calibration_reads_them(
    preset: str, changes: list[str], reads: bool, weights: Weights
) -> None:
    bare = ["rounding=rtn", "range=minmax", "transforms=[]", *changes]
    bare += [] if preset.startswith("w8") else ["weights.group_size=16"]
    recipe = load_recipe(preset, bare)
    plans, _ = planned(weights, recipe)  # without biases there is none to correct
    assert (plan_memory(weights, plans, recipe, workers=1, limit_bytes=None).state_bytes > 0) == reads
