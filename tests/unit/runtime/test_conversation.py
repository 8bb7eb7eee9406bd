from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tiny import make_llama
from zeropoint.errors import CheckpointError, InputError, TextError
from zeropoint.runtime.conversation import Conversation
from zeropoint.runtime.generate import LanguageModel, load
from zeropoint.runtime.runner import Session


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(make_llama(tmp_path_factory.mktemp("conversation") / "model"))


class Fed:
    """A session that remembers how many tokens it was given at once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.steps: list[int] = []

    @property
    def length(self) -> int:
        return self.session.length

    def next_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.steps.append(len(tokens))
        return self.session.next_logits(tokens)

    def rewind(self, length: int) -> None:
        self.session.rewind(length)


@pytest.fixture
def fed(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Fed:
    """The session of the next conversation."""
    fed = Fed(model.session())
    monkeypatch.setattr(model, "session", lambda: fed)
    return fed


def anew(model: LanguageModel, messages: Sequence[dict[str, str]], count: int) -> str:
    """The answer to a whole conversation, computed without a past."""
    return model.generate(model.tokenizer.chat(messages), max_tokens=count)


def test_an_answer_is_that_to_the_whole_conversation_computed_anew(model: LanguageModel) -> None:
    conversation = Conversation(model, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for question in ("Who kept the mill?", "And the cats?", "Why 1784?"):
        messages.append({"role": "user", "content": question})
        answer = "".join(conversation.ask(question, max_tokens=9))
        assert answer == anew(model, messages, 9)
        messages.append({"role": "assistant", "content": answer})
    assert list(conversation.messages) == messages


def test_a_turn_computes_only_what_is_new_in_it(model: LanguageModel, fed: Fed) -> None:
    conversation = Conversation(model)
    first = "".join(conversation.ask("Tell me all about the mill, the river and the cats.", max_tokens=5))
    prompt = fed.steps[0]
    assert fed.steps[1:] == [1, 1, 1, 1]
    fed.steps.clear()
    second = model.tokenizer.encode(model.tokenizer.chat([*conversation.messages, {"role": "user", "content": "Why?"}]))
    "".join(conversation.ask("Why?", max_tokens=1))
    # the prompt of the first turn is known; its answer too, as far as its text gives the same tokens again
    assert fed.steps[0] <= len(second) - prompt
    assert fed.steps[0] >= len(model.tokenizer.encode("Why?"))
    assert first


def test_the_same_question_after_a_reset_is_answered_in_the_same_way(model: LanguageModel, fed: Fed) -> None:
    conversation = Conversation(model, system="Be brief.")
    first = "".join(conversation.ask("hello", max_tokens=8))
    fed.steps.clear()
    conversation.reset()
    assert conversation.messages == ({"role": "system", "content": "Be brief."},)
    assert "".join(conversation.ask("hello", max_tokens=8)) == first
    assert fed.steps[0] == 1, "the session holds all of the prompt, and the last token gives the logits"


@pytest.mark.parametrize("how", ["closed", "interrupted", "overtaken"])
def test_what_was_said_of_a_broken_answer_stays(
    model: LanguageModel, fed: Fed, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(model)
    pieces = conversation.ask("hello", max_tokens=50)
    shown = [next(pieces), next(pieces)]
    if how == "closed":
        pieces.close()  # type: ignore[attr-defined]
    if how == "interrupted":
        with monkeypatch.context() as patch:
            patch.setattr(fed.session, "next_logits", interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(pieces)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "".join(shown)}]
    assert list(conversation.messages) == messages
    messages.append({"role": "user", "content": "again"})
    again = conversation.ask("again", max_tokens=8)
    if how == "overtaken":
        assert list(pieces) == []
    assert "".join(again) == anew(model, messages, 8)


def test_an_answer_that_was_never_begun_is_overtaken_too(model: LanguageModel) -> None:
    conversation = Conversation(model)
    never = conversation.ask("hello", max_tokens=5)
    answer = "".join(conversation.ask("again", max_tokens=5))
    assert list(never) == []
    assert answer == anew(model, conversation.messages[:-1], 5)


def interrupt(tokens: Sequence[int]) -> NDArray[np.float32]:
    raise KeyboardInterrupt


def test_a_full_context_is_said_and_the_conversation_is_as_it_was(model: LanguageModel) -> None:
    conversation = Conversation(model)
    answer = "".join(conversation.ask("hello", max_tokens=4))
    before = conversation.messages
    with pytest.raises(InputError, match=r"tokens with this message, and the model's context is 512; begin a new one"):
        conversation.ask("long " * 600)
    assert conversation.messages == before
    assert "".join(Conversation(model).ask("hello", max_tokens=4)) == answer
    assert "".join(conversation.ask("again", max_tokens=4))


def test_an_answer_ends_where_the_context_does(model: LanguageModel, fed: Fed) -> None:
    conversation = Conversation(model)
    "".join(conversation.ask("hello", max_tokens=10_000, temperature=1.0))
    assert fed.length <= model.config.max_positions


def test_options_of_sampling_are_used_and_checked(model: LanguageModel) -> None:
    answers = {"".join(Conversation(model).ask("hello", max_tokens=12, temperature=1.0, seed=s)) for s in (1, 1, 2)}
    assert len(answers) == 2
    assert "".join(Conversation(model).ask("hello", max_tokens=12, temperature=1.0, top_p=1e-6)) == "".join(
        Conversation(model).ask("hello", max_tokens=12)
    )
    with pytest.raises(InputError, match="temperature is -1"):
        Conversation(model).ask("hello", temperature=-1)


def test_a_model_without_a_chat_template_is_refused_at_once(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        Conversation(load(folder))


def test_a_system_message_that_the_template_refuses_is_said_at_once(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    )
    with pytest.raises(TextError, match="no system role"):
        Conversation(load(folder), system="Be brief.")
    assert "".join(Conversation(load(folder)).ask("hello", max_tokens=3))


def test_a_template_that_rewrites_the_past_is_still_right(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages | length }}: {{ messages[-1].content }} =")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [299]}))
    model = load(folder)
    conversation = Conversation(model)
    "".join(conversation.ask("hello", max_tokens=5))
    answer = "".join(conversation.ask("the cats", max_tokens=5))
    assert answer == model.generate("3: the cats =", max_tokens=5)
