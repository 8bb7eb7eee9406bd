"""Attention with a window, another scale and capped scores, of both torch ops and of the native runtime."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.attention import attention
from tiny import make_llama
from zeropoint.runtime.cache import TorchLayerCache
from zeropoint.runtime.generate import load
from zeropoint.runtime.ops_torch import DifferentiableOps, TorchOps

OPTIONS: list[dict[str, Any]] = [
    {"window": None, "scale": None, "softcap": None},
    {"window": 1, "scale": None, "softcap": None},
    {"window": 5, "scale": 0.7, "softcap": None},
    {"window": 17, "scale": None, "softcap": None},
    {"window": 100, "scale": 0.3, "softcap": 2.0},
    {"window": 5, "scale": None, "softcap": 0.8},
    {"window": None, "scale": None, "softcap": 1.5},
]


def heads(count: int, time: int, seed: int) -> torch.Tensor:
    return torch.randn(1, count, time, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ops", [TorchOps(), DifferentiableOps()], ids=lambda ops: type(ops).__name__)
def test_it_is_that_of_the_reference(ops: TorchOps, options: dict[str, Any]) -> None:
    q, k, v = heads(4, 17, 0), heads(2, 17, 1), heads(2, 17, 2)
    expected = attention(*(t[0].double().numpy() for t in (q, k, v)), **options)
    assert np.allclose(ops.attention(q, k, v, None, **options)[0].numpy(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_in_pieces_it_is_what_it_is_at_once(options: dict[str, Any]) -> None:
    ops, past = TorchOps(), TorchLayerCache()
    q, k, v = heads(4, 17, 0), heads(2, 17, 1), heads(2, 17, 2)
    pieces = [ops.attention(*(t[:, :, a:b] for t in (q, k, v)), past, **options) for a, b in pairwise((0, 1, 2, 9, 17))]
    assert torch.allclose(torch.cat(pieces, 1), ops.attention(q, k, v, None, **options), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_its_gradients_are_those_of_small_differences(options: dict[str, Any]) -> None:
    ops = DifferentiableOps()
    inputs = [t.double().requires_grad_() for t in (heads(2, 7, 0), heads(1, 7, 1), heads(1, 7, 2))]
    assert torch.autograd.gradcheck(lambda *x: ops.attention(*x, None, **options), inputs)


def test_capped_logits_have_a_gradient_and_are_those_of_the_formula() -> None:
    x = torch.linspace(-50, 50, 41, dtype=torch.float64, requires_grad=True)
    found = DifferentiableOps().softcap(x, 7.0)
    assert torch.equal(TorchOps().softcap(x.detach().clone(), 7.0), found)
    assert np.allclose(found.detach().numpy(), 7 * np.tanh(x.detach().numpy() / 7), atol=1e-12)
    assert torch.autograd.gradcheck(lambda each: DifferentiableOps().softcap(each, 7.0), [x])


@pytest.mark.parametrize("window", [1, 37, 300, 700])
def test_a_window_over_long_texts_is_that_of_torch(window: int, tmp_path: Path) -> None:
    """Texts past a page of keys (256), a piece of attention and the rows of one call (512 both)."""
    tokens = np.random.default_rng(0).integers(3, 90, 1100).tolist()
    folder = make_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": window}))
    expected = load(folder, runtime="torch").logits(tokens)
    native = load(folder, activations="float", kv_cache="float32")
    tolerance = 2e-5 * np.abs(expected).max()
    assert np.allclose(native.logits(tokens), expected, rtol=0, atol=tolerance)
    assert np.abs(expected - load(make_llama(tmp_path / "all"), runtime="torch").logits(tokens)).max() > 10 * tolerance
    session, at = native.session(), 0
    for size in (5, 507, 1, 8, 9, 520, 1, 1):
        found = session.next_logits(tokens[at : at + size])
        at += size
        assert np.allclose(found, expected[at - 1], rtol=0, atol=tolerance)
