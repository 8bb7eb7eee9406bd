from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import zeropoint
from child import run_zeropoint
from reference import affine
from reference.anatomy import Piece, costs
from tiny import make_gguf, make_llama, quantized
from zeropoint import find
from zeropoint.anatomy import histogram_of, inspect_tensor
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, NonFiniteError, RecipeError, SchemeError
from zeropoint.evaluation.results import TensorInspection
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import split
from zeropoint.recipe import load_recipe
from zeropoint.report.anatomy import tensor_inspected
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

NAME = "model.layers.0.mlp.down_proj"
SIZES = {"hidden": 24, "heads": 2, "kv_heads": 1, "layers": 1, "vocab": 260}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("anatomy") / "model")


def replaced(folder: Path, **tensors: Tensor) -> Path:
    """The model with other tensors in the place of some, by what their names end in."""
    weights = load_file(folder / "model.safetensors")
    for end, values in tensors.items():
        weights[next((name for name in weights if name.endswith(f"{end}.weight")), end)] = values
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shown(result: TensorInspection) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80, highlight=False, markup=False).print(tensor_inspected(result))
    return stream.getvalue()


def pieces(weight: Tensor, scheme: Scheme, rule: str) -> list[Piece]:
    """Every group of a weight, with what the rule gives it."""
    grouped = split(weight, scheme)
    module = find.load("qparams.ranges", rule)
    low, high = module.from_values(grouped, scheme, module.Options())
    qparams = from_range(low, high, scheme)
    return [
        Piece(
            grouped.values[row, group][grouped.valid[group]].tolist(),
            float(low[row, group]),
            float(high[row, group]),
            float(qparams.scale[row, group]),
            0 if qparams.zero_point is None else int(qparams.zero_point[row, group]),
        )
        for row, group in np.ndindex(*low.shape)
    ]


# The numbers


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["group", "channel", "tensor"]),
    group_size=st.integers(1, 40),
    kind=st.sampled_from(["normal", "heavy tail", "zero", "constant", "tiny"]),
    rule=st.sampled_from(find.names("qparams.ranges")),
    seed=st.integers(0, 99),
)
def test_every_number_is_that_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, *, rows: int, bits: int, symmetric: bool, granularity: str,
    group_size: int, kind: str, rule: str, seed: int,
) -> None:  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 4 * rows, generator=random)
    values = {
        "normal": x, "heavy tail": x**5, "zero": x * 0, "constant": x * 0 - 0.37, "tiny": x * 1e-20,
    }[kind]  # fmt: skip
    folder = make_llama(tmp_path_factory.mktemp("one"), **SIZES, intermediate=4 * rows)
    replaced(folder, **{NAME: values})
    scheme = Scheme(bits, symmetric, granularity, group_size if granularity == "group" else None)  # type: ignore[arg-type]
    row, group = 23, scheme.groups(4 * rows) - 1
    result = inspect_tensor(folder, tensor=NAME, scheme=scheme, range_rule=rule, row=row, group=group)

    for one in result.rules:
        *expected, sqnr_db = costs(pieces(values, scheme, one.rule), bits)
        # codes come from float32 divisions: a value on the edge of a step may fall on its other side, at no cost
        assert [one.clipped, one.clipping_error, one.rounding_error] == pytest.approx(expected, rel=1e-5, abs=1e-12)
        if sum(expected[1:]) > 1e-9:
            assert one.sqnr_db == pytest.approx(sqnr_db, abs=1e-3)
        else:
            assert one.sqnr_db is None or one.sqnr_db > 90
    every = pieces(values, scheme, rule)
    here = every[0] if granularity == "tensor" else every[row * scheme.groups(4 * rows) + group]
    excerpt = result.excerpt
    assert (excerpt.rule, excerpt.low, excerpt.high, excerpt.scale) == (rule, here.low, here.high, here.scale)
    assert excerpt.zero_point == (None if symmetric else here.zero_point)
    assert excerpt.exact_scale == pytest.approx(affine.scale_of(here.low, here.high, bits, symmetric=symmetric))
    assert excerpt.values is not None
    assert excerpt.positions is not None
    at = 23 * 4 * rows if granularity == "tensor" else 0
    assert excerpt.values == tuple(here.values[at : at + excerpt.columns])
    for r, position, q, back in zip(excerpt.values, excerpt.positions, excerpt.codes, excerpt.restored, strict=True):
        assert position == pytest.approx(r / here.scale + here.zero_point, rel=1e-5, abs=1e-5)
        exact = affine.quantize(r, here.scale, here.zero_point, bits)
        assert q == exact or abs(abs(position - q) - 0.5) < 1e-5
        assert back == pytest.approx(affine.dequantize(q, here.scale, here.zero_point), rel=1e-6)
    assert sum(result.codes) == sum(bar.count for bar in result.histogram) == values.numel()
    assert len(result.codes) == 2**bits
    assert all(len(line) <= 80 for line in shown(result).splitlines())


