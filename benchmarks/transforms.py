"""What a transform does to the output error of single blocks. The last line is one JSON document.

    python benchmarks/transforms.py MODEL --calibration FILE [--blocks 0 5 15 29] [--samples 16]

The error is that of `zeropoint.transforms.trial`: mean over tokens of |y' - y|^2 / |y|^2, weights int8 per channel,
rounded to nearest, inputs int8 with one scale per token; over all windows, of which a search sees four. What enters
a block is the float model's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from origin import origin
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.models.parts import FloatBlock, State
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import calibration_batches
from zeropoint.observe.walk import look_ahead
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.transforms import smoothquant
from zeropoint.transforms.trial import Trial, trial_inputs
from zeropoint.types import InputScheme, Scheme

STRENGTHS = (0.5, 0.8, "search")
WEIGHTS, INPUTS = Scheme(8, True, "channel", None), InputScheme()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 5, 15, 29])
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    weights, ops = Weights(open_checkpoint(arguments.model)), TorchOps()
    text = calibration_batches(
        arguments.calibration,
        load_tokenizer(weights.checkpoint),
        samples=arguments.samples,
        length=512,
        seed=0,
        batch=4,
    )
    rows = []
    print(f"{'block':>5} {'none':>9} {'0.5':>9} {'0.8':>9} {'search':>9}  strengths found, seconds of the search")
    with torch.inference_mode(), Activations(limit_bytes=1 << 31) as activations:
        activations.extend(weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch))
        for index in range(max(arguments.blocks) + 1):
            block = float_block(weights, index)
            if index in arguments.blocks:
                rows.append(measure(index, block, weights, ops, activations))
            prepared = block.prepare(ops, weights.model.flow)
            activations.map(lambda state, run=prepared.run: State(run(weights.model.flow, state.x)))
    print(json.dumps({"model": str(arguments.model), **origin(), "rows": rows}))


def float_block(weights: Weights, index: int) -> FloatBlock:
    prefix = f"{weights.model.block_name(index)}."
    names = [name for name in weights.model.block_tensors(index) if name.removesuffix(".weight") not in weights.schemes]
    return weights.float_block(index, {name.removeprefix(prefix): torch.bfloat16 for name in names})


def measure(
    index: int, block: FloatBlock, weights: Weights, ops: TorchOps, activations: Activations
) -> dict[str, object]:
    flow = weights.model.flow
    names = [name for stage in flow for name in stage.linears]
    schemes, inputs = dict.fromkeys(names, WEIGHTS), dict.fromkeys(names, INPUTS)
    searched = Trial(block, flow, ops, trial_inputs(activations, seed=0), schemes, inputs)
    judged = Trial(block, flow, ops, [state.x for state in activations], schemes, inputs)
    stats = look_ahead(block.prepare(ops, flow), index, flow, activations, frozenset(smoothquant.NEEDS))
    row: dict[str, object] = {"block": index, "none": judged.error(block)}
    for strength in STRENGTHS:
        started_s = time.perf_counter()
        found = smoothquant.transform(block, flow, stats, smoothquant.Options(strength), searched.error)
        row |= {"seconds": time.perf_counter() - started_s, "strengths": [note.strength for note in found.notes]}
        row[str(strength)] = judged.error(found.block)
    errors = " ".join(f"{row[key]:9.3e}" for key in ("none", "0.5", "0.8", "search"))
    print(f"{index:5} {errors}  {row['strengths']}, {row['seconds']:.1f}", flush=True)
    return row


if __name__ == "__main__":
    main()
