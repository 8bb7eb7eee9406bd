"""GGUF files of ours and of llama.cpp's own quantizer, of the same model and of the same types, judged alike.

    pip install --no-deps --target whisper pywhispercpp
    python benchmarks/gguf_quantizers.py --ggml whisper/pywhispercpp.libs/libggml-base-*.so.* --model SmolLM2-135M
        --text FILE [--effort 1] [--types q4_0 q5_0 q4_k] [--calibration FILE] [--max-windows 16]
        [--off-grid] [--imatrix] [--work FOLDER]

llama.cpp quantizes a tensor by ggml_quantize_chunk of the ggml library, and so does this program, by the very function:
without an importance matrix, every linear by the type asked for (Q5_0 for Q4_K where 256 does not divide the columns),
and the embedding as Q8_0. That is `llama-quantize --pure --token-embedding-type q8_0`. The library is in many packages;
that of whisper.cpp runs on older systems, too. Ours are the recipes gguf_* with int8 embeddings, which are Q8_0. So
both files have the same types and bytes, but for the names that they carry.

--off-grid: the demo's float model comes from a Q4_1 file, whose grid (groups of 32, 16 steps, real minima) a quantizer
to such groups can find again. With this the model of the comparison is another one of nearly the same function: gains
of norms, rows of up_proj and v_proj times random factors between 0.6 and 1.65, and the columns that read them divided
by those.

--imatrix: a third file, by ggml_quantize_chunk with an importance matrix: the mean square of each input of each linear
in the float model, which is what llama-imatrix collects, over 32 windows of 512 tokens of the calibration text.

Every file is read back through the gguf package's dequantization, written as a float32 folder, and judged by `zeropoint
evaluate` with float inputs: what the weights lost, not what an engine rounds while it runs. KL is in nats per token,
with the 95 % interval over windows. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import zeropoint
from origin import origin
from zeropoint.checkpoint.reader import as_float32, open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.effort import load_at_effort
from zeropoint.exporting import gguf as exporting
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import bundled_text, calibration_batches
from zeropoint.observe.walk import walk
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights

TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k")

SAMPLES, LENGTH, BATCH = 32, 512, 8
"""Windows of text for an importance matrix."""

Type = gguf.GGMLQuantizationType


def main() -> None:
    """Quantize, judge, print a row for each file and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, required=True, help="the library libggml-base")
    parser.add_argument("--model", type=Path, required=True, help="the float model, a folder")
    parser.add_argument("--text", type=Path, required=True, help="what is judged on")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["q4_0", "q5_0", "q4_k"])
    parser.add_argument("--max-windows", type=int, default=16)
    parser.add_argument("--off-grid", action="store_true", help="judge on a model whose weights are on no grid")
    parser.add_argument("--imatrix", action="store_true", help="a file with an importance matrix, too")
    parser.add_argument("--work", type=Path, help="where files are kept, and used again; by default nowhere")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        model = off_grid(options.model, work / "off-grid") if options.off_grid else options.model
        source = work / f"{model.name}.gguf"
        if not source.exists():
            exporting.write(exporting.plan(Weights(open_checkpoint(model))), source, overwrite=False, report=print_not)
        for kind in options.types:
            made_by = {"llama.cpp": theirs, "llama.cpp, imatrix": with_imatrix, "zeropoint": ours}
            for by, make in made_by.items():
                if make is with_imatrix and not options.imatrix:
                    continue
                started_s = time.perf_counter()
                file = make(kind, model, source, work, options)
                row = {"type": kind, "by": by, "elapsed_s": time.perf_counter() - started_s}
                rows.append({**row, **judged(file, model, options)})
                sys.stdout.write(line(rows[-1]) + "\n")
                sys.stdout.flush()
    found = {"model": model.name, "effort": options.effort, "ggml": options.ggml.name, **origin(), "rows": rows}
    sys.stdout.write(json.dumps(found) + "\n")


def print_not(_: object) -> None:
    """Say nothing of the progress."""


