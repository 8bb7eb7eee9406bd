"""A quantized folder becomes a GGUF file by the command line, and is spoken with as that file."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cli import zeropoint
from tiny import quantized


def test_an_exported_file_is_spoken_with_and_a_second_export_is_refused(tmp_path: Path) -> None:
    folder, file = quantized(tmp_path), tmp_path / "m.gguf"
    done = zeropoint("export", folder, "--format", "gguf", "--output", file, "--json")
    assert (done.returncode, json.loads(done.stdout)["types"]) == (0, {"F32": 6, "Q4_0": 14}), done.stderr
    texts = [
        zeropoint("generate", model, "--prompt", "one two", "--max-tokens", "8", "--activations", "float").stdout
        for model in (folder, file)
    ]
    assert texts[0] == texts[1] != ""
    again = zeropoint("export", folder, "--format", "gguf", "--output", file)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.endswith("exists already; give another output, or --overwrite to replace it\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model", "quantized"]
