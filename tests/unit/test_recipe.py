from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from child import run_python
from zeropoint import find
from zeropoint.errors import RecipeError
from zeropoint.recipe import (
    Calibration,
    Choice,
    ChoiceKind,
    LayerPlan,
    Recipe,
    Rule,
    load_recipe,
    preset_text,
    presets,
    resolve,
)
from zeropoint.types import InputScheme, Scheme

LAYERS = [
    f"model.layers.{block}.{name}"
    for block in range(3)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: str | Path | dict[str, Any], *overrides: str) -> str:
    """The message that a recipe is refused with."""
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict(source, source="r.toml") if isinstance(source, dict) else load_recipe(source, overrides)
    return str(refused.value)


# Presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_under_its_own_name_and_its_options_are_known(name: str) -> None:
    recipe = load_recipe(name)
    recipe.check()
    assert recipe.name == name
    assert recipe.description


def test_the_presets_are_those_promised() -> None:
    assert presets() == (
        *("gguf_q4_0", "gguf_q4_1", "gguf_q4_k", "gguf_q5_0", "gguf_q5_1", "gguf_q8_0"),
        *("w2a16", "w3a16", "w4a16", "w4a16_asym", "w4a16_channel", "w4a8", "w8a16", "w8a8", "w8a8_static"),
    )
    halves = {"group_size": 32, "scale_dtype": "float16"}
    assert load_recipe("gguf_q4_0").weights == Scheme(4, True, "group", **halves)  # type: ignore[arg-type]
    assert load_recipe("gguf_q4_1").weights == Scheme(4, False, "group", **halves, scale_bits=7)  # type: ignore[arg-type]
    assert load_recipe("gguf_q8_0").weights == Scheme(8, True, "group", **halves)  # type: ignore[arg-type]
    assert load_recipe("gguf_q5_0").weights == Scheme(5, True, "group", **halves)  # type: ignore[arg-type]
    assert load_recipe("gguf_q5_1").weights == Scheme(5, False, "group", **halves, scale_bits=6)  # type: ignore[arg-type]
    assert load_recipe("gguf_q4_k").weights == Scheme(4, False, "group", **halves, super_size=256)  # type: ignore[arg-type]
    assert load_recipe("gguf_q4_k").fallback == load_recipe("gguf_q5_0").weights
    assert load_recipe("w4a16_channel").weights == Scheme(4, True, "channel", None)
    assert load_recipe("w2a16").weights == Scheme(2, False, "group", 64)
    assert load_recipe("w4a16").weights == Scheme(4, True, "group", 64)
    assert load_recipe("w4a16_asym").weights == Scheme(4, False, "group", 64)
    assert load_recipe("w3a16").weights == Scheme(3, True, "group", 64)
    assert load_recipe("w8a16").plan() == LayerPlan(Scheme(8, True, "channel", None), Choice("mse"), Choice("gptq"))
    dynamic, static = InputScheme(8, dynamic=True, symmetric=True), InputScheme(8, dynamic=False, symmetric=False)
    measured = load_recipe("w8a16").plan()
    assert load_recipe("w8a8").plan() == replace(measured, activations=dynamic)
    assert load_recipe("w8a8_static").plan() == replace(
        measured, activations=static, activation_range=Choice("auto"), static_error_limit=0.001
    )
    assert load_recipe("w4a8").plan() == replace(load_recipe("w4a16").plan(), activations=dynamic)
    for name in ("w8a8", "w8a8_static", "w4a8"):
        assert load_recipe(name).transforms == (Choice("smoothquant"),)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    message = refusal("w4a61")
    assert "'w4a61'" in message
    assert "did you mean 'w4a16'?" in message
    assert all(name in message for name in presets())
    with pytest.raises(RecipeError, match=r"did you mean 'w8a16'"):
        preset_text("w8a17")


# Files


def test_a_fallback_is_a_scheme_of_its_own_and_none_where_none_is_given(tmp_path: Path) -> None:
    assert load_recipe("w4a16").fallback is None
    assert "fallback" not in load_recipe("w4a16").to_toml()
    recipe = load_recipe(write(tmp_path, "[weights]\nbits = 2\n[fallback]\ngroup_size = 16\n"))
    assert recipe.fallback == Scheme(group_size=16)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert load_recipe("w4a16", ["fallback.bits=8"]).fallback == Scheme(8)
    with pytest.raises(RecipeError, match=r"fallback\.bits"):
        load_recipe("w4a16", ["fallback.bits=9"])