def off_grid(model: Path, folder: Path) -> Path:
    """Write a model of nearly the same function whose linears are on no grid of blocks, in bfloat16; a Llama."""
    if folder.exists():
        return folder
    checkpoint = open_checkpoint(model)
    tensors = {name: checkpoint.read(name).float() for name in checkpoint.tensors}
    config, random = checkpoint.config, torch.Generator().manual_seed(0)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def factors(count: int) -> torch.Tensor:
        return torch.exp(torch.rand(count, generator=random) - 0.5)

    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            by = factors(len(tensors[f"{block}{norm}.weight"]))
            tensors[f"{block}{norm}.weight"] *= by
            for reader in readers:
                tensors[f"{block}{reader}.weight"] /= by
        by = factors(len(tensors[f"{block}mlp.up_proj.weight"]))
        tensors[f"{block}mlp.up_proj.weight"] *= by[:, None]
        tensors[f"{block}mlp.down_proj.weight"] /= by
        by = factors(len(tensors[f"{block}self_attn.v_proj.weight"]))
        tensors[f"{block}self_attn.v_proj.weight"] *= by[:, None]
        of_heads = by.view(kv_heads, 1, -1).expand(-1, heads // kv_heads, -1).reshape(-1)
        tensors[f"{block}self_attn.o_proj.weight"] /= of_heads
    folder.mkdir(parents=True)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (model / name).exists():
            shutil.copy(model / name, folder)
    return folder


def ours(kind: str, model: Path, source: Path, work: Path, options: argparse.Namespace) -> Path:
    """Return the file that zeropoint makes."""
    name = f"{source.stem}-{kind}-effort-{options.effort}"
    folder, file = work / name, work / f"{name}.gguf"
    if not file.exists():
        recipe = load_at_effort(f"gguf_{kind}", options.effort, ["embeddings=int8"])
        if not folder.exists():
            zeropoint.quantize(model, folder, recipe=recipe, calibration=options.calibration)
        zeropoint.export(folder, file, format="gguf")
    return file


def theirs(kind: str, model: Path, source: Path, work: Path, options: argparse.Namespace) -> Path:
    """Return the file that llama.cpp's quantizer makes of the float one."""
    file = work / f"{source.stem}-{kind}-llama.gguf"
    return file if file.exists() else quantized_by_ggml(kind, source, file, options.ggml, {})


def with_imatrix(kind: str, model: Path, source: Path, work: Path, options: argparse.Namespace) -> Path:
    """Return the file that it makes with an importance matrix."""
    file, matrix = work / f"{source.stem}-{kind}-llama-imatrix.gguf", work / f"{source.stem}-imatrix.safetensors"
    if file.exists():
        return file
    if not matrix.exists():
        save_file(mean_squares(model, options.calibration), matrix)
    return quantized_by_ggml(kind, source, file, options.ggml, load_file(matrix))


@torch.inference_mode()
def mean_squares(model: Path, calibration: Path | None) -> dict[str, torch.Tensor]:
    """Return the mean square of each input of each linear, float32 (cols,), by the names that GGUF has for them."""
    weights, ops = Weights(open_checkpoint(model)), TorchOps()
    text = calibration_batches(
        calibration or bundled_text("calibration"),
        load_tokenizer(weights.checkpoint),
        samples=SAMPLES,
        length=LENGTH,
        seed=0,
        batch=BATCH,
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, weights.model.config.layers)
    found = {}
    with Activations(limit_bytes=2 << 30) as activations:
        activations.extend(weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch))
        for visit in walk(weights.model, partial(weights.block, ops=ops), activations):
            squares = torch.stack([x.flatten(0, -2).double().square().mean(0) for x in visit.inputs()]).mean(0)
            for linear in visit.stage.linears:
                name = names.get_name(f"{weights.model.block_name(visit.index)}.{linear}")
                found[f"{name}.weight"] = squares.float()
    return found


def quantized_by_ggml(kind: str, source: Path, file: Path, ggml: Path, importance: Mapping[str, torch.Tensor]) -> Path:
    """Write `file`: the float one with its matrices in blocks. importance: of the columns, by the tensor's name."""
    library = ctypes.CDLL(str(ggml.resolve()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        values = as_float32(tensor.data.view(np.uint16)) if tensor.tensor_type == Type.BF16 else tensor.data
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        wanted = Type.Q8_0 if tensor.name in ("token_embd.weight", "output.weight") else Type[kind.upper()]
        if values.shape[1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = Type.Q5_0
        blocks = chunk(library, values, wanted, importance.get(tensor.name))
        writer.add_tensor(tensor.name, blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def chunk(
    library: ctypes.CDLL,
    values: NDArray[Any],
    kind: gguf.GGMLQuantizationType,
    importance: torch.Tensor | None,
) -> NDArray[np.uint8]:
    """Return the blocks that ggml makes of a matrix. importance: float32 (cols,), or None."""
    rows, cols = values.shape
    block, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    found = np.empty((rows, cols // block * size_bytes), np.uint8)
    floats = np.ascontiguousarray(values, np.float32)
    pointers = ctypes.c_void_p(floats.ctypes.data), ctypes.c_void_p(found.ctypes.data)
    counts = ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(cols)
    weights = None if importance is None else ctypes.c_void_p(importance.data_ptr())
    written = library.ggml_quantize_chunk(ctypes.c_int(int(kind)), *pointers, *counts, weights)
    if written != found.nbytes:
        sys.exit(f"ggml wrote {written} bytes of {kind.name}, not {found.nbytes}")
    return found


def judged(file: Path, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a file lost, its bytes and its types."""
    checkpoint = open_checkpoint(file)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        save_file({name: checkpoint.read(name) for name in checkpoint.tensors}, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps(checkpoint.config), encoding="utf-8")
        shutil.copy(model / "tokenizer.json", folder)
        found = zeropoint.evaluate(
            folder,
            reference=model,
            text=options.text,
            max_windows=options.max_windows,
            activations="float",
            kv_cache="float32",
        )
    kinds = [info.dtype for name, info in checkpoint.tensors.items() if ".layers." in name and len(info.shape) == 2]
    return {
        "file": file.name,
        "size_bytes": file.stat().st_size,
        "types": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "kl": found.kl_mean,
        "kl_interval95": found.kl_interval95,
        "perplexity_ratio": found.perplexity_ratio,
        "top1": found.top1_agreement,
    }


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    low, high = row["kl_interval95"]
    types = ", ".join(f"{kind} x{count}" for kind, count in row["types"].items())
    return (
        f"{row['type']:8} {row['by']:10} {row['size_bytes'] / 1e6:8.1f} MB  "
        f"KL {row['kl']:.4f} ({low:.4f} to {high:.4f})  x{row['perplexity_ratio']:.3f}  {row['top1']:.1%}  "
        f"{row['elapsed_s']:6.0f} s  {types}"
    )


if __name__ == "__main__":
    main()
