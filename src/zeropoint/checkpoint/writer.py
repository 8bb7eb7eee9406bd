"""A model folder that appears under its name only when it is complete and verified, and whose work is never lost.

    .out.partial/          where a run works, beside "out" (place.py); removed when "out" is there
        journal.jsonl          what is done (journal.py)
        part-00000.safetensors ...    one file for each `add`: the memory of its tensors is free at once
        state-00003.safetensors       what the step after the third begins with
        model/                 becomes "out" by one rename, the last act of `commit`
            model-00001-of-00002.safetensors ...   copied together by `finish`, each part removed when it is used up

A step is brought to the disk by a thread, while the next one is worked on: at most one step of work can be lost.

Files are written by us and not by the safetensors package, whose error for a full disk has no errno to tell it by.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from zeropoint.checkpoint import place
from zeropoint.checkpoint.journal import BEGIN, JOURNAL, Journal, Step, Stored, differences
from zeropoint.checkpoint.place import output_errors, write_side_file
from zeropoint.checkpoint.reader import TensorInfo, read_into
from zeropoint.checkpoint.safetensors_header import DTYPES, layout, make_header, read_header
from zeropoint.errors import CheckpointError, InputError, InternalError, OutputError

if TYPE_CHECKING:
    import torch

COPY_BYTES = 1 << 20
SHARD = "shard"


class Writer:
    """Writes one model folder; use it as a context manager.

    Nothing is under the output's name before `commit` has renamed it there. Leaving by an error, KeyboardInterrupt
    included, keeps the steps that are done for the next Writer that is started with the same; without any, or when the
    error would come again whatever is kept, all is removed.

    folder: what becomes the output. work: where files may lie that do not. steps: those of an earlier run.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        begun: Mapping[str, str] | None = None,
        overwrite: bool = False,
        restart: bool = False,
        source: Path | None = None,
    ) -> None:
        """Prepare to write the folder `output`, or to go on with it.

        begun: what the run is started with; a run that was started with anything else is not gone on with. overwrite:
        replace a model that is there; it stays untouched until the commit. restart: go on with nothing. source: the
        checkpoint that is being read, which the output must not touch.
        Raises: OutputError if the output exists, overlaps the source, cannot be created there, or if an unfinished run
        of it cannot be gone on with.
        """
        self.output = Path(output)
        self._final = self.output.resolve()
        if not self._final.name:
            raise OutputError(f"{self.output}: is the root of the file system; give a folder to make")
        self._overwrite = overwrite
        self._begun = dict(begun or {})
        if source is not None:
            place.refuse_overlap(self._final, source)
        with output_errors(self.output):
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self.work, self._lock = place.claim(self._final)
        self.folder = self.work / "model"
        self._pool = ThreadPoolExecutor(1)
        self._settling: Future[None] | None = None
        self._parts: dict[str, TensorInfo] = {}
        self._stored: dict[str, Stored] = {}
        self._pending: list[Path] = []
        self._shards: dict[str, str] = {}
        self._next = 0
        self._found = False
        """Whether an earlier run has left what could be gone on with."""
        try:
            with output_errors(self.output):
                self._journal = self._begin(restart)
        except BaseException:
            self._leave(keep=self._found)
            raise
        self.steps: tuple[Step, ...] = tuple(self._journal.steps[1:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the step that is on its way; remove the work folder, unless it is worth going on with."""
        try:
            self._settle()
        except OutputError as another:
            if error is None:
                self._leave(keep=self._worth_keeping(another))
                raise
        keep = error is not None and self._worth_keeping(error)
        if keep and error is not None:
            error.add_note("what is done is kept: the same command goes on from there, --restart begins anew")
        self._leave(keep=keep)

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write some tensors of the output to the disk; nothing of them is kept in memory.

        Raises: InternalError if a name comes twice or a dtype cannot be stored; OutputError if the disk is full.
        """
        if not tensors:
            return
        twice = sorted(tensors.keys() & self._parts.keys())
        if twice:
            raise InternalError(f"the tensor {twice[0]!r} was written twice")
        part = self._write(f"part-{self._number():05d}.safetensors", tensors)
        self._parts |= read_header(part)
        for name, tensor in tensors.items():
            info = self._parts[name]
            digest = hashlib.sha256(_bytes(tensor)).hexdigest()
            self._stored[name] = Stored(dtype=info.dtype, shape=info.shape, sha256=digest, file=part.name)

    def keep(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write tensors that only this run needs, but every step after this one; return the name of their file."""
        return self._write(f"kept-{self._number():05d}.safetensors", tensors).name

    def step(self, kind: str, data: Any, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Say that a step is done: all that was added since the last one is kept from now on.

        data: whatever a run that goes on wants back of the step, JSON by msgspec. state: the tensors that it begins
        with; those of the step before are removed. It is on the disk when the next step is, or `finish` begins.
        Raises: OutputError if the disk is full.
        """
        kept = None if state is None else self._write(f"state-{self._number():05d}.safetensors", state).name
        self._settle()
        files, self._pending = self._pending, []
        names = {file.name for file in files}
        step = Step(
            kind=kind,
            tensors={name: stored for name, stored in self._stored.items() if stored.file in names},
            files={file.name: file.stat().st_size for file in files},
            state=kept,
            data=msgspec.Raw(msgspec.json.encode(data)),
        )
        self._settling = self._pool.submit(self._bring_to_disk, step, files)

    def tensors_in(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a file that `keep` or `step` has written, each read when it is asked for."""
        return _Lazy(read_header(self.work / name))

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every tensor that was added, by name, as it was in memory."""
        return {name: self._stored[name].sha256 for name in sorted(self._stored)}

    def finish(self, config: Mapping[str, Any], *, max_shard_bytes: float = 5e9) -> None:
        """Write config.json and copy the parts into shards of at most `max_shard_bytes`, or one larger tensor each.

        Tensors stand in the order of their names, with numbers as numbers, so the same tensors always give the same
        files, in whatever order they were added. A megabyte of them is in memory.
        Raises: OutputError if the disk is full.
        """
        if self._pending:
            self.step("rest", None)
        self._settle()
        there = {name for step in self._journal.steps if step.kind == SHARD for name in step.files}
        shards = _split(self._parts.values(), max_shard_bytes)
        for index, shard in enumerate(shards):
            name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            if name not in there:
                file = self.folder / name
                with output_errors(self.output):
                    file.unlink(missing_ok=True)
                self._write_tensors(file, shard, (_stored_bytes(entry) for entry in shard))
                self._bring_to_disk(Step(kind=SHARD, files={name: file.stat().st_size}), [file, self.folder])
            self._shards |= {entry.name: name for entry in shard}
            self._remove_used_parts()
        if len(shards) > 1:
            total = sum(info.size_bytes for info in self._parts.values())
            index_content = {"metadata": {"total_size": total}, "weight_map": self._shards}
            write_side_file(self.folder / "model.safetensors.index.json", _json(index_content))
        write_side_file(self.folder / "config.json", _json(config))

    def commit(self) -> None:
        """Bring everything to the disk, compare the headers with what was added, and give the folder its name.

        Raises: InternalError if what is in the files is not what was added; OutputError if they cannot be read, or if
        another run has written the output in the meantime.
        """
        self._verify()
        with output_errors(self.output):
            for file in (*sorted(self.folder.rglob("*")), self.folder):
                place.sync(file)
            self._refuse_existing()
            place.replace(self.folder, self._final)
            place.sync(self._final.parent)
        shutil.rmtree(self.work, ignore_errors=True)

    def _begin(self, restart: bool) -> Journal:
        """Look at what is there: go on with it, refuse to, or remove it. Return the journal to go on with."""
        renamed = os.path.lexists(self._final) and not self.folder.exists()  # a run died while it was tidying up
        if restart or renamed:
            _empty(self.work)
        if self.folder.is_symlink():  # what it leads to is not ours to tidy
            self.folder.unlink()
        self._found = (self.work / JOURNAL).exists()
        journal = Journal(self.work)
        self._found = len(journal.steps) > 1
        self._refuse_existing()
        if self._found:
            changed = differences(journal.steps[0].read(dict[str, str]), self._begun)
            if changed:
                raise OutputError(
                    f"{self.output}: an unfinished run is kept that was started otherwise: {changed}; give its command "
                    "again to go on with it, or --restart to begin anew"
                )
            self._go_on(journal.steps)
            return journal
        _empty(self.work)
        self.folder.mkdir()
        journal = Journal(self.work)
        journal.append(Step(kind=BEGIN, data=msgspec.Raw(msgspec.json.encode(self._begun))))
        for folder in (self.work, self.work.parent):
            place.sync(folder)
        return journal

    def _go_on(self, steps: Sequence[Step]) -> None:
        """Take over what the steps of the journal have left, and remove what no step names."""
        shards = {name: size for step in steps if step.kind == SHARD for name, size in step.files.items()}
        files = {name: size for step in steps if step.kind != SHARD for name, size in step.files.items()}
        for step in steps:
            self._stored |= step.tensors
        parts = {stored.file for stored in self._stored.values()}
        last = steps[-1].state
        for file in self.work.iterdir():
            if file.name not in files and file.name not in (JOURNAL, self.folder.name):
                _remove(file)
            elif file.name.startswith("state-") and file.name != last:
                file.unlink()
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.iterdir():
            if file.name not in shards:
                _remove(file)
        needed = {name for name in files if not name.startswith("state-") or name == last}
        if shards:  # parts are removed when shards hold them
            needed -= {name for name in parts if not (self.work / name).exists()}
        sizes = {self.work / name: files[name] for name in needed}
        sizes |= {self.folder / name: size for name, size in shards.items()}
        for path, size in sizes.items():
            if not path.exists() or path.stat().st_size != size:
                raise OutputError(
                    f"{self.output}: the unfinished run cannot be gone on with: {path} is not as it was written; "
                    "--restart begins anew"
                )
        for name, stored in self._stored.items():
            size = DTYPES[stored.dtype].bytes
            for length in stored.shape:
                size *= length
            self._parts[name] = TensorInfo(name, stored.dtype, stored.shape, size, self.work / stored.file)
        for part in {name for name in parts if (self.work / name).exists()}:
            self._parts |= read_header(self.work / part)
        self._next = 1 + max((int(found[1]) for name in files if (found := re.search(r"-(\d+)\.", name))), default=-1)

    def _settle(self) -> None:
        """Wait until the last step is on the disk."""
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.result()

    def _bring_to_disk(self, step: Step, files: Iterable[Path]) -> None:
        with output_errors(self.output):
            for file in files:
                place.sync(file)
            place.sync(self.work)
            before = self._journal.steps[-1].state
            self._journal.append(step)
            if before is not None and step.kind != SHARD:
                (self.work / before).unlink(missing_ok=True)

    def _worth_keeping(self, error: BaseException) -> bool:
        """Say whether the same command, given again, could come further than this one."""
        again = isinstance(error, InputError) and not isinstance(error, OutputError | CheckpointError)
        there = self.folder.is_dir() and self._lock is not None  # not renamed, and it can be told that we are dead
        return there and not again and not isinstance(error, InternalError) and len(self._journal.steps) > 1

    def _leave(self, *, keep: bool) -> None:
        self._pool.shutdown()
        if not keep:
            shutil.rmtree(self.work, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _refuse_existing(self) -> None:
        """Refuse an output that is there, or that --overwrite must not remove."""
        if not os.path.lexists(self._final):
            return
        if not self._overwrite:
            raise OutputError(f"{self.output}: exists already; give another output, or --overwrite to replace it")
        if not self._final.is_dir() or not (place.is_model(self._final) or not any(self._final.iterdir())):
            raise OutputError(f"{self.output}: is no model folder, so it is not overwritten; give another output")

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write tensors to a new file of the work folder; each is asked for once, when it is its turn."""
        file = self.work / name
        entries = layout(_info(each, tensor, file) for each, tensor in tensors.items())
        self._write_tensors(file, entries, ((_bytes(tensors[entry.name]),) for entry in entries))
        self._pending.append(file)
        return file

    def _write_tensors(self, file: Path, entries: Sequence[TensorInfo], data: Iterable[Iterable[memoryview]]) -> None:
        """Write a safetensors file of the bytes of `data`, one item for each entry."""
        size = sum(entry.size_bytes for entry in entries)
        with output_errors(self.output, needed=size), file.open("xb", buffering=0) as stream:
            _write_all(stream.fileno(), memoryview(make_header(entries)))
            for chunks in data:
                for chunk in chunks:
                    _write_all(stream.fileno(), chunk)

    def _remove_used_parts(self) -> None:
        """Remove the parts whose tensors are all in shards: the disk never holds much more than the model once."""
        needed = {info.file for name, info in self._parts.items() if name not in self._shards}
        with output_errors(self.output):
            for part in {info.file for info in self._parts.values()} - needed:
                part.unlink(missing_ok=True)

    def _verify(self) -> None:
        """Compare the headers on the disk, read as strictly as anybody's, with what was added."""
        if not (self.folder / "config.json").is_file():
            raise InternalError(f"{self.output}: commit was called before finish")
        files = {file.name for file in self.folder.glob("*.safetensors")}
        if files != set(self._shards.values()):
            raise InternalError(f"{self.output}: has the weight files {sorted(files)}, which is not what was written")
        found: dict[str, TensorInfo] = {}
        try:
            for file in sorted(files):
                found |= read_header(self.folder / file)
        except CheckpointError as error:
            # a disk that does not read may do it the next time: what is done is kept
            kind = OutputError if isinstance(error.__cause__, OSError) else InternalError
            raise kind(f"{self.output}: what was written cannot be read: {error}") from error
        for name in found.keys() | self._parts.keys():
            here, added = found.get(name), self._parts.get(name)
            if here is None or added is None or (here.dtype, here.shape) != (added.dtype, added.shape):
                raise InternalError(f"{self.output}: {name!r} is on the disk as {here}, and was added as {added}")


class _Lazy(Mapping[str, "torch.Tensor"]):
    """The tensors of a file, each in memory of its own as soon as it is asked for."""

    def __init__(self, entries: Mapping[str, TensorInfo]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        info = self._entries[name]
        # torch's own memory, aligned as that of any other tensor: products of it come out the same to the last bit
        tensor = torch.empty(info.shape, dtype=getattr(torch, DTYPES[info.dtype].torch_name))
        read_into(info, _bytes(tensor))
        return tensor


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        _remove(file)


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink()


def _info(name: str, tensor: torch.Tensor, file: Path) -> TensorInfo:
    torch_name = str(tensor.dtype).removeprefix("torch.")
    dtype = next((dtype for dtype, known in DTYPES.items() if known.torch_name == torch_name), None)
    if dtype is None:
        raise InternalError(f"{name}: safetensors has no dtype for {tensor.dtype}")
    return TensorInfo(name, dtype, tuple(tensor.shape), tensor.numel() * DTYPES[dtype].bytes, file)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor, without a copy if it is contiguous and on the CPU."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stored_bytes(info: TensorInfo) -> Iterator[memoryview]:
    """Yield the bytes of a stored tensor, a megabyte at once."""
    buffer = memoryview(bytearray(min(COPY_BYTES, info.size_bytes)))
    for start in range(0, info.size_bytes, COPY_BYTES):
        chunk = buffer[: info.size_bytes - start]
        read_into(info, chunk, start=start)
        yield chunk


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it; a signal or a limit may cut a single write short."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def _split(tensors: Iterable[TensorInfo], max_shard_bytes: float) -> list[list[TensorInfo]]:
    """Return the tensors of each shard, in the order of their bytes."""
    shards: list[list[TensorInfo]] = []
    size = 0
    for tensor in sorted(tensors, key=_natural):
        if not shards or size + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return [layout(shard) for shard in shards]


def _natural(tensor: TensorInfo) -> list[tuple[int, str]]:
    """Return a key that puts layers.2 before layers.10."""
    words = re.split(r"(\d+)", tensor.name)
    return [(int(word), "") if index % 2 else (-1, word) for index, word in enumerate(words)]


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
