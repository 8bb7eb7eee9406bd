"""Records with everything that a page can show, for the tests of report/page.py and those in a browser."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from unit.evaluation.made import benchmark, evaluation, quantization, size
from zeropoint.evaluation.budgets import BUDGET, Asked, Attempt, Budgeted, CurvePoint
from zeropoint.evaluation.results import (
    BENCH,
    MANIFEST,
    RECORD,
    RESULTS,
    Bar,
    Channel,
    Evaluation,
    GainRow,
    LayerRow,
    Manifest,
    Passage,
    Plan,
    PlanStage,
    Probe,
    QuantizeResult,
    RefineRow,
    Spreading,
    StageRow,
    Successor,
    Sufficiency,
    TransformRow,
    Verification,
)

KINDS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}{% x %}<!--\u2028\u2029\x00\x1b[31m\u202e\"'`${1}&lt;"


def bell(count: int, low: float, high: float, total: int) -> tuple[Bar, ...]:
    """Bars of a normal distribution over [low, high), each of a whole number."""
    width = (high - low) / count
    middles = [low + (index + 0.5) * width for index in range(count)]
    heights = [math.exp(-0.5 * (8 * middle / (high - low)) ** 2) for middle in middles]
    return tuple(
        Bar(low=low + index * width, high=low + (index + 1) * width, count=round(total * height / sum(heights)))
        for index, height in enumerate(heights)
    )


def spreading(seed: int = 0, *, bits: int = 4, bars: int = 64) -> Spreading:
    """What a layer might look like; every seed gives other numbers, of as many digits as real ones have."""
    high = 0.31415926 + seed * 0.0012345
    lowest, count = -(2 ** (bits - 1)), 2**bits
    return Spreading(
        weights=bell(bars, -high, high, 331_776 + seed),
        code_low=lowest,
        codes=tuple(
            round((40_000 + seed) * math.exp(-0.5 * (5 * (lowest + code) / count) ** 2)) for code in range(count)
        ),
        clipped_error=0.000123 + seed * 1e-6,
        rounded_error=0.00456 + seed * 1e-5,
        inputs=bell(bars, -7.123 - seed / 100, 9.876 + seed / 100, 1_048_576 + seed),
        loud=tuple(Channel(index=17 * (place + 1) + seed, ratio=43.21 / (place + 1)) for place in range(8)),
    )


def layers(blocks: int, *, bits: int = 4, bars: int = 64, seed: int = 0) -> tuple[LayerRow, ...]:
    names = [f"model.layers.{block}.{kind}" for block in range(blocks) for kind in KINDS]
    return tuple(
        LayerRow(
            name=name,
            kind=name.rpartition(".")[2],
            shape=(576, 1536),
            scheme=f"int{bits} g64 sym",
            rounding="rtn" if index == 5 else "gptq",
            fallback="rtn: the Hessian is not definite" if index == 5 else None,
            sqnr_db=18.0 + (index + seed) % 13 / 2,
            cosine=0.99 - index / 1e5,
            output_error=2e-4 * 1.6 ** ((7 * index + seed) % 11) / (1 + index / 20),
            spreading=spreading(index + seed, bits=bits, bars=bars),
        )
        for index, name in enumerate(names)
    )


def record(blocks: int = 4, *, bits: int = 4, bars: int = 64, seed: int = 0) -> QuantizeResult:
    """A quantization with a plan, gains, transforms, a refinement, sufficiency and a verification."""
    made = quantization(1)
    recipe = {
        "name": f"w{bits}a16",
        "weights": {"bits": bits, "group_size": 64},
        "range": {"method": "mse"},
        "rounding": {"method": "gptq", "damping": 0.01},
        "rules": [{"layers": ["*.down_proj"], "range": {"method": "minmax"}}],
    }
    plan = Plan(
        zeropoint="0.1.0",
        model=made.model,
        model_type="llama",
        recipe=recipe,
        rows=(),
        size=size(),
        source_bytes=made.source_bytes,
        peak_memory_bytes=1_000_000_000,
        peak_phase="block",
        peak_needs={"block": 1_000_000_000},
        least_memory_bytes=500_000_000,
        max_memory_bytes=None,
        spilled_bytes=0,
        disk_bytes=226_000_000,
        stages=(PlanStage(stage="gptq", seconds=80.0), PlanStage(stage="read, write, verify", seconds=12.5)),
        elapsed_s=92.5,
        token_bytes=86_000_000,
        bandwidth_bytes_per_s=29.1e9,
        loads="zeropoint, vLLM and transformers load it",
        notes=(),
    )
    return msgspec.structs.replace(
        made,
        recipe=recipe,
        layers=layers(blocks, bits=bits, bars=bars, seed=seed),
        transforms=(
            TransformRow(
                block="model.layers.0",
                method="smoothquant",
                stages=(StageRow(linears=("self_attn.q_proj", "self_attn.k_proj"), strength=0.65),),
                error_before=2e-3,
                error_after=5e-4,
            ),
        ),
        refined=(
            RefineRow(block="model.layers.0", method="descent", error_before=0.0123, error_after=0.0071, steps=40),
        ),
        gains=(
            GainRow(stage="nearest", kl=0.463, seconds=None),
            GainRow(stage="gptq", kl=0.159, seconds=61.0),
            GainRow(stage="descent", kl=0.131, seconds=95.0),
        ),
        held_out_tokens=2048,
        sufficiency=tuple(
            Sufficiency(layer=f"model.layers.{block}.{kind}", disagreement=0.031 + 0.002 * block + 0.001 * place)
            for block in range(blocks)
            for place, kind in enumerate(("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"))
        ),
        plan=plan,
        verification=Verification(
            tensors=94, size_bytes=113_000_000, difference=1.04e-6, problems=(), loads="zeropoint and vLLM load it"
        ),
    )


def judged(**changes: object) -> Evaluation:
    """An evaluation with the distribution of KL and its worst passages."""
    counts = [12, 40, 160, 620, 1900, 4400, 7300, 7900, 5100, 2300, 700, 180, 40, 7, 1]
    bars = [Bar(low=0.0, high=1e-6, count=5)]
    bars += [Bar(low=1e-6 * 2.5**step, high=1e-6 * 2.5 ** (step + 1), count=count) for step, count in enumerate(counts)]
    passages = tuple(
        Passage(
            window=3 + place,
            position=101 * (place + 1),
            kl=1.75 / (place + 1),
            before="The command line is parsed by a function\nthat is called with a list of arguments, and returns",
            actual=" the",
            likeliest=(
                Successor(token=" a", reference=0.612, quantized=0.187),
                Successor(token=" the", reference=0.201, quantized=0.095),
                Successor(token="\n", reference=0.034, quantized=0.441),
            ),
            reference=" a tuple of the options\nand the rest.",
            quantized="\n\n\n1.",
        )
        for place in range(4)
    )
    return evaluation(kl_bars=tuple(bars), passages=passages, **changes)


def budgeted() -> Budgeted:
    point = CurvePoint(
        size_bytes=113_000_000,
        bits=4.31,
        kl=0.0093,
        kl_low=0.007,
        kl_high=0.012,
        forms={"int4 g64 sym": 80_000_000, "int5 g64 sym": 26_168_320},
        embeddings="stored",
    )
    attempt = Attempt(
        point=point,
        factor=1.0,
        windows=48,
        tokens=24_528,
        kl=0.0101,
        kl_interval95=(0.0094, 0.0108),
        loss=0.0083,
        loss_interval95=(0.0072, 0.0094),
        kept="KEPT",
        looks=3,
        seconds=412.0,
    )
    return Budgeted(
        zeropoint="0.1.0",
        model="SmolLM2-135M",
        output="SmolLM2-w4",
        asked=Asked(max_loss=0.01),
        possible=True,
        says="the perplexity rises by 0.83 %, at most 0.94 %: the promise of 1 % is kept",
        verdict="KEPT",
        size_limit_bytes=None,
        attempts=(attempt,),
        size=size(),
        confidence=0.95,
        text="judge.txt",
        reused=False,
        elapsed_s=431.0,
    )


def manifest() -> Manifest:
    return Manifest(
        zeropoint="0.1.0",
        begun={},
        source={"model.safetensors": "ef" * 32},
        tensors={},
        files={"config.json": "01" * 32},
        probe=Probe(tokens=(1,), ids=((1,),), logprobs=((-0.5,),), spread=1.0),
    )


def folder(
    path: Path,
    made: QuantizeResult | None = None,
    found: Evaluation | None = None,
    *,
    everything: bool = False,
) -> Path:
    """A folder as `quantize` leaves it, without weights. everything: with the speed, the budget and the manifest."""
    path.mkdir(parents=True)
    (made or record()).save(path / RECORD)
    if found is not None:
        found.save(path / RESULTS)
    if everything:
        benchmark().save(path / BENCH)
        budgeted().save(path / BUDGET)
        manifest().save(path / MANIFEST)
    return path


def poisoned(blocks: int) -> QuantizeResult:
    """A quantization whose names are hostile, layers' and others'."""
    made = record(blocks)
    rows = tuple(
        msgspec.structs.replace(row, name=f"model.layers.{index}.{HOSTILE}", kind=HOSTILE, rounding=HOSTILE)
        for index, row in enumerate(made.layers)
    )
    names = {"model": HOSTILE, "output": HOSTILE, "machine": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    return msgspec.structs.replace(made, layers=rows, recipe={"name": HOSTILE, "__proto__": {"x": 1}}, **names)
