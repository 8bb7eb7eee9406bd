from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests are many small computations: a second thread costs more than it gives, and both cores may run tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests that send it would
# wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT_BYTES = 1 << 16


@pytest.fixture(autouse=True, scope="session")
def short_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundled texts cut short: a tiny model wants a few windows, and a second is spent on tokens otherwise."""
    from zeropoint.observe import data

    folder, whole = tmp_path_factory.mktemp("texts"), data.TEXTS
    for text in whole.glob("*.txt"):
        content = text.read_bytes()[:TEXT_BYTES]
        (folder / text.name).write_bytes(content[: content.rindex(b"\n")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "TEXTS", folder)
        yield folder


@pytest.fixture(autouse=True, scope="session")
def verified_in_this_process() -> Iterator[None]:
    """Verification of what the tests' own process quantizes: the same checks, without a fresh process for each.

    That the process is a fresh one is seen by the tests in e2e, which run the command.
    """
    from zeropoint import pipeline, verification

    def verified(folder: Path, *, max_memory_bytes: int | None = None) -> object:
        return verification.verify(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "verify_apart", verified)
        yield
