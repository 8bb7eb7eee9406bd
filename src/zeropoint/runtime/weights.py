"""The weights of a checkpoint as a model wants them: block by block, float or quantized, tied ones once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zeropoint import find
from zeropoint.checkpoint.finite import require_finite
from zeropoint.checkpoint.reader import Checkpoint, TensorInfo
from zeropoint.checkpoint.safetensors_header import DTYPES
from zeropoint.errors import CheckpointError
from zeropoint.models import load_model
from zeropoint.models._names import is_constant
from zeropoint.models.parts import (
    Block,
    FloatBlock,
    Model,
    Ops,
    Table,
    last_norm,
    linear_names,
    outer_tensors,
    positions,
    tables,
)
from zeropoint.types import InputScheme, PackedWeight, QTensor, Scheme, StoredArray

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")


HEAD_VALUES = 1 << 26
"""Values of a head that are in float32 at once where its logits are wanted: 268 MB."""


class Weights:
    """Reads the weights of one checkpoint; holds none of them.

    model: the architecture. schemes: for each linear of the blocks its scheme, or None where it is float.
    inputs: for each of them how its input is rounded, or None where it stays float.
    left_out: names of tensors that nobody reads: a head that is the embedding again, and what is in
    `zeropoint.models._names`; no output has them.
    tables: embedding and head, one where they are tied. table_schemes: for the name of each its scheme, or None.
    Raises: CheckpointError if a tensor that the architecture needs is missing, or is not what config.json says.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model: Model = load_model(checkpoint.config, checkpoint.tensors)
        self.checkpoint, self.left_out = _arranged(checkpoint, self.model)
        if _has_head_beside(self.model, self.checkpoint.tensors):
            # it is not the embedding, whatever is usual for the architecture, and config.json does not say that it is
            self.model = load_model({**checkpoint.config, "tie_word_embeddings": False}, checkpoint.tensors)
        checkpoint = self.checkpoint
        config, count = self.model.config, len(checkpoint.tensors)
        of_blocks = sum(max(1, self.model.config_of(index).experts) for index in range(config.layers))
        if of_blocks > count:  # before a name for each of them is made
            experts = f" of {config.experts} experts each" if config.experts else ""
            raise CheckpointError(
                f"{checkpoint.path}: num_hidden_layers is {config.layers}{experts}, and there are {count} tensors; "
                "config.json belongs to another model"
            )
        self._format: Any = None
        self.schemes: Mapping[str, Scheme | None] = dict.fromkeys(linear_names(self.model))
        self.inputs: Mapping[str, InputScheme | None] = dict.fromkeys(self.schemes)
        self.tables: tuple[Table, ...] = tables(self.model)
        self.table_schemes: Mapping[str, Scheme | None] = dict.fromkeys(table.name for table in self.tables)
        quantization = checkpoint.config.get("quantization_config")
        if quantization is not None:
            self._format = _format_of(quantization)
            self.schemes = self._format.schemes(quantization, tuple(self.schemes))
            self.inputs = self._format.input_schemes(quantization, tuple(self.schemes))
            self.table_schemes = self._format.table_schemes(quantization, tuple(self.table_schemes))
        self._require_tensors()

    def read(self, name: str) -> Tensor:
        """Return a float tensor as it is stored. Raises: NonFiniteError, with its name, for NaN or infinity in it."""
        return require_finite(name, self.checkpoint.read(name))

    def linear(self, name: str) -> Tensor | QTensor:
        """Return the weight of the linear `name` ("model.layers.0.mlp.up_proj"): float as stored, or quantized."""
        scheme = self.schemes.get(name)
        if scheme is None:
            return self.read(f"{name}.weight")
        parts = {part: self.checkpoint.read(part) for part in self._tensor_names(name, scheme)}
        unpacked: QTensor = self._format.unpack(name, parts, scheme, self.inputs[name])
        self._require_shape(name, unpacked.shape, self.model.shape(f"{name}.weight"))
        return unpacked

    def packed_linear(self, name: str) -> PackedWeight | None:
        """Return the weight of the linear `name` as it is packed, or None if it is float. No torch is needed for it.

        `checkpoint.read_array` reads what is float.
        """
        scheme = self.schemes.get(name)
        if scheme is None:
            return None
        parts = {part: self._stored(part) for part in self._tensor_names(name, scheme)}
        packed: PackedWeight = self._format.read_packed(name, parts, scheme, self.inputs[name])
        self._require_shape(name, packed.shape, self.model.shape(f"{name}.weight"))
        return packed

    def block(self, index: int, ops: Ops, *, without: Collection[str] = ()) -> Block:
        """Return block `index` with its linears prepared for `ops`. without: full names of tensors to leave out."""
        prefix = f"{self.model.block_name(index)}."
        weights = {}
        for full in self.model.block_tensors(index):
            if full in without:
                continue
            name = full.removesuffix(".weight")
            weights[full.removeprefix(prefix)] = (
                ops.prepare(self.linear(name)) if name in self.schemes else self.read(full)
            )
        return Block(self.model.config_of(index), ops, weights)

    def float_block(self, index: int, dtypes: Mapping[str, Any]) -> FloatBlock:
        """Return the float block `index`. dtypes: by local name, of the tensors that are written as floats."""
        prefix = self.model.block_name(index)
        names = self.model.block_tensors(index)
        tensors = {name.removeprefix(f"{prefix}."): self.read(name).float() for name in names}
        return FloatBlock(prefix, self.model.config_of(index), tensors, dtypes)

    def float_linear(self, name: str) -> Tensor:
        """Return the weight of the float linear `name` as float32 (rows, cols)."""
        return self.read(f"{name}.weight").float()

    def restored_linear(self, name: str) -> Tensor:
        """Return the float32 values (rows, cols) of the linear `name`; of a quantized one what its codes stand for."""
        from zeropoint.qparams.affine import restore

        weight = self.linear(name)
        return restore(weight) if isinstance(weight, QTensor) else weight.float()

    @property
    def is_quantized(self) -> bool:
        """Whether anything of it is stored as integers by a scheme."""
        return any((*self.schemes.values(), *self.table_schemes.values()))

    @property
    def stored_embeddings(self) -> str:
        """What the file holds of the embedding: "stored" for floats, "int8" or "int4" for integers."""
        scheme = self.table_schemes[self.tables[0].name]
        return "stored" if scheme is None else f"int{scheme.bits}"

    def float_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of the float tensor `name`, or of what it is tied to, as float32."""
        import torch

        values = self.checkpoint.read_array(name, rows=(start, stop))
        if values.dtype == "float32":  # of a block type too, whatever its name
            return require_finite(name, torch.from_numpy(values))
        stored = self.checkpoint.tensors[self.checkpoint.tied.get(name, name)].dtype
        return require_finite(name, torch.from_numpy(values).view(getattr(torch, DTYPES[stored].torch_name))).float()

    def packed_table(self, name: str, rows: tuple[int, int]) -> PackedWeight:
        """Return rows (start, stop) of a quantized embedding or head as they are packed. No torch is needed for it."""
        scheme = self.table_schemes[name]
        packed: PackedWeight = self._format.read_table(name, self._table_parts(name, rows), scheme, self._cols)
        return packed

    def table(self, name: str) -> Tensor | QTensor:
        """Return an embedding or a head: float as stored, or quantized."""
        scheme = self.table_schemes[name]
        if scheme is None:
            return self.read(f"{name}.weight")
        return self.table_rows(name, 0, self.model.config.vocab_size)

    def restored_table(self, name: str) -> Tensor:
        """Return an embedding or a head: float as stored, or the float32 values that its codes stand for."""
        from zeropoint.qparams.affine import restore

        weight = self.table(name)
        return restore(weight) if isinstance(weight, QTensor) else weight

    def embed(self, ops: Ops, tokens: Tensor, batch: int) -> Iterator[Tensor]:
        """Yield the embedded windows, `batch` at a time: float32 (batch, length, hidden).

        tokens: int64 (windows, length). The tables are in memory only meanwhile.
        """
        import torch

        embedding = self.embedding()
        for part in torch.split(tokens, batch):
            yield self.model.embed(ops, embedding, part)

    def embedding(self) -> dict[str, Tensor | QTensor]:
        """Return what `Model.embed` needs: the embedding as it is stored, and the table of positions, if any."""
        name = self.tables[0].name
        return {f"{name}.weight": self.table(name)} | self.positions()

    def positions(self) -> dict[str, Tensor]:
        """Return the table of learned positions by its full name; {} if there is none."""
        return {name: self.read(name) for name in positions(self.model)}

    def head(self, ops: Ops) -> dict[str, Any]:
        """Return what `Model.head` needs: the last norm, and the head prepared for `ops` (the embedding when tied)."""
        return self._last_norm() | {self._head_weight: ops.prepare(self.table(self.tables[-1].name))}

    def _last_norm(self) -> dict[str, Any]:
        return {name: self.read(name) for name in last_norm(self.model)}

    @property
    def _head_weight(self) -> str:
        """What `Model.head` calls the weight of the head, also where it is the embedding."""
        return f"{self.model.ends.head}.weight"

    def logits(self, ops: Ops) -> Callable[[Tensor], Tensor]:
        """Return what makes logits (..., vocabulary) of the last block's output (..., hidden).

        At most HEAD_VALUES of the head are in float32 at once: a larger one is read again, in slabs, each time.
        """
        import torch

        norm = self._last_norm()
        rows = max(1, HEAD_VALUES // self._cols)
        slabs = [
            (at, min(at + rows, self.model.config.vocab_size)) for at in range(0, self.model.config.vocab_size, rows)
        ]
        kept = self.head(ops) if len(slabs) == 1 else None

        def of(x: Tensor) -> Tensor:
            if kept is not None:
                whole: Tensor = self.model.head(ops, kept, x)
                return whole
            name = self.tables[-1].name
            heads = (norm | {self._head_weight: ops.prepare(self.table_rows(name, *slab))} for slab in slabs)
            return torch.cat([self.model.head(ops, head, x) for head in heads], dim=-1)

        return of

    def table_rows(self, name: str, start: int, stop: int) -> Tensor | QTensor:
        """Return rows of an embedding or a head: as float32, or quantized."""
        scheme = self.table_schemes[name]
        if scheme is None:
            return self.float_rows(f"{name}.weight", start, stop)
        unpacked: QTensor = self._format.unpack_table(name, self._table_parts(name, (start, stop)), scheme, self._cols)
        return unpacked

    def skipped(self) -> tuple[str, ...]:
        """Return the names of tensors in the checkpoint that the architecture does not use, sorted."""
        return self._skipped

    @cached_property
    def _skipped(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.checkpoint.tensors) - set(self._used())))

    def _stored(self, name: str, rows: tuple[int, int] | None = None) -> StoredArray:
        """Return a tensor of a quantized weight; only a folder holds one, with the dtypes of safetensors."""
        values = self.checkpoint.read_array(name, rows=rows)
        return StoredArray(values, DTYPES[self.checkpoint.tensors[name].dtype].torch_name)

    def _tensor_names(self, name: str, scheme: Scheme) -> tuple[str, ...]:
        names: tuple[str, ...] = self._format.tensor_names(name, scheme, self.inputs[name])
        return names

    @property
    def _cols(self) -> int:
        """Columns of embedding and head."""
        return self.model.config.hidden_size

    def _table_parts(self, name: str, rows: tuple[int, int]) -> dict[str, StoredArray]:
        """Return rows of the tensors of a quantized table."""
        return {
            part: self._stored(part, rows) for part in self._format.table_tensor_names(name, self.table_schemes[name])
        }

    def _table_names(self, table: Table) -> tuple[str, ...]:
        """Return the names of the tensors that a table is stored as."""
        scheme = self.table_schemes[table.name]
        if scheme is None:
            return (f"{table.name}.weight",)
        also = table.also if f"{table.also}.weight_scale" in self.checkpoint.tensors else None
        names: tuple[str, ...] = self._format.table_tensor_names(table.name, scheme, also)
        return names

    def _used(self) -> list[str]:
        floats = {f"{table.name}.weight" for table in self.tables}
        names = [name for name in outer_tensors(self.model) if name not in floats]
        names += [name for table in self.tables for name in self._table_names(table)]
        for index in range(self.model.config.layers):
            for full in self.model.block_tensors(index):
                scheme = self.schemes.get(full.removesuffix(".weight")) if full.endswith(".weight") else None
                names += [full] if scheme is None else self._tensor_names(full.removesuffix(".weight"), scheme)
        return names

    def _require_tensors(self) -> None:
        stored = self.checkpoint.tensors.keys() | self.checkpoint.tied.keys()
        missing = [name for name in self._used() if name not in stored]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(
                f"{self.checkpoint.path}: a {self.model.config.model_type} model needs {', '.join(missing[:3])}{more}, "
                "which is not there; the download may be incomplete, or config.json belongs to another model"
            )
        self._require_shapes()

    def _require_shapes(self) -> None:
        """Hold what is stored as floats against the config; of what is quantized its codes say the shape when read."""
        codes = {name for table in self.tables if self.table_schemes[table.name] for name in self._table_names(table)}
        for name in self._used():
            if self.schemes.get(name.rpartition(".")[0]) is not None:
                continue
            info = self.checkpoint.tensors[self.checkpoint.tied.get(name, name)]
            if name in codes:
                self._require_vocabulary(name, info.shape)
                continue
            if info.dtype in DTYPES and info.dtype not in FLOATS:
                raise CheckpointError(
                    f"{self.checkpoint.path}: {name} is stored as {info.dtype}, and nothing says how it is quantized; "
                    f"{', '.join(FLOATS)} are read as they are"
                )
            self._require_shape(name, info.shape, self.model.shape(name))

    def _require_vocabulary(self, name: str, shape: tuple[int, ...]) -> None:
        rows = self.model.config.vocab_size
        if shape[:1] != (rows,):
            raise CheckpointError(
                f"{self.checkpoint.path}: {name} has the shape {shape}, and config.json a vocabulary of {rows} "
                "tokens; config.json belongs to another model"
            )

    def _require_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != wanted:
            raise CheckpointError(
                f"{self.checkpoint.path}: {name} has the shape {found}, and by config.json {wanted}; "
                "config.json belongs to another model"
            )


def _arranged(checkpoint: Checkpoint, model: Model) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint with its tensors as the architecture calls them, and the names of what nobody reads."""
    tensors = model.arranged(checkpoint.tensors)
    head, embedding = (f"{name}.weight" for name in (model.ends.head, model.ends.embedding))
    if model.config.tied_embeddings and head in tensors and checkpoint.tied.get(embedding) == head:
        only = replace(tensors[head], name=embedding)  # under the other of its two names
        tensors = {embedding: only, **{name: info for name, info in tensors.items() if name != head}}
    found = checkpoint if tensors is checkpoint.tensors else checkpoint.arranged(tensors)
    left_out = {name for name in tensors if is_constant(name, model.block_name(0))}
    if _has_head_beside(model, tensors) and head in found.tied:
        left_out.add(head)
    if left_out:
        found = found.arranged({name: info for name, info in tensors.items() if name not in left_out})
    return found, tuple(sorted(left_out))


def _has_head_beside(model: Model, tensors: Mapping[str, TensorInfo]) -> bool:
    """Say whether the file has a float head beside the embedding, although the model's is its embedding."""
    names = (f"{model.ends.head}.weight", f"{model.ends.embedding}.weight")
    both = all(name in tensors and tensors[name].dtype in FLOATS for name in names)
    return model.config.tied_embeddings and both


def _format_of(quantization: object) -> Any:
    if not isinstance(quantization, dict):
        raise CheckpointError(f"config.json: quantization_config is {str(quantization)[:60]!r}; a table belongs there")
    method = str(quantization.get("quant_method", "compressed-tensors"))
    name = method.replace("-", "_")
    if name not in find.names("formats"):
        known = ", ".join(n.replace("_", "-") for n in find.names("formats"))
        raise CheckpointError(
            f"config.json: the model is quantized as {method!r}; the formats that can be read are {known}"
        )
    return find.load("formats", name)