def test_a_super_size_goes_with_the_groups() -> None:
    assert load_recipe("gguf_q4_k", ["weights.granularity=channel"]).weights.super_size is None
    one_level = Scheme(4, False, "group", 32, scale_dtype="float16")
    assert load_recipe("gguf_q4_k", ["weights.super_size=none"]).weights == one_level
    wide = {"bits": 8, "symmetric": True, "super_size": "none"}
    rule = Recipe.from_dict(
        {**load_recipe("gguf_q4_k").to_dict(), "rules": [{"layers": ["*.o_proj"], "weights": wide}]}
    )
    assert rule.plan(rule.rules[0]).scheme == Scheme(8, True, "group", 32, scale_dtype="float16")


def test_a_file_says_only_what_differs_and_is_named_after_itself(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "[weights]\nbits = 3\n"))
    assert recipe == Recipe(name="mine", weights=Scheme(bits=3))


def test_a_method_is_text_or_a_table_with_options(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, 'rounding = "gptq"'))
    table = load_recipe(write(tmp_path, '[rounding]\nmethod = "gptq"\ndamping = 0.05'))
    only_options = load_recipe(write(tmp_path, "[rounding]\ndamping = 0.05"))
    assert plain.rounding == Choice("gptq")
    assert table.rounding == only_options.rounding == Choice("gptq", {"damping": 0.05})


@pytest.mark.parametrize("path", ["nowhere.toml", "nowhere/w4a16"])
def test_a_file_that_is_not_there_is_refused_with_its_name(path: str, tmp_path: Path) -> None:
    message = refusal(tmp_path / path)
    assert str(tmp_path / path) in message
    assert "No such file" in message
    assert "w4a16_asym" in message


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(tmp_path)


def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "mine.toml: not TOML: " in refusal(write(tmp_path, "name = 'x'\nweights =\n"))
    assert "line 2" in refusal(write(tmp_path, "name = 'x'\nweights =\n"))


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = 'x'\n\n# \xff\n")
    assert "line 3" in refusal(path)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abwirn[]{}=.\"'#\n 0123456789-+truefals,_:\\"), max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(load_recipe(path), Recipe)
    except RecipeError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right


