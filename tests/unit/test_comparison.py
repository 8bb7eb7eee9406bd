"""Recipes side by side: numbers are those of the single commands, and what goes wrong with one spares the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import zeropoint
from child import ENVIRONMENT, ZEROPOINT, running
from tiny import TEXT, make_llama
from zeropoint import cli
from zeropoint.errors import InputError, OutputError, ProcessError, RecipeError, TextError
from zeropoint.evaluation.results import Comparison
from zeropoint.progress import Progress

CALIBRATED = """
description = "4 bits, calibrated on a little"
calibration = { samples = 4, length = 16 }
[weights]
bits = 4
group_size = 32
"""
TOO_WIDE = '[weights]\nbits = 4\ngroup_size = 40\n[rounding]\nmethod = "rtn"\n'  # 64 columns do not split into 40


@pytest.fixture(autouse=True)
def little_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.evaluation.speed.STREAM_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two recipes of its own, and a text of some windows."""
    folder = tmp_path_factory.mktemp("compare")
    make_llama(folder / "model")
    (folder / "calibrated.toml").write_text(CALIBRATED, encoding="utf-8")
    (folder / "wide.toml").write_text(TOO_WIDE, encoding="utf-8")
    (folder / "text.txt").write_text(TEXT * 6, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """The folder that the models of a comparison were kept in, and the comparison."""
    keep = tmp_path_factory.mktemp("kept") / "models"
    return keep, compared(folder, keep=keep, runs=2, speed=True)


def compared(folder: Path, *recipes: str, **options: object) -> Comparison:
    names = recipes or ("w8a16", str(folder / "calibrated.toml"))
    given = {"text": folder / "text.txt", "max_windows": 3, "speed": False, **options}
    return zeropoint.compare(folder / "model", recipes=names, **given)  # type: ignore[arg-type]


def test_the_numbers_are_those_of_evaluate_on_the_same_folder(folder: Path, kept: tuple[Path, Comparison]) -> None:
    keep, result = kept
    assert [row.name for row in result.rows] == ["model", "w8a16", "calibrated"]
    for row in result.rows[1:]:
        alone = zeropoint.evaluate(keep / row.name, reference=folder / "model", text=folder / "text.txt", max_windows=3)
        for name in (
            "kl_mean", "kl_interval95", "perplexity", "perplexity_ratio", "ratio_interval95", "top1_agreement",
            "top1_interval95", "size", "fallbacks",
        ):  # fmt: skip
            assert getattr(row, name) == getattr(alone, name), name
        assert (row.folder, row.reused, row.error) == (str(keep / row.name), False, None)
        assert result.rows[0].perplexity == alone.perplexity_reference
        assert result.rows[0].size == alone.size_reference
        assert (result.text, result.tokens, result.runtime) == (alone.text, alone.tokens, alone.runtime)
    assert result.rows[2].recipe == zeropoint.load_recipe(folder / "calibrated.toml").to_dict()
    assert result.complete


def test_every_model_has_its_speed_and_its_memory(kept: tuple[Path, Comparison]) -> None:
    for row in kept[1].rows:
        for speed in (row.prefill_tokens_per_s, row.decode_tokens_per_s):
            assert speed is not None
            assert 0 < speed.low <= speed.median <= speed.high
        assert row.peak_memory_bytes is not None
        assert row.peak_memory_bytes > 10_000_000  # Python and numpy alone
        assert (row.quantize_s is None) == (row.recipe is None)
    assert (kept[1].runs, kept[1].prompt_tokens, kept[1].tokens_decoded) == (2, 512, 128)


def test_the_float_model_has_lost_nothing_by_definition(kept: tuple[Path, Comparison]) -> None:
    first = kept[1].rows[0]
    assert (first.recipe, first.kl_mean, first.perplexity_ratio, first.top1_agreement) == (None,) * 4


def test_kept_models_are_used_again(folder: Path, kept: tuple[Path, Comparison], tmp_path: Path) -> None:
    keep = tmp_path / "models"
    shutil.copytree(kept[0], keep)
    before = weights_of(keep)
    seen: list[Progress] = []
    again = compared(folder, keep=keep, progress=seen.append)
    assert [row.reused for row in again.rows] == [False, True, True]
    for row, first in zip(again.rows, kept[1].rows, strict=True):
        assert (row.kl_mean, row.quantize_s, row.size) == (first.kl_mean, first.quantize_s, first.size)
        assert row.decode_tokens_per_s is None  # speeds were not asked for
    assert weights_of(keep) == before
    assert {step.stage for step in seen} == {"w8a16: evaluate", "calibrated: evaluate"}
    assert again.runs == 0


def test_a_recipe_that_is_missing_among_the_kept_is_made(
    folder: Path, kept: tuple[Path, Comparison], tmp_path: Path
) -> None:
    keep = tmp_path / "models"
    shutil.copytree(kept[0] / "w8a16", keep / "w8a16")
    again = compared(folder, keep=keep)
    assert [row.reused for row in again.rows] == [False, True, False]
    assert sorted(path.name for path in keep.iterdir()) == ["calibrated", "w8a16"]


def other_recipe(folder: Path, keep: Path) -> None:
    text = CALIBRATED.replace("bits = 4", "bits = 5")
    (folder / "calibrated.toml").write_text(text, encoding="utf-8")


def other_model(folder: Path, keep: Path) -> None:
    record = keep / "calibrated" / "zeropoint.json"
    record.write_text(record.read_text().replace(str(folder / "model"), str(folder / "elsewhere")))


def newer_model(folder: Path, keep: Path) -> None:
    os.utime(folder / "model" / "model.safetensors", (time.time() + 60,) * 2)


def no_record(folder: Path, keep: Path) -> None:
    (keep / "calibrated" / "zeropoint.json").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_recipe, "calibrated: was made by another recipe"),
        (other_model, "calibrated: was made of another model"),
        (newer_model, "w8a16: is older than the model"),
        (no_record, "calibrated: has no record"),
    ],
)
def test_something_else_among_the_kept_is_refused_and_left_alone(
    change: Callable[[Path, Path], None], words: str, kept: tuple[Path, Comparison], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    make_llama(own / "model")
    (own / "calibrated.toml").write_text(CALIBRATED, encoding="utf-8")
    (own / "text.txt").write_text(TEXT * 6, encoding="utf-8")
    keep = tmp_path / "models"
    shutil.copytree(kept[0], keep)
    for record in keep.glob("*/zeropoint.json"):  # as if they had been made here, and now
        record.write_text(record.read_text().replace(str(kept[1].model), str(own / "model")))
    change(own, keep)
    before = weights_of(keep)
    with pytest.raises(OutputError, match=f"{words}.*; remove it, or keep the models in another folder"):
        compared(own, keep=keep)
    assert weights_of(keep) == before


def test_another_calibration_text_is_another_model(folder: Path, kept: tuple[Path, Comparison]) -> None:
    with pytest.raises(OutputError, match=r"calibrated: was calibrated on another text, calibration\.txt"):
        compared(folder, str(folder / "calibrated.toml"), keep=kept[0], calibration=folder / "text.txt")


def test_a_recipe_that_fails_is_a_row_and_the_others_go_on(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["compare", str(folder / "model"), "--recipes", f"{folder / 'wide.toml'},w8a16", "--keep", str(tmp_path)]
    options = ["--no-speed", "--max-windows", "2", "--text", str(folder / "text.txt")]
    assert cli.main([*line, *options]) == 1
    streams = capfd.readouterr()
    *table, last = streams.out.splitlines()
    result = msgspec.json.decode(last, type=Comparison)
    assert [row.error is None for row in result.rows] == [True, False, True]
    assert "64 columns do not split into groups of 40" in str(result.rows[1].error)
    assert [row.split() for row in table if row.startswith("wide  ")] == [["wide", "failed"]]
    assert any(row.startswith("wide failed: model.layers.0") for row in table)
    assert any(row.startswith("w8a16  ") for row in table)
    # it is known before the first recipe is at work
    assert streams.err.startswith("zeropoint: warning: recipe wide: model.layers.0")
    assert "w8a16: quantize 2/2" in streams.err
    assert [path.name for path in tmp_path.iterdir()] == ["w8a16"]


def test_a_fault_that_is_found_on_the_way_is_a_row_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeropoint import comparison

    def dies(model: Path, output: Path, **options: object) -> object:
        raise zeropoint.ZeropointError(f"{output.name}: no")

    quantize = comparison.quantize
    monkeypatch.setattr(
        comparison, "quantize", lambda *given, **more: (dies if given[1].name == "w8a16" else quantize)(*given, **more)
    )
    result = compared(folder)
    assert [row.error for row in result.rows] == [None, "w8a16: no", None]
    assert result.rows[2].kl_mean is not None
    assert not result.complete


def test_speeds_that_cannot_be_measured_lose_no_other_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeropoint import comparison

    def dies(models: object, **options: object) -> object:
        raise ProcessError("the process that ran w8a16 was ended by SIGKILL")

    monkeypatch.setattr(comparison, "measure_speeds", dies)
    result = compared(folder, "w8a16", speed=True)
    assert result.speed_error == "the process that ran w8a16 was ended by SIGKILL"
    assert result.rows[1].kl_mean is not None
    assert not result.complete


def test_when_no_recipe_fits_the_first_reason_is_the_error(folder: Path) -> None:
    with pytest.raises(InputError, match="do not split into groups of 40"):
        compared(folder, str(folder / "wide.toml"))


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ("w8a16,w4a61", "no recipe is called 'w4a61'; there are .*did you mean 'w4a16'"),
        ("w8a16,w8a16", "two recipes are called 'w8a16'"),
        ("w8a16,absent.toml", "absent.toml: not a readable recipe"),
        (" , ", "no recipe is given"),
    ],
)
def test_a_wrong_recipe_is_refused_before_torch_is_imported(recipes: str, words: str, tmp_path: Path) -> None:
    line = ["compare", str(tmp_path / "none"), "--recipes", recipes]
    code = f"import sys\nfrom zeropoint import cli\nprint(cli.main({line!r}), 'torch' in sys.modules)"
    done = subprocess.run(
        [ZEROPOINT[0], "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120
    )
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("zeropoint: ")
    with pytest.raises(RecipeError, match=words):
        zeropoint.compare(tmp_path / "none", recipes=[name.strip() for name in recipes.split(",") if name.strip()])


def test_a_recipe_whose_name_is_no_name_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"'\.\./up', which cannot be the name of a folder"):
        zeropoint.compare(folder / "model", recipes=[zeropoint.Recipe(name="../up")])


