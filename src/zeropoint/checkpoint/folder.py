"""A Hugging Face folder: config.json, model.safetensors or an index with its shards, and the files beside them."""

from __future__ import annotations

import copy
import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zeropoint import documents
from zeropoint.checkpoint.place import write_side_file
from zeropoint.checkpoint.reader import (
    NEVER_UNPICKLED,
    PICKLES,
    TensorInfo,
    no_such_tensor,
    read_into,
    rows_of,
    tied_in,
)
from zeropoint.checkpoint.safetensors_header import DTYPES, read_header
from zeropoint.errors import CheckpointError
from zeropoint.types import HEADS_OF

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SIDE_FILES = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "chat_template*",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "*.model", "license*", "notice*",
)  # fmt: skip
MAX_SIDE_FILE_BYTES = 1 << 28  # tokenizer.json of the largest vocabularies has 34 MB
# also where such a name would match: weights are ours to write, pickles and code are nothing we hand on
NEVER_COPIED = (*PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".py", ".so")


class Folder:
    """A checkpoint in a folder, as `transformers` saves it; see `zeropoint.checkpoint.reader.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _read_config(path)
        self.tensors: Mapping[str, TensorInfo] = _find_tensors(path)
        self.tied: Mapping[str, str] = self._find_tied()

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Self:
        """Return the same folder with its tensors under other names, or in parts."""
        other = copy.copy(self)
        other.tensors, other.tied = tensors, tied_in(self.tied, self.tensors, tensors)
        return other

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, or what it is tied to, in its stored dtype and in memory of its own."""
        import torch

        values = self.read_array(name)
        dtype: torch.dtype = getattr(torch, DTYPES[self._info(name).dtype].torch_name)
        # of an empty array from_numpy makes a stride of 0, which cannot be seen as bytes
        return torch.from_numpy(values).view(dtype) if values.size else torch.empty(values.shape, dtype=dtype)

    def read_array(self, name: str, *, rows: tuple[int, int] | None = None) -> NDArray[np.generic]:
        """Return one tensor, or some rows of it, in its stored dtype; bfloat16 and float8 as their bits."""
        import numpy as np

        info = self._info(name)
        if info.transposed:
            whole = self._values(replace(info, shape=info.shape[::-1])).T
            return np.ascontiguousarray(whole if rows is None else whole[slice(*rows)])
        return self._values(info if rows is None else rows_of(info, rows))

    @staticmethod
    def _values(info: TensorInfo) -> NDArray[np.generic]:
        import numpy as np

        values = np.empty(info.shape, dtype=DTYPES[info.dtype].numpy_name)
        read_into(info, values.reshape(-1).view(np.uint8).data)
        return values

    def side_file(self, name: str) -> bytes | None:
        """Return the content of a file in the folder, or None if there is none of that name."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return documents.read_bytes(file, MAX_SIDE_FILE_BYTES)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        except documents.MalformedError as error:
            raise CheckpointError(f"{file}: {error}, which no file of its kind has") from error

    def files(self) -> tuple[Path, ...]:
        """Return the weight files, config.json, the index and the side files.

        Raises: CheckpointError if a side file is a link to what does not belong to the model.
        """
        names = {*_side_file_names(self.path), CONFIG, *(info.file.name for info in self.tensors.values())}
        return tuple(self.path / name for name in sorted(names | {INDEX}) if (self.path / name).is_file())

    def copy_side_files(self, folder: Path) -> None:
        """Copy tokenizer, chat template, generation config and licence; never weights, pickles, code or config.json."""
        for name in sorted(_side_file_names(self.path)):
            write_side_file(folder / name, self.side_file(name) or b"")

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(self.tied.get(name, name))
        if info is None:
            raise no_such_tensor(name, self.path, self.tensors)
        return info

    def _find_tied(self) -> dict[str, str]:
        """Return which of embedding and head is the other one, unless config.json says that they are two.

        Where both are stored, they are one only if they are equal; transformers decides it in the same way. Where one
        is not, config.json must say so.
        """
        said = self.config.get("tie_word_embeddings")
        if said is not None and not said:
            return {}
        kinds = {name: name.removesuffix(".weight").rpartition(".")[2] for name in self.tensors}
        embedding = next((name for name, kind in kinds.items() if kind in HEADS_OF), "model.embed_tokens.weight")
        head = next(
            (name for name, kind in kinds.items() if kind in HEADS_OF.values()),
            f"{HEADS_OF[embedding.split('.')[-2]]}.weight",
        )
        if head not in self.tensors or embedding not in self.tensors:
            pairs = {head: embedding, embedding: head} if said else {}
            return {name: stored for name, stored in pairs.items() if stored in self.tensors}
        if _same_bytes(self.tensors[head], self.tensors[embedding]):
            return {head: embedding}
        if said:
            self.config = {**self.config, "tie_word_embeddings": False}
        return {}


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises: CheckpointError if the file cannot be read, is not JSON that can be trusted, or holds no object.
    """
    try:
        content = documents.parse_json(documents.read_bytes(file))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except documents.MalformedError as error:
        raise CheckpointError(f"{file}: {error}; get the file again from where the model came from") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; a JSON object {{...}} belongs there")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path}: no config.json there; give the folder of a Hugging Face model, or a .gguf file{_gguf_hint(path)}"
        )
    return read_json(path / CONFIG)


