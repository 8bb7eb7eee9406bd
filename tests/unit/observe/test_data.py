from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zeropoint.errors import InputError, TextError
from zeropoint.observe import data
from zeropoint.observe.data import bundled_text, calibration_batches, judging_windows, read_documents

EOS = 7
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


class Letters:
    """A tokenizer whose tokens are code points, so that a window says which text it is."""

    def __init__(self, *, eos_ids: tuple[int, ...] = (EOS, 8)) -> None:
        self.eos_ids = eos_ids
        self.start_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        if any(message["role"] == "stranger" for message in messages):
            raise TextError("the template refuses 'stranger'")
        lines = [f"<{message['role']}>{message['content']}\n" for message in messages]
        return "".join(lines) + ("<assistant>" if add_generation_prompt else "")


def write(folder: Path, content: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(folder: Path, *lines: object) -> Path:
    return write(folder, "".join(json.dumps(line) + "\n" for line in lines), "text.jsonl")


def counting(tokens: int) -> str:
    """A text in which no two windows are alike: one CJK letter for each position."""
    return "".join(chr(0x4E00 + i) for i in range(tokens))


def draw(path: Path, *, samples: int = 4, length: int = 8, seed: int = 0, batch: int = 3) -> data.Batches:
    return calibration_batches(path, Letters(), samples=samples, length=length, seed=seed, batch=batch)


def texts(path: Path) -> list[str]:
    return ["".join(pieces) for pieces in read_documents(path, Letters())]


# Begin of text


def test_windows_begin_with_what_the_model_wants_in_front_of_a_text(tmp_path: Path) -> None:
    path = write(tmp_path, counting(40))
    plain, begun = Letters(), Letters()
    begun.start_ids = (1,)
    for read in (
        lambda tokenizer: judging_windows(path, tokenizer, length=8).tokens,
        lambda tokenizer: calibration_batches(path, tokenizer, samples=3, length=8, seed=0, batch=2).tokens,
    ):
        wanted = read(plain).copy()
        wanted[:, 0] = 1
        np.testing.assert_array_equal(read(begun), wanted)


# Sampling


@SAME_FOLDER
@given(tokens=st.integers(8, 700), length=st.integers(1, 8), samples=st.integers(1, 90), seed=st.integers(0, 2**63 - 1))
def test_a_sample_is_windows_of_the_text_without_overlap(
    tmp_path: Path, tokens: int, length: int, samples: int, seed: int
) -> None:
    text = draw(write(tmp_path, counting(tokens)), samples=samples, length=length, seed=seed)
    assert text.tokens.dtype == np.int32
    assert text.tokens.shape == (min(samples, tokens // length), length)
    starts = text.tokens[:, 0] - 0x4E00
    np.testing.assert_array_equal(text.tokens - text.tokens[:, :1], np.tile(np.arange(length), (len(starts), 1)))
    assert (starts % length == 0).all()
    assert len(set(starts.tolist())) == len(starts)
    assert (text.source.tokens, text.source.windows) == (tokens, tokens // length)


@SAME_FOLDER
@given(seed=st.integers(0, 2**63 - 1), samples=st.integers(1, 30), more=st.integers(1, 30))
def test_a_sample_is_the_same_for_the_same_seed_and_begins_a_larger_one(
    tmp_path: Path, seed: int, samples: int, more: int
) -> None:
    path = write(tmp_path, counting(480))
    first, again = (draw(path, samples=samples, seed=seed).tokens for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(draw(path, samples=samples + more, seed=seed).tokens[:samples], first)


def test_a_sample_differs_from_seed_to_seed(tmp_path: Path) -> None:
    path = write(tmp_path, counting(800))
    drawn = {draw(path, samples=10, seed=seed).tokens.tobytes() for seed in range(20)}
    assert len(drawn) == 20


def test_a_sample_is_the_same_on_every_machine(tmp_path: Path) -> None:
    text = draw(write(tmp_path, counting(800)), samples=6, seed=2024)
    assert ((text.tokens[:, 0] - 0x4E00) // 8).tolist() == [14, 71, 75, 49, 68, 64]


def test_every_window_of_a_text_is_drawn_equally_often(tmp_path: Path) -> None:
    path = write(tmp_path, counting(8 * 20))
    counts = np.zeros(20)
    for seed in range(400):
        counts[(draw(path, samples=5, seed=seed).tokens[:, 0] - 0x4E00) // 8] += 1
    # each count is binomial(400, 1/4): mean 100, deviation 8.7
    assert counts.sum() == 2000
    assert np.abs(counts - 100).max() < 4.5 * 8.7


def test_a_text_with_too_few_windows_gives_all_of_them_and_says_so(tmp_path: Path) -> None:
    text = draw(write(tmp_path, counting(8 * 3 + 5)), samples=10)
    assert sorted((text.tokens[:, 0] - 0x4E00).tolist()) == [0, 8, 16]
    assert text.note == "10 windows were asked for; the text has 3 of 8 tokens, all are used"
    assert draw(write(tmp_path, counting(8 * 3 + 5)), samples=3).note is None


def test_batches_together_are_the_sample(tmp_path: Path) -> None:
    text = draw(write(tmp_path, counting(8 * 9)), samples=7, batch=3)
    assert [batch.shape for batch in text] == [(3, 8), (3, 8), (1, 8)]
    assert len(text) == 3
    np.testing.assert_array_equal(np.concatenate(list(text)), text.tokens)


def test_the_source_names_the_file_and_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path, counting(20))
    source = draw(path).source
    assert source.name == "text.txt"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# Judging


@SAME_FOLDER
@given(tokens=st.integers(2, 500), length=st.integers(2, 20))
def test_judging_windows_are_the_whole_text_in_order(tmp_path: Path, tokens: int, length: int) -> None:
    path = write(tmp_path, counting(tokens))
    if tokens < length:
        with pytest.raises(TextError, match=f"{tokens} tokens, and one window needs {length}"):
            judging_windows(path, Letters(), length=length)
        return
    windows = judging_windows(path, Letters(), length=length)
    used = tokens // length * length
    np.testing.assert_array_equal(windows.tokens.ravel(), 0x4E00 + np.arange(used))
    assert windows.note is None


@SAME_FOLDER
@given(available=st.integers(1, 80), wanted=st.integers(1, 100))
def test_max_windows_are_spread_over_the_whole_text(tmp_path: Path, available: int, wanted: int) -> None:
    windows = judging_windows(write(tmp_path, counting(4 * available)), Letters(), length=4, max_windows=wanted)
    chosen = (windows.tokens[:, 0] - 0x4E00) // 4
    assert len(chosen) == min(available, wanted)
    assert (np.diff(chosen) > 0).all()
    part = available / len(chosen)
    middles = (np.arange(len(chosen)) + 0.5) * part
    assert (np.abs(chosen + 0.5 - middles) <= 0.5 + 1e-9).all()  # 1e-9: middles are rounded
    assert (windows.note is None) == (wanted >= available)


def test_a_window_of_one_token_has_nothing_to_judge(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="at least 2"):
        judging_windows(write(tmp_path, "abc"), Letters(), length=1)


# Documents


def test_documents_are_joined_by_the_first_eos(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"text": "ab"}, {"text": ""}, {"text": "cd"})
    windows = judging_windows(path, Letters(), length=5)
    assert windows.tokens.tolist() == [[ord("a"), ord("b"), EOS, ord("c"), ord("d")]]
    assert windows.source.documents == 2


def test_documents_are_joined_by_nothing_if_there_is_no_eos(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"text": "ab"}, {"text": "cd"})
    windows = judging_windows(path, Letters(eos_ids=()), length=4)
    assert windows.tokens.tolist() == [[ord(letter) for letter in "abcd"]]


def test_messages_pass_through_the_chat_template(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert texts(write_jsonl(tmp_path, {"messages": talk})) == ["<user>Hi\n<assistant>Ho\n"]


def test_what_a_chat_template_refuses_is_reported_with_its_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"text": "fine"}, {"messages": [{"role": "stranger", "content": "Hi"}]})
    with pytest.raises(TextError, match=r"text\.jsonl, line 2: the template refuses 'stranger'"):
        texts(path)


def test_a_txt_file_is_one_document_exactly_as_it_stands(tmp_path: Path) -> None:
    content = "one\r\n\r\n\f\ntwo \n"
    assert texts(write(tmp_path, content)) == [content]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert texts(write(tmp_path, b"\xef\xbb\xbftext")) == ["text"]
    assert texts(write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r\n\n', "text.jsonl")) == ["a"]


@SAME_FOLDER
@given(
    content=st.text(st.sampled_from("ab\n \té𝄞"), min_size=1, max_size=200),
    piece=st.integers(1, 40),
    jsonl=st.booleans(),
)
def test_pieces_of_a_text_are_short_and_together_the_text(
    tmp_path: Path, content: str, piece: int, jsonl: bool
) -> None:
    path = write_jsonl(tmp_path, {"text": content}) if jsonl else write(tmp_path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PIECE_CHARS", piece)
        (document,) = ([*pieces] for pieces in read_documents(path, Letters()))
    assert "".join(document) == content
    assert all(1 <= len(part) <= piece for part in document)


@pytest.mark.parametrize(
    "pieces",
    [
        ["one\n", "two\n\nthr\n", "fourteen let", "ters\n\n\nx"],  # white space is not parted if there is another way
        ["a\n\n", "bcdefghijklm", "n"],
        ["\n" * 12, "\n"],
    ],
)
def test_a_long_text_is_cut_where_a_line_begins_if_one_does(tmp_path: Path, pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PIECE_CHARS", 12)
        (document,) = ([*pieces] for pieces in read_documents(write(tmp_path, "".join(pieces)), Letters()))
    assert document == pieces


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"", "the file is empty"),
        ("text.jsonl", b"", "the file is empty"),
        ("text.md", b"hello", r"the name ends in neither \.txt .* nor \.jsonl"),
        ("text.txt", b"good\xffbad", "not UTF-8: byte 0xff at offset 4 .*iconv"),
        ("text.txt", "cut short: é".encode()[:-1], "byte 0xc3 at offset 11 .unexpected end of data"),
        ("text.txt", "hello".encode("utf-16"), "byte 0xff at offset 0"),
        ("text.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "not UTF-8: byte 0xff at offset 24"),
        (
            "text.jsonl",
            b'{"text": "a"}\n{"text": 3}',
            r"line 2: Expected `str`, got `int` - at `\$.text`; got .*allowed is",
        ),
        ("text.jsonl", b'{"text": "a"', r"line 1: Input data was truncated"),
        ("text.jsonl", b'\n["a"]', "line 2: Expected `object`, got `array`"),
        ("text.jsonl", b'{"text": "a", "url": "b"}', "line 1: Object contains unknown field `url`"),
        ("text.jsonl", b'{"text": "a", "messages": [{"role": "b", "content": "c"}]}', "line 1: it has both fields"),
        ("text.jsonl", b"{}", "line 1: it has neither field"),
        ("text.jsonl", b'{"messages": []}', "line 1: Expected `array` of length >= 1"),
        ("text.jsonl", b'{"messages": [{"role": "user"}]}', "missing required field `content`"),
        ("text.jsonl", b'{"text": "\\ud800"}', "line 1: "),
        ("text.jsonl", b"\n\n", "0 tokens, and one window needs 8"),
        ("text.txt", b"seven..", "7 tokens, and one window needs 8; give a longer text, or ask for shorter windows"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(TextError, match=message) as caught:
        draw(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_offset_of_a_bad_byte_is_right_far_into_the_file(tmp_path: Path) -> None:
    good = "aé𝄞".encode() * 40_000  # a chunk ends inside a character
    with pytest.raises(TextError, match=f"byte 0xfe at offset {len(good)} "):
        texts(write(tmp_path, good + b"\xfe"))


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="there is no such file"):
        draw(tmp_path / "nothing.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(TextError, match="not a file"):
        draw(tmp_path / "folder.txt")
    with pytest.raises(TextError, match="cannot be opened"):
        draw(tmp_path / ("n" * 300 + ".txt"))


FIELDS = st.sampled_from(["text", "messages", "role", "content"])
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@SAME_FOLDER
@given(lines=st.lists(st.binary(max_size=40) | JSON_LIKE.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_no_jsonl_file_raises_anything_but_a_text_error(tmp_path: Path, lines: list[bytes]) -> None:
    path = write(tmp_path, b"\n".join(lines), "text.jsonl")
    refusal = ""
    try:
        "".join(texts(path)).encode()
    except TextError as error:
        refusal = str(error)
    assert not refusal or str(path) in refusal


def test_a_deeply_nested_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: "):
        texts(write(tmp_path, b'{"messages": ' + b"[" * 100_000, "text.jsonl"))


# The bundled texts


@pytest.fixture
def whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts as they are bundled; conftest.py cuts them short."""
    monkeypatch.setattr(data, "TEXTS", Path(data.__file__).parents[1] / "texts")


@pytest.mark.parametrize("name", ["calibration", "judge"])
@pytest.mark.usefixtures("whole_texts")
def test_a_bundled_text_is_there_and_has_its_sources_beside_it(name: Literal["calibration", "judge"]) -> None:
    path = bundled_text(name)
    text = path.read_text(encoding="utf-8")
    sources = (path.parent / "SOURCES.md").read_text(encoding="utf-8")
    assert f"## {name}.txt: " in sources
    assert f"{len(text.encode()):,} bytes" in sources
    assert all(character.isprintable() or character in "\n\t" or character.isspace() for character in text[:200_000])
    assert "\n\n\n\n" not in text


@pytest.mark.usefixtures("whole_texts")
def test_the_bundled_texts_share_no_paragraph() -> None:
    paragraphs = [
        {part for part in bundled_text(name).read_text(encoding="utf-8").split("\n\n") if len(part) > 120}
        for name in ("calibration", "judge")
    ]
    assert all(len(each) > 500 for each in paragraphs)
    assert not paragraphs[0] & paragraphs[1]


@pytest.mark.usefixtures("whole_texts")
def test_every_package_that_needs_a_notice_has_one() -> None:
    folder = bundled_text("judge").parent
    rows = [line.split("|") for line in (folder / "SOURCES.md").read_text(encoding="utf-8").splitlines()]
    packages = {row[2].split()[1] for row in rows if len(row) == 7 and ":" in row[2]}
    assert len(packages) > 20
    missing = {name for name in packages if not (folder / "LICENSES" / f"{name}.txt").is_file()}
    assert missing == {"sqlite3-doc", "zeropoint"}  # in the public domain, and our own
