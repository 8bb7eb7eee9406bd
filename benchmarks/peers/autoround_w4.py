"""AutoRound, 4 bits in groups of 64, symmetric: its folder, and one JSON line with the seconds.

PYTHON benchmarks/peers/autoround_w4.py MODEL OUT --calibration FILE [--samples 128] [--iters 200] [--blocks N]

--blocks keeps only the first blocks of the model: AutoRound works block by block, and its time is in proportion.
"""

from __future__ import annotations

import json
import time

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import parser, windows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--iters", type=int, default=200)
    options.add_argument("--blocks", type=int)
    arguments = options.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    blocks = len(model.model.layers)
    if arguments.blocks is not None:
        model.model.layers = model.model.layers[: arguments.blocks]
        model.config.num_hidden_layers = arguments.blocks
    tokens = torch.tensor(windows(arguments))
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(arguments.model),
        bits=4,
        group_size=64,
        sym=True,
        iters=arguments.iters,
        nsamples=arguments.samples,
        seqlen=tokens.shape[1],
        dataset=[{"input_ids": w[None], "attention_mask": torch.ones_like(w[None])} for w in tokens],
        device_map="cpu",
        amp=False,  # bfloat16 is many times slower without AVX-512
    )
    started_s = time.perf_counter()
    rounding.quantize()
    seconds = time.perf_counter() - started_s
    if arguments.blocks is None:
        rounding.save_quantized(arguments.out, format="auto_round")
    print(json.dumps({"tool": "auto-round", "seconds": seconds, "blocks": arguments.blocks or blocks, "of": blocks}))


if __name__ == "__main__":
    main()