# What is refused


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"wieghts": {}}, ["r.toml: wieghts is not a key", "did you mean 'weights'?"]),
        ({"weights": {"bitz": 4}}, ["r.toml: weights.bitz is not a key", "did you mean 'bits'?"]),
        ({"calibration": {"sample": 4}}, ["calibration.sample is not a key", "did you mean 'samples'?"]),
        ({"rules": [{"layers": "*"}, {"layer": "*"}]}, ["rules.1.layer is not a key", "did you mean 'layers'?"]),
        ({"rules": [{"layers": "*", "weights": {"bit": 3}}]}, ["rules.0.weights.bit is not", "did you mean 'bits'?"]),
        ({"weights": {"bits": 9}}, ["r.toml: weights.bits is 9", "a whole number from 2 to 8"]),
        ({"weights": {"bits": 1}}, ["weights.bits is 1", "from 2 to 8"]),
        ({"rules": [{"layers": "*", "weights": {"bits": 9}}]}, ["rules.0.weights.bits is 9", "from 2 to 8"]),
        ({"weights": {"bits": "four"}}, ["weights.bits is 'four'", "a whole number"]),
        ({"weights": {"bits": True}}, ["weights.bits is True", "a whole number"]),
        ({"weights": {"bits": 4.5}}, ["weights.bits is 4.5", "a whole number"]),
        ({"weights": {"symmetric": 1}}, ["weights.symmetric is 1", "true or false"]),
        ({"weights": {"granularity": "row"}}, ["weights.granularity is 'row'", "'channel', 'group', 'tensor'"]),
        ({"weights": {"group_size": 0}}, ["weights.group_size is 0", "a whole number of at least 1"]),
        ({"weights": {"scale_dtype": "float8"}}, ["'float8'", "'bfloat16', 'float16', 'float32'"]),
        ({"weights": {"granularity": "channel", "group_size": 64}}, ["weights.group_size is 64", "leave it out"]),
        ({"weights": "w4"}, ["weights is 'w4'", "a table"]),
        ({"weights": {1: 2}}, ["weights is {1: 2}", "a table"]),
        ({"calibration": {"dtype": "float16"}}, ["calibration.dtype is 'float16'", "'bfloat16', 'float32'"]),
        ({"calibration": {"samples": 0}}, ["calibration.samples is 0", "at least 1"]),
        ({"calibration": {"seed": -1}}, ["calibration.seed is -1"]),
        ({"rounding": "gtpq"}, ["rounding is 'gtpq'", "did you mean 'gptq'?"]),
        ({"rounding": {"method": "gtpq"}}, ["rounding.method is 'gtpq'", "did you mean 'gptq'?"]),
        ({"rounding": 3}, ["rounding is 3", "a table"]),
        ({"range": "minimax"}, ["range is 'minimax'", "did you mean 'minmax'?"]),
        ({"rules": [{"layers": "*", "range": "minimax"}]}, ["rules.0.range is 'minimax'", "did you mean 'minmax'?"]),
        ({"format": "gguff"}, ["format is 'gguff'", "'compressed_tensors'"]),
        ({"kv_cache": "int4"}, ["r.toml: kv_cache is 'int4'", "'float16', 'int8'"]),
        ({"kv_cache": 8}, ["r.toml: kv_cache is 8", "'float16', 'int8'"]),
        ({"embeddings": "float"}, ["r.toml: embeddings is 'float'", "'int4', 'int8', 'stored'"]),
        ({"static_error_limit": 2}, ["static_error_limit is 2", "a number from 0 to 1 or 'none'"]),
        ({"static_error_limit": float("nan")}, ["static_error_limit is nan", "a number from 0 to 1 or 'none'"]),
        ({"massive_inputs": True}, ["massive_inputs is True", "'dynamic', 'static'"]),
        ({"bias_correction": "yes"}, ["bias_correction is 'yes'", "true or false"]),
        ({"static_eror_limit": 0.1}, ["static_eror_limit is not a key", "did you mean 'static_error_limit'?"]),
        ({"name": 3}, ["name is 3", "text in quotes"]),
        ({"rules": {"layers": "*"}}, ["rules is {'layers': '*'}", "a list"]),
        ({"rules": [{"keep_float": True}]}, ["rules.0 names no layers"]),
        ({"rules": [{"layers": []}]}, ["rules.0 names no layers"]),
        ({"rules": [{"layers": [3]}]}, ["rules.0.layers is [3]", "a list, each item text in quotes"]),
        ({"rules": [{"layers": "re:(q"}]}, ["rules.0.layers: 're:(q' is no regular expression"]),
        ({"rules": [{"layers": "*", "keep_float": "yes"}]}, ["rules.0.keep_float is 'yes'", "true or false"]),
        ({"rules": [{"layers": "*", "keep_float": True, "weights": {"bits": 8}}]}, ["rules.0", "float", "weights"]),
        ({"activations": "int8"}, ["activations is 'int8'", "'float', or a table"]),
        ({"activations": {"bits": 4}}, ["activations.bits is 4", "a whole number from 8 to 8"]),
        ({"activations": {"dynamic": 1}}, ["activations.dynamic is 1", "true or false"]),
        ({"activations": {"static": True}}, ["activations.static is not a key"]),
        ({"activations": {"dynamic": True, "outlier_threshold": 0}}, ["outlier_threshold is 0", "above 0", "'none'"]),
        ({"activations": {"dynamic": True, "outlier_threshold": "all"}}, ["outlier_threshold is 'all'", "a number"]),
        ({"activations": {"outlier_threshold": 6}}, ["activations.outlier_threshold is 6", "inputs here are float"]),
        (
            {"rules": [{"layers": "*", "activations": {"outlier_threshold": 6}}]},
            ["rules.0.activations.outlier_threshold is 6", "write dynamic = true or false"],
        ),
        ({"activations": {"symmetric": False}}, ["activations.symmetric is False", "dynamic = false"]),
        ({"activation_range": "minimax"}, ["activation_range is 'minimax'", "did you mean 'minmax'?"]),
        ({"rules": [{"layers": "*", "activations": 8}]}, ["rules.0.activations is 8", "'float', or a table"]),
        (
            {"rules": [{"layers": "*", "activations": {"symmetric": False}}]},
            ["rules.0.activations.symmetric is False", "dynamic = false"],
        ),
        (
            {"rules": [{"layers": "*", "keep_float": True, "activations": "float"}]},
            ["rules.0", "keeps its layers float", "activations"],
        ),
        (
            {"weights": {"granularity": "channel"}, "rules": [{"layers": "*", "weights": {"group_size": 32}}]},
            ["rules.0.weights.group_size is 32", "granularity is 'channel'"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_allowed_is_refused_by_place_value_and_what_is_allowed(
    document: dict[str, Any], said: list[str]
) -> None:
    message = refusal(document)
    for part in said:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(weights=Scheme(bits=9)),
        lambda: Recipe(rounding=Choice("gtpq")),
        lambda: Recipe(calibration=Calibration(samples=0)),
        lambda: Recipe(rules=(Rule(layers=()),)),
        lambda: Recipe(weights=None),  # type: ignore[arg-type]
        lambda: Recipe(format="gguff"),
    ],
)
def test_a_recipe_made_in_python_is_checked_like_a_file(make: Callable[[], object]) -> None:
    with pytest.raises(RecipeError, match=r"^recipe: "):
        make()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            Recipe(rounding=Choice("gptq", {"dampning": 0.1})),
            ["rounding.dampning is not a key", "did you mean 'damping'?"],
        ),
        (Recipe(rounding=Choice("gptq", {"damping": -0.1})), ["rounding.damping is -0.1", "a number above 0"]),
        (Recipe(rounding=Choice("gptq", {"act_order": "yes"})), ["rounding.act_order is 'yes'", "true or false"]),
        (Recipe(rounding=Choice("rtn", {"damping": 0.1})), ["rounding.damping is not a key"]),
        (Recipe(range=Choice("minmax", {"wide": 1})), ["range.wide is not a key"]),
        (
            Recipe(rules=(Rule(layers=("*",), rounding={"damping": 0.0}),)),
            ["rules.0.rounding.damping is 0.0", "a number above 0"],
        ),
        (
            Recipe(transforms=(Choice("smoothquant"), Choice("smoothquant", {"strength": 1.5}))),
            ["transforms.1.strength is 1.5", "a number from 0 to 1 or 'search'"],
        ),
    ],
    ids=str,
)
def test_options_are_checked_against_the_file_of_their_method(recipe: Recipe, said: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe.check()
    for part in (f"recipe {recipe.name}: ", *said):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("range", "qparams.ranges"), ("rounding", "rounding"), ("activation_range", "qparams.ranges")],
)
def test_every_method_is_accepted_with_its_own_defaults(kind: str, folder: ChoiceKind) -> None:
    for method in find.names(folder):
        recipe = Recipe.from_dict({kind: method})
        recipe.check()
        assert getattr(recipe, kind).load_options(folder) == find.load(folder, method).Options()


