"""What a command hands to the Python API, and what it makes of the result. The API itself is stood in for."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

import msgspec
import pytest

from child import run_python
from tiny import quantized
from unit.report import pages
from zeropoint import cli
from zeropoint.errors import CheckpointError
from zeropoint.evaluation.results import (
    Bench,
    Comparison,
    ComparisonRow,
    Evaluation,
    Generation,
    GroupAnatomy,
    InputInspection,
    Inspection,
    LayerRow,
    QuantizeResult,
    TensorInspection,
    TensorRow,
    Verdict,
)
from zeropoint.exporting.result import Export
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.report import charts
from zeropoint.types import Scheme

Streams = pytest.CaptureFixture[str]
Filled = TypeVar("Filled", bound=msgspec.Struct)


def filled(struct: type[Filled], /, **given: object) -> Filled:
    """A struct with the fields given and anything of the right type in the others: commands only pass it on."""
    fields = msgspec.inspect.type_info(struct).fields
    plain = {f.encode_name: _anything(f.type) for f in fields if f.required} | msgspec.to_builtins(given)
    return msgspec.convert(plain, struct)


def _anything(info: object) -> object:
    match info:
        case msgspec.inspect.StructType(fields=fields):
            return {f.encode_name: _anything(f.type) for f in fields if f.required}
        case msgspec.inspect.UnionType(types=types):
            return None if msgspec.inspect.NoneType() in types else _anything(types[0])
        case msgspec.inspect.LiteralType(values=values):
            return values[0]
        case msgspec.inspect.TupleType(item_types=items):
            return [_anything(item) for item in items]
        case _:
            empty = {"IntType": 7, "FloatType": 0.5, "StrType": "x", "VarTupleType": [], "DictType": {}}
            return empty[type(info).__name__]


ROW = filled(LayerRow, name="model.layers.0.mlp.up_proj", kind="up_proj", scheme="int4 g64 sym", rounding="gptq")
QUANTIZED = filled(QuantizeResult, recipe=load_recipe("w4a16").to_dict(), layers=[ROW])
UP_PROJ = filled(TensorRow, name="model.layers.0.mlp.up_proj", kind="up_proj", role="linear", shape=[4, 240])
NORM = filled(TensorRow, name="model.norm", kind="norm", role="other", shape=[240])
INSPECTED = filled(Inspection, tensors=[UP_PROJ, NORM])
INPUTS = filled(InputInspection)
EXCERPT = filled(GroupAnatomy, zero_point=None, minimum=None, codes=[7], restored=[0.5])
TENSOR = filled(TensorInspection, scheme="int4 g64 sym", excerpt=EXCERPT, codes=[7])
BENCHED = filled(Bench, against=None, prefill_ratio=None, decode_ratio=None)
EXPORTED = filled(Export, types={"Q4_0": 7}, notes=["a note"])
COMPARED = filled(Comparison, rows=[filled(ComparisonRow, name="m"), filled(ComparisonRow, name="w8a16", recipe={})])


def evaluation(verdict: Verdict) -> Evaluation:
    return filled(Evaluation, verdict=verdict)


class Calls(list[tuple[tuple[object, ...], dict[str, object]]]):
    """The calls of a function of the API that reports one step of progress and then returns or raises."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def __call__(self, *arguments: object, **options: object) -> object:
        progress = options.pop("progress", None)
        options.pop("planned", None)
        self.append((arguments, options))
        if progress is not None:
            cast(ProgressCallback, progress)(Progress("work", 1, 2, "model.layers.0"))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


