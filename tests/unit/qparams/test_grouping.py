from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.errors import SchemeError
from zeropoint.qparams.grouping import check_scheme, expand, join, split, split_columns
from zeropoint.types import Scheme

TENSOR, CHANNEL = Scheme(granularity="tensor"), Scheme(granularity="channel")
schemes = st.one_of(
    st.sampled_from([TENSOR, CHANNEL]),
    st.integers(1, 40).map(lambda size: Scheme(granularity="group", group_size=size)),
)


@settings(deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 60), scheme=schemes)
def test_join_undoes_split_and_expand_puts_each_group_where_its_values_are(
    rows: int, cols: int, scheme: Scheme
) -> None:
    weight = torch.arange(rows * cols, dtype=torch.float32).view(rows, cols) + 1
    grouped = split(weight, scheme)
    groups = grouped.values.shape[1]
    assert groups == scheme.groups(cols)
    assert torch.equal(join(grouped.values, rows, cols), weight)
    assert torch.equal(grouped.values != 0, grouped.valid.expand_as(grouped.values))
    per_group = torch.arange(len(grouped.values) * groups).view(-1, groups)
    of_each_value = join(per_group.unsqueeze(-1).expand(grouped.values.shape), rows, cols)
    assert torch.equal(expand(per_group, rows, cols, scheme), of_each_value)


@settings(deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 60), scheme=schemes)
def test_columns_are_cut_like_the_rows_of_a_weight(rows: int, cols: int, scheme: Scheme) -> None:
    per_column = torch.rand(cols) + 1
    as_weight = split(per_column.expand(rows, cols), scheme).values
    assert torch.equal(split_columns(per_column, rows, scheme).expand_as(as_weight), as_weight)


def test_shapes_of_the_three_granularities() -> None:
    weight = torch.ones(3, 100)
    assert split(weight, TENSOR).values.shape == (1, 1, 300)
    assert split(weight, CHANNEL).values.shape == (3, 1, 100)
    assert split(weight, Scheme(group_size=32)).values.shape == (3, 4, 32)
    assert split(weight, Scheme(group_size=32)).valid.sum(dim=1).tolist() == [32, 32, 32, 4]
    assert split(weight, Scheme(group_size=500)).values.shape == (3, 1, 100)


def test_nothing_is_copied_when_groups_divide_the_columns() -> None:
    weight = torch.ones(4, 64)
    for scheme in (TENSOR, CHANNEL, Scheme(group_size=16)):
        assert split(weight, scheme).values.data_ptr() == weight.data_ptr()
    per_row = torch.ones(4, 1)
    assert expand(per_row, 4, 64, CHANNEL).data_ptr() == per_row.data_ptr()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (Scheme(bits=1), "bits = 1: integers have 2 to 8 bits"),
        (Scheme(bits=9), "bits = 9"),
        (Scheme(bits=4.5), "bits = 4.5"),  # type: ignore[arg-type]
        (Scheme(group_size=None), "needs a group_size"),
        (Scheme(group_size=0), "at least one column"),
        (Scheme(granularity="block"), "tensor, channel, group"),  # type: ignore[arg-type]
        (Scheme(scale_dtype="float8"), "bfloat16, float16, float32"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_scheme_that_nothing_can_have_is_refused_with_what_is_allowed(scheme: Scheme, said: str) -> None:
    with pytest.raises(SchemeError, match=said):
        check_scheme(scheme)
    with pytest.raises(SchemeError, match=said):
        split(torch.ones(2, 4), scheme)


def test_a_group_size_is_ignored_where_there_are_no_groups() -> None:
    check_scheme(Scheme(granularity="channel", group_size=64))
    check_scheme(Scheme(granularity="tensor", group_size=None))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 3, 4), ()])
def test_what_is_no_weight_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match=r"a weight is \(rows, cols\)"):
        split(torch.ones(shape), CHANNEL)


def test_numbers_of_another_weight_are_refused() -> None:
    with pytest.raises(
        SchemeError, match=r"\(3, 2\) scales .* shape \(3, 100\) quantized as int4 g32 sym, .* \(3, 4\)"
    ):
        expand(torch.ones(3, 2), 3, 100, Scheme(group_size=32))
