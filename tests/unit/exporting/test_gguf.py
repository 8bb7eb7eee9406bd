from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropoint
from child import run_python
from tiny import LLAMA3_SCALING, make_llama, quantized
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import ArchitectureError, CheckpointError, InputError, OutputError, SchemeError
from zeropoint.progress import Progress
from zeropoint.recipe import load_recipe
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.runtime.torch_runner import TorchRunner
from zeropoint.runtime.weights import Weights

QUICK = ["rounding=rtn", "range=minmax"]
GROUPS = [*QUICK, "weights.group_size=32"]


def make(folder: Path, recipe: str, overrides: list[str], **sizes: Any) -> Path:
    model = make_llama(folder / "model", **sizes)
    zeropoint.quantize(model, folder / "out", recipe=load_recipe(recipe, overrides))
    return folder / "out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("tiny"))


FLOAT_AND_8_BITS = (
    'rules=[{ layers = "*.o_proj", keep_float = true }, { layers = "*.up_proj", weights = { bits = 8 } }]'
)

CASES: dict[str, tuple[str, list[str], dict[str, Any], dict[str, int]]] = {
    "groups of 32": ("w4a16", GROUPS, {}, {"F32": 6, "Q4_0": 14}),
    "groups of 64, which are two blocks": ("w4a16", QUICK, {"intermediate": 128}, {"F32": 6, "Q4_0": 14}),
    "8 bits per channel": ("w8a16", QUICK, {"dtype": "bfloat16"}, {"BF16": 1, "F32": 5, "Q8_0": 14}),
    "3 bits": ("w3a16", GROUPS, {"dtype": "float16"}, {"F16": 1, "F32": 5, "Q4_0": 14}),
    "biases and a head of its own": (
        "w4a16",
        GROUPS,
        {"attention_bias": True, "mlp_bias": True, "tied": False},
        {"F32": 21, "Q4_0": 14},
    ),
    "llama3's rope": ("w4a16", GROUPS, {"rope_scaling": LLAMA3_SCALING, "head_dim": 32}, {"F32": 7, "Q4_0": 14}),
    "int8 embeddings": ("w4a16", [*GROUPS, "embeddings=int8"], {}, {"F32": 5, "Q4_0": 14, "Q8_0": 1}),
    "int4 embeddings": ("w4a16", [*GROUPS, "embeddings=int4"], {"tied": False}, {"F32": 5, "Q4_0": 16}),
    "some layers float": (
        "w4a16",
        [*GROUPS, FLOAT_AND_8_BITS],
        {},
        {"F32": 8, "Q4_0": 10, "Q8_0": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_back_has_the_weights_and_the_logits_of_the_folder(case: str, tmp_path: Path) -> None:
    recipe, overrides, sizes, types = CASES[case]
    out = make(tmp_path, recipe, overrides, **sizes)
    result = zeropoint.export(out, tmp_path / "m.gguf", format="gguf")
    assert result.types == types
    assert result.size_bytes == (tmp_path / "m.gguf").stat().st_size
    ours, theirs = Weights(open_checkpoint(out)), Weights(open_checkpoint(tmp_path / "m.gguf"))
    for name in ours.schemes:
        assert torch.equal(ours.restored_linear(name), theirs.restored_linear(name)), name
    for table in ours.tables:
        assert torch.equal(ours.restored_table(table.name).float(), theirs.restored_table(table.name)), table
    tokens = list(range(20))
    logits = [
        NativeRunner(each, activations="float", embeddings="stored", cache="float32").logits(tokens)
        for each in (ours, theirs)
    ]
    # the same numbers multiplied by different kernels, of integers and of floats
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[0]).max()


# of what each kind of rounding and tuning leaves of the scales
LEARNED = ["calibration.samples=4", "calibration.length=32", "calibration.held_out=2", 'refine=["descent"]']


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_recipes_for_gguf_export_as_the_type_that_they_are_named_after(kind: str, tmp_path: Path) -> None:
    out = make(tmp_path, f"gguf_{kind.lower()}", LEARNED)
    result = zeropoint.export(out, tmp_path / "m.gguf", format="gguf")
    assert result.types == {"F32": 6, kind: 14}
    assert result.notes == ()


@pytest.mark.parametrize("tied", [False, True])
def test_q4_k_is_written_where_256_divides_the_columns_and_q5_0_elsewhere(tied: bool, tmp_path: Path) -> None:
    """Tied: the rows of q and k, which are interleaved, are rows of super-blocks too."""
    sizes = {"hidden": 256, "intermediate": 160} if tied else {"hidden": 160, "intermediate": 256}
    out = make(tmp_path, "gguf_q4_k", LEARNED, tied=tied, layers=1, **sizes)
    result = zeropoint.export(out, tmp_path / "m.gguf", format="gguf")
    floats = {"F32": 4} if tied else {"F32": 5}
    assert result.types == {**floats, **({"Q4_K": 6, "Q5_0": 1} if tied else {"Q4_K": 1, "Q5_0": 6})}
    assert result.notes == ()
    ours, theirs = Weights(open_checkpoint(out)), Weights(open_checkpoint(tmp_path / "m.gguf"))
    tokens = list(range(20))
    logits = []
    for each in (ours, theirs):
        for name in ours.schemes:
            assert torch.equal(ours.restored_linear(name), each.restored_linear(name)), name
        logits.append(NativeRunner(each, activations="float", cache="float32").logits(tokens))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[0]).max()
    # what the native runtime restores is what torch does
    torch_logits = TorchRunner(ours).logits(tokens)
    assert np.abs(logits[0] - torch_logits).max() < 1e-4 * np.abs(torch_logits).max()
    raw = gguf.GGUFReader(tmp_path / "m.gguf")
    (down,) = (tensor for tensor in raw.tensors if tensor.name == "blk.0.ffn_down.weight")
    values = gguf.quants.dequantize(down.data, down.tensor_type)
    assert np.array_equal(values, ours.restored_linear("model.layers.0.mlp.down_proj").numpy())


def test_tokenizer_template_and_special_tokens_come_back(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "m.gguf", format="gguf")
    ours, theirs = (load_tokenizer(open_checkpoint(path)) for path in (folder, tmp_path / "m.gguf"))
    assert (ours.eos_ids, ours.bos_id, ours.chat_template) == (theirs.eos_ids, theirs.bos_id, theirs.chat_template)
    assert ours.named == theirs.named
    text = "Numbers like 12345, <|im_start|>user and the rest\n"
    assert ours.encode(text) == theirs.encode(text)


def test_the_config_comes_back(folder: Path, tmp_path: Path) -> None:
    zeropoint.export(folder, tmp_path / "m.gguf", format="gguf")
    ours, theirs = (Weights(open_checkpoint(path)).model.config for path in (folder, tmp_path / "m.gguf"))
    assert replace(ours, norm_eps=float(np.float32(ours.norm_eps))) == theirs  # GGUF has it in float32


def test_mistral_is_a_llama_there(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path / "out", model_type="mistral", sliding_window=None)
    zeropoint.export(out, tmp_path / "m.gguf", format="gguf")
    weights = Weights(open_checkpoint(tmp_path / "m.gguf"))
    assert weights.model.config.model_type == "llama"


def test_linear_rope_scaling_comes_back(folder: Path, tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    out = copied(folder, tmp_path / "out", rope_parameters=rope)
    zeropoint.export(out, tmp_path / "m.gguf", format="gguf")
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_parameters"] == rope


def test_quantized_inputs_and_wider_types_are_said(tmp_path: Path) -> None:
    out = make(tmp_path, "w4a8", [*GROUPS, "weights.bits=3", "transforms=[]"])
    notes = zeropoint.export(out, tmp_path / "m.gguf", format="gguf").notes
    assert any("int8 token" in note for note in notes)
    assert any("int3 g32 sym is stored as Q4_0" in note and "4.5 bits" in note for note in notes)


# Refused


def copied(folder: Path, to: Path, **changes: object) -> Path:
    """The folder with other values in config.json."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


def refused(out: Path, output: Path, error: type[InputError], match: str) -> None:
    """`export` raises, and leaves nothing."""
    with pytest.raises(error, match=match):
        zeropoint.export(out, output, format="gguf")
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if "partial" in path.name] == []


def test_a_float_model_is_refused(tmp_path: Path) -> None:
    refused(make_llama(tmp_path / "m"), tmp_path / "m.gguf", InputError, "is not quantized; quantize it first")


def test_what_no_block_holds_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    out = make(tmp_path, "w4a16", [*QUICK, "weights.group_size=16"])
    refused(out, tmp_path / "m.gguf", SchemeError, r"layers\.0\.self_attn\.q_proj\.weight: groups of 16.*= 32")


def test_outlier_columns_are_refused(tmp_path: Path) -> None:
    options = ["weights.group_size=32", "activations.outlier_threshold=1", "calibration.samples=4"]
    out = make(tmp_path, "w4a8", [*QUICK, *options, "calibration.length=32", "transforms=[]"])
    refused(out, tmp_path / "m.gguf", SchemeError, "stay float beside the integers")


def test_a_scale_that_is_no_float16_is_refused_by_the_name_of_the_tensor(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name][3, 1] = 2.0**-30
    save_file(tensors, out / "model.safetensors")
    refused(out, tmp_path / "m.gguf", SchemeError, r"layers\.1\.mlp\.up_proj.*1 of 192 scales.*no float16 numbers")


def test_what_llama_cpp_computes_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path / "out", hidden_act="gelu")
    refused(out, tmp_path / "m.gguf", ArchitectureError, "hidden_act is 'gelu'.*'silu' only")


def test_a_window_is_refused_since_llama_cpp_would_not_hear_of_it(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path / "out", model_type="mistral", sliding_window=16)
    refused(out, tmp_path / "m.gguf", ArchitectureError, "layer 0 has window 16")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path / "out")
    (out / "tokenizer.json").unlink()
    refused(out, tmp_path / "m.gguf", CheckpointError, "there is no tokenizer.json")


# The place


def test_an_output_that_is_there_is_replaced_only_when_asked_and_only_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.gguf"
    output.write_text("something else")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no file of this format" if overwrite else "exists already"):
            zeropoint.export(folder, output, format="gguf", overwrite=overwrite)
    assert output.read_text() == "something else"
    output.unlink()
    zeropoint.export(folder, output, format="gguf")
    before = output.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        zeropoint.export(folder, output, format="gguf")
    zeropoint.export(folder, output, format="gguf", overwrite=True)
    assert output.read_bytes() == before


def test_the_output_is_a_gguf_file_outside_of_the_model(folder: Path, tmp_path: Path) -> None:
    for output, match in ((tmp_path / "m.bin", "ends in .gguf"), (folder / "m.gguf", "lies in the model")):
        with pytest.raises(OutputError, match=match):
            zeropoint.export(folder, output, format="gguf")
        assert not output.exists()


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_ctrl_c_leaves_nothing(stage: str, folder: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if (progress.stage, progress.done) == (stage, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zeropoint.export(folder, tmp_path / "m.gguf", format="gguf", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_one_output(folder: Path, tmp_path: Path) -> None:
    def again(progress: Progress) -> None:
        if progress.stage == "write" and progress.done == 1:
            zeropoint.export(folder, tmp_path / "m.gguf", format="gguf")

    with pytest.raises(OutputError, match="another run is writing it"):
        zeropoint.export(folder, tmp_path / "m.gguf", format="gguf", progress=again)
    assert list(tmp_path.iterdir()) == []


def test_an_export_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, zeropoint\n"
        f"zeropoint.export({str(folder)!r}, {str(tmp_path / 'm.gguf')!r}, format='gguf')\nprint('torch' in sys.modules)"
    )
    assert run_python(code) == "False"
