"""Published checkpoints are accepted at the first try, under whatever names their tensors have, or refused by a key."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from unit.models.published import ACCEPTED, REFUSED, WITHIN, sizes
from zeropoint.checkpoint.reader import TensorInfo, open_checkpoint
from zeropoint.checkpoint.safetensors_header import make_header
from zeropoint.errors import ArchitectureError, CheckpointError
from zeropoint.models import load_model
from zeropoint.models.parts import outer_tensors
from zeropoint.runtime.weights import Weights

EVERY = {**ACCEPTED, **WITHIN}


def newer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config as transformers 5 writes it: dtype, and one table for the rope."""
    found = dict(config)
    if isinstance(found.get("text_config"), dict):
        found["text_config"] = newer(found["text_config"])
    if "torch_dtype" in found:
        found["dtype"] = found.pop("torch_dtype")
    if found.get("model_type") in ("gemma3_text", "gpt2", "opt", "gemma3", "llava", "llava_next", "mistral3"):
        return found  # two ropes, none, or those of the text model
    rope = dict(found.pop("rope_scaling", None) or {})
    theta = found.pop("rope_theta", found.pop("rotary_emb_base", None))
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    if theta is not None:
        rope["rope_theta"] = theta
    part = found.pop("rotary_pct", found.pop("partial_rotary_factor", None))
    if part is not None:
        rope["partial_rotary_factor"] = part
    return {**found, "rope_parameters": rope}


# What the tensors of a block are called, with their shapes in letters: h hidden, i intermediate, q all queries, k all
# keys, d of a head, e experts, x intermediate of an expert, v vocabulary, p positions, 1 one.

