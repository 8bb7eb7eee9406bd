from __future__ import annotations

import pytest
import torch

from zeropoint import find
from zeropoint.errors import InternalError, RecipeError, SchemeError
from zeropoint.observe import histogram
from zeropoint.qparams.choose_input import choose_input_range
from zeropoint.qparams.input_error import input_errors
from zeropoint.qparams.input_ranges import auto
from zeropoint.qparams.inputs import input_params
from zeropoint.types import InputScheme, Stats

SCHEME = InputScheme(dynamic=False, symmetric=False)


def observed(x: torch.Tensor) -> dict[str, Stats]:
    found = {}
    for name in auto.NEEDS:
        observer = find.load("observe", name).Observer()
        observer.update(x)
        found[name] = observer.result()
    return found


def outliers(weight_of_the_outlier: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with one channel far beyond the others, and a weight that makes much or nothing of that channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=generator)
    x[::40, 3] = 300.0
    weight = torch.randn(8, 16, generator=generator)
    weight[:, 3] *= weight_of_the_outlier
    return x, weight


def test_it_clips_an_outlier_only_where_the_weights_make_nothing_of_it() -> None:
    for weight_of_the_outlier, kept in ((1.0, True), (0.0, False)):
        x, weight = outliers(weight_of_the_outlier)
        found = choose_input_range(observed(x), "auto", None, SCHEME, [weight])
        assert (found.high > 290) == kept
        measured = [one.error for one in found.candidates]
        assert next(one.error for one in found.candidates if one.rule == found.rule) == min(map(float, measured))  # type: ignore[arg-type]


def test_with_few_tokens_the_sample_is_all_of_them_and_the_error_exact() -> None:
    x, weight = outliers(0.2)
    found = choose_input_range(observed(x), "auto", None, SCHEME, [weight[:3], weight[3:]])
    for one in found.candidates:
        (exact,) = input_errors([(x, None)], [input_params(one.low, one.high, SCHEME)], [weight])
        assert one.error == pytest.approx(exact.output, rel=1e-4)


def test_only_the_candidates_asked_for_are_tried_and_what_cannot_be_applied_is_named() -> None:
    x, weight = outliers(1.0)
    asked = auto.Options(rules=("entropy", "mse"))
    both = choose_input_range(observed(x), "auto", asked, SCHEME, [weight])
    assert tuple(one.rule for one in both.candidates) == asked.rules
    coarse = histogram.Observer(bins=64)  # entropy has nothing to choose from
    coarse.update(x)
    stats = observed(x) | {"histogram": coarse.result()}
    found = choose_input_range(stats, "auto", asked, SCHEME, [weight])
    assert [one.rule for one in found.candidates] == ["mse"]
    assert found.skipped[0].startswith("entropy: entropy with 8 bits has 256 levels")
    with pytest.raises(SchemeError, match="no candidate of the range rule auto can be applied: entropy: "):
        choose_input_range(stats, "auto", auto.Options(rules=("entropy",)), SCHEME, [weight])


def test_a_rule_that_is_no_candidate_and_missing_weights_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"'mze' is none; allowed are .*did you mean 'mse'"):
        auto.Options(rules=("mze",))
    with pytest.raises(RecipeError, match="there is none"):
        auto.Options(rules=())
    with pytest.raises(RecipeError, match="did you mean 'percentile'"):
        choose_input_range({}, "percentil", None, SCHEME)
    with pytest.raises(InternalError, match="weights"):
        choose_input_range(observed(torch.ones(2, 2)), "auto", None, SCHEME)
