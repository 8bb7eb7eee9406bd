"""GPTQModel, 4 bits in groups of 64, symmetric: its folder, and one JSON line with the seconds.

PYTHON benchmarks/peers/gptqmodel_w4.py MODEL OUT --calibration FILE [--samples 128] [--bits 4] [--asymmetric]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from gptqmodel import GPTQModel, QuantizeConfig
from windows import windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--asymmetric", action="store_true")
    arguments = parser.parse_args()
    texts = [{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows(arguments)]
    config = QuantizeConfig(bits=arguments.bits, group_size=64, sym=not arguments.asymmetric, device="cpu")
    model = GPTQModel.load(arguments.model, config)
    started_s = time.perf_counter()
    model.quantize(texts, batch_size=4)
    seconds = time.perf_counter() - started_s
    model.save(arguments.out)
    print(json.dumps({"tool": "gptqmodel", "seconds": seconds}))


if __name__ == "__main__":
    main()
