from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from child import ENVIRONMENT, run_python
from zeropoint.checkpoint import Writer, load_tokenizer, open_checkpoint
from zeropoint.checkpoint.place import write_side_file
from zeropoint.checkpoint.safetensors_header import DTYPES, read_header
from zeropoint.errors import InternalError, NonFiniteError, OutputError

CONFIG = {"model_type": "llama"}


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "lm_head.weight": torch.randn(7, 3, generator=random),
        **{f"model.layers.{index}.weight": torch.randn(5, 5, generator=random).bfloat16() for index in range(12)},
        "codes": torch.randint(-8, 8, (3, 5), generator=random, dtype=torch.int8),
        "packed": torch.randint(-(2**31), 2**31 - 1, (3,), generator=random, dtype=torch.int32),
        "shape": torch.tensor([3, 5]),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 4),
    }


def write(output: Path, tensors: Mapping[str, torch.Tensor], **options: float) -> Path:
    with Writer(output) as writer:
        for name, tensor in tensors.items():
            writer.add({name: tensor})
        writer.finish(CONFIG, **options)
        writer.commit()
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# What is written


@pytest.mark.parametrize("max_shard_bytes", [1, 60, 200, 5e9])
def test_what_is_added_is_what_the_package_reads(tmp_path: Path, max_shard_bytes: float) -> None:
    tensors = some_tensors()
    out = write(tmp_path / "out", tensors, max_shard_bytes=max_shard_bytes)
    files = sorted(out.glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((out / "config.json").read_text()) == CONFIG
    assert left_in(tmp_path) == ["out"]


def test_one_file_has_no_index_and_shards_have_one_that_we_read(tmp_path: Path) -> None:
    tensors = some_tensors()
    one = write(tmp_path / "one", tensors)
    assert left_in(one) == ["config.json", "model.safetensors"]
    many = write(tmp_path / "many", tensors, max_shard_bytes=200)
    count = len(list(many.glob("*.safetensors")))
    assert left_in(many) == [
        "config.json",
        *(f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)),
        "model.safetensors.index.json",
    ]
    index = json.loads((many / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    for file in many.glob("*.safetensors"):
        sizes = [info.size_bytes for info in read_header(file).values()]
        assert sum(sizes) <= 200
    checkpoint = open_checkpoint(many)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    out = write(tmp_path / "out", some_tensors(), max_shard_bytes=1)
    where = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    files = [where[f"model.layers.{index}.weight"] for index in range(12)]
    assert files == sorted(files)


@pytest.mark.parametrize("max_shard_bytes", [150, 5e9])
def test_same_tensors_give_the_same_bytes_in_whatever_order_they_come(tmp_path: Path, max_shard_bytes: float) -> None:
    tensors = some_tensors()
    one = write(tmp_path / "one", tensors, max_shard_bytes=max_shard_bytes)
    with Writer(tmp_path / "two") as writer:
        writer.add({})
        writer.add(dict(reversed(tensors.items())))
        writer.finish(CONFIG, max_shard_bytes=max_shard_bytes)
        writer.commit()
    assert contents(one) == contents(tmp_path / "two")


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)), max_size=8),
    max_shard_bytes=st.sampled_from([1, 40, 5e9]),
)
def test_every_tensor_begins_on_a_multiple_of_its_values_size(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[str, list[int]]], max_shard_bytes: float
) -> None:
    """torch looks at a stored tensor through a view, which it refuses to make of a crooked address."""
    tensors = {
        f"{index}": torch.zeros(shape, dtype=getattr(torch, DTYPES[dtype].torch_name))
        for index, (dtype, shape) in enumerate(shapes)
    }
    out = write(tmp_path_factory.mktemp("w") / "out", tensors, max_shard_bytes=max_shard_bytes)
    found = {name: info for file in out.glob("*.safetensors") for name, info in read_header(file).items()}
    assert found.keys() == tensors.keys()
    for name, info in found.items():
        assert info.offset % DTYPES[info.dtype].bytes == 0
        assert info.shape == tuple(tensors[name].shape)


