"""The place of an output: claimed by one run at a time, tidied of what dead ones left, named in one rename.

    .out.partial/     where a run writes, beside "out"; locked, so that another run can tell it is in use
    .out.old-4711/    the model that "out" was, between the two renames of an --overwrite
    .m.gguf.partial   an output that is one file, while it is written; locked too

On a file system without locks nobody can tell who is alive: there each run has a folder of its own, .out.partial-4711,
and none goes on with another's work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zeropoint.errors import OutputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def is_model(folder: Path) -> bool:
    """Return whether there are weights beside a config.json, which many another kind of folder has too."""
    weights = (*folder.glob("model*.safetensors"), *folder.glob("model.onnx"))
    return (folder / "config.json").is_file() and bool(weights)


def refuse_overlap(final: Path, source: Path) -> None:
    """Raise OutputError if an output would touch the model that is read."""
    model = source.resolve()
    if final == model or final in model.parents or model in final.parents:
        raise OutputError(f"{final}: is, holds or lies in the model that is read, {source}; give an output elsewhere")


def claim(final: Path) -> tuple[Path, int | None]:
    """Return the folder in which the output `final` is to be written, and its lock: a descriptor to close.

    The folder is empty, or what a run that died has left. An old model whose replacement never came is put back. The
    lock is None, and the folder new, on a file system without locks.
    Raises: OutputError if a run that is still alive writes the same output; OSError.
    """
    folder = final.with_name(f".{final.name}.partial")
    if folder.is_symlink():  # what it leads to would be emptied
        raise OutputError(f"{folder}: is a link, and a run writes there; remove it, or give another output")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    descriptor = _lock(folder, final)
    if descriptor is None:
        if made:
            folder.rmdir()
        folder = final.with_name(f".{final.name}.partial-{os.getpid()}")
        folder.mkdir()
        return folder, None
    _put_back(final)
    return folder, descriptor


@contextmanager
def output_file(output: Path, *, magic: bytes, overwrite: bool, source: Path) -> Iterator[Path]:
    """Yield the name under which the file `output` is to be written; on leaving without an error it gets its own.

    magic: how a file begins that --overwrite may replace. source: the model that is read, which it must not touch.
    What was written is on the disk before the rename; leaving by any error removes it.
    Raises: OutputError if the output exists, overlaps the source, is being written, or cannot be.
    """
    final = output.resolve()
    refuse_overlap(final, source)
    partial = final.with_name(f".{final.name}.partial")
    with output_errors(output):
        final.parent.mkdir(parents=True, exist_ok=True)
        _refuse_file(output, final, magic=magic, overwrite=overwrite)
        if partial.is_symlink():  # what it leads to would be written over
            raise OutputError(f"{partial}: is a link, and the file is written there; remove it, or give another output")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock_file(descriptor, partial, final)
        try:
            yield partial
            with output_errors(output):
                sync(partial)
                _refuse_file(output, final, magic=magic, overwrite=overwrite)
                partial.replace(final)
                sync(final.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _refuse_file(output: Path, final: Path, *, magic: bytes, overwrite: bool) -> None:
    """Refuse an output that is there, or that --overwrite must not replace."""
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise OutputError(f"{output}: exists already; give another output, or --overwrite to replace it")
    if final.is_file():
        with final.open("rb") as file:
            if file.read(len(magic)) == magic:
                return
    raise OutputError(f"{output}: is no file of this format, so it is not overwritten; give another output")


def _lock_file(descriptor: int, partial: Path, final: Path) -> None:
    """Lock a file that is being written. Raises: OutputError if another run writes it, or has just finished it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError) as error:
        raise OutputError(
            f"{final}: another run is writing it, as {partial}; wait for it, or give another output"
        ) from error
    except OSError:  # a file system without locks
        return


def _put_back(final: Path) -> None:
    """Give a model that was moved aside its name again, or remove it where its replacement has come."""
    for folder in sorted(final.parent.iterdir()):
        if re.fullmatch(rf"\.{re.escape(final.name)}\.old-\d+", folder.name):
            if os.path.lexists(final):
                shutil.rmtree(folder)
            else:
                folder.rename(final)


def _lock(folder: Path, final: Path) -> int | None:
    """Lock a folder until the file descriptor that is returned is closed or the process ends, however it ends.

    A lock and not the process's number: in containers that share a disk, numbers repeat and other runs cannot be seen.
    Returns None on a file system without locks.
    Raises: OutputError if it is locked, or was finished by another run at this very moment.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(descriptor)
        raise OutputError(
            f"{final}: another run is writing it, in {folder}; wait for it, or give another output"
        ) from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def replace(new: Path, final: Path) -> None:
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


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise
    finally:
        os.close(descriptor)