@pytest.mark.parametrize("option", ["text", "calibration"])
def test_a_text_that_cannot_be_read_is_refused_before_anything_is_quantized(
    option: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match=r"absent\.txt"):
        compared(folder, keep=tmp_path / "models", **{option: tmp_path / "absent.txt"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["max_windows", "runs", "threads"])
def test_a_count_below_one_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"{name} is 0; it must be 1 or more"):
        compared(folder, **{name: 0})


def test_json_is_one_document_and_nothing_is_left(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = f"compare {folder / 'model'} --recipes w8a16 --recipes {folder / 'calibrated.toml'} --runs 1 --threads 1"
    options = f"--max-windows 2 --text {folder / 'text.txt'} --calibration {folder / 'text.txt'} --json"
    assert cli.main([*line.split(), *options.split()]) == 0
    result = msgspec.json.decode(capfd.readouterr().out, type=Comparison)
    assert [row.folder for row in result.rows] == [None] * 3
    assert (result.threads, result.runs, result.text.windows) == (1, 1, 2)
    assert all(row.decode_tokens_per_s is not None for row in result.rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    line = ["compare", str(folder / "model"), "--recipes", f"w8a16,{folder / 'calibrated.toml'}", "--runs", "1000000"]
    command = [*ZEROPOINT, *line, "--text", str(folder / "text.txt"), "--max-windows", "2"]
    with running(command, {"TMPDIR": str(tmp_path)}, text=True) as run:
        for text in run.stderr:
            if text.startswith("bench 1/"):
                break
        (models,) = tmp_path.glob("zeropoint-compare-*")
        assert sorted(path.name for path in models.iterdir()) == ["calibrated", "w8a16"]
        run.send_signal(number)
        rest = run.stderr.read()
    assert run.returncode == 128 + number
    assert "Traceback" not in rest
    assert list(tmp_path.glob("zeropoint-compare-*")) == []


def weights_of(keep: Path) -> dict[str, tuple[int, int]]:
    """What would be different if a model had been written again."""
    return {
        str(file.relative_to(keep)): (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in sorted(keep.rglob("model*.safetensors"))
    }
