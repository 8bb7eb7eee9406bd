from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from child import run_python
from zeropoint.checkpoint import open_checkpoint
from zeropoint.checkpoint.safetensors_header import DTYPES, read_header
from zeropoint.errors import CheckpointError, InternalError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llama(tmp_path_factory.mktemp("models") / "one", dtype="bfloat16")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A sharded model that a test may damage."""
    return tiny.make_llama(tmp_path / "own", shards=3)


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_tensor_reads_as_the_safetensors_package_reads_it(tmp_path: Path, shards: int, dtype: str) -> None:
    folder = tiny.make_llama(tmp_path / "m", shards=shards, dtype=dtype, tied=False, attention_bias=True)
    expected = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == getattr(torch, dtype)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].size_bytes == tensor.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 3), (2, 3, 4)])
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    torch_dtype = getattr(torch, DTYPES[dtype].torch_name)
    raw = torch.randint(0, 2, (*shape, DTYPES[dtype].bytes), dtype=torch.uint8, generator=torch.manual_seed(0))
    tensor = raw.reshape(-1).view(torch_dtype).reshape(shape)
    (tmp_path / "config.json").write_text("{}")
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "x": tensor}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).read("x")
    assert found.dtype == torch_dtype
    assert found.shape == tensor.shape
    assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_is_the_tensor_and_rows_are_a_part_of_it(tmp_path: Path, dtype: str) -> None:
    raw = torch.randint(0, 2, (7, 3, DTYPES[dtype].bytes), dtype=torch.uint8, generator=torch.manual_seed(0))
    tensor = raw.reshape(7, -1).view(getattr(torch, DTYPES[dtype].torch_name))
    (tmp_path / "config.json").write_text("{}")
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "x": tensor}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    whole = checkpoint.read_array("x")
    assert whole.dtype == DTYPES[dtype].numpy_name
    assert whole.tobytes() == tensor.reshape(7, -1).view(torch.uint8).numpy().tobytes()
    for rows in ((0, 7), (0, 2), (2, 5), (6, 7), (3, 3)):
        part = checkpoint.read_array("x", rows=rows)
        assert part.flags.owndata
        assert np.array_equal(part, whole[slice(*rows)])


@pytest.mark.parametrize("rows", [(-1, 2), (3, 2), (0, 301)])
def test_rows_that_are_not_there_are_a_fault_of_ours(model: Path, tmp_path: Path, rows: tuple[int, int]) -> None:
    for checkpoint in (open_checkpoint(model), open_checkpoint(tiny.make_gguf(tmp_path / "m.gguf"))):
        with pytest.raises(InternalError, match=r"of shape \(300, 64\) does not have the rows"):
            checkpoint.read_array(HEAD, rows=rows)


@settings(max_examples=30, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=8), data=st.data())
def test_the_header_says_what_the_package_wrote(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], data: st.DataObject
) -> None:
    dtypes = data.draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=len(shapes), max_size=len(shapes)))
    tensors = {
        f"t{index}": torch.zeros(shape, dtype=getattr(torch, DTYPES[dtype].torch_name))
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }
    file = tmp_path_factory.mktemp("h") / "m.safetensors"
    save_file(tensors, file)
    header = read_header(file)
    assert {name: (info.dtype, list(info.shape)) for name, info in header.items()} == {
        name: (dtype, list(tensor.shape)) for (name, tensor), dtype in zip(tensors.items(), dtypes, strict=True)
    }


def test_opening_imports_no_torch_and_reads_no_data(model: Path, tmp_path: Path) -> None:
    gguf = tiny.make_gguf(tmp_path / "m.gguf")
    code = (
        "import sys\nfrom zeropoint.checkpoint import open_checkpoint\n"
        f"for path in ({str(model)!r}, {str(gguf)!r}):\n"
        "    checkpoint = open_checkpoint(path)\n    print(len(checkpoint.tensors), 'torch' in sys.modules)"
    )
    assert run_python(code).splitlines() == ["20 False", "20 False"]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the resident memory")
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path, kind: str) -> None:
    sizes = {"layers": 30, "hidden": 256, "intermediate": 512}
    make = {"folder": tiny.make_llama, "gguf": tiny.make_gguf}[kind]
    checkpoint = open_checkpoint(make(tmp_path / "deep.gguf", **sizes))
    assert sum(info.size_bytes for info in checkpoint.tensors.values()) > 60e6
    names = list(checkpoint.tensors)
    for name in names[:40]:
        checkpoint.read(name)
    before = resident_bytes()
    for name in names[40:]:
        checkpoint.read(name)
    # a mapped file would add 50 MB; the allocator's own noise is below 2 MB
    assert resident_bytes() - before < 10e6


def test_what_is_read_is_memory_of_its_own(own: Path) -> None:
    checkpoint = open_checkpoint(own)
    first = checkpoint.read(EMBEDDING)
    first.zero_()
    assert checkpoint.read(EMBEDDING).abs().sum() > 0


def test_tied_head_reads_as_the_embedding(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert checkpoint.tied == {HEAD: EMBEDDING}
    assert HEAD not in checkpoint.tensors
    assert torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING))


def test_untied_head_is_its_own(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_llama(tmp_path / "m", tied=False))
    assert checkpoint.tied == {}
    assert not torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING))


def test_tied_model_that_stored_only_its_head_has_an_embedding(own: Path, tmp_path: Path) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tied == {EMBEDDING: HEAD}
    assert torch.equal(checkpoint.read(EMBEDDING), tensors[HEAD])


@pytest.mark.parametrize("equal", [True, False])
def test_head_stored_beside_its_embedding_is_tied_only_if_it_is_equal(tmp_path: Path, equal: bool) -> None:
    # transformers decides in the same way, because config.json may be wrong
    folder = tiny.make_llama(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone()
    tensors[HEAD][-1, -1] += 0 if equal else 1
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tied == ({HEAD: EMBEDDING} if equal else {})
    assert checkpoint.config["tie_word_embeddings"] is equal
    assert torch.equal(checkpoint.read(HEAD), tensors[HEAD])


def test_unknown_name_is_refused_with_the_nearest_one(model: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no tensor 'model.norm.wait' among its 20; did you mean 'model.norm.weight'"
    ):
        open_checkpoint(model).read("model.norm.wait")


def test_side_files_are_copied_and_nothing_else(own: Path, tmp_path: Path) -> None:
    wanted = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    extra = {"LICENSE", "license.txt", "NOTICE", "merges.txt", "vocab.json", "special_tokens_map.json", "spiece.model"}
    never = {
        "pytorch_model.bin",
        "tokenizer.pt",
        "vocab.pkl",
        "tokenizer.py",
        "model.gguf",
        "README.md",
        "optimizer.pt",
    }
    for name in extra | never:
        (own / name).write_bytes(name.encode())
    (own / "tokenizer_backup").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    open_checkpoint(own).copy_side_files(target)
    assert {file.name for file in target.iterdir()} == wanted | extra
    for file in target.iterdir():
        assert file.read_bytes() == (own / file.name).read_bytes()


def test_an_ordinary_link_to_a_file_is_followed(own: Path, tmp_path: Path) -> None:
    # the Hugging Face cache keeps every file of a snapshot as a link
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in own.iterdir():
        (linked / file.name).symlink_to(file)
    assert torch.equal(open_checkpoint(linked).read(EMBEDDING), open_checkpoint(own).read(EMBEDDING))


# What cannot be opened. Each message names the place and what to do.


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "config.json").unlink(), r"no config\.json there; give the folder of a Hugging Face model"),
        (lambda m: (m / "config.json").write_text("{nope"), r"config\.json: is not JSON .* get the file again"),
        (lambda m: (m / "config.json").write_bytes(b"\xff\xfe"), r"config\.json: is not JSON"),
        (lambda m: (m / "config.json").write_text("[" * 100_000), r"config\.json: is nested more than 64"),
        (lambda m: (m / "config.json").write_text("[1]"), r"config\.json: holds a list; a JSON object"),
        (
            lambda m: (m / "model-00002-of-00003.safetensors").unlink(),
            r"the shard model-00002-of-00003\.safetensors is missing, with 7 tensors; download it again",
        ),
        (
            lambda m: (m / "model.safetensors.index.json").unlink(),
            r"neither model\.safetensors nor .*; it has model-00001-of-00003\.safetensors",
        ),
        (lambda m: (m / "model.safetensors.index.json").write_text("{}"), "weight_map must be a table"),
        (
            lambda m: edit_json(m / "model.safetensors.index.json", lambda i: i["weight_map"].update(a="")),
            r"names the shard ''; a shard is a \.safetensors file in the same folder",
        ),
        (
            lambda m: edit_json(m / "model.safetensors.index.json", lambda i: i["weight_map"].pop(EMBEDDING)),
            r"holds 'model\.embed_tokens\.weight', which the index has in no file; index and shards are of different",
        ),
        (
            lambda m: edit_json(
                m / "model.safetensors.index.json",
                lambda i: i["weight_map"].update({"a.weight": "model-00003-of-00003.safetensors"}),
            ),
            r"model-00003-of-00003\.safetensors does not hold 'a\.weight', which the index has there",
        ),
    ],
)
def test_damaged_folder_is_refused_with_the_place_and_what_to_do(
    own: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(own)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(own)
    assert str(own) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_truncated_weights_are_refused_before_anything_is_read(tmp_path: Path, missing: int) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - missing)
    with pytest.raises(CheckpointError, match=r"m/model\.safetensors: .*download it again"):
        open_checkpoint(folder)


def test_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 3000)
    last = max(checkpoint.tensors.values(), key=lambda info: info.offset)
    with pytest.raises(CheckpointError, match="bytes early; the file changed after it was opened"):
        checkpoint.read(last.name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read(last.name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file or folder; give a folder with config.json, or a .gguf file"),
        ("model.safetensors", "one file of a model folder; give the folder that holds it"),
        ("config.json", "one file of a model folder; give the folder that holds it"),
        ("notes.txt", "not a model; give a folder"),
        ("model.gguf", "the header cannot be read .* no GGUF file: download it again"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_path_of_another_kind_is_refused(tmp_path: Path, name: str, message: str) -> None:
    if name != "missing" and len(name) < 256:
        (tmp_path / name).write_text("something")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


def test_folder_of_a_gguf_file_is_refused_with_its_name(tmp_path: Path) -> None:
    tiny.make_gguf(tmp_path / "small.gguf")
    with pytest.raises(CheckpointError, match=r"or a \.gguf file, such as .*small\.gguf"):
        open_checkpoint(tmp_path)


def test_empty_folder_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"there is neither model\.safetensors nor model\.safetensors\.index\.json$"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 8])
def test_weights_without_a_header_are_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2)[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


def test_the_package_itself_refuses_what_we_write_damaged(tmp_path: Path) -> None:
    """Our rules are the format's: a file that only we refuse would be a bug of ours."""
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4)}, file)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(safetensors.SafetensorError):
        load_file(file)
    with pytest.raises(CheckpointError, match="the tensors end at byte"):
        read_header(file)
