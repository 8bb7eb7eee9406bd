"""Checkpoints whose tensors are called otherwise, or lie otherwise, are the same models: their logits say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropoint
from architectures import make
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.recipe import load_recipe
from zeropoint.runtime.generate import load
from zeropoint.runtime.weights import Weights

Tensors = dict[str, Tensor]
TOKENS = [i * 7 % 199 + 1 for i in range(40)]


def without_prefix(model: Any, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in tensors.items()}


def stacked(model: Any, tensors: Tensors) -> Tensors:
    """The parameters as transformers 5 holds them in memory."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def both(model: Any, tensors: Tensors) -> Tensors:
    return without_prefix(model, stacked(model, tensors))


def head_twice(model: Any, tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))
    return {**tensors, "lm_head.weight": tensors[name].clone()}


def head_alone(model: Any, tensors: Tensors) -> Tensors:
    return {"lm_head.weight" if name == "model.embed_tokens.weight" else name: t for name, t in tensors.items()}


CASES: list[tuple[str, str, Callable[[Any, Tensors], Tensors], int]] = [
    ("llama", "plain", without_prefix, 0),
    ("llama", "tied", without_prefix, 0),
    ("llama", "tied", head_twice, 1),
    ("llama", "tied", head_alone, 0),
    ("gemma", "plain", head_twice, 1),
    ("gpt_neox", "plain", without_prefix, 0),
    ("gpt2", "plain", without_prefix, 0),
    ("gpt2", "plain", head_twice, 1),
    ("mixtral", "window", stacked, 0),
    ("mixtral", "window", both, 0),
    ("qwen3_moe", "weights of a part", stacked, 0),
    ("qwen3_moe", "every second without experts", stacked, 0),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {case[1]}, {case[2].__name__}")
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A folder, and how many of its tensors are left out; beside it "usual", the same as transformers saves it."""
    name, variant, rename, left_out = request.param
    model = make(tmp_path / "usual", name, variant)
    model.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    renamed = rename(model, load_file(file))
    assert renamed.keys() != load_file(file).keys()
    save_file({key: tensor.contiguous() for key, tensor in renamed.items()}, file, metadata={"format": "pt"})
    return tmp_path / "other", left_out


def test_the_logits_are_the_same_and_nothing_is_skipped(pair: tuple[Path, int]) -> None:
    folder, left_out = pair
    weights = Weights(open_checkpoint(folder))
    assert weights.skipped() == ()
    assert len(weights.left_out) == left_out
    for options in ({"runtime": "torch"}, {"runtime": "native", "activations": "float"}):
        ours, usual = (load(each, **options).logits(TOKENS) for each in (folder, folder.parent / "usual"))  # type: ignore[arg-type]
        assert (ours == usual).all()


def test_the_outputs_are_the_same_and_have_the_usual_names(pair: tuple[Path, int]) -> None:
    folder, left_out = pair
    changes = [
        "weights.group_size=16",
        'rounding="rtn"',
        'range="minmax"',
        'rules=[{layers=["*.0.*att*"], weights={bits=8}}]',
    ]
    outputs = []
    for each in (folder, folder.parent / "usual"):
        done = zeropoint.quantize(each, folder.parent / f"{each.name}-w4", recipe=load_recipe("w4a16", changes))
        outputs.append(load_file(folder.parent / f"{each.name}-w4" / "model.safetensors"))
        assert len(done.left_out) == (left_out if each is folder else 0)
    ours, usual = outputs
    assert ours.keys() == usual.keys()
    assert all(torch.equal(ours[key], usual[key]) for key in usual)


def test_a_head_that_is_another_is_a_head_whatever_is_usual(tmp_path: Path) -> None:
    make(tmp_path, "gemma", "untied, biased")
    config = tmp_path / "config.json"
    usual = load(tmp_path, runtime="torch").logits(TOKENS)
    config.write_text(config.read_text().replace('"tie_word_embeddings": false,', ""))
    assert "tie_word" not in config.read_text()
    weights = Weights(open_checkpoint(tmp_path))
    assert not weights.model.config.tied_embeddings
    assert weights.left_out == weights.skipped() == ()
    assert (load(tmp_path, runtime="torch").logits(TOKENS) == usual).all()
