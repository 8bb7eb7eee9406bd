from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zeropoint
from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.recipe import load_recipe
from zeropoint.runtime import weights as module
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights


@pytest.mark.parametrize("kind", ["tied", "apart", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_head_in_slabs_gives_what_the_whole_one_gives(
    kind: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_llama(tmp_path / "model", tied=kind != "apart")
    if kind.startswith("int"):
        settings = [f"embeddings={kind}", "rounding=rtn", "range=minmax", "weights.group_size=16"]
        zeropoint.quantize(folder, tmp_path / "out", recipe=load_recipe("w4a16", settings))
        folder = tmp_path / "out"
    weights, ops = Weights(open_checkpoint(folder)), TorchOps()
    x = torch.randn(2, 3, weights.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = weights.model.head(ops, weights.head(ops), x)
    assert torch.equal(weights.logits(ops)(x), expected)
    monkeypatch.setattr(module, "HEAD_VALUES", rows * weights.model.config.hidden_size)
    assert torch.allclose(weights.logits(ops)(x), expected, rtol=1e-5, atol=1e-5)
