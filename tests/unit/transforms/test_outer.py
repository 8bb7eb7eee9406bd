"""A rotation of the whole model, from the checkpoint to the written folder, which no rounding has touched."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import zeropoint
from reference.rotate import rotate_outer
from tiny import make_gguf, make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import RecipeError
from zeropoint.evaluation.results import QuantizeResult
from zeropoint.models import llama
from zeropoint.models.parts import outer_tensors
from zeropoint.pipeline import require_fits
from zeropoint.recipe import Choice, Recipe
from zeropoint.runtime.weights import Weights
from zeropoint.transforms.hadamard import rotation
from zeropoint.transforms.outer import Outer, find_rotation

TOKENS = [i * 7 % 300 for i in range(40)]
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
EMPTY = "model.layers.1.mlp.down_proj"
"""The one linear that is quantized: it is all zero, so that its integers are exact."""


def recipe(*transforms: object, **others: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "weights": {"bits": 8, "granularity": "channel"},
            "rounding": "rtn",
            "range": "minmax",
            "calibration": {"samples": 4, "length": 32, "seed": 3},
            "rules": [{"layers": "*", "keep_float": True}, {"layers": EMPTY}],
            "transforms": list(transforms) or ["rotate"],
            **others,
        }
    )


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a folder, or take out those that are None."""
    file = folder / "model.safetensors"
    changed = {**load_file(file), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    save_file({name: t for name, t in changed.items() if t is not None}, file, metadata={"format": "pt"})


def llama_folder(folder: Path, **sizes: Any) -> Path:
    make_llama(folder, **sizes)
    tensors = load_file(folder / "model.safetensors")
    change(folder, **{f"{EMPTY}.weight": torch.zeros_like(tensors[f"{EMPTY}.weight"])})
    return folder


@dataclass(frozen=True)
class Run:
    source: Path
    output: Path
    result: QuantizeResult

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.output / "model.safetensors")


def run(tmp_path: Path, *transforms: object, **sizes: Any) -> Run:
    source = llama_folder(tmp_path / "source", **sizes)
    return Run(source, tmp_path / "out", zeropoint.quantize(source, tmp_path / "out", recipe=recipe(*transforms)))


def logits(folder: Path) -> NDArray[np.float32]:
    return zeropoint.load(folder, runtime="torch", kv_cache="float32").logits(TOKENS)


