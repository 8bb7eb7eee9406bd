"""How llama.cpp stores each architecture: one file for each, called as `general.architecture` in a GGUF file.

architecture_of(metadata, path)      # gemma2.py for "gemma2"; llama.py has Llama, and Mixtral where there are experts

Each file has ARCHITECTURES. What it says was read in llama.cpp's converter, and holds when llama.cpp gives
transformers' logits for a file that is written so (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeropoint import find
from zeropoint.checkpoint.gguf_architectures._architecture import Architecture
from zeropoint.errors import CheckpointError

FOLDER = "checkpoint.gguf_architectures"


def architecture_of(metadata: Mapping[str, Any], path: Path) -> Architecture:
    """Return how the tensors of a GGUF file are stored.

    Raises: CheckpointError if no file covers its architecture, with or without experts as it is.
    """
    name = metadata.get("general.architecture")
    known = find.names(FOLDER)
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(
            f"{path}: general.architecture is {str(name)[:60]!r}; GGUF files are read of {', '.join(known)}, "
            "give the Hugging Face folder of another model"
        )
    experts = metadata.get(f"{name}.expert_count", 0)
    for found in find.load(FOLDER, name).ARCHITECTURES:
        if bool(found.experts) == bool(experts):
            return found  # type: ignore[no-any-return]
    raise CheckpointError(
        f"{path}: {name}.expert_count is {str(experts)[:60]}, which is not covered; "
        "give the Hugging Face folder that the file was converted from"
    )
