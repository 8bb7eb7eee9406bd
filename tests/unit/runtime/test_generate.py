from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tiny import make_llama
from zeropoint.checkpoint.tokenizer import Tokenizer
from zeropoint.errors import InputError
from zeropoint.runtime.generate import LanguageModel, Pieces


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel(make_llama(tmp_path_factory.mktemp("generate") / "model"))


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


def test_a_character_is_shown_when_all_its_bytes_are_there(model: LanguageModel) -> None:
    tokenizer: Tokenizer = model.tokenizer
    text = "naïve 日本 🙂 ok"
    pieces = Pieces(tokenizer)
    shown = [piece for token in tokenizer.encode(text) for piece in pieces.add(token)]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join([*shown, *pieces.rest()]) == text


def test_an_end_token_ends_the_text(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    model = LanguageModel(folder)
    second = greedy(model, "hello", 2)[1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [second]}))
    ended = LanguageModel(folder).generate("hello", max_tokens=12)
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
    assert logits.dtype == torch.float32
