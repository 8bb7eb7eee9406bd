"""What a form costs: against the definition of the Fisher information, and against the KL of a model that has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference.fisher import fisher as fisher_by_definition
from tiny import make_llama
from zeropoint.budget.fisher import fisher
from zeropoint.budget.sensitivity import expected_kl
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.models.parts import Block
from zeropoint.runtime.ops_torch import DifferentiableOps
from zeropoint.runtime.weights import Weights
from zeropoint.stages import divergence
from zeropoint.types import SecondMoment

LIMIT = 1 << 30


class Spied(Block):
    """A block that gives one linear's output away, or takes another one for it."""

    taken: torch.Tensor | None
    given: torch.Tensor

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().linear(name, x)
        if name != "mlp.up_proj":
            return y
        object.__setattr__(self, "given", y)
        return y if self.taken is None else self.taken.view_as(y)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(open_checkpoint(make_llama(tmp_path / "model", vocab=259, hidden=32, intermediate=48)))


def test_fisher_is_what_its_definition_says(weights: Weights) -> None:
    ops, model = DifferentiableOps(), weights.model
    tokens = torch.tensor([[5, 9, 200]])
    x = torch.cat(list(weights.embed(ops, tokens, 1)))
    blocks = [weights.block(index, ops) for index in range(2)]
    first, ends = blocks[0], weights.head(ops)
    spied = Spied(first.config, ops, first.weights)
    object.__setattr__(spied, "taken", None)
    spied.run(model.flow, x)

    def logits_of(z: torch.Tensor) -> torch.Tensor:
        object.__setattr__(spied, "taken", z)
        logits: torch.Tensor = model.head(ops, ends, blocks[1].run(model.flow, spied.run(model.flow, x)))
        return logits[0].double()

    wanted = fisher_by_definition(logits_of, spied.given[0])
    runs = [fisher(weights, tokens, seed=1000 * seed, limit_bytes=LIMIT) for seed in range(400)]
    drawn = torch.stack([run.linears["model.layers.0.mlp.up_proj"] for run in runs]).double()
    error = drawn.std(0) / len(runs) ** 0.5
    assert ((drawn.mean(0) - wanted).abs() < 4.5 * error + 1e-12).all()
    assert float((drawn.mean(0).sum() - wanted.sum()) / wanted.sum()) == pytest.approx(0, abs=0.1)


def test_the_expected_kl_is_that_of_a_model_with_small_errors(weights: Weights) -> None:
    ops, model, random = DifferentiableOps(), weights.model, torch.Generator().manual_seed(0)
    tokens = torch.randint(259, (24, 16), generator=random)
    minds = fisher(weights, tokens, seed=0, limit_bytes=LIMIT)
    name = "model.layers.0.mlp.up_proj"
    x = torch.cat(list(weights.embed(ops, tokens, 24)))
    blocks = [weights.block(index, ops) for index in range(2)]
    inputs: list[torch.Tensor] = []

    class Reads(Block):
        def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
            if name == "mlp.up_proj":
                inputs.append(x)
            y: torch.Tensor = super().linear(name, x)
            return y

    between = Reads(blocks[0].config, ops, blocks[0].weights).run(model.flow, x)
    rows = inputs[0].flatten(0, 1)
    stats = {"second_moment": SecondMoment(rows.T @ rows / len(rows), len(rows))}
    ends = weights.head(ops)
    reference = blocks[1].run(model.flow, between)
    weight = blocks[0].weights["mlp.up_proj.weight"]
    ratios = []
    for _ in range(12):
        error = 0.05 * float(weight.std()) * torch.randn(weight.shape, generator=random)
        changed = replace(blocks[0], weights={**blocks[0].weights, "mlp.up_proj.weight": weight - error})
        other = blocks[1].run(model.flow, changed.run(model.flow, x))
        measured = divergence(lambda h: model.head(ops, ends, h), reference, other)
        ratios.append(measured / expected_kl(error, minds.linears[name], stats))
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.2)


def test_it_does_not_depend_on_what_is_in_memory(weights: Weights) -> None:
    tokens = torch.arange(64).view(4, 16)
    first = fisher(weights, tokens, seed=3, limit_bytes=LIMIT)
    second = fisher(weights, tokens, seed=3, limit_bytes=0)
    assert torch.equal(first.embedded, second.embedded)
    assert all(torch.equal(first.linears[name], second.linears[name]) for name in first.linears)


def test_an_expert_that_nobody_was_sent_to_costs_nothing() -> None:
    stats = {"second_moment": SecondMoment(torch.zeros(0, 0), 0)}
    assert expected_kl(torch.ones(2, 3), torch.ones(2), stats) == 0.0
