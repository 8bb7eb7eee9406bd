"""Embedding and head as integers in a compressed-tensors folder.

    8 bits   NAME.weight         int8 (rows, cols)                        the codes
    fewer    NAME.weight_packed  int32 (rows, ceil(cols * bits / 32))     as those of a linear (bits.py)
    both     NAME.weight_scale   scale_dtype (rows, groups)               (rows, 1) per channel
    8 bits   lm_head.weight_scale   the same once more, where the head is the embedding

Symmetric, per channel or group: every row stands for itself, so a table is written and read some rows at a time. The
codes of a tied table are in the file once.

What the readers do with it (tests/parity/test_embeddings_in_transformers.py shows each point):

- 8 bits are declared as `int-quantized`, in a group that names the table: transformers 5.23 with compressed-tensors
  0.20 opens it, and has our numbers bit for bit. It ties the codes, and turns them into floats under either name by
  the scale of that name: without `lm_head.weight_scale` the head would be scaled by what happens to be in memory.
- Packed codes fail there, because transformers wants to initialise an Embedding that has no `weight`. And a model with
  packed zero points is opened by `dequantize`, which takes the scheme of the linears for the embedding too, and fails.
  Both are declared as "zeropoint-embedding", which the package refuses by that name before it reads a weight.
- vLLM was not run. Its source has no quantized embedding, and no place for `weight_scale` of one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zeropoint.errors import CheckpointError, InternalError
from zeropoint.formats import _scales
from zeropoint.types import HEADS_OF, PackedWeight, QTensor, Scheme, StoredArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

FORMAT = "zeropoint-embedding"
NOTE = (
    "the integers of embedding and head, as they are here, only zeropoint can run: the compressed-tensors package, "
    "and transformers with it, refuses the model"
)
NOTE_INT8 = "embedding and head are in 8 bits: transformers opens the model, vLLM has no such embedding"


def hold(targets: Collection[str]) -> bool:
    """Say whether a config group with these targets is one of tables."""
    return bool(targets) and all(target.rpartition(".")[2] in (*HEADS_OF, *HEADS_OF.values()) for target in targets)


def supports(scheme: Scheme) -> str | None:
    """Return None if a table can be stored so, else the reason and what would fit."""
    if scheme.symmetric and scheme.granularity != "tensor":  # scales on two levels are never symmetric
        return None
    return (
        f"an embedding or a head cannot be stored as {scheme.label()}; use symmetric scales, per channel or per group"
    )


def tensor_names(name: str, scheme: Scheme, also: str | None = None) -> tuple[str, ...]:
    """Return the names of the tensors of table `name`, in the order of `to_store`. also: the head that it is, too."""
    codes = f"{name}.weight" if _as_bytes(scheme) else f"{name}.weight_packed"
    return (codes, f"{name}.weight_scale", *([f"{also}.weight_scale"] if also and _as_bytes(scheme) else []))


def to_store(name: str, slabs: Sequence[QTensor], also: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of `tensor_names`. slabs: the rows of the table, some after others.

    Raises: InternalError, with the name, if codes or scales break the promises of QTensor.
    """
    import torch

    from zeropoint.formats import bits

    scheme = slabs[0].scheme
    if any(q.qparams.zero_point is not None or q.scheme != scheme for q in slabs):
        raise InternalError(f"{name}: the rows of a table have one scheme, which is symmetric")
    codes = [q.codes if _as_bytes(scheme) else bits.pack(q.codes, scheme.bits) for q in slabs]
    scale = torch.cat([_scales.to_store(name, q) for q in slabs])
    names = tensor_names(name, scheme, also)
    return dict(zip(names, (torch.cat(codes), scale, *(scale.clone() for _ in names[2:])), strict=True))


def read(name: str, stored: Mapping[str, StoredArray], scheme: Scheme, cols: int) -> PackedWeight:
    """Return a table, or some of its rows, as it is packed; without torch.

    stored: codes and scale under the names of `tensor_names`, the same rows of both.
    Raises: CheckpointError, with the tensor's name, if one has not the dtype, shape or range it must.
    """
    part, scale_part = tensor_names(name, scheme)
    words = (_bytes if _as_bytes(scheme) else _words)(part, stored[part], scheme, cols)
    shape = len(words), cols
    scale, scale_dtype = _scales.read(scale_part, stored[scale_part], scheme, shape)
    return PackedWeight(words, scale, None, shape, replace(scheme, scale_dtype=scale_dtype))


def declared_format(scheme: Scheme, *, int8: str, beside_zero_points: bool) -> str:
    """Return what a config group of tables calls its format. int8: the package's name of codes that are bytes."""
    return int8 if _as_bytes(scheme) and scheme.granularity == "channel" and not beside_zero_points else FORMAT


def notes(formats: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    """Yield what has to be said about who can open a model. formats: of config groups, by their targets."""
    of_tables = {name for targets, name in formats.items() if hold(targets)}
    if of_tables:
        yield NOTE if FORMAT in of_tables else NOTE_INT8


def _as_bytes(scheme: Scheme) -> bool:
    return scheme.bits == 8


def _bytes(name: str, codes: StoredArray, scheme: Scheme, cols: int) -> NDArray[np.uint32]:
    """Return codes that are bytes as words: 128 added, rows filled up to whole words."""
    import numpy as np

    if codes.dtype != "int8" or codes.values.ndim != 2 or codes.values.shape[1] != cols:
        raise CheckpointError(f"{name} is {codes.dtype} {codes.values.shape}; it must be int8, rows of {cols}")
    unsigned = np.zeros((len(codes.values), -(-cols // 4) * 4), np.uint8)
    np.bitwise_xor(codes.values.view(np.uint8), 0x80, out=unsigned[:, :cols])
    return unsigned.view("<u4")


def _words(name: str, codes: StoredArray, scheme: Scheme, cols: int) -> NDArray[np.uint32]:
    import numpy as np

    from zeropoint.formats import bits

    width = bits.words(cols, scheme.bits)
    if codes.dtype != "int32" or codes.values.ndim != 2 or codes.values.shape[1] != width:
        raise CheckpointError(
            f"{name} is {codes.dtype} {codes.values.shape}; {cols} columns of {scheme.bits} bits are int32, "
            f"rows of {width}"
        )
    return np.ascontiguousarray(codes.values).view(np.uint32)
