"""Stage 1, READ and WRITE: a trained model on disk, one tensor at a time.

    checkpoint = open_checkpoint("SmolLM2-135M")      # a folder with safetensors, or one .gguf file
    checkpoint.config, checkpoint.tensors             # from the headers alone
    checkpoint.read("model.norm.weight")              # one tensor, in memory of its own
    checkpoint.read_array("model.norm.weight")        # the same without torch, or some rows of it
    load_tokenizer(checkpoint).encode("some text")

    with Writer("out", source=checkpoint.path) as writer:
        writer.add({"model.norm.weight": ...})        # on disk at once
        checkpoint.copy_side_files(writer.folder)     # tokenizer, chat template, licence
        writer.finish(config)
        writer.commit()                               # verified, then renamed to "out"

Nothing here imports torch before the data of a tensor is read or written.
"""

from __future__ import annotations

from zeropoint.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, load_tokenizer
from zeropoint.checkpoint.writer import Writer

__all__ = ["Checkpoint", "TensorInfo", "Tokenizer", "Writer", "load_tokenizer", "open_checkpoint"]
