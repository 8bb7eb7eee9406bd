from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import NonFiniteError
from zeropoint.models.parts import State
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import look_ahead, observe, run_blocks, walk
from zeropoint.runtime.generate import load
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import ChannelAbsMax, SecondMoment

TOKENS = torch.randint(0, 300, (6, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("walk") / "model", layers=3)


def embedded(weights: Weights, ops: TorchOps, activations: Activations) -> None:
    activations.extend(weights.model.embed(ops, weights.embedding(), part) for part in TOKENS.split(2))


@pytest.mark.parametrize("limit_bytes", [1 << 30, 30_000, 0], ids=["memory", "both", "disk"])
@torch.inference_mode()
def test_the_walk_ends_where_the_whole_model_does(model: Path, tmp_path: Path, limit_bytes: int) -> None:
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    with Activations(limit_bytes=limit_bytes, folder=tmp_path) as activations:
        embedded(weights, ops, activations)
        assert list(run_blocks(weights.model, lambda i: weights.block(i, ops), activations)) == [0, 1, 2]
        assert (activations.most_spilled_bytes > 0) == (limit_bytes < 1 << 30)
        hidden = torch.cat([state.x for state in activations])
    logits = weights.model.head(ops, weights.head(ops), hidden)
    whole = load(model, runtime="torch")
    expected = [torch.from_numpy(whole.logits(tokens.tolist())) for tokens in TOKENS]
    assert all(torch.equal(got, one) for got, one in zip(logits, expected, strict=True))
    assert not list(tmp_path.iterdir()), "the files of the activations were left behind"


@torch.inference_mode()
def test_the_second_moment_is_that_of_what_the_linears_read(model: Path) -> None:
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    with Activations(limit_bytes=1 << 30) as activations:
        embedded(weights, ops, activations)
        for visit in walk(weights.model, lambda i: weights.block(i, ops), activations):
            x = torch.cat(list(visit.inputs())).flatten(0, 1).double()
            found = observe(visit, frozenset({"second_moment"}))["second_moment"]
            assert isinstance(found, SecondMoment)
            assert found.count == TOKENS.numel()
            assert torch.allclose(found.matrix.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_what_replaces_a_weight_is_what_runs_next(model: Path) -> None:
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    with Activations(limit_bytes=1 << 30) as activations:
        embedded(weights, ops, activations)
        before = [state.x.clone() for state in activations]
        for visit in walk(weights.model, lambda i: weights.block(i, ops), activations):
            for name in visit.stage.linears:
                prepared = visit.block.weights[f"{name}.weight"]
                visit.block.weights[f"{name}.weight"] = replace(prepared, values=torch.zeros_like(prepared.values))
        assert all(torch.equal(state.x, x) for state, x in zip(activations, before, strict=True))


@torch.inference_mode()
def test_infinite_activations_are_refused_by_block_and_linears(model: Path) -> None:
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    with Activations(limit_bytes=1 << 30) as activations:
        embedded(weights, ops, activations)
        visits = walk(weights.model, lambda i: weights.block(i, ops), activations)
        visit = next(visits)
        activations.map(lambda state: State(state.x * float("inf")))
        with pytest.raises(NonFiniteError, match=r"block 0, input of self_attn\.q_proj, self_attn\.k_proj"):
            observe(visit, frozenset({"second_moment"}))


@torch.inference_mode()
def test_looking_ahead_sees_what_the_walk_will_see_and_leaves_it_where_it_was(model: Path) -> None:
    weights, ops, needs = Weights(open_checkpoint(model)), TorchOps(), frozenset({"channel_absmax"})
    with Activations(limit_bytes=1 << 30) as activations:
        embedded(weights, ops, activations)
        ahead = {}
        for visit in walk(weights.model, lambda i: weights.block(i, ops), activations):
            if visit.stage is weights.model.flow[0]:
                before = [state.x.clone() for state in activations]
                ahead = dict(look_ahead(visit.block, visit.index, weights.model.flow, activations, needs))
                assert all(torch.equal(state.x, x) for state, x in zip(activations, before, strict=True))
                assert all(state.y is None for state in activations)
            seen = observe(visit, needs)["channel_absmax"]
            assert isinstance(seen, ChannelAbsMax)
            found = ahead.pop(visit.stage)["channel_absmax"]
            assert isinstance(found, ChannelAbsMax)
            assert torch.equal(found.values, seen.values)
            assert found.count == seen.count == TOKENS.numel()


@torch.inference_mode()
def test_looking_ahead_refuses_infinite_activations_by_block_and_linears(model: Path) -> None:
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    states = [State(torch.full((1, 3, 64), float("inf")))]
    with pytest.raises(NonFiniteError, match=r"block 1, input of self_attn\.q_proj, self_attn\.k_proj"):
        look_ahead(weights.block(1, ops), 1, weights.model.flow, states, frozenset({"channel_absmax"}))
