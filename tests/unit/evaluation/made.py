"""Results as the commands make them, for the tests of `results` and of report/."""

from __future__ import annotations

from typing import Any

import msgspec

from zeropoint.evaluation.results import (
    Bench,
    Comparison,
    ComparisonRow,
    Evaluation,
    Inspection,
    LayerRow,
    ModelSpeed,
    QuantizeResult,
    Ratio,
    Size,
    Spread,
    StageRow,
    TensorRow,
    Text,
    TransformRow,
)

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
LOST: dict[str, Any] = {
    "kl_mean": 0.159,
    "kl_interval95": (0.1424, 0.1751),
    "perplexity": 17.755,
    "perplexity_ratio": 1.146,
    "ratio_interval95": (1.1312, 1.1609),
    "top1_agreement": 0.807,
    "top1_interval95": (0.802, 0.8121),
}
VERSIONS = {"python": "3.11.2", "torch": "2.13.0"}


def size(*, quantized: bool = True) -> Size:
    """The demo model's: 106,168,320 weights in linears, 28,311,552 in the embedding, which is the head too."""
    linears, scales = 106_168_320, 106_168_320 // 64 * 2
    codes = linears // 2
    rest = 56_623_104 + 70_272 + 20_000
    total = (codes + scales if quantized else 2 * linears) + rest
    return Size(
        total_bytes=total,
        linear_bytes=codes + scales if quantized else 0,
        code_bytes=codes if quantized else 0,
        scale_bytes=scales if quantized else 0,
        zero_point_bytes=0,
        float_linear_bytes=0 if quantized else 2 * linears,
        embedding_bytes=56_623_104,
        head_bytes=0,
        other_bytes=70_272,
        overhead_bytes=20_000,
        linear_weights=linears if quantized else 0,
        float_linear_weights=0 if quantized else linears,
        weights=134_515_008,
        bits_per_weight=4.25 if quantized else None,
        bits_per_weight_model=8 * total / 134_515_008,
    )


def layers(blocks: int = 30, *, fallbacks: int = 0) -> tuple[LayerRow, ...]:
    """Four linears for each block; the last o_proj is the worst. The first `fallbacks` took a rung."""
    names = [f"model.layers.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    return tuple(
        LayerRow(
            name=name,
            kind=name.rpartition(".")[2],
            shape=(576, 1536),
            scheme="int4 g64 sym",
            rounding="rtn" if index < fallbacks else "gptq",
            fallback="rtn: no calibration token reached it" if index < fallbacks else None,
            sqnr_db=18.0 + index % 7 / 2,
            cosine=0.99,
            output_error=0.09 if name == f"model.layers.{blocks - 1}.self_attn.o_proj" else 0.001 * (1 + index % 5),
        )
        for index, name in enumerate(names)
    )


def transforms(blocks: int = 30, *, fallback: str | None = None) -> tuple[TransformRow, ...]:
    """What a search of strengths might have found; every tenth block keeps its o_proj as it was."""
    return tuple(
        TransformRow(
            block=f"model.layers.{block}",
            method="smoothquant",
            stages=(
                StageRow(linears=("self_attn.q_proj", "self_attn.k_proj"), strength=(0.5, 0.8, 0.9)[block % 3]),
                StageRow(linears=("self_attn.o_proj",), strength=0.0 if block % 10 == 0 else 0.7, fallback=fallback),
            ),
            error_before=2e-3,
            error_after=(4e-4, 5e-4, 1e-3)[block % 3],
        )
        for block in range(blocks)
    )


def quantization(blocks: int = 30, *, fallbacks: int = 0, skipped: tuple[str, ...] = ()) -> QuantizeResult:
    return QuantizeResult(
        zeropoint="0.1.0",
        model="SmolLM2-135M",
        output="SmolLM2-w4",
        recipe={"name": "w4a16", "weights": {"bits": 4, "group_size": 64}},
        calibration=Text(name="calibration.txt", sha256="ab" * 32, windows=128, length=512, seed=0),
        layers=layers(blocks, fallbacks=fallbacks),
        skipped=skipped,
        size=size(),
        source_bytes=size(quantized=False).total_bytes,
        elapsed_s=103.4,
        peak_memory_bytes=1_100_000_000,
        spilled_bytes=0,
        versions=VERSIONS,
        machine="AMD EPYC, 2 cores, Linux x86_64",
    )


def evaluation(**changes: object) -> Evaluation:
    """An evaluation that is INCONCLUSIVE, with some fields replaced."""
    fields: dict[str, object] = {
        "zeropoint": "0.1.0",
        "model": "SmolLM2-w4",
        "reference": "SmolLM2-135M",
        "text": Text(name="held-out.txt", sha256="cd" * 32, windows=60, length=512),
        "tokens": 30_660,
        "verdict": "INCONCLUSIVE",
        "explanation": "The perplexity is 1.0123 times the reference's (95 % interval 1.0061 to 1.0185).",
        "margin": 0.01,
        "tokens_needed": 240_681,
        "perplexity": 15.684,
        "perplexity_reference": 15.493,
        "perplexity_ratio": 1.0123,
        "ratio_interval95": (1.0061, 1.0185),
        "kl_mean": 0.01234,
        "kl_interval95": (0.01101, 0.01367),
        "kl_p99": 0.0921,
        "kl_max": 1.75,
        "top1_agreement": 0.9312,
        "top1_interval95": (0.9251, 0.9373),
        "runtime": "native, avx2",
        "activations": "int8",
        "activations_kl": 0.00042,
        "size": size(),
        "size_reference": size(quantized=False),
        "elapsed_s": 61.2,
        "fallbacks": (),
        "versions": VERSIONS,
        "machine": "AMD EPYC, 2 cores, Linux x86_64",
    }
    return Evaluation(**{**fields, **changes})  # type: ignore[arg-type]


