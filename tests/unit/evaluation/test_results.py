from __future__ import annotations

import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from child import run_python
from unit.evaluation.made import evaluation, inspection, quantization, size
from zeropoint.errors import InputError, InternalError, OutputError
from zeropoint.evaluation.results import Evaluation, Inspection, QuantizeResult, Result, machine, versions

ALL = (evaluation(), quantization(blocks=2, fallbacks=1), inspection(blocks=2))


@pytest.mark.parametrize("result", ALL, ids=lambda result: type(result).__name__)
def test_what_is_saved_is_loaded_again(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "results.json")
    assert type(result).load(tmp_path / "results.json") == result
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@given(
    ratio=st.floats(0, 1e300),
    interval=st.none() | st.tuples(st.floats(0, 1), st.floats(1, 1e9)),
    needed=st.none() | st.integers(1, 2**60),
    explanation=st.text(st.characters(codec="utf-8")),
)
def test_every_finite_number_and_every_text_survives(
    ratio: float, interval: tuple[float, float] | None, needed: int | None, explanation: str
) -> None:
    made = evaluation(perplexity_ratio=ratio, ratio_interval95=interval, tokens_needed=needed, explanation=explanation)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Evaluation) == made


class Anything(Result, frozen=True, kw_only=True):
    recipe: dict[str, Any]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.just('{\n"a": 1\n}'),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    )
)
def test_the_layout_of_the_file_changes_nothing_in_it(value: Any) -> None:
    made = Anything(recipe={"value": value})
    with TemporaryDirectory() as folder:
        made.save(Path(folder) / "made.json")
        assert Anything.load(Path(folder) / "made.json") == made


def test_numbers_that_belong_together_stand_in_one_line(tmp_path: Path) -> None:
    bars = [{"low": -1.5e-7, "high": 0, "count": 3}, {"low": 0, "high": 2.5, "count": 0}]
    Anything(recipe={"bars": bars, "codes": [1, 2, 3], "name": "[\n1]", "none": []}).save(tmp_path / "made.json")
    assert (tmp_path / "made.json").read_text(encoding="utf-8").splitlines() == [
        "{",
        '  "recipe": {',
        '    "bars": [',
        '      {"low": -1.5e-7, "high": 0, "count": 3},',
        '      {"low": 0, "high": 2.5, "count": 0}',
        "    ],",
        '    "codes": [1, 2, 3],',
        '    "name": "[\\n1]",',
        '    "none": []',
        "  }",
        "}",
    ]


def test_the_document_says_what_it_is_and_keeps_the_order_of_the_fields(tmp_path: Path) -> None:
    for result, name in zip(ALL, ("evaluation", "quantization", "inspection"), strict=True):
        result.save(tmp_path / "r")
        text = (tmp_path / "r").read_text()
        keys = list(json.loads(text))
        assert keys == ["result", *result.__struct_fields__]
        assert json.loads(text)["result"] == name
        assert text.endswith("}\n")
        assert text.startswith('{\n  "result"')


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["kl_mean", "ratio_interval95", "elapsed_s"])
def test_a_number_that_is_not_finite_is_refused_with_its_field(field: str, bad: float) -> None:
    value: Any = (0.9, bad) if field.endswith("95") else bad
    with pytest.raises(InternalError, match=rf"Evaluation\.{field}.* is {bad}"):
        evaluation(**{field: value})


def test_numbers_deep_in_a_recipe_are_looked_at_too() -> None:
    recipe = {"rules": [{"layers": ["x"], "rounding": {"damping": math.nan}}]}
    with pytest.raises(InternalError, match=r"QuantizeResult\.recipe\.rules\[0\]\.rounding\.damping is nan"):
        msgspec.structs.replace(quantization(blocks=1), recipe=recipe)


def test_a_file_of_another_command_is_refused(tmp_path: Path) -> None:
    quantization(blocks=1).save(tmp_path / "zeropoint.json")
    with pytest.raises(InputError, match=r"zeropoint\.json: not Evaluation"):
        Evaluation.load(tmp_path / "zeropoint.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"result": "evaluation"}', b"\xff\xfe", b'{"a": NaN}'])
def test_a_damaged_file_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: not Evaluation as zeropoint writes it"):
        Evaluation.load(tmp_path / "results.json")


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.json: no readable result"):
        Inspection.load(tmp_path / "results.json")


def test_a_later_version_may_add_keys(tmp_path: Path) -> None:
    document = {**json.loads(msgspec.json.encode(quantization(blocks=1))), "added_later": 1}
    (tmp_path / "r").write_text(json.dumps(document))
    assert QuantizeResult.load(tmp_path / "r") == quantization(blocks=1)


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation(tokens=1).save(tmp_path / "results.json")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"results\.json: the result cannot be written \(No space left"):
        evaluation(tokens=2).save(tmp_path / "results.json")
    assert Evaluation.load(tmp_path / "results.json").tokens == 1
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        evaluation().save(tmp_path / "nowhere" / "results.json")


def test_results_are_values() -> None:
    made = size()
    with pytest.raises(AttributeError):
        made.total_bytes = 1  # type: ignore[misc]


def test_versions_and_machine_name_what_measured() -> None:
    assert {"python", "torch", "msgspec"} - set(versions()) == {"msgspec"}
    assert " core" in machine()
    assert "\n" not in machine()


def test_results_and_sizes_need_no_torch() -> None:
    code = "import sys, zeropoint.evaluation.results, zeropoint.evaluation.size; assert 'torch' not in sys.modules"
    assert run_python(code) == ""
