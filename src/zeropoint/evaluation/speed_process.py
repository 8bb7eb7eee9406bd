"""A model in a process of its own that computes when it is told to.

So its memory is its own, and two models can take turns.

    parent                                    process
                  <-- Loaded -----            reads the model, computes a first token
    ask(Prefill)  --- {"do": "prefill"} -->   computes
                  <-- Measured ---            seconds; then waits for the next line

One JSON document a line, over the process's stdin and stdout. The process ends when its stdin does, so none is left
behind however its parent ends. benchmarks/peer.py speaks the same for other engines.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from zeropoint import errors
from zeropoint.errors import InputError, ProcessError, ZeropointError
from zeropoint.runtime.choices import CacheDtype
from zeropoint.types import RunActivations, RunEmbeddings

if TYPE_CHECKING:
    from zeropoint.runtime.generate import LanguageModel

CONTEXT = 32
"""Tokens before those whose decoding is measured."""

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from zeropoint.evaluation.speed_process import serve; serve(sys.argv[2])"
)
"""What the process runs: with the sys.path of its parent, zeropoint is the same one there."""

Reply = TypeVar("Reply", bound="Message")

_log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag=str.lower):
    """What goes over the pipe."""


class Model(Message, frozen=True, kw_only=True):
    """What to load. positions: of the context that measuring needs. The others: as `zeropoint.load` takes them."""

    path: str
    threads: int
    embeddings: RunEmbeddings
    activations: RunActivations
    kv_cache: CacheDtype | None = None
    positions: int


class Prefill(Message, frozen=True, kw_only=True):
    """Compute the logits after a prompt of so many tokens, in an empty session. The reply is Measured."""

    tokens: int


class Decode(Message, frozen=True, kw_only=True):
    """Append so many tokens one by one, each the likeliest, after a prompt of CONTEXT. The reply is Measured."""

    tokens: int


class Memory(Message, frozen=True, kw_only=True):
    """Tell the peak of resident memory. The reply is Peak."""


class Loaded(Message, frozen=True, kw_only=True):
    """The model is ready. load_s: what loading took, without the start of Python."""

    load_s: float


class NativeLoaded(Message, frozen=True, kw_only=True):
    """Likewise, of the native runtime.

    weight_bytes: memory of the weights. token_bytes: of them read for each token. cache_token_bytes: keys and values of
    one token. embeddings, kv_cache: what they are held as. warnings: what the library had to say.
    """

    load_s: float
    isa: str
    weight_bytes: int
    token_bytes: int
    cache_token_bytes: int
    embeddings: str
    kv_cache: str
    warnings: tuple[str, ...]


class Measured(Message, frozen=True, kw_only=True):
    """What the computation took."""

    elapsed_s: float


class Peak(Message, frozen=True, kw_only=True):
    """The most memory that the process has had resident."""

    peak_memory_bytes: int


class Failed(Message, frozen=True, kw_only=True):
    """The process cannot go on. error: the class."""

    error: str
    message: str


class ModelProcess:
    """The parent's end. Made by `model_process` or `engine_process`.

    name: what messages call it. first_token_s: from the start of the process to its first token.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.first_token_s = 0.0
        self._process = process

    def ask(self, request: Message, reply: type[Reply]) -> Reply:
        """Send a request and return the reply.

        Raises: ZeropointError, of the class that the process met, or ProcessError if it died.
        """
        with suppress(BrokenPipeError):  # a dead process; what it left to read, if anything, says why
            _write(self._pipe(self._process.stdin), request)
        return self.wait_for(reply)

    def wait_for(self, reply: type[Reply]) -> Reply:
        """Return the next reply; raises as `ask`."""
        line = self._pipe(self._process.stdout).readline()
        if not line.endswith(b"\n"):
            raise ProcessError(f"the process that ran {self.name} {_ending(self._process.wait())}")
        try:
            answer: Reply | Failed = msgspec.json.decode(line, type=reply | Failed)
        except msgspec.MsgspecError as error:
            raise ProcessError(f"the process that ran {self.name} gave an answer of no sense: {error}") from error
        if not isinstance(answer, Failed):
            return answer
        known = getattr(errors, answer.error, None)
        if isinstance(known, type) and issubclass(known, ZeropointError):
            raise known(answer.message)
        raise ProcessError(f"the process that ran {self.name} met {answer.error}: {answer.message}")

    @staticmethod
    def _pipe(end: IO[bytes] | None) -> IO[bytes]:
        assert end is not None, "the process was started without a pipe"
        return end


