"""A rotation of the residual stream reaches past the blocks: to the embedding, the last norm and the head.

    E' = E Q         head' = head diag(g) Q         g' = 1, the gain of the last norm

A head that is tied to the embedding comes apart, E Q and E diag(g) Q, unless g is the same for all channels: then g
stays in the norm, and one table is both. Tables are rotated in slabs and written in the dtype that they would have had:
bfloat16 rounds them, by up to 2^-9 of each value, and the embedded texts of the walk are rounded likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zeropoint import find
from zeropoint.checkpoint.finite import require_finite
from zeropoint.checkpoint.reader import Checkpoint
from zeropoint.errors import RecipeError
from zeropoint.models.parts import Model
from zeropoint.recipe import Choice
from zeropoint.transforms.apply import options_of
from zeropoint.transforms.hadamard import Rotation
from zeropoint.transforms.rotate import why_not

SLAB_VALUES = 1 << 21
"""Values of a table that are in float32 at once."""


def find_rotation(choices: Sequence[Choice], model: Model, *, seed: int) -> Rotation | None:
    """Return the rotation of the residual stream that a recipe's transforms ask for; None if they ask for none.

    Raises: RecipeError if it is not the first of them, as the others measure in its basis; or if the model's stream
    cannot be rotated.
    """
    for index, choice in enumerate(choices):
        module = find.load("transforms", choice.method, error=RecipeError)
        if not hasattr(module, "residual_rotation"):
            continue
        found: Rotation | None = module.residual_rotation(model.config, options_of(choice, seed))
        if found is None:
            continue
        if index:
            raise RecipeError(
                f"transforms.{index} is {choice.method!r}, which rotates what transforms.{index - 1} has measured; "
                "put it first, or set its residual = false"
            )
        reason = why_not(model.flow)
        if reason is not None:
            raise RecipeError(
                f"transforms.{index} is {choice.method!r}, but in a {model.config.model_type} model {reason}; leave it "
                "out, or set its residual = false"
            )
        return found
    return None


class Outer:
    """The tensors outside the blocks of one checkpoint in a rotated basis.

    dtypes: by full name, of the tensors as they are written.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: Model, rotation: Rotation, dtypes: Mapping[str, torch.dtype]
    ) -> None:
        self._checkpoint, self.rotation, self._dtypes = checkpoint, rotation, dtypes
        self._offset, self._factor = model.config.norm_offset, model.config.embedding_factor
        self._table, self._norm = f"{model.ends.embedding}.weight", f"{model.ends.norm}.weight"
        self._tied = model.config.tied_embeddings
        self.head = f"{model.ends.head}.weight"
        """What the head is called, also where it is the embedding."""

    @cached_property
    def _gain(self) -> Tensor:
        return require_finite(self._norm, self._checkpoint.read(self._norm)).float()

    @cached_property
    def unties(self) -> bool:
        """Whether embedding and head were one tensor and are two now."""
        return self._tied and not bool((self._gain == self._gain[0]).all())

    def embedded(self, x: Tensor) -> Tensor:
        """Return embedded texts, float32 (batch, time, hidden), as the written table gives them."""
        written = self.rotation.rotate(x / self._factor).to(self._dtypes[self._table]).float()
        return written * self._factor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor with its name, as the output has it; one at a time is in memory."""
        yield self._table, self._rotated(self._table, None)
        if self._tied and not self.unties:
            yield self._norm, self._gain.to(self._dtypes[self._norm])
            return
        yield self._norm, torch.full((len(self._gain),), 1 - self._offset, dtype=self._dtypes[self._norm])
        yield self.head, self._rotated(self._table if self._tied else self.head, self._gain + self._offset)

    def config(self) -> dict[str, bool]:
        """Return what config.json has to say of it."""
        return {"tie_word_embeddings": False} if self.unties else {}

    def note(self) -> str | None:
        """Return what has to be said of a head that came apart from the embedding."""
        if not self.unties:
            return None
        rows, cols = self._shape(self._table)
        size_bytes = rows * cols * self._dtypes[self._table].itemsize
        return (
            "rotated, the head is no longer the embedding: the gain of the last norm is folded into it alone; "
            f"{self.head} takes {size_bytes:,} bytes more"
        )

    def _rotated(self, name: str, gain: Tensor | None) -> Tensor:
        shape = self._shape(name)
        written = torch.empty(shape, dtype=self._dtypes[name])
        step = max(1, SLAB_VALUES // shape[1])
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            written[start:stop] = self.rotation.rotate(self._rows(name, start, stop), gain)
        return written

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.tensors[self._checkpoint.tied.get(name, name)].shape

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        values = self._checkpoint.read_array(name, rows=(start, stop))
        rows = torch.from_numpy(values)
        return require_finite(name, rows.view(torch.bfloat16) if values.dtype == np.uint16 else rows)
