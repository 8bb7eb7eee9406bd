from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unit.refine.blocks import outputs, tiny_weights, tuned_block
from zeropoint.models.parts import outer_tensors
from zeropoint.refine import Outcome, distill
from zeropoint.refine.distill import Head, Options, Windows
from zeropoint.refine.tuned import TunedBlock, TunedGain
from zeropoint.runtime.ops_torch import DifferentiableOps
from zeropoint.runtime.weights import Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return tiny_weights(tmp_path_factory.mktemp("tiny") / "model")


def windows(weights: Weights, batches: int, *, seed: int) -> Windows:
    random = torch.Generator().manual_seed(seed)
    starts, goals = [], []
    for _ in range(batches):
        x = torch.randn(2, 16, weights.model.config.hidden_size, generator=random)
        starts.append(x)
        for index in range(weights.model.config.layers):
            x = outputs(weights, index, x)
        goals.append(x)
    return Windows(starts, goals)


def student(weights: Weights) -> tuple[list[TunedBlock], Head]:
    ends = weights.head(DifferentiableOps())
    name = outer_tensors(weights.model)[1]
    norm = TunedGain(ends[name].float(), torch.float32)
    blocks = [tuned_block(weights, index, learns=False) for index in range(weights.model.config.layers)]
    return blocks, Head(weights.model, name, norm, ends)


def refine(blocks: list[TunedBlock], head: Head, learned_from: Windows, held_out: Windows, options: Options) -> Outcome:
    with torch.inference_mode():
        return distill.refine(
            blocks,
            head,
            learned_from,
            held_out,
            options,
            gradient_ops=DifferentiableOps(),
            seed=0,
            progress=lambda done, steps: None,
        )


def divergence(weights: Weights, blocks: list[TunedBlock], head: Head, data: Windows) -> float:
    """KL(float || student) by its definition, in float64."""
    ops, total, tokens = DifferentiableOps(), 0.0, 0
    for start, goal in zip(data.starts, data.goals, strict=True):
        x = start
        for block in blocks:
            x = block.prepare(ops).run(weights.model.flow, x)
        p = softmax(head.float_logits(ops, goal))
        q = softmax(head.logits(ops, x, head.norm.weight()))
        total += float((p * (np.log(p) - np.log(q))).sum())
        tokens += x.shape[0] * x.shape[1]
    return total / tokens


def softmax(logits: Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy() - logits.double().numpy().max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def test_the_divergence_falls_on_windows_that_nothing_has_learned_from(weights: Weights) -> None:
    blocks, head = student(weights)
    learned_from, held_out = windows(weights, 6, seed=1), windows(weights, 2, seed=2)
    before = divergence(weights, blocks, head, held_out)
    codes = [linear.qtensor().codes for block in blocks for linear in block.linears.values()]
    outcome = refine(blocks, head, learned_from, held_out, Options(steps=20, every=5, rate=0.005))
    assert outcome.error_before == pytest.approx(before, rel=1e-3)
    assert outcome.error_after == pytest.approx(divergence(weights, blocks, head, held_out), rel=1e-3)
    assert outcome.error_after < 0.98 * before
    now = [linear.qtensor().codes for block in blocks for linear in block.linears.values()]
    assert all(torch.equal(a, b) for a, b in zip(codes, now, strict=True))


def test_it_never_ends_above_its_start(weights: Weights) -> None:
    blocks, head = student(weights)
    learned_from, held_out = windows(weights, 2, seed=1), windows(weights, 1, seed=2)
    before = divergence(weights, blocks, head, held_out)
    outcome = refine(blocks, head, learned_from, held_out, Options(steps=8, every=2, patience=2, rate=0.9))
    assert outcome.steps == 4
    assert outcome.error_after == outcome.error_before
    assert divergence(weights, blocks, head, held_out) == pytest.approx(before, rel=1e-6)


def test_gradients_are_slopes_of_the_divergence(weights: Weights) -> None:
    blocks, head = student(weights)
    data = windows(weights, 1, seed=4)
    ops = DifferentiableOps()
    with torch.inference_mode():
        from zeropoint.threads import a_thread_each

        with a_thread_each() as pool:
            distill._Student(blocks, head, ops, pool).pull(data.starts[0], data.goals[0])
    for part in (blocks[0].gains["input_layernorm"], head.norm):
        gradient = part.change.grad
        assert gradient is not None
        length = 2e-3 / float(gradient.norm())
        found = []
        for sign in (1, -1):
            part.change.copy_(sign * length * gradient)
            found.append(divergence(weights, blocks, head, data))
        part.change.zero_()
        assert (found[0] - found[1]) / 2 == pytest.approx(length * float(gradient.square().sum()), rel=0.03)
