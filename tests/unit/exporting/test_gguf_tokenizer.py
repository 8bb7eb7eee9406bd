from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import make_gguf, make_llama, sentencepiece_tokenizer
from zeropoint.checkpoint.gguf_tokenizer import CUTS, merges_from_scores, pre_tokenizer
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import CheckpointError
from zeropoint.exporting._gguf_tokenizer import Described, describe

VOCAB = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"))


def changed(model: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The model with another tokenizer.json."""
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = json.loads((folder / "tokenizer.json").read_text())
    change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


def described(folder: Path, vocab: int = VOCAB) -> Described:
    return describe(open_checkpoint(folder), vocab)


def cut_by(name: str) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        state["pre_tokenizer"] = json.loads(pre_tokenizer(CUTS[name]).__getstate__())
        state["model"]["ignore_merges"] = CUTS[name].ignore_merges

    return change


@pytest.mark.parametrize(
    ("cut", "pre"),
    [("gpt-2", "gpt-2"), ("smollm", "smollm"), ("qwen2", "qwen2"), ("llama3", "llama-bpe"), ("smaug-bpe", "dbrx")],
)
def test_the_rule_that_cuts_text_is_known_by_what_it_does(cut: str, pre: str, model: Path, tmp_path: Path) -> None:
    fields = described(changed(model, tmp_path / "m", cut_by(cut))).fields
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == pre


def test_tokens_types_and_special_ids_are_those_of_the_folder(model: Path) -> None:
    fields = described(model, VOCAB + 4).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == VOCAB + 4
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types[:4] == [3, 3, 3, 1]
    assert tokens[-1] == f"[PAD{VOCAB + 3}]"
    assert types[-1] == 5
    ids = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "padding", "unknown")}
    assert ids == {"bos": 1, "eos": 2, "eot": 0, "padding": 2, "unknown": 0}
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in fields["tokenizer.chat_template"]


def test_what_is_put_before_and_behind_a_text_is_seen(model: Path, tmp_path: Path) -> None:
    def bos(state: dict[str, Any]) -> None:
        token = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
        special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
        single = [token, {"Sequence": {"id": "A", "type_id": 0}}]
        template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
        state["post_processor"] = template

    def twice(state: dict[str, Any]) -> None:
        bos(state)
        state["post_processor"]["single"].insert(0, state["post_processor"]["single"][0])

    fields = described(changed(model, tmp_path / "m", bos)).fields
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)
    with pytest.raises(CheckpointError, match=r"puts the tokens \[1, 1\] before a text"):
        described(changed(model, tmp_path / "m", twice))


def _of_pieces(state: dict[str, Any]) -> None:
    """A tokenizer as transformers converts one of sentencepiece: every way to each piece is a merge."""
    state.clear()
    state.update(json.loads(sentencepiece_tokenizer(500).to_str()))
    vocabulary, learned = state["model"]["vocab"], state["model"]["merges"]
    ranks = {"".join(pair): -float(rank) for rank, pair in enumerate(learned)}
    letters = {token: -1e6 for token in vocabulary if len(token) == 1}
    state["model"]["merges"] = merges_from_scores(letters | ranks, vocabulary)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_pieces_gets_scores_that_merge_as_its_merges_do(
    prefix: bool, model: Path, tmp_path: Path
) -> None:
    def pieces(state: dict[str, Any]) -> None:
        _of_pieces(state)
        if not prefix:
            state["normalizer"] = state["normalizer"]["normalizers"][1]
            state["decoder"]["decoders"].pop()

    fields = described(changed(model, tmp_path / "m", pieces), 500).fields
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is prefix
    assert "tokenizer.ggml.merges" not in fields
    types = fields["tokenizer.ggml.token_type"]
    assert (types[0], types.count(6)) == (2, 256)
    theirs = open_checkpoint(make_gguf(tmp_path / "m.gguf", tokenizer="llama", vocab=500)).metadata  # type: ignore[attr-defined]
    assert fields["tokenizer.ggml.tokens"] == theirs["tokenizer.ggml.tokens"]


def _wordpiece(state: dict[str, Any]) -> None:
    state["model"] = {
        "type": "WordPiece",
        "unk_token": "<|endoftext|>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"a": 0, "<|endoftext|>": 1, "<|im_start|>": 2, "<|im_end|>": 3},
    }


def _lower(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def _whitespace(state: dict[str, Any]) -> None:
    state["pre_tokenizer"]["pretokenizers"][0] = {"type": "Whitespace"}


def _mixed_merges(state: dict[str, Any]) -> None:
    _of_pieces(state)
    merges = state["model"]["merges"]
    # a way to a piece comes after others are made, as no score of the piece can say
    merges.append(
        merges.pop(next(i for i, pair in enumerate(merges) if merges[i + 1][0] + merges[i + 1][1] == "".join(pair)))
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_wordpiece, "a WordPiece tokenizer; of BPE"),
        (_lower, "the normalizer .*Lowercase"),
        (_whitespace, "pre_tokenizer is .*Whitespace.* not known here; those of gpt-2"),
        (_mixed_merges, "not those of any scores"),
    ],
)
def test_what_gguf_cannot_say_is_refused_by_the_part(
    change: Callable[[dict[str, Any]], object], match: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        described(changed(model, tmp_path / "m", change), 600)


def test_composed_accents_are_a_note(model: Path, tmp_path: Path) -> None:
    notes = described(changed(model, tmp_path / "m", lambda state: state.update(normalizer={"type": "NFC"}))).notes
    assert any("NFC" in note for note in notes)


def test_a_description_that_gives_other_tokens_is_refused(model: Path, tmp_path: Path) -> None:
    def other(state: dict[str, Any]) -> None:  # a token that is found in a text before it is cut, and only as a word
        state["added_tokens"].append(
            {"id": 299, "content": "th", "single_word": True, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": False}
        )
        state["model"]["vocab"] = {token: number for token, number in state["model"]["vocab"].items() if number != 299}
        state["model"]["merges"] = [
            pair for pair in state["model"]["merges"] if "".join(pair) in state["model"]["vocab"]
        ]

    with pytest.raises(CheckpointError, match="a GGUF file would cut"):
        described(changed(model, tmp_path / "m", other))


def test_more_tokens_than_rows_are_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match="has the token 299, and the embedding 290 rows"):
        described(model, 290)
