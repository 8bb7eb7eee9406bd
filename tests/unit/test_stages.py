from __future__ import annotations

import numpy as np
import pytest
import torch

from zeropoint.models.parts import Block
from zeropoint.stages import FLOAT, NEAREST, ROWS, Stages, divergence


def test_the_divergence_is_that_of_the_definition() -> None:
    random = torch.Generator().manual_seed(0)
    table = torch.randn(11, 5, generator=random)
    reference, other = torch.randn(2, ROWS - 100, 5, generator=random), torch.randn(2, ROWS - 100, 5, generator=random)
    p, q = (torch.softmax((x @ table.T).double(), -1).numpy() for x in (reference, other))
    expected = float((p * np.log(p / q)).sum(-1).mean())
    assert divergence(lambda x: x @ table.T, reference, other) == pytest.approx(expected, rel=1e-4)
    assert divergence(lambda x: x @ table.T, reference, reference) == pytest.approx(0, abs=1e-9)


def test_every_stage_runs_through_its_own_blocks() -> None:
    class Adds(Block):
        def run(self, flow, x, past=None):  # noqa: ANN001, ANN202
            return x + self.config

    inputs = torch.zeros(3, 2, 4)
    stages = Stages((NEAREST, "gptq"), inputs)
    for step in (1.0, 10.0):
        stages.advance(
            {
                name: lambda by=by: Adds(by, None, {})  # type: ignore[arg-type, misc]
                for name, by in ((FLOAT, 0.0), (NEAREST, step), ("gptq", 2 * step))
            },
            (),
        )
    assert stages.windows == 3
    assert stages.names == (NEAREST, "gptq")
    assert torch.equal(stages.outputs(FLOAT), inputs)
    assert torch.equal(stages.outputs(NEAREST), inputs + 11)
    assert torch.equal(stages.outputs("gptq"), inputs + 22)
    found = stages.divergences(lambda x: x * torch.arange(4))
    assert found[NEAREST] < found["gptq"]
