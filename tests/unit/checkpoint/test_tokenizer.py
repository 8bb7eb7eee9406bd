from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

import tiny
from zeropoint.checkpoint import Tokenizer, load_tokenizer, open_checkpoint
from zeropoint.checkpoint.gguf_source import Gguf
from zeropoint.checkpoint.gguf_tokenizer import CUTS, make_tokenizer
from zeropoint.errors import CheckpointError

TEXTS = (
    tiny.TEXT,
    "",
    " ",
    "  two  spaces  1  2 22 ",
    "a\r\n\r\n\tb\n \n  c",
    "I'LL don't we're THEY'VE 's",
    "東京都は日本の首都です。 中文 한국어",
    "🎉👩‍👩‍👧 e\u0301 ﬁ ½ ² Ⅷ १२३ １２３",
    "\u00a0nbsp\u3000wide\u200d",
    "def f(x):\n    return x  +  1\t# 0x7f, 3.14159",
    "<|im_start|>user\nhi<|im_end|>",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llama(tmp_path_factory.mktemp("t") / "m")


@pytest.fixture(scope="module")
def from_gguf(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(open_checkpoint(tiny.make_gguf(tmp_path_factory.mktemp("t") / "m.gguf")))


# A folder


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_tokenizer_json(folder: Path, text: str) -> None:
    ids = Backend.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    tokenizer = load_tokenizer(open_checkpoint(folder))
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_added_and_skipped_only_if_asked(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_eos_token": True}))
    tokenizer = load_tokenizer(checkpoint)
    plain = tokenizer.encode("cats")
    assert tokenizer.encode("cats", add_special_tokens=True) == [*plain, 2]
    assert tokenizer.decode([*plain, 2]) == "cats<|im_end|>"
    assert tokenizer.decode([*plain, 2], skip_special_tokens=True) == "cats"


def test_truncation_and_padding_of_a_training_script_do_not_cut_texts(folder: Path, tmp_path: Path) -> None:
    own = tiny.make_llama(tmp_path / "m")
    backend = Backend.from_file(str(own / "tokenizer.json"))
    backend.enable_truncation(5)
    backend.enable_padding(length=64)
    backend.save(str(own / "tokenizer.json"))
    assert load_tokenizer(open_checkpoint(own)).encode(tiny.TEXT) == load_tokenizer(open_checkpoint(folder)).encode(
        tiny.TEXT
    )


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [2, 0], "bos_token_id": 0}, {"eos_token_id": 1}, ((2, 0), 0)),
        ({"eos_token_id": 0}, {"eos_token_id": 1, "bos_token_id": 2}, ((0,), 2)),
        ({}, {"eos_token_id": [0, 1], "bos_token_id": None}, ((0, 1), 1)),
        ({}, {}, ((2,), 1)),  # what tokenizer_config.json names
    ],
)
def test_end_and_begin_come_from_the_first_file_that_says(
    tmp_path: Path, generation: dict[str, Any], config: dict[str, Any], expected: tuple[tuple[int, ...], int]
) -> None:
    own = tiny.make_llama(tmp_path / "m")
    (own / "generation_config.json").write_text(json.dumps(generation))
    (own / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(open_checkpoint(own))
    assert (tokenizer.eos_ids, tokenizer.bos_id) == expected


@pytest.mark.parametrize(
    ("single", "expected"), [("<|im_start|> $A <|im_end|>", (1,)), ("$A <|im_end|>", ()), ("$A", ())]
)
def test_what_begins_every_text_is_what_the_tokenizer_puts_there(
    tmp_path: Path, single: str, expected: tuple[int, ...]
) -> None:
    own = tiny.make_llama(tmp_path / "m")
    backend = Backend.from_file(str(own / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single=single, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)])
    backend.save(str(own / "tokenizer.json"))
    assert load_tokenizer(open_checkpoint(own)).start_ids == expected


