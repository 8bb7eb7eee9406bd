from __future__ import annotations

from zeropoint.types import divisors


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(1) == (1,)
    assert {32, 64, 192} <= set(divisors(576))
    assert 128 not in divisors(576)
