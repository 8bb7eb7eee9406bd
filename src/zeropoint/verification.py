"""Is the folder what a run has computed? Every tensor against its hash, and logits against those of the walk.

    hashes   sha256 of each tensor as it was in memory, before it was packed into files; of every other file
    probe    a few tokens went through the blocks while they were quantized; the file has to give the same logits

The second sees what no hash can: codes that are packed, described or read otherwise than they were meant. `quantize`
has it done in a fresh process, by the native runtime, before the output gets its name; anybody can repeat it.
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from zeropoint import find
from zeropoint.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint, read_into
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import CheckpointError, InputError, InternalError, ProcessError
from zeropoint.evaluation.budgets import BUDGET
from zeropoint.evaluation.results import (
    BENCH,
    MANIFEST,
    RECORD,
    RESULTS,
    Agreement,
    Manifest,
    Probe,
    Verification,
    resident_bytes,
)
from zeropoint.evaluation.size import stored_bytes
from zeropoint.heap import available_bytes, give_back
from zeropoint.planning.plan import LOADS
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.weights import Weights

CHUNK_BYTES = 1 << 22

TOLERANCE = 0.02
"""Root mean square difference of log-probabilities, relative to their spread, above which logits are not the same."""

MAX_PROBE_TOKENS = 256

TEXT_TOKENS = 256
"""Tokens of a text on which the model is held against its reference."""


def verify(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    max_memory_bytes: int | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """Read a folder that `quantize` has made and say whether it is what was computed.

    reference: the model that it was made from; that it is this one, and how far the outputs are apart, is said too.
    max_memory_bytes: a model that takes more runs block by block. None: what is available.
    Raises: InputError if a folder cannot be read, or has no manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `zeropoint quantize` has made")
    if not (folder / MANIFEST).exists():
        raise InputError(f"{folder}: there is no {MANIFEST}; only what `zeropoint quantize` has made can be verified")
    manifest = Manifest.load(folder / MANIFEST)
    report = progress or (lambda step: None)
    memory_bytes = min(available_bytes(), max_memory_bytes or sys.maxsize)
    problems = list(_wrong_files(folder, manifest))
    difference: float | None = None
    loads: str | None = None
    agreement: Agreement | None = None
    tensors = size_bytes = 0
    try:
        checkpoint = open_checkpoint(folder)
        tensors, size_bytes = len(checkpoint.tensors), stored_bytes(checkpoint.tensors)
        problems += _wrong_tensors(checkpoint, manifest, report)
        if not problems:
            weights = Weights(checkpoint)
            loads = _loads(weights)
            _require_probe(manifest.probe, weights.model.config.vocab_size)
            difference = spread(manifest.probe, _logits(weights, manifest.probe.tokens, memory_bytes))
            if not difference <= TOLERANCE:
                problems.append(
                    f"the logits of {len(manifest.probe.tokens)} tokens differ by {difference:.3g} of their spread "
                    f"from those that were computed while quantizing; at most {TOLERANCE} is expected"
                )
            if reference is not None:
                agreement = _agreement(weights, Weights(open_checkpoint(reference)), manifest, memory_bytes)
    except CheckpointError as error:
        problems.append(str(error))
    return Verification(
        tensors=tensors,
        size_bytes=size_bytes,
        difference=difference,
        problems=tuple(problems),
        loads=loads,
        reference=agreement,
    )


def is_recorded(path: str | Path) -> bool:
    """Say whether `quantize` has made a folder, and so it can be verified."""
    return (Path(path) / MANIFEST).exists()


