from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import levels as reference
from zeropoint.errors import SchemeError
from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.levels import minimum_of
from zeropoint.types import Levels, QParams, Scheme

Q4_K = Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)
RULES = ["mse", "minmax", "percentile", "entropy"]


def weight(rows: int, supers: int, kind: str, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, 256 * supers, generator=random) * 0.05
    match kind:
        case "uneven":
            w *= torch.logspace(-3, 1, 8 * supers).repeat_interleave(32)
        case "a group of zeros":
            w[:, 32:64] = 0
        case "constants":
            w = w[:, ::32].repeat_interleave(32, 1)
        case "all above 0":
            w = w.abs() + 0.1
        case "all below 0":
            w = -w.abs() - 0.1
        case "one outlier":
            w[0, 7] = 40.0
        case "tiny":
            w *= 1e-6
        case "zero":
            w.zero_()
    return w


KINDS = [
    "normal", "uneven", "a group of zeros", "constants", "all above 0", "all below 0", "one outlier", "tiny", "zero",
]  # fmt: skip


def levels_of(qparams: QParams) -> Levels:
    assert qparams.levels is not None
    return qparams.levels


def lost(w: Tensor, importance: Tensor, qparams: QParams) -> list[float]:
    """The error of each row, by the oracle."""
    levels = levels_of(qparams)
    numbers = [part.double().numpy() for part in (levels.d, levels.d_min)]
    small = [part.numpy() for part in (levels.k, levels.m)]
    weights = importance.double().numpy().reshape(-1, 32)
    return [
        reference.error(row.reshape(-1, 32), weights, *(part[at] for part in (*numbers, *small)))
        for at, row in enumerate(w.double().numpy())
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    supers=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
)
def test_scales_are_products_that_a_block_holds_and_values_are_what_it_says(
    rows: int, supers: int, kind: str, rule: str, seed: int
) -> None:
    w = weight(rows, supers, kind, seed)
    qparams = choose_qparams(w, Q4_K, rule)
    levels = levels_of(qparams)
    assert levels.d.shape == levels.d_min.shape == (rows, supers)
    assert levels.k.shape == levels.m.shape == qparams.scale.shape == (rows, 8 * supers)
    for unit in (levels.d, levels.d_min):
        assert torch.equal(unit, unit.half().float())
        assert bool(torch.isfinite(unit).all())
    assert bool((levels.d > 0).all())
    assert bool((levels.d_min >= 0).all())
    assert bool(((levels.k >= 1) & (levels.k <= 63)).all())
    assert bool((levels.m <= 63).all())
    k, m = (part.double() * unit.double().repeat_interleave(8, 1) for part, unit in
            ((levels.k, levels.d), (levels.m, levels.d_min)))  # fmt: skip
    assert torch.equal(qparams.scale.double(), k)
    assert torch.equal(minimum_of(levels).double(), m)
    codes = quantize(w, qparams, Q4_K)
    exact = k.repeat_interleave(32, 1) * (codes.double() + 8) - m.repeat_interleave(32, 1)
    assert torch.equal(dequantize(codes, qparams, Q4_K), exact.float())
    if kind == "zero":
        assert not dequantize(codes, qparams, Q4_K).any()


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([k for k in KINDS if k not in ("zero", "tiny")]),
    seed=st.integers(0, 99),
    weighed=st.booleans(),
)
def test_the_error_is_below_that_of_rounding_each_number_to_nearest(kind: str, seed: int, weighed: bool) -> None:
    w = weight(2, 1, kind, seed)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(seed)).square() if weighed else torch.ones(256)
    found = lost(w, importance, choose_qparams(w, Q4_K, "mse", importance=importance))
    weights = importance.double().numpy().reshape(-1, 32)
    for error, row in zip(found, w.double().numpy(), strict=True):
        naive = reference.error(row.reshape(-1, 32), weights, *reference.nearest_levels(row.reshape(-1, 32)))
        assert error <= naive * (1 + 1e-6) + 1e-12


def test_it_is_near_the_best_that_scales_on_no_grid_can_give() -> None:
    w = weight(6, 1, "normal", 5)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.1
    found = sum(lost(w, importance, choose_qparams(w, Q4_K, "mse", importance=importance)))
    weights = importance.double().numpy().reshape(-1, 32)
    groups = [(row[group], weights[group]) for row in w.double().numpy().reshape(-1, 8, 32) for group in range(8)]
    best = sum(reference.best_real(x, its) for x, its in groups)
    naive = sum(
        reference.error(row, weights, *reference.nearest_levels(row)) for row in w.double().numpy().reshape(-1, 8, 32)
    )
    assert found < 1.03 * best
    assert naive > 1.15 * best  # so that the bound says something


def test_the_importance_decides_where_the_error_is() -> None:
    w = weight(4, 2, "normal", 0)
    importance = torch.logspace(-3, 0, 512)[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    weighed, plain = (choose_qparams(w, Q4_K, "mse", importance=each) for each in (importance, None))
    assert sum(lost(w, importance, weighed)) < 0.9 * sum(lost(w, importance, plain))
    assert sum(lost(w, torch.ones(512), weighed)) > sum(lost(w, torch.ones(512), plain))


def test_a_power_of_two_in_front_of_a_weight_is_one_in_front_of_its_scales() -> None:
    w = weight(3, 2, "normal", 2) * 16  # d stays a normal float16 number
    before, after = (levels_of(choose_qparams(each, Q4_K, "mse")) for each in (w, w * 4))
    assert torch.equal(after.d, 4 * before.d)
    assert torch.equal(after.d_min, 4 * before.d_min)
    assert torch.equal(after.k, before.k)
    assert torch.equal(after.m, before.m)


def test_rows_do_not_depend_on_those_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight(5, 2, "uneven", 3)
    whole = choose_qparams(w, Q4_K, "mse")
    monkeypatch.setattr("zeropoint.qparams.levels._CHUNK", 1024)  # two rows at once
    assert torch.equal(choose_qparams(w, Q4_K, "mse").scale, whole.scale)


def test_columns_that_are_no_whole_super_blocks_are_refused() -> None:
    with pytest.raises(SchemeError, match="288 columns do not split into super-blocks of 256"):
        choose_qparams(torch.randn(2, 288), Q4_K, "mse")


@pytest.mark.parametrize("value", [1e8, 3e38])
def test_values_that_no_scale_can_hold_are_refused(value: float) -> None:
    w = torch.zeros(1, 256)
    w[0, 3] = value
    with pytest.raises(SchemeError, match="cannot hold"):
        choose_qparams(w, Q4_K, "mse")


@pytest.mark.parametrize(
    "changes",
    [
        {"symmetric": True},
        {"granularity": "channel", "group_size": None},
        {"group_size": 48},
        {"scale_dtype": "bfloat16"},
        {"scale_bits": 7},
    ],
)
def test_two_levels_go_with_what_a_block_has(changes: dict[str, object]) -> None:
    scheme = Scheme(**{**vars(Q4_K), **changes})  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match="super_size = 256"):
        choose_qparams(torch.randn(2, 256), scheme, "minmax")


def test_the_label_says_both_sizes() -> None:
    assert Q4_K.label() == "int4 g32/256 asym"
    assert Q4_K.one_level().label() == "int4 g32 asym"