def test_views_and_transposed_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": base.T, "part": base[1:3, ::2], "again": base[0], "wide": torch.ones(1).expand(3, 2)}
    with Writer(tmp_path / "out") as writer:
        writer.add(tensors)
        writer.finish(CONFIG)
        writer.commit()
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_finish_needs_the_memory_of_a_few_megabytes(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        for index in range(4):
            writer.add({f"{index}": torch.zeros(4 << 20)})
        tracemalloc.start()
        writer.finish(CONFIG)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not list(writer.folder.glob("part-*"))
    assert peak < 4e6  # of 64 MB


def test_a_whole_model_comes_back_from_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = tiny.make_llama(tmp_path / "source", shards=2, attention_bias=True)
    checkpoint = open_checkpoint(source)
    with Writer(tmp_path / "deep" / "er" / "out", source=source) as writer:
        for name in checkpoint.tensors:
            writer.add({name: checkpoint.read(name)})
        checkpoint.copy_side_files(writer.folder)
        writer.finish(checkpoint.config, max_shard_bytes=50_000)
        writer.commit()
    load = transformers.AutoModelForCausalLM.from_pretrained
    one, two = load(source), load(writer.output)
    tokens = torch.arange(20).reshape(1, -1)
    assert torch.equal(one(tokens).logits, two(tokens).logits)
    assert load_tokenizer(open_checkpoint(writer.output)).encode("cats") == load_tokenizer(checkpoint).encode("cats")


# Nothing appears under the output's name unless it is complete


def test_nothing_is_there_before_the_commit(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        writer.add(some_tensors())
        writer.finish(CONFIG)
        assert left_in(tmp_path) == [".out.partial"]
        writer.commit()
        assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, None])
def test_a_run_that_stops_before_its_first_step_leaves_nothing(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    def run() -> None:
        with Writer(tmp_path / "out") as writer:
            writer.add(some_tensors())
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert left_in(tmp_path) == []


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with Writer(tmp_path / "out") as writer:
        writer.add(some_tensors())
        writer.finish(CONFIG)
        writer.commit()
    assert synced[:3] == ["journal.jsonl", ".out.partial", tmp_path.name]  # that there is a run
    rest = ["part-00000.safetensors", ".out.partial", "journal.jsonl"]
    shard = ["model.safetensors", "model", ".out.partial", "journal.jsonl"]
    assert synced[3:] == [*rest, *shard, "config.json", "model.safetensors", "model", tmp_path.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 900), "what was written cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has the weight files \[\], which is not"),
        (lambda folder: (folder / "config.json").unlink(), "commit was called before finish"),
        (
            lambda folder: shutil.copy(folder / "model.safetensors", folder / "part-7.safetensors"),
            r"has the weight files \['model\.safetensors', 'part-7\.safetensors'\], which is not what was written",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes().replace(b'"I8","shape":[3,5]', b'"U8","shape":[3,5]')
            ),
            "'codes' is on the disk as .*U8.* and was added as .*I8",
        ),
    ],
)
def test_commit_refuses_what_is_not_what_was_added(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    def run() -> None:
        with Writer(tmp_path / "out") as writer:
            writer.add(some_tensors())
            writer.finish(CONFIG)
            damage(writer.folder)
            writer.commit()

    with pytest.raises(InternalError, match=message):
        run()
    assert left_in(tmp_path) == []


def test_a_name_twice_and_a_dtype_without_a_place_are_our_own_faults(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        writer.add({"a": torch.ones(2)})
        with pytest.raises(InternalError, match="the tensor 'a' was written twice"):
            writer.add({"a": torch.ones(2)})
        with pytest.raises(InternalError, match=r"b: safetensors has no dtype for torch\.complex128"):
            writer.add({"b": torch.ones(2, dtype=torch.complex128)})


# An output that is there


def model_at(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"text": text}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_over(out: Path) -> None:
    with Writer(out, overwrite=True) as writer:
        writer.add(some_tensors())
        writer.finish({"text": "new"})
        writer.commit()


def test_existing_output_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    model_at(tmp_path / "out")
    with pytest.raises(OutputError, match="out: exists already; give another output, or --overwrite to replace it"):
        Writer(tmp_path / "out")
    assert left_in(tmp_path) == ["out"]


def test_overwrite_keeps_the_old_model_until_the_commit(tmp_path: Path) -> None:
    out = model_at(tmp_path / "out")
    with Writer(out, overwrite=True) as writer:
        writer.add(some_tensors())
        writer.finish({"text": "new"})
        assert json.loads((out / "config.json").read_text()) == {"text": "old"}
        writer.commit()
    assert json.loads((out / "config.json").read_text()) == {"text": "new"}
    assert left_in(tmp_path) == ["out"]


def test_overwrite_that_fails_keeps_the_old_model(tmp_path: Path) -> None:
    out = model_at(tmp_path / "out")
    with pytest.raises(InternalError), Writer(out, overwrite=True) as writer:
        writer.commit()
    assert json.loads((out / "config.json").read_text()) == {"text": "old"}
    assert left_in(tmp_path) == ["out"]


def test_old_model_comes_back_if_the_new_one_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model_at(tmp_path / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="out: cannot be written: Input/output error"):
        write_over(out)
    assert json.loads((out / "config.json").read_text()) == {"text": "old"}
    assert left_in(tmp_path) == [".out.partial", "out"]  # what is done is kept


@pytest.mark.parametrize("kind", ["file", "folder of something else"])
def test_overwrite_never_removes_what_is_no_model(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
        (out / "config.json").write_text("{}")  # many programs have one
    with pytest.raises(OutputError, match="out: is no model folder, so it is not overwritten; give another output"):
        Writer(out, overwrite=True)
    assert (out if kind == "file" else out / "thesis.tex").read_text() == "precious"


def test_overwrite_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_over(tmp_path / "out")
    assert left_in(tmp_path / "out") == ["config.json", "model.safetensors"]


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as writer:
        writer.finish(CONFIG)
        model_at(tmp_path / "out")
        with pytest.raises(OutputError, match="exists already"):
            writer.commit()
    assert left_in(tmp_path) == ["out"]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"text": "old"}


@pytest.mark.parametrize(
    ("output", "source"),
    [("m", "m"), ("m/q4", "m"), ("m/a/b", "m"), (".", "m"), ("m/../m", "m"), ("link", "m"), (".", "m.gguf")],
)
def test_output_that_touches_the_model_that_is_read_is_refused(tmp_path: Path, output: str, source: str) -> None:
    model_at(tmp_path / "m")
    (tmp_path / "m.gguf").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    (tmp_path / "config.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is, holds or lies in the model that is read"):
            Writer(tmp_path / output, source=tmp_path / source, overwrite=overwrite)


def test_output_beside_a_gguf_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("")
    with Writer(tmp_path / "out", source=tmp_path / "m.gguf"):
        pass


def test_the_root_is_no_output() -> None:
    with pytest.raises(OutputError, match="is the root of the file system"):
        Writer("/")


# What killed runs leave behind


KILLED = """
import os
import torch
from zeropoint.checkpoint.writer import Writer
writer = Writer(OUTPUT, begun={"recipe": "a", "seed": "0"})
writer.add({"first": torch.arange(5)})
writer.step("block", {"rows": 1}, {"x": torch.tensor([1.5])})
writer.add({"second": torch.arange(6)})
writer.step("block", {"rows": 2}, {"x": torch.tensor([2.5])})
writer._settle()
writer.add({"third": torch.arange(7)})
os.kill(os.getpid(), 9)
"""


def killed_run(output: Path, code: str = KILLED) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code.replace("OUTPUT", repr(str(output)))], env=ENVIRONMENT, check=False, timeout=60
    )
    assert done.returncode == -9


