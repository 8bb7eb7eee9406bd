from __future__ import annotations

import gguf
import pytest

from architectures import SMALL
from zeropoint.errors import ArchitectureError
from zeropoint.exporting._gguf_metadata import ARCHITECTURES, architecture_of
from zeropoint.models import load_model
from zeropoint.models.parts import outer_tensors

CONFIG = {**SMALL, "rms_norm_eps": 1e-6, "hidden_act": "silu", "sliding_window": None}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_tensor_of_an_architecture_has_a_name_in_llama_cpp(model_type: str) -> None:
    model = load_model({**CONFIG, "model_type": model_type})
    arch = architecture_of(model).arch
    names = gguf.get_tensor_name_map(arch, model.config.layers)
    tensors = [*outer_tensors(model), *(name for index in range(2) for name in model.block_tensors(index))]
    theirs = [names.get_name(name, try_suffixes=(".weight", ".bias")) for name in tensors]
    assert None not in theirs
    assert len(set(theirs)) == len(tensors)


@pytest.mark.parametrize(("model_type", "heads"), [("llama", [4, 2]), ("mistral", [4, 2]), ("qwen2", [None, None])])
def test_rows_of_q_and_k_are_interleaved_where_llama_cpp_rotates_neighbours(
    model_type: str, heads: list[int | None]
) -> None:
    model = load_model({**CONFIG, "model_type": model_type})
    linears = [f"model.layers.0.self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj")]
    assert [architecture_of(model).heads(name, model) for name in linears] == [*heads, None]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
            "layer 1 has",
        ),
        ({"model_type": "gemma", "head_dim": 12, "hidden_act": "gelu_pytorch_tanh"}, "cannot be exported as GGUF yet"),
    ],
)
def test_what_the_keys_do_not_say_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ArchitectureError, match=match):
        architecture_of(load_model({**CONFIG, **changes}))
