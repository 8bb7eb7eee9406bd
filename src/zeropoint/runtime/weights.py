"""The weights of a checkpoint as a model wants them: block by block, float or quantized, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zeropoint import find
from zeropoint.checkpoint.reader import Checkpoint
from zeropoint.checkpoint.safetensors_header import DTYPES
from zeropoint.errors import CheckpointError
from zeropoint.models import load_model
from zeropoint.models.parts import Block, FloatBlock, Model, Ops, linear_names
from zeropoint.types import InputScheme, PackedWeight, QTensor, Scheme, StoredArray

if TYPE_CHECKING:
    from torch import Tensor


class Weights:
    """Reads the weights of one checkpoint; holds none of them.

    model: the architecture. schemes: for each linear of the blocks its scheme, or None where it is float.
    inputs: for each of them how its input is rounded, or None where it stays float.
    Raises: CheckpointError if a tensor that the architecture needs is missing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model: Model = load_model(checkpoint.config)
        self._format: Any = None
        self.schemes: Mapping[str, Scheme | None] = dict.fromkeys(linear_names(self.model))
        self.inputs: Mapping[str, InputScheme | None] = dict.fromkeys(self.schemes)
        quantization = checkpoint.config.get("quantization_config")
        if quantization is not None:
            self._format = _format_of(quantization)
            self.schemes = self._format.schemes(quantization, tuple(self.schemes))
            self.inputs = self._format.input_schemes(quantization, tuple(self.schemes))
        self._require_tensors()

    def linear(self, name: str) -> Tensor | QTensor:
        """Return the weight of the linear `name` ("model.layers.0.mlp.up_proj"): float as stored, or quantized."""
        scheme = self.schemes.get(name)
        if scheme is None:
            return self.checkpoint.read(f"{name}.weight")
        parts = {part: self.checkpoint.read(part) for part in self._tensor_names(name, scheme)}
        unpacked: QTensor = self._format.unpack(name, parts, scheme, self.inputs[name])
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
        return packed

    def block(self, index: int, ops: Ops) -> Block:
        """Return block `index` with its linears prepared for `ops`."""
        prefix = f"{self.model.block_name(index)}."
        weights = {}
        for full in self.model.block_tensors(index):
            name = full.removesuffix(".weight")
            weights[full.removeprefix(prefix)] = (
                ops.prepare(self.linear(name)) if name in self.schemes else self.checkpoint.read(full)
            )
        return Block(self.model.config, ops, weights)

    def float_block(self, index: int, dtypes: Mapping[str, Any]) -> FloatBlock:
        """Return the float block `index`. dtypes: by local name, of the tensors that are written as floats."""
        prefix = self.model.block_name(index)
        names = self.model.block_tensors(index)
        tensors = {name.removeprefix(f"{prefix}."): self.checkpoint.read(name).float() for name in names}
        return FloatBlock(prefix, self.model.config, tensors, dtypes)

    def float_linear(self, name: str) -> Tensor:
        """Return the weight of the float linear `name` as float32 (rows, cols)."""
        return self.checkpoint.read(f"{name}.weight").float()

    def restored_linear(self, name: str) -> Tensor:
        """Return the float32 values (rows, cols) of the linear `name`; of a quantized one what its codes stand for."""
        from zeropoint.qparams.affine import restore

        weight = self.linear(name)
        return restore(weight) if isinstance(weight, QTensor) else weight.float()

    def embed(self, ops: Ops, tokens: Tensor, batch: int) -> Iterator[Tensor]:
        """Yield the embedded windows, `batch` at a time: float32 (batch, length, hidden).

        tokens: int64 (windows, length). The table is in memory only meanwhile.
        """
        import torch

        embedding = self.embedding()
        for part in torch.split(tokens, batch):
            yield self.model.embed(ops, embedding, part)

    def embedding(self) -> dict[str, Tensor]:
        """Return what `Model.embed` needs: the embedding table as it is stored."""
        name = self.model.outer_tensors()[0]
        return {name: self.checkpoint.read(name)}

    def head(self, ops: Ops) -> dict[str, Any]:
        """Return what `Model.head` needs: the last norm, and the head prepared for `ops` (the embedding when tied)."""
        table, norm, *head = self.model.outer_tensors()
        return {
            norm: self.checkpoint.read(norm),
            "lm_head.weight": ops.prepare(self.checkpoint.read((head or [table])[0])),
        }

    def skipped(self) -> tuple[str, ...]:
        """Return the names of tensors in the checkpoint that the architecture does not use, sorted."""
        return tuple(sorted(set(self.checkpoint.tensors) - set(self._used())))

    def _stored(self, name: str) -> StoredArray:
        """Return a tensor of a quantized weight; only a folder holds one, with the dtypes of safetensors."""
        values = self.checkpoint.read_array(name)
        return StoredArray(values, DTYPES[self.checkpoint.tensors[name].dtype].torch_name)

    def _tensor_names(self, name: str, scheme: Scheme) -> tuple[str, ...]:
        names: tuple[str, ...] = self._format.tensor_names(name, scheme, self.inputs[name])
        return names

    def _used(self) -> list[str]:
        names = list(self.model.outer_tensors())
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


def _format_of(quantization: Mapping[str, Any]) -> Any:
    method = str(quantization.get("quant_method", "compressed-tensors"))
    name = method.replace("-", "_")
    if name not in find.names("formats"):
        known = ", ".join(n.replace("_", "-") for n in find.names("formats"))
        raise CheckpointError(
            f"config.json: the model is quantized as {method!r}; the formats that can be read are {known}"
        )
    return find.load("formats", name)
