"""Nothing in src/ can run code that comes with a model: by syntax, whatever the tests reach."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import zeropoint

FILES = sorted(Path(zeropoint.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "runpy", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
KEYWORDS = {"trust_remote_code", "shell", "allow_pickle", "weights_only"}
ENVIRONMENTS = {"Environment", "NativeEnvironment", "SandboxedEnvironment", "Template"}
"""Of jinja2; only ImmutableSandboxedEnvironment is used, which the template cannot change either."""


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a file could run code that is data, with its line."""
    names: dict[str, str] = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            yield from (f"{node.lineno}: {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if str(node.module).split(".")[0] in MODULES:
                yield f"{node.lineno}: {node.module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            full = _full(node, names)
            if ast.unparse(node) in CALLS or full in METHODS:
                yield f"{node.lineno}: {full}"
        if isinstance(node, ast.Call):
            parts = _full(node.func, names).split(".")
            if parts[0] == "jinja2" and parts[-1] in ENVIRONMENTS:
                yield f"{node.lineno}: jinja2's {parts[-1]}"
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            yield f"{node.value.lineno}: {node.arg}="
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in KEYWORDS:
            yield f"{node.lineno}: {node.value!r}"


def _full(node: ast.expr, names: Mapping[str, str]) -> str:
    """The dotted name of an expression, as it would be without `import ... as` and `from ... import`."""
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, first) + dot + rest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_can_run_what_is_data(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "def f():\n    import dill as d", "eval('1')", "map(exec, x)",
        "import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load\nload(f)",
        "import os\nos.system('x')", "from os import popen\npopen('x')", "subprocess.run(x, shell=True)",
        "f(trust_remote_code=True)", "f(**{'trust_remote_code': True})", "import yaml\nyaml.load(f)",
        "import jinja2\njinja2.Environment()", "def f():\n    from jinja2 import Environment as E\n    E()",
        "def f():\n    from jinja2.sandbox import SandboxedEnvironment\n    SandboxedEnvironment()",
        "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_seen(code: str) -> None:
    assert list(dangers(ast.parse(code)))
