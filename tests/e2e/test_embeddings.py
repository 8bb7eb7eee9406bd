"""A small model with its embedding in integers, by the command line alone: made, judged, looked at, and speaking."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cli import SMALL, zeropoint
from tiny import make_llama

NEAREST = ("--set", "rounding=rtn", "--set", "range=minmax")


def test_a_model_with_an_int8_embedding_is_smaller_as_good_and_speaks(tmp_path: Path) -> None:
    model, output = make_llama(tmp_path / "model", dtype="bfloat16"), tmp_path / "int8"
    text = tmp_path / "text.txt"
    text.write_text("The miller kept three cats, and the cats kept the mill free of mice. " * 20)
    made = zeropoint("quantize", model, "-o", output, *SMALL, *NEAREST, "--embeddings", "int8", "--json")
    assert made.returncode == 0, made.stderr
    note = "embedding and head are in 8 bits: transformers opens the model, vLLM has no such embedding"
    assert json.loads(made.stdout)["format_note"] == note
    assert note in " ".join(made.stderr.split())
    found = zeropoint("evaluate", output, "--reference", model, "--text", text, "--length", "32", "--json")
    assert found.returncode == 0, found.stderr
    judged = json.loads(found.stdout)
    assert judged["embeddings"] == "int8"
    assert 0 < judged["kl_mean"] < 0.2
    assert judged["size"]["embedding_bytes"] + judged["size"]["head_bytes"] == 300 * (64 + 2 + 2)
    shown = zeropoint("inspect", output, "--headers")
    row = next(line for line in shown.stdout.splitlines() if line.startswith("model.embed_tokens.weight"))
    assert "int8 channel sym" in row
    spoken = zeropoint("generate", output, "--prompt", "The miller kept", "--max-tokens", "5")
    assert spoken.returncode == 0, spoken.stderr
