from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import make_llama, quantized
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import CheckpointError
from zeropoint.formats.bits import unpack_array
from zeropoint.models.parts import linear_names
from zeropoint.runtime.weights import Weights
from zeropoint.types import QTensor


@pytest.fixture(scope="module", params=["w4a16", "w4a16_asym", "w3a16", "w8a16"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(open_checkpoint(quantized(tmp_path_factory.mktemp("weights"), recipe=request.param)))


def test_a_packed_linear_is_the_linear(weights: Weights) -> None:
    for name in linear_names(weights.model):
        packed, whole = weights.packed_linear(name), weights.linear(name)
        assert packed is not None
        assert isinstance(whole, QTensor)
        assert (packed.shape, packed.scheme) == (whole.shape, whole.scheme)
        codes = unpack_array(packed.words, packed.scheme.bits, packed.shape[1])
        assert np.array_equal(codes, whole.codes.numpy())
        assert np.array_equal(packed.scale, whole.qparams.scale.numpy())
        if whole.qparams.zero_point is not None:
            assert packed.zero_point is not None
            assert np.array_equal(packed.zero_point, whole.qparams.zero_point.numpy())


def test_a_float_linear_is_not_packed(tmp_path: Path) -> None:
    weights = Weights(open_checkpoint(make_llama(tmp_path / "m")))
    name = next(linear_names(weights.model))
    assert weights.packed_linear(name) is None
    assert torch.equal(torch.from_numpy(weights.checkpoint.read_array(f"{name}.weight")), weights.linear(name))


def test_a_packed_linear_that_is_damaged_is_named(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(linear_names(weights.model))
    read_array = weights.checkpoint.read_array

    def damaged(part: str, *, rows: tuple[int, int] | None = None) -> np.ndarray:
        return read_array(part, rows=rows) * (0 if part.endswith("scale") else 1)

    monkeypatch.setattr(weights.checkpoint, "read_array", damaged)
    with pytest.raises(CheckpointError, match=rf"{name}\.weight_scale holds a scale that is not positive"):
        weights.packed_linear(name)
