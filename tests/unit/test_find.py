from __future__ import annotations

import sys
from importlib import resources

import pytest

from child import run_python
from zeropoint import find
from zeropoint.errors import InputError, RecipeError

KINDS = (
    "checkpoint.gguf_architectures",
    "cli",
    "exporting",
    "formats",
    "models",
    "observe",
    "qparams.input_ranges",
    "qparams.ranges",
    "rounding",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_are_the_files_of_the_folder(kind: str) -> None:
    folder = resources.files("zeropoint").joinpath(*kind.split("."))
    files = {f.name.removesuffix(".py") for f in folder.iterdir() if f.name.endswith(".py")}
    hidden = set(getattr(sys.modules[f"zeropoint.{kind}"], "NOT_CAPABILITIES", ())) if find.names(kind) else set()
    assert find.names(kind) == tuple(sorted(name for name in files - hidden if not name.startswith("_")))
    assert hidden <= files, "NOT_CAPABILITIES names a file that is not there"


def test_what_the_first_version_promises_is_found() -> None:
    assert {"gptq", "rtn"} <= set(find.names("rounding"))
    assert {"minmax", "percentile", "mse", "entropy"} <= set(find.names("qparams.ranges"))
    assert {"minmax", "histogram", "channel_absmax", "second_moment"} <= set(find.names("observe"))
    assert {"llama", "mistral"} <= set(find.names("models"))
    assert find.names("cli") == (
        "bench",
        "budget",
        "chat",
        "compare",
        "evaluate",
        "export",
        "generate",
        "inspect",
        "plan",
        "quantize",
        "recipes",
        "report",
        "verify",
    )
    assert "compressed_tensors" in find.names("formats")
    assert {"awq", "gguf", "gptq", "onnx"} == set(find.names("exporting"))


def test_listing_imports_none_of_the_files_and_no_torch() -> None:
    code = (
        "import sys; from zeropoint import find\n"
        f"names = {{kind: find.names(kind) for kind in {KINDS}}}\n"
        "files = [f'zeropoint.{kind}.{name}' for kind in names for name in names[kind]]\n"
        "print([m for m in ('torch', 'rich', *files) if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_only_the_file_that_is_asked_for_is_imported() -> None:
    code = (
        "import sys; from zeropoint import find\n"
        "print(find.load('cli', 'recipes').__name__, 'zeropoint.cli.quantize' in sys.modules)"
    )
    assert run_python(code) == "zeropoint.cli.recipes False"


def test_an_unknown_name_is_refused_with_those_that_exist_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no rounding is called 'gtpq'; .* gptaq, gptq, rtn; did you mean 'gptq'\?"):
        find.load("rounding", "gtpq")
    with pytest.raises(RecipeError, match=r"no qparams ranges is called 'zzz'; there are .*minmax"):
        find.load("qparams.ranges", "zzz", error=RecipeError)


@pytest.mark.parametrize("name", ["__init__", "console", "options", "..errors", "recipes.show", ""])
def test_what_is_no_capability_is_not_loaded(name: str) -> None:
    with pytest.raises(InputError):
        find.load("cli", name)


def test_nothing_is_suggested_when_nothing_is_near() -> None:
    assert find.nearest("zzz", ["gptq", "rtn"]) == ""
    assert find.nearest("x", []) == ""


@pytest.mark.parametrize(("kind", "name", "constant"), [("rounding", "gptaq", "NEEDS"), ("refine", "distill", "SCOPE")])
def test_a_constant_is_read_without_importing_what_has_it(kind: str, name: str, constant: str) -> None:
    assert find.constant(kind, name, constant) == getattr(find.load(kind, name), constant)
    asked = f"find.constant({kind!r}, {name!r}, {constant!r})"
    assert run_python(f"import sys; from zeropoint import find; {asked}; print('torch' in sys.modules)") == "False"


def test_a_constant_that_is_no_literal_is_a_fault_of_ours() -> None:
    with pytest.raises(KeyError, match=r"rounding/gptq\.py has no Options"):
        find.constant("rounding", "gptq", "Options")
    with pytest.raises(KeyError, match=r"rounding/gptaq\.py has no literal quantize"):
        find.constant("rounding", "gptaq", "quantize")
