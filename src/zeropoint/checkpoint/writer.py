"""A model folder that appears under its name only when it is complete and verified.

    .out.partial-4711/     where everything is written, beside "out"; locked, so that another run can tell it is in use
        part-00000.safetensors ...      one file for each `add`: the memory of its tensors is free at once
        model-00001-of-00002.safetensors ...   copied together by `finish`, each part removed when it is used up
    out/                   the same folder after `commit`, whose last act is the rename

Files are written by us and not by the safetensors package, whose error for a full disk has no errno to tell it by.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zeropoint.checkpoint.reader import TensorInfo, read_into
from zeropoint.checkpoint.safetensors_header import DTYPES, layout, make_header, read_header
from zeropoint.errors import CheckpointError, InternalError, OutputError

if TYPE_CHECKING:
    import torch

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
COPY_BYTES = 1 << 20


class Writer:
    """Writes one model folder; use it as a context manager.

    Whatever happens before `commit` has returned, nothing is left under the output's name and the partial folder is
    removed: on any exception, KeyboardInterrupt included, and when the block ends without a commit. What a killed
    process left behind is removed by the next Writer of the same output.
    """

    def __init__(self, output: str | Path, *, overwrite: bool = False, source: Path | None = None) -> None:
        """Prepare to write the folder `output`.

        overwrite: replace a model that is there; it stays untouched until the commit. source: the checkpoint that is
        being read, which the output must not touch.
        Raises: OutputError if the output exists, overlaps the source, or cannot be created there.
        """
        self.output = Path(output)
        self._final = self.output.resolve()
        if not self._final.name:
            raise OutputError(f"{self.output}: is the root of the file system; give a folder to make")
        self._overwrite = overwrite
        self.folder = self._final.with_name(f".{self._final.name}.partial-{os.getpid()}")
        self._parts: dict[str, TensorInfo] = {}
        self._shards: dict[str, str] = {}
        self._lock: int | None = None
        if source is not None:
            _refuse_overlap(self._final, source)
        with output_errors(self.output):
            self._final.parent.mkdir(parents=True, exist_ok=True)
            _tidy(self._final)
            self._refuse_existing()
            self.folder.mkdir()
            self._lock = _lock(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the partial folder, if there still is one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write some tensors to the disk; nothing of them is kept in memory.

        Raises: InternalError if a name comes twice or a dtype cannot be stored; OutputError if the disk is full.
        """
        if not tensors:
            return
        twice = sorted(tensors.keys() & self._parts.keys())
        if twice:
            raise InternalError(f"the tensor {twice[0]!r} was written twice")
        part = self.folder / f"part-{len({info.file for info in self._parts.values()}):05d}.safetensors"
        entries = layout(_info(name, tensor, part) for name, tensor in tensors.items())
        self._write_tensors(part, entries, ((_bytes(tensors[entry.name]),) for entry in entries))
        self._parts |= read_header(part)

    def finish(self, config: Mapping[str, Any], *, max_shard_bytes: float = 5e9) -> None:
        """Write config.json and copy the parts into shards of at most `max_shard_bytes`, or one larger tensor each.

        Tensors stand in the order of their names, with numbers as numbers, so the same tensors always give the same
        files, in whatever order they were added. A megabyte of them is in memory.
        Raises: OutputError if the disk is full.
        """
        shards = _split(self._parts.values(), max_shard_bytes)
        for index, shard in enumerate(shards):
            file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            self._write_tensors(self.folder / file, shard, (_stored_bytes(entry) for entry in shard))
            self._shards |= {entry.name: file for entry in shard}
            self._remove_used_parts()
        if len(shards) > 1:
            total = sum(info.size_bytes for info in self._parts.values())
            index_content = {"metadata": {"total_size": total}, "weight_map": self._shards}
            write_side_file(self.folder / "model.safetensors.index.json", _json(index_content))
        write_side_file(self.folder / "config.json", _json(config))

    def commit(self) -> None:
        """Bring everything to the disk, verify it, and give it its name.

        Raises: InternalError if what is in the files is not what was added; OutputError if another run has written the
        output in the meantime.
        """
        self._verify()
        with output_errors(self.output):
            for file in (*sorted(self.folder.rglob("*")), self.folder):
                _sync(file)
            self._refuse_existing()
            _replace(self.folder, self._final)
            _sync(self._final.parent)

    def _refuse_existing(self) -> None:
        """Refuse an output that is there, or that --overwrite must not remove."""
        if not os.path.lexists(self._final):
            return
        if not self._overwrite:
            raise OutputError(f"{self.output}: exists already; give another output, or --overwrite to replace it")
        if not self._final.is_dir() or not (_is_model(self._final) or not any(self._final.iterdir())):
            raise OutputError(f"{self.output}: is no model folder, so it is not overwritten; give another output")

    def _write_tensors(self, file: Path, entries: Sequence[TensorInfo], data: Iterable[Iterable[memoryview]]) -> None:
        """Write a safetensors file of the bytes of `data`, one item for each entry."""
        size = sum(entry.size_bytes for entry in entries)
        with output_errors(self.output, needed=size), file.open("xb", buffering=0) as stream:
            _write(stream.fileno(), memoryview(make_header(entries)))
            for chunks in data:
                for chunk in chunks:
                    _write(stream.fileno(), chunk)

    def _remove_used_parts(self) -> None:
        """Remove the parts whose tensors are all in shards: the disk never holds much more than the model once."""
        needed = {info.file for name, info in self._parts.items() if name not in self._shards}
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
            raise InternalError(f"{self.output}: what was written cannot be read: {error}") from error
        for name in found.keys() | self._parts.keys():
            here, added = found.get(name), self._parts.get(name)
            if here is None or added is None or (here.dtype, here.shape) != (added.dtype, added.shape):
                raise InternalError(f"{self.output}: {name!r} is on the disk as {here}, and was added as {added}")