BEGUN = {"recipe": "a", "seed": "0"}


def test_the_same_run_goes_on_from_the_last_step(tmp_path: Path) -> None:
    killed_run(tmp_path / "out")
    with Writer(tmp_path / "out", begun=BEGUN) as writer:
        assert [(step.kind, bytes(step.data)) for step in writer.steps] == [
            ("block", b'{"rows":1}'),
            ("block", b'{"rows":2}'),
        ]
        assert writer.steps[-1].state is not None
        assert writer.tensors_in(writer.steps[-1].state)["x"].tolist() == [2.5]
        kept = {"journal.jsonl", "model", "part-00000.safetensors", "part-00002.safetensors"}
        assert set(left_in(writer.work)) == {*kept, writer.steps[-1].state}  # nothing of the third tensor
        writer.add({"third": torch.arange(7)})
        writer.finish(CONFIG)
        writer.commit()
    assert left_in(tmp_path) == ["out"]
    expected = {"first": torch.arange(5), "second": torch.arange(6), "third": torch.arange(7)}
    assert contents(tmp_path / "out") == contents(write(tmp_path / "undisturbed", expected))


def test_a_run_that_was_started_otherwise_is_refused_and_stays(tmp_path: Path) -> None:
    killed_run(tmp_path / "out")
    before = {file.name: file.stat().st_size for file in (tmp_path / ".out.partial").iterdir()}
    with pytest.raises(OutputError, match=r"started otherwise: seed was 0, now 1; text was not set, now b; give its"):
        Writer(tmp_path / "out", begun={"recipe": "a", "seed": "1", "text": "b"})
    assert {file.name: file.stat().st_size for file in (tmp_path / ".out.partial").iterdir()} == before
    with Writer(tmp_path / "out", begun=BEGUN) as writer:
        assert len(writer.steps) == 2


def test_restart_begins_anew(tmp_path: Path) -> None:
    killed_run(tmp_path / "out")
    with Writer(tmp_path / "out", begun={"recipe": "b"}, restart=True) as writer:
        assert writer.steps == ()
        assert left_in(writer.work) == ["journal.jsonl", "model"]


