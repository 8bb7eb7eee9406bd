"""A small model of any architecture that has learned something, from texts, in minutes.

Random weights have no outliers and no redundancy, and methods that use these gain nothing on them.

    python benchmarks/trained_model.py FOLDER TEXT [TEXT ...] [--architecture qwen3] [--minutes 10] [--threads 1]

Writes a Hugging Face folder with a tokenizer of its own (byte-level BPE), bfloat16 weights, and beside it
FOLDER-held-out.txt: every twentieth 4 kB of the texts, which it has not learned from, for judging. How many steps fit
into the time depends on the machine, so that two runs give two models. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from origin import origin

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 4096, 256, 6, 4, 2, 768
LENGTH, BATCH, RATE, WARM_UP = 256, 16, 2e-3, 50
PIECE, EVERY = 4096, 20
END = "<|end|>"


def main() -> None:
    """Train, write, say what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--architecture", default="qwen3", help="a model_type of transformers")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    learned, held_out = parted("\n".join(path.read_text(encoding="utf-8", errors="replace") for path in options.texts))
    tokenizer = trained_tokenizer(learned)
    tokens, others = (torch.tensor(tokenizer.encode(text).ids) for text in (learned, held_out))
    model = AutoModelForCausalLM.from_config(small_config(options.architecture), dtype=torch.float32)
    steps = train(model, tokens, options.minutes * 60)
    options.folder.mkdir(parents=True, exist_ok=True)
    loss = loss_on(model, others)
    model.to(torch.bfloat16).save_pretrained(options.folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(options.folder)
    Path(f"{options.folder}-held-out.txt").write_text(held_out, encoding="utf-8")
    found = {
        "architecture": options.architecture,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "tokens": len(tokens),
        "steps": steps,
        "held_out_perplexity": math.exp(loss),
        **origin(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def parted(text: str) -> tuple[str, str]:
    """Return what is learned and what is held out."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    held_out = pieces[EVERY - 1 :: EVERY]
    del pieces[EVERY - 1 :: EVERY]
    return "".join(pieces), "".join(held_out)


def trained_tokenizer(text: str) -> Tokenizer:
    """Return byte-level BPE of VOCAB tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def small_config(architecture: str) -> AutoConfig:
    """Return a configuration of the architecture, small, in the spelling that most have."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 1024,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    if architecture == "gpt2":
        for name in ("num_key_value_heads", "head_dim", "intermediate_size"):
            del sizes[name]
    return AutoConfig.for_model(architecture, **sizes)


def train(model: PreTrainedModel, tokens: torch.Tensor, seconds: float) -> int:
    """Train for so long, and return the steps. The rate falls to 0 along half a cosine of the time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    started_s, step = time.monotonic(), 0
    for windows in drawn(tokens):
        done = (time.monotonic() - started_s) / seconds
        if done >= 1:
            break
        rate = RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            sys.stderr.write(f"step {step}, {done:.0%} of the time, loss {float(loss):.3f}\n")
    return step


def drawn(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield batches of windows, int64 (BATCH, LENGTH), without end."""
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH, 1))
        yield tokens[starts + torch.arange(LENGTH)]


@torch.inference_mode()
def loss_on(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Return the mean loss of at most 64 windows, nats a token."""
    windows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)[:64]
    return float(torch.stack([model(window[None], labels=window[None]).loss for window in windows]).mean())


if __name__ == "__main__":
    main()