def test_bars_count_every_value_once_between_halves_of_the_rms() -> None:
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    bars = histogram_of(x)
    edges = [bars[0].low, *(bar.high for bar in bars)]
    assert (edges[0], edges[-1]) == (float(x.min()), float(x.max()))
    rms = float(np.sqrt(np.mean(x.double().numpy() ** 2)))
    assert [edge / rms for edge in edges[1:-1]] == pytest.approx(np.arange(len(edges) - 2) / 2 - (len(edges) - 3) / 4)
    assert [bar.count for bar in bars] == np.histogram(x.double().numpy(), edges)[0].tolist()
    assert [(bar.low, bar.high, bar.count) for bar in histogram_of(torch.full((2, 3), 0.5))] == [(0.5, 0.5, 6)]


def test_the_rules_see_evenly_spaced_rows_of_a_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_llama(tmp_path, **SIZES, intermediate=32)
    values = torch.randn(24, 32)
    values[1::2] *= 1e6  # rows that are not seen
    replaced(folder, **{NAME: values})
    monkeypatch.setattr("zeropoint.anatomy.MEASURED", 12 * 32)
    result = inspect_tensor(folder, tensor=NAME, row=1)
    assert result.rows_measured == 12
    assert sum(result.codes) == 12 * 32
    few = pieces(values[::2], Scheme(), "minmax")
    minmax = next(one for one in result.rules if one.rule == "minmax")
    assert minmax.rounding_error == pytest.approx(costs(few, 4)[2], rel=1e-5)
    assert (result.excerpt.high or 0) > 1e4
    assert "of 12 of 24 rows" in shown(result)


# A quantized tensor shows what is in its file


def test_codes_and_scales_of_a_quantized_tensor_are_those_of_its_file(tmp_path: Path) -> None:
    folder = quantized(tmp_path, "w4a16_asym")
    stored = Weights(open_checkpoint(folder)).linear(NAME)
    result = inspect_tensor(folder, tensor=f"{NAME}.weight", row=5, group=2)
    excerpt = result.excerpt
    assert excerpt.codes == tuple(stored.codes[5, 64:96].tolist())  # type: ignore[union-attr]
    assert excerpt.scale == float(stored.qparams.scale[5, 2])  # type: ignore[union-attr]
    assert excerpt.zero_point == float(stored.qparams.zero_point[5, 2])  # type: ignore[union-attr]
    assert excerpt.restored == pytest.approx([excerpt.scale * (q - excerpt.zero_point) for q in excerpt.codes])
    assert (excerpt.values, excerpt.rule, result.rules, result.best) == (None, None, (), None)
    assert sum(result.codes) == 64 * 96
    text = shown(result)
    assert "from the file" in text
    assert "inspect the float model" in text
    with pytest.raises(InputError, match="is stored as int4 g32 asym, with the scales of its file"):
        inspect_tensor(folder, tensor=NAME, scheme=Scheme())
    with pytest.raises(InputError, match="needs the float model"):
        inspect_tensor(folder, tensor=NAME, range_rule="mse")


