"""GPTQModel, 4 bits in groups of 64, symmetric: its folder, and one JSON line with the seconds.

PYTHON benchmarks/peers/gptqmodel_w4.py MODEL OUT --calibration FILE [--samples 128] [--bits 4] [--asymmetric]
"""

from __future__ import annotations

import json
import os
import time

from windows import parser, windows

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # by itself it starts one on two cores, and then refuses to run

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bits", type=int, default=4)
    options.add_argument("--asymmetric", action="store_true")
    arguments = options.parse_args()
    texts = [{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows(arguments)]
    config = QuantizeConfig(bits=arguments.bits, group_size=64, sym=not arguments.asymmetric, device="cpu")
    model = GPTQModel.load(arguments.model, config, dtype=torch.float32)  # bfloat16 is ten times slower without AVX-512
    started_s = time.perf_counter()
    model.quantize(texts, batch_size=4)
    seconds = time.perf_counter() - started_s
    model.save(arguments.out)
    print(json.dumps({"tool": "gptqmodel", "seconds": seconds}))


if __name__ == "__main__":
    main()
