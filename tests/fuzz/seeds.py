"""The good files that hostile ones are made of: tiny models and what the package itself writes beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

import architectures
import zeropoint
from fuzz.mutate import CANARY
from gguf_files import write_gguf
from tiny import CHAT_TEMPLATE, TEXT, make_gguf, make_llama
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import CheckpointError
from zeropoint.recipe import load_recipe, preset_text, presets

SIZES = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32, "vocab": 260}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
GGUF = {
    "gemma3_text": {"head_dim": 16, "layer_types": ["sliding_attention"], "sliding_window": 16},
    "mixtral": {"num_local_experts": 3},
    "phi3": {"rope_parameters": {**architectures.LONG_ROPE, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
    "gpt_neox": {},
    "gpt2": {},
}
"""Other architectures in GGUF files: stacked, fused, transposed and swapped tensors, two ropes, divisors of one."""

OTHERS = ("q8_0", "sentencepiece", *GGUF)
SECRET = "what nobody may copy"
JOURNAL = ".out.partial/journal.jsonl"
BEGUN = {"recipe": "w4a16", "source": "float"}
RECIPE = """
rounding = "gptq"
[weights]
bits = 4
group_size = 32
[activations]
dynamic = false
[[rules]]
layers = ["*.down_proj", "re:.*[01]\\\\.(mlp|self_attn)\\\\.v_.*"]
weights = { bits = 8 }
[[transforms]]
method = "smoothquant"
[calibration]
samples = 8
"""
SETTINGS = (
    "rounding=rtn\nweights.bits=3\nrules.0.layers=*.v_proj\nrules.0.keep_float=true",
    "weights.granularity=channel\nrange.method=mse\ntransforms=awq\ncalibration.length=32",
    'activations.dynamic=true\nrules.0.layers="re:.*(up|down)_proj"\nrules.0.weights.bits=8\nrefine.0.method=descent',
)
TEMPLATES = (
    CHAT_TEMPLATE,
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ bos_token }}{% set n = namespace(s='') %}{% for m in "
    "messages %}{% set n.s = n.s + m['content'] | trim %}{% generation %}{{ m.role ~ n.s }}{% endgeneration %}"
    "{% endfor %}{% if messages | length > 9 %}{{ raise_exception('too many') }}{% endif %}{{ strftime_now('%Y') }}",
)


def make(root: Path) -> Path:
    """Write all base folders into `root`, and canaries beside them; return it."""
    quantized_by = load_recipe("w4a16", ["rounding=rtn", "range=minmax", "weights.group_size=32", "embeddings=int8"])
    make_llama(root / "float", **SIZES)
    make_llama(root / "sharded", shards=2, **SIZES)
    zeropoint.quantize(root / "float", root / "quantized", recipe=quantized_by)
    text = root / "held-out.txt"
    text.write_text(TEXT)
    judged = zeropoint.evaluate(root / "quantized", reference=root / "float", text=text, length=32)
    judged.save(root / "quantized" / "results.json")
    for folder in ("gguf", "recipe", "jsonl", "text", "journal"):
        (root / folder).mkdir()
    make_gguf(root / "gguf" / "model.gguf", **SIZES)
    make_gguf(root / "gguf" / "q8_0.gguf", quantization="Q8_0", **SIZES)
    make_gguf(root / "gguf" / "sentencepiece.gguf", tokenizer="llama", quantization="Q4_0", **SIZES)
    for name, changes in GGUF.items():
        variant = next(reversed(architectures.VARIANTS[name]))
        model = architectures.make(root / "made", name, variant, **{**SMALL, **changes})
        write_gguf(root / "gguf" / f"{name}.gguf", model)
    shutil.rmtree(root / "made")
    (root / "recipe" / "mine.toml").write_text(RECIPE)
    (root / "recipe" / "set").write_text(SETTINGS[0])
    (root / "jsonl" / "text.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
        + json.dumps({"messages": [{"role": "user", "content": "A question?"}]})
    )
    (root / "text" / "text.txt").write_text(TEXT)
    _make_journal(root / "journal")
    for canary in canaries(root):
        canary.write_text(SECRET)
    return root


def canaries(root: Path) -> tuple[Path, ...]:
    """Return the files outside of the base folders."""
    return root / f"{CANARY}.safetensors", root.parent / f"{CANARY}.json"


def _make_journal(folder: Path) -> None:
    try:
        with Writer(folder / "out", begun=BEGUN) as writer:
            for index in range(3):
                writer.add({f"layer.{index}.weight": torch.zeros(2, 4), f"layer.{index}.bias": torch.ones(2)})
                writer.step("block", {"elapsed_s": 1.5, "layers": [str(index)]}, {"x": torch.zeros(3)})
            raise CheckpointError("enough")
    except CheckpointError:
        return


def of(root: Path, base: str, file: str) -> list[bytes]:
    """Return the good contents of a file."""
    found = [(root / base / file).read_bytes()]
    match file:
        case "mine.toml":
            found += [preset_text(name).encode() for name in presets()]
        case "set":
            found = [text.encode() for text in SETTINGS]
        case "chat_template.jinja":
            found = [text.encode() for text in TEMPLATES]
        case "model.gguf":
            found += [(root / base / f"{other}.gguf").read_bytes() for other in OTHERS]
        case "tokenizer_config.json":
            found.append(json.dumps({**json.loads(found[0]), "chat_template": CHAT_TEMPLATE}).encode())
    return found


def copy(root: Path, base: str, to: Path) -> None:
    """Copy a base folder, without what only makes seeds."""
    shutil.copytree(root / base, to, ignore=shutil.ignore_patterns(*(f"{other}.gguf" for other in OTHERS)))