def test_every_transform_is_accepted_with_its_own_defaults() -> None:
    for method in find.names("transforms"):
        recipe = Recipe.from_dict({"transforms": [method]})
        recipe.check()
        assert recipe.transforms[0].load_options("transforms") == find.load("transforms", method).Options()


def test_transforms_are_a_list_of_names_and_tables_in_their_order(tmp_path: Path) -> None:
    named = load_recipe(write(tmp_path, "transforms = ['smoothquant']"))
    assert named.transforms == (Choice("smoothquant"),)
    tables = write(tmp_path, "transforms = ['smoothquant', { method = 'smoothquant', strength = 0.5 }]")
    assert load_recipe(tables).transforms == (Choice("smoothquant"), Choice("smoothquant", {"strength": 0.5}))
    assert Recipe.from_dict({"transforms": "smoothquant"}).transforms == named.transforms
    assert Recipe().transforms == ()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["transforms=smoothquant"], [Choice("smoothquant")]),
        (["transforms.0=smoothquant", "transforms.0.strength=0.8"], [Choice("smoothquant", {"strength": 0.8})]),
        (["transforms.0.method=smoothquant"], [Choice("smoothquant")]),
        (
            ['transforms=["smoothquant"]', "transforms.0.strength=search"],
            [Choice("smoothquant", {"strength": "search"})],
        ),
        (["transforms=smoothquant", "transforms=[]"], []),
    ],
    ids=str,
)
def test_set_reaches_into_transforms(overrides: list[str], expected: list[Choice]) -> None:
    assert load_recipe("w8a16", overrides).transforms == tuple(expected)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"transforms": ["smothquant"]}, ["transforms.0.method is 'smothquant'", "did you mean 'smoothquant'?"]),
        ({"transforms": [{"strength": 0.5}]}, ["transforms.0 names no method", "'smoothquant'"]),
        ({"transforms": [3]}, ["transforms is [3]", "a list, each item a table"]),
        ({"transforms": {"method": "smoothquant"}}, ["transforms is {'method': 'smoothquant'}", "a list"]),
    ],
    ids=str,
)
def test_transforms_that_are_none_are_refused(document: dict[str, Any], said: list[str]) -> None:
    message = refusal(document)
    assert all(part in message for part in said), message


def test_given_options_reach_the_method() -> None:
    options = Choice("gptq", {"damping": 1, "act_order": False}).load_options("rounding")
    assert (options.damping, options.act_order, options.block) == (1.0, False, 128)
    with pytest.raises(RecipeError, match=r"rounding\.blok is not a key"):
        Choice("gptq", {"blok": 64}).load_options("rounding")


