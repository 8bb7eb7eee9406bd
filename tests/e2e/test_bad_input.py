"""What a user can get wrong ends with exit code 2, one sentence on stderr, and nothing under the output's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from child import ENVIRONMENT
from e2e.cli import SMALL, zeropoint
from tiny import make_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def missing(model: Path) -> list[str]:
    shutil.rmtree(model)
    return ["no such file or folder"]


def truncated(model: Path) -> list[str]:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ["model.safetensors"]


def missing_shard(model: Path) -> list[str]:
    shutil.rmtree(model)
    make_llama(model, shards=2)
    next(model.glob("*-00002-of-*.safetensors")).unlink()
    return ["00002-of-00002.safetensors"]


def unknown_architecture(model: Path) -> list[str]:
    edit_config(model, model_type="rwkv7")
    return ["'rwkv7'", "llama", "mistral"]


def unknown_activation(model: Path) -> list[str]:
    edit_config(model, hidden_act="mish")
    return ["'mish'", "silu"]


def nan_weight(model: Path) -> list[str]:
    change_weight(model, "model.layers.1.mlp.up_proj.weight", float("nan"))
    return ["model.layers.1.mlp.up_proj.weight", "NaN"]


def infinite_norm(model: Path) -> list[str]:
    change_weight(model, "model.layers.1.input_layernorm.weight", float("inf"))
    return ["model.layers.1.input_layernorm.weight", "infinite"]


def missing_tensor(model: Path) -> list[str]:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors")
    return ["model.layers.0.mlp.up_proj.weight", "not there"]


def pickle_only(model: Path) -> list[str]:
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    return ["pickle", "safetensors"]


def foreign_tokenizer(model: Path) -> list[str]:
    shutil.rmtree(model)
    make_llama(model, vocab=270)
    shutil.copy(make_llama(model.with_name("other"), vocab=300) / "tokenizer.json", model)
    return ["tokenizer.json", "0 to 269"]


def no_config(model: Path) -> list[str]:
    (model / "config.json").unlink()
    return ["config.json"]


def edit_config(model: Path, **changes: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def change_weight(model: Path, name: str, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, model / "model.safetensors")


FAULTS = [
    missing,
    truncated,
    missing_shard,
    unknown_architecture,
    unknown_activation,
    nan_weight,
    infinite_norm,
    missing_tensor,
    pickle_only,
    foreign_tokenizer,
    no_config,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_model_is_refused(fault: Callable[[Path], list[str]], model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    words = fault(copy)
    refuses(["quantize", copy, "--output", tmp_path / "out", *SMALL], tmp_path, words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("roundin=rtn", ["roundin", "rounding"]),
        ("rounding=gptqq", ["gptqq", "gptq"]),
        ("rounding.dampin=0.1", ["dampin", "damping"]),
        ("weights.bits=9", ["weights.bits", "9"]),
        ("weights.group_size=40", ["40", "64 columns", "use a group_size of"]),
        ("calibration.samples=0", ["calibration.samples"]),
        ("calibration.length=513", ["513", "context of 512", "calibration.length"]),
    ],
)
def test_a_wrong_setting_is_refused(setting: str, words: list[str], model: Path, tmp_path: Path) -> None:
    refuses(["quantize", model, "--output", tmp_path / "out", *SMALL, "--set", setting], tmp_path, words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "", ["empty.txt", "empty"]),
        ("short.txt", "Too short.", ["short.txt", "32"]),
        ("absent.txt", None, ["absent.txt"]),
        ("lines.jsonl", '{"text": "good"}\n{"text": 3}\n', ["lines.jsonl", "line 2"]),
    ],
)
def test_a_useless_text_is_refused(name: str, text: str | None, words: list[str], model: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    arguments = ["quantize", model, "--output", tmp_path / "out", *SMALL, "--calibration", tmp_path / name]
    refuses(arguments, tmp_path, words)


def test_an_output_that_exists_is_refused_and_left_as_it_is(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    done = zeropoint("quantize", model, "--output", output, *SMALL)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert [f.name for f in output.iterdir()] == ["precious.txt"]


def test_a_full_disk_is_said_and_what_is_done_is_kept(model: Path, tmp_path: Path) -> None:
    limit = f"ulimit -f 40; exec {sys.executable} -m zeropoint quantize {model} -o {tmp_path / 'out'} --json"  # 40 KiB
    command = ["bash", "-c", " ".join([limit, *SMALL])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "free some, or give an output on another disk" in done.stderr.splitlines()[-1]
    assert "the same command goes on from there" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


def refuses(arguments: list[str | Path], folder: Path, words: list[str]) -> None:
    done = zeropoint(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("zeropoint: ")
    for word in words:
        assert word in sentence
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*")), "a partial folder was left behind"