ATTENTION = {
    "self_attn.q_proj.weight": "qh", "self_attn.k_proj.weight": "kh", "self_attn.v_proj.weight": "kh",
    "self_attn.o_proj.weight": "hq",
}  # fmt: skip
BIASES = {"self_attn.q_proj.bias": "q", "self_attn.k_proj.bias": "k", "self_attn.v_proj.bias": "k"}
MLP = {"mlp.gate_proj.weight": "ih", "mlp.up_proj.weight": "ih", "mlp.down_proj.weight": "hi"}
NORMS = {"input_layernorm.weight": "h", "post_attention_layernorm.weight": "h"}
HEAD_NORMS = {"self_attn.q_norm.weight": "d", "self_attn.k_norm.weight": "d"}
AROUND = {"pre_feedforward_layernorm.weight": "h", "post_feedforward_layernorm.weight": "h"}
LLAMA = {**ATTENTION, **MLP, **NORMS}
NEOX = {
    "attention.query_key_value.weight": "3hh", "attention.query_key_value.bias": "3h", "attention.dense.weight": "hh",
    "attention.dense.bias": "h", "mlp.dense_h_to_4h.weight": "ih", "mlp.dense_h_to_4h.bias": "i",
    "mlp.dense_4h_to_h.weight": "hi", "mlp.dense_4h_to_h.bias": "h",
    **{f"{norm}_layernorm.{kind}": "h" for norm in ("input", "post_attention") for kind in ("weight", "bias")},
}  # fmt: skip
GPT2 = {
    "attn.c_attn.weight": "h3h", "attn.c_attn.bias": "3h", "attn.c_proj.weight": "hh", "attn.c_proj.bias": "h",
    "mlp.c_fc.weight": "hi", "mlp.c_fc.bias": "i", "mlp.c_proj.weight": "ih", "mlp.c_proj.bias": "h",
    **{f"{norm}.{kind}": "h" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
}  # fmt: skip
OPT = {
    **{f"self_attn.{linear}_proj.{kind}": of for linear in ("q", "k", "v", "out") for kind, of in
       (("weight", "hh"), ("bias", "h"))},
    "fc1.weight": "ih", "fc1.bias": "i", "fc2.weight": "hi", "fc2.bias": "h",
    **{f"{norm}.{kind}": "h" for norm in ("self_attn_layer_norm", "final_layer_norm") for kind in ("weight", "bias")},
}  # fmt: skip
BLOCKS: Mapping[str, Mapping[str, str]] = {
    "llama": LLAMA, "mistral": LLAMA, "smollm3": LLAMA, "gemma": LLAMA,
    "qwen2": {**LLAMA, **BIASES}, "qwen3": {**LLAMA, **HEAD_NORMS},
    "qwen3_moe": {
        **ATTENTION, **NORMS, **HEAD_NORMS, "mlp.gate.weight": "eh", "mlp.experts.{e}.gate_proj.weight": "xh",
        "mlp.experts.{e}.up_proj.weight": "xh", "mlp.experts.{e}.down_proj.weight": "hx",
    },
    "mixtral": {
        **ATTENTION, **NORMS, "block_sparse_moe.gate.weight": "eh", "block_sparse_moe.experts.{e}.w1.weight": "ih",
        "block_sparse_moe.experts.{e}.w2.weight": "hi", "block_sparse_moe.experts.{e}.w3.weight": "ih",
    },
    "gemma2": {**LLAMA, **AROUND}, "gemma3_text": {**LLAMA, **AROUND, **HEAD_NORMS},
    "olmo2": {
        **ATTENTION, **MLP, "post_attention_layernorm.weight": "h", "post_feedforward_layernorm.weight": "h",
        "self_attn.q_norm.weight": "q", "self_attn.k_norm.weight": "k",
    },
    "phi3": {
        "self_attn.qkv_proj.weight": "qkkh", "self_attn.o_proj.weight": "hq", "mlp.gate_up_proj.weight": "iih",
        "mlp.down_proj.weight": "hi", **NORMS,
    },
    "starcoder2": {
        **ATTENTION, **BIASES, "self_attn.o_proj.bias": "h", "mlp.c_fc.weight": "ih", "mlp.c_fc.bias": "i",
        "mlp.c_proj.weight": "hi", "mlp.c_proj.bias": "h", **NORMS,
        "input_layernorm.bias": "h", "post_attention_layernorm.bias": "h",
    },
    "gpt_neox": NEOX, "gpt2": GPT2, "opt": OPT,
}  # fmt: skip
OUTER: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": {
        "gpt_neox.embed_in.weight": "vh", "gpt_neox.final_layer_norm.weight": "h",
        "gpt_neox.final_layer_norm.bias": "h", "embed_out.weight": "vh",
    },
    "gpt2": {"wte.weight": "vh", "wpe.weight": "ph", "ln_f.weight": "h", "ln_f.bias": "h"},
    "opt": {
        "model.decoder.embed_tokens.weight": "vh", "model.decoder.embed_positions.weight": "ph",
        "model.decoder.final_layer_norm.weight": "h", "model.decoder.final_layer_norm.bias": "h",
    },
    "starcoder2": {"model.embed_tokens.weight": "vh", "model.norm.weight": "h", "model.norm.bias": "h"},
}  # fmt: skip
TWO = {"3hh": ("3h", "h"), "h3h": ("h", "3h"), "qkkh": ("qkk", "h"), "iih": ("ii", "h"), "3h": ("3h",)}


