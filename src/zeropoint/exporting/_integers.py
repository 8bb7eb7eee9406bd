"""A quantized weight as numpy has it: codes, scales, zero points, and the values that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.formats import bits
from zeropoint.runtime.weights import Weights
from zeropoint.types import InputScheme, PackedWeight, Scheme


@dataclass(frozen=True)
class Integers:
    """codes: int8 (rows, cols), signed. scale: float32 (rows, groups). zero_point: int8 (rows, groups), or None.

    minimum: float32 (rows, groups) where scales are on two levels, else None.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8] | None
    scheme: Scheme
    minimum: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, packed: PackedWeight) -> Integers:
        """Return a weight unpacked; per tensor every row gets the scale."""
        rows, cols = packed.shape
        codes = bits.unpack_array(packed.words, packed.scheme.bits, cols)
        groups = packed.scale.shape[1]
        zero_point = None if packed.zero_point is None else np.broadcast_to(packed.zero_point, (rows, groups))
        return cls(codes, np.broadcast_to(packed.scale, (rows, groups)), zero_point, packed.scheme, packed.minimum)

    def with_rows(self, order: NDArray[np.intp]) -> Integers:
        """Return the weight with its rows in another order."""
        zero_point = None if self.zero_point is None else self.zero_point[order]
        minimum = None if self.minimum is None else self.minimum[order]
        return replace(self, codes=self.codes[order], scale=self.scale[order], zero_point=zero_point, minimum=minimum)

    def in_groups(self, size: int) -> Integers:
        """Return the weight with a scale for every `size` columns: those of a wider group are repeated.

        size: divides the columns of a group.
        """
        cols = self.codes.shape[1]
        times = cols // self.scale.shape[1] // size
        zero_point = None if self.zero_point is None else np.repeat(self.zero_point, times, axis=1)
        return replace(self, scale=np.repeat(self.scale, times, axis=1), zero_point=zero_point)

    def values(self) -> NDArray[np.float32]:
        """Return S * (q - Z), or S * (q - q_min) - M on two levels: float32 (rows, cols)."""
        rows, cols = self.codes.shape
        grouped = self.codes.reshape(rows, self.scale.shape[1], -1).astype(np.float32)
        if self.zero_point is not None:
            grouped -= self.zero_point[:, :, None]
        if self.minimum is not None:
            grouped -= self.scheme.q_min
        grouped *= self.scale[:, :, None]
        if self.minimum is not None:
            grouped -= self.minimum[:, :, None]
        return grouped.reshape(rows, cols)


def as_float16(name: str, values: NDArray[np.float32], what: str) -> NDArray[np.float16]:
    """Return numbers as float16. Raises: SchemeError, with the name, if that changes one."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    wrong = halves.astype(np.float32) != values
    if wrong.any():
        first = float(values[wrong][0])
        raise SchemeError(
            f"{name}: {int(wrong.sum())} of {values.size} {what}, the first {first:.9g}, are no float16 numbers, which "
            'is what the target stores; quantize again with weights.scale_dtype = "float16", or a gguf_ recipe'
        )
    return halves


def require_no_outliers(weights: Weights) -> None:
    """Raise SchemeError for outlier columns, which no other engine has."""
    for name, scheme in weights.inputs.items():
        if scheme is not None and scheme.outlier_threshold is not None:
            raise SchemeError(
                f"{name}: some columns stay float beside the integers (outlier_threshold), which only zeropoint runs; "
                'quantize again with activations.outlier_threshold = "none"'
            )


def notes_of_inputs(inputs: Sequence[InputScheme | None], engine: str) -> list[str]:
    """Return what has to be said where a model was made to round its inputs."""
    labels = sorted({scheme.label() for scheme in inputs if scheme is not None})
    if not labels:
        return []
    return [f"inputs were to be rounded ({', '.join(labels)}): that is not in the file, {engine} reads them in its way"]
