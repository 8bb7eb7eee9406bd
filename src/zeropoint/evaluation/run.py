"""Judge a written model against its reference: read both back from disk, run both over the same windows, compare.

native   both models in memory, as they are when they serve: the quantized one with the kernels that multiply its
         integers and round what they read, the reference with float32 activations. Judges what really runs.
torch    both models block by block, in the float32 that the integers stand for: memory holds one block and the
         activations, whatever the depth; then the two heads run over the same window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zeropoint
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, load_tokenizer
from zeropoint.errors import InputError
from zeropoint.evaluation.divergence import TokenScores, compare
from zeropoint.evaluation.passages import Worst, kl_bars, passages
from zeropoint.evaluation.perplexity import estimate, log_ratio, perplexity
from zeropoint.evaluation.results import RECORD, RESULTS, Evaluation, Passage, QuantizeResult, Text, machine, versions
from zeropoint.evaluation.size import size_of
from zeropoint.evaluation.verdict import judge
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Windows, judging_windows, require_readable
from zeropoint.observe.walk import run_blocks
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.choices import CacheDtype, require_possible
from zeropoint.runtime.native_runner import NativeRunner, NativeSession
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.torch_runner import exact_unless_asked
from zeropoint.runtime.weights import Weights
from zeropoint.types import RunActivations, RunEmbeddings

BATCH_TOKENS = 4096
"""Tokens that run through a block together."""

ACTIVATION_MEMORY_BYTES = 2 << 30
"""Activations above this, half of it for each model, wait on disk."""

LOGIT_ROWS = 128
"""Tokens of a window whose logits are in memory at once, in the native runtime."""

ACTIVATION_WINDOWS = 8
"""Windows on which the cost of rounding activations is measured."""

Runtime = Literal["native", "torch"]


def evaluate(
    output: str | Path,
    *,
    reference: str | Path,
    text: str | Path,
    margin: float = 0.01,
    length: int = 512,
    max_windows: int | None = None,
    runtime: Runtime = "native",
    activations: RunActivations = "int8",
    embeddings: RunEmbeddings = "stored",
    kv_cache: CacheDtype | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Compare the model in the folder `output` with the one it was made from; write results.json beside its weights.

    reference: a folder or a .gguf file. text: .txt or .jsonl, tokenized by the reference's tokenizer and cut into
    windows of `length` tokens, of which `max_windows`, evenly spread, are used. margin: the rise of perplexity that
    still counts as equivalent, a fraction. runtime: "native" judges what runs when the model is used; "torch" the
    float32 that its integers stand for, in the memory of one block. activations, embeddings, kv_cache: of the quantized
    model, as `zeropoint.load` takes them; the reference computes in float32 with its embedding as it is stored.
    threads: of the native runtime; None is all cores.

    Raises: InputError, by one of its subclasses, if a model or the text cannot be read, if the two models have
    different vocabularies, or if results.json cannot be written.
    """
    started_s = time.perf_counter()
    require_possible(runtime, activations=activations, embeddings=embeddings)
    if not margin > 0:
        raise InputError(f"margin is {margin}; it is the rise of perplexity that counts as equivalent, such as 0.01")
    judged, original = Weights(open_checkpoint(output)), Weights(open_checkpoint(reference))
    if not judged.checkpoint.path.is_dir():
        raise InputError(f"{output}: give the folder of a model; results.json is written beside its weights")
    vocabularies = judged.model.config.vocab_size, original.model.config.vocab_size
    if vocabularies[0] != vocabularies[1]:
        raise InputError(
            f"{output} has a vocabulary of {vocabularies[0]} tokens and {reference} one of {vocabularies[1]}; "
            "give the model that it was made from as reference"
        )
    tokenizer = load_tokenizer(original.checkpoint)
    windows = judging_windows(text, tokenizer, length=length, max_windows=max_windows)
    require_readable(windows, original.model.config)
    report = progress or (lambda step: None)
    if runtime == "native":
        reference_runner = NativeRunner(
            original, threads=threads, activations="float", embeddings="stored", cache="float32"
        )
        quantized = NativeRunner(
            judged, threads=threads, activations=activations, embeddings=embeddings, cache=kv_cache
        )
        run = _run_native(reference_runner, quantized, windows, tokenizer, activations, report)
    else:
        cached = kv_cache or exact_unless_asked(judged)
        worst = Worst()
        scores = _scores(original, judged, windows, cached, worst, report)
        shown = passages(worst, windows, tokenizer, None)
        run = _Run(scores, "torch", "float", None, judged.stored_embeddings, cached, shown)
    scores = run.scores
    count = len(windows.tokens)
    kl, agreement = estimate(scores.kl.numpy(), count), estimate(scores.agrees.numpy(), count)
    judgement = judge(
        log_ratio(scores.nll_reference.numpy(), scores.nll_quantized.numpy(), count),
        margin=margin,
        window_tokens=length - 1,
    )
    result = Evaluation(
        zeropoint=zeropoint.__version__,
        model=str(output),
        reference=str(reference),
        text=Text(
            name=windows.source.name, sha256=windows.source.sha256, windows=count, length=length, note=windows.note
        ),
        tokens=len(scores),
        verdict=judgement.verdict,
        explanation=judgement.explanation,
        margin=margin,
        tokens_needed=judgement.tokens_needed,
        perplexity=perplexity(float(scores.nll_quantized.double().mean())),
        perplexity_reference=perplexity(float(scores.nll_reference.double().mean())),
        perplexity_ratio=judgement.ratio,
        ratio_interval95=judgement.interval,
        kl_mean=kl.mean,
        kl_interval95=kl.clipped(0, math.inf),
        kl_p99=float(scores.kl.double().quantile(0.99)),
        kl_max=float(scores.kl.max()),
        top1_agreement=agreement.mean,
        top1_interval95=agreement.clipped(0, 1),
        runtime=run.runtime,
        activations=run.activations,
        activations_kl=run.activations_kl,
        embeddings=run.embeddings,
        kv_cache=run.kv_cache,
        kl_bars=kl_bars(scores.kl.numpy()),
        passages=run.passages,
        size=size_of(judged),
        size_reference=size_of(original),
        elapsed_s=time.perf_counter() - started_s,
        fallbacks=_fallbacks(Path(output)),
        versions=versions(),
        machine=machine(),
    )
    result.save(Path(output) / RESULTS)
    return result


