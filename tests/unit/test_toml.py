from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint import toml
from zeropoint.errors import RecipeError
from zeropoint.toml import Place

WORDS = st.text(max_size=12)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(document=st.dictionaries(WORDS, VALUES, max_size=5))
def test_what_is_written_reads_the_same(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml.write(document)) == document


def test_a_document_is_written_for_people() -> None:
    document = {"table": {"a": 1, "deep": {"x": 1.5}}, "plain": "ä\n", "list": [{"b": True}, {"c d": []}]}
    assert toml.write(document) == (
        'plain = "ä\\n"\n\n[table]\na = 1\ndeep = { x = 1.5 }\n\n[[list]]\nb = true\n\n[[list]]\n"c d" = []\n'
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), (" 3 ", 3), ("0x10", 16), ("1e-2", 0.01), ("true", True), ("True", "True"), ("rtn", "rtn"), ("", ""),
        ('"3"', "3"), ("[1, 2]", [1, 2]), ("{a = 1}", {"a": 1}), ("*.q_proj", "*.q_proj"), ("1\nb = 2", "1\nb = 2"),
    ],
)  # fmt: skip
def test_a_value_is_toml_or_else_text(text: str, value: object) -> None:
    assert toml.parse_value(text) == value
    assert type(toml.parse_value(text)) is type(value)


@given(text=st.text(max_size=20))
def test_any_text_is_a_value(text: str) -> None:
    toml.parse_value(text)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, msgspec.Meta(ge=2, le=8)], "a whole number from 2 to 8"),
        (Annotated[int, msgspec.Meta(ge=1)], "a whole number of at least 1"),
        (Annotated[float, msgspec.Meta(gt=0, lt=1)], "a number above 0 and below 1"),
        (Annotated[float, msgspec.Meta(gt=0, le=1)], "a number above 0 and of at most 1"),
        (int, "a whole number"),
        (bool, "true or false"),
        (str, "text in quotes"),
        (Literal["b", "a"], "one of 'a', 'b'"),
        (Literal["a"], "'a'"),
        (list[int], "a list, each item a whole number"),
        (tuple[str, ...], "a list, each item text in quotes"),
        (dict[str, int], "a table"),
        (int | None, "a whole number"),
        (int | str, "a whole number or text in quotes"),
    ],
)
def test_a_type_is_described_in_words(kind: object, words: str) -> None:
    assert toml.allowed(kind) == words


@dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float = 0.5


def test_a_table_is_read_into_the_types_of_a_dataclass() -> None:
    assert toml.read_table(Settings, {"share": 1}, Place("f")) == {"share": 1.0}
    with pytest.raises(RecipeError, match=r"^f: a\.cuont is not a key .* did you mean 'count'\?$"):
        toml.read_table(Settings, {"cuont": 1}, Place("f", ("a",)))
    with pytest.raises(RecipeError, match=r"^f: count is 0; allowed is a whole number of at least 1$"):
        toml.read_table(Settings, {"count": 0}, Place("f"), limits={"count": Annotated[int, msgspec.Meta(ge=1)]})


def test_a_place_is_made_where_there_is_none() -> None:
    document: dict[str, Any] = {}
    toml.assign(toml.table_at(document, ["a", "b"]), ["a", "b", "c"], 1)
    toml.assign(toml.table_at(document, ["rules", "0"], lists=["rules"]), ["rules", "0", "x"], 2)
    toml.assign(toml.table_at(document, ["rules"], lists=["rules"]), ["rules", "1"], 3)
    toml.assign(toml.table_at(document, ["rules"], lists=["rules"]), ["rules", "0"], 4)
    assert document == {"a": {"b": {"c": 1}}, "rules": [4, 3]}
