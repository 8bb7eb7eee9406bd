"""GGUF files of every architecture that is read, as llama.cpp's converter writes them, against transformers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import architectures
import zeropoint
from gguf_files import arch_of, write_gguf
from zeropoint import find
from zeropoint.checkpoint import open_checkpoint
from zeropoint.checkpoint.gguf_architectures import FOLDER
from zeropoint.checkpoint.gguf_source import Gguf
from zeropoint.errors import CheckpointError, InputError
from zeropoint.models import load_model
from zeropoint.recipe import load_recipe
from zeropoint.runtime.generate import load
from zeropoint.runtime.weights import Weights

SIXTH = {"sliding_window_pattern": 6}
FIVE_OF_SIX = ["sliding_attention"] * 5 + ["full_attention"]
PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
Case = tuple[str, str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "llama": ("llama", "plain", {}, {}),
    "mistral": ("mistral", "no window", {}, {}),
    "mixtral": ("mixtral", "plain", {}, {}),
    "qwen2": ("qwen2", "plain", {}, {}),
    "qwen3": ("qwen3", "plain", {}, {}),
    "qwen3, biased": ("qwen3", "biased", {}, {}),
    "qwen3_moe": ("qwen3_moe", "plain", {}, {}),
    "gemma": ("gemma", "plain", {}, {}),
    "gemma2": ("gemma2", "capped", {"query_pre_attn_scalar": 12, "num_hidden_layers": 3}, {}),
    "gemma3": ("gemma3_text", "plain", {**SIXTH, "query_pre_attn_scalar": 12, "num_hidden_layers": 7}, {}),
    "gemma3, scaled": (
        "gemma3_text",
        "capped logits, scaled rope",
        {"query_pre_attn_scalar": 20, "num_hidden_layers": 6, "layer_types": FIVE_OF_SIX},
        {},
    ),
    "gemma3, another pattern": (
        "gemma3_text",
        "capped logits, scaled rope",
        {"query_pre_attn_scalar": 20, "tie_word_embeddings": False},
        {"attention__sliding_window_pattern": [False, True]},
    ),
    "phi3": ("phi3", "plain", {}, {}),
    "phi3, window": ("phi3", "window, rope of a part", {}, {}),
    "phi3, longrope": ("phi3", "longrope, of a part", {}, {}),
    "olmo2": ("olmo2", "one kv head", {"head_dim": 12}, {}),
    "starcoder2": ("starcoder2", "window, untied", {"sliding_window": None}, {}),
    "starcoder2, no bias": ("starcoder2", "no bias", {}, {}),
    "gpt2": ("gpt2", "plain", {}, {}),
    "gpt2, untied": ("gpt2", "plain", {"tie_word_embeddings": False, "n_inner": 80}, {}),
    "gpt_neox": ("gpt_neox", "plain", {"rope_parameters": PART}, {}),
    "gpt_neox, another base": ("gpt_neox", "plain", {}, {"rope__freq_base": 5000.0}),
    "gpt_neox, in turn": ("gpt_neox", "one after the other", {"hidden_act": "gelu"}, {}),
    "smollm3": (
        "smollm3",
        "every second without rope",
        {"no_rope_layer_interval": 4, "no_rope_layers": None, "num_hidden_layers": 5},
        {},
    ),
}
"""model_type and variant in `architectures`, what is changed in it, and in what the converter writes."""


def make(tmp_path: Path, case: str, **more: Any) -> tuple[Any, Path]:
    """Write the model of a case as a folder and as a file; return transformers' model, and the file."""
    name, variant, changes, fields = CASES[case]
    model = architectures.make(tmp_path / "m", name, variant, vocab_size=300, **changes)
    return model, write_gguf(tmp_path / "m.gguf", model, **{**fields, **more})


def test_every_architecture_that_is_read_has_a_case() -> None:
    known = {each.model_type for name in find.names(FOLDER) for each in find.load(FOLDER, name).ARCHITECTURES}
    assert {name for name, *_ in CASES.values()} == known | {"mistral"}


