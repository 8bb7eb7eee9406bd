"""The folder is the registry: a capability is a file, and its name is the file's name.

    names("rounding")            -> ("gptq", "rtn")
    load("rounding", "gptq")     -> the module zeropoint.rounding.gptq

A file that begins with an underscore, or that is listed in its package's `NOT_CAPABILITIES`, is not a capability.
Nothing is imported until `load` asks for it, and only the module that is asked for.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from types import ModuleType
from typing import Any

from zeropoint.errors import InputError


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the capabilities in the folder `kind` ("rounding", "qparams.ranges", ...), sorted."""
    package = importlib.import_module(f"zeropoint.{kind}")
    hidden = getattr(package, "NOT_CAPABILITIES", ())
    stems = (f.name[:-3] for f in resources.files(package).iterdir() if f.name.endswith(".py"))
    return tuple(sorted(s for s in stems if not s.startswith("_") and s not in hidden))


@cache
def choices(kind: str) -> tuple[str, ...]:
    """Return what `load` finds for `kind`, sorted: what is in its folder, and in the one that this names as ALSO."""
    also = _also(kind)
    return names(kind) if also is None else tuple(sorted((*names(kind), *names(also))))


def load(kind: str, name: str, *, error: type[InputError] = InputError) -> ModuleType:
    """Import and return the capability `name` of the folder `kind`, or of the folder that it names as ALSO.

    Raises: `error`, naming the ones that exist and the nearest of them, when there is no such file.
    """
    known = choices(kind)
    if name not in known:
        raise error(
            f"no {kind.replace('.', ' ')} is called {name!r}; there are {', '.join(known)}{nearest(name, known)}"
        )
    return importlib.import_module(f"zeropoint.{kind if name in names(kind) else _also(kind)}.{name}")


@cache
def constant(kind: str, name: str, constant: str) -> Any:
    """Return what a literal at the top of a capability's file is, without importing it: what says so may import torch.

    Raises: KeyError if it is not there as a literal.
    """
    folder = kind if name in names(kind) else _also(kind)
    file = resources.files(f"zeropoint.{folder}") / f"{name}.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.expr() as value) if found == constant:
                break
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == constant:
                break
    else:
        raise KeyError(f"{kind}/{name}.py has no {constant}")
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise KeyError(f"{kind}/{name}.py has no literal {constant}") from None


def _also(kind: str) -> str | None:
    also: str | None = getattr(importlib.import_module(f"zeropoint.{kind}"), "ALSO", None)
    return also


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known word most like `word`, or "" when none is near."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
