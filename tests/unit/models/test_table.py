"""The table of docs/models.md is what the files say; `python tests/unit/models/test_table.py` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from zeropoint import find
from zeropoint.checkpoint.gguf_architectures import FOLDER
from zeropoint.exporting._gguf_metadata import ARCHITECTURES as WRITTEN_TO_GGUF
from zeropoint.models import load_model
from zeropoint.transforms.rotate import why_not

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"
HEAD = (
    "| `model_type` | what it is | smoothquant, awq: not the inputs of | rotate: stream, heads "
    "| .gguf read, written | run with |"
)
REAL = {"llama": "SmolLM2-135M"}
"""Models with real weights that were quantized, judged and spoken with; the others are random in the tests."""

READ_FROM_GGUF = {each.model_type for name in find.names(FOLDER) for each in find.load(FOLDER, name).ARCHITECTURES}
READ_AS = {"mistral": "as llama"}
"""What a .gguf file does not tell from another architecture."""

CONFIG = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 260, "moe_intermediate_size": 32, "ffn_dim": 32,
}  # fmt: skip


def row(name: str) -> str:
    """The line of one file."""
    module = find.load("models", name)
    model = load_model({**CONFIG, "model_type": name})
    said = re.split(r"\n\n", module.__doc__, maxsplit=1)[0].rstrip(".")
    unscaled = sorted({plain for stage in model.flow if stage.fed_by is None for plain in map(short, stage.linears)})
    turned = ["no" if why_not(model.flow) else "yes", "yes" if any(stage.values for stage in model.flow) else "no"]
    read = READ_AS.get(name, "yes" if name in READ_FROM_GGUF else "no")
    gguf = [read, "yes" if name in WRITTEN_TO_GGUF else "no"]
    real = REAL.get(name, "random weights")
    cells = [f"`{name}`", said, ", ".join(unscaled) or "-", ", ".join(turned), ", ".join(gguf), real]
    return f"| {' | '.join(cells)} |"


def short(linear: str) -> str:
    """The name of a linear, without the number of an expert."""
    return (
        re.sub(r".*[.]experts[.]\d+[.]", "experts.*.", linear) if ".experts." in linear else linear.rpartition(".")[2]
    )


def table() -> list[str]:
    """The lines of the table."""
    return [HEAD, "|---|---|---|---|---|---|", *(row(name) for name in find.names("models"))]


def written(text: str) -> str:
    """The table in the document."""
    start = text.index(HEAD)
    return text[start : text.index("\n\n", start)]


def test_the_table_is_that_of_the_files() -> None:
    assert written(DOCUMENT.read_text(encoding="utf-8")).splitlines() == table(), f"run python {__file__}"


def test_what_the_table_says_of_a_model_is_so() -> None:
    """Nothing of it is by accident: one row by hand."""
    assert "gate_proj, k_proj, q_proj, up_proj, v_proj | no, yes | yes, no | random weights |" in row("olmo2")
    assert "| - | yes, yes | yes, yes | SmolLM2-135M |" in row("llama")


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(written(text), "\n".join(table())), encoding="utf-8")
