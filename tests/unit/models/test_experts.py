"""Mixtures of experts: each has statistics of its own tokens, the router stays float, and what is alike stays alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

import zeropoint
from architectures import make
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.evaluation.results import QuantizeResult
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import observe, run_blocks, walk
from zeropoint.recipe import load_recipe
from zeropoint.report import terminal
from zeropoint.runtime.generate import load
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import SecondMoment

TOKENS = torch.randint(0, 200, (6, 20), generator=torch.Generator().manual_seed(0))
FAMILIES = [("mixtral", "window"), ("qwen3_moe", "weights of a part")]
RECIPE = (
    "calibration.tokens=random",
    "calibration.samples=4",
    "calibration.length=24",
    "calibration.held_out=0",
)


@pytest.fixture(params=FAMILIES, ids=lambda family: family[0])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make(tmp_path / "model", *request.param)
    return tmp_path / "model"


def quantized(folder: Path, *changes: str) -> QuantizeResult:
    recipe = load_recipe("w4a16", ["weights.group_size=16", *RECIPE, *changes])
    return zeropoint.quantize(folder, folder.parent / "out", recipe=recipe, overwrite=True)


@torch.inference_mode()
def test_an_expert_is_observed_with_the_tokens_it_is_sent(folder: Path) -> None:
    weights, ops = Weights(open_checkpoint(folder)), TorchOps()
    config, seen = weights.model.config, 0
    with Activations(limit_bytes=1 << 30) as activations:
        activations.extend(weights.embed(ops, TOKENS, 2))
        for visit in walk(weights.model, partial(weights.block, ops=ops), activations):
            if visit.stage.expert is None or len(visit.stage.linears) != 2:
                continue
            h = torch.cat([state.read for state in activations if state.read is not None]).flatten(0, 1).double()
            router = next(stage.linears[0] for stage in weights.model.flow if stage.router)
            logits = h @ weights.read(f"{weights.model.block_name(visit.index)}.{router}.weight").double().T
            chosen = logits.topk(config.experts_per_token).indices
            mine = h[(chosen == visit.stage.expert).any(-1)]
            found = observe(visit, frozenset({"second_moment"}))["second_moment"]
            assert isinstance(found, SecondMoment)
            assert (found.count, visit.sent) == (len(mine), len(mine))
            assert torch.allclose(found.matrix.double(), mine.T @ mine / max(1, len(mine)), rtol=1e-4, atol=1e-6)
            seen += len(mine)
    assert seen == config.layers * config.experts_per_token * TOKENS.numel()


@torch.inference_mode()
def test_an_expert_that_is_sent_few_is_observed_with_all(folder: Path) -> None:
    weights, ops = Weights(open_checkpoint(folder)), TorchOps()
    config, counts = weights.model.config, []
    even = TOKENS.numel() * config.experts_per_token // config.experts
    with Activations(limit_bytes=1 << 30) as activations:
        activations.extend(weights.embed(ops, TOKENS, 2))
        for visit in walk(weights.model, partial(weights.block, ops=ops), activations, least_tokens=even):
            if visit.sent is not None:
                found = observe(visit, frozenset({"second_moment"}))["second_moment"]
                assert isinstance(found, SecondMoment)
                assert visit.from_all == (visit.sent < even)
                assert found.count == (TOKENS.numel() if visit.from_all else visit.sent)
                counts.append(visit.from_all)
    assert set(counts) == {True, False}


@torch.inference_mode()
@pytest.mark.parametrize("limit_bytes", [60_000, 0], ids=["both", "disk"])
def test_what_lies_between_experts_may_wait_on_disk(folder: Path, tmp_path: Path, limit_bytes: int) -> None:
    weights, ops = Weights(open_checkpoint(folder)), TorchOps()

    def ends(limit: int) -> Sequence[torch.Tensor]:
        with Activations(limit_bytes=limit, folder=tmp_path) as activations:
            activations.extend(weights.embed(ops, TOKENS, 2))
            list(run_blocks(weights.model, partial(weights.block, ops=ops), activations))
            assert (activations.most_spilled_bytes > 0) == (limit < 1 << 30)
            return [state.x.clone() for state in activations]

    assert all(torch.equal(one, other) for one, other in zip(ends(limit_bytes), ends(1 << 30), strict=True))


def test_the_result_says_what_each_expert_was_sent_and_which_had_too_few(folder: Path) -> None:
    done = quantized(folder, "calibration.expert_tokens=40")
    experts = [row for row in done.layers if ".experts." in row.name]
    assert {row.from_all for row in experts} == {True, False}
    for row in experts:
        assert row.sent_tokens is not None
        assert row.from_all == (row.sent_tokens < 40)
    assert all(row.sent_tokens is None for row in done.layers if ".experts." not in row.name)
    few = next(row for row in experts if row.from_all)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(terminal.quantized(done))
    text = captured.get()
    assert "tokens sent to an expert: " in text
    assert f"{few.name}: {few.sent_tokens:,}" in text
    assert "calibrated from all tokens, being sent few" in text


def test_without_a_text_nothing_is_said_of_tokens(folder: Path) -> None:
    done = quantized(folder, "rounding=rtn", "range=minmax")
    assert all(row.sent_tokens is None and not row.from_all for row in done.layers)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(terminal.quantized(done))
    assert "tokens sent to an expert" not in captured.get()


def test_routers_stay_float_whatever_the_recipe_says(folder: Path) -> None:
    quantized(folder, 'rules=[{layers=["*gate"], weights={bits=8}}]', "weights.bits=8")
    weights = Weights(open_checkpoint(folder.parent / "out"))
    routers = {name for name, scheme in weights.schemes.items() if scheme is None}
    assert {name.rpartition(".")[2] for name in routers} == {"gate"}
    assert len(routers) == weights.model.config.layers


def test_an_expert_without_any_token_is_quantized(folder: Path) -> None:
    done = quantized(folder, "calibration.samples=1", "calibration.length=1", "calibration.expert_tokens=0")
    none = [row for row in done.layers if row.sent_tokens == 0]
    assert none
    assert all(row.fallback is not None for row in none)  # by name: nothing was seen
    assert not [
        row for row in quantized(folder, "calibration.length=1").layers if row.sent_tokens == 0 and row.fallback
    ]


@pytest.mark.parametrize("changes", [['rounding="gptaq"'], ["transforms=['awq']"], ["refine=['learned']"]], ids=str)
def test_every_method_runs(folder: Path, changes: list[str]) -> None:
    done = quantized(folder, "calibration.held_out=1", *changes)
    assert all(layer.fallback is None for layer in done.layers)


def test_experts_that_differ_are_refused_and_others_may(folder: Path) -> None:
    with pytest.raises(SchemeError, match=r"experts.* are quantized in different ways: whoever opens"):
        quantized(folder, 'rules=[{layers=["*.experts.1.*"], weights={bits=8}}]')
    with pytest.raises(SchemeError, match=r"experts.* are quantized in different ways"):
        quantized(folder, 'rules=[{layers=["*.experts.0.*"], keep_float=true}]')
    done = quantized(folder, 'rules=[{layers=["*self_attn*"], weights={bits=8}}]')
    assert {row.scheme for row in done.layers if ".experts." not in row.name} == {"int8 g16 sym"}


def test_more_experts_than_tensors_are_refused_before_they_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    (folder / "config.json").write_text(json.dumps({**config, key: 4096}))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 2 of 4096 experts each, and there are"):
        Weights(open_checkpoint(folder))


def test_zero_points_of_experts_are_noted_before(folder: Path) -> None:
    recipe = load_recipe("w4a16", ["weights.group_size=16", "weights.symmetric=false", "calibration.tokens=random"])
    assert "transformers opens no experts with zero points" in zeropoint.plan(folder, recipe=recipe, bench_s=0).loads


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_threads_change_nothing_natively(folder: Path, activations: str) -> None:
    zeropoint.quantize(folder, folder.parent / "out", recipe=load_recipe("w4a16_channel", RECIPE))  # for the kernels
    one, two = (load(folder.parent / "out", threads=threads, activations=activations) for threads in (1, 2))
    tokens = TOKENS.flatten().tolist()[:100]
    for _ in range(5):
        assert (one.logits(tokens) == two.logits(tokens)).all()
        sessions = one.session(), two.session()
        for start, stop in ((0, 7), (7, 8), (8, 9), (9, 30), (30, 31)):
            first, second = (session.next_logits(tokens[start:stop]) for session in sessions)
            assert (first == second).all()
