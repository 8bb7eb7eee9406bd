"""A rotated folder opens in transformers, where nobody knows of a rotation, and gives the logits of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import zeropoint
from unit.transforms.test_outer import TOKENS, llama_folder, recipe


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: Tensor = model(torch.tensor([TOKENS])).logits[0]
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_a_rotated_folder_has_the_logits_of_its_source(tied: bool, tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source", tied=tied, attention_bias=True, mlp_bias=True)
    zeropoint.quantize(source, tmp_path / "out", recipe=recipe("rotate"))
    expected = logits(source)
    assert float((logits(tmp_path / "out") - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_integers_of_a_rotated_model_open_too(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source", tied=True)
    zeropoint.quantize(source, tmp_path / "out", recipe=recipe("rotate", rules=[]))
    ours = torch.from_numpy(zeropoint.load(tmp_path / "out", runtime="torch", kv_cache="float32").logits(TOKENS))
    theirs = logits(tmp_path / "out")
    assert float((ours - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())
    assert float((theirs - logits(source)).abs().max()) <= 0.1 * float(theirs.abs().max())
