from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tiny import make_gguf, make_llama
from zeropoint.errors import InputError, NonFiniteError
from zeropoint.inspection import inspect
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and what 8 bits, rounded to nearest, make of it."""
    folder = tmp_path_factory.mktemp("inspection")
    model = make_llama(folder / "model", tied=False)
    quantize(model, folder / "out", recipe=load_recipe("w8a16"))
    return model, folder / "out"


def test_every_tensor_has_a_row_with_what_the_headers_say(pair: tuple[Path, Path]) -> None:
    rows = {row.name: row for row in inspect(pair[0], headers=True).tensors}
    assert rows["model.layers.1.mlp.up_proj"].shape == (96, 64)
    assert rows["model.layers.1.mlp.up_proj"].stored == "F32"
    assert rows["lm_head.weight"].role == "head"
    assert rows["model.norm.weight"].role == "other"
    assert all(row.outlier_ratio is None and row.sqnr_db is None for row in rows.values())


def test_headers_need_no_torch(pair: tuple[Path, Path]) -> None:
    code = (
        "import sys; from zeropoint.cli import main; "
        "main(['inspect', sys.argv[1], '--headers']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(pair[1])], capture_output=True, check=False, text=True)
    assert "q_proj" in done.stdout
    assert done.returncode == 0


def test_errors_against_the_reference_are_those_recorded_when_it_was_quantized(pair: tuple[Path, Path]) -> None:
    measured = {row.name: row for row in inspect(pair[1], reference=pair[0]).tensors}
    recorded = {row.name: row for row in inspect(pair[1]).tensors}
    name = "model.layers.0.self_attn.q_proj"
    assert measured[name].stored == "int8 channel sym"
    assert measured[name].sqnr_db == pytest.approx(recorded[name].sqnr_db)
    assert measured[name].cosine == pytest.approx(recorded[name].cosine)
    assert measured[name].sqnr_db is not None
    assert 30 < measured[name].sqnr_db < 60
    assert measured["model.norm.weight"].max_abs_error == 0


def test_outliers_are_measured_where_weights_are_read(pair: tuple[Path, Path]) -> None:
    assert all(row.outlier_ratio is not None and row.outlier_ratio >= 1 for row in inspect(pair[0]).tensors)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 3] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: 1 of 6144"):
        inspect(model)


def test_a_gguf_file_is_inspected_with_its_own_types(tmp_path: Path) -> None:
    rows = inspect(make_gguf(tmp_path / "m.gguf", quantization="Q8_0")).tensors
    assert {row.stored for row in rows if row.role == "linear"} == {"Q8_0"}


def test_a_reference_of_another_shape_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_llama(tmp_path / "other", tied=False, intermediate=128)
    with pytest.raises(InputError, match=r"was not made from .*mlp.*\(128, 64\)|was not made from .*\(64, 128\)"):
        inspect(pair[1], reference=other)