def verify_apart(folder: Path, *, max_memory_bytes: int | None = None) -> Verification:
    """Return what `verify` says in a fresh process.

    max_memory_bytes: of both processes together; None for no limit.
    Raises: ProcessError if it dies.
    """
    command = [sys.executable, "-m", "zeropoint", "verify", str(folder), "--json"]
    if max_memory_bytes is not None:
        give_back()
        command += ["--max-memory", str(max(1, max_memory_bytes - resident_bytes()))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}  # the same zeropoint
    # in a session of its own: Ctrl-C reaches the parent alone, which ends it
    done = subprocess.run(command, capture_output=True, env=environment, check=False, start_new_session=True)
    try:
        return msgspec.json.decode(done.stdout, type=Verification)
    except msgspec.MsgspecError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ProcessError(
            f"the process that verified {folder} ended with exit code {done.returncode}: {' '.join(said)}"
        ) from error


def require_verified(verification: Verification, output: str | Path) -> None:
    """Raise InternalError if the folder is not what was computed."""
    if verification.problems:
        raise InternalError(f"{output}: what was written is not what was computed: {verification.problems[0]}")


def hashes_of(checkpoint: Checkpoint, report: ProgressCallback) -> dict[str, str]:
    """Return the sha256 of every file that a checkpoint is read from, by its name."""
    files = checkpoint.files()
    found: dict[str, str] = {}
    for index, file in enumerate(files):
        report(Progress("read", index, len(files), file.name))
        found[file.name] = _hash_of_file(file)
    report(Progress("read", len(files), len(files)))
    return found


def hashes_of_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of an output that holds no tensors and does not change later, by its name."""
    apart = (RECORD, MANIFEST, RESULTS, BENCH, BUDGET)
    files = (file for file in sorted(folder.iterdir()) if file.suffix != ".safetensors" and file.name not in apart)
    return {file.name: _hash_of_file(file) for file in files}


def probe_of(tokens: Sequence[int], logits: NDArray[np.float32], likeliest: int = 8) -> Probe:
    """Return what has to come out again: for each token the log-probabilities of its likeliest successors.

    logits: float32 (tokens, vocabulary).
    """
    found = logprobs(logits)
    ids = np.argsort(-found, axis=1, kind="stable")[:, :likeliest]
    values = np.take_along_axis(found, ids, axis=1)
    return Probe(
        tokens=tuple(tokens),
        ids=tuple(tuple(row) for row in ids.tolist()),
        logprobs=tuple(tuple(row) for row in values.tolist()),
        spread=float(found.std()),
    )


def spread(probe: Probe, logits: NDArray[np.float32]) -> float:
    """Return how far logits (tokens, vocabulary) are from those of a probe, relative to their spread; or infinity."""
    found = np.take_along_axis(logprobs(logits), np.array(probe.ids), axis=1)
    difference = float(np.sqrt(np.mean((found - np.array(probe.logprobs)) ** 2))) / max(probe.spread, 1e-6)
    return difference if math.isfinite(difference) else math.inf


def _require_probe(probe: Probe, vocab_size: int) -> None:
    """Raise CheckpointError for a probe that is none of this model."""
    widths = {len(row) for row in (*probe.ids, *probe.logprobs)}
    ids = [token for row in (probe.tokens, *probe.ids) for token in row]
    if (
        not 0 < len(probe.tokens) == len(probe.ids) == len(probe.logprobs) <= MAX_PROBE_TOKENS
        or len(widths) != 1
        or not all(0 <= token < vocab_size for token in ids)
    ):
        raise CheckpointError(f"the probe in {MANIFEST} is none of a model with {vocab_size} tokens; it was changed")


def logprobs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities (tokens, vocabulary)."""
    centred = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return found


def _wrong_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name, digest in manifest.files.items():
        file = folder / name
        if Path(name).name != name:
            raise InputError(f"{folder / MANIFEST}: names the file {name!r}, which is not in the folder")
        if not file.is_file():
            yield f"{name} is missing"
        elif _hash_of_file(file) != digest:
            yield f"{name} is not as it was written"


def _wrong_tensors(checkpoint: Checkpoint, manifest: Manifest, report: ProgressCallback) -> Iterator[str]:
    yield from (f"the tensor {name} is missing" for name in manifest.tensors if name not in checkpoint.tensors)
    for done, (name, info) in enumerate(checkpoint.tensors.items()):
        report(Progress("verify", done, len(checkpoint.tensors), name))
        if name not in manifest.tensors:
            yield f"the tensor {name} was not written by us"
        elif _hash_of_tensor(info) != manifest.tensors[name]:
            yield f"the tensor {name} is not as it was computed"
    report(Progress("verify", len(checkpoint.tensors), len(checkpoint.tensors)))