def _gguf_hint(path: Path) -> str:
    """Return a hint at the first .gguf file of a folder that somebody gave instead of the file."""
    files = sorted(path.glob("*.gguf"))
    return f", such as {files[0]}" if files else ""


def _find_tensors(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of the one weight file, or of all shards."""
    if (path / WEIGHTS).is_file():
        return read_header(path / WEIGHTS)
    if (path / INDEX).is_file():
        return _read_shards(path)
    pickles = sorted(file.name for file in path.iterdir() if _is_pickle(file.name))
    if pickles:
        raise CheckpointError(f"{path}: the weights are in {pickles[0]} and not in safetensors: {NEVER_UNPICKLED}")
    others = sorted(file.name for file in path.glob("*.safetensors"))
    found = f"; it has {', '.join(others[:3])}, which must be called so or listed in the index" if others else ""
    raise CheckpointError(f"{path}: there is neither {WEIGHTS} nor {INDEX}{found}")


def _is_pickle(name: str) -> bool:
    return name.endswith(PICKLES) or name == "pytorch_model.bin.index.json"


def _read_shards(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of all shards, after checking that index and shards say the same."""
    index = path / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise CheckpointError(f"{index}: weight_map must be a table {{tensor name: file name}}")
    counts = Counter(where.values())
    found: dict[str, TensorInfo] = {}
    for shard in sorted(counts):
        if not _is_plain_name(shard):
            raise CheckpointError(
                f"{index}: names the shard {shard!r}; a shard is a .safetensors file in the same folder"
            )
        if not (path / shard).is_file():
            raise CheckpointError(
                f"{path}: the shard {shard} is missing, with {counts[shard]} tensors; download it again"
            )
        header = read_header(path / shard)
        for name in header:
            if where.get(name) != shard:
                raise CheckpointError(
                    f"{path}: {shard} holds {name!r}, which the index has in {where.get(name, 'no file')}; "
                    "index and shards are of different versions, download the model again"
                )
        found |= header
    missing = sorted(where.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"{path}: {where[missing[0]]} does not hold {missing[0]!r}, which the index has there "
            f"({len(missing)} such tensors); index and shards are of different versions, download the model again"
        )
    return found


def _is_plain_name(shard: str) -> bool:
    return shard.endswith(".safetensors") and shard.isprintable() and not set(shard) & set("/\\:\0")


def _side_file_names(path: Path) -> Iterator[str]:
    for file in path.iterdir():
        name = file.name.lower()
        wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in SIDE_FILES)
        if wanted and file.is_file() and not name.endswith(NEVER_COPIED):
            _require_own(file)
            yield file.name


def _require_own(file: Path) -> None:
    """Refuse a link that would hand a file of somebody else on with the output, as licence or tokenizer.

    Links within the folder, and those into the cache of Hugging Face, are what downloads are made of.
    """
    target = file.resolve()
    cached = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not cached and not target.is_relative_to(file.parent.resolve()):
        raise CheckpointError(
            f"{file}: is a link to {target}, outside of the model's folder, and would be copied into the output; "
            "put the file itself there if it belongs to the model, or remove the link"
        )


def _same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    buffers = bytearray(1 << 20), bytearray(1 << 20)
    for start in range(0, one.size_bytes, 1 << 20):
        views = [memoryview(buffer)[: one.size_bytes - start] for buffer in buffers]
        for info, view in zip((one, other), views, strict=True):
            read_into(info, view, start=start)
        if views[0] != views[1]:
            return False
    return True
