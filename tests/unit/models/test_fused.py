"""Linears that make several things: what is folded into them or rotated goes to the rows that make what is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import make
from unit.transforms.blocks import Made
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.runtime.weights import Weights


def made(folder: Path, name: str, variant: str) -> Made:
    """The first block of a tiny model, whose linears become integers."""
    make(folder, name, variant)
    weights = Weights(open_checkpoint(folder))
    flow, prefix = weights.model.flow, f"{weights.model.block_name(0)}."
    linears = {f"{linear}.weight" for stage in flow for linear in stage.linears}
    local = [full.removeprefix(prefix) for full in weights.model.block_tensors(0)]
    block = weights.float_block(0, {each: torch.float32 for each in local if each not in linears})
    x = torch.randn(2, 40, weights.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    return Made(block, flow, x)


@pytest.mark.parametrize(
    ("method", "options"), [("smoothquant", {"strength": 0.5}), ("rotate", {"residual": False})], ids=["fold", "rotate"]
)
@pytest.mark.parametrize("variant", ["plain", "window, rope of a part"])
@torch.inference_mode()
def test_only_the_rows_that_are_read_change(method: str, options: dict[str, Any], variant: str, tmp_path: Path) -> None:
    model = made(tmp_path / "model", "phi3", variant)
    module = find.load("transforms", method)
    done = module.transform(
        model.block, model.flow, model.stats(module.NEEDS), module.Options(**options), model.trial().error
    )
    expected = model.output()
    assert float((model.output(done.block) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert [note.fallback for note in done.notes] == [None] * 4
    config = model.block.config
    first = (config.heads + config.kv_heads) * config.head_dim  # of the values
    name = "self_attn.qkv_proj.weight"
    before, after = model.block.tensors[name], done.block.tensors[name]
    assert not torch.equal(after[first:], before[first:])
    if method == "rotate":
        assert torch.equal(after[:first], before[:first])


@pytest.mark.parametrize(
    ("method", "options"), [("smoothquant", {"strength": 0.5}), ("rotate", {"residual": False})], ids=["fold", "rotate"]
)
@pytest.mark.parametrize("variant", ["plain", "one after the other"])
@torch.inference_mode()
def test_rows_of_values_lie_between_those_of_other_heads(
    method: str, options: dict[str, Any], variant: str, tmp_path: Path
) -> None:
    model = made(tmp_path / "model", "gpt_neox", variant)
    module = find.load("transforms", method)
    done = module.transform(
        model.block, model.flow, model.stats(module.NEEDS), module.Options(**options), model.trial().error
    )
    expected = model.output()
    assert float((model.output(done.block) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    name = "attention.query_key_value.weight"
    heads = (model.block.config.heads, 3, model.block.config.head_dim, -1)
    before, after = (block.tensors[name].view(heads) for block in (model.block, done.block))
    assert not torch.equal(after[:, 2], before[:, 2])
    if method == "rotate":
        assert torch.equal(after[:, :2], before[:, :2])
    else:  # the layer norm's bias is divided like its gain
        norm = [
            model.block.tensors[f"input_layernorm.{kind}"] / done.block.tensors[f"input_layernorm.{kind}"]
            for kind in ("weight", "bias")
        ]
        assert torch.allclose(*norm, rtol=1e-5)


@torch.inference_mode()
def test_a_stage_that_reads_the_stream_itself_has_a_note(tmp_path: Path) -> None:
    model = made(tmp_path / "model", "olmo2", "biased")
    module = find.load("transforms", "awq")
    done = module.transform(
        model.block, model.flow, model.stats(module.NEEDS), module.Options(strength=0.5), model.trial().error
    )
    reason = "no norm and no linear stands before it"
    assert [note.fallback for note in done.notes] == [reason, None, reason, None]
    expected = model.output()
    assert float((model.output(done.block) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
