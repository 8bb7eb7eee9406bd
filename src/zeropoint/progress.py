"""How the library says where it is: it calls back with a `Progress`, and whoever called it decides what to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One step of a stage is finished, or, with done = 0, the stage begins.

    stage: what is being done, such as "quantize". done, total: steps of this stage, 0 <= done <= total; the steps take
    about the same time each, so that the time left can be told from them. detail: what the last step was about, such as
    "model.layers.3".
    """

    stage: str
    done: int
    total: int
    detail: str = ""


ProgressCallback: TypeAlias = Callable[[Progress], None]
