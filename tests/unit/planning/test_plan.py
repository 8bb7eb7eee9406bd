from __future__ import annotations

import json
from pathlib import Path

import pytest

import zeropoint
from child import run_python, run_zeropoint
from tiny import make_llama, quantized
from zeropoint.errors import InputError, SchemeError
from zeropoint.planning.plan import LOADS

SMALL = ("--set", "weights.group_size=16", "--set", "calibration.samples=4", "--set", "calibration.length=24")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("plan") / "model")


def test_without_measurements_no_torch_is_imported(model: Path) -> None:
    code = (
        "import sys, zeropoint\n"
        f"recipe = zeropoint.load_recipe('w4a16', ['weights.group_size=16', 'refine=[\"descent\", \"learned\"]'])\n"
        f"plan = zeropoint.plan({str(model)!r}, recipe=recipe, bench_s=0)\n"
        "print('torch' in sys.modules, plan.elapsed_s, plan.decode_tokens_per_s)"
    )
    assert run_python(code) == "False None None"


def test_the_command_says_what_becomes_of_each_layer_and_what_it_takes(model: Path) -> None:
    done = run_zeropoint(
        "plan", str(model), *SMALL, "--no-bench", "--set", 'rules=[{ layers = "*.0.*", keep_float = true }]'
    )
    assert done.returncode == 0, done.stderr
    for part in ("int4 g16 sym", "float: keep_float in a rule", "float: embeddings = 'stored'", "float: a norm", LOADS):
        assert part in done.stdout
    for figure in ("output", "peak memory", "--max-memory", "disk", "not measured (--no-bench)"):
        assert figure in done.stdout


def test_measured_it_says_how_long_it_takes_and_how_fast_the_output_can_be(model: Path) -> None:
    recipe = zeropoint.load_recipe("w4a16", SMALL[1::2])
    plan = zeropoint.plan(model, recipe=recipe, bench_s=0.1)
    assert plan.elapsed_s == sum(stage.seconds for stage in plan.stages)
    assert plan.bandwidth_bytes_per_s is not None
    assert plan.decode_tokens_per_s == plan.bandwidth_bytes_per_s / plan.token_bytes
    # tied, so that the whole table is read as the head
    assert plan.token_bytes == plan.size.total_bytes - plan.size.overhead_bytes


def test_quantize_shows_the_plan_first_and_what_came_of_it_last(model: Path, tmp_path: Path) -> None:
    done = run_zeropoint("quantize", str(model), "-o", str(tmp_path / "out"), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "plan: output " in done.stderr
    assert "real / planned" in done.stdout
    record = json.loads((tmp_path / "out" / "zeropoint.json").read_text())
    assert record["plan"]["size"] == record["size"]


def test_too_little_memory_is_refused_before_anything_is_read(model: Path, tmp_path: Path) -> None:
    done = run_zeropoint("quantize", str(model), "-o", str(tmp_path / "out"), *SMALL, "--max-memory", "1MB")
    assert done.returncode == 2
    assert "needs at least" in done.stderr
    assert "it may take 0.001GB; give more" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["4X", "4XB", "-1GB", "nan", "0"])
def test_a_size_that_is_none_is_refused_with_an_example(size: str, model: Path) -> None:
    done = run_zeropoint("plan", str(model), "--no-bench", "--max-memory", size)
    assert done.returncode == 2
    assert "write for example 4GB or 1.5GiB" in done.stderr


def test_it_refuses_what_quantize_would_refuse(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="group_size"):
        zeropoint.plan(model, recipe=zeropoint.load_recipe("w4a16", ["weights.group_size=11"]), bench_s=0)
    with pytest.raises(InputError, match="quantized already"):
        zeropoint.plan(quantized(tmp_path / "q"), bench_s=0)


def test_what_falls_back_is_named_and_counted(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", hidden=96, intermediate=256)
    plan = zeropoint.plan(model, recipe="gguf_q4_k", bench_s=0)
    (note,) = plan.notes
    assert note.startswith(
        "int5 g32 sym instead of int4 g32/256 asym, which rows of 96 columns do not fill: q_proj x2,"
    )
    stored = {row.kind: row.stored for row in plan.rows}
    assert stored["down_proj"] == "int4 g32/256 asym"
    assert stored["q_proj"] == "int5 g32 sym"
    assert "only zeropoint can run" in plan.loads
    assert zeropoint.plan(model, recipe="gguf_q5_0", bench_s=0).notes == ()


def test_measured_it_takes_a_whole_super_block(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", hidden=256, intermediate=96)
    recipe = zeropoint.load_recipe("gguf_q4_k", SMALL[3::2])
    assert zeropoint.plan(model, recipe=recipe, bench_s=0.1).elapsed_s is not None


def test_a_fallback_that_does_not_fit_either_is_refused(model: Path) -> None:
    with pytest.raises(SchemeError, match="64 columns do not split into groups of 48"):
        zeropoint.plan(model, recipe=zeropoint.load_recipe("gguf_q4_k", ["fallback.group_size=48"]), bench_s=0)


def test_two_levels_with_rounded_inputs_are_refused(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", hidden=256, intermediate=256)
    recipe = zeropoint.load_recipe("gguf_q4_k", ["activations.dynamic=true"])
    with pytest.raises(SchemeError, match=r"q_proj: int4 g32/256 asym weights with int8 token inputs"):
        zeropoint.plan(model, recipe=recipe, bench_s=0)


def test_a_scheme_that_fits_no_columns_does_not_fall_back(model: Path) -> None:
    with pytest.raises(SchemeError, match="only those of Q4_K"):
        zeropoint.plan(model, recipe=zeropoint.load_recipe("gguf_q4_k", ["weights.bits=5"]), bench_s=0)
