from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import make_llama
from zeropoint.checkpoint.tokenizer import Tokenizer
from zeropoint.errors import InputError, InternalError
from zeropoint.runtime.decode import Pieces
from zeropoint.runtime.generate import LanguageModel, load
from zeropoint.runtime.ops_torch import TorchOps


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(make_llama(tmp_path_factory.mktemp("generate") / "model"), runtime=request.param, kv_cache="float32")


def greedy(model: LanguageModel, prompt: str, count: int) -> list[int]:
    """The slow way: the whole text again for every token."""
    tokens = model.tokenizer.encode(prompt)
    begin = len(tokens)
    for _ in range(count):
        tokens.append(int(model.logits(tokens)[-1].argmax()))
    return tokens[begin:]


def test_greedy_text_is_that_of_the_logits_step_by_step(model: LanguageModel) -> None:
    expected = model.tokenizer.decode(greedy(model, "hello world", 12))
    assert model.generate("hello world", max_tokens=12) == expected


def test_the_pieces_of_a_stream_are_the_text(model: LanguageModel) -> None:
    pieces = list(model.stream("hello", max_tokens=30, temperature=1.0, seed=1))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate("hello", max_tokens=30, temperature=1.0, seed=1)


def test_a_stream_tells_how_it_came(model: LanguageModel) -> None:
    stream = model.stream("hello", max_tokens=1)
    assert (stream.tokens, stream.first_token_s, stream.tokens_per_s) == (0, None, None)
    "".join(stream)
    assert (stream.tokens, stream.tokens_per_s) == (1, None)
    assert stream.prompt_tokens == len(model.tokenizer.encode("hello"))
    stream = model.stream("hello", max_tokens=5, temperature=1.0, seed=1)
    "".join(stream)
    assert stream.tokens == 5
    assert stream.first_token_s is not None
    assert stream.last_token_s is not None
    assert stream.tokens_per_s == 4 / (stream.last_token_s - stream.first_token_s)


def test_a_character_is_shown_when_all_its_bytes_are_there(model: LanguageModel) -> None:
    tokenizer: Tokenizer = model.tokenizer
    text = "naïve 日本 🙂 ok"
    pieces = Pieces(tokenizer)
    shown = [piece for token in tokenizer.encode(text) for piece in pieces.add(token)]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join([*shown, *pieces.rest()]) == text


def test_an_end_token_ends_the_text(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    model = load(folder)
    second = greedy(model, "hello", 2)[1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [second]}))
    ended = load(folder).generate("hello", max_tokens=12)
    assert ended == model.tokenizer.decode(greedy(model, "hello", 1))


def test_generation_stops_at_the_end_of_the_context(model: LanguageModel) -> None:
    room = model.config.max_positions
    with pytest.raises(InputError, match=f"takes 1 to {room - 1}"):
        model.generate("a" * 4 * room)
    with pytest.raises(InputError, match="has 0 tokens"):
        model.generate("")


def test_logits_have_a_row_for_each_token(model: LanguageModel) -> None:
    logits = model.logits([5, 6, 7])
    assert logits.shape == (3, model.config.vocab_size)
    assert logits.dtype == np.float32


def test_a_session_goes_on_from_where_it_is_rewound_to(model: LanguageModel) -> None:
    session = model.session()
    session.next_logits([5, 6, 7])
    session.next_logits([8])
    session.rewind(2)
    assert session.length == 2
    found = session.next_logits([9, 10])
    assert session.length == 4
    # float32 sums in another order: attention over a cache
    assert np.allclose(found, model.logits([5, 6, 9, 10])[-1], atol=1e-5)
    session.rewind(0)
    assert np.array_equal(session.next_logits([5, 6, 7]), model.session().next_logits([5, 6, 7]))


def test_a_session_that_is_interrupted_holds_what_it_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_llama(tmp_path / "model"), runtime="torch")
    session = model.session()
    session.next_logits([5, 6, 7])
    calls: list[object] = []
    attention = TorchOps.attention

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:  # in the second block, when the first has the new token in its cache
            raise KeyboardInterrupt
        return attention(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TorchOps, "attention", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.next_logits([8])
    assert session.length == 3
    assert np.allclose(session.next_logits([9]), model.logits([5, 6, 7, 9])[-1], atol=1e-5)


def test_a_session_refuses_what_it_cannot_do(model: LanguageModel) -> None:
    session = model.session()
    with pytest.raises(InternalError, match="no tokens"):
        session.next_logits([])
    for length in (-1, 1):
        with pytest.raises(InternalError, match=f"0 tokens cannot be rewound to {length}"):
            session.rewind(length)


def test_threads_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    folder = make_llama(tmp_path / "model")
    load(folder, runtime="torch")
    load(folder, runtime="torch", threads=3)
    assert asked == [3]


def test_another_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runtime is 'cuda'; it must be 'native' or 'torch'"):
        load(tmp_path, runtime="cuda")  # type: ignore[arg-type]


def test_choices_of_the_native_runtime_are_refused_for_torch(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    with pytest.raises(InputError, match="are choices of the native runtime"):
        load(folder, runtime="torch", embeddings="int8")
    with pytest.raises(InputError, match="are choices of the native runtime"):
        load(folder, runtime="torch", activations="float")
    assert load(folder, runtime="torch").runner.isa is None
    assert load(folder).runner.isa is not None