def test_model_without_named_tokens_has_none(tmp_path: Path) -> None:
    own = tiny.make_llama(tmp_path / "m")
    for name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        (own / name).unlink()
    (own / "config.json").write_text("{}")
    tokenizer = load_tokenizer(open_checkpoint(own))
    assert (tokenizer.eos_ids, tokenizer.bos_id, tokenizer.vocab_size) == ((), None, 300)
    with pytest.raises(CheckpointError, match=r"m: the model has no chat template; give plain text"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


def test_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    own = tiny.make_llama(tmp_path / "m")
    (own / "tokenizer.json").rename(own / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json; make one where transformers is installed"):
        load_tokenizer(open_checkpoint(own))


# Chat


def test_chat_is_the_text_that_the_template_makes(folder: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(folder))
    messages = [{"role": "user", "content": "a < b"}, {"role": "assistant", "content": "no"}]
    said = "<|im_start|>user\na < b<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    assert tokenizer.chat(messages) == said + "<|im_start|>assistant\n"
    assert tokenizer.chat(messages, add_generation_prompt=False) == said


TEMPLATES = {
    "named tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}",
    "blocks are trimmed": "{% if true %}\n  a\n  {% endif %}\nb",
    "generation tag": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "nothing given": "{{ tools is none }}{{ documents is none }}{{ x is defined }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    own = tiny.make_llama(tmp_path / "m")
    (own / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": "ünï <b>"}, {"role": "assistant", "content": "ok\n"}]
    theirs = transformers.AutoTokenizer.from_pretrained(own)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert load_tokenizer(open_checkpoint(own)).chat(messages) == expected


@pytest.mark.parametrize(
    "settings_",
    [
        {"chat_template": "old {{ eos_token }}"},
        {"chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "old {{ eos_token }}"}]},
    ],
)
def test_template_and_tokens_are_found_where_older_folders_keep_them(tmp_path: Path, settings_: dict[str, Any]) -> None:
    own = tiny.make_llama(tmp_path / "m")
    (own / "chat_template.jinja").unlink()
    (own / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "END", "lstrip": False}}))
    (own / "tokenizer_config.json").write_text(json.dumps(settings_))
    assert load_tokenizer(open_checkpoint(own)).chat([]) == "old END"


# A GGUF file


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_of_a_gguf_file_is_that_of_the_folder(folder: Path, from_gguf: Tokenizer, text: str) -> None:
    assert from_gguf.encode(text) == load_tokenizer(open_checkpoint(folder)).encode(text)
    assert from_gguf.decode(from_gguf.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer_of_a_gguf_file(from_gguf: Tokenizer, text: str) -> None:
    assert from_gguf.decode(from_gguf.encode(text)) == text


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
def test_side_files_of_a_gguf_file_open_in_transformers_with_the_same_ids(
    tmp_path: Path, tokenizer: Literal["gpt2", "llama"]
) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", tokenizer=tokenizer, vocab=400))
    target = tmp_path / "target"
    target.mkdir()
    checkpoint.copy_side_files(target)
    # transformers picks the tokenizer's class with the help of config.json
    (target / "config.json").write_text(json.dumps(checkpoint.config))
    assert {file.name for file in target.iterdir()} - {"config.json"} == {
        "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
    }  # fmt: skip
    ours, theirs = load_tokenizer(checkpoint), transformers.AutoTokenizer.from_pretrained(target)
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode(text, add_special_tokens=True), text
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text), text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (1, 2, tiny.MAX_POSITIONS)
    chat = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == ours.chat(chat)
    generation = transformers.GenerationConfig.from_pretrained(target)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_cut_is_that_of_transformers_own_converter(tmp_path: Path, pre: str) -> None:
    converter = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    metadata = Gguf(tiny.make_gguf(tmp_path / "m.gguf", vocab=600, pre=pre)).metadata
    given_to_it = {
        "tokenizer_type": "gpt2",
        "pre_tokenizer_type": pre,
        **{key: metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges")},
    }
    theirs, _ = converter.convert_gguf_tokenizer("llama", given_to_it)
    ours = make_tokenizer(metadata, tmp_path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("pre", "other"), [("olmo", "gpt-2"), ("dbrx", "llama-bpe"), ("smaug-bpe", "llama-bpe")])
def test_another_name_of_a_rule_cuts_as_it_does(tmp_path: Path, pre: str, other: str) -> None:
    metadata = Gguf(tiny.make_gguf(tmp_path / "m.gguf", vocab=600, pre=pre)).metadata
    found = make_tokenizer(metadata, tmp_path).pre_tokenizer
    theirs = make_tokenizer({**metadata, "tokenizer.ggml.pre": other}, tmp_path).pre_tokenizer
    for text in TEXTS:
        assert found.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_smollm_cuts_spaces_off_a_digit_which_transformers_converter_does_not(from_gguf: Tokenizer) -> None:
    """SmolLM was trained with single digits cut out first; see docs/decisions/0003-gguf-tokenizer.md."""
    pieces = [piece for piece, _ in from_gguf.backend.pre_tokenizer.pre_tokenize_str("a  12 b")]
    assert pieces == ["a", "ĠĠ", "1", "2", "Ġb"]


def test_piece_that_no_merge_leads_to_is_a_token_where_merges_are_ignored() -> None:
    # "the" is in the vocabulary, and no merge makes it: Llama 3's files have such tokens
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["t", "h", "e", "the"],
        "tokenizer.ggml.merges": ["t h"],
    }
    metadata["tokenizer.ggml.tokens"].append("th")
    found = {
        pre: make_tokenizer({**metadata, "tokenizer.ggml.pre": pre}, Path("m")).encode("the").tokens
        for pre in ("llama-bpe", "gpt-2")
    }
    assert found == {"llama-bpe": ["the"], "gpt-2": ["th", "e"]}


def test_added_tokens_are_never_cut(tmp_path: Path) -> None:
    checkpoint = Gguf(tiny.make_gguf(tmp_path / "m.gguf"))
    tokens = [*checkpoint.metadata["tokenizer.ggml.tokens"], "<think>", "<hidden>"]
    types = [*checkpoint.metadata["tokenizer.ggml.token_type"], 4, 3]
    changed = {**checkpoint.metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    tokenizer = make_tokenizer(changed, tmp_path)
    ids = tokenizer.encode("a<think>b<hidden>").ids
    assert (ids[1], ids[3]) == (300, 301)
    assert tokenizer.decode(ids) == "a<think>b"  # a control token is special, a user's own token is text
    assert tokenizer.get_vocab_size() == 302


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece_ids_are_those_of_the_sentencepiece_library(dummy_prefix: bool) -> None:
    import sentencepiece

    model = io.BytesIO()
    lines = [line for line in tiny.TEXT.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix, user_defined_symbols=["<sep>"], num_threads=1, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [theirs.id_to_piece(index) for index in range(len(theirs))]
    kinds = [(theirs.is_unknown, 2), (theirs.is_control, 3), (theirs.is_byte, 6)]
    types = [next((kind for test, kind in kinds if test(index)), 1) for index in range(len(theirs))]
    types[pieces.index("<sep>")] = 4
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [theirs.get_score(index) for index in range(len(theirs))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": dummy_prefix,
    }
    ours = make_tokenizer(metadata, Path("m"))
    # not compared: control tokens written in a text, which sentencepiece never reads as such, and what follows an added
    # token, where it puts no second "▁" while Llama 2's tokenizer.json and llama.cpp do
    for text in [*(text for text in TEXTS if "<|" not in text), *lines, "a<sep>", "<0x41>", "the the  the"]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text


def test_sentencepiece_text_begins_with_bos_unless_the_file_says_no(tmp_path: Path) -> None:
    for said, expected in ((None, [1]), (True, [1]), (False, [])):
        metadata = {} if said is None else {"tokenizer.ggml.add_bos_token": said}
        path = tiny.make_gguf(tmp_path / "m.gguf", tokenizer="llama", vocab=400, metadata={})
        checkpoint = Gguf(path)
        changed = {key: value for key, value in checkpoint.metadata.items() if not key.endswith("add_bos_token")}
        tokenizer = make_tokenizer({**changed, **metadata}, path)
        assert tokenizer.encode("cats").ids == [*expected, *tokenizer.encode("cats", add_special_tokens=False).ids]


def test_turns_that_end_a_generation_are_all_named(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    checkpoint = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", metadata=metadata))
    assert load_tokenizer(checkpoint).eos_ids == (2, 0)
    assert checkpoint.config["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "bert", r"tokenizer\.ggml\.model is 'bert'; gpt2, llama are covered; give the Hugging Face folder"),
        ("model", None, r"tokenizer\.ggml\.model is 'None'"),
        ("pre", "default", r"tokenizer\.ggml\.pre is 'default', a rule for cutting text that is not covered; gpt-2, "),
        ("pre", None, r"tokenizer\.ggml\.pre is 'None'"),
        ("tokens", None, r"tokenizer\.ggml\.tokens is no list of texts; the file holds no tokenizer"),
        ("tokens", ["a", "a"], "the token 'a' is there twice"),
        ("token_type", [1], r"token_type does not have one entry for each of 300 tokens"),
        ("merges", ["ab"], "merges has 'ab', which is no pair"),
        ("merges", ["no such"], "the tokenizer's metadata does not fit together"),
    ],
)
def test_tokenizer_that_is_not_covered_is_refused_by_name(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    checkpoint = Gguf(tiny.make_gguf(tmp_path / "m.gguf"))
    changed = {**checkpoint.metadata, f"tokenizer.ggml.{field}": value}
    with pytest.raises(CheckpointError, match=message):
        make_tokenizer(changed, checkpoint.path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", [0.0], r"scores does not have one score for each of 400 tokens"),
        ("remove_extra_whitespaces", True, r"remove_extra_whitespaces changes the text before it is cut"),
        ("precompiled_charsmap", [1, 2], r"precompiled_charsmap changes the text before it is cut"),
    ],
)
def test_sentencepiece_that_is_not_covered_is_refused_by_name(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    checkpoint = Gguf(tiny.make_gguf(tmp_path / "m.gguf", tokenizer="llama", vocab=400))
    with pytest.raises(CheckpointError, match=message):
        make_tokenizer({**checkpoint.metadata, f"tokenizer.ggml.{field}": value}, checkpoint.path)


def test_file_with_an_unknown_tokenizer_can_still_be_inspected(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf", pre="another"))
    assert len(checkpoint.tensors) == 20
    with pytest.raises(CheckpointError, match="'another', a rule for cutting text"):
        load_tokenizer(checkpoint)
    with pytest.raises(CheckpointError, match="'another', a rule for cutting text"):
        checkpoint.copy_side_files(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_every_cut_gives_back_every_byte() -> None:
    alphabet = tiny.byte_level_tokenizer(300)
    state = json.loads(alphabet.to_str())["model"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": sorted(state["vocab"], key=state["vocab"].__getitem__),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
    }
    for pre in CUTS:
        tokenizer = make_tokenizer({**metadata, "tokenizer.ggml.pre": pre}, Path("m"))
        for text in TEXTS:
            assert (
                tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
                == text
            )
