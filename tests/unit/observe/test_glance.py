from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.spreading import disagreement
from zeropoint.observe.glance import SAMPLE_TOKENS, SAMPLE_VALUES, Glance


def windows(count: int, time: int, cols: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, time, cols, generator=random) * torch.rand(count, 1, cols, generator=random) * 3


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 9),
    batch=st.integers(1, 4),
    time=st.integers(1, 6),
    cols=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_even_and_odd_windows_are_told_apart_in_any_batches(
    count: int, batch: int, time: int, cols: int, seed: int
) -> None:
    x = windows(count, time, cols, seed)
    parts = torch.split(x, batch)
    glance = Glance(len(parts))
    for part in parts:
        glance.update(part)
    found = glance.disagreement()
    assert found == pytest.approx(disagreement(x.double().numpy()), rel=1e-5, abs=1e-6)
    mean_squares = glance.mean_squares()
    assert mean_squares is not None
    np.testing.assert_allclose(mean_squares, x.double().square().mean(dim=(0, 1)).numpy(), rtol=1e-5)


def test_equal_windows_agree_and_one_window_says_nothing() -> None:
    x = windows(1, 5, 7, 0)
    glance = Glance(2)
    assert glance.disagreement() is None
    assert glance.mean_squares() is None
    glance.update(x)
    assert glance.disagreement() is None
    glance.update(x)
    assert glance.disagreement() == 0.0


def test_it_falls_like_the_root_of_the_number_of_windows() -> None:
    found = {}
    for count in (16, 256):
        seen = []
        for seed in range(8):
            glance = Glance(1)
            glance.update(windows(count, 4, 64, seed))
            seen.append(glance.disagreement() or 0.0)
        found[count] = sum(seen) / 8
    assert found[16] / found[256] == pytest.approx(4, rel=0.2)


def test_squares_too_large_for_float32_are_summed_all_the_same() -> None:
    glance = Glance(1)
    glance.update(torch.tensor([[[1e30, 1.0]], [[1e30, 1.0]]]))
    mean_squares = glance.mean_squares()
    assert mean_squares is not None
    np.testing.assert_allclose(mean_squares, [float(torch.tensor(1e30)) ** 2, 1.0])
    assert glance.disagreement() == 0.0


@pytest.mark.parametrize(("batches", "cols"), [(1, 64), (3, 576), (40, 5000), (700, 16), (2, SAMPLE_VALUES * 2)])
def test_the_sample_is_bounded_spread_and_made_of_tokens_that_were_seen(batches: int, cols: int) -> None:
    glance = Glance(batches)
    for index in range(batches):
        rows = torch.arange(index * 600, (index + 1) * 600 if cols < 1e5 else index * 600 + 2, dtype=torch.float32)
        glance.update(rows[None, :, None].expand(1, len(rows), cols))
    tokens = glance.sample[:, 0].long()
    assert len(tokens) == max(1, min(SAMPLE_TOKENS, SAMPLE_VALUES // cols))
    assert len(set(tokens.tolist())) == len(tokens)
    per_batch = torch.bincount(tokens // 600, minlength=batches)
    assert int(per_batch.max() - per_batch.min()) <= 1
    assert bool((glance.sample == glance.sample[:, :1]).all())


def test_half_precision_is_taken_in() -> None:
    x = windows(2, 8, 16, 1).bfloat16()
    glance = Glance(1)
    glance.update(x)
    assert glance.disagreement() == pytest.approx(disagreement(x.double().numpy()), rel=1e-5)
    assert glance.sample.dtype == torch.float32
