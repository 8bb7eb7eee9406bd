"""The worst places of a text, and what is said of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reference.spreading import counted
from tiny import byte_level_tokenizer, make_llama, sentencepiece_tokenizer
from zeropoint.checkpoint.tokenizer import Tokenizer
from zeropoint.evaluation.passages import (
    BEFORE,
    CONTINUED_TOKENS,
    SUCCESSORS,
    WORST,
    Worst,
    kl_bars,
    likeliest,
    passages,
    text_after,
)
from zeropoint.evaluation.results import Evaluation
from zeropoint.evaluation.run import evaluate
from zeropoint.observe.data import TextSource, Windows
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe

TEXT = "The miller kept three cats. Der Fluß war breit und kühl: où est le chat? 12 sacks of rye."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level_tokenizer(300), (2,), 1, None)


def windows_of(tokens: np.ndarray[Any, Any]) -> Windows:
    source = TextSource("text", "ab" * 32, 1, tokens.size, len(tokens))
    return Windows(tokens.astype(np.int32), source, None)


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 40),
    length=st.integers(1, 9),
    chunk=st.integers(1, 4),
    values=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_the_worst_places_are_those_of_a_sort(count: int, length: int, chunk: int, values: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    kl = random.integers(0, values + 1, (count, length)) / 8  # many are equal
    logits = torch.from_numpy(random.normal(size=(count, length, 7)))
    worst = Worst()
    for window in range(count):
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            worst.see(window, start, torch.from_numpy(kl[window, part]), logits[window, part], logits[window, part])
    largest = sorted((-kl[w].max(), w, int(kl[w].argmax())) for w in range(count) if kl[w].max() > 0)
    found = [(-place.kl, place.window, place.position) for place in worst.places]
    assert found == largest[:WORST]
    for place in worst.places:
        assert place.likeliest == likeliest(*[logits[place.window, place.position]] * 2)


def test_successors_of_both_models_have_both_probabilities() -> None:
    reference = torch.tensor([0.0, 5.0, 4.0, 3.0, 0.0, 0.0, 0.0])
    quantized = torch.tensor([6.0, 0.0, 0.0, 0.0, 5.0, 4.0, 0.0])
    found = likeliest(reference, quantized)
    assert [token for token, _, _ in found] == [1, 2, 3, 0, 4]
    assert len(found) == SUCCESSORS
    for token, p, q in found:
        assert p == pytest.approx(math.exp(reference[token]) / float(reference.exp().sum()))
        assert q == pytest.approx(math.exp(quantized[token]) / float(quantized.exp().sum()))


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_what_follows_is_the_rest_of_the_text(make: Any) -> None:
    tokenizer = Tokenizer(make(400), (2,), 1, None)
    tokens = tokenizer.encode(TEXT)
    assert len(tokens) < BEFORE
    for at in range(1, len(tokens)):
        before = tokenizer.decode(tokens[:at]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert before + text_after(tokenizer, tokens[:at], tokens[at:]) == tokenizer.decode(tokens)


def test_a_character_in_two_tokens_belongs_to_the_second(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("\N{SNOWMAN}")[:2]
    assert text_after(tokenizer, [*tokenizer.encode("so "), first], [second]) == "\N{REPLACEMENT CHARACTER}" * 1
    whole = tokenizer.encode("so \N{SNOWMAN}")
    assert text_after(tokenizer, whole[:-1], whole[-1:]) == "\N{SNOWMAN}"


def test_a_token_without_text_is_shown_by_its_number(tokenizer: Tokenizer) -> None:
    assert text_after(tokenizer, tokenizer.encode("so"), [100_000]) == "<100000>"


def test_only_as_many_passages_are_continued_as_the_text_is_long(tokenizer: Tokenizer) -> None:
    tokens = np.resize(np.array(tokenizer.encode(TEXT)), (40, 100))
    worst = Worst()
    for window in range(40):
        worst.see(window, 50, torch.tensor([1.0 + window]), torch.zeros(1, 300), torch.ones(1, 300))
    asked: list[tuple[int, int]] = []

    def go_on(seen: Any, most: int) -> list[int]:
        asked.append((len(seen), most))
        return tokenizer.encode(" rye")

    found = passages(worst, windows_of(tokens), tokenizer, (go_on, go_on))
    assert len(found) == WORST
    assert asked == [(51, CONTINUED_TOKENS)] * 2  # 4,000 tokens are too few for a second one
    assert [passage.reference for passage in found] == [" rye", *[None] * 11]
    many = Windows(np.resize(tokens, (4000, 100)), windows_of(tokens).source, None)
    asked.clear()
    assert {passage.quantized for passage in passages(worst, many, tokenizer, (go_on, go_on))} == {" rye"}
    assert {passage.quantized for passage in passages(worst, many, tokenizer, None)} == {None}


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 100, width=32) | st.sampled_from([0.0, 1e-6, 1e-5, 0.1, 1e4]), min_size=1))
def test_every_kl_is_in_one_bar(values: list[float]) -> None:
    kl = np.array(values, np.float32)
    found = kl_bars(kl)
    assert [bar.count for bar in found] == counted(kl.astype(float).tolist(), found)
    assert sum(bar.count for bar in found) == len(values)
    assert (found[0].low, found[0].high) == (0.0, 1e-6)
    assert found[-1].count
    assert all(bar.high / bar.low == pytest.approx(10**0.25, rel=0.01) for bar in found[1:])


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, str]:
    """A model, an output in which one token's embedding was spoiled, a text, and the token as text."""
    folder = tmp_path_factory.mktemp("spoiled")
    model = make_llama(folder / "model", tied=False)
    recipe = load_recipe("w8a16", ["rounding=rtn", "range=minmax", "calibration.length=32"])
    quantize(model, folder / "out", recipe=recipe)
    tokenizer = Tokenizer(byte_level_tokenizer(300), (2,), 1, None)
    (rare,) = tokenizer.encode("7")
    weights = load_file(folder / "out" / "model.safetensors")
    weights["model.embed_tokens.weight"][rare] *= -3.0
    save_file(weights, folder / "out" / "model.safetensors", metadata={"format": "pt"})
    text = folder / "text.txt"
    tokens = tokenizer.encode("The miller kept three cats and the mill. " * 40)
    assert rare not in tokens
    head = tokenizer.decode(tokens[: 3 * 32 + 20])
    text.write_text(f"{head}7{tokenizer.decode(tokens[3 * 32 + 20 :])}", encoding="utf-8")
    return model, folder / "out", text, "7"


