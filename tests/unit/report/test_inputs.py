from __future__ import annotations

import io
from typing import Any

import msgspec
from rich.console import Console

from zeropoint.evaluation.results import Bar, InputInspection, InputRow, MassiveActivation, StaticRange, Text
from zeropoint.report.inputs import BAR_WIDTH, inputs_inspected


def static(rule: str, low: float | None, high: float | None, error: float, **given: Any) -> StaticRange:
    made = StaticRange(
        rule=rule, low=low, high=high, scale=None, zero_point=None, clipped=0.0012, held_out=2e-6, sqnr_db=21.84,
        output_error=error, clipping_error=0.0, rounding_error=error, disagreement=None if low is None else 0.12,
    )  # fmt: skip
    return msgspec.structs.replace(made, **given)


ROW = InputRow(
    name="model.layers.0.mlp.down_proj",
    shape=(4, 8),
    ranges=(static("minmax", -3.0, 900.0, 0.04), static("mse", -3.0, 5.0, 0.01), static("dynamic", None, None, 0.0004)),
    best="mse",
    auto="minmax",
    skipped=("entropy: too few bins",),
    histogram=(Bar(low=-4, high=4, count=100), Bar(low=4, high=8, count=0), Bar(low=8, high=1024, count=1)),
    massive=(MassiveActivation(position=0, channel=5, value=900.0, ratio=4500.0),),
    median=0.2,
    first_token_ratio=40.0,
    token_median=1.0,
    token_p99=2.0,
    token_largest=900.0,
    samples_to_add=1234,
)


def shown(**given: Any) -> str:
    result = InputInspection(
        zeropoint="0", path="m", layer="*", text=Text(name="a.txt", sha256="0", windows=10, length=8),
        held_out_windows=2, scheme="int8 static asym", tolerance=0.05,
        layers=(msgspec.structs.replace(ROW, **given),), elapsed_s=1.0, peak_memory_bytes=5, versions={}, machine="x",
    )  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False, markup=False).print(inputs_inspected(result))
    return stream.getvalue()


def line(text: str, word: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(word))


def test_the_best_rule_is_marked_and_errors_are_relative_not_squared() -> None:
    cells = line(shown(), "mse *").split()
    assert cells[2:] == ["-3", "5", "0.12", "%", "<0.001", "%", "21.8", "10", "%", "0", "10", "%", "12", "%"]
    assert "*" not in line(shown(), "minmax")


def test_bars_are_logarithms_and_name_the_rules_that_end_there() -> None:
    lines = [one for one in shown().splitlines() if " .. " in one]
    assert lines[0].count("█") == BAR_WIDTH
    assert lines[0].endswith("minmax, mse")
    assert "█" not in lines[1]
    assert lines[1].endswith("0  mse")
    assert 0 < lines[2].count("█") < BAR_WIDTH / 4
    assert lines[2].endswith("1  minmax")


def test_massive_activations_and_what_was_not_applied_are_said() -> None:
    text = shown()
    assert "1 of them massive" in text
    assert "position 0, channel 5, 4,500 times" in text
    assert "40 times that of the others on average; it is a massive activation" in text
    assert "not applied: entropy: too few bins" in text
    plain = MassiveActivation(position=3, channel=5, value=9.0, ratio=45.0)
    assert "none of them massive" in shown(massive=(plain,))
    assert "it is a massive" not in shown(massive=(plain,))


def test_the_advice_says_how_many_samples_and_why() -> None:
    assert "samples: add about 1,300; ranges of two halves of the 8 samples differ by 12 %" in shown()
    assert "samples: enough; ranges of two halves of the 8 samples differ by 12 %" in shown(samples_to_add=0)
    assert "best static rule: mse; auto, which measures on 512 tokens, takes minmax; its error is 5 times" in shown()
    assert "best static" not in shown(best=None)
