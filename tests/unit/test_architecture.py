"""The promises that no single file can keep: the way of imports, who prints, who imports torch, what is never named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zeropoint
from child import run_python
from tiny import make_gguf, quantized

PACKAGE = Path(zeropoint.__file__).parent
PROJECT = PACKAGE.parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports from what stands above it here, or from its own folder. "" is zeropoint/__init__.py.
ORDER = (
    "_native",
    "types",
    "errors",
    "progress",
    "threads",
    "heap",
    "find",
    "documents",
    "patterns",
    "toml",
    "recipe",
    "effort",
    "checkpoint",
    "models",
    "observe",
    "qparams",
    "transforms",
    "rounding",
    "refine",
    "formats",
    "runtime",
    "exporting",
    "evaluation",
    "report",
    "planning",
    "inspection",
    "anatomy",
    "laboratory",
    "stages",
    "blocks",
    "embeddings",
    "verification",
    "engines",
    "steps",
    "pipeline",
    "budget",
    "comparison",
    "",
    "cli",
    "__main__",
)

# What runs for `--help` and `inspect --headers`: no torch.
LIGHT = (
    "",
    "types",
    "errors",
    "progress",
    "heap",
    "find",
    "documents",
    "patterns",
    "toml",
    "recipe",
    "checkpoint",
    "models",
    "report",
    "cli",
)


def place(path: Path) -> str:
    """The entry of ORDER that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def dotted(path: Path) -> str:
    return ".".join(("zeropoint", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported anywhere in a file; for `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield node.lineno, str(node.module)
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def places_imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and entry of ORDER of every import of our own. `from zeropoint import find` is find, `quantize` is "".

    Whoever only asks for zeropoint.__version__ imports nothing.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "zeropoint" or _uses_more_than_version(tree)]
        elif isinstance(node, ast.ImportFrom) and node.module == "zeropoint":
            names = [f"zeropoint.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "zeropoint":
                first = rest.partition(".")[0]
                yield node.lineno, first if first in ORDER else ""


def _uses_more_than_version(tree: ast.AST) -> bool:
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "zeropoint"]
    versions = [node for node in ast.walk(tree) if ast.dump(node).startswith("Attribute(value=Name(id='zeropoint'")]
    return len(used) != sum(1 for node in versions if isinstance(node, ast.Attribute) and node.attr == "__version__")


def top_level(tree: ast.Module) -> ast.Module:
    """The imports that run when the module is imported, without those for type checkers."""
    kept: list[ast.stmt] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            kept.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            waiting += ast.iter_child_nodes(node)
    return ast.Module(kept, [])


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_go_up_the_data_flow(path: Path) -> None:
    own = place(path)
    assert own in ORDER, f"{path.name} has no place in ORDER; put it where its imports allow"
    wrong = [
        f"{path.name}:{line} imports {other or 'zeropoint'}"
        for line, other in places_imported(ast.parse(path.read_text(encoding="utf-8")))
        if other != own and ORDER.index(other) > ORDER.index(own)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in FILES if dotted(p) != "zeropoint.cli.console"], ids=dotted)
def test_only_the_console_prints(path: Path) -> None:
    printing = re.compile(
        r"print|click\.(echo|secho|echo_via_pager)|sys\.(__)?(stdout|stderr)(__)?(\..*)?|rich\.print|pprint.*"
    )
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = ast.unparse(node.func if isinstance(node, ast.Call) else node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.Call | ast.Attribute) and printing.fullmatch(name):
            wrong.append(f"{path.name}:{node.lineno} {name}")
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in FILES if place(p) in LIGHT], ids=dotted)
def test_what_starts_the_command_line_names_no_torch_at_module_level(path: Path) -> None:
    names = [name for _, name in imported(top_level(ast.parse(path.read_text(encoding="utf-8"))))]
    heavy = ("rich", "numpy") if place(path) == "cli" else ()
    assert [name for name in names if name.split(".")[0] in ("torch", "transformers", *heavy)] == []


def test_what_starts_the_command_line_brings_no_torch_along() -> None:
    modules = [dotted(path) for path in FILES if place(path) in LIGHT]
    code = (
        f"import sys, importlib\nfor name in {modules}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    assert run_python(code) == ""


def test_a_packed_model_is_read_and_spoken_with_without_torch(tmp_path: Path) -> None:
    folder = quantized(tmp_path)
    gguf = make_gguf(tmp_path / "m.gguf", quantization="Q8_0")
    code = f"""
import sys
from zeropoint.runtime import conversation, decode, generate, runner, sampler, weights
from zeropoint.formats import compressed_tensors
from zeropoint.checkpoint import load_tokenizer, open_checkpoint
from zeropoint.models.parts import linear_names

packed = weights.Weights(open_checkpoint({str(folder)!r}))
for name in linear_names(packed.model):
    assert packed.packed_linear(name).words.dtype == "uint32", name
for checkpoint in (packed.checkpoint, open_checkpoint({str(gguf)!r})):
    assert checkpoint.read_array("model.embed_tokens.weight", rows=(3, 5)).shape == (2, 64)
    assert checkpoint.read_array("model.norm.weight").shape == (64,)
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode(tokenizer.encode(tokenizer.chat([dict(role="user", content="hello")])))
    weights.Weights(checkpoint)
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"


def test_no_import_runs_in_a_circle() -> None:
    graph = {dotted(path): path for path in FILES}
    edges = {
        name: {
            target
            for _, target in imported(top_level(ast.parse(path.read_text(encoding="utf-8"))))
            if target in graph and target != name
        }
        for name, path in graph.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        # a package is no circle with its own files: `from zeropoint.cli import console` in cli/quantize.py
        ours = {t for t in edges[name] if t not in done and not name.startswith(f"{t}.")}
        for target in ours:
            assert target not in trail, " -> ".join((*trail, target))
            visit(target, (*trail, target))
        done.add(name)

    for name in graph:
        visit(name, (name,))
    assert done == set(graph)


def test_a_file_is_named_after_what_it_knows() -> None:
    vague = re.compile(r"(.*_)?(utils?|helpers?|common|base|misc|tools?)(_.*)?")
    assert [dotted(path) for path in FILES if vague.fullmatch(path.stem)] == []


WRITTEN = ("src", "tests", "benchmarks", "examples", "tools", "docs")
KINDS = (".py", ".md", ".toml")
# in pieces, so that this file does not name them either
NEVER = {
    "a path of somebody's machine": re.compile(r"(?<![\w.)}*-])/" + r"(work|home|root|Users)/\w"),
    "a folder beside the project": re.compile(r"\.\./" + "shared"),
    "a note of work undone": re.compile("TO" + "DO|FIX" + "ME|XX" + "X"),
    "who or what wrote it": re.compile("sub" + "agent|lang" + "uage model wrote|contr" + r"acts\.md", re.IGNORECASE),
}


def written() -> list[Path]:
    """The files that people write: not data, not what tools make."""
    found = [path for folder in WRITTEN for path in (PROJECT / folder).rglob("*") if path.suffix in KINDS]
    found += [
        path for path in PROJECT.iterdir() if path.is_file() and (path.suffix in KINDS or path.name == "Makefile")
    ]
    return sorted(path for path in found if not {"data", "__pycache__"} & set(path.parts))


@pytest.mark.parametrize("what", NEVER)
def test_no_file_names(what: str) -> None:
    lines = [
        f"{path.relative_to(PROJECT)}:{number}: {line.strip()}"
        for path in written()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if NEVER[what].search(line)
    ]
    assert lines == []


def test_the_search_for_words_sees_what_it_looks_for() -> None:
    samples = ("see /ho" + "me/me/x", "../sha" + "red/x", "# TO" + "DO later", "by a sub" + "agent")
    for sample, pattern in zip(samples, NEVER.values(), strict=True):
        assert pattern.search(sample)
    assert PACKAGE / "cli" / "console.py" in written()


def test_an_import_inside_a_function_counts_for_the_order_but_not_for_the_start() -> None:
    tree = ast.parse(
        "from zeropoint import find, quantize\ndef f():\n    import torch\n    from zeropoint.cli import console\n"
    )
    assert set(places_imported(tree)) == {(1, "find"), (1, ""), (4, "cli")}
    assert list(places_imported(ast.parse("import zeropoint\nprint(zeropoint.__version__)"))) == []
    assert list(places_imported(ast.parse("import zeropoint\nzeropoint.load(zeropoint.__version__)"))) == [(1, "")]
    assert {name for _, name in imported(top_level(tree))} == {"zeropoint", "zeropoint.find", "zeropoint.quantize"}
    nested = ast.parse(
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n"
        "try:\n    pass\nexcept OSError:\n    import rich\n"
        "class A:\n    import jinja2\n    def f(self):\n        import torch\n"
    )
    assert {name for _, name in imported(top_level(nested))} == {"numpy", "rich", "jinja2"}
