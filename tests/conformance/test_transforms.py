"""Every file in transforms/ is found and held to the same contract."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unit.transforms.blocks import Made, make
from zeropoint import find
from zeropoint.transforms import Rewritten

METHODS = find.names("transforms")
BLOCKS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "one kv head": {"kv_heads": 1},
    "no grouping, wide heads": {"kv_heads": 4, "head_dim": 24},
    "bfloat16, biased": {"dtype": "bfloat16", "attention_bias": True, "mlp_bias": True},
    "float16, biased": {"dtype": "float16", "attention_bias": True, "mlp_bias": True},
    "gains less one": {"norm_offset": 1.0},
    "bfloat16, gains less one": {"dtype": "bfloat16", "norm_offset": 1.0},
    "bfloat16, two linears kept": {"dtype": "bfloat16", "kept": ("self_attn.v_proj", "mlp.gate_proj")},
}
CASES = [
    (method, strength)
    for method in METHODS
    for strength in (0.3, 1.0, None)
    if strength is None or "strength" in find.load("transforms", method).Options.__struct_fields__
]
"""None: the options' default."""
SEARCHES = [
    method for method in METHODS if getattr(find.load("transforms", method).Options(), "strength", 1) == "search"
]


@pytest.fixture(params=BLOCKS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return make(tmp_path / "model", **BLOCKS[request.param]).with_outliers(4.0)


def off(module: ModuleType) -> Any:
    """The options under which a method changes nothing: strength 0, or every switch off."""
    switches = {key: False for key in module.Options.__struct_fields__ if getattr(module.Options(), key) is True}
    return (
        module.Options(strength=0.0) if "strength" in module.Options.__struct_fields__ else module.Options(**switches)
    )


def rewrite(method: str, made: Made, strength: float | None) -> Rewritten:
    module: ModuleType = find.load("transforms", method)
    return rewritten_with(module, made, module.Options() if strength is None else module.Options(strength=strength))


def rewritten_with(module: ModuleType, made: Made, options: Any) -> Rewritten:
    rewritten: Rewritten = module.transform(
        made.block, made.flow, made.stats(module.NEEDS), options, made.trial().error
    )
    return rewritten


@pytest.mark.parametrize(("method", "strength"), CASES)
@torch.inference_mode()
def test_the_block_keeps_its_function_and_its_values_are_exact_as_written(
    method: str, strength: float | None, made: Made
) -> None:
    module = find.load("transforms", method)
    got = rewrite(method, made, strength).block
    expected, output, tolerance = made.output(), made.output(got), 1e-5
    if hasattr(module, "residual_rotation"):  # x Q -> y Q; sums of columns are no values of the dtype they had
        q = module.residual_rotation(made.block.config, module.Options())
        expected, output = q.rotate(expected), made.output(got, q.rotate(made.x))
        tolerance = max(1e-5, *(4 * torch.finfo(dtype).eps for dtype in got.dtypes.values()))
    assert any(not torch.equal(tensor, made.block.tensors[name]) for name, tensor in got.tensors.items())
    assert float((output - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert got.tensors.keys() == made.block.tensors.keys()
    for name, tensor in got.tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.shape == made.block.tensors[name].shape
        if name in got.dtypes:
            assert torch.equal(tensor, tensor.to(got.dtypes[name]).float()), name


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_switched_off_it_changes_nothing(method: str, made: Made) -> None:
    module = find.load("transforms", method)
    got = rewritten_with(module, made, off(module))
    if hasattr(module, "residual_rotation"):
        assert module.residual_rotation(made.block.config, off(module)) is None
        assert module.NEEDS == ()  # what enters a block is in the other basis already
    assert all(tensor is made.block.tensors[name] for name, tensor in got.block.tensors.items())
    assert [note.strength for note in got.notes] == [0.0] * len(made.flow)


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_every_stage_has_a_note(method: str, made: Made) -> None:
    got = rewrite(method, made, None)
    assert [note.linears for note in got.notes] == [stage.linears for stage in made.flow]


@pytest.mark.parametrize("method", SEARCHES)
@torch.inference_mode()
def test_a_search_never_ends_above_where_it_began(method: str, made: Made) -> None:
    error = made.trial().error
    assert error(rewrite(method, made, None).block) <= error(made.block)


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_the_block_and_the_statistics_are_left_as_they_were(method: str, made: Made) -> None:
    before = deepcopy(dict(made.block.tensors))
    rewrite(method, made, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.block.tensors.items())


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_the_same_block_gives_the_same_bits_on_any_number_of_threads(method: str, made: Made) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            found.append(rewrite(method, made, None).block.tensors)
    finally:
        torch.set_num_threads(threads)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])
        assert torch.equal(tensor, found[2][name])
