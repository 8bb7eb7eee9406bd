"""The process that renders chat templates; see rendering.py, which starts it.

It imports jinja2 and what comes with Python, and nothing of zeropoint: it starts quickly and is small.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template


class RefusedError(Exception):
    """What a template says when it calls raise_exception."""


def serve(requests: BinaryIO, replies: BinaryIO, seconds: float, memory_bytes: int) -> None:
    """Answer requests until there are no more. seconds: for each. memory_bytes: of the process."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for request in requests:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the signal ends the process, whatever it is doing
        reply = json.dumps(_answer(**json.loads(request))).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply + b"\n")
        replies.flush()


def _answer(source: str, variables: dict[str, Any]) -> dict[str, str]:
    from jinja2.exceptions import TemplateError

    try:
        text = _compile(source).render(variables)
        text.encode()  # a lone surrogate is no text
    except RefusedError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"broken": "it needs too much memory"}
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        AssertionError,
        RecursionError,
        SyntaxError,
    ) as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    return {"text": text}


@functools.lru_cache(maxsize=2)
def _compile(source: str) -> Template:
    """Return a template in an environment like transformers': sandboxed, because a template is a stranger's code."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the assistant said, for training; it renders as what is inside."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own attribute

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise RefusedError(message)

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:  # jinja2's own filter escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions = [Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(source)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    with os.fdopen(0, "rb") as stdin, os.fdopen(1, "wb") as stdout:
        serve(stdin, stdout, float(sys.argv[2]), int(sys.argv[3]))
