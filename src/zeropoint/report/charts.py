"""The charts of a page as Vega-Lite, made by Altair, and the JavaScript that draws them, which is part of the page.

A chart of a layer is described once; the page's script puts the bars of the layer that is opened into it. Colours are
words of the page's style sheet, so that light, dark and paper need no second chart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from zeropoint.evaluation.results import Bar

COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (10, 4), (1, 3))
"""What tells several models apart: a colour and a dash of their own."""

HEIGHT = 190
"""Of a chart, in pixels; its width is that of its place."""


@cache
def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed in one text, 0.9 MB, for the version of Altair's specifications."""
    import altair
    import vl_convert

    major, minor = altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2]
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=f"{major}.{minor}")
    return bundle.replace("\r\n", "\n")


def of_values(title: str) -> dict[str, Any]:
    """Return the histogram of values, waiting for its bars: low, high, count; from, to: where a tail really ends.

    title: of the axis of values.
    """
    import altair

    axis = altair.Axis(format="~g", tickCount=6)
    powers = [0, *(10**power for power in range(13))]
    # each in its own unit: by itself the axis gives all of them that of the largest, 0k, 0k, 10k
    count = altair.Axis(values=powers, labelExpr="format(datum.value, '~s')")
    return _finished(
        altair.Chart(altair.NamedData(name="bars"))
        .mark_bar(color=COLOURS[0], binSpacing=0)
        .encode(
            x=altair.X("low:Q", bin="binned", title=title, axis=axis),
            x2=altair.X2("high:Q"),
            opacity=altair.condition("datum.tail", altair.value(0.5), altair.value(1)),
            y=altair.Y("count:Q", title="how many, log scale", scale=altair.Scale(type="symlog"), axis=count),
            tooltip=[
                altair.Tooltip("from:Q", title="from", format=".4g"),
                altair.Tooltip("to:Q", title="to", format=".4g"),
                altair.Tooltip("count:Q", title="how many", format=","),
            ],
        )
    )


def of_codes() -> dict[str, Any]:
    """Return how often each code is used, waiting for its bars: low, high, the code between them, share."""
    import altair

    return _finished(
        altair.Chart(altair.NamedData(name="bars"))
        .mark_bar(color=COLOURS[1], binSpacing=1)
        .encode(
            x=altair.X("low:Q", bin="binned", title="code", axis=altair.Axis(format="d", tickMinStep=1)),
            x2=altair.X2("high:Q"),
            y=altair.Y("share:Q", title="share of the weights, %", axis=altair.Axis(format="~r", tickCount=4)),
            tooltip=[
                altair.Tooltip("code:Q", title="code", format="d"),
                altair.Tooltip("share:Q", title="%", format=".3g"),
            ],
        )
    )


def of_divergence(models: Sequence[tuple[str, Sequence[Bar]]]) -> dict[str, Any]:
    """Return how the KL of tokens is spread, by model: bars of one, steps of several. KL in nats, on a log scale."""
    import altair

    names = [name for name, _ in models]
    values = [value for name, bars in models for value in _shares(name, bars)]
    data = altair.InlineData(values=values if len(models) == 1 else [*_stepped(values)])
    powers = altair.Axis(format="~g", values=[10.0**power for power in range(-15, 4)])
    log = altair.Scale(type="log", nice=False)
    x = altair.X("low:Q", scale=log, title="KL of a token, nats, log scale", axis=powers)
    y = altair.Y("share:Q", title="share of the tokens, %", axis=altair.Axis(format="~r", tickCount=5))
    tooltip = [
        altair.Tooltip("low:Q", title="from, nats", format=".3g"),
        altair.Tooltip("high:Q", title="to, nats", format=".3g"),
        altair.Tooltip("share:Q", title="%", format=".3g"),
    ]
    if len(models) == 1:
        mark = altair.Chart(data).mark_bar(color=COLOURS[0], binSpacing=0)
        return _finished(mark.encode(x=x, x2=altair.X2("high:Q"), y=y, y2=altair.Y2Datum(0), tooltip=tooltip))
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(names))]
    dashes = [list(DASHES[index % len(DASHES)]) for index in range(len(names))]
    legend = altair.Legend(title=None, orient="top", columns=1, labelLimit=320, symbolSize=400)
    return _finished(
        altair.Chart(data)
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=altair.Color("model:N", scale=altair.Scale(domain=names, range=colours), legend=legend),
            strokeDash=altair.StrokeDash("model:N", scale=altair.Scale(domain=names, range=dashes), legend=legend),
            tooltip=tooltip,
        )
    )


def _shares(name: str, bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Return the bars of one model for a logarithmic axis: one that begins at 0 begins a step lower than it ends."""
    total = sum(bar.count for bar in bars)
    factor = next((bar.high / bar.low for bar in bars if 0 < bar.low < bar.high), 10.0)
    return [
        {
            "model": name,
            "low": bar.low if bar.low > 0 else bar.high / factor,
            "high": bar.high,
            "share": float(f"{100 * bar.count / total:.4g}"),
        }
        for bar in bars
        if bar.high > 0 and total > 0 and math.isfinite(bar.high / factor)
    ]


def _stepped(values: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the bars of several models as points of a line that steps: it ends at the end of the last bar."""
    for index, value in enumerate(values):
        yield value
        if index + 1 == len(values) or values[index + 1]["model"] != value["model"]:
            yield value | {"low": value["high"]}


def _finished(chart: Any) -> dict[str, Any]:
    """Return the specification with what all charts have in common: width, fonts, colours."""
    import altair

    plain = {"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"}
    lines = {"gridColor": "var(--line)", "domainColor": "var(--line)", "tickColor": "var(--line)"}
    finished = (
        chart.properties(width="container", height=HEIGHT, background="transparent")
        .properties(autosize=altair.AutoSizeParams(type="fit-x", contains="padding"))
        .configure(font="system-ui, sans-serif", aria=False)
        .configure_view(stroke=None)
        .configure_axis(**plain, **lines, labelFontSize=12, titleFontSize=12)
        .configure_legend(labelColor="currentColor", labelFontSize=12)
    )
    spec: dict[str, Any] = finished.to_dict()
    return spec