def test_loading_a_recipe_imports_no_torch() -> None:
    code = (
        "import sys; from zeropoint.recipe import load_recipe\n"
        "load_recipe('w4a16', ['range=minmax']); print('torch' in sys.modules)"
    )
    assert run_python(code) == "False"


# Rules


def test_the_last_rule_that_matches_counts_and_overrides_only_what_it_gives() -> None:
    recipe = Recipe.from_dict(
        {
            "weights": {"bits": 4, "group_size": 32},
            "rounding": {"method": "gptq", "damping": 0.05},
            "rules": [
                {"layers": "*.down_proj", "weights": {"bits": 8}},
                {"layers": "model.layers.0.*", "keep_float": True},
                {"layers": ["re:.*layers\\.0\\.mlp\\.down_proj"], "rounding": {"act_order": False}},
                {"layers": "model.layers.2.mlp.up_proj", "rounding": "rtn", "weights": {"granularity": "channel"}},
            ],
        }
    )
    plans = resolve(recipe, LAYERS)
    default = LayerPlan(Scheme(4, True, "group", 32), Choice("mse"), Choice("gptq", {"damping": 0.05}))
    assert list(plans) == LAYERS
    assert plans["model.layers.1.mlp.up_proj"] == default == recipe.plan()
    assert plans["model.layers.1.mlp.down_proj"] == LayerPlan(
        Scheme(8, True, "group", 32), default.range, default.rounding
    )
    assert plans["model.layers.0.mlp.up_proj"] is None
    assert plans["model.layers.0.mlp.down_proj"] == LayerPlan(
        default.scheme, default.range, Choice("gptq", {"damping": 0.05, "act_order": False})
    )
    assert plans["model.layers.2.mlp.up_proj"] == LayerPlan(
        Scheme(4, True, "channel", None), default.range, Choice("rtn")
    )


def test_a_rule_that_gives_only_layers_puts_them_back() -> None:
    rules = [{"layers": "*", "keep_float": True}, {"layers": "*.q_proj"}]
    recipe = Recipe.from_dict({"rules": rules})
    kept = [layer for layer, plan in resolve(recipe, LAYERS).items() if plan is None]
    assert kept == [layer for layer in LAYERS if not layer.endswith("q_proj")]
    assert resolve(recipe, LAYERS)["model.layers.1.self_attn.q_proj"] == recipe.plan()


@pytest.mark.parametrize("pattern", ["*.down_porj", "layers.0", "re:layers\\.0", "MODEL.*"])
def test_a_rule_that_matches_no_layer_is_refused(pattern: str) -> None:
    recipe = Recipe(
        name="mine", rules=(Rule(layers=("*.q_proj",), keep_float=True), Rule(layers=(pattern,), keep_float=True))
    )
    with pytest.raises(RecipeError) as refused:
        resolve(recipe, LAYERS)
    for part in (
        "recipe mine: rules.1.layers",
        repr(pattern),
        "12 layers",
        LAYERS[0],
        "down_proj, o_proj, q_proj, up_proj",
    ):
        assert part in str(refused.value)


def test_a_pattern_covers_the_whole_name() -> None:
    rule = Rule(layers=("re:.*\\.q_proj", "model.layers.[01].mlp.*"))
    matched = [layer for layer in LAYERS if rule.matches(layer)]
    expected = [layer for layer in LAYERS if layer.endswith("q_proj") or ("mlp" in layer and ".2." not in layer)]
    assert matched == expected
    assert not rule.matches("model.layers.0.self_attn.q_proj.lora")


