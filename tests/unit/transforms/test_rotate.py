from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reference.rotate import rotate_block, rotate_heads
from unit.transforms.blocks import Made, make
from zeropoint.errors import SchemeError
from zeropoint.transforms import Rewritten
from zeropoint.transforms.hadamard import rotation
from zeropoint.transforms.rotate import Options, transform


def rotated(made: Made, options: Options) -> Rewritten:
    return transform(made.block, made.flow, {}, options, lambda block: 0.0)


def double(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


def of(made: Made) -> dict[str, NDArray[np.float64]]:
    return {name: double(tensor) for name, tensor in made.block.tensors.items()}


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 16), (2, 16), (4, 24), (4, 10)])
@pytest.mark.parametrize("hidden", [64, 72, 60])  # 64, 36 * 2, 60: Sylvester, both of Paley's
@torch.inference_mode()
def test_every_tensor_is_the_papers(hidden: int, kv_heads: int, head_dim: int, tmp_path: Path) -> None:
    made = make(
        tmp_path / "model", hidden=hidden, kv_heads=kv_heads, head_dim=head_dim, attention_bias=True, mlp_bias=True
    ).with_outliers(5.0)
    got = rotated(made, Options(seed=4)).block.tensors
    q, r = double(rotation(hidden, 4).matrix()), double(rotation(head_dim, 4).matrix())
    expected = rotate_block(of(made), q, r)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.allclose(double(got[name]), tensor, atol=2e-6 * np.abs(tensor).max()), name


@torch.inference_mode()
def test_heads_alone_leave_the_stream(tmp_path: Path) -> None:
    made = make(tmp_path / "model", attention_bias=True)
    got = rotated(made, Options(residual=False, seed=1))
    expected = of(made)
    rotate_heads(expected, double(rotation(16, 1).matrix()))
    changed = {name for name, tensor in got.block.tensors.items() if tensor is not made.block.tensors[name]}
    assert changed == {"self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight"}
    for name in changed:
        assert np.allclose(double(got.block.tensors[name]), expected[name], atol=1e-6)
    assert [note.strength for note in got.notes] == [0.0, 1.0, 0.0, 0.0]


@torch.inference_mode()
def test_the_stream_alone_leaves_the_heads(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    got = rotated(made, Options(heads=False))
    weight = made.block.tensors["self_attn.o_proj.weight"]
    expected = rotation(64, 0).matrix().T @ weight.double()
    assert torch.allclose(got.block.tensors["self_attn.o_proj.weight"].double(), expected, atol=1e-6)
    assert [note.strength for note in got.notes] == [1.0, 0.0, 1.0, 0.0]


@torch.inference_mode()
def test_what_a_norm_hid_is_gone(tmp_path: Path) -> None:
    """Two channels that are 30 times larger no longer stand out from what the linears read."""
    made = make(tmp_path / "model")
    x = made.x.clone()
    x[..., [3, 9]] *= 30
    before, after = x, rotation(64, 0).rotate(x)
    peak = [float((t.abs().amax(-1) / t.square().mean(-1).sqrt()).mean()) for t in (before, after)]
    assert peak[1] < peak[0] / 2


def test_a_norm_with_a_bias_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    block = replace(made.block, tensors={**made.block.tensors, "input_layernorm.bias": torch.zeros(64)})
    with pytest.raises(SchemeError, match=r"model\.layers\.0: input_layernorm is no RMS norm"):
        rotated(replace(made, block=block), Options())


def test_a_stage_that_promises_nothing_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "model")
    flow = (*made.flow[:3], replace(made.flow[3], residual=None))
    with pytest.raises(SchemeError, match=r"what mlp\.down_proj do with the residual stream does not commute"):
        rotated(replace(made, flow=flow), Options())
    assert rotated(replace(made, flow=flow), Options(residual=False)).notes