def off_by(run: Run) -> float:
    """The largest difference of the logits, relative to the largest logit."""
    before, after = logits(run.source), logits(run.output)
    assert np.abs(before).max() > 0.5
    return float(np.abs(after - before).max() / np.abs(before).max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"kv_heads": 4, "head_dim": 24},
        {"kv_heads": 1, "hidden": 72, "head_dim": 10},
        {"hidden": 36, "head_dim": 8},
        {"hidden": 68, "head_dim": 18},
    ],
    ids=str,
)
def test_the_written_model_has_the_same_logits(sizes: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    done = run(tmp_path, tied=tied, **sizes)
    assert off_by(done) <= 1e-5
    tensors = done.tensors()
    assert all(bool((tensor == 1).all()) for name, tensor in tensors.items() if name.endswith("norm.weight"))
    assert not torch.equal(tensors[EMBEDDING], load_file(done.source / "model.safetensors")[EMBEDDING])


@pytest.mark.parametrize("other", ["smoothquant", "awq"])
def test_another_transform_may_follow(other: str, tmp_path: Path) -> None:
    done = run(tmp_path, "rotate", {"method": other, "strength": 0.5})
    assert off_by(done) <= 1e-5
    assert [row.method for row in done.result.transforms] == ["rotate", other] * 2


def test_the_outer_tensors_are_the_papers(tmp_path: Path) -> None:
    done = run(tmp_path, tied=False)
    before, after = (
        {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (done.source, done.output)
    )
    q = rotation(64, 3).matrix().numpy()  # the calibration's seed
    embedding, head = rotate_outer(before[EMBEDDING], before[NORM], before[HEAD], q)
    assert np.allclose(after[EMBEDDING], embedding, atol=1e-6)
    assert np.allclose(after[HEAD], head, atol=1e-6)


def test_a_tied_head_comes_apart_and_the_result_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, tied=True)
    assert json.loads((done.output / "config.json").read_text())["tie_word_embeddings"] is False
    table = done.tensors()[HEAD]
    assert done.result.transform_note is not None
    assert f"takes {table.numel() * 4:,} bytes more" in done.result.transform_note
    assert done.result.size.head_bytes == table.numel() * 4


def test_a_tied_head_stays_tied_where_the_gain_is_constant(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source", tied=True)
    change(source, **{NORM: torch.full((64,), 1.5)})
    done = Run(source, tmp_path / "out", zeropoint.quantize(source, tmp_path / "out", recipe=recipe()))
    assert off_by(done) <= 1e-5
    assert HEAD not in done.tensors()
    assert json.loads((done.output / "config.json").read_text())["tie_word_embeddings"] is True
    assert done.result.transform_note is None


def test_a_tied_head_that_is_stored_twice_is_written_once(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source", tied=True)
    change(source, **{HEAD: load_file(source / "model.safetensors")[EMBEDDING].clone()})
    done = Run(source, tmp_path / "out", zeropoint.quantize(source, tmp_path / "out", recipe=recipe()))
    assert off_by(done) <= 1e-5
    assert done.result.skipped == ()


def test_untied_models_get_no_note(tmp_path: Path) -> None:
    assert run(tmp_path, tied=False).result.transform_note is None


def test_a_large_table_is_rotated_slab_by_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.transforms.outer.SLAB_VALUES", 64 * 7)
    assert off_by(run(tmp_path)) <= 1e-5


def test_in_bfloat16_only_the_dtype_rounds(tmp_path: Path) -> None:
    done = run(tmp_path, dtype="bfloat16", attention_bias=True)
    assert {tensor.dtype for name, tensor in done.tensors().items() if EMPTY not in name} == {torch.bfloat16}
    assert 1e-5 < off_by(done) <= 2e-2


def test_a_gguf_file_is_rotated_like_a_folder(tmp_path: Path) -> None:
    settings = recipe(rules=[])
    zeropoint.quantize(make_gguf(tmp_path / "model.gguf", quantization="Q8_0"), tmp_path / "gguf", recipe=settings)
    zeropoint.quantize(make_llama(tmp_path / "model"), tmp_path / "folder", recipe=settings)
    one, other = logits(tmp_path / "gguf"), logits(tmp_path / "folder")
    assert np.abs(one - other).max() <= 0.1 * np.abs(other).max()


def test_the_embedded_texts_are_those_of_the_written_table(tmp_path: Path) -> None:
    """What enters the first block in calibration is what the written model computes."""
    done = run(tmp_path, dtype="bfloat16", tied=False)
    before, after = load_file(done.source / "model.safetensors"), done.tensors()
    weights = Weights(open_checkpoint(done.source))
    names = outer_tensors(weights.model)
    outer = Outer(weights.checkpoint, weights.model, rotation(64, 3), dict.fromkeys(names, torch.bfloat16))
    tokens = torch.tensor(TOKENS).view(1, -1)
    assert torch.equal(outer.embedded(before[EMBEDDING][tokens].float()), after[EMBEDDING][tokens].float())


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source", hidden=72, head_dim=18)  # Paley, and a random orthogonal matrix
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 1):
            rotation.cache_clear()
            torch.set_num_threads(count)
            zeropoint.quantize(source, tmp_path / "out", recipe=recipe(), overwrite=True)
            found.append((tmp_path / "out" / "model.safetensors").read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    zeropoint.quantize(source, tmp_path / "out", recipe=recipe({"method": "rotate", "seed": 4}), overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != found[0]


def test_switched_off_it_gives_the_bytes_of_no_transform(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    off = {"method": "rotate", "residual": False, "heads": False}
    zeropoint.quantize(source, tmp_path / "off", recipe=recipe(off))
    zeropoint.quantize(source, tmp_path / "none", recipe=recipe(transforms=[]))
    file = "model.safetensors"
    assert (tmp_path / "off" / file).read_bytes() == (tmp_path / "none" / file).read_bytes()


def test_the_error_before_is_that_of_the_block_as_it_was(tmp_path: Path) -> None:
    """A trial undoes the rotation of the texts for the block that is not rotated yet."""
    source = llama_folder(tmp_path / "source")
    settings = {"rules": [], "weights": {"bits": 4, "granularity": "channel"}}
    with_, off = (
        zeropoint.quantize(source, tmp_path / name, recipe=recipe(choice, **settings)).transforms
        for name, choice in (("on", "rotate"), ("off", {"method": "rotate", "residual": False, "heads": False}))
    )
    assert with_[0].error_before == pytest.approx(off[0].error_before, rel=1e-3)
    assert with_[0].error_after != pytest.approx(off[0].error_after, rel=1e-3)


def test_a_rotation_comes_first(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source")
    with pytest.raises(RecipeError, match=r"transforms\.1 is 'rotate', .* put it first"):
        zeropoint.quantize(source, tmp_path / "out", recipe=recipe("smoothquant", "rotate", rules=[]))
    with pytest.raises(RecipeError, match="put it first"):
        require_fits(source, recipe("smoothquant", "rotate", rules=[]))
    heads = {"method": "rotate", "residual": False}
    zeropoint.quantize(source, tmp_path / "out", recipe=recipe("smoothquant", heads, rules=[]))


def test_an_architecture_whose_stream_does_not_commute_is_refused(tmp_path: Path) -> None:
    class Sandwiched(llama.Model):
        """A norm behind each sublayer, before its output is added."""

        flow = tuple(replace(s, residual=None) if s.residual == "adds" else s for s in llama.FLOW)

    model = Sandwiched(Weights(open_checkpoint(make_llama(tmp_path / "source"))).model.config)
    with pytest.raises(RecipeError, match=r"in a llama model what self_attn\.o_proj do with the residual stream"):
        find_rotation([Choice("rotate")], model, seed=0)
    assert find_rotation([Choice("rotate", {"residual": False})], model, seed=0) is None
