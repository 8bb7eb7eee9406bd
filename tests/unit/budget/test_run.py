"""A budget from end to end, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import zeropoint
from tiny import TEXT, make_llama
from zeropoint import cli
from zeropoint.budget import run
from zeropoint.budget.run import budget, quantize_within
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, OutputError, RecipeError, TextError
from zeropoint.evaluation.budgets import BUDGET, Asked, Budgeted, Curve
from zeropoint.progress import Progress
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.runtime.weights import Weights


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "LENGTH", 24)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("budget") / "model", layers=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT * 12, encoding="utf-8")
    return file


def like(*overrides: str) -> Recipe:
    settings = ["rounding=rtn", "weights.group_size=32", "calibration.samples=8", "calibration.length=24", *overrides]
    return load_recipe("w4a16", settings)


def test_a_curve_and_its_costs(model: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    found = budget(model, like=like(), progress=steps.append)
    assert not found.reused
    assert {step.stage for step in steps} == {"fisher", "sensitivity"}
    for unit in found.sensitivities.units:
        costs = [form.kl for form in unit.forms]
        assert costs == sorted(costs, reverse=True)  # 3 bits cost more than 4
        assert costs[0] > 0
        assert costs[-1] == 0
    tables = found.sensitivities.tables
    assert tables is not None
    assert [form.form for form in tables.forms] == ["int8", "stored"]
    assert tables.forms[0].kl > 0
    for check in found.sensitivities.checks:
        assert 0.5 < check.measured / check.expected < 2
    assert found.points[0].size_bytes < found.points[-1].size_bytes
    assert msgspec.json.decode(msgspec.json.encode(found), type=Curve) == found


def test_the_costs_are_kept_until_something_changes(model: Path, text: Path) -> None:
    first = budget(model, like=like(), choices="4,8")
    second = budget(model, like=like(), choices="4,8")
    assert second.reused
    assert second.sensitivities == first.sensitivities
    assert not budget(model, like=like(), choices="4,8", again=True).reused
    assert not budget(model, like=like(), choices="4,8", calibration=text).reused
    assert not budget(model, like=like("range=minmax"), choices="4,8").reused


def test_a_cache_that_is_broken_is_made_anew(model: Path, tmp_path: Path) -> None:
    budget(model, like=like(), choices="8")
    (cache,) = (tmp_path / "cache" / "zeropoint" / "budget").iterdir()
    cache.write_text("{", encoding="utf-8")
    assert not budget(model, like=like(), choices="8").reused


def test_a_size_is_kept_to_the_byte_and_used(model: Path, tmp_path: Path) -> None:
    curve = budget(model, like=like())
    middle = next(point for point in curve.points if len(point.forms) > 2)
    made = quantize_within(model, tmp_path / "out", Asked(max_size_bytes=middle.size_bytes), like=like())
    assert made.possible
    assert made.verdict is None
    assert made.size is not None
    assert made.size.total_bytes <= middle.size_bytes
    assert made.size.total_bytes > 0.9 * middle.size_bytes
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == made.size.total_bytes
    bits = {scheme.bits for scheme in Weights(open_checkpoint(tmp_path / "out")).schemes.values() if scheme is not None}
    assert len(bits) > 1
    assert Budgeted.load(tmp_path / "out" / BUDGET) == made
    assert zeropoint.verify(tmp_path / "out").problems == ()
    assert json.loads((tmp_path / "out" / "zeropoint.json").read_text())["output"] == str(tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_a_loss_is_kept_and_the_model_no_larger_than_it_must_be(model: Path, text: Path, tmp_path: Path) -> None:
    points = budget(model, like=like()).points
    limit = points[len(points) // 2].kl * 2
    made = quantize_within(model, tmp_path / "out", Asked(max_kl=limit), like=like(), text=text)
    assert made.verdict == "KEPT"
    last = made.attempts[-1]
    assert last.kl_interval95 is not None
    assert last.kl_interval95[1] <= limit
    assert last.windows >= 8
    assert made.size is not None
    assert made.size.total_bytes < points[-1].size_bytes
    judged = zeropoint.evaluate(tmp_path / "out", reference=model, text=text, length=24)
    assert judged.kl_mean <= limit


def test_the_perplexity_may_be_promised_too(model: Path, text: Path, tmp_path: Path) -> None:
    made = quantize_within(model, tmp_path / "out", Asked(max_loss=0.2), like=like(), text=text)
    assert made.verdict == "KEPT"
    assert made.attempts[-1].loss_interval95 is not None
    assert made.attempts[-1].loss_interval95[1] <= 0.2


def test_a_broken_promise_is_repaired_on_fresh_windows(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zeropoint.budget.costs import Costs

    budget(model, like=like())
    honest = Costs.forecast
    monkeypatch.setattr(Costs, "forecast", lambda self, kl, factor=1.0: honest(self, kl, factor=factor) / 20)
    points = budget(model, like=like()).points
    made = quantize_within(model, tmp_path / "out", Asked(max_kl=points[2].kl * 4), like=like(), text=text)
    assert len(made.attempts) > 1
    assert made.attempts[0].kept == "BROKEN"
    assert made.attempts[1].point.size_bytes > made.attempts[0].point.size_bytes
    assert made.attempts[1].factor > 5
    assert made.verdict == "KEPT"


def test_what_is_not_possible_is_said_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    made = quantize_within(model, tmp_path / "out", Asked(max_size_bytes=1000), like=like())
    assert (made.possible, made.output, made.attempts) == (False, None, ())
    assert made.says.startswith("not possible: the smallest within these choices is ")
    floats = quantize_within(model, tmp_path / "out", Asked(max_kl=1e-11), like=like())
    assert floats.says == "not possible: only the model as it is loses as little; allow a larger loss"
    tight = quantize_within(model, tmp_path / "out", Asked(max_kl=1e-7, max_bits=4.6), like=like())
    assert not tight.possible
    assert "the best within these choices is expected to lose KL" in tight.says
    assert not (tmp_path / "out").exists()


def test_a_speed_is_a_size(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, threads: int) -> None: ...

        def stream(self, size: int, tries: int) -> float:
            return 6e6

    monkeypatch.setattr(run, "_native", SimpleNamespace(Pool=Pool, usable_cores=lambda: 1))
    made = quantize_within(model, tmp_path / "out", Asked(min_speed=50), like=like())
    assert made.size_limit_bytes == 120_000
    assert made.size is not None
    assert made.size.total_bytes <= 120_000


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (Asked(), InputError, "nothing is asked for"),
        (Asked(max_kl=0.0), InputError, "max_kl is 0.0; it must be above 0"),
        (Asked(max_size_bytes=-1), InputError, "max_size_bytes is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: Path, tmp_path: Path, asked: Asked, error: type[InputError], says: str
) -> None:
    with pytest.raises(error, match=says):
        quantize_within(model, tmp_path / "out", asked, like=like())


def test_wrong_bounds_are_refused_by_name(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave the rotation out"):
        budget(model, like=like('transforms=["rotate"]'))
    with pytest.raises(InputError, match="symmetric"):
        budget(model, like=like("weights.symmetric=false"))
    with pytest.raises(InputError, match="none of the 21 layers is quantized"):
        budget(model, like=like("rules=[{layers=['*'], keep_float=true}]"))
    with pytest.raises(RecipeError, match="has a fallback"):
        budget(model, like="gguf_q4_k")
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:300], encoding="utf-8")
    with pytest.raises(TextError, match="a promise needs 32 at least"):
        quantize_within(model, tmp_path / "out", Asked(max_kl=1.0), like=like(), text=short)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        quantize_within(model, tmp_path / "there", Asked(max_kl=1.0), like=like(), text=text)


def test_the_commands(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "weights.group_size=32", "--set", "calibration.samples=8", "--set", "calibration.length=24"]
    assert cli.main(["budget", str(model), *small]) == 0
    said = capsys.readouterr().out
    assert "knee" in said
    assert "all linears as" in said
    out = tmp_path / "out"
    asked = ["quantize", str(model), "-o", str(out), *small, "--text", str(text)]
    assert cli.main([*asked, "--max-kl", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "KEPT" in said
    assert "costs kept from an earlier run" in said
    assert cli.main([*asked, "--max-size", "1KB", "--overwrite"]) == 1
    assert "NOT POSSIBLE" in capsys.readouterr().out
    assert cli.main([*asked, "--max-loss", "30%", "--overwrite", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Budgeted).verdict == "KEPT"
    assert cli.main([*asked, "--like", "w4a16"]) == 2
    assert "--like is for a budget" in capsys.readouterr().err
    assert cli.main([*asked, "--min-speed", "fast"]) == 2
    assert "is no speed" in capsys.readouterr().err