@dataclass(frozen=True)
class _Run:
    """What came out of running both models. The rest: as in Evaluation."""

    scores: TokenScores
    runtime: str
    activations: RunActivations
    activations_kl: float | None
    embeddings: str
    kv_cache: str
    passages: tuple[Passage, ...]


def _run_native(
    reference: NativeRunner,
    quantized: NativeRunner,
    windows: Windows,
    tokenizer: Tokenizer,
    activations: RunActivations,
    report: ProgressCallback,
) -> _Run:
    """Run both models whole with the native kernels, window by window."""
    # only integers are multiplied by rounded activations
    rounds = activations == "int8" and quantized.has_integers
    exact = quantized.with_activations("float") if rounds else None
    report(Progress("evaluate", 0, len(windows.tokens)))
    worst = Worst()
    scores: list[TokenScores] = []
    of_rounding: list[TokenScores] = []
    for index, window in enumerate(windows.tokens):
        beside = [reference] if exact is None or index >= ACTIVATION_WINDOWS else [reference, exact]
        of_reference, *of_exact = scores_of_window(beside, quantized, window, partial(worst.see, index))
        scores.append(of_reference)
        of_rounding += of_exact
        report(Progress("evaluate", index + 1, len(windows.tokens)))
    cost = float(TokenScores.join(of_rounding).kl.double().mean()) if of_rounding else None
    continued = partial(_go_on, reference, tokenizer.eos_ids), partial(_go_on, quantized, tokenizer.eos_ids)
    shown = passages(worst, windows, tokenizer, continued)
    runtime = f"native, {quantized.isa}"
    rounded = "float" if activations == "int8" and not rounds else activations
    return _Run(TokenScores.join(scores), runtime, rounded, cost, quantized.embeddings, quantized.kv_cache, shown)


