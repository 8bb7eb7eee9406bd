"""What a checkpoint is, whatever it is stored as, and how one is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zeropoint.errors import CheckpointError, InternalError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NEVER_UNPICKLED = (
    "opening a pickle runs whatever code is inside it, so zeropoint never does; convert the model where you trust it: "
    'transformers.AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained("converted") writes safetensors, and '
    'transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained("converted") what reads text'
)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and how it is stored.

    name: its Hugging Face name. dtype: as the file calls it ("F32", "BF16", "I8", "Q4_1" ...). shape: of the values,
    also where they are packed in blocks. size_bytes: in the file. offset: of the first byte in `file`. transposed: the
    file has a matrix of `shape` column by column.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    file: Path
    offset: int = 0
    transposed: bool = False


class Checkpoint(Protocol):
    """A trained model on disk. Opening one reads headers only."""

    @property
    def path(self) -> Path:
        """The folder, or the .gguf file."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json; for a .gguf file the same keys, made from its metadata."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is stored, by Hugging Face name."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that stand for another tensor, such as {"lm_head.weight": "model.embed_tokens.weight"}."""

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Checkpoint:
        """Return the same checkpoint with its tensors under the names, and in the parts, that an architecture has.

        tensors: what takes the place of `tensors`, each somewhere in the same files.
        """

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, or what it is tied to, in memory of its own.

        The dtype is the stored one; every GGUF type becomes float32.
        Raises: CheckpointError if there is no such tensor or its file has changed or cannot be read.
        """

    def read_array(self, name: str, *, rows: tuple[int, int] | None = None) -> NDArray[np.generic]:
        """Return what `read` returns as an array, without torch.

        rows: (start, stop) of the first axis, to read a large tensor in slabs; None is all of them. What numpy lacks
        comes as its bits: bfloat16 in uint16, float8 in uint8; `tensors[name].dtype` tells them from integers.
        Raises: CheckpointError as `read`; InternalError if the tensor does not have these rows.
        """

    def side_file(self, name: str) -> bytes | None:
        """Return the content of a file beside the weights, such as tokenizer.json, or None if there is none.

        Raises: CheckpointError if it cannot be read, or cannot be made from the metadata of a .gguf file.
        """

    def files(self) -> tuple[Path, ...]:
        """Return every file that is read or copied, sorted."""

    def copy_side_files(self, folder: Path) -> None:
        """Write what a serving engine needs beside weights and config.json: tokenizer, chat template, licence.

        Raises: CheckpointError as `side_file`; OutputError if `folder` cannot be written.
        """


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder or a .gguf file.

    Raises: CheckpointError for everything else, and for either of them if it is damaged or incomplete.
    """
    try:
        return _open(Path(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        from zeropoint.checkpoint.folder import Folder

        return Folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give a folder with config.json, or a .gguf file")
    if path.suffix == ".gguf":
        from zeropoint.checkpoint.gguf_source import Gguf

        return Gguf(path)
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path}: {NEVER_UNPICKLED}")
    if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
        raise CheckpointError(f"{path}: one file of a model folder; give the folder that holds it, {path.parent}")
    raise CheckpointError(f"{path}: not a model; give a folder with config.json and model.safetensors, or a .gguf file")


def read_into(info: TensorInfo, buffer: memoryview, *, start: int = 0) -> None:
    """Fill `buffer` with the stored bytes of a tensor, beginning at byte `start` of it.

    Read, not mapped: mapped pages would count as our memory until the system wants them back, so the memory of a
    walk through the layers would grow with their number.
    Raises: CheckpointError if the file cannot be read or has become shorter.
    """
    done = 0
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.offset + start)
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    break
                done += count
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot read {info.name}: {error.strerror}") from error
    if done < len(buffer):
        raise CheckpointError(
            f"{info.file}: {info.name} ends {len(buffer) - done} bytes early; the file changed after it was opened, "
            "run again when nothing writes to it"
        )


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return what `read_array` gave for a float tensor as contiguous float32; bfloat16 comes as its bits in uint16."""
    import numpy as np

    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def rows_of(info: TensorInfo, rows: tuple[int, int]) -> TensorInfo:
    """Return where the rows (start, stop) of a tensor lie: a tensor of its own. A row takes a whole number of bytes.

    Raises: InternalError if the tensor does not have these rows, or they lie apart.
    """
    start, stop = rows
    if info.transposed or not info.shape or not 0 <= start <= stop <= info.shape[0]:
        raise InternalError(f"{info.file}: {info.name} of shape {info.shape} does not have the rows {start} to {stop}")
    row_bytes = info.size_bytes // max(info.shape[0], 1)
    return replace(
        info,
        shape=(stop - start, *info.shape[1:]),
        size_bytes=(stop - start) * row_bytes,
        offset=info.offset + start * row_bytes,
    )


def tied_in(
    tied: Mapping[str, str], tensors: Mapping[str, TensorInfo], arranged: Mapping[str, TensorInfo]
) -> dict[str, str]:
    """Return `tied`, of a checkpoint with `tensors`, where these are called as in `arranged`."""
    names = {(info.file, info.offset): name for name, info in arranged.items()}
    moved = {name: names.get((info.file, info.offset), name) for name, info in tensors.items()}
    return {moved.get(name, name): moved.get(stored, stored) for name, stored in tied.items()}


def no_such_tensor(name: str, path: Path, known: Mapping[str, TensorInfo]) -> CheckpointError:
    """Return the error for a name that the checkpoint at `path` does not have, with the nearest one it has."""
    from zeropoint.find import nearest

    return CheckpointError(f"{path}: there is no tensor {name!r} among its {len(known)}{nearest(name, known)}")
