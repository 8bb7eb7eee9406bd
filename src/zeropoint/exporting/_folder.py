"""A Hugging Face folder whose linears are packed as another program packs them; the rest of the model as it is.

gptq.py and awq.py are such packings: one scheme for the whole model, float16 scales, an entry in config.json. The
writer is that of `quantize`: one linear is in memory, the folder appears in one rename, and before that every integer
is read back from its files and unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import ArchitectureError, InternalError, SchemeError
from zeropoint.exporting._integers import Integers, notes_of_inputs, require_no_outliers
from zeropoint.exporting.result import Written
from zeropoint.models.parts import outer_tensors
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.choices import CONFIG_KEY
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Packing:
    """How a program has one linear.

    name: of the format. supports: (scheme, shape) -> None, or why not and what would fit. pack: (name, weight) -> its
    tensors by their last names ("qweight"). unpack: their inverse, (tensors, scheme) -> weight. config: (scheme, names
    of float linears) -> quantization_config.
    """

    name: str
    supports: Callable[[Scheme, tuple[int, int]], str | None]
    pack: Callable[[str, Integers], Arrays]
    unpack: Callable[[Mapping[str, NDArray[Any]], Scheme], Integers]
    config: Callable[[Scheme, list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Planned:
    """What will be written. scheme: of every linear but those in `floats`."""

    weights: Weights
    packing: Packing
    scheme: Scheme
    floats: list[str]


def plan(weights: Weights, packing: Packing) -> Planned:
    """Return what will be written, from headers alone.

    Raises: SchemeError, with the tensor's name, for what the packing does not hold, and what would fit;
    ArchitectureError for a model whose files have other shapes there.
    """
    if weights.model.config.transposed:
        raise ArchitectureError(
            f"a {weights.model.config.model_type} model has its weights transposed, which a folder for {packing.name} "
            "does not say; run the folder itself"
        )
    require_no_outliers(weights)
    for table, scheme in weights.table_schemes.items():
        if scheme is not None:
            raise SchemeError(
                f"{table}: is {scheme.label()}, and {packing.name} has linears of blocks only; quantize again with "
                'embeddings = "stored"'
            )
    known = {name: scheme for name, scheme in weights.schemes.items() if scheme is not None}
    first, common = next(iter(known.items()))
    for name, scheme in known.items():
        if scheme != common:
            raise SchemeError(
                f"{name}: is {scheme.label()} and {first} {common.label()}; {packing.name} has one scheme for a model: "
                "quantize again without the rule, or export as gguf"
            )
        reason = packing.supports(scheme, _shape(weights, name))
        if reason is not None:
            raise SchemeError(f"{name}: {reason}")
    return Planned(weights, packing, common, [name for name in weights.schemes if name not in known])


def write(planned: Planned, output: Path, *, overwrite: bool, report: ProgressCallback) -> Written:
    """Write the folder. Raises: SchemeError, OutputError, InternalError; nothing is under the output's name then."""
    import torch

    weights, packing = planned.weights, planned.packing
    linears = [name for name, scheme in weights.schemes.items() if scheme is not None]
    quantized = {f"{name}.weight" for name in linears}
    model = weights.model
    names = [*outer_tensors(model), *(n for i in range(model.config.layers) for n in model.block_tensors(i))]
    with Writer(output, source=weights.checkpoint.path, overwrite=overwrite, restart=True) as writer:
        for name in names:
            if name not in quantized:
                writer.add({name: weights.checkpoint.read(name)})
        scales_are_bfloat16 = True
        for done, name in enumerate(linears):
            report(Progress("write", done, len(linears), name))
            weight = _integers(weights, name)
            scales_are_bfloat16 &= not (weight.scale.copy().view(np.uint32) & 0xFFFF).any()
            parts = packing.pack(name, weight)
            writer.add({f"{name}.{part}": torch.from_numpy(values) for part, values in parts.items()})
        report(Progress("write", len(linears), len(linears)))
        weights.checkpoint.copy_side_files(writer.folder)
        config = {**weights.checkpoint.config, "quantization_config": packing.config(planned.scheme, planned.floats)}
        config.pop(CONFIG_KEY, None)
        writer.finish(config)
        checked = _require_equal(planned, writer.folder, linears, report)
        writer.commit()
    notes = notes_of_inputs(list(weights.inputs.values()), "the engine")
    if config.get("dtype", config.get("torch_dtype")) == "bfloat16" and not scales_are_bfloat16:
        notes.append("scales are float16: an engine that runs the model in bfloat16 rounds them; ask it for float16")
    types = {packing.name: len(linears), "as stored": len(names) - len(linears)}
    return Written(types=types, checked=checked, notes=tuple(notes))


def _shape(weights: Weights, name: str) -> tuple[int, int]:
    rows, cols = weights.model.shape(f"{name}.weight")
    return rows, cols


def _integers(weights: Weights, name: str) -> Integers:
    packed = weights.packed_linear(name)
    if packed is None:
        raise InternalError(f"{name}: is float, and was to be packed")
    return Integers.of(packed)


def _require_equal(planned: Planned, folder: Path, linears: list[str], report: ProgressCallback) -> int:
    """Read the packed linears back; return how many values. Raises: InternalError if one is not what the model has."""
    checkpoint = open_checkpoint(folder)
    checked = 0
    for done, name in enumerate(linears):
        report(Progress("verify", done, len(linears), name))
        prefix = f"{name}."
        parts = [part for part in checkpoint.tensors if part.startswith(prefix) and not part.endswith(".bias")]
        tensors = {part.removeprefix(prefix): checkpoint.read_array(part) for part in parts}
        found = planned.packing.unpack(tensors, planned.scheme).values()
        wanted = _integers(planned.weights, name).values()
        if not np.array_equal(found, wanted):
            raise InternalError(f"{folder}: what was written of {name} is not what the model has")
        checked += found.size
    report(Progress("verify", len(linears), len(linears)))
    return checked
