from __future__ import annotations

import pytest
import torch

from unit.refine.blocks import outputs, tiny_weights, tuned_block
from zeropoint.refine import learned
from zeropoint.refine.learned import Options, Sample
from zeropoint.refine.tuned import TunedBlock, pull_back
from zeropoint.runtime.ops_torch import DifferentiableOps, TorchOps
from zeropoint.runtime.weights import Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return tiny_weights(tmp_path_factory.mktemp("tiny") / "model")


def samples(weights: Weights, batches: int = 6) -> list[Sample]:
    """Inputs that quantized blocks have moved, and the float outputs of the unmoved ones."""
    random = torch.Generator().manual_seed(3)
    hidden = weights.model.config.hidden_size
    found = []
    for _ in range(batches):
        x = torch.randn(3, 24, hidden, generator=random)
        found.append(Sample(x + 0.02 * torch.randn(x.shape, generator=random), outputs(weights, 0, x)))
    return found


def refine(block: TunedBlock, data: list[Sample], options: Options, *, seed: int = 0) -> learned.Outcome:
    with torch.inference_mode():
        return learned.refine(block, data, options, ops=TorchOps(), gradient_ops=DifferentiableOps(), seed=seed)


def error(weights: Weights, block: TunedBlock, data: list[Sample]) -> float:
    """The definition, on all batches, in float64."""
    total, tokens = 0.0, 0
    for sample in data:
        found = block.prepare(TorchOps()).run(weights.model.flow, sample.x.clone()).double()
        y = sample.y.double()
        total += float(((found - y).square().sum(-1) / y.square().sum(-1)).sum())
        tokens += y.shape[0] * y.shape[1]
    return total / tokens


def test_the_block_comes_nearer_to_the_float_one_on_tokens_it_has_not_seen(weights: Weights) -> None:
    data = samples(weights, batches=8)
    block = tuned_block(weights, 0)
    unseen = samples(weights, batches=9)[8:]
    before = error(weights, block, unseen)
    outcome = refine(block, data, Options(steps=60, every=20, reach=0.3))
    assert outcome.error_after < outcome.error_before
    assert error(weights, block, unseen) < 0.97 * before


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_it_never_ends_above_its_start(weights: Weights, rate: float) -> None:
    """With steps so large that every state is worse than the first."""
    data = samples(weights)
    block = tuned_block(weights, 0)
    before = [part.clone() for part in block.state()]
    outcome = refine(block, data, Options(steps=9, every=3, patience=2, reach=60.0, scale_rate=rate))
    assert outcome.steps == 6  # patience
    assert outcome.error_after == outcome.error_before
    assert all(torch.equal(was, now) for was, now in zip(before, block.state(), strict=True))


def test_only_scales_move_without_reach(weights: Weights) -> None:
    block = tuned_block(weights, 0)
    before = {name: linear.qtensor() for name, linear in block.linears.items()}
    outcome = refine(block, samples(weights), Options(steps=30, every=10, reach=0.0, scale_rate=0.005))
    assert outcome.error_after < outcome.error_before
    after = {name: linear.qtensor() for name, linear in block.linears.items()}
    assert all(torch.equal(before[name].codes, after[name].codes) for name in before)
    assert any(not torch.equal(before[name].qparams.scale, after[name].qparams.scale) for name in before)


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(weights: Weights) -> None:
    data = samples(weights)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            block = tuned_block(weights, 0)
            refine(block, data, Options(steps=6, every=3, reach=0.5), seed=7)
            found.append(block.state())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_are_slopes_of_the_error(weights: Weights) -> None:
    """A step along the gradient of the weights changes the error as much as the gradient says."""
    (sample,) = samples(weights, batches=1)
    block, ops = tuned_block(weights, 0), DifferentiableOps()
    values = block.weights()
    tokens = sample.x.shape[0] * sample.x.shape[1]

    def loss(weights_: dict[str, torch.Tensor]) -> float:
        from zeropoint.models.parts import Block

        found = Block(block.config, ops, weights_).run(block.flow, sample.x).double()
        return float(((found - sample.y).square().sum(-1) / sample.y.square().sum(-1).double()).mean())

    pulled = [
        pull_back(block, ops, values, x[None], lambda output, y=y: learned._slope(output, y[None], tokens))
        for x, y in zip(sample.x, sample.y, strict=True)
    ]
    for name in ("self_attn.v_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight"):
        gradient = sum(each.weights[name] for each in pulled)
        assert isinstance(gradient, torch.Tensor)
        length = 1e-3 / float(gradient.norm())
        up, down = (loss(values | {name: values[name] + sign * length * gradient}) for sign in (1, -1))
        assert (up - down) / 2 == pytest.approx(length * float(gradient.square().sum()), rel=0.02)