def test_a_rule_changes_what_a_layer_reads() -> None:
    recipe = Recipe.from_dict(
        {
            "activations": {"dynamic": False, "symmetric": False},
            "activation_range": {"method": "percentile", "percent": 99.0},
            "rules": [
                {"layers": "*.o_proj", "activations": "float"},
                {"layers": "*.up_proj", "activations": {"dynamic": True}},
                {"layers": "*.down_proj", "activations": {"symmetric": True}, "activation_range": {"percent": 90.0}},
            ],
        }
    )
    plans = resolve(recipe, LAYERS[:4])
    found = [plan and (plan.activations, plan.activation_range.options["percent"]) for plan in plans.values()]
    assert found == [
        (InputScheme(dynamic=False, symmetric=False), 99.0),
        (None, 99.0),
        (InputScheme(), 99.0),
        (InputScheme(dynamic=False), 90.0),
    ]
    outliers = Recipe.from_dict(
        {
            "activations": {"dynamic": True, "outlier_threshold": 6.0},
            "rules": [{"layers": "*.o_proj", "activations": {"outlier_threshold": "none"}}],
        }
    )
    found = [plan and plan.activations for plan in resolve(outliers, LAYERS[:4]).values()]
    assert found == [InputScheme() if ".o_proj" in name else InputScheme(outlier_threshold=6.0) for name in LAYERS[:4]]
    lone = Recipe.from_dict({"rules": [{"layers": "*", "activations": {"bits": 8}}]})
    assert resolve(lone, LAYERS[:1])[LAYERS[0]] == replace(lone.plan(), activations=InputScheme())


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("w8a16", ["activations.dynamic=true"], InputScheme()),
        ("w8a16", ["activations.dynamic=false", "activations.symmetric=false"], InputScheme(8, False, False)),
        ("w8a16", ["activations=float", "activations.dynamic=true"], InputScheme()),
        ("w8a8", ["activations=float"], None),
        ("w8a8", ["activations.dynamic=false"], InputScheme(8, False, True)),
        ("w8a8_static", ["activations.dynamic=true"], InputScheme()),
        ("w8a8_static", ["activations.symmetric=true"], InputScheme(8, False, True)),
        ("w8a8", ["activations.outlier_threshold=6"], InputScheme(outlier_threshold=6.0)),
        ("w8a8", ["activations.outlier_threshold=none"], InputScheme()),
        ("w8a8_static", ["activations.outlier_threshold=6.5"], InputScheme(8, False, False, 6.5)),
        ("w8a16", ["activations.outlier_threshold=6", "activations.dynamic=true"], InputScheme(outlier_threshold=6.0)),
    ],
    ids=str,
)
def test_set_chooses_how_inputs_are_rounded(preset: str, overrides: list[str], expected: InputScheme | None) -> None:
    assert load_recipe(preset, overrides).activations == expected


def test_the_granularity_of_a_rule_brings_its_group_size_with_it() -> None:
    per_channel = {"granularity": "channel"}
    recipe = Recipe.from_dict(
        {"weights": per_channel, "rules": [{"layers": "*.q_proj", "weights": {"granularity": "group"}}]}
    )
    plans = resolve(recipe, LAYERS)
    assert plans["model.layers.0.self_attn.q_proj"] == LayerPlan(Scheme(), Choice("mse"), Choice("gptq"))
    assert plans["model.layers.0.mlp.up_proj"] == LayerPlan(
        Scheme(granularity="channel", group_size=None), Choice("mse"), Choice("gptq")
    )


# --set


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rounding=rtn"], {"rounding": "rtn"}),
        (["weights.bits=3"], {"weights": {"bits": 3}}),
        ([" weights.bits = 3 "], {"weights": {"bits": 3}}),
        (["range.method=minmax"], {"range": "minmax"}),
        (["calibration.seed=3", "calibration.dtype=bfloat16"], {"calibration": {"seed": 3, "dtype": "bfloat16"}}),
        (["rounding.damping=0.05"], {"rounding": {"method": "gptq", "damping": 0.05}}),
        (["weights={bits = 2, narrow = true}"], {"weights": {"bits": 2, "narrow": True}}),
        (["name=rtn4"], {"name": "rtn4"}),
        (['name="3"'], {"name": "3"}),
        (["name=a=b"], {"name": "a=b"}),
        (["weights.granularity=tensor"], {"weights": {"granularity": "tensor"}}),
        (
            ["rules.0.layers=*.down_proj", "rules.0.keep_float=true"],
            {"rules": [{"layers": ["*.down_proj"], "keep_float": True}]},
        ),
        (
            ['rules.0.layers=["*.q_proj", "*.k_proj"]', "rules.0.rounding=gptq", "rules.0.rounding.damping=1"],
            {"rules": [{"layers": ["*.q_proj", "*.k_proj"], "rounding": {"method": "gptq", "damping": 1}}]},
        ),
        (['rules=[{layers = "*", weights = {bits = 8}}]'], {"rules": [{"layers": "*", "weights": {"bits": 8}}]}),
    ],
    ids=str,
)  # fmt: skip
def test_set_replaces_single_values(overrides: list[str], expected: dict[str, Any]) -> None:
    base = load_recipe("w4a16").to_dict()
    expected = {key: base[key] | value if isinstance(value, dict) else value for key, value in expected.items()}
    if overrides[0].startswith("weights.granularity"):
        del expected["weights"]["group_size"]
    assert load_recipe("w4a16", overrides) == Recipe.from_dict(base | expected)


