"""Every architecture, quantized and exported, computes in ONNX Runtime what it computes here; token by token, too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import zeropoint
from architectures import VARIANTS, make
from in_onnxruntime import InOnnxRuntime
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.recipe import load_recipe
from zeropoint.runtime.weights import Weights
from zeropoint.verification import logits_by_block

TOKENS = [(7 * i) % 199 + 1 for i in range(60)]
CUTS = (0, 50, 51, 52, 60)
"""A prompt that is longer than most windows, two tokens, and more of a prompt."""

NEAR = 5e-5
"""Of the largest logit: products of float32, in another order."""


def test_there_is_a_model_of_every_architecture() -> None:
    assert set(VARIANTS) == set(find.names("models"))


@pytest.mark.parametrize(
    ("model_type", "variant"), [(model_type, variant) for model_type in VARIANTS for variant in VARIANTS[model_type]]
)
def test_a_graph_gives_the_logits_of_the_model_at_once_and_in_pieces(
    model_type: str, variant: str, tmp_path: Path
) -> None:
    make(tmp_path / "model", model_type, variant)
    recipe = load_recipe("w4a16_asym", ["rounding=rtn", "range=minmax", "weights.group_size=16"])
    zeropoint.quantize(tmp_path / "model", tmp_path / "quantized", recipe=recipe)
    zeropoint.export(tmp_path / "quantized", tmp_path / "onnx", format="onnx")
    wanted = logits_by_block(Weights(open_checkpoint(tmp_path / "quantized")), TOKENS)
    model = InOnnxRuntime(tmp_path / "onnx")
    at_once = model.logits([TOKENS])[0]
    model.forget(1)
    pieces = np.concatenate([model.logits([TOKENS[a:b]])[0] for a, b in pairwise(CUTS)])
    for found in (at_once, pieces):
        assert np.abs(found - wanted).max() < NEAR * np.abs(wanted).max()
