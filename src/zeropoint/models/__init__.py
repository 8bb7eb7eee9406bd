"""Stage 2, MODEL: one file per `model_type`, written once against the `Ops` protocol, run by torch or by our kernels.

model = load_model(checkpoint.config)      # models/llama.py for "model_type": "llama"
model.embed(...), model.flow, model.head(...)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from zeropoint import find
from zeropoint.errors import ArchitectureError
from zeropoint.models import _within
from zeropoint.models.parts import Model

NOT_CAPABILITIES = ("parts", "rope")


def load_model(config: Mapping[str, Any], tensors: Collection[str] = ()) -> Model:
    """Return the model that `config` (the content of a config.json) describes.

    tensors: the names of those in the checkpoint, which say where the text model of one with more parts is.
    Raises: ArchitectureError if no file covers its model_type, or if a value would change the result and is not known.
    """
    model_type = config.get("model_type")
    known = find.names("models")
    if model_type not in known and config.get("text_config") is not None:
        prefix, head = _within.place_of(config, tensors)
        text = _within.text_config(config, tied=f"{head}.weight" not in tensors)
        return _within.Within(load_model(text), prefix, head)
    if model_type not in known:
        raise ArchitectureError(
            f"config.json: model_type is {model_type!r}; the architectures that have a file are {', '.join(known)}"
        )
    model: Model = find.load("models", str(model_type), error=ArchitectureError).Model.from_config(config)
    return model
