"""A quantized folder of every architecture opens in transformers, and gives the logits that we compute from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import zeropoint
from architectures import VARIANTS, make
from zeropoint.recipe import load_recipe

NOT_OPENED = ("gpt2",)
"""See unit/models/test_learned_positions.py."""

CASES = [
    *((name, list(variants)[-1]) for name, variants in VARIANTS.items() if name not in ("llama", *NOT_OPENED)),
    ("qwen3_moe", "every second without experts"),
    ("phi3", "longrope, of a part"),
    ("qwen2", "yarn rope"),
]
THOROUGH = ("gpt_neox", "mixtral", "qwen3_moe", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
EXACT = ("weights.scale_dtype=float32",)
"""transformers unpacks experts to the dtype of their scales."""

TOKENS = torch.randint(0, 200, (1, 90), generator=torch.Generator().manual_seed(1))


def require_equal_logits(folder: Path) -> Tensor:
    """See that transformers' logits of a folder are ours, and return them: (tokens, vocabulary)."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected: Tensor = theirs(TOKENS).logits[0]
    ours = torch.from_numpy(zeropoint.load(folder, runtime="torch").logits(TOKENS[0].tolist()))
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    return expected


@pytest.mark.parametrize(("name", "variant"), CASES, ids=map("-".join, CASES))
def test_a_quantized_folder_opens_and_gives_our_logits(name: str, variant: str, tmp_path: Path) -> None:
    make(tmp_path / "model", name, variant)
    changes = ["weights.group_size=16", *EXACT, 'rounding="rtn"', 'range="minmax"', "transforms=[]"]
    recipe = load_recipe("w4a16", changes)
    done = zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    assert all(layer.fallback is None for layer in done.layers)
    expected = require_equal_logits(tmp_path / "out")
    with torch.no_grad():
        exact = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(TOKENS).logits[0]
    scale = float(expected.abs().max())
    assert float((expected - exact).abs().max()) > 1e-2 * scale  # it was quantized


@pytest.mark.parametrize(("name", "variant"), [case for case in CASES if case[0] in ("mixtral", "qwen3_moe")])
def test_attention_and_experts_may_differ(name: str, variant: str, tmp_path: Path) -> None:
    make(tmp_path / "model", name, variant)
    rules = 'rules=[{layers=["*self_attn*"], weights={bits=8}}]'
    recipe = load_recipe("w4a16", ["weights.group_size=16", *EXACT, 'rounding="rtn"', 'range="minmax"', rules])
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    require_equal_logits(tmp_path / "out")


@pytest.mark.parametrize("variant", VARIANTS["gpt_neox"])
def test_embedding_and_head_of_other_names_open_as_integers(variant: str, tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt_neox", variant)
    recipe = load_recipe("w4a16", ["weights.group_size=16", 'rounding="rtn"', 'range="minmax"', "embeddings=int8"])
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    require_equal_logits(tmp_path / "out")


@pytest.mark.parametrize(("name", "variant"), [case for case in CASES if case[0] in THOROUGH], ids=lambda value: value)
def test_after_all_that_can_be_done_it_still_opens(name: str, variant: str, tmp_path: Path) -> None:
    """With scales folded into norms, heads rotated, codes and gains tuned by gradients: our logits are theirs."""
    make(tmp_path / "model", name, variant)
    recipe = load_recipe(
        "w4a16",
        [
            "weights.group_size=16",
            *EXACT,
            'calibration.tokens="random"',
            "calibration.samples=4",
            "calibration.length=48",
            'transforms=[{method="rotate", residual=false}, {method="awq", strength=0.5}]',
            'refine=[{method="learned", steps=2, every=1}, {method="distill", steps=2, every=1}]',
        ],
    )
    done = zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    assert all(row.error_after <= row.error_before for row in done.refined)
    require_equal_logits(tmp_path / "out")
