"""A GGUF file read as a checkpoint: tensors dequantized, under Hugging Face names and in Hugging Face's order of rows.

Every type that the gguf package can dequantize is read. A value is scale * code, plus the block's minimum where it has
one, in float32: rounded at most twice, by 2^-24 of its size each, where the code itself has 8 bits or fewer.

How an architecture is stored, and its config.json, are in gguf_architectures.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zeropoint.checkpoint.gguf_architectures import architecture_of
from zeropoint.checkpoint.gguf_architectures._architecture import Architecture, Swapped
from zeropoint.checkpoint.gguf_architectures._fields import MAX_EXPERTS, Fields
from zeropoint.checkpoint.place import write_side_file
from zeropoint.checkpoint.reader import TensorInfo, no_such_tensor, read_into, rows_of, tied_in
from zeropoint.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 18  # read and dequantized at once; 2.7 times as fast as the package's 16 rows, and bounded memory


class Gguf:
    """A checkpoint in one GGUF file; see `zeropoint.checkpoint.reader.Checkpoint`.

    Its tensors are those of the Hugging Face folder: of a model whose folder has matrices as (cols, rows) they are so
    here, too, and `TensorInfo.transposed` of one that is arranged means that the folder has it so.
    """

    def __init__(self, path: Path) -> None:
        from zeropoint.checkpoint.gguf_header import read_header  # gguf takes 0.2 s to import

        header = read_header(path)
        self.path = path
        self.metadata: Mapping[str, Any] = header.metadata
        _require_whole(header.metadata, path)
        architecture = self._architecture = architecture_of(header.metadata, path)
        arch = str(header.metadata["general.architecture"])
        factors = {name: info for name, info in header.tensors.items() if name in architecture.factors}
        found = {name: info for name, info in header.tensors.items() if name not in factors}
        self.tensors: Mapping[str, TensorInfo] = _renamed(found, architecture, header.metadata, path)
        head, embedding = f"{architecture.head}.weight", f"{architecture.outer['token_embd']}.weight"
        tied = head not in self.tensors
        self.fields = Fields(header.metadata, arch, self.tensors.keys(), tied, path)
        self.config = architecture.config(self.fields)
        if factors and architecture.with_factors is not None:
            values = {name: dequantize(info) for name, info in factors.items()}
            self.config = architecture.with_factors(self.config, values, path)
        self.tied: Mapping[str, str] = {head: embedding} if tied else {}

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Self:
        """Return the same file with its tensors under other names, or in parts."""
        other = copy.copy(self)
        other.tensors, other.tied = tensors, tied_in(self.tied, self.tensors, tensors)
        return other

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, or what it is tied to, as float32 in memory of its own."""
        import torch

        return torch.from_numpy(self.read_array(name))

    def read_array(self, name: str, *, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return one tensor, or some rows of it, as float32; only these rows are read unless they are interleaved."""
        import numpy as np

        info = self.tensors.get(self.tied.get(name, name))
        if info is None:
            raise no_such_tensor(name, self.path, self.tensors)
        linear = info.name.rsplit(".", 1)[0]
        swapped = next((how for end, how in self._architecture.swapped.items() if linear.endswith(end)), None)
        turned = linear.endswith(self._architecture.transposed) and not info.transposed
        stored = replace(info, shape=info.shape[::-1] if turned else info.shape, transposed=False)
        # the values of a vector share blocks, and rows in another order lie apart
        if swapped is None and not turned and len(info.shape) > 1:
            return dequantize(stored if rows is None else rows_of(stored, rows))
        values = dequantize(stored)
        if turned:
            values = np.ascontiguousarray(values.T)
        if swapped is not None:
            values = _as_hugging_face_has_them(values, swapped, self.config, info)
        if linear.endswith("norm"):
            values -= np.float32(self._architecture.added)
        return values if rows is None else values[slice(*rows)].copy()

    def side_file(self, name: str) -> bytes | None:
        """Return tokenizer.json, tokenizer_config.json, generation_config.json or chat_template.jinja, else None."""
        return self._side_files.get(name)

    def files(self) -> tuple[Path, ...]:
        """Return the one file."""
        return (self.path,)

    def copy_side_files(self, folder: Path) -> None:
        """Write the side files that `side_file` knows."""
        for name, content in self._side_files.items():
            write_side_file(folder / name, content)

    @functools.cached_property
    def _side_files(self) -> dict[str, bytes]:
        from zeropoint.checkpoint.gguf_tokenizer import make_side_files

        return make_side_files(self.metadata, self.config, self.path)


def _require_whole(metadata: Mapping[str, Any], path: Path) -> None:
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path}: is one of {parts} parts; join them with llama.cpp: llama-gguf-split --merge FIRST_PART OUTPUT"
        )


def _renamed(
    found: Mapping[str, TensorInfo], architecture: Architecture, metadata: Mapping[str, Any], path: Path
) -> dict[str, TensorInfo]:
    """Return the tensors by their Hugging Face names, in the shapes that they have there; experts one by one."""
    key = f"{metadata['general.architecture']}.expert_count"
    experts = metadata.get(key)
    tensors = {}
    for name, info in found.items():
        theirs = architecture.hugging_face_name(name)
        if theirs is None:
            raise CheckpointError(
                f"{path}: the tensor {name[:100]!r} is none of this architecture's; "
                "give the Hugging Face folder that the file was converted from"
            )
        if "{}" in theirs:
            if len(info.shape) != 3 or info.shape[0] != experts or info.shape[0] > MAX_EXPERTS:
                raise CheckpointError(
                    f"{path}: {name} has the shape {info.shape}, and {key} is {str(experts)[:60]}; "
                    f"a stack of as many matrices belongs there, at most {MAX_EXPERTS}"
                )
            for expert in range(info.shape[0]):
                one = rows_of(info, (expert, expert + 1))
                tensors[theirs.format(expert)] = replace(one, name=theirs.format(expert), shape=info.shape[1:])
        elif theirs.rpartition(".")[0].endswith(architecture.transposed):
            tensors[theirs] = replace(info, name=theirs, shape=info.shape[::-1])
        else:
            tensors[theirs] = replace(info, name=theirs)
    return tensors


def dequantize(info: TensorInfo) -> NDArray[np.float32]:
    """Return a tensor's values, float32 in its shape.

    Blocks do not know of rows, so the tensor is cut where it suits: only one chunk is in memory beside the result.
    Raises: CheckpointError if the package cannot dequantize the type.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[info.dtype]
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    values = np.empty(info.shape, dtype=np.float32)
    flat = values.reshape(-1)
    chunk = np.empty(min(info.size_bytes, CHUNK_BYTES // bytes_per_block * bytes_per_block), dtype=np.uint8)
    for start in range(0, info.size_bytes, chunk.size or 1):
        part = chunk[: info.size_bytes - start]
        read_into(info, part.data, start=start)
        first = start // bytes_per_block * values_per_block
        try:
            with np.errstate(all="ignore"):  # infinities and NaN are refused by name where they are used
                decoded = gguf.quants.dequantize(part.reshape(1, -1), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{info.file}: {info.name} is stored as {info.dtype}, which the gguf package cannot dequantize; "
                "update gguf, or give the Hugging Face folder that the file was converted from"
            ) from error
        flat[first : first + decoded.size] = decoded.reshape(-1)
    return values


def _as_hugging_face_has_them(
    values: NDArray[np.float32], swapped: Swapped, config: Mapping[str, Any], info: TensorInfo
) -> NDArray[np.float32]:
    """Return rows (rows, ...) that are stored in another order."""
    rows = len(values)
    known = [int(config[size]) if isinstance(size, str) else size for size in swapped.shape]
    parts = [size for size in known if size != -1]
    if rows % math.prod(parts):
        raise CheckpointError(
            f"{info.file}: {info.name} has {rows} rows, which do not split into {' x '.join(map(str, parts))} parts"
        )
    return values.reshape(*known, *values.shape[1:]).swapaxes(*swapped.axes).reshape(values.shape)