def _loads(weights: Weights) -> str:
    quantization = weights.checkpoint.config.get("quantization_config")
    note: str | None = None
    if quantization is not None:
        name = str(quantization.get("quant_method", "")).replace("-", "_")
        config = weights.model.config
        note = find.load("formats", name).note(quantization, experts=config.experts > 0, transposed=config.transposed)
    return note or LOADS


def _logits(weights: Weights, tokens: Sequence[int], memory_bytes: int) -> NDArray[np.float32]:
    """Return logits (tokens, vocabulary): by the native runtime, or block by block where the memory is too small."""
    fits = 2 * stored_bytes(weights.checkpoint.tensors) < memory_bytes
    if not fits or any(
        weights.inputs.values()
    ):  # one value on the other side of a step, and all tokens behind it differ
        return logits_by_block(weights, tokens)
    from zeropoint.runtime.native_runner import NativeRunner

    return NativeRunner(weights, activations="float", embeddings="stored", cache="float32").logits(tokens)


def logits_by_block(weights: Weights, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return logits (tokens, vocabulary) in float32, with one block in memory at a time."""
    import torch

    from zeropoint.runtime.ops_torch import TorchOps

    ops = TorchOps()
    with torch.inference_mode():
        (x,) = weights.embed(ops, torch.tensor([list(tokens)]), 1)
        for index in range(weights.model.config.layers):
            x = weights.block(index, ops).run(weights.model.flow_of(index), x)
        logits: NDArray[np.float32] = weights.logits(ops)(x)[0].numpy()
    return logits


def _agreement(weights: Weights, reference: Weights, manifest: Manifest, memory_bytes: int) -> Agreement:
    """Hold the model against its reference, on the beginning of the bundled text."""
    same = {file.name: _hash_of_file(file) for file in reference.checkpoint.files()} == manifest.source
    if weights.model.config.vocab_size != reference.model.config.vocab_size:
        raise InputError(
            f"{reference.checkpoint.path} has a vocabulary of {reference.model.config.vocab_size} tokens and "
            f"{weights.checkpoint.path} one of {weights.model.config.vocab_size}; give the model that it was made from"
        )
    tokens = text_tokens(reference.checkpoint, TEXT_TOKENS)
    wanted, found = (logprobs(_logits(each, tokens, memory_bytes)) for each in (reference, weights))
    kl, top1 = nearness(wanted, found)
    return Agreement(made_from_it=same, tokens=len(tokens), kl=kl, top1=top1)


def nearness(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[float, float]:
    """Return KL(wanted || found), mean in nats per token, and the share of tokens with the same likeliest successor.

    wanted, found: log-probabilities (tokens, vocabulary).
    """
    kl = np.sum(np.exp(wanted) * (wanted - found), axis=1)
    return float(kl.mean()), float(np.mean(wanted.argmax(axis=1) == found.argmax(axis=1)))


def text_tokens(checkpoint: Checkpoint, count: int) -> list[int]:
    """Return the first tokens of the bundled text. Raises: InputError if the checkpoint has no tokenizer."""
    from zeropoint.observe.data import bundled_text

    text = Path(bundled_text("judge")).read_text(encoding="utf-8")
    return list(load_tokenizer(checkpoint).encode(text[: 8 * count])[:count])


def _hash_of_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error


def _hash_of_tensor(info: TensorInfo) -> str:
    digest: Any = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK_BYTES, info.size_bytes)))
    for start in range(0, info.size_bytes, CHUNK_BYTES):
        chunk = buffer[: info.size_bytes - start]
        read_into(info, chunk, start=start)
        digest.update(chunk)
    return str(digest.hexdigest())
