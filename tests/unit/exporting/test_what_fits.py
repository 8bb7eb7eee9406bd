from __future__ import annotations

from pathlib import Path

from zeropoint import find
from zeropoint.exporting import _onnx_blocks, awq, gptq
from zeropoint.exporting._gguf_blocks import block_type
from zeropoint.types import Scheme

DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"

SCHEMES = [
    *(Scheme(bits, True, "group", 32) for bits in (2, 3, 4, 5, 8)),
    *(Scheme(4, True, "group", size) for size in (8, 16, 64)),
    *(Scheme(bits, True, "channel", None) for bits in (4, 8)),
    Scheme(4, True, "tensor", None),
    *(Scheme(4, False, "group", size) for size in (32, 64)),
    *(Scheme(bits, False, "group", 32) for bits in (5, 8)),
    Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256),
]


def row(scheme: Scheme) -> str:
    """The line of the document about a scheme, from what the targets say of a weight of (64, 256)."""
    shape = (64, 256)
    fits = ["no" if target.supports(scheme, shape) else "yes" for target in (gptq, awq)]
    onnx = f"{_onnx_blocks.stored_bits(scheme)} bits" if _onnx_blocks.block_of(scheme, shape[1])[0] else "no"
    return f"| {scheme.label()} | {block_type(scheme, shape[1])[0] or 'no'} | {' | '.join(fits)} | {onnx} |"


def test_the_table_of_what_fits_where_is_that_of_the_code() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    head = "| scheme | gguf | gptq | awq | onnx |"
    assert head in lines
    start = lines.index(head) + 2
    written = lines[start : lines.index("", start)]
    assert sorted(written) == sorted(map(row, SCHEMES))


def test_the_document_names_every_target() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in find.names("exporting"):
        assert name in text
