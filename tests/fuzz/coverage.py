"""The same readers, with bytes that atheris finds by what they reach: python -m fuzz.coverage --seconds 120."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris


def main() -> int:
    """Give every target its share of the time, each in a child; return 1 if any failed."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    parser = argparse.ArgumentParser(prog="python -m fuzz.coverage")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs that fail are written")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["zeropoint", "tomllib", "json"]):
        from fuzz import seeds
        from fuzz.run import Bench
        from fuzz.targets import TARGETS, faults
    options.keep.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory(prefix="zeropoint-fuzz-") as root:
        bench = Bench(seeds.make(Path(root) / "seeds"), 0)
        for target in TARGETS:
            corpus = Path(root) / "corpus" / target.name
            corpus.mkdir(parents=True)
            for index, seed in enumerate(bench.seeds_of(target)):
                (corpus / str(index)).write_bytes(seed)

            def read(data: bytes, target: object = target) -> None:
                folder = bench.put(target, data)
                _, wrong = faults(target, folder)
                if wrong:
                    raise AssertionError(wrong)

            child = os.fork()
            if not child:
                limits = ["-timeout=10", "-rss_limit_mb=3000", "-seed=1", "-max_len=100000", "-print_final_stats=0"]
                share = f"-max_total_time={max(1, round(options.seconds / len(TARGETS)))}"
                atheris.Setup(
                    [sys.argv[0], *limits, share, f"-artifact_prefix={options.keep}/{target.name}-", str(corpus)], read
                )
                atheris.Fuzz()
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                failed.append(target.name)
    print(f"{len(TARGETS)} targets, failed: {', '.join(failed) or 'none'}; inputs that fail are in {options.keep}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