@contextmanager
def model_process(model: Model) -> Iterator[tuple[ModelProcess, NativeLoaded]]:
    """Start a process, let it load `model`, yield it, end it.

    Raises: as `ModelProcess.ask`.
    """
    command = [sys.executable, "-c", START, json.dumps(sys.path), msgspec.json.encode(model).decode()]
    with engine_process(Path(model.path).name, command, NativeLoaded) as (process, loaded):
        for warning in loaded.warnings:
            _log.warning("%s: %s", process.name, warning)
        yield process, loaded


@contextmanager
def engine_process(name: str, command: Sequence[str], reply: type[Reply]) -> Iterator[tuple[ModelProcess, Reply]]:
    """Start any command that speaks as this module says, wait until it has loaded, yield it, end it."""
    started_s = time.perf_counter()
    process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches the parent alone, which ends it below
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        parent = ModelProcess(name, process)
        loaded = parent.wait_for(reply)
        parent.first_token_s = time.perf_counter() - started_s
        yield parent, loaded
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a request that a dead process never read
                    pipe.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} before it was done"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{more}"


def _write(pipe: IO[bytes], message: Message) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")
    pipe.flush()


# The other end


def serve(model: str) -> None:
    """Load the model that a Model in JSON describes and answer requests until stdin ends: the whole process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else writes to stdout must not come between
    try:
        _serve(msgspec.json.decode(model, type=Model), answers)
    except BrokenPipeError:  # the parent has gone
        pass
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        _write(answers, Failed(error=type(error).__name__, message=str(error)))


def _serve(asked: Model, answers: IO[bytes]) -> None:
    from zeropoint.evaluation.results import peak_memory_bytes
    from zeropoint.runtime.generate import load
    from zeropoint.runtime.native_runner import NativeRunner

    warnings = _Collected()
    logging.getLogger("zeropoint").addHandler(warnings)
    started_s = time.perf_counter()
    model = load(
        asked.path,
        threads=asked.threads,
        embeddings=asked.embeddings,
        activations=asked.activations,
        kv_cache=asked.kv_cache,
    )
    load_s = time.perf_counter() - started_s
    runner = model.runner
    assert isinstance(runner, NativeRunner), "load gave another runtime than the native one"
    if model.config.max_positions < asked.positions:
        raise InputError(
            f"{asked.path}: the model's context is {model.config.max_positions} tokens and measuring needs "
            f"{asked.positions}; ask for fewer prompt tokens, or fewer tokens after {CONTEXT}"
        )
    _decode(model, 1)
    _write(
        answers,
        NativeLoaded(
            load_s=load_s,
            isa=runner.isa,
            weight_bytes=runner.weight_bytes,
            token_bytes=runner.token_bytes,
            cache_token_bytes=runner.cache_token_bytes,
            embeddings=runner.embeddings,
            kv_cache=runner.kv_cache,
            warnings=tuple(warnings.messages),
        ),
    )
    for line in sys.stdin.buffer:
        match msgspec.json.decode(line, type=Prefill | Decode | Memory):
            case Prefill(tokens=tokens):
                _write(answers, Measured(elapsed_s=_prefill(model, tokens)))
            case Decode(tokens=tokens):
                _write(answers, Measured(elapsed_s=_decode(model, tokens)))
            case Memory():
                _write(answers, Peak(peak_memory_bytes=peak_memory_bytes()))


def _prefill(model: LanguageModel, count: int) -> float:
    """Return the seconds from a prompt to the first token after it."""
    session, prompt = model.session(), prompt_tokens(count, model.config.vocab_size)
    return _seconds(lambda: session.next_logits(prompt).argmax())


def _decode(model: LanguageModel, count: int) -> float:
    """Return the seconds of `count` steps: append a token, choose the likeliest that follows. No token ends them."""
    session = model.session()
    token = int(session.next_logits(prompt_tokens(CONTEXT, model.config.vocab_size)).argmax())

    def steps() -> None:
        nonlocal token
        for _ in range(count):
            token = int(session.next_logits((token,)).argmax())

    return _seconds(steps)


def prompt_tokens(count: int, vocab_size: int) -> list[int]:
    """Return always the same tokens: numbers are of a model that was never asked anything, and no tokenizer is read."""
    import numpy as np

    found: list[int] = np.random.Generator(np.random.PCG64(0)).integers(0, vocab_size, count).tolist()
    return found


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


class _Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
