"""`zeropoint chat` with a real model: in this process, in one of its own that is interrupted, and at a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from child import ZEROPOINT, running
from tiny import make_llama
from zeropoint import cli
from zeropoint.runtime.conversation import Conversation
from zeropoint.runtime.generate import load

Streams = pytest.CaptureFixture[str]
Say = Callable[[str], None]
QUIET_S = 1.5  # an answer has a piece every few milliseconds; a busy machine makes tens of them


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never says an end token, with room for a long answer."""
    folder = make_llama(tmp_path_factory.mktemp("chat") / "endless")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1_000_000]}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    return folder


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def answers(model: Path, questions: list[str], system: str | None = None) -> str:
    conversation = Conversation(load(model), system=system)
    return "".join("".join(conversation.ask(question, max_tokens=6)) + "\n" for question in questions)


def test_each_line_is_a_turn_of_one_conversation(model: Path, say: Say, capfd: Streams) -> None:
    say("hello\n\n  the cats \n")
    assert cli.main(["chat", str(model), "--max-tokens", "6", "--system", "Be brief."]) == 0
    streams = capfd.readouterr()
    assert streams.out == answers(model, ["hello", "the cats"], system="Be brief.")
    assert streams.err == ""


def test_reset_forgets_and_exit_ends(model: Path, say: Say, capfd: Streams) -> None:
    say("hello\n/reset\nhello\n/exit\nnever asked")
    assert cli.main(["chat", str(model), "--max-tokens", "6"]) == 0
    assert capfd.readouterr().out == 2 * answers(model, ["hello"])


def test_options_of_sampling_are_handed_over(model: Path, say: Say, capfd: Streams) -> None:
    said = []
    for options in ("--temperature 1", "--temperature 1 --seed 1", "--temperature 1 --top-p 0.00001", ""):
        say("hello")
        assert cli.main(["chat", str(model), "--max-tokens", "9", *options.split()]) == 0
        said.append(capfd.readouterr().out)
    assert len(set(said)) == 3
    assert said[2] == said[3]


@pytest.mark.parametrize(
    ("options", "text", "sentence"),
    [
        ("--temperature -1", "hello", "zeropoint: temperature is -1.0; it must be 0"),
        ("", "long " * 600, "zeropoint: the conversation has "),
    ],
)
def test_what_is_refused_ends_a_pipe_with_a_sentence(
    options: str, text: str, sentence: str, model: Path, say: Say, capfd: Streams
) -> None:
    say(text)
    assert cli.main(["chat", str(model), *options.split()]) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(sentence)
    assert streams.err.count("\n") == 1


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, say: Say, capfd: Streams) -> None:
    folder = make_llama(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    say("hello")
    assert cli.main(["chat", str(folder)]) == 2
    assert "the model has no chat template; give plain text" in capfd.readouterr().err


def test_ctrl_c_ends_an_answer_and_the_next_line_is_answered(endless: Path) -> None:
    command = [*ZEROPOINT, "chat", str(endless), "--max-tokens", "1000000", "--temperature", "1"]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        for question in (b"hello\n", b"again\n"):
            run.stdin.write(question)
            run.stdin.flush()
            assert run.stdout.read(1), run.stderr.read()  # the answer has begun, and would not end
            run.send_signal(signal.SIGINT)
            until_quiet(run.stdout.fileno())
        run.stdin.close()
        assert run.wait(60) == 0
        assert run.stderr.read() == b""


def until_quiet(descriptor: int) -> bytes:
    """Read until nothing has come for a while."""
    seen = b""
    deadline_s = time.monotonic() + 60
    while select.select([descriptor], [], [], QUIET_S)[0]:
        new = os.read(descriptor, 1 << 16)
        if not new:
            break
        seen += new
        assert time.monotonic() < deadline_s, "it does not end"
    return seen


AT_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from zeropoint.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    pty = pytest.importorskip("pty", reason="the system has no terminals to imitate")
    ends: tuple[int, int] = pty.openpty()
    yield ends
    os.close(ends[0])


@pytest.mark.parametrize("end", [b"\x03", b"\x04", b"/exit\n"], ids=["ctrl-c", "ctrl-d", "exit"])
def test_at_a_terminal_there_is_a_prompt_and_ctrl_c_there_ends_the_program(
    endless: Path, terminal: tuple[int, int], end: bytes
) -> None:
    ours, theirs = terminal
    command = [sys.executable, "-c", AT_A_TERMINAL, "chat", str(endless), "--max-tokens", "1000000"]
    with running(
        [*command, "--temperature", "1"], {"TERM": "dumb"}, stdin=theirs, stdout=theirs, start_new_session=True
    ) as run:
        os.close(theirs)
        read_until(ours, b"> ")
        os.write(ours, b"hello\n")
        read_until(ours, b"hello\r\n")
        assert os.read(ours, 1)
        os.write(ours, b"\x03")  # the answer ends
        read_until(ours, b"\r\n> ")
        assert end_by(ours, end, run) == 0
        assert run.stderr.read() == b""


def end_by(descriptor: int, keys: bytes, run: subprocess.Popen[bytes]) -> int:
    """Press keys until the program has ended, and return its exit code.

    Once is not always enough: readline shows its prompt a moment before it waits for keys, and Python's loop around it
    does not see a Ctrl-C of that moment before the next key.
    """
    for _ in range(30):
        os.write(descriptor, keys)
        with suppress(subprocess.TimeoutExpired):
            return run.wait(2)
    raise AssertionError("it does not end")


def read_until(descriptor: int, mark: bytes) -> None:
    seen, deadline_s = b"", time.monotonic() + 60
    while mark not in seen:
        assert select.select([descriptor], [], [], 60)[0], seen
        seen += os.read(descriptor, 1 << 16)
        assert time.monotonic() < deadline_s, "it does not end"