def write_side_file(file: Path, content: bytes) -> None:
    """Write one small file. Raises: OutputError if the disk is full or writing is not permitted."""
    with output_errors(file, needed=len(content)):
        file.write_bytes(content)


@contextmanager
def output_errors(output: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that says what to do.

    needed: bytes that the block writes, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            free = _free_bytes(output)
            raise OutputError(
                f"{output}: no space left: {needed:,} bytes were to be written, {free:,} are free "
                f"({error.strerror}); free some, or give an output on another disk"
            ) from error
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"{output}: cannot be written: {error.strerror}{where}; give another output") from error


def _free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds the nearest existing folder above `path`."""
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    return shutil.disk_usage(existing).free


def _is_model(folder: Path) -> bool:
    """Return whether there are weights beside a config.json, which many another kind of folder has too."""
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _refuse_overlap(final: Path, source: Path) -> None:
    model = source.resolve()
    if final == model or final in model.parents or model in final.parents:
        raise OutputError(f"{final}: is, holds or lies in the model that is read, {source}; give an output elsewhere")


def _tidy(final: Path) -> None:
    """Clear away what killed runs left beside the output; put back an old model whose replacement never came.

    Raises: OutputError if a run that is still alive writes the same output.
    """
    name = re.escape(final.name)
    for folder in sorted(final.parent.iterdir()):
        match = re.fullmatch(rf"\.{name}\.(partial|old)-\d+", folder.name)
        if match is None:
            continue
        try:
            lock = _lock(folder)
        except BlockingIOError as error:
            raise OutputError(
                f"{final}: another run is writing it, in {folder}; wait for it, or give another output"
            ) from error
        if lock is None:
            continue
        os.close(lock)
        if match[1] == "old" and not os.path.lexists(final):
            folder.rename(final)
        else:
            shutil.rmtree(folder)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the file descriptor that is returned is closed or the process ends, however it ends.

    A lock and not the process's number: in containers that share a disk, numbers repeat and other runs cannot be seen.
    Returns None on a file system without locks, where nobody knows who is alive.
    Raises: BlockingIOError if it is locked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _replace(new: Path, final: Path) -> None:
    """Rename `new` to `final`; a folder that is there is moved aside first, and back if the second rename fails."""
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    try:
        if os.path.lexists(final):
            final.rename(old)
        new.rename(final)
    except BaseException:
        if old.exists() and not os.path.lexists(final):
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise
    finally:
        os.close(descriptor)


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


def _write(descriptor: int, data: memoryview) -> None:
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
