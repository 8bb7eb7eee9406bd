from __future__ import annotations

import gc
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zeropoint as api
from child import ENVIRONMENT, running
from e2e.cli import SMALL, zeropoint
from tiny import make_gguf, make_llama
from zeropoint.heap import KEPT_BYTES
from zeropoint.observe.data import bundled_text
from zeropoint.planning import memory
from zeropoint.progress import Progress


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", shards=2)


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A quantized model, and what the command said about it."""
    output = tmp_path_factory.mktemp("made") / "out"
    done = zeropoint("quantize", model, "--output", output, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return output, result


def test_the_result_names_every_layer_and_what_it_got(made: tuple[Path, dict[str, object]]) -> None:
    layers = made[1]["layers"]
    assert isinstance(layers, list)
    assert len(layers) == 2 * 7
    assert {layer["rounding"] for layer in layers} == {"gptq"}
    assert all(layer["fallback"] is None and 0 < layer["output_error"] < 0.1 for layer in layers)


def test_bits_per_weight_count_the_scales(made: tuple[Path, dict[str, object]]) -> None:
    assert made[1]["size"]["bits_per_weight"] == pytest.approx(4 + 16 / 32, abs=1e-9)


@pytest.mark.filterwarnings("default")  # of the foreign reader
def test_the_output_opens_in_transformers_with_our_logits(made: tuple[Path, dict[str, object]]) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(made[0], dtype=torch.float32).eval()
    tokens = torch.arange(5, 60)
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    ours = torch.from_numpy(api.load(made[0], activations="float", kv_cache="float32").logits(tokens.tolist()))
    assert torch.allclose(ours, expected, atol=1e-3, rtol=0)


def test_gptq_loses_less_than_rounding_to_nearest(
    model: Path, tmp_path: Path, made: tuple[Path, dict[str, object]]
) -> None:
    done = zeropoint("quantize", model, "--output", tmp_path / "rtn", *SMALL, "--set", "rounding=rtn", "--json")
    nearest = json.loads(done.stdout)["layers"]
    layers = made[1]["layers"]
    assert isinstance(layers, list)
    assert sum(row["output_error"] for row in layers) < 0.9 * sum(row["output_error"] for row in nearest)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_same_run_gives_the_same_bytes_on_any_number_of_threads(
    threads: str, model: Path, made: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    done = zeropoint("quantize", model, "--output", tmp_path / "again", *SMALL, "--threads", threads)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "again") == digest(made[0])


def test_activations_on_disk_change_nothing(
    model: Path, made: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 0)
    recipe = api.load_recipe("w4a16", [setting for setting in SMALL if setting != "--set"])
    result = api.quantize(model, tmp_path / "disk", recipe=recipe)
    assert result.plan is not None
    assert result.spilled_bytes > 0
    assert result.plan.spilled_bytes > 0
    assert digest(tmp_path / "disk") == digest(made[0])


def test_a_recipe_without_data_reads_no_text(model: Path, tmp_path: Path) -> None:
    done = zeropoint(
        "quantize", model, "-o", tmp_path / "out", *SMALL, "--set", "rounding=rtn", "--set", "range=minmax", "--json"
    )
    result = json.loads(done.stdout)
    assert result["calibration"] is None
    assert all(row["output_error"] is None for row in result["layers"])


def test_a_gguf_file_is_quantized_like_a_folder(tmp_path: Path) -> None:
    source = make_gguf(tmp_path / "model.gguf", quantization="Q8_0")
    done = zeropoint("quantize", source, "--output", tmp_path / "out", *SMALL)
    assert done.returncode == 0, done.stderr
    judged = zeropoint(
        "evaluate", tmp_path / "out", "--reference", source, "--length", "32", "--max-windows", "20", "--json"
    )
    assert judged.returncode == 0, judged.stderr
    result = json.loads(judged.stdout)
    assert 0 < result["kl_mean"] < 1
    assert result == json.loads((tmp_path / "out" / "results.json").read_text())


def test_layers_that_a_rule_keeps_are_written_as_they_were(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(
        "weights = { group_size = 32 }\ncalibration = { samples = 8, length = 32 }\n"
        '[[rules]]\nlayers = "*.down_proj"\nkeep_float = true\n'
        '[[rules]]\nlayers = "model.layers.1.self_attn.*"\nweights = { bits = 8 }\n'
    )
    done = zeropoint("quantize", model, "--output", tmp_path / "out", "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    rows = api.inspect(tmp_path / "out", headers=True).tensors
    labels = {row.name: row.stored for row in rows}
    assert labels["model.layers.0.mlp.down_proj"] == "F32"
    assert labels["model.layers.1.self_attn.q_proj"] == "int8 g32 sym"
    assert labels["model.layers.1.mlp.up_proj"] == "int4 g32 sym"


def test_a_quantized_model_is_not_quantized_again(made: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    done = zeropoint("quantize", made[0], "--output", tmp_path / "out", *SMALL)
    assert done.returncode == 2
    assert "quantized already" in done.stderr


def test_an_interrupted_run_says_so_and_the_same_command_goes_on(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", layers=20)
    command = [sys.executable, "-m", "zeropoint", "quantize", str(model), "-o", str(tmp_path / "out"), *SMALL]
    command += ["--calibration", str(bundled_text("calibration"))]
    with running(command, text=True) as run:
        for line in run.stderr:
            if line.startswith("quantize") and not line.startswith("quantize 0/"):
                break
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
    assert run.returncode == 130
    assert "Traceback" not in rest
    assert rest.splitlines()[-1] == (
        "zeropoint: stopped by Ctrl-C before it was done; what is done is kept: the same command goes on from there, "
        "--restart begins anew"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "model"]
    refused = zeropoint("quantize", model, "-o", tmp_path / "out", *SMALL, "--set", "weights.bits=3")
    assert refused.returncode == 2
    assert "started otherwise: recipe weights.bits was 4, now 3; give its command again" in refused.stderr
    done = zeropoint("quantize", model, "-o", tmp_path / "out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "blocks were done by an" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    undisturbed = zeropoint("quantize", model, "-o", tmp_path / "undisturbed", *SMALL)
    assert undisturbed.returncode == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


def test_no_tensor_of_a_block_outlives_the_next(tmp_path: Path) -> None:
    held = []

    def count(step: Progress) -> None:
        if step.stage == "quantize" and step.done:
            gc.collect()
            tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
            held.append(sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values()))

    recipe = api.load_recipe("w4a16", SMALL[1::2])
    api.quantize(make_llama(tmp_path / "model", layers=8), tmp_path / "out", recipe=recipe, progress=count)
    assert len(held) == 8
    assert max(held[2:]) <= max(held[:2])


@pytest.mark.slow
def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    sizes = {"hidden": 512, "intermediate": 2048, "dtype": "bfloat16"}
    peaks = [peak_bytes(make_llama(tmp_path / f"{n}", layers=n, seed=n, **sizes)) for n in (3, 13)]
    # 10 blocks more: 90 MB if what is left of each stayed; the allocator may keep, or not, what was freed
    assert peaks[1] - peaks[0] < KEPT_BYTES + 8e6


def peak_bytes(model: Path) -> int:
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zeropoint", "quantize", str(model), "-o", f"{model}-out", *SMALL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(json.loads(done.stdout)["peak_memory_bytes"])


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file of an output but its record, which holds times and paths."""
    files = sorted(path for path in folder.iterdir() if path.name != "zeropoint.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
