"""A small model with its embedding in integers, by the command line alone: made, judged, looked at, and speaking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.cli import SMALL, zeropoint
from tiny import make_llama

NEAREST = ("--set", "rounding=rtn", "--set", "range=minmax")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_with_an_int8_embedding_is_smaller_as_good_and_speaks(tied: bool, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", tied=tied, dtype="bfloat16")
    text = tmp_path / "text.txt"
    text.write_text("The miller kept three cats, and the cats kept the mill free of mice. " * 20)
    judged = {}
    for kind in ("stored", "int8"):
        made = zeropoint("quantize", model, "-o", tmp_path / kind, *SMALL, *NEAREST, "--embeddings", kind, "--json")
        assert made.returncode == 0, made.stderr
        told = "transformers opens the model, vLLM has no such embedding" in made.stderr
        assert told == (kind == "int8") == (json.loads(made.stdout)["format_note"] is not None)
        options = ("--reference", model, "--text", text, "--length", "32", "--max-windows", "4", "--json")
        found = zeropoint("evaluate", tmp_path / kind, *options)
        assert found.returncode == 0, found.stderr
        judged[kind] = json.loads(found.stdout)
    sizes = {kind: (tmp_path / kind / "model.safetensors").stat().st_size for kind in judged}
    assert sizes["int8"] < sizes["stored"] - 300 * 64 * 0.9 * (1 if tied else 2)
    assert judged["int8"]["embeddings"] == "int8"
    assert judged["int8"]["kl_mean"] < judged["stored"]["kl_mean"] * 1.5
    shown = zeropoint("inspect", tmp_path / "int8", "--headers")
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if "300 x 64" in line}
    assert set(rows) == {"model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])}
    assert all("int8 channel sym" in row for row in rows.values())
    spoken = zeropoint("generate", tmp_path / "int8", "--prompt", "The miller kept", "--max-tokens", "5")
    assert spoken.returncode == 0, spoken.stderr