def test_set_reaches_into_rules_that_are_there(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[[rules]]\nlayers = "*.q_proj"\nkeep_float = true\n[[rules]]\nlayers = "*.o_proj"\nrounding = "gptq"\n',
    )
    recipe = load_recipe(path, ["rules.0.keep_float=false", "rules.0.weights.bits=8", "rules.1.rounding.damping=1.0"])
    assert recipe.rules == (
        Rule(layers=("*.q_proj",), weights={"bits": 8}),
        Rule(layers=("*.o_proj",), rounding={"method": "gptq", "damping": 1.0}),
    )


def test_options_of_another_method_are_not_taken_over_in_whatever_order_they_are_set(tmp_path: Path) -> None:
    path = write(tmp_path, '[range]\nmethod = "percentile"\npercent = 99.0')
    assert load_recipe(path, ["range.method=mse"]).range == Choice("mse")
    assert load_recipe(path, ["range=mse"]).range == Choice("mse")
    assert load_recipe(path, ["range.method=percentile"]).range == Choice("percentile", {"percent": 99.0})
    assert load_recipe(path, ["range=percentile"]).range == Choice("percentile", {"percent": 99.0})
    for overrides in (["range.x=1", "range.method=mse"], ["range.method=mse", "range.x=1"], ["range.x=1", "range=mse"]):
        assert load_recipe(path, overrides).range == Choice("mse", {"x": 1})


def test_the_order_of_overrides_does_not_matter_for_rules_that_they_make() -> None:
    parts = ["rules.0.layers=*.q_proj", "rules.0.keep_float=true", "rules.1.layers=*.o_proj", "rules.1.rounding=rtn"]
    made = load_recipe("w4a16", parts).rules
    assert made == (Rule(layers=("*.q_proj",), keep_float=True), Rule(layers=("*.o_proj",), rounding={"method": "rtn"}))
    assert load_recipe("w4a16", [parts[1], parts[0], parts[3], parts[2]]).rules == made
    tables = ['rules.0={layers = "*.q_proj", keep_float = true}', parts[3], parts[2]]
    assert load_recipe("w4a16", tables).rules == made


def test_a_granularity_that_is_set_drops_the_group_size_but_not_one_that_is_set_too() -> None:
    assert load_recipe("w4a16", ["weights.granularity=channel"]).weights == Scheme(
        granularity="channel", group_size=None
    )
    assert load_recipe("w8a16", ["weights.granularity=group"]).weights == Scheme(8)
    both = ["weights.group_size=32", "weights.granularity=group"]
    assert load_recipe("w8a16", both).weights == Scheme(8, group_size=32)
    assert "leave it out" in refusal("w4a16", "weights.group_size=32", "weights.granularity=channel")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("weights.bitz=3", ["weights.bitz is not a key", "did you mean 'bits'?"]),
        ("weights.bits=9", ["weights.bits is 9", "from 2 to 8"]),
        ("weights.bits=three", ["weights.bits is 'three'", "a whole number"]),
        ("weights.symmetric=True", ["weights.symmetric is 'True'", "true or false"]),
        ("weights.bits.x=3", ["weights.bits is 4"]),
        ("rules.1.layers=*", ["'1' is no place in rules", "from 0 to 0"]),
        ("rules.x.layers=*", ["'x' is no place in rules"]),
        ("rules.²=3", ["'²' is no place in rules"]),
        ("rules.0=3", ["rules is [3]"]),
        ("rounding=3", ["rounding is 3"]),
        ("rounding.method.x=3", ["rounding.method is 'gptq'"]),
        ("rounding", ["not KEY=VALUE"]),
        ("=rtn", ["not KEY=VALUE"]),
        ("weights..bits=3", ["not KEY=VALUE"]),
        ("weights.bits=3\nrounding='rtn'", ['weights.bits is "3']),
    ],
    ids=str,
)
def test_an_override_that_is_not_allowed_is_refused_and_named(override: str, said: list[str]) -> None:
    message = refusal("w4a16", override)
    for part in (f"--set {override.partition('=')[0]}", *said):
        assert part in message


# The record


WORDS = st.text(max_size=12)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
SCHEMES = st.fixed_dictionaries(
    {},
    optional={
        "bits": st.integers(2, 8),
        "symmetric": st.booleans(),
        "narrow": st.booleans(),
        "scale_dtype": st.sampled_from(["bfloat16", "float16", "float32"]),
        "granularity": st.sampled_from(["tensor", "channel", "group"]),
    },
)
OPTIONS = st.dictionaries(WORDS.filter(lambda key: key != "method"), VALUES, max_size=3)


def choices(kind: str) -> st.SearchStrategy[Any]:
    methods = st.sampled_from(find.names(kind))
    return methods | st.builds(lambda method, options: {"method": method, **options}, methods, OPTIONS)