def tensors_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a published text model, with the names and shapes that they have there."""
    model_type = config["model_type"]
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    head_dim = config.get("head_dim") or hidden // heads
    letters = {
        "h": hidden, "i": config.get("intermediate_size") or config.get("ffn_dim", 4 * hidden), "d": head_dim,
        "q": heads * head_dim,
        "k": config.get("num_key_value_heads", heads) * head_dim, "v": config["vocab_size"], "3h": 3 * hidden,
        "e": config.get("num_experts") or config.get("num_local_experts", 0), "x": config.get("moe_intermediate_size"),
        "p": config.get("n_positions") or config.get("max_position_embeddings", 0) + 2,  # OPT begins with the third row
    }  # fmt: skip
    letters |= {"qkk": letters["q"] + 2 * letters["k"], "ii": 2 * letters["i"]}

    def shape(of: str) -> tuple[int, ...]:
        return tuple(letters[part] for part in TWO.get(of, tuple(of)))

    head = {} if config.get("tie_word_embeddings", True) else {"lm_head.weight": "vh"}
    outer = OUTER.get(model_type, {"model.embed_tokens.weight": "vh", "model.norm.weight": "h", **head})
    found = {name: shape(of) for name, of in outer.items()}
    prefix = {"gpt_neox": "gpt_neox.layers", "gpt2": "h", "opt": "model.decoder.layers"}.get(model_type, "model.layers")
    for index in range(config.get("num_hidden_layers") or config["n_layer"]):
        for name, of in BLOCKS[model_type].items():
            for expert in range(letters["e"] if "{e}" in name else 1):
                found[f"{prefix}.{index}.{name.replace('{e}', str(expert))}"] = shape(of)
    return found


def shortened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with two blocks, which are of all kinds that matter for names."""
    found = dict(copy.deepcopy(config))
    found["n_layer" if "n_layer" in found else "num_hidden_layers"] = 2
    return {key: value[:2] if key in ("layer_types", "no_rope_layers") else value for key, value in found.items()}


