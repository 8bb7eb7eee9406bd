"""Frequencies and factors of ropes against their formulas in float64, and what the runtimes make of the factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import make
from reference import rope as formulas
from unit.models.published import ACCEPTED
from zeropoint.errors import ArchitectureError, InputError, TextError
from zeropoint.models import load_model
from zeropoint.models.rope import Rope
from zeropoint.observe.data import random_batches, require_readable
from zeropoint.runtime.generate import load
from zeropoint.runtime.ops_torch import TorchOps

YARNS: list[dict[str, Any]] = [
    {"factor": 4.0},
    {"factor": 16.0, "beta_fast": 20.0, "beta_slow": 2.0},
    {"factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"factor": 8.0, "mscale": 1.0},
    {"factor": 8.0, "truncate": False},
    {"factor": 8.0, "attention_factor": 0.9},
    {"factor": 0.5},
]


def read(scaling: dict[str, Any], head_dim: int = 64, **others: Any) -> Rope:
    config = {"rope_theta": 5000.0, "max_position_embeddings": 4096, **others, "rope_scaling": scaling}
    return Rope.from_config(config, head_dim, partial=True)


def require_equal(rope: Rope, frequencies: list[float], factor: float = 1.0) -> None:
    # float32: a power, a product and a quotient, each rounded once; a power's exponent costs a few ulps of log theta
    assert np.allclose(rope.frequencies(), frequencies, rtol=3e-6, atol=0)
    assert rope.factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("scaling", YARNS, ids=str)
@pytest.mark.parametrize("context", [64, 2048])
def test_yarn_is_its_formula(scaling: dict[str, Any], context: int) -> None:
    rope = read({"type": "yarn", "original_max_position_embeddings": context, **scaling})
    require_equal(rope, *formulas.yarn(64, 5000.0, scaling, context))
    assert rope.longest is None


def test_without_a_factor_yarn_has_that_of_the_contexts() -> None:
    rope = read({"type": "yarn", "original_max_position_embeddings": 1024})
    assert rope == read({"type": "yarn", "original_max_position_embeddings": 1024, "factor": 4.0})


def test_where_the_borders_fall_together_yarn_is_a_step() -> None:
    scaling = {"factor": 4.0, "beta_fast": 1e5, "beta_slow": 9e4}
    rope = read({"type": "yarn", "original_max_position_embeddings": 2048, **scaling})
    require_equal(rope, *formulas.yarn(64, 5000.0, scaling, 2048))


def test_llama3_is_its_formula() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    require_equal(read({"rope_type": "llama3", **scaling}), formulas.llama3(64, 5000.0, scaling))


def test_a_context_that_only_the_config_has_is_the_original_one() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    expected = read({**scaling, "original_max_position_embeddings": 4096})
    assert read(scaling) == expected
    assert read({**scaling, "original_max_position_embeddings": 7}, original_max_position_embeddings=4096) == expected


def test_longrope_is_its_formula_with_the_short_factors() -> None:
    short, long = [1 + 0.01 * i for i in range(24)], [2.0 + i for i in range(24)]
    scaling = {"type": "longrope", "short_factor": short, "long_factor": long, "original_max_position_embeddings": 512}
    rope = read(scaling, partial_rotary_factor=0.75)
    require_equal(rope, *formulas.longrope(48, 5000.0, short, 8.0, 512))
    assert (rope.rotated, rope.longest) == (48, 512)
    assert read({**scaling, "factor": 2.0}, partial_rotary_factor=0.75).factor == pytest.approx(
        formulas.longrope(48, 5000.0, short, 2.0, 512)[1]
    )
    assert read({**scaling, "attention_factor": 1.5}, partial_rotary_factor=0.75).factor == 1.5
    same = read({**scaling, "long_factor": short}, partial_rotary_factor=0.75)
    assert same.longest is None


def test_what_gguf_files_do_not_say_is_not_exported() -> None:
    from zeropoint.exporting._gguf_metadata import architecture_of

    config = ACCEPTED["Qwen2.5-7B-Instruct, as its card says for long texts"]
    with pytest.raises(ArchitectureError, match="rope type 'yarn' is not written to GGUF files, default, "):
        architecture_of(load_model(config))
    assert architecture_of(load_model({**config, "rope_scaling": None})).arch_name == "qwen2"


def test_what_is_rotated_is_multiplied_by_the_factor_and_the_rest_is_not() -> None:
    rope, x = Rope(4, 10.0, factor=3.0), torch.randn(1, 2, 5, 8)
    turned = TorchOps().rope(x, rope, 2)
    assert torch.allclose(turned[..., :4], 3 * TorchOps().rope(x, Rope(4, 10.0), 2)[..., :4], rtol=1e-5, atol=1e-6)
    assert torch.equal(turned[..., 4:], x[..., 4:])


@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_texts_longer_than_the_short_factors_are_for_are_refused(runtime: Any, tmp_path: Path) -> None:
    make(tmp_path, "phi3", "longrope, of a part", max_position_embeddings=256, original_max_position_embeddings=64)
    model = load(tmp_path, runtime=runtime)
    assert model.config.max_positions == 64
    assert len(model.logits([1] * 64)) == 64
    with pytest.raises(InputError, match="65 tokens are more than the 64 that this model has positions for"):
        model.logits([1] * 65)
    session = model.session()
    session.next_logits([1] * 60)
    with pytest.raises(InputError, match="66 tokens are more than the 64"):
        session.next_logits([1] * 6)
    assert session.length == 60
    with pytest.raises(TextError, match="windows of 65 tokens are longer than the model's context of 64"):
        require_readable(random_batches(200, samples=2, length=65, seed=0, batch=1), model.config)