def scores_of_window(
    references: Sequence[NativeRunner],
    quantized: NativeRunner,
    window: NDArray[np.int32],
    see: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> list[TokenScores]:
    """Return what the tokens of a window, int32 (length,), say of a model beside each of the references.

    see: is given a position and, of tokens from there on, the KL beside the first of the references and both logits.
    """
    sessions, judged = [runner.session() for runner in references], quantized.session()
    scores: list[list[TokenScores]] = [[] for _ in references]
    for start in range(0, len(window) - 1, LOGIT_ROWS):
        targets = torch.from_numpy(window[start + 1 :][:LOGIT_ROWS]).long()
        tokens = window[start : start + len(targets)]  # the last token has no successor to be judged by
        found = _logits(judged, tokens)
        for parts, session in zip(scores, sessions, strict=True):
            expected = _logits(session, tokens)
            parts.append(compare(expected, found, targets))
            if see is not None and parts is scores[0]:
                see(start, parts[-1].kl, expected, found)
    return [TokenScores.join(parts) for parts in scores]


def _logits(session: NativeSession, tokens: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(session.logits(tokens.tolist(), wanted=len(tokens)))


def _go_on(runner: NativeRunner, eos_ids: Sequence[int], tokens: Sequence[int], most: int) -> list[int]:
    """Return the likeliest tokens after `tokens`, one by one: `most`, or fewer where the text or the context ends."""
    session = runner.session()
    logits = np.zeros(0, np.float32)
    for start in range(0, len(tokens), LOGIT_ROWS):
        logits = session.next_logits(tokens[start : start + LOGIT_ROWS])
    found: list[int] = []
    longest = runner.longest or math.inf
    while True:
        found.append(int(logits.argmax()))
        if len(found) == most or found[-1] in eos_ids or session.length == longest:
            return found
        logits = session.next_logits(found[-1:])


def _scores(
    original: Weights,
    judged: Weights,
    windows: Windows,
    kv_cache: CacheDtype,
    worst: Worst,
    report: ProgressCallback,
) -> TokenScores:
    """Run both models over the windows and compare them, token by token, in the order of the text."""
    ops, judged_ops = TorchOps(), TorchOps(kv_cache=kv_cache)
    batch = max(1, BATCH_TOKENS // windows.tokens.shape[1])
    tokens = torch.from_numpy(windows.tokens).long()  # (windows, length)
    blocks = original.model.config.layers + judged.model.config.layers
    outputs: list[Activations] = []
    with ExitStack() as stack, torch.inference_mode():
        done = 0
        report(Progress("evaluate", done, blocks))
        for weights, used in ((original, ops), (judged, judged_ops)):
            activations = stack.enter_context(Activations(limit_bytes=ACTIVATION_MEMORY_BYTES // 2))
            activations.extend(weights.embed(used, tokens, batch))
            for index in run_blocks(weights.model, partial(weights.block, ops=used), activations):
                done += 1
                report(Progress("evaluate", done, blocks, f"{weights.checkpoint.path.name}, block {index}"))
            outputs.append(activations)
        heads = original.head(ops), judged.head(ops)
        scores: list[TokenScores] = []
        for expected, got, targets in zip(_windows(outputs[0]), _windows(outputs[1]), tokens, strict=True):
            # the last token has no successor to be judged by
            logits_reference = original.model.head(ops, heads[0], expected[None, :-1])[0]
            logits_quantized = judged.model.head(ops, heads[1], got[None, :-1])[0]
            scores.append(compare(logits_reference, logits_quantized, targets[1:]))
            worst.see(len(scores) - 1, 0, scores[-1].kl, logits_reference, logits_quantized)
            report(Progress("compare", len(scores), len(tokens)))
    return TokenScores.join(scores)


def _windows(activations: Activations) -> Iterator[Tensor]:
    """Yield the last hidden states window by window: float32 (length, hidden)."""
    for state in activations:
        yield from state.x


def _fallbacks(output: Path) -> tuple[str, ...]:
    """Return what the record of quantizing says was done otherwise than asked; none if there is no record."""
    if not (output / RECORD).exists():
        return ()
    record = QuantizeResult.load(output / RECORD)
    return tuple(fallback for row in record.layers for fallback in row.fallbacks)
