"""A folder in AWQ's layout, read by the converter of compressed-tensors, is the folder that it was exported from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from safetensors.torch import load_file

import zeropoint
from tiny import quantized


@pytest.mark.parametrize("recipe", ["w4a16", "w4a16_asym"])
def test_their_converter_gives_back_the_integers_the_scales_and_the_zero_points(recipe: str, tmp_path: Path) -> None:
    folder = quantized(tmp_path, recipe)
    zeropoint.export(folder, tmp_path / "awq", format="awq")
    converter = AutoAWQConverter.from_pretrained(str(tmp_path / "awq"))
    assert (converter.bits, converter.group_size, converter.zero_point) == (4, 32, True)
    found = converter.process(load_file(tmp_path / "awq" / "model.safetensors"))
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(found[name].to(tensor.dtype), tensor), name
        assert torch.equal(found[name].float(), tensor.float()), name