@pytest.mark.parametrize("runtime", ["torch", "native"])
@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_logits_of_transformers(tmp_path: Path, case: str, runtime: str) -> None:
    model, file = make(tmp_path, case)
    tokens = torch.arange(1, 91)
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    exact = {"activations": "float", "kv_cache": "float32"} if runtime == "native" else {}
    found = torch.from_numpy(load(file, runtime=runtime, **exact).logits(tokens.tolist()))
    assert torch.allclose(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_config_json_of_a_file_is_that_of_its_model(tmp_path: Path, case: str) -> None:
    """As transformers reads it: the same weights give the same logits."""
    model, file = make(tmp_path, case)
    ours = open_checkpoint(file).config
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ours), dtype=torch.float32).eval()
    theirs.load_state_dict(model.state_dict())
    tokens = torch.arange(1, 91)[None]
    with torch.no_grad():
        expected, found = model(tokens).logits, theirs(tokens).logits
    assert type(theirs).__name__ in ours["architectures"]
    # float32 keeps 7 digits of an epsilon, a factor or a cap
    assert torch.allclose(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


TALL = {"head_dim": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
FLAT = {"hidden_size": 64, "intermediate_size": 96}
DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("capped", {**TALL, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0}),
    "gemma3_text": ("plain", {**TALL, **SIXTH, "query_pre_attn_scalar": 256, "num_hidden_layers": 6}),
    "phi3": ("plain", {**FLAT, "max_position_embeddings": 4096}),
    "qwen3_moe": ("plain", {**FLAT, "head_dim": 16, "moe_intermediate_size": 768, "tie_word_embeddings": False}),
    "starcoder2": ("window, untied", {**FLAT, "sliding_window": None}),
    "gpt2": ("plain", {"hidden_size": 64, "max_position_embeddings": 1024}),
}
"""With the values that transformers' own reader of GGUF files takes where it does not look for a key."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_quantized_file_gives_the_logits_of_transformers_own_reader(tmp_path: Path, name: str) -> None:
    """A second reader of the same blocks: transposed, stacked and fused ones, and gains with 1 added."""
    variant, changes = DEFAULTS[name]
    model = architectures.make(tmp_path / "m", name, variant, vocab_size=300, **changes)
    file = write_gguf(tmp_path / "m.gguf", model, quantization="Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    tokens = torch.arange(1, 60)
    with torch.no_grad():
        expected, exact = theirs(tokens[None]).logits[0], model(tokens[None]).logits[0]
    scale = float(expected.abs().max())
    found = torch.from_numpy(load(file, runtime="torch").logits(tokens.tolist()))
    assert torch.allclose(found, expected, atol=2e-5 * scale, rtol=0)
    assert float((expected - exact).abs().max()) > 1e-4 * scale  # it was quantized


@pytest.mark.parametrize("case", ["mixtral", "gpt2", "gpt_neox", "phi3", "qwen3_moe"])
def test_a_file_becomes_the_folder_that_its_model_becomes(tmp_path: Path, case: str) -> None:
    """Integers, and what stays float in the order of a Hugging Face folder."""
    _, file = make(tmp_path, case)
    kept = {"gpt2": "*.mlp.c_proj", "gpt_neox": "*.0.attention.*"}.get(case, "*.0.*o_proj")
    recipe = load_recipe(
        "w4a16",
        ["weights.group_size=16", "rounding=rtn", "range=minmax", f'rules=[{{layers=["{kept}"], keep_float=true}}]'],
    )
    written = []
    for source in (tmp_path / "m", file):
        zeropoint.quantize(source, tmp_path / f"{source.name}-out", recipe=recipe)
        written.append(load_file(tmp_path / f"{source.name}-out" / "model.safetensors"))
    assert written[0].keys() == written[1].keys()
    for name, values in written[0].items():
        assert torch.equal(values, written[1][name]), name


def config_of(tmp_path: Path, case: str, **fields: Any) -> dict[str, Any]:
    """The config.json of a file with other keys; read anew, without its tensors."""
    _, file = make(tmp_path, case)
    found = Gguf(file)
    own = {f"{found.fields.arch}.{key.replace('__', '.')}": value for key, value in fields.items()}
    metadata = {key: value for key, value in {**found.metadata, **own}.items() if value is not None}
    return found._architecture.config(replace(found.fields, metadata=metadata))


def test_what_is_not_in_a_file_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    bare = config_of(
        tmp_path, "gemma2", attn_logit_softcapping=None, final_logit_softcapping=None, attention__sliding_window=None
    )
    wanted = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
    assert {key: bare[key] for key in wanted} == wanted
    bare = config_of(tmp_path, "gemma3", rope__freq_base_swa=None, rope__freq_base=None)
    assert [rope["rope_theta"] for rope in bare["rope_parameters"].values()] == [10000.0, 10000.0]
    assert config_of(tmp_path, "gpt_neox", use_parallel_residual=None)["use_parallel_residual"]


def test_the_largest_gemmas_are_told_by_their_blocks(tmp_path: Path) -> None:
    """As in llama.cpp: what their scores are multiplied by is not in the file."""
    for case, blocks in (("gemma2", 46), ("gemma3", 62)):
        found = [config_of(tmp_path, case, block_count=count) for count in (blocks - 1, blocks)]
        assert [each["query_pre_attn_scalar"] for each in found] == [12, 48 // 4]
        wide = config_of(tmp_path, case, block_count=blocks, embedding_length=96)
        assert wide["query_pre_attn_scalar"] == 96 // 4


def test_a_gemma3_without_a_window_has_none_anywhere(tmp_path: Path) -> None:
    for window in (0, None):
        found = config_of(tmp_path, "gemma3", attention__sliding_window=window)
        assert set(found["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize("rotated", range(2, 98, 2))
def test_the_rotated_features_come_out_as_they_went_in(tmp_path: Path, rotated: int) -> None:
    """transformers multiplies by a quotient and rounds down."""
    from zeropoint.checkpoint.gguf_architectures._fields import part

    assert int(98 * part(rotated, 98)) == rotated


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"attn_logit_softcapping": 50.0}, r"gemma\.attn_logit_softcapping is 50\.0, which may change"),
    ("gemma2", {"rope__freq_base_swa": 5.0}, r"gemma2\.rope\.freq_base_swa is 5\.0, which may change"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, r"attn_logit_softcapping is -1\.0; a positive number"),
    ("gemma2", {"attention__sliding_window_pattern": [True]}, r"pattern is \[True\]; a number, or true or false for"),
    ("gemma3", {"attention__sliding_window_pattern": 0}, "pattern is 0; a number, or true or false for each of 7"),
    ("gemma3", {"rope__freq_base_swa": float("nan")}, "freq_base_swa is nan; a positive number"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which may change"),
    ("phi3", {"rope__dimension_count": 14}, "dimension_count is 14; an even number up to 12"),
    ("phi3", {"rope__dimension_count": 3}, "dimension_count is 3; an even number up to 12"),
    ("phi3", {"attention__key_length": 24}, "heads of 24 features, or of another number, do not make up"),
    ("phi3, longrope", {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}, "with another rope scaling"),
    ("olmo2", {"attention__sliding_window": 64}, r"olmo2\.attention\.sliding_window is 64, which may change"),
    ("gpt2", {"attention__head_count_kv": 2}, "head_count_kv is 2; 4 belongs there"),
    ("gpt2", {"attention__causal": True}, "attention.causal is True, which may change"),
    ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual is 1; true or false"),
    ("gpt_neox", {"attention__key_length": 8}, "key_length is 8; 12 belongs there"),
    ("mixtral", {"expert_count": 3}, r"has the shape \(4, 80, 48\), and llama\.expert_count is 3"),
    ("mixtral", {"expert_used_count": 0}, "expert_used_count is 0; a positive number"),
    ("mixtral", {"expert_weights_scale": 2.5}, r"expert_weights_scale is 2\.5, which may change"),
    ("mixtral", {"expert_count": None}, "'blk.0.ffn_gate_inp.weight' is none of this architecture's"),
    ("qwen3_moe", {"expert_feed_forward_length": None}, "expert_feed_forward_length is None; a positive number"),
    ("qwen3_moe", {"expert_shared_count": 1}, "expert_shared_count is 1, which may change"),
    ("qwen3_moe", {"expert_count": 0}, "qwen3moe.expert_count is 0, which is not covered"),
    ("qwen3", {"expert_count": 4}, "qwen3.expert_count is 4, which is not covered"),
]


@pytest.mark.parametrize(("case", "fields", "message"), REFUSED)
def test_what_is_not_covered_is_refused_by_its_key(
    tmp_path: Path, case: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(make(tmp_path, case, **fields)[1])


def test_biases_where_an_architecture_has_none_are_refused(tmp_path: Path) -> None:
    for case, linear in (("gemma2", "self_attn.o_proj"), ("mixtral", "self_attn.q_proj"), ("phi3", "mlp.down_proj")):
        model, _ = make(tmp_path, case)
        for layer in model.model.layers:
            module = layer.get_submodule(linear)
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features))
        with pytest.raises(CheckpointError, match=f"have biases, which those of {arch_of(model)} have not"):
            open_checkpoint(write_gguf(tmp_path / "m.gguf", model))


def test_one_half_of_longrope_is_refused(tmp_path: Path) -> None:
    model, _ = make(tmp_path, "phi3, longrope")
    rope = model.config.rope_parameters
    model.config.rope_parameters = {key: value for key, value in rope.items() if key != "short_factor"}
    with pytest.raises(CheckpointError, match=r"rope_factors_long\.weight without the other divisors"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", model))


def test_of_a_stack_the_rows_of_one_expert_are_read(tmp_path: Path) -> None:
    model, file = make(tmp_path, "mixtral")
    weights = Weights(open_checkpoint(file)).checkpoint
    stacked = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"].numpy()
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    assert np.array_equal(weights.read_array(name, rows=(3, 9)), stacked[2, 80 + 3 : 80 + 9])
    assert weights.tensors[name].size_bytes == stacked[2, 80:].nbytes


def test_rows_of_a_matrix_in_another_order_are_those_of_the_folder(tmp_path: Path) -> None:
    for case, end in (("gpt2", "h.0.attn.c_attn.weight"), ("gpt_neox", "layers.0.attention.query_key_value.bias")):
        make(tmp_path, case)
        found = [Weights(open_checkpoint(tmp_path / each)).checkpoint for each in ("m", "m.gguf")]
        name = next(each for each in found[0].tensors if each.endswith(end))
        assert found[0].tensors[name].shape == found[1].tensors[name].shape
        for rows in (None, (0, 5), (40, 141)):
            parts = [each.read_array(name, rows=rows) for each in found]
            assert np.array_equal(*parts), (name, rows)
        raw = [open_checkpoint(tmp_path / each).read(name) for each in ("m", "m.gguf")]
        assert torch.equal(*raw)


HOSTILE = (0, -1, 1, 3, 1 << 31, 1 << 62, 0.0, -0.5, 1e-30, 1e38, math.nan, math.inf, True, False, "", "yarn", "linear")
LISTS: tuple[list[Any], ...] = ([], [True], [1.0, math.nan], ["a"] * 7, [2] * 7)


@pytest.mark.parametrize("case", [case for case in CASES if "," not in case or case == "phi3, longrope"])
def test_no_value_of_a_key_leads_to_another_error(tmp_path: Path, case: str) -> None:
    """Each key of the file alone, with values of every type, up to the model that config.json would be read as."""
    found = Gguf(make(tmp_path, case)[1])
    keys = [key for key in found.metadata if key.startswith((f"{found.fields.arch}.", "tokenizer.ggml.bos"))]
    extra = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "attention.sliding_window_pattern")
    messages = []
    for key in (*keys, *(f"{found.fields.arch}.{name}" for name in extra)):
        for value in (*HOSTILE, *LISTS):
            fields = replace(found.fields, metadata={**found.metadata, key: value})
            try:
                load_model(found._architecture.config(fields))
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert max(map(len, messages)) < 600