Stand = Callable[[str, object], Calls]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Put a stand-in into the place of a function of the API, and return its calls."""

    def put(function: str, result: object) -> Calls:
        module, _, name = function.rpartition(".")
        calls = Calls(result)
        stand = ModuleType(module)
        setattr(stand, name, calls)
        monkeypatch.setitem(sys.modules, module, stand)
        return calls

    return put


def only_progress(text: str) -> bool:
    return text == "work 1/2, model.layers.0, 0:00 left\n"


# quantize


def test_quantize_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    assert cli.main(["quantize", "m", "--output", "o"]) == 0
    given = {"recipe": load_recipe("w4a16"), "calibration": None, "overwrite": False, "restart": False}
    given["max_memory_bytes"] = None
    assert calls == [((Path("m"), Path("o")), given)]
    calls.clear()
    line = "quantize m -o o -r w8a16 --calibration c.txt --set weights.bits=6 --set rounding=gptq --overwrite"
    line += " --max-memory 1.5GiB"
    assert cli.main(line.split()) == 0
    given = {
        "recipe": load_recipe("w8a16", ["weights.bits=6", "rounding=gptq"]),
        "calibration": Path("c.txt"),
        "overwrite": True,
        "restart": False,
        "max_memory_bytes": 3 << 29,
    }
    assert calls == [((Path("m"), Path("o")), given)]
    capfd.readouterr()


def test_the_embeddings_of_quantize_are_a_key_of_any_recipe(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    line = ["quantize", "m", "-o", "o"]
    for more in ("--embeddings int8", "-r w8a16 --embeddings int4", "--set embeddings=int4 --embeddings stored", ""):
        assert cli.main([*line, *more.split()]) == 0
    found = [cast(Recipe, options["recipe"]).embeddings for _, options in calls]
    assert found == ["int8", "int4", "stored", "stored"]
    assert cli.main([*line, "--embeddings", "int3"]) == 2
    capfd.readouterr()


def test_the_kv_cache_of_quantize_is_a_key_of_any_recipe(stand_in: Stand, tmp_path: Path, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    mine = tmp_path / "mine.toml"
    mine.write_text('kv_cache = "int8"\n', encoding="utf-8")
    line = ["quantize", "m", "-o", "o", "-r"]
    for more in (["w8a16", "--kv", "int8"], [str(mine)], [str(mine), "--kv", "float16"]):
        assert cli.main([*line, *more]) == 0
    assert [cast(Recipe, options["recipe"]).kv_cache for _, options in calls] == ["int8", "int8", "float16"]
    assert cast(Recipe, calls[0][1]["recipe"]) == load_recipe("w8a16", ["kv_cache=int8"])
    assert cli.main([*line, "w8a16", "--kv", "int4"]) == 2
    capfd.readouterr()


def test_quantize_takes_a_recipe_file(stand_in: Stand, tmp_path: Path, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    (tmp_path / "mine.toml").write_text("[weights]\nbits = 3\n", encoding="utf-8")
    assert cli.main(["quantize", "m", "-o", "o", "-r", str(tmp_path / "mine.toml")]) == 0
    assert cast(Recipe, calls[0][1]["recipe"]).weights.bits == 3
    capfd.readouterr()


def test_a_wrong_recipe_is_refused_before_anything_is_read(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    assert cli.main(["quantize", "m", "-o", "o", "--set", "weights.bitz=3"]) == 2
    assert calls == []
    streams = capfd.readouterr()
    assert streams.err.startswith("zeropoint: w4a16.toml --set weights.bitz=3: weights.bitz is not a key")
    assert streams.err.count("\n") == 1


def test_quantize_shows_a_table_on_stdout_and_progress_on_stderr(stand_in: Stand, capfd: Streams) -> None:
    stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    assert cli.main(["quantize", "m", "-o", "o"]) == 0
    streams = capfd.readouterr()
    for part in ("up_proj", "int4 g64 sym", "gptq"):
        assert part in streams.out
    assert only_progress(streams.err)


def test_quantize_writes_the_page_of_what_it_made(stand_in: Stand, tmp_path: Path, capfd: Streams) -> None:
    stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    folder, file = pages.folder(tmp_path / "o", pages.record(1)), tmp_path / "p.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "javascript", lambda: "")
        assert cli.main(["quantize", "m", "-o", str(folder), "--report", str(file)]) == 0
    assert "NOT JUDGED" in file.read_text(encoding="utf-8")
    capfd.readouterr()


def test_a_page_that_could_not_be_written_is_refused_before_the_work(
    stand_in: Stand, tmp_path: Path, capfd: Streams
) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    assert cli.main(["quantize", "m", "-o", "o", "--report", str(tmp_path)]) == 2
    (tmp_path / "p.html").write_text("mine", encoding="utf-8")
    assert cli.main(["quantize", "m", "-o", "o", "--report", str(tmp_path / "p.html")]) == 2
    assert calls == []
    assert "p.html exists; remove it" in capfd.readouterr().err


# report


def test_report_says_what_it_wrote(tmp_path: Path, capfd: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "javascript", lambda: "")
    folders = [str(pages.folder(tmp_path / name, pages.record(1), pages.judged())) for name in "ab"]
    file = tmp_path / "p.html"
    assert cli.main(["report", *folders, "--output", str(file)]) == 0
    size_bytes = file.stat().st_size
    assert capfd.readouterr().out == f"{file}: {size_bytes:,} bytes; open it in a browser\n"
    assert cli.main(["report", *folders, "-o", str(file), "--overwrite", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"output": str(file), "size_bytes": size_bytes}


def test_report_ends_in_a_sentence_where_there_is_nothing_to_tell(tmp_path: Path, capfd: Streams) -> None:
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "p.html")]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"zeropoint: {tmp_path} has no zeropoint.json; a report is of a folder")
    assert said.count("\n") == 1
    assert cli.main(["report", "-o", str(tmp_path / "p.html")]) == 2
    assert "Missing argument 'OUT...'" in capfd.readouterr().err


# evaluate


def test_evaluate_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.evaluation.run.evaluate", evaluation("EQUIVALENT"))
    assert cli.main(["evaluate", "o", "--reference", "m", "--text", "t.txt"]) == 0
    given: dict[str, object] = {
        "reference": Path("m"),
        "text": Path("t.txt"),
        "margin": 0.01,
        "length": 512,
        "max_windows": None,
        "runtime": "native",
        "activations": "int8",
        "embeddings": "stored",
        "kv_cache": None,
        "threads": None,
    }
    assert calls == [((Path("o"),), given)]
    calls.clear()
    line = "evaluate o --reference m --text t.txt --margin 2.5% --length 64 --max-windows 3"
    more = "--runtime torch --activations float --embeddings stored --kv int8 --threads 3"
    assert cli.main([*line.split(), *more.split()]) == 0
    given |= {"margin": 0.025, "length": 64, "max_windows": 3}
    given |= {"runtime": "torch", "activations": "float", "embeddings": "stored", "kv_cache": "int8", "threads": 3}
    assert calls == [((Path("o"),), given)]
    capfd.readouterr()


def test_evaluate_judges_on_the_bundled_text_unless_told_otherwise(stand_in: Stand, capfd: Streams) -> None:
    from zeropoint.observe.data import bundled_text

    calls = stand_in("zeropoint.evaluation.run.evaluate", evaluation("EQUIVALENT"))
    assert cli.main(["evaluate", "o", "--reference", "m"]) == 0
    assert calls[0][1]["text"] == bundled_text("judge")
    capfd.readouterr()


@pytest.mark.parametrize(
    ("margin", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 % ", 0.025), ("1e-3", 0.001), ("99.9%", 0.999)]
)
def test_a_margin_is_written_in_either_way(margin: str, value: float, stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.evaluation.run.evaluate", evaluation("EQUIVALENT"))
    assert cli.main(["evaluate", "o", "--reference", "m", "--margin", margin]) == 0
    assert calls[0][1]["margin"] == pytest.approx(value, rel=1e-12)
    capfd.readouterr()


@pytest.mark.parametrize("margin", ["1", "0", "100%", "-1%", "nan", "inf%", "one", "1%%", "%", ""])
def test_a_margin_that_is_no_share_is_refused(margin: str, stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.evaluation.run.evaluate", evaluation("EQUIVALENT"))
    assert cli.main(["evaluate", "o", "--reference", "m", f"--margin={margin}"]) == 2
    assert "write for example 1% or 0.01" in capfd.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("verdict", "fail_on", "code"),
    [
        ("EQUIVALENT", "--fail-on degraded --fail-on inconclusive", 0),
        ("DEGRADED", "", 0),
        ("DEGRADED", "--fail-on degraded", 1),
        ("DEGRADED", "--fail-on inconclusive", 0),
        ("DEGRADED", "--fail-on degraded --fail-on inconclusive", 1),
        ("INCONCLUSIVE", "--fail-on degraded", 0),
        ("INCONCLUSIVE", "--fail-on inconclusive --json", 1),
    ],
)
def test_the_exit_code_says_whether_the_verdict_was_asked_about(
    verdict: Verdict, fail_on: str, code: int, stand_in: Stand, capfd: Streams
) -> None:
    stand_in("zeropoint.evaluation.run.evaluate", evaluation(verdict))
    assert cli.main(["evaluate", "o", "--reference", "m", *fail_on.split()]) == code
    streams = capfd.readouterr()
    assert verdict in streams.out
    assert only_progress(streams.err)


# inspect


def test_inspect_hands_over_what_was_given_and_shows_kinds_or_all_tensors(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.inspection.inspect", INSPECTED)
    assert cli.main(["inspect", "o", "--headers", "--by-kind"]) == 0
    assert cli.main(["inspect", "o", "--reference", "m"]) == 0
    assert calls == [
        ((Path("o"),), {"headers": True, "reference": None}),
        ((Path("o"),), {"headers": False, "reference": Path("m")}),
    ]
    kinds, _, tensors = capfd.readouterr().out.partition("total")
    assert "up_proj" in kinds
    assert "model.norm" not in kinds
    assert "model.norm" in tensors


def test_inspect_of_layers_hands_over_only_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.laboratory.inspect_inputs", INPUTS)
    assert cli.main(["inspect", "o", "--layer", "*.v_proj"]) == 0
    options = "--calibration a.txt --rules mse,auto,mse --samples 9 --length 8 --symmetric"
    assert cli.main(["inspect", "o", "--layer", "re:.*", *options.split()]) == 0
    given = {"calibration": Path("a.txt"), "rules": ("mse", "auto"), "samples": 9, "length": 8, "symmetric": True}
    assert calls == [((Path("o"),), {"layer": "*.v_proj"}), ((Path("o"),), {"layer": "re:.*", **given})]
    assert "peak memory 7 B" in capfd.readouterr().out


def test_inspect_of_a_tensor_hands_over_only_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.anatomy.inspect_tensor", TENSOR)
    assert cli.main(["inspect", "o", "--tensor", "t"]) == 0
    assert cli.main(["inspect", "o", "--tensor", "t", "--bits", "3", "--asymmetric", "--range", "mse"]) == 0
    assert cli.main(["inspect", "o", "--tensor", "t", "--granularity", "channel", "--row", "0", "--group", "2"]) == 0
    of_groups = Scheme(bits=3, symmetric=False)
    of_channels = Scheme(granularity="channel", group_size=None)
    assert calls == [
        ((Path("o"),), {"tensor": "t", "scheme": None}),
        ((Path("o"),), {"tensor": "t", "scheme": of_groups, "range_rule": "mse"}),
        ((Path("o"),), {"tensor": "t", "scheme": of_channels, "row": 0, "group": 2}),
    ]
    assert "r' = S * q" in capfd.readouterr().out


# export


def test_export_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.exporting.run.export", EXPORTED)
    assert cli.main(["export", "o", "--format", "gguf", "--output", "m.gguf", "--overwrite"]) == 0
    assert calls == [((Path("o"), Path("m.gguf")), {"format": "gguf", "overwrite": True})]
    out = capfd.readouterr().out
    assert "7 Q4_0" in out
    assert "a note" in out


def test_export_to_a_format_that_is_none_is_refused(capfd: Streams) -> None:
    assert cli.main(["export", "o", "--format", "ggml", "--output", "m.gguf"]) == 2
    assert "'gguf'" in capfd.readouterr().err


# all of them


COMMANDS = {
    "quantize m -o o": ("zeropoint.pipeline.quantize", QUANTIZED),
    "evaluate o --reference m": ("zeropoint.evaluation.run.evaluate", evaluation("DEGRADED")),
    "inspect o --layer *": ("zeropoint.laboratory.inspect_inputs", INPUTS),
    "inspect o --tensor t": ("zeropoint.anatomy.inspect_tensor", TENSOR),
    "inspect o": ("zeropoint.inspection.inspect", INSPECTED),
    "bench o": ("zeropoint.evaluation.speed.bench", BENCHED),
    "compare m --recipes w8a16": ("zeropoint.comparison.compare", COMPARED),
    "export o --format gguf -o m.gguf": ("zeropoint.exporting.run.export", EXPORTED),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_json_is_the_result_and_nothing_else_is_on_stdout(line: str, stand_in: Stand, capfd: Streams) -> None:
    function, result = COMMANDS[line]
    stand_in(function, result)
    assert cli.main([*line.split(), "--json"]) == 0
    streams = capfd.readouterr()
    assert msgspec.json.decode(streams.out, type=type(result)) == result
    assert only_progress(streams.err)


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("form", ["", "--json"])
def test_a_refusal_is_one_sentence_on_stderr(line: str, form: str, stand_in: Stand, capfd: Streams) -> None:
    stand_in(COMMANDS[line][0], CheckpointError("m: no folder"))
    assert cli.main([*line.split(), *form.split()]) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err == "work 1/2, model.layers.0, 0:00 left\nzeropoint: m: no folder\n"


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(("bench", "export"))])
def test_threads_are_set_for_torch_before_and_after_it_is_imported(
    line: str, stand_in: Stand, monkeypatch: pytest.MonkeyPatch, capfd: Streams
) -> None:
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    set_threads = Calls(None)
    monkeypatch.setattr(torch, "set_num_threads", set_threads)
    stand_in(*COMMANDS[line])
    assert cli.main([*line.split(), "--threads", "2"]) == 0
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("2", "2")
    assert set_threads == [((2,), {})]
    capfd.readouterr()


# bench


def test_bench_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.evaluation.speed.bench", BENCHED)
    assert cli.main(["bench", "o"]) == 0
    given: dict[str, object] = {
        "against": None,
        "prompt_tokens": 512,
        "tokens": 128,
        "runs": 5,
        "threads": None,
        "embeddings": "stored",
        "activations": "int8",
        "kv_cache": None,
    }
    assert calls == [((Path("o"),), given)]
    calls.clear()
    line = "bench o --against m --prompt-tokens 9 --tokens 8 --runs 7 --threads 6"
    more = "--embeddings int8 --activations float --kv int8"
    assert cli.main([*line.split(), *more.split()]) == 0
    given = {
        "against": Path("m"),
        "prompt_tokens": 9,
        "tokens": 8,
        "runs": 7,
        "threads": 6,
        "embeddings": "int8",
        "activations": "float",
        "kv_cache": "int8",
    }
    assert calls == [((Path("o"),), given)]
    capfd.readouterr()


def test_the_table_of_bench_ends_in_one_line_of_json(stand_in: Stand, capfd: Streams) -> None:
    stand_in("zeropoint.evaluation.speed.bench", BENCHED)
    assert cli.main(["bench", "o"]) == 0
    *table, last = capfd.readouterr().out.splitlines()
    assert msgspec.json.decode(last, type=Bench) == BENCHED
    assert any(row.startswith("decode") for row in table)


@pytest.mark.parametrize(
    "option",
    [
        "--runs 0",
        "--tokens 0",
        "--prompt-tokens -1",
        "--threads 0",
        "--embeddings int4",
        "--activations int4",
        "--kv 8",
    ],
)
def test_bench_refuses_an_option_out_of_range(option: str, stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.evaluation.speed.bench", BENCHED)
    assert cli.main(["bench", "o", *option.split()]) == 2
    assert f"Invalid value for '{option.split(maxsplit=1)[0]}'" in capfd.readouterr().err
    assert calls == []


# compare


def test_compare_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.comparison.compare", COMPARED)
    assert cli.main(["compare", "m", "--recipes", "w8a16"]) == 0
    given: dict[str, object] = {
        "recipes": ["w8a16"],
        "calibration": None,
        "text": None,
        "max_windows": 32,
        "runs": 5,
        "speed": True,
        "threads": None,
        "keep": None,
    }
    assert calls == [((Path("m"),), given)]
    calls.clear()
    line = "compare m --recipes w8a16,w4a16 --recipes w3a16, --calibration c.txt --text t.txt --max-windows 3 --runs 2"
    assert cli.main([*line.split(), "--no-speed", "--threads", "3", "--keep", "k"]) == 0
    given = {
        "recipes": ["w8a16", "w4a16", "w3a16"],
        "calibration": Path("c.txt"),
        "text": Path("t.txt"),
        "max_windows": 3,
        "runs": 2,
        "speed": False,
        "threads": 3,
        "keep": Path("k"),
    }
    assert calls == [((Path("m"),), given)]
    capfd.readouterr()


@pytest.mark.parametrize("fault", ["row", "speeds"])
@pytest.mark.parametrize("form", ["", "--json"])
def test_what_is_missing_in_a_comparison_is_exit_code_1(fault: str, form: str, stand_in: Stand, capfd: Streams) -> None:
    failed = filled(ComparisonRow, name="w8a16", recipe={}, error="it does not fit")
    changes = {"rows": (COMPARED.rows[0], failed)} if fault == "row" else {"speed_error": "it does not fit"}
    stand_in("zeropoint.comparison.compare", msgspec.structs.replace(COMPARED, **changes))
    assert cli.main(["compare", "m", "--recipes", "w8a16", *form.split()]) == 1
    assert "it does not fit" in capfd.readouterr().out


# generate


class Said(list[str]):
    """Pieces of text, and what is known of how they came."""

    prompt_tokens = 3
    first_token_s = None
    tokens_per_s = 2.5

    @property
    def tokens(self) -> int:
        return len(self)


class Model:
    """A model that says what it is told to, and the prompt it was given."""

    isa = "avx2"

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.tokenizer = self.runner = self

    def stream(self, prompt: str, **options: object) -> Said:
        self.asked.append((prompt, options))
        return Said(self.pieces)

    def chat(self, messages: list[dict[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def test_generate_streams_the_text_of_the_model(stand_in: Stand, capfd: Streams) -> None:
    model = Model([" Par", "is", "."])
    calls = stand_in("zeropoint.runtime.generate.load", model)
    assert cli.main(["generate", "o", "--prompt", "The capital is"]) == 0
    given = {"runtime": "native", "threads": None, "embeddings": "stored", "activations": "int8", "kv_cache": None}
    assert calls == [((Path("o"),), given)]
    assert capfd.readouterr().out == " Paris.\n"
    assert model.asked == [("The capital is", {"max_tokens": 128, "temperature": 0.0, "top_p": 1.0, "seed": 0})]


def test_generate_hands_over_what_was_given(stand_in: Stand, capfd: Streams) -> None:
    model = Model([])
    calls = stand_in("zeropoint.runtime.generate.load", model)
    line = "generate o -p x --max-tokens 5 --temperature 0.8 --top-p 0.9 --seed 3 --chat"
    more = "--runtime torch --threads 3 --embeddings int8 --activations float --kv float16"
    assert cli.main([*line.split(), *more.split()]) == 0
    given = {
        "runtime": "torch",
        "threads": 3,
        "embeddings": "int8",
        "activations": "float",
        "kv_cache": "float16",
    }
    assert calls == [((Path("o"),), given)]
    assert model.asked == [("<user>x", {"max_tokens": 5, "temperature": 0.8, "top_p": 0.9, "seed": 3})]
    capfd.readouterr()


def test_generate_reads_a_long_prompt_from_stdin(
    stand_in: Stand, capfd: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model([])
    stand_in("zeropoint.runtime.generate.load", model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long\nprompt"))
    assert cli.main(["generate", "o", "--prompt", "-"]) == 0
    assert model.asked[0][0] == "a long\nprompt"
    capfd.readouterr()


def test_generate_as_json_has_the_text_and_how_it_came(stand_in: Stand, capfd: Streams) -> None:
    stand_in("zeropoint.runtime.generate.load", Model([" Par", "is"]))
    assert cli.main(["generate", "o", "--prompt", "x", "--chat", "--json"]) == 0
    streams = capfd.readouterr()
    result = msgspec.json.decode(streams.out, type=Generation)
    assert (result.prompt, result.text) == ("<user>x", " Paris")
    assert (result.prompt_tokens, result.tokens, result.tokens_per_s, result.first_token_s) == (3, 2, 2.5, None)
    assert (result.runtime, result.isa) == ("native", "avx2")
    assert 0 <= result.load_s <= result.elapsed_s
    assert result.peak_memory_bytes > 1 << 20
    assert streams.err == ""


def test_generate_and_bench_run_without_torch(tmp_path: Path) -> None:
    folder = quantized(tmp_path)
    code = f"""
import contextlib, io, json, sys
from zeropoint import cli
for line in (["generate", "-p", "hello", "--max-tokens", "3"], ["bench", "--tokens", "2", "--runs", "1"]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([line[0], {str(folder)!r}, *line[1:], "--threads", "1", "--json"]) == 0
    assert json.loads(out.getvalue())["peak_memory_bytes" if line[0] == "generate" else "threads"] >= 1
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"


def test_an_effort_comes_before_what_is_set_by_hand(stand_in: Stand, capfd: Streams) -> None:
    calls = stand_in("zeropoint.pipeline.quantize", QUANTIZED)
    line = "quantize m -o o --effort 3 --set refine.1.steps=7 --set calibration.samples=5"
    assert cli.main(line.split()) == 0
    recipe = cast(Recipe, calls[0][1]["recipe"])
    assert recipe.rounding.method == "gptaq"
    assert [choice.method for choice in recipe.refine] == ["descent", "learned"]
    assert recipe.refine[1].options == {"steps": 7}
    assert recipe.calibration.samples == 5
    assert cli.main(["quantize", "m", "-o", "o", "--effort", "4"]) == 2
    capfd.readouterr()
