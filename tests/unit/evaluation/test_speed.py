"""Speeds as `bench` measures them, in processes that must not outlive it. How fast is for benchmarks/ to say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import zeropoint
from child import ZEROPOINT, run_zeropoint, running
from tiny import make_llama, quantized
from zeropoint.errors import InputError, ProcessError
from zeropoint.evaluation.results import Bench
from zeropoint.evaluation.speed_process import Loaded, engine_process, prompt_tokens
from zeropoint.progress import Progress

ALL = "a process's children are read from /proc"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("speed")
    return quantized(folder), folder / "model"


@pytest.fixture(autouse=True)
def little_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.evaluation.speed.STREAM_BYTES", 1 << 20)


def test_two_models_are_measured_with_their_ratio(models: tuple[Path, Path]) -> None:
    seen: list[Progress] = []
    result = zeropoint.bench(models[0], against=models[1], prompt_tokens=7, tokens=4, runs=3, progress=seen.append)
    assert result.against is not None
    assert (result.model.model, result.against.model) == tuple(map(str, models))
    for speed in (result.model, result.against):
        for spread in (speed.prefill_tokens_per_s, speed.decode_tokens_per_s, speed.bandwidth_share):
            assert 0 < spread.low <= spread.median <= spread.high
        assert 0 < speed.load_s < speed.first_token_s
        assert speed.peak_memory_bytes > speed.weight_bytes > 0
    ours, other = result.model.decode_tokens_per_s, result.against.decode_tokens_per_s
    assert result.decode_ratio is not None
    assert result.decode_ratio.of_medians == ours.median / other.median
    assert result.decode_ratio.low <= result.decode_ratio.of_medians <= result.decode_ratio.high
    assert [(step.done, step.total) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bytes_read_are_the_weights_and_the_keys_and_values_at_the_mean_length(models: tuple[Path, Path]) -> None:
    few, more = (zeropoint.bench(models[1], prompt_tokens=2, tokens=n, runs=1, threads=1).model for n in (1, 9))
    # 2 layers of 2 heads of 16 features, keys and values, 2 bytes each; 4 tokens more in the mean
    assert more.token_bytes - few.token_bytes == 4 * (2 * 2 * 2 * 16 * 2)
    assert few.token_bytes == few.weight_bytes + 33 * (2 * 2 * 2 * 16 * 2)  # the embedding is the head


def test_options_reach_the_runtime(models: tuple[Path, Path]) -> None:
    stored = zeropoint.bench(models[0], prompt_tokens=2, tokens=2, runs=1, threads=1)
    rounded = zeropoint.bench(
        models[0],
        prompt_tokens=2,
        tokens=2,
        runs=1,
        threads=3,
        embeddings="int8",
        activations="float",
        kv_cache="int8",
    )
    assert rounded.model.weight_bytes < stored.model.weight_bytes
    assert (stored.threads, stored.activations, rounded.threads, rounded.activations) == (1, "int8", 3, "float")
    speeds = stored.model, rounded.model
    assert [speed.embeddings for speed in speeds] == ["stored", "int8"]
    assert [speed.kv_cache for speed in speeds] == ["float16", "int8"]
    # 2 layers of 2 heads of 16 features, keys and values
    assert [speed.cache_token_bytes for speed in speeds] == [2 * 2 * 2 * 16 * 2, 2 * 2 * 2 * (16 + 4)]
    assert stored.against is None
    assert stored.decode_ratio is None


@pytest.mark.parametrize("name", ["prompt_tokens", "tokens", "runs", "threads"])
def test_a_count_below_one_is_refused(name: str, models: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=f"{name} is 0; it must be 1 or more"):
        zeropoint.bench(models[0], **{name: 0})  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context_is_refused(models: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="context is 512 tokens and measuring needs 600"):
        zeropoint.bench(models[0], prompt_tokens=600)


def test_the_last_line_is_json_and_the_rest_a_table(models: tuple[Path, Path]) -> None:
    done = run_zeropoint("bench", str(models[0]), "--runs", "1", "--tokens", "2", "--prompt-tokens", "3")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert msgspec.json.decode(last, type=Bench).runs == 1
    assert [row.split()[0] for row in table[1:4]] == ["prefill,", table[2].split()[0], "decode,"]
    assert done.stderr.startswith("bench 1/2, loaded")


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    done = run_zeropoint("bench", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("zeropoint: ")
    assert "no such file or folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_float_that_the_kernels_hold_as_float32_is_warned_about(tmp_path: Path) -> None:
    from zeropoint.recipe import load_recipe

    recipe = load_recipe("w4a16", ["weights.group_size=16", "rounding=rtn", "range=minmax"])
    zeropoint.quantize(make_llama(tmp_path / "model"), tmp_path / "out", recipe=recipe)
    done = run_zeropoint("bench", str(tmp_path / "out"), "--runs", "1", "--tokens", "1", "--prompt-tokens", "2")
    assert "zeropoint: warning: out: 14 linears are held as float32" in done.stderr


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture
def endless(models: tuple[Path, Path]) -> Iterator[subprocess.Popen[str]]:
    """A bench that would run for hours, past its loading."""
    line = ["bench", str(models[0]), "--against", str(models[1]), "--runs", "1000000", "--tokens", "4"]
    with running([*ZEROPOINT, *line], stdout=subprocess.PIPE, text=True) as run:
        assert run.stderr.readline().startswith("bench 1/")
        yield run
        run.kill()


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason=ALL)


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(number: signal.Signals, endless: subprocess.Popen[str]) -> None:
    started = children(endless.pid)
    assert len(started) == 2
    endless.send_signal(number)
    endless.communicate(timeout=60)
    assert endless.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    deadline_s = time.monotonic() + 30
    while any(Path(f"/proc/{child}/exe").exists() for child in started):  # after SIGKILL they notice it themselves
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@linux
def test_a_process_that_dies_is_a_sentence(endless: subprocess.Popen[str], models: tuple[Path, Path]) -> None:
    os.kill(children(endless.pid)[1], signal.SIGKILL)
    out, errors = endless.communicate(timeout=60)
    assert endless.returncode == 3
    assert out == ""
    sentence = f"zeropoint: the process that ran {models[1].name} was ended by SIGKILL"
    assert errors.splitlines()[-1].startswith(sentence)


@pytest.mark.parametrize(
    ("code", "error", "sentence"),
    [
        ("import sys; sys.exit(5)", ProcessError, "ran it ended with exit code 5"),
        ("import os; os.abort()", ProcessError, "ran it was ended by SIGABRT"),
        ("print('{')", ProcessError, "ran it gave an answer of no sense: Input data was truncated"),
        (
            """print('{"do":"failed","error":"CheckpointError","message":"no"}')""",
            zeropoint.InputError,
            "^no$",
        ),
        ("""print('{"do":"failed","error":"KeyError","message":"no"}')""", ProcessError, "met KeyError: no"),
    ],
)
def test_what_becomes_of_a_process_is_told(code: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence), engine_process("it", [sys.executable, "-c", code], Loaded):
        pass


def test_prompts_are_the_same_every_time_and_within_the_vocabulary() -> None:
    assert prompt_tokens(99, 300) == prompt_tokens(99, 300)
    assert set(prompt_tokens(9999, 50)) == set(range(50))
