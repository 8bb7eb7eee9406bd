"""zeropoint: post-training quantization of language models, from a checkpoint to a small, fast, verified model.

    import zeropoint

    zeropoint.quantize("SmolLM2-135M", "SmolLM2-w4", recipe="w4a16")
    zeropoint.evaluate("SmolLM2-w4", reference="SmolLM2-135M", text="held-out.txt")
    zeropoint.load("SmolLM2-w4").generate("The capital of France is")
    zeropoint.export("SmolLM2-w4", "SmolLM2-w4.gguf", format="gguf")

Importing zeropoint imports no torch; the first call that computes does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zeropoint.errors import InputError, ZeropointError
from zeropoint.types import QParams, QTensor, Scheme

if TYPE_CHECKING:
    from zeropoint.anatomy import inspect_tensor
    from zeropoint.budget.run import budget, quantize_within
    from zeropoint.comparison import compare
    from zeropoint.evaluation.run import evaluate
    from zeropoint.evaluation.speed import bench
    from zeropoint.exporting.run import export
    from zeropoint.inspection import inspect
    from zeropoint.laboratory import inspect_inputs
    from zeropoint.pipeline import quantize
    from zeropoint.planning.plan import plan
    from zeropoint.recipe import Recipe, load_recipe
    from zeropoint.report.page import write_report
    from zeropoint.runtime.generate import LanguageModel, load
    from zeropoint.verification import verify

__version__ = "0.1.0"

_LAZY = {
    "quantize": "zeropoint.pipeline",
    "evaluate": "zeropoint.evaluation.run",
    "compare": "zeropoint.comparison",
    "bench": "zeropoint.evaluation.speed",
    "budget": "zeropoint.budget.run",
    "quantize_within": "zeropoint.budget.run",
    "export": "zeropoint.exporting.run",
    "inspect": "zeropoint.inspection",
    "inspect_inputs": "zeropoint.laboratory",
    "inspect_tensor": "zeropoint.anatomy",
    "load": "zeropoint.runtime.generate",
    "LanguageModel": "zeropoint.runtime.generate",
    "Recipe": "zeropoint.recipe",
    "load_recipe": "zeropoint.recipe",
    "plan": "zeropoint.planning.plan",
    "verify": "zeropoint.verification",
    "write_report": "zeropoint.report.page",
}

__all__ = [
    "InputError",
    "LanguageModel",
    "QParams",
    "QTensor",
    "Recipe",
    "Scheme",
    "ZeropointError",
    "bench",
    "budget",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "inspect_inputs",
    "inspect_tensor",
    "load",
    "load_recipe",
    "plan",
    "quantize",
    "quantize_within",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zeropoint' has no attribute {name!r}")