def write(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], *, dtype: str = "BF16"
) -> Path:
    """A folder with all of a checkpoint but the values: its file has holes in their place, and one value in a head."""
    folder.mkdir(exist_ok=True)
    size = {"BF16": 2, "F32": 4, "U8": 1}
    infos = [TensorInfo(n, dtype, shape, math.prod(shape) * size[dtype], Path()) for n, shape in tensors.items()]
    at = len(header := make_header(infos))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for info in infos:
            if info.name.startswith("language_model.lm_head"):
                file.seek(at)
                file.write(b"1")
            at += info.size_bytes
        file.truncate(at)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def used_or_named(weights: Weights) -> Iterator[str]:
    """The tensors that the model reads, that it says it copies, and that it says it leaves out."""
    yield from outer_tensors(weights.model)
    for index in range(weights.model.config.layers):
        yield from weights.model.block_tensors(index)
    yield from weights.skipped()
    yield from weights.left_out


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("spelled", [dict, newer], ids=["as published", "as transformers 5 writes it"])
def test_a_published_config_is_accepted(name: str, spelled: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    inside = ("language_model.model.norm.weight",) if name in WITHIN else ()
    as_published = load_model(EVERY[name], inside)
    model = load_model(spelled(EVERY[name]), inside)
    assert model.config == as_published.config
    assert [model.config_of(i) for i in range(model.config.layers)] == [
        as_published.config_of(i) for i in range(model.config.layers)
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_its_key(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(ArchitectureError, match=message):
        load_model(config, ["language_model.model.norm.weight"])


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_tensor_of_a_published_checkpoint_is_found(name: str, tmp_path: Path) -> None:
    config = shortened(ACCEPTED[name])
    weights = Weights(open_checkpoint(write(tmp_path / "model", config, tensors_of(config))))
    assert weights.skipped() == ()
    assert len(set(used_or_named(weights))) == len(tensors_of(config))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("Llama-2-7b", {"model.layers.{}.self_attn.rotary_emb.inv_freq": (64,)}),
        (
            "pythia-70m",
            {
                "gpt_neox.layers.{}.attention.bias": (1, 1, 2048, 2048),
                "gpt_neox.layers.{}.attention.masked_bias": (),
                "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": (8,),
            },
        ),
        ("gpt2", {"h.{}.attn.bias": (1, 1, 1024, 1024), "h.{}.attn.masked_bias": ()}),
    ],
    ids=["llama", "gpt_neox", "gpt2"],
)
def test_masks_and_frequencies_are_left_out_and_named(
    name: str, others: Mapping[str, tuple[int, ...]], tmp_path: Path
) -> None:
    config = shortened(ACCEPTED[name])
    made_anew = {other.format(index): shape for other, shape in others.items() for index in range(2)}
    weights = Weights(open_checkpoint(write(tmp_path / "model", config, tensors_of(config) | made_anew)))
    assert weights.skipped() == ()
    assert {left.removeprefix("transformer.") for left in weights.left_out} == set(made_anew)
    assert not set(weights.left_out) & set(weights.checkpoint.tensors)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen3-0.6B", "Qwen3-30B-A3B", "pythia-70m", "Mistral-7B-v0.1"])
def test_tensors_without_the_prefix_of_the_base_model_are_found(name: str, tmp_path: Path) -> None:
    config = shortened(ACCEPTED[name])
    tensors = {each.removeprefix("model.").removeprefix("gpt_neox."): s for each, s in tensors_of(config).items()}
    tensors["score.weight"] = (2, 1)
    weights = Weights(open_checkpoint(write(tmp_path / "model", config, tensors)))
    assert weights.skipped() == ("score.weight",)
    assert len(set(used_or_named(weights))) == len(tensors)
    assert weights.tables[-1].also is None or weights.checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_gpt2_with_the_prefix_is_the_same_model(tmp_path: Path) -> None:
    config = shortened(ACCEPTED["gpt2"])
    tensors = {f"transformer.{name}": shape for name, shape in tensors_of(config).items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    weights = Weights(open_checkpoint(write(tmp_path / "model", config, tensors)))
    assert weights.skipped() == ()
    assert weights.left_out == ("lm_head.weight",)
    assert weights.checkpoint.tensors["transformer.h.0.attn.c_attn.weight"].shape == (3 * 768, 768)


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("head", ["language_model.lm_head.weight", None])
def test_a_text_model_within_is_found(name: str, head: str | None, tmp_path: Path) -> None:
    config = shortened(WITHIN[name]) | {"text_config": shortened(WITHIN[name]["text_config"])}
    text = load_model(config, ["language_model.model.norm.weight"]).config
    full = sizes(text.hidden_size, text.intermediate_size, 2, text.heads, text.kv_heads, text.vocab_size)
    full |= {"model_type": text.model_type, "head_dim": text.head_dim}
    tensors = {f"language_model.{each}": shape for each, shape in tensors_of(full).items()}
    tensors |= {"vision_tower.patch.weight": (8, 8)} | ({head: (text.vocab_size, text.hidden_size)} if head else {})
    weights = Weights(open_checkpoint(write(tmp_path / "model", config, tensors)))
    assert weights.skipped() == ("vision_tower.patch.weight",)
    assert weights.model.config.tied_embeddings == (head is None)


def test_integers_that_nothing_explains_are_named_as_such(tmp_path: Path) -> None:
    """A folder for MLX, say, has packed words under the names of weights."""
    config = shortened(ACCEPTED["Llama-3.2-1B"])
    folder = write(
        tmp_path / "model", config, {n: (*s[:-1], s[-1] // 8) for n, s in tensors_of(config).items()}, dtype="U8"
    )
    with pytest.raises(CheckpointError, match="is stored as U8, and nothing says how it is quantized"):
        Weights(open_checkpoint(folder))


def test_a_checkpoint_of_pickles_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ACCEPTED["pythia-70m"]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    for part in ("pytorch_model.bin", "AutoModelForCausalLM", "AutoTokenizer", 'save_pretrained("converted")'):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if "128k" in name or "Phi-4-mini" in name])
def test_a_context_that_long_factors_made_is_that_of_the_short_ones(name: str) -> None:
    config = load_model(ACCEPTED[name]).config
    assert (config.max_positions, config.longest) == (4096, 4096)
    if "first release" in name:
        assert config == load_model(ACCEPTED["Phi-3-mini-128k-instruct"]).config
    assert config.rope is not None
    assert math.isclose(config.rope.factor, math.sqrt(1 + math.log(32) / math.log(4096)))
