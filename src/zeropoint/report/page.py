"""`write_report`: one page for a model, or several side by side, from what is kept beside their weights alone.

    zeropoint.write_report("SmolLM2-w4", output="report.html")

The page is one file that asks for nothing: its style, its scripts and its numbers are in it, and a content security
policy lets nothing else run or be fetched. What stands in the files may be hostile; it enters the page as text that
jinja2 escapes, or as JSON in which no "<" is left, and the scripts only ever make text of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import zeropoint
from zeropoint.checkpoint.place import output_errors
from zeropoint.errors import OutputError
from zeropoint.report import charts, layers, sections
from zeropoint.report.figures import Table, plain, share
from zeropoint.report.made import Made, read
from zeropoint.report.side_by_side import side_by_side

TEMPLATES = resources.files("zeropoint.report") / "templates"

_AS_JSON = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
"""In JSON these characters stand in texts only, where an escape means the same."""


def write_report(outputs: str | Path | Sequence[str | Path], *, output: str | Path, overwrite: bool = False) -> Path:
    """Write the page of one folder that `quantize` has made, or of several side by side, and return its path.

    outputs: each with its zeropoint.json and, where they are there, results.json, budget.json, bench.json and
    zeropoint-manifest.json. output: the .html file, which appears when it is complete.
    Raises: InputError for a folder that is none, has no record or a damaged one; OutputError if the file is there
    already, or cannot be written.
    """
    folders = [outputs] if isinstance(outputs, str | Path) else outputs
    file = Path(output)
    require_free(file, overwrite=overwrite)
    write(file, page_of(read(folders)))
    return file


def require_free(file: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there already, a folder in its place, and a folder for it that is not there.

    Raises: OutputError.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a folder; give the name of an .html file")
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists; remove it, give another name, or ask to overwrite it")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file.absolute().parent} is not there; make it, or write the page elsewhere")


def write(file: Path, page: str) -> None:
    """Write the page; `file` has its former or its new content at any moment. Raises: OutputError."""
    content = page.encode()
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        with output_errors(file, needed=len(content)):
            partial.write_bytes(content)
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class View:
    """One model as the template asks for it, section by section."""

    made: Made
    index: int
    scale: layers.Scale
    of_output: bool

    @property
    def name(self) -> str:
        """What the page calls it."""
        return plain(self.made.name)

    @property
    def about(self) -> str:
        """What was made of what, by which recipe."""
        record = self.made.record
        return plain(f"{record.model}, quantized by recipe {record.recipe.get('name', 'custom')}")

    @cached_property
    def verdict(self) -> sections.Verdict:
        """What the evaluation says."""
        return sections.verdict(self.made)

    @cached_property
    def budget(self) -> tuple[sections.Verdict, Table] | None:
        """What was asked for, and whether it was kept."""
        return sections.budget(self.made)

    @cached_property
    def cards(self) -> tuple[sections.Card, ...]:
        """The figures at the top."""
        return sections.cards(self.made)

    @cached_property
    def beside(self) -> sections.Said:
        """Size, memory and speed."""
        return sections.beside(self.made)

    @cached_property
    def map(self) -> layers.Map:
        """Errors by kind and block."""
        return layers.map_of(self.made.record, self.scale, of_output=self.of_output)

    @cached_property
    def layers(self) -> Table:
        """Every layer."""
        return layers.table_of(self.made.record)

    @cached_property
    def about_layers(self) -> sections.Said:
        """Fallbacks and notes."""
        return sections.about_layers(self.made)

    @cached_property
    def divergence(self) -> sections.Said:
        """KL over the tokens."""
        return sections.divergence(self.made)

    @cached_property
    def passages(self) -> tuple[sections.Shown, ...]:
        """Where the models differ most."""
        return sections.passages(self.made)

    @cached_property
    def sufficiency(self) -> sections.Said:
        """Whether the calibration was long enough."""
        return sections.sufficiency(self.made)

    @cached_property
    def plan(self) -> sections.Said:
        """The plan and the outcome."""
        return sections.plan(self.made)

    @cached_property
    def gains(self) -> sections.Said:
        """What each stage was worth."""
        return sections.gains(self.made)

    @cached_property
    def recipe(self) -> sections.Recipe:
        """How to make it again."""
        return sections.reproduce(self.made)


def page_of(all_made: Sequence[Made]) -> str:
    """Return the page of some models as HTML."""
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    records = [made.record for made in all_made]
    of_output = layers.has_outputs(records)
    scale = layers.scale_of(records, of_output=of_output)
    views = [View(made, index, scale, of_output) for index, made in enumerate(all_made)]
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(lambda name: (TEMPLATES / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = list(dict.fromkeys(row.name for record in records for row in record.layers))
    scripts = [charts.javascript(), (TEMPLATES / "page.js").read_text(encoding="utf-8")]
    return environment.get_template("page.html").render(
        title=f"{' and '.join(view.name for view in views)}: what quantizing cost",
        views=views,
        numbers={name: number for number, name in enumerate(names)},
        several=side_by_side(all_made) if len(all_made) > 1 else None,
        legend=_legend(scale),
        measure="output" if of_output else "weight",
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        data=Markup(as_json(_data(views, names))),
        version=zeropoint.__version__,
    )


def as_json(value: object) -> str:
    """Return the value as JSON that may stand in a script element: nothing in it ends one, or begins a comment."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).translate(_AS_JSON)


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: these scripts and no other, styles of the page, and nothing is fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _legend(scale: layers.Scale) -> list[tuple[int, str]]:
    """Return the colours of the map, and from which error on each is used."""
    ends = scale.ends()
    if scale.low == scale.high:
        return [(0, share(scale.low))]
    return [(level, share(end)) for level, end in enumerate(ends)]


def _data(views: Sequence[View], names: Sequence[str]) -> dict[str, Any]:
    """Return what the scripts of the page read. names: of layers, which the page refers to by their places in it."""
    judged = [
        (view.name, view.made.evaluation.kl_bars)
        for view in views
        if view.made.evaluation is not None and view.made.evaluation.kl_bars
    ]
    return {
        "charts": {
            "weights": charts.of_values("weight"),
            "inputs": charts.of_values("value of the input"),
            "codes": charts.of_codes(),
            "divergence": charts.of_divergence(judged) if judged else None,
        },
        "names": names,
        "models": [{"name": view.name, "layers": layers.details(view.made.record)} for view in views],
    }
