"""Every exception that zeropoint raises on purpose.

    ZeropointError
    ├── InputError               the user's input; exit code 2
    │   ├── CheckpointError      a model folder or file that cannot be read as one
    │   ├── ArchitectureError    a model_type or a config value that no file in models/ covers
    │   ├── RecipeError          an unknown key, a value out of range, a file that is no recipe
    │   ├── SchemeError          a scheme that the tensor or the target format cannot hold
    │   ├── NonFiniteError       NaN or infinity in a weight or in the statistics, with the tensor's name
    │   ├── TextError            calibration or judging text that is missing, empty or too short
    │   └── OutputError          the output exists already, or there is no space or no right to write it
    ├── InternalError            a promise of our own that did not hold; exit code 3
    └── ProcessError             a process that we started to measure something died; exit code 3

A message says what was got, where, what is allowed and what to do. What was got may be hostile, so a message is made
fit for a terminal: what cannot be printed is spelled, and the middle of a very long one is left out. `exit_code` is
what the command line returns.
"""

from __future__ import annotations

MAX_CHARS = 2000


class ZeropointError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 3

    def __init__(self, message: str = "") -> None:
        super().__init__(_fit(message))


def _fit(message: str) -> str:
    """Return the message in printable characters, and not too many."""
    if len(message) > MAX_CHARS:
        message = f"{message[: MAX_CHARS // 2]} [...] {message[-MAX_CHARS // 2 :]}"
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)


class InputError(ZeropointError):
    """Something the user gave is wrong, and the message says what to give instead."""

    exit_code = 2


class CheckpointError(InputError):
    """A model folder or file is missing, truncated, inconsistent or of a kind that is never opened."""


class ArchitectureError(InputError):
    """The model's architecture, or a value in its config, is not covered."""


class RecipeError(InputError):
    """A recipe has an unknown key or a value that is not allowed."""


class SchemeError(InputError):
    """The scheme does not fit the tensor or cannot be stored in the target format."""


class NonFiniteError(InputError):
    """NaN or infinity where only finite numbers can be quantized."""


class TextError(InputError):
    """A text for calibration or judging is missing, empty or shorter than one window."""


class OutputError(InputError):
    """The output cannot be written: it exists, the disk is full, or writing is not permitted."""


class InternalError(ZeropointError):
    """A check on our own result failed; the output was not written."""


class ProcessError(ZeropointError):
    """A process that was started to measure something ended before it was done."""
