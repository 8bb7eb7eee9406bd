"""Decode and prefill of zeropoint beside other engines, each in a process of its own, in turns. Last line: JSON.

    python benchmarks/generate.py FLOAT --quantized W4 [--gguf FILE ...] [--llama-python PYTHON] [--no-extra-bufts]
    python benchmarks/generate.py --make-1b FOLDER      first, for the shape of TinyLlama 1.1B
    python benchmarks/generate.py FLOAT --make-gguf Q4_0 Q8_0        first, for llama.cpp: FLOAT-Q4_0.gguf and so on

FLOAT is a folder, and W4 what `zeropoint quantize` made of it; without --quantized it is made into a temporary folder,
rounded to nearest. Every engine is measured once in each round: 512 tokens of prefill, then 128 tokens after 32. Peak
memory is that of its process. A ratio is to the first row, ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from origin import origin
from random_model import TINYLLAMA, write_gguf, write_llama
from turns import Runs, in_turns
from zeropoint import _native
from zeropoint.errors import ProcessError
from zeropoint.evaluation.speed_process import (
    CONTEXT,
    Decode,
    Loaded,
    Measured,
    Memory,
    Model,
    ModelProcess,
    NativeLoaded,
    Peak,
    Prefill,
    engine_process,
    model_process,
)

PREFILL, DECODE = 512, 128
RTN = ("--set", "rounding=rtn", "--set", "range=minmax")
PEER = Path(__file__).with_name("peer.py")
STREAM_BYTES = 512 << 20

Embeddings = Literal["stored", "int8"]


@dataclass(frozen=True)
class Engine:
    """One row. start: returns the context in which its process runs. native: it is ours."""

    name: str
    start: Callable[[], Any]
    native: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", metavar="FLOAT")
    parser.add_argument("--quantized", type=Path, metavar="W4")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--no-extra-bufts", action="store_true", help="llama.cpp without its AMX buffers")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="rows that begin so are left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--make-1b", type=Path, metavar="FOLDER", help="write a random 1.1B model and stop")
    parser.add_argument("--make-gguf", nargs="+", default=[], metavar="TYPE", help="write FLOAT-TYPE.gguf and stop")
    arguments = parser.parse_args()
    if arguments.make_1b is not None:
        quantize(write_llama(arguments.make_1b, TINYLLAMA), beside(arguments.make_1b, "w4"))
        return
    if arguments.model is None:
        parser.error("give FLOAT, the folder of a model, or --make-1b FOLDER")
    for kind in arguments.make_gguf:
        print(write_gguf(beside(arguments.model, f"{kind}.gguf"), arguments.model, kind))
    if arguments.make_gguf:
        return
    with tempfile.TemporaryDirectory() as scratch:
        quantized = arguments.quantized or quantize(arguments.model, Path(scratch) / "w4")
        skip = tuple(arguments.skip)
        measure([each for each in engines(arguments, quantized) if not each.name.startswith(skip)], arguments)


def beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}-{ending}")


def quantize(model: Path, output: Path) -> Path:
    """Round to nearest in groups of 64: as fast as any other rounding of the same format."""
    if not output.exists():
        command = [sys.executable, "-m", "zeropoint", "quantize", str(model), "--output", str(output), *RTN]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output


# The rows


def engines(arguments: argparse.Namespace, quantized: Path) -> list[Engine]:
    threads: int = arguments.threads
    found = [
        ours("zeropoint w4a16, int8 embeddings", quantized, threads, "int8"),
        ours("zeropoint w4a16", quantized, threads, "stored"),
        ours("zeropoint bf16", arguments.model, threads, "stored"),
        peer("transformers bf16", sys.executable, ["transformers", arguments.model, "--dtype", "bfloat16"], threads),
        peer("transformers fp32", sys.executable, ["transformers", arguments.model, "--dtype", "float32"], threads),
    ]
    extra = ["--no-extra-bufts"] if arguments.no_extra_bufts else []
    for path in arguments.gguf:
        found.append(peer(f"llama.cpp {path.stem}", arguments.llama_python, ["llama", path, *extra], threads))
    return found


def ours(name: str, path: Path, threads: int, embeddings: Embeddings) -> Engine:
    positions = max(PREFILL, CONTEXT + DECODE)
    model = Model(path=str(path), threads=threads, embeddings=embeddings, activations="int8", positions=positions)
    return Engine(name, lambda: model_process(model), native=True)


def peer(name: str, python: str, options: list[object], threads: int) -> Engine:
    command = [python, str(PEER), *map(str, options), "--threads", str(threads)]
    return Engine(name, lambda: engine_process(name, command, Loaded))


# Measuring


@dataclass
class Started:
    """An engine that has loaded. loaded: NativeLoaded of ours, Loaded of others."""

    engine: Engine
    process: ModelProcess
    loaded: Any

    def speed(self, request: Prefill | Decode) -> float:
        """Return tokens per second."""
        return request.tokens / self.process.ask(request, Measured).elapsed_s


def measure(found: list[Engine], arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        started, left_out = start(found, stack)
        if not started:
            raise SystemExit("no engine could be started")
        rates: dict[str, Callable[[], float]] = {"stream": lambda: stream(arguments.threads)}
        for each in started:
            rates[f"prefill {each.engine.name}"] = lambda each=each: each.speed(Prefill(tokens=PREFILL))
        for each in started:
            rates[f"decode {each.engine.name}"] = lambda each=each: each.speed(Decode(tokens=DECODE))
        runs = in_turns(rates, arguments.rounds)
        rows = [row_of(each, started[0], runs) for each in started]
    stream_rate = runs["stream"].median
    print(f"{'':34} {'decode':>8} {'of ours':>8} {'of limit':>8} {'prefill':>8} {'of ours':>8} {'MB':>7}")
    for row in rows:
        share = "" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.1%}"
        print(
            f"{row['engine']:34} {row['decode']['median']:8.1f} {row['decode']['ratio']:8.3f} {share:>8} "
            f"{row['prefill']['median']:8.1f} {row['prefill']['ratio']:8.3f} {row['peak_memory_bytes'] / 1e6:7.0f}"
        )
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"streaming bandwidth {stream_rate / 1e9:.1f} GB/s, {_native.isa()}, {arguments.threads} threads")
    document = {"model": str(arguments.model), "isa": _native.isa(), "threads": arguments.threads, **origin()}
    document |= {"rounds": arguments.rounds, "stream_bytes_per_s": stream_rate, "left_out": left_out, "rows": rows}
    print(json.dumps(document))


def start(found: list[Engine], stack: ExitStack) -> tuple[list[Started], dict[str, str]]:
    """Return those that load, and of the others why they do not: an engine that is not installed is no row."""
    started: list[Started] = []
    left_out: dict[str, str] = {}
    for engine in found:
        try:
            started.append(Started(engine, *stack.enter_context(engine.start())))
        except ProcessError as error:
            if engine.native:
                raise
            left_out[engine.name] = str(error)
    return started, left_out


def stream(threads: int) -> float:
    return float(_native.Pool(threads).stream(STREAM_BYTES, 3))


def row_of(each: Started, first: Started, runs: Mapping[str, Runs]) -> dict[str, Any]:
    share = None
    if isinstance(each.loaded, NativeLoaded):
        read = each.loaded.token_bytes + each.loaded.cache_token_bytes * (CONTEXT + (DECODE + 1) / 2)
        share = runs[f"decode {each.engine.name}"].over(runs["stream"])[0] * read
    return {
        "engine": each.engine.name,
        "decode": rate_of("decode", each, first, runs),
        "prefill": rate_of("prefill", each, first, runs),
        "bandwidth_share": share,
        "peak_memory_bytes": each.process.ask(Memory(), Peak).peak_memory_bytes,
        "load_s": each.loaded.load_s,
        "first_token_s": each.process.first_token_s,
    }


def rate_of(what: str, each: Started, first: Started, runs: Mapping[str, Runs]) -> dict[str, float]:
    """Return tokens per second, and the ratio to the first row with its lowest and highest of a round."""
    own = runs[f"{what} {each.engine.name}"]
    ratio, low, high = own.over(runs[f"{what} {first.engine.name}"])
    spread = {"median": own.median, "low": min(own.values), "high": max(own.values)}
    return {**spread, "ratio": ratio, "ratio_low": low, "ratio_high": high}


if __name__ == "__main__":
    main()