def test_what_a_run_left_that_was_killed_before_its_first_step_is_removed(tmp_path: Path) -> None:
    killed_run(tmp_path / "out", KILLED[: KILLED.index("writer.step")] + "os.kill(os.getpid(), 9)")
    assert left_in(tmp_path) == [".out.partial"]
    (tmp_path / ".other.partial").mkdir()
    with Writer(tmp_path / "out", begun={"recipe": "b"}) as writer:
        assert left_in(tmp_path) == [".other.partial", writer.work.name]
        assert left_in(writer.work) == ["journal.jsonl", "model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError, ValueError, MemoryError])
def test_a_run_that_stops_after_a_step_is_kept_and_says_so(tmp_path: Path, error: type[BaseException]) -> None:
    def run() -> None:
        with Writer(tmp_path / "out", begun=BEGUN) as writer:
            writer.add(some_tensors())
            writer.step("block", None)
            raise error

    with pytest.raises(error) as caught:
        run()
    assert caught.value.__notes__ == [
        "what is done is kept: the same command goes on from there, --restart begins anew"
    ]
    assert left_in(tmp_path) == [".out.partial"]


@pytest.mark.parametrize("error", [NonFiniteError, InternalError])
def test_a_run_that_would_fail_again_is_not_kept(tmp_path: Path, error: type[Exception]) -> None:
    def run() -> None:
        with Writer(tmp_path / "out", begun=BEGUN) as writer:
            writer.add(some_tensors())
            writer.step("block", None)
            raise error

    with pytest.raises(error):
        run()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path: Path, damage: str) -> None:
    killed_run(tmp_path / "out")
    part = tmp_path / ".out.partial" / "part-00000.safetensors"
    if damage == "cut":
        os.truncate(part, 100)
    else:
        part.unlink()
    with pytest.raises(OutputError, match=r"part-00000\.safetensors is not as it was written; --restart begins anew"):
        Writer(tmp_path / "out", begun=BEGUN)


def test_output_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "out") as first:
        code = (
            "from zeropoint.checkpoint.writer import Writer\nfrom zeropoint.errors import OutputError\n"
            f"try:\n    Writer({str(tmp_path / 'out')!r})\nexcept OutputError as error:\n    print(error)"
        )
        assert "another run is writing it, in" in run_python(code)
        with pytest.raises(OutputError, match=r"another run is writing it, in .*wait for it, or give another output"):
            Writer(tmp_path / "out")
        first.add(some_tensors())
        first.finish(CONFIG)
        first.commit()
    assert left_in(tmp_path) == ["out"]


def test_where_nobody_can_lock_nothing_of_another_run_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "journal.jsonl").write_text("of another run")
    write(tmp_path / "out", some_tensors())
    assert left_in(tmp_path) == [".out.partial", "out"]
    assert left_in(tmp_path / ".out.partial") == ["journal.jsonl"]


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_run_killed_between_the_two_renames_loses_nothing(tmp_path: Path, new_is_there: bool) -> None:
    model_at(tmp_path / ".out.old-1", "old")
    model_at(tmp_path / ("out" if new_is_there else ".out.partial"), "new")
    with Writer(tmp_path / "out", overwrite=True):
        text = json.loads((tmp_path / "out" / "config.json").read_text())["text"]
        assert text == ("new" if new_is_there else "old")
    assert left_in(tmp_path) == ["out"]


# No space, no permission


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size: a disk that is full, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("step", "needed", "left"),
    [
        (lambda writer: writer.add({"c": torch.zeros(250_000)}), "1,000,000", []),
        (lambda writer: writer.finish(CONFIG), "24,000", [".out.partial"]),  # the parts are kept
        (lambda writer: write_side_file(writer.folder / "tokenizer.json", bytes(30_000)), "30,000", []),
    ],
    ids=["add", "finish", "side file"],
)
def test_no_space_is_one_sentence_and_leaves_nothing_but_steps(
    tmp_path: Path, step: Callable[[Writer], object], needed: str, left: list[str]
) -> None:
    def run() -> None:
        with Writer(tmp_path / "out") as writer:
            writer.add({"a": torch.zeros(3000)})
            writer.add({"b": torch.zeros(3000)})
            with files_of_at_most(20_000):
                step(writer)

    with pytest.raises(OutputError, match=f"no space left: {needed} bytes were to be written, ") as caught:
        run()
    assert "are free (File too large); free some, or give an output on another disk" in str(caught.value)
    assert caught.value.exit_code == 2
    assert left_in(tmp_path) == left


def test_full_disk_in_the_middle_of_a_tensor_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ = os.write
    room = 10_000

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write_(descriptor, data[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"no space left: 40,000 bytes .*No space left on device"):
        write(tmp_path / "out", {"a": torch.zeros(10_000)})
    assert left_in(tmp_path) == []


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of root's, seen by a user who may not write there; root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)


def test_no_permission_is_one_sentence(as_nobody: Path) -> None:
    with pytest.raises(OutputError, match=r"out: cannot be written: Permission denied \(.*\); give another output"):
        Writer(as_nobody / "out")


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out: cannot be written: .*; give another output"):
        Writer(tmp_path / "file" / "out")
