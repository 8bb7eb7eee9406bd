from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zeropoint
from tiny import make_llama
from zeropoint.errors import CheckpointError, InputError
from zeropoint.recipe import Recipe
from zeropoint.runtime.choices import Choices
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.types import Scheme

TOKENS = list(range(3, 40))
RTN: dict[str, Any] = {"weights": Scheme(group_size=32), "rounding": "rtn", "range": "minmax"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that says itself how it wants to be run, which an output of it does not take over."""
    folder = make_llama(tmp_path_factory.mktemp("choices") / "model")
    write(folder, {"kv_cache": "int8"})
    return folder


@pytest.fixture(scope="module")
def made(model: Path) -> Path:
    folder = model.parent / "made"
    zeropoint.quantize(model, folder, recipe=Recipe(kv_cache="int8", **RTN))
    return folder


def write(folder: Path, section: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"zeropoint": section}))


def native(model: zeropoint.LanguageModel) -> NativeRunner:
    assert isinstance(model.runner, NativeRunner)
    return model.runner


def test_the_output_says_what_differs_and_no_tensor_does(model: Path, made: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    zeropoint.quantize(model, plain, recipe=Recipe(**RTN))
    assert json.loads((made / "config.json").read_text())["zeropoint"] == {"kv_cache": "int8"}
    assert "zeropoint" not in json.loads((plain / "config.json").read_text())
    assert (plain / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_a_folder_is_run_as_it_says_unless_asked_otherwise(made: Path) -> None:
    asked = native(zeropoint.load(made))
    assert (asked.kv_cache, asked.embeddings) == ("int8", "stored")
    spelled = zeropoint.load(made, kv_cache="int8", embeddings="stored")
    assert np.array_equal(asked.logits(TOKENS), spelled.logits(TOKENS))
    halves, rounded = native(zeropoint.load(made, kv_cache="float16")), native(zeropoint.load(made, embeddings="int8"))
    assert (halves.kv_cache, halves.embeddings) == ("float16", "stored")
    assert (rounded.kv_cache, rounded.embeddings) == ("int8", "int8")
    for other in (halves, rounded):
        assert not np.array_equal(other.logits(TOKENS), asked.logits(TOKENS))


def test_torch_rounds_keys_and_values_as_the_folder_says(made: Path) -> None:
    found = zeropoint.load(made, runtime="torch").logits(TOKENS)
    assert np.array_equal(found, zeropoint.load(made, runtime="torch", kv_cache="int8").logits(TOKENS))
    assert not np.array_equal(found, zeropoint.load(made, runtime="torch", kv_cache="float32").logits(TOKENS))
    with pytest.raises(InputError, match="keys and values is 'int4'; it must be one of float16, float32, int8"):
        zeropoint.load(made, runtime="torch", kv_cache="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", ["native", "torch"])
def test_what_is_judged_is_what_is_run(model: Path, made: Path, tmp_path: Path, runtime: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The miller kept three cats, and the cats kept the mill free of mice. " * 20)

    def judged(**options: Any) -> Any:
        return zeropoint.evaluate(
            made, reference=model, text=text, length=32, max_windows=3, runtime=runtime, **options
        )

    as_said, spelled, exact = judged(), judged(kv_cache="int8"), judged(kv_cache="float16")
    assert (as_said.kv_cache, exact.kv_cache) == ("int8", "float16")
    assert as_said.embeddings == "stored"
    assert as_said.kl_mean == spelled.kl_mean != exact.kl_mean
    if runtime == "native":
        rounded = judged(embeddings="int8")
        assert rounded.embeddings == "int8"
        assert rounded.kl_mean != as_said.kl_mean


@pytest.mark.parametrize(
    "section", [{"kv_cache": "int4"}, {"embeddings": "int8"}, {"kv_cash": "int8"}, {"kv_cache": 8}, "int8", None]
)
@pytest.mark.parametrize("runtime", ["native", "torch"])
def test_a_wrong_section_is_refused_with_what_is_allowed(section: object, runtime: Any, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    write(folder, section)
    allowed = r"may hold kv_cache, 'float16' or 'int8'; correct it"
    with pytest.raises(CheckpointError, match=rf"config.json: 'zeropoint' is .*{allowed}"):
        zeropoint.load(folder, runtime=runtime)


def test_defaults_are_not_written() -> None:
    assert Choices().to_config() == {}
    assert Choices(kv_cache="int8").to_config() == {"zeropoint": {"kv_cache": "int8"}}
    assert Choices.of(Choices(kv_cache="int8").to_config()) == Choices(kv_cache="int8")