INPUTS = st.just("float") | st.sampled_from(
    [
        {},
        {"bits": 8},
        {"dynamic": True},
        {"dynamic": False},
        {"dynamic": False, "symmetric": False},
        {"dynamic": True, "outlier_threshold": 6.5},
        {"dynamic": False, "outlier_threshold": "none"},
    ]
)
PARTS = {
    "weights": SCHEMES,
    "range": choices("qparams.ranges"),
    "rounding": choices("rounding"),
    "activations": INPUTS,
    "activation_range": choices("qparams.ranges"),
}
RULES = st.fixed_dictionaries(
    {"layers": WORDS.map("x".__add__) | st.lists(WORDS.map("x".__add__), min_size=1, max_size=2)}, optional=PARTS
) | st.just({"layers": "re:a.*", "keep_float": True})
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional=PARTS
    | {
        "name": WORDS,
        "description": WORDS,
        "static_error_limit": st.floats(0, 1) | st.just("none"),
        "massive_inputs": st.sampled_from(["static", "dynamic"]),
        "bias_correction": st.booleans(),
        "rules": st.lists(RULES, max_size=3),
        "transforms": st.lists(choices("transforms"), max_size=2),
        "calibration": st.fixed_dictionaries(
            {}, optional={"samples": st.integers(1, 999), "seed": st.integers(0, 2**63 - 1)}
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(document=DOCUMENTS)
def test_a_recipe_comes_back_from_its_record(document: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(document)
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert tomllib.loads(recipe.to_toml()) == recipe.to_dict()


@pytest.mark.parametrize("rule", ["minmax", "moving_average", "auto"])
def test_a_rule_takes_every_range_that_a_recipe_takes(rule: str) -> None:
    recipe = Recipe.from_dict(
        {"activations": {"dynamic": False}, "rules": [{"layers": "*.down_proj", "activation_range": rule}]}
    )
    recipe.check()
    assert recipe.plan(recipe.rules[0]).activation_range.method == rule


def test_what_is_said_once_is_part_of_every_plan() -> None:
    once = {"massive_inputs": "dynamic", "static_error_limit": 0, "bias_correction": True}
    recipe = Recipe.from_dict({**once, "rules": [{"layers": "*", "range": "minmax"}]})
    for plan in (recipe.plan(), recipe.plan(recipe.rules[0])):
        assert (plan.static_error_limit, plan.massive_inputs, plan.bias_correction) == (0.0, "dynamic", True)
    assert Recipe().plan().static_error_limit is None


def test_the_record_spells_out_every_value() -> None:
    assert Recipe(name="x", rules=(Rule(layers=("*.q_proj",), weights={"bits": 8}),)).to_toml() == (
        'name = "x"\ndescription = ""\nformat = "compressed_tensors"\nactivations = "float"\n'
        "transforms = []\nrefine = []\n"
        'kv_cache = "float16"\nembeddings = "stored"\n'
        'static_error_limit = "none"\nmassive_inputs = "static"\n'
        "bias_correction = false\n\n"
        '[weights]\nbits = 4\nsymmetric = true\ngranularity = "group"\ngroup_size = 64\nnarrow = false\n'
        'scale_dtype = "bfloat16"\n\n'
        '[range]\nmethod = "mse"\n\n[rounding]\nmethod = "gptq"\n\n'
        '[activation_range]\nmethod = "minmax"\n\n'
        '[[rules]]\nlayers = ["*.q_proj"]\nweights = { bits = 8 }\n\n'
        '[calibration]\ntokens = "text"\nsamples = 128\nlength = 512\nseed = 0\nbatch = 4\n'
        'held_out = 4\nexpert_tokens = 256\ndtype = "float32"\n'
    )


def test_what_toml_cannot_say_is_refused_when_it_is_written() -> None:
    with pytest.raises(RecipeError, match="None cannot be written as TOML"):
        Recipe(rounding=Choice("gptq", {"damping": None})).to_toml()


def test_a_scheme_per_channel_is_the_same_with_and_without_a_group_size() -> None:
    assert Recipe(weights=Scheme(granularity="channel")) == Recipe.from_dict({"weights": {"granularity": "channel"}})


def test_a_recipe_in_python_may_be_written_like_a_file() -> None:
    loose = Recipe(rounding="rtn", rules=[Rule(layers="*.q_proj", rounding="gptq")])  # type: ignore[arg-type]
    assert loose == Recipe.from_dict({"rounding": "rtn", "rules": [{"layers": "*.q_proj", "rounding": "gptq"}]})
