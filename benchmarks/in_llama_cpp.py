"""An exported GGUF file in llama.cpp itself, by the package cyllama: its tokens and logits beside those of zeropoint.

    python3 -m venv llama && llama/bin/pip install cyllama numpy
    python benchmarks/in_llama_cpp.py --llama llama/bin/python --model SmolLM2-135M [--recipe gguf_q4_0] [--tokens 256]

The model is quantized with --effort 0 and exported, unless --folder and --file name both already. llama.cpp runs in an
interpreter of its own, on the CPU, and reads the same text. What is compared is the next token's distribution:

    KL(zeropoint || llama.cpp)    zeropoint with float inputs and float32 keys and values: the weights as they are
    KL(float || each)             what quantization costs, for scale

llama.cpp rounds the inputs of linears to 8 bits in blocks of 32, so its logits are not ours to the last bit, whatever
the file holds. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import zeropoint
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.effort import load_at_effort
from zeropoint.observe.data import bundled_text
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.runtime.weights import Weights

# runs in the other interpreter: arguments are the model, the text, the number of tokens and where to put the result
FOREIGN = """
import sys
import cyllama
import numpy as np
from cyllama.llama import llama_cpp
model_file, text_file, count, output = sys.argv[1:]


class Model(llama_cpp.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)  # asked for by get_logits_ith, and missing


model = Model(model_file)
vocab = model.get_vocab()
text = open(text_file, encoding="utf-8").read()
tokens = vocab.tokenize(text, add_special=False, parse_special=True)[: int(count)]
settings = llama_cpp.LlamaContextParams()
settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(tokens))
settings.n_threads = settings.n_threads_batch = 1
context = llama_cpp.LlamaContext(model, settings)
batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
for position, token in enumerate(tokens):
    batch.add(token, position, [0], True)
context.decode(batch)
logits = np.array([context.get_logits_ith(position) for position in range(len(tokens))], np.float32)
np.savez(output, tokens=np.array(tokens), logits=logits, version="cyllama " + cyllama.__version__)
"""


def main() -> None:
    """Compare, print a few lines and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True, help="the interpreter that has cyllama")
    parser.add_argument("--model", type=Path, required=True, help="the float model")
    parser.add_argument("--recipe", default="gguf_q4_0")
    parser.add_argument("--folder", type=Path, help="the quantized model, if there is one already")
    parser.add_argument("--file", type=Path, help="its export")
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = options.folder or Path(scratch, "out"), options.file or Path(scratch, "out.gguf")
        if not folder.exists():
            zeropoint.quantize(options.model, folder, recipe=load_at_effort(options.recipe, 0, ()))
        if not file.exists():
            zeropoint.export(folder, file, format="gguf")
        text = Path(scratch, "text.txt")
        text.write_text(Path(bundled_text("judge")).read_text(encoding="utf-8")[: 8 * options.tokens], encoding="utf-8")
        output = Path(scratch, "foreign.npz")
        command = [options.llama, "-c", FOREIGN, *map(str, (file.resolve(), text, options.tokens, output))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        foreign = np.load(output)
        ours = load_tokenizer(open_checkpoint(folder)).encode(text.read_text(encoding="utf-8"))[: options.tokens]
        found = compare(options.model, folder, ours, foreign["logits"])
        result = {
            "model": options.model.name,
            "file": file.name,
            "size_bytes": file.stat().st_size,
            "llama_cpp": str(foreign["version"]),
            "same_tokens": foreign["tokens"].tolist() == ours,
            "tokens": len(ours),
            **found,
        }
    for name, value in result.items():
        sys.stdout.write(f"{name:24} {value}\n")
    sys.stdout.write(json.dumps(result) + "\n")


def compare(model: Path, folder: Path, tokens: list[int], foreign: NDArray[np.float32]) -> dict[str, float]:
    """Return the divergences in nats per token, and how often the likeliest next token is the same."""
    quantized, reference = (
        logprobs(NativeRunner(weights, activations="float", embeddings="stored", cache="float32").logits(tokens))
        for weights in (Weights(open_checkpoint(folder)), Weights(open_checkpoint(model)))
    )
    theirs = logprobs(foreign)
    return {
        "kl_zeropoint_llama_cpp": divergence(quantized, theirs),
        "top1_zeropoint_llama_cpp": float(np.mean(quantized.argmax(1) == theirs.argmax(1))),
        "kl_float_zeropoint": divergence(reference, quantized),
        "kl_float_llama_cpp": divergence(reference, theirs),
    }


def logprobs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities (tokens, vocabulary)."""
    centred = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return found


def divergence(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return KL(wanted || found), the mean over tokens."""
    return float(np.sum(np.exp(wanted) * (wanted - found), axis=1).mean())


if __name__ == "__main__":
    main()
