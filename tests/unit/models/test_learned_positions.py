"""GPT-2 and OPT: positions end where their table does, and GPT-2's float weights stay transposed in the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import zeropoint
from architectures import make
from zeropoint.errors import ArchitectureError, InputError
from zeropoint.recipe import load_recipe
from zeropoint.runtime.generate import load

TOKENS = [i * 7 % 199 + 1 for i in range(60)]
ROUNDED = ["weights.group_size=16", 'rounding="rtn"', 'range="minmax"', "weights.scale_dtype=float32"]
FLOAT_OUTPUTS = 'rules=[{layers=["*c_proj"], keep_float=true}]'


@pytest.mark.parametrize("runtime", ["torch", "native"])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_text_may_be_as_long_as_the_table_and_no_longer(name: str, runtime: Any, tmp_path: Path) -> None:
    make(tmp_path, name, "plain")
    model = load(tmp_path, runtime=runtime)
    assert model.config.max_positions == model.config.longest == 128
    assert len(model.logits([1] * 128)) == 128
    with pytest.raises(InputError, match="129 tokens are more than the 128 that this model has positions for"):
        model.logits([1] * 129)
    session = model.session()
    session.next_logits([1] * 127)
    session.next_logits([1])
    with pytest.raises(InputError, match="129 tokens are more than the 128"):
        session.next_logits([1])
    assert session.length == 128


def test_a_table_by_position_has_an_end_in_native_programs(tmp_path: Path) -> None:
    from zeropoint import _native

    make(tmp_path, "gpt2", "plain")
    runner = load(tmp_path, runtime="native").runner
    cache = _native.Cache(2, 4, 12, "float32")
    rows = torch.empty(1, 208).numpy()
    tokens = torch.ones(129, dtype=torch.int32).numpy()
    with pytest.raises(ValueError, match="the table of positions ends before these tokens do"):
        runner._program.run(cache, tokens, rows)  # type: ignore[attr-defined]


def test_weights_that_stay_float_are_written_as_they_were(tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2", "plain")
    recipe = load_recipe("w4a16", [*ROUNDED, FLOAT_OUTPUTS])
    done = zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("model", "out"))
    assert after["transformer.h.0.attn.c_attn.weight_packed"].shape == (3 * 48, 48 // 8)
    floats = [name for name in before if name.endswith("c_proj.weight")]
    assert len(floats) == 4
    assert all(torch.equal(after[name], before[name]) for name in floats)
    assert done.verification is not None
    assert not done.verification.problems


def test_scaled_weights_that_stay_float_are_written_transposed(tmp_path: Path) -> None:
    """What a transform rewrites goes back to the order of the file."""
    make(tmp_path / "model", "gpt2", "plain")
    rules = 'rules=[{layers=["*c_attn", "*c_fc"], keep_float=true}]'
    small = ['calibration.tokens="random"', "calibration.samples=4", "calibration.length=48"]
    changes = [*ROUNDED, *small, rules, 'transforms=[{method="smoothquant", strength=0.5}]']
    done = zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=load_recipe("w4a16", changes))
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("model", "out"))
    name = "transformer.h.0.attn.c_attn.weight"
    assert after[name].shape == before[name].shape == (48, 144)
    assert not torch.equal(after[name], before[name])
    ours, exact = (torch.from_numpy(load(tmp_path / each, runtime="torch").logits(TOKENS)) for each in ("out", "model"))
    assert float((ours - exact).abs().max()) < 0.5 * float(exact.abs().max())
    assert done.verification is not None
    assert not done.verification.problems


def test_both_runtimes_compute_the_same_from_integers(tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2", "plain")
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=load_recipe("w4a16", ROUNDED))
    exact = {"activations": "float", "kv_cache": "float32"}
    native = torch.from_numpy(load(tmp_path / "out", runtime="native", **exact).logits(TOKENS))
    with_torch = torch.from_numpy(load(tmp_path / "out", runtime="torch").logits(TOKENS))
    assert torch.allclose(native, with_torch, atol=2e-5 * float(with_torch.abs().max()), rtol=0)


def test_that_transformers_does_not_open_its_integers_is_so_and_is_said(tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2", "plain")
    recipe = load_recipe("w4a16", ROUNDED)
    said = zeropoint.plan(tmp_path / "model", recipe=recipe, bench_s=0).loads
    done = zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    assert "transformers does not open it: it looks for integers in modules of class Linear" in said
    assert done.format_note is not None
    assert done.format_note in said
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor([TOKENS])).logits[0]
    ours = torch.from_numpy(load(tmp_path / "out", runtime="torch").logits(TOKENS))
    assert float((logits - ours).abs().max()) > 0.1 * float(ours.abs().max())  # with weights that are random
    make(tmp_path / "opt", "opt", "plain")
    assert "Conv1D" not in zeropoint.plan(tmp_path / "opt", recipe=recipe, bench_s=0).loads


def test_it_is_exported_to_no_other_engine(tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2", "plain")
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=load_recipe("w4a16", ROUNDED))
    with pytest.raises(ArchitectureError, match="a gpt2 model has its weights transposed, which a folder for gptq"):
        zeropoint.export(tmp_path / "out", tmp_path / "gptq", format="gptq")
    with pytest.raises(ArchitectureError, match="model_type 'gpt2' cannot be exported as GGUF yet"):
        zeropoint.export(tmp_path / "out", tmp_path / "m.gguf", format="gguf")


def test_the_config_of_the_output_has_the_names_of_the_source(tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2", "plain")
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=load_recipe("w4a16", ROUNDED))
    before, after = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("model", "out"))
    assert {**before, "quantization_config": after["quantization_config"]} == after