def inspection(*, measured: bool = True, compared: bool = True, blocks: int = 30) -> Inspection:
    rows = [
        TensorRow(
            name=f"model.layers.{block}.{kind}",
            kind=kind.rpartition(".")[2],
            role="linear",
            shape=(576, 1536),
            stored="int4 g64 sym",
            size_bytes=470_016,
            outlier_ratio=8.0 + block if measured else None,
            sqnr_db=19.5 if compared else None,
            cosine=0.98765 if compared else None,
            max_abs_error=0.01 if compared else None,
        )
        for block in range(blocks)
        for kind in KINDS
    ]
    table = TensorRow(
        name="model.embed_tokens.weight",
        kind="embed_tokens",
        role="embedding",
        shape=(49152, 576),
        stored="BF16",
        size_bytes=56_623_104,
    )
    return Inspection(
        path="SmolLM2-w4",
        reference="SmolLM2-135M" if compared else None,
        model_type="llama",
        tensors=(table, *rows),
        size=size(),
    )


def speed(model: str = "models/SmolLM2-w4", *, factor: float = 1.0) -> ModelSpeed:
    """A model, and with another factor one that is so many times slower and bigger."""

    def spread(median: float, low: float, high: float) -> Spread:
        return Spread(median=median / factor, low=low / factor, high=high / factor)

    return ModelSpeed(
        model=model,
        prefill_tokens_per_s=spread(5501.2, 5433.1, 5610.9),
        decode_tokens_per_s=spread(271.52, 260.0, 280.44),
        token_bytes=round(86_000_000 * factor),
        bandwidth_share=Spread(median=0.805, low=0.79, high=0.812),
        weight_bytes=round(85_000_000 * factor),
        peak_memory_bytes=round(150_000_000 * factor),
        load_s=0.2 * factor,
        first_token_s=0.5 * factor,
        embeddings="int8" if factor == 1 else "stored",
        kv_cache="int8" if factor == 1 else "float16",
        cache_token_bytes=12_240 if factor == 1 else 23_040,
    )


def benchmark(*, against: bool = True) -> Bench:
    return Bench(
        zeropoint="0.1.0",
        model=speed(),
        against=speed("models/SmolLM2-135M", factor=2) if against else None,
        prefill_ratio=Ratio(of_medians=2.0, low=1.9, high=2.1) if against else None,
        decode_ratio=Ratio(of_medians=2.0, low=1.95, high=2.04) if against else None,
        bandwidth_bytes_per_s=Spread(median=29.1e9, low=28.5e9, high=29.4e9),
        prompt_tokens=512,
        context_tokens=32,
        tokens=128,
        runs=5,
        threads=2,
        isa="amx",
        activations="int8",
        elapsed_s=61.2,
        versions=VERSIONS,
        machine="AMD EPYC 7763, 2 cores, Linux x86_64",
    )


def comparison(*, speeds: bool = True, **changes: object) -> Comparison:
    """The float model, a recipe, one that was reused and one that failed."""
    measured: dict[str, object] = {
        "prefill_tokens_per_s": speed().prefill_tokens_per_s,
        "decode_tokens_per_s": speed().decode_tokens_per_s,
        "peak_memory_bytes": 150_000_000,
    }
    rows = [
        ComparisonRow(name="SmolLM2-135M", size=size(quantized=False), perplexity=15.493),
        ComparisonRow(name="w4a16", recipe={"name": "w4a16"}, quantize_s=199.1, size=size(), **LOST),
        ComparisonRow(name="w8a8_static", recipe={"name": "x"}, reused=True, quantize_s=8.2, size=size(), **LOST),
    ]
    if speeds:
        rows = [msgspec.structs.replace(row, **measured) for row in rows]
    rows.append(ComparisonRow(name="wide", recipe={}, error="64 columns do not split into groups of 40"))
    fields: dict[str, object] = {
        "zeropoint": "0.1.0",
        "model": "models/SmolLM2-135M",
        "rows": tuple(rows),
        "text": Text(name="held-out.txt", sha256="cd" * 32, windows=32, length=512, note="32 of 178 windows"),
        "tokens": 16_352,
        "runtime": "native, avx2",
        "runs": 5 if speeds else 0,
        "prompt_tokens": 512,
        "tokens_decoded": 128,
        "context_tokens": 32,
        "threads": 2,
        "speed_error": None,
        "elapsed_s": 612.0,
        "versions": VERSIONS,
        "machine": "AMD EPYC, 2 cores, Linux x86_64",
    }
    return Comparison(**{**fields, **changes})  # type: ignore[arg-type]
