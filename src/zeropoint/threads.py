"""Many small tensor operations side by side, each on one thread.

Two threads inside a small operation wait for one another more than they work: up to ten times slower beside another
busy process (docs/log.md). And what one thread computes does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


@contextmanager
def a_thread_each(most: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of as many workers as torch has threads, at most `most`; they compute on one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, most or threads)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def map_each(pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """Return function(item) of every item, in order, computed by the pool in inference mode."""

    def call(item: In) -> Out:
        with torch.inference_mode():  # holds for one thread only
            return function(item)

    return list(pool.map(call, items))
