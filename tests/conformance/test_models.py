"""Every file in models/ is found and held to the same contract, with transformers as the oracle.

A new architecture is tested as soon as it has a line in tests/architectures.py, and the suite fails until it has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import VARIANTS, make
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.models.parts import outer_tensors
from zeropoint.runtime.generate import load
from zeropoint.runtime.weights import Weights

CASES = [(name, variant) for name in find.names("models") for variant in VARIANTS.get(name, {"missing": None})]


@pytest.fixture(params=CASES, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """A random transformers model, and the folder it was saved in."""
    name, variant = request.param
    assert name in VARIANTS, f"models/{name}.py has no tiny config in VARIANTS"
    return make(tmp_path, name, variant), tmp_path


EXACT = [
    pytest.param({"runtime": "torch"}, id="torch"),
    pytest.param({"runtime": "native", "activations": "float", "kv_cache": "float32"}, id="native"),
]
"""Both runtimes, without what the native one rounds."""

TOKENS = torch.randint(0, 200, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", EXACT)
def test_logits_equal_those_of_transformers(pair: tuple[torch.nn.Module, Path], options: dict[str, Any]) -> None:
    theirs, folder = pair
    with torch.no_grad():
        expected = theirs(TOKENS).logits[0]
    ours = torch.from_numpy(load(folder, **options).logits(TOKENS[0].tolist()))
    # float32 sums in another order, through two blocks with weights of 0.3: a few ulps of the largest logit
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("options", EXACT)
def test_token_by_token_equals_all_at_once(pair: tuple[torch.nn.Module, Path], options: dict[str, Any]) -> None:
    model = load(pair[1], **options)
    expected = model.logits(TOKENS[0].tolist())
    session = model.session()
    steps = [session.next_logits(piece.tolist()) for piece in TOKENS[0].split([5, 1, 1, 30, 1, 52])]
    ends = np.array([5, 6, 7, 37, 38, 90]) - 1
    assert np.allclose(np.stack(steps), expected[ends], atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_every_tensor_is_used_or_named(pair: tuple[torch.nn.Module, Path]) -> None:
    checkpoint = open_checkpoint(pair[1])
    weights = Weights(checkpoint)
    used = set(outer_tensors(weights.model))
    for index in range(weights.model.config.layers):
        used |= set(weights.model.block_tensors(index))
    assert used | set(weights.skipped()) == set(checkpoint.tensors)
    assert weights.skipped() == ()


def test_the_flow_names_what_exists(pair: tuple[torch.nn.Module, Path]) -> None:
    model = Weights(open_checkpoint(pair[1])).model
    assert any(model.flow_of(index) is model.flow for index in range(model.config.layers))
    for index in range(model.config.layers):
        prefix, flow = f"{model.block_name(index)}.", model.flow_of(index)
        local = {name.removeprefix(prefix).removesuffix(".weight") for name in model.block_tensors(index)}
        linears = [name for stage in flow for name in stage.linears]
        assert len(linears) == len(set(linears))
        feeders = {stage.fed_by for stage in flow if stage.fed_by is not None}
        assert {*linears, *feeders} <= local
