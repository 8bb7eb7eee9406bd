from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zeropoint
from child import run_python
from tiny import make_gguf, make_llama, quantized
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, InternalError
from zeropoint.recipe import Recipe
from zeropoint.runtime.generate import load
from zeropoint.runtime.native_runner import NativeRunner, NativeSession
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

# past a page of keys (256), a piece of attention and the rows of one call (512 both)
LONG = np.random.default_rng(0).integers(3, 90, 1100).tolist()


def runner(folder: Path, **options: Any) -> NativeRunner:
    return NativeRunner(Weights(open_checkpoint(folder)), **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("native") / "model")


@pytest.fixture(scope="module")
def bf16_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("native") / "bf16", dtype="bfloat16")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, quantized to 4 bits."""
    return quantized(tmp_path_factory.mktemp("native") / "quantized", "w4a16")


@pytest.mark.parametrize("quantization", ["BF16", "F16", "Q8_0"])
def test_a_gguf_file_of_any_type_gives_the_logits_of_torch(quantization: str, tmp_path: Path) -> None:
    file = make_gguf(tmp_path / "m.gguf", quantization=quantization)
    expected = load(file, runtime="torch").logits(LONG[:20])
    found = runner(file, activations="float", cache="float32").logits(LONG[:20])
    assert np.allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_long_texts_are_those_of_torch(model: Path) -> None:
    expected = load(model, runtime="torch").logits(LONG)
    found = runner(model, activations="float", cache="float32").logits(LONG)
    assert np.allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_long_conversation_is_its_text_at_once(small: Path, threads: int) -> None:
    whole = runner(small, cache="float32").logits(LONG)
    session = runner(small, cache="float32", threads=threads).session()
    at = 0
    for size in (5, 507, 1, 8, 9, 520, 1, 1):
        found = session.next_logits(LONG[at : at + size])
        at += size
        # float32 sums of attention in another order, a few of which round to the other int8
        assert np.allclose(found, whole[at - 1], rtol=0, atol=2e-2 * np.abs(whole).max())
    assert session.length == at


def test_threads_change_no_bit(small: Path) -> None:
    found = [runner(small, threads=threads).logits(LONG[:600]) for threads in (1, 2, 3)]
    assert all(np.array_equal(found[0], other) for other in found)


def test_an_embedding_in_8_bits_is_smaller_and_near(model: Path) -> None:
    stored, rounded = runner(model), runner(model, embeddings="int8")
    assert rounded.weight_bytes < stored.weight_bytes
    expected = stored.logits(LONG[:50])
    error = np.abs(rounded.logits(LONG[:50]) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05  # 8 bits with a scale for each row: about 0.4 % of the largest weight, through two blocks


def test_a_cache_of_halves_is_half_as_large_and_near(model: Path) -> None:
    full, half = (runner(model, cache=cache, activations="float") for cache in ("float32", "float16"))
    sessions = [full.session(), half.session()]
    expected, found = (session.logits(LONG[:300], wanted=300) for session in sessions)
    assert sessions[1].cache_bytes * 2 == sessions[0].cache_bytes > 0
    assert 0 < np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()  # 11 bits


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_rounded_cache_gives_the_logits_of_torch_with_the_same_rounding(model: Path, cache: Any) -> None:
    found = runner(model, activations="float", cache=cache).logits(LONG[:300])
    expected, exact = (load(model, runtime="torch", kv_cache=dtype).logits(LONG[:300]) for dtype in (cache, "float32"))
    scale = np.abs(exact).max()
    assert np.abs(expected - exact).max() > 1e-4 * scale
    difference = np.abs(found - expected).max(-1) / scale
    # float32 sums in another order; a key or value that they push over the edge of its step moves some logits further
    assert np.median(difference) < 2e-6
    assert difference.max() < 5e-4


def test_an_int8_cache_is_a_quarter_and_a_scale_and_near(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", head_dim=24)  # padded to 32
    full, small = (runner(model, cache=cache, activations="float") for cache in ("float32", "int8"))
    sessions = [full.session(), small.session()]
    expected, found = (session.logits(LONG[:300], wanted=300) for session in sessions)
    assert 0 < np.abs(found - expected).max() < 3e-2 * np.abs(expected).max()  # 8 bits
    positions, heads = 2 * 256, 2 * 2  # two pages; layers and heads
    assert sessions[1].cache_bytes == 2 * heads * positions * (32 + 4) == positions * small.cache_token_bytes
    assert sessions[0].cache_bytes == 2 * heads * positions * 32 * 4 == positions * full.cache_token_bytes


@pytest.mark.parametrize("runtime", ["native", "torch"])
def test_an_int8_cache_token_by_token_and_rewound_is_its_text_at_once(model: Path, runtime: Any) -> None:
    loaded = load(model, runtime=runtime, activations="int8", kv_cache="int8")
    whole = loaded.logits(LONG[:300])
    session = loaded.session()
    for token in LONG[500:520]:  # what is forgotten again
        session.next_logits([token])
    session.next_logits(LONG[:250])
    session.rewind(0)
    at = 0
    for size in (5, 1, 1, 30, 215, 1, 8, 9, 1):
        found = session.next_logits(LONG[at : at + size])
        at += size
        assert np.allclose(found, whole[at - 1], rtol=0, atol=5e-4 * np.abs(whole).max())
        session.next_logits(LONG[600:604])
        session.rewind(at)


def test_greedy_text_from_an_int8_cache_is_that_of_torch(model: Path) -> None:
    texts = [
        load(model, runtime="torch", kv_cache="int8").generate("hello", max_tokens=40),
        load(model, activations="float", kv_cache="int8").generate("hello", max_tokens=40),
    ]
    assert texts[0] == texts[1]


def test_activations_can_be_switched_over_the_same_weights(small: Path, model: Path) -> None:
    rounds = runner(small)
    exact = rounds.with_activations("float")
    assert rounds.has_integers
    assert not runner(model).has_integers
    expected = runner(small, activations="float").logits(LONG[:40])
    assert np.array_equal(exact.logits(LONG[:40]), expected)
    assert not np.array_equal(rounds.logits(LONG[:40]), expected)


def test_bfloat16_activations_are_rounded_where_the_weights_are_bfloat16(
    bf16_model: Path, model: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens in (LONG[:5], LONG[:40]):
        exact = runner(bf16_model).logits(tokens)
        assert np.array_equal(runner(bf16_model, activations="float").logits(tokens), exact)
        rounded = runner(bf16_model, activations="bfloat16").logits(tokens)
        # 2^-8 of each input: some tenths of a percent of the logits
        assert 0 < np.abs(rounded - exact).max() <= 0.05 * np.abs(exact).max()
        for other in (model, small):  # float32 weights; integers
            found = runner(other, activations="bfloat16").logits(tokens)
            assert np.array_equal(found, runner(other, activations="float").logits(tokens))


@pytest.mark.parametrize(
    ("scheme", "expands"),
    [
        (Scheme(bits=3, group_size=32), False),
        (Scheme(bits=8, granularity="channel", group_size=None), False),
        (Scheme(bits=4, granularity="tensor", group_size=None, symmetric=False), False),
        (Scheme(bits=4, group_size=16, symmetric=False, scale_dtype="float32"), True),
    ],
    ids=lambda value: value.label() if isinstance(value, Scheme) else str(value),
)
def test_every_scheme_runs_as_its_integers_say(
    scheme: Scheme, expands: bool, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "out"
    zeropoint.quantize(model, folder, recipe=Recipe(name="mine", weights=scheme, rounding="rtn", range="minmax"))
    with caplog.at_level(logging.WARNING):
        found = runner(folder, activations="float", cache="float32")
    assert bool(found.expanded) == expands == ("held as float32" in caplog.text)
    expected = load(folder, runtime="torch").logits(LONG[:60])
    assert np.allclose(found.logits(LONG[:60]), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_session_is_of_one_length_at_a_time(model: Path) -> None:
    session = runner(model).session()
    assert isinstance(session, NativeSession)
    session.next_logits(LONG[:10])
    with pytest.raises(InternalError, match="10 tokens cannot be rewound to 11"):
        session.rewind(11)
    for tokens in ([-1], [10**6]):
        with pytest.raises(InputError, match="tokens are 0 to"):
            session.next_logits(tokens)
    assert session.length == 10


@pytest.mark.parametrize(
    "wrong",
    [{"threads": 0}, {"activations": "int4"}, {"embeddings": "int4"}, {"cache": "int4"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_are_none_are_refused(model: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        runner(model, **wrong)


def test_an_isa_that_is_not_there_is_the_users_input(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROPOINT_ISA", "mmx")
    with pytest.raises(InputError, match="ZEROPOINT_ISA is 'mmx'; this machine has portable"):
        runner(model)


def test_generating_imports_no_torch(small: Path) -> None:
    code = (
        "import sys, zeropoint\n"
        f"zeropoint.load({str(small)!r}).generate('hello', max_tokens=3)\nprint('torch' in sys.modules)"
    )
    assert run_python(code) == "False"