def test_scales_on_two_levels_show_their_minimum(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", hidden=256, intermediate=256, layers=1)
    zeropoint.quantize(model, tmp_path / "out", recipe=load_recipe("gguf_q4_k", ["rounding=rtn", "range=minmax"]))
    excerpt = inspect_tensor(tmp_path / "out", tensor=NAME).excerpt
    assert excerpt.minimum is not None
    assert excerpt.restored == pytest.approx([excerpt.scale * (q + 8) - excerpt.minimum for q in excerpt.codes])
    assert "r' = S * (q + 8) - M" in shown(inspect_tensor(tmp_path / "out", tensor=NAME))


def test_a_gguf_file_and_a_tied_head_can_be_named(tmp_path: Path) -> None:
    file = make_gguf(tmp_path / "m.gguf", quantization="Q8_0")
    result = inspect_tensor(file, tensor=NAME)
    assert result.stored == "Q8_0"
    assert result.rules
    assert inspect_tensor(file, tensor="lm_head.weight") == inspect_tensor(file, tensor="model.embed_tokens")


# What cannot be shown is said


def test_what_cannot_be_inspected_is_said_in_a_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'model.layers.0.mlp.down_proj' or .* lists them"):
        inspect_tensor(model, tensor="model.layers.0.mlp.down_porj")
    with pytest.raises(InputError, match=r"the first matrix is 'model.embed_tokens.weight'"):
        inspect_tensor(model, tensor="?")
    with pytest.raises(SchemeError, match=r"\(64,\): a norm or a bias stays float and has no scales; name a matrix"):
        inspect_tensor(model, tensor="model.norm")
    with pytest.raises(InputError, match=r"row 64: .* has rows 0 to 63"):
        inspect_tensor(model, tensor=NAME, row=64)
    with pytest.raises(InputError, match=r"group 2: .* as int4 g64 sym has groups 0 to 1"):
        inspect_tensor(model, tensor=NAME, group=2)
    with pytest.raises(InputError, match=r"group -1: .* has one group, 0"):
        inspect_tensor(model, tensor=NAME, scheme=Scheme(granularity="channel"), group=-1)
    with pytest.raises(RecipeError, match="did you mean 'minmax'"):
        inspect_tensor(model, tensor=NAME, range_rule="minmx")
    with pytest.raises(SchemeError, match="bits = 9"):
        inspect_tensor(model, tensor=NAME, scheme=Scheme(bits=9))
    broken = replaced(make_llama(tmp_path), **{NAME: torch.full((64, 96), torch.nan)})
    with pytest.raises(NonFiniteError, match=NAME):
        inspect_tensor(broken, tensor=NAME)
    huge = replaced(make_llama(tmp_path / "huge"), **{NAME: torch.full((64, 96), 3e38)})
    with pytest.raises(SchemeError, match=f"{NAME}: values that reach 3e.38"):
        inspect_tensor(huge, tensor=NAME, scheme=Scheme(scale_dtype="float16"))
    integers = replaced(make_llama(tmp_path / "ints"), extra=torch.zeros(4, 4, dtype=torch.int32))
    with pytest.raises(SchemeError, match="extra holds I32, no floats"):
        inspect_tensor(integers, tensor="extra")


def test_hostile_names_reach_neither_the_terminal_nor_markup(tmp_path: Path) -> None:
    name = "[bold red]matrix[/bold red]"
    folder = replaced(make_llama(tmp_path), **{name: torch.randn(4, 8)})
    result = inspect_tensor(folder, tensor=name)
    assert shown(result).startswith(name)
    # a checkpoint with such a name is refused, a result could be made up
    hostile = "\x1b[2J\u202e\x9b"
    rules = tuple(msgspec.structs.replace(rule, rule=hostile) for rule in result.rules)
    excerpt = msgspec.structs.replace(result.excerpt, rule=hostile)
    text = shown(
        msgspec.structs.replace(
            result, name=hostile, stored=hostile, scheme=hostile, scale_dtype=hostile, rules=rules, excerpt=excerpt
        )
    )
    assert all(character.isprintable() or character == "\n" for character in text)
    refused = run_zeropoint("inspect", str(folder), "--tensor", "\x1b[2J")
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr


# The command


def test_the_command_shows_steps_or_one_json_document(model: Path) -> None:
    done = run_zeropoint("inspect", str(model), "--tensor", NAME, "--bits", "3", "--group-size", "36", "--asymmetric")
    assert done.returncode == 0, done.stderr
    assert "row 0, columns 0 to 35 (group 0 of 3), as int3 g36 asym, codes -4 to 3" in done.stdout
    assert "S  = (high - low) / 7 = " in done.stdout
    assert "mse" in done.stdout
    last = run_zeropoint("inspect", str(model), "--tensor", NAME, "--group-size", "36", "--group", "2", "--json")
    result = json.loads(last.stdout)
    assert result["result"] == "tensor inspection"
    assert (result["excerpt"]["first_column"], result["excerpt"]["columns"]) == (72, 24)
