from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reference.awq import importance
from unit.transforms.blocks import Made, make
from zeropoint.transforms import Rewritten
from zeropoint.transforms.awq import Options, importance_scale, transform
from zeropoint.types import Scheme

W3 = Scheme(3, True, "group", 16)


def applied(made: Made, options: Options) -> Rewritten:
    return transform(made.block, made.flow, made.stats(("channel_absmean",)), options, made.trial(None, W3).error)


@pytest.mark.parametrize("level_weights", [True, False])
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@torch.inference_mode()
def test_the_formula_is_the_papers(strength: float, level_weights: bool, tmp_path: Path) -> None:
    made = make(tmp_path / "model").with_outliers(8.0)
    got = applied(made, Options(strength, level_weights)).block.tensors
    for stage in (made.flow[0], made.flow[2]):
        names = [f"{name}.weight" for name in stage.linears]
        weights = [made.block.tensors[name].double().numpy() for name in names]
        s = importance(made.inputs()[stage].double().numpy(), weights, strength, level_weights=level_weights)
        gain = made.block.tensors[f"{stage.fed_by}.weight"].double().numpy()
        assert np.allclose(got[f"{stage.fed_by}.weight"].double().numpy(), gain / s, rtol=1e-5)
        for name, weight in zip(names, weights, strict=True):
            if name not in ("self_attn.v_proj.weight", "mlp.up_proj.weight"):  # they feed later stages
                assert np.allclose(got[name].double().numpy(), weight * s, rtol=1e-5)


@torch.inference_mode()
def test_weights_that_meet_large_inputs_cost_less(tmp_path: Path) -> None:
    made = make(tmp_path / "model").with_outliers(8.0)
    error = made.trial(None, W3).error
    before = error(made.block)
    assert error(applied(made, Options()).block) < 0.8 * before


def test_dead_channels_are_left_and_do_not_count() -> None:
    inputs, weights = torch.tensor([4.0, 0.0, 1.0, 9.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert importance_scale(inputs, weights, 0.5).tolist() == pytest.approx([2**0.5, 1, 0.5**0.5, 1])
    assert importance_scale(torch.zeros(2), torch.ones(2), 0.5).tolist() == [1, 1]