def judged(spoiled: tuple[Path, Path, Path, str], runtime: Any) -> Evaluation:
    model, out, text, _ = spoiled
    return evaluate(out, reference=model, text=text, length=32, runtime=runtime)


@pytest.mark.parametrize("runtime", ["native", "torch"])
def test_the_worst_place_is_where_the_model_was_spoiled(
    spoiled: tuple[Path, Path, Path, str], runtime: str, tokenizer: Tokenizer
) -> None:
    found = judged(spoiled, runtime)
    text = spoiled[2].read_text(encoding="utf-8")
    worst = found.passages[0]
    tokens = tokenizer.encode(text)
    at = worst.window * 32 + worst.position
    assert tokenizer.decode([tokens[at]]) == "7"
    assert worst.before == tokenizer.decode(tokens[worst.window * 32 : at + 1])
    assert worst.actual == tokenizer.decode([tokens[at + 1]])
    assert worst.kl == found.kl_max
    assert len({passage.window for passage in found.passages}) == len(found.passages) == WORST
    assert [p.kl for p in found.passages] == sorted((p.kl for p in found.passages), reverse=True)
    assert sum(bar.count for bar in found.kl_bars) == found.tokens
    reference, quantized = (
        max(worst.likeliest, key=lambda one, of=of: getattr(one, of)) for of in ("reference", "quantized")
    )
    assert worst.likeliest[0] == reference
    if runtime == "torch":
        assert {passage.reference for passage in found.passages} == {None}
    else:
        assert worst.reference is not None
        assert worst.quantized is not None
        assert worst.reference.startswith(reference.token)
        assert worst.quantized.startswith(quantized.token)


def test_the_same_models_give_the_same_passages(spoiled: tuple[Path, Path, Path, str]) -> None:
    one, other = judged(spoiled, "native"), judged(spoiled, "native")
    assert (one.passages, one.kl_bars) == (other.passages, other.kl_bars)


def test_equal_models_differ_nowhere(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 10, encoding="utf-8")
    found = evaluate(model, reference=model, text=text, length=32, activations="float", kv_cache="float32")
    assert found.kl_max == 0.0
    assert found.passages == ()
    (bar,) = found.kl_bars
    assert (bar.low, bar.count) == (0.0, found.tokens)
