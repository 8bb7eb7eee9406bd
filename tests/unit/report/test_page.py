"""The page of `zeropoint report`: what it says, what it holds, and that nothing gets into it but text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

import zeropoint
from child import run_python
from tiny import quantized
from unit.evaluation.made import benchmark, evaluation, quantization
from unit.report import pages
from zeropoint.errors import InputError, OutputError
from zeropoint.evaluation.budgets import BUDGET
from zeropoint.evaluation.results import BENCH, MANIFEST, RECORD, RESULTS, Bar, LayerRow, QuantizeResult
from zeropoint.report import charts, layers, page
from zeropoint.report.figures import share, steps, token
from zeropoint.report.page import write_report

MOST_BYTES = 3_000_000
STUB = "window.vegaEmbed = () => Promise.resolve();"
VEGA = charts.javascript
TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title style body a header p h1 b nav ul li main noscript section h2 h3 h4 div span dl dt dd "
        "table caption thead tbody tr th td button figure article blockquote mark pre details summary dialog script",
    )
)


@dataclass
class Parsed(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    tags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str, str | None]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)
    """aria-label of each place of the map, by the number of the layer that it opens."""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        given = dict(attrs)
        if "aria-label" in given and "data-layer" in given:
            self.places[int(str(given["data-layer"]))] = str(given["aria-label"])
        if tag == "script":
            self.scripts.append("")
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is read, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    @property
    def layers(self) -> dict[str, str]:
        """aria-label of each place of the map, by the name of its layer."""
        return {self.data["names"][number]: label for number, label in self.places.items()}

    @property
    def data(self) -> Any:
        """What the page's scripts read."""
        return json.loads(self.scripts[0])


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Vega, which takes seconds to bundle."""
    monkeypatch.setattr(charts, "javascript", lambda: STUB)


def parsed(content: str) -> Parsed:
    found = Parsed()
    found.feed(content)
    return found


def written(folders: list[Path], file: Path) -> Parsed:
    return parsed(write_report(folders, output=file).read_text(encoding="utf-8"))


@pytest.fixture
def full(tmp_path: Path) -> Parsed:
    folder = pages.folder(tmp_path / "full", pages.record(), pages.judged(), everything=True)
    return written([folder], tmp_path / "full.html")


SHOWN = {
    "verdict": [
        "INCONCLUSIVE",
        "The perplexity is 1.0123 times",
        "30,660 tokens in 60 windows of 512, of held-out.txt",
    ],
    "budget": [
        "Budget: KEPT",
        "the promise of 1 % is kept",
        "Asked: perplexity at most 0.01 higher (1.00%)",
        "0.0094 to 0.0108",
        "+0.72% to +0.94%",
    ],
    "size": ["113.1 MB", "269.1 MB", "x0.420", "16.000", "4.250", "16.001", "6.727", "their scales", "3.3 MB"],
    "losses": [
        "KL, nats per token",
        "0.0123",
        "95 %: 0.0110 to 0.0137",
        "x1.0123",
        "95 %: x1.0061 to x1.0185",
        "93.1 %",
        "95 %: 92.5 % to 93.7 %",
        "15.493",
        "15.684",
    ],
    "speed": [
        "decoding, tokens per s",
        "271.5 (260.0 to 280.4)",
        "135.8 (130.0 to 140.2)",
        "x2.00 (1.95 to 2.04)",
        "prefill, tokens per s",
        "5,501.2 (5,433.1 to 5,610.9)",
        "150.0 MB",
        "300.0 MB",
        "0.50 s",
        "medians of 5 runs in turns, 2 threads, amx",
    ],
    "tokens": ["99 % of the tokens are below", "0.0921 nats", "1.7500 nats", "4.2e-04 nats", "7,900", "2.5e-06"],
    "passages": [
        "1.75 nats at window 3, token 101",
        "61.2 %",
        "18.7 %",
        "44.1 %",
        "\u00b7the",
        "a tuple of the options\u21b5 and the rest.",
        "float goes on",
        "quantized goes on",
    ],
    "calibration": [
        "Calibrated on 128 x 512 tokens of calibration.txt",
        "differ by 3.6 % in the median input and by 4.0 % in the worst",
        "4 times as many windows would halve that",
    ],
    "plan": ["1.0 GB", "1.1 GB", "x1.10", "1 min 32 s", "1 min 43 s", "x1.12", "1 min 20 s", "Verified:", "94 tensors"],
    "gains": ["0.4630 nats", "0.1590 nats", "x0.34", "1 min 01 s", "2,048 tokens that no method has learned from"],
    "fallbacks": ["1 fallback in 28 layers:", "model.layers.0.mlp.up_proj: rtn: the Hessian is not definite"],
    "again": [
        "zeropoint quantize SmolLM2-135M --output SmolLM2-w4 --recipe recipe.toml",
        'name = "w4a16"',
        "ab" * 32,
        "cd" * 32,
        "ef" * 32,
        "01" * 32,
        "2.13.0",
        "AMD EPYC, 2 cores, Linux x86_64",
    ],
}


@pytest.mark.parametrize("section", SHOWN)
def test_what_is_known_is_shown_with_its_unit(section: str, full: Parsed) -> None:
    assert [figure for figure in SHOWN[section] if figure not in full.text] == []


def test_a_model_that_nobody_has_judged_says_how_to_judge_it(tmp_path: Path) -> None:
    folder = pages.folder(tmp_path / "a b", quantization(2))
    text = written([folder], tmp_path / "bare.html").text
    assert f"NOT JUDGED What this model lost has not been measured: zeropoint evaluate '{folder}' --reference" in text
    assert f"zeropoint bench '{folder}' --against SmolLM2-135M --json > '{folder / BENCH}'" in text
    assert "Not measured yet: `zeropoint evaluate` measures it." in text
    assert "No passages are kept" in text
    assert "is not known: it takes two windows, and a version that keeps it" in text
    assert "It took 1 min 43 s and 1.1 GB of memory at most; nothing was planned." in text
    assert "The stages were not told apart" in text
    assert "8 layers without histograms" in text
    assert "Budget" not in text


def test_an_evaluation_from_before_the_distribution_was_kept_says_so(tmp_path: Path) -> None:
    found = written([pages.folder(tmp_path / "old", pages.record(), evaluation())], tmp_path / "old.html")
    assert "It was evaluated before the distribution was kept" in found.text
    assert found.data["charts"]["divergence"] is None


@pytest.mark.parametrize(
    ("verdict", "symbol"), [("EQUIVALENT", "\u2714"), ("DEGRADED", "\u2718"), ("INCONCLUSIVE", "?")]
)
def test_a_verdict_is_a_word_and_a_sign(verdict: str, symbol: str, tmp_path: Path) -> None:
    folder = pages.folder(tmp_path / "m", quantization(1), evaluation(verdict=verdict))
    assert f"{symbol} {verdict}" in written([folder], tmp_path / "m.html").text


def test_a_real_output_has_a_page_and_what_the_page_reads_may_lie_beside_it(tmp_path: Path) -> None:
    folder = quantized(tmp_path)
    benchmark().save(folder / BENCH)
    pages.budgeted().save(folder / BUDGET)
    assert zeropoint.verify(folder).problems == ()
    found = written([folder], tmp_path / "p.html")
    assert set(found.layers) == {each.name for each in QuantizeResult.load(folder / RECORD).layers}
    assert re.search(r"Verified: a fresh process read it back: [0-9]+ tensors", found.text)


# The layers


def test_the_map_has_a_place_for_each_kind_and_block_and_names_the_worst(full: Parsed) -> None:
    record = pages.record()
    assert set(full.layers) == {row.name for row in record.layers}
    worst = max(record.layers, key=lambda row: row.output_error or 0)
    assert [name for name, label in full.layers.items() if "the largest of all" in label] == [worst.name]
    assert full.layers[worst.name].startswith("1.9\u25b2; ")
    assert f"{worst.name}: 1.9 % of the output lost" in full.layers[worst.name]
    assert full.layers["model.layers.0.mlp.up_proj"].endswith("with a fallback")


def test_colours_are_shared_by_all_maps_and_follow_the_error() -> None:
    records = [pages.record(2), pages.record(3, seed=4)]
    scale = layers.scale_of(records, of_output=True)
    errors = sorted(row.output_error or 0 for record in records for row in record.layers)
    assert (scale.low, scale.high) == (errors[0], errors[-1])
    levels = [scale.level(error) for error in errors]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, layers.LEVELS - 1)
    for level, end in enumerate(scale.ends()):
        assert scale.level(end * 1.001) == level


def test_without_output_errors_the_map_shows_those_of_the_weights(tmp_path: Path) -> None:
    rows = tuple(msgspec.structs.replace(row, output_error=None) for row in pages.layers(2))
    record = msgspec.structs.replace(pages.record(2), layers=rows)
    found = written([pages.folder(tmp_path / "m", record)], tmp_path / "m.html")
    assert "Error of the weight, %" in found.text
    assert "1.6 % of the weight lost" in found.layers["model.layers.0.self_attn.q_proj"]  # 18 dB


def test_experts_share_a_place_which_shows_the_worst() -> None:
    rows = [row("model.layers.0.mlp.experts.0.up_proj", 0.01), row("model.layers.0.mlp.experts.1.up_proj", 0.02)]
    rows += [row("model.layers.1.mlp.experts.0.up_proj", 0.001), row("lm_head", 0.001)]
    record = msgspec.structs.replace(quantization(1), layers=tuple(rows))
    found = layers.map_of(record, layers.scale_of([record], of_output=True), of_output=True)
    assert found.blocks == ("", "0", "1")
    assert found.many
    kinds = dict(found.rows)
    assert list(kinds) == ["mlp.experts.up_proj", "lm_head"]
    tile = kinds["mlp.experts.up_proj"][1]
    assert tile is not None
    assert tile.layer == "model.layers.0.mlp.experts.1.up_proj"
    assert tile.label.endswith("the largest of all; the worst of 2")
    assert [place is None for place in kinds["lm_head"]] == [False, True, True]


def row(name: str, error: float) -> LayerRow:
    return msgspec.structs.replace(pages.layers(1)[0], name=name, kind=name.rpartition(".")[2], output_error=error)


def test_a_layer_tells_what_it_is_and_why(full: Parsed) -> None:
    found = full.data["models"][0]["layers"]
    facts = dict(found["model.layers.0.self_attn.q_proj"]["facts"])
    assert facts["shape"] == "576 x 1536, outputs x inputs"
    assert facts["range rule"] == "mse, as the recipe says for all layers"
    assert facts["rounding"] == "gptq, as the recipe says for all layers"
    assert facts["SQNR of the weight"] == "18.0 dB"
    assert facts["error of the output"] == "0.020 % of its square, a signal-to-noise ratio of 37.0 dB"
    assert facts["transform smoothquant"] == "strength 0.65"
    assert facts["refinement descent"] == "error of the block from 0.0123 to 0.0071 in 40 steps"
    assert facts["fallback"] == "none"
    down = dict(found["model.layers.1.mlp.down_proj"]["facts"])
    assert down["range rule"] == "minmax, as the recipe's rule for *.down_proj says"
    assert "transform smoothquant" not in down
    fell = dict(found["model.layers.0.mlp.up_proj"]["facts"])
    assert fell["rounding"] == "rtn instead of gptq; see fallback"
    assert fell["fallback"] == "rtn: the Hessian is not definite"


def test_a_layer_brings_its_histograms_codes_and_loud_inputs(full: Parsed) -> None:
    spread = pages.spreading()
    found = full.data["models"][0]["layers"]["model.layers.0.self_attn.q_proj"]
    edges, counts = found["weights"]
    assert counts == [bar.count for bar in spread.weights]
    assert edges[0] == pytest.approx(spread.weights[0].low, rel=1e-3)
    assert len(edges) == len(counts) + 1
    assert found["codes"] == [-8, list(spread.codes)]
    assert found["inputs"][1] == [bar.count for bar in spread.inputs]
    assert found["loud"][0] == ["17", "x43.2"]
    assert found["lost"] == [["0.012 %", "0.46 %"], pytest.approx(0.000123 / (0.000123 + 0.00456))]


def test_what_only_some_layers_have_is_told_of_them() -> None:
    more = {
        "input_scheme": "int8 token",
        "input_fallback": "static inputs would cost 3 %",
        "input_error": 0.03,
        "bias_shift": 0.0123,
        "outlier_columns": 12,
        "sent_tokens": 40,
        "from_all": True,
        "sqnr_db": None,
    }
    record = msgspec.structs.replace(
        quantization(1), layers=(msgspec.structs.replace(pages.layers(1)[0], **more),), recipe={"of": "another version"}
    )
    facts = dict(next(iter(layers.details(record).values()))["facts"])
    assert facts["input"] == "int8 token"
    assert facts["error of a static input"] == "3.0 % of the output's square"
    assert facts["bias corrected"] == "by 0.0123 at most"
    assert facts["columns that stay float"] == "12 of 1,536"
    assert facts["calibration tokens sent to it"] == "40; its statistics are of all tokens, as these are too few"
    assert facts["SQNR of the weight"] == "nothing was lost"
    assert facts["fallback"] == "static inputs would cost 3 %"
    assert facts["rounding"] == "gptq"
    assert "range rule" not in facts


def test_of_very_many_layers_those_that_lost_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LAYERS_SHOWN", 3)
    record = pages.record(2)
    worst = sorted(record.layers, key=lambda each: each.output_error or 0)[-3:]
    assert set(layers.details(record)) == {each.name for each in worst}
    assert layers.table_of(record).caption == "The 3 layers that lost most"


# Several


def test_several_models_stand_side_by_side_with_differences(tmp_path: Path) -> None:
    first = pages.folder(tmp_path / "four", pages.record(), pages.judged(), everything=True)
    lost = {
        "kl_mean": 0.0444,
        "kl_interval95": (0.041, 0.0478),
        "top1_agreement": 0.93,
        "top1_interval95": (0.92, 0.94),
    }
    lost |= {"perplexity_ratio": 1.06, "ratio_interval95": (1.05, 1.07)}
    second = pages.folder(tmp_path / "three", pages.record(bits=3, seed=1), pages.judged(**lost))
    found = written([first, second], tmp_path / "both.html")
    text = found.text
    assert "0.0123 (0.0110 to 0.0137) 0.0444 (0.0410 to 0.0478)" in text
    assert "three against four" in text
    assert "size +0 B (x1.000) exact the same" in text
    assert "KL, nats per token +0.03206 +0.02733 to +0.03679 worse" in text
    assert "perplexity x1.0471 x1.0309 to x1.0635 worse" in text
    assert "percentage points -0.12 -1.73 to +1.49 cannot be told apart" in text
    assert "at least 95 % of the cases" in text
    assert "Median over the blocks of the error of the output" in text
    assert [model["name"] for model in found.data["models"]] == ["four", "three"]
    legend = found.data["charts"]["divergence"]["encoding"]
    assert legend["color"]["scale"]["domain"] == legend["strokeDash"]["scale"]["domain"] == ["four", "three"]


def test_models_judged_on_different_texts_are_not_subtracted(tmp_path: Path) -> None:
    other = msgspec.structs.replace(evaluation().text, sha256="00" * 32)
    first = pages.folder(tmp_path / "a", quantization(1), evaluation())
    second = pages.folder(tmp_path / "b", quantization(1), evaluation(text=other))
    third = pages.folder(tmp_path / "c", quantization(1))
    text = written([first, second, third], tmp_path / "p.html").text
    assert "b against a: They were judged on different texts or windows" in text
    assert "c against a: only what both were judged by can be subtracted" in text
    assert "at least 95 % of the cases" not in text


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [pages.folder(tmp_path / place / "w4", quantization(1)) for place in ("a", "b")]
    found = written(folders, tmp_path / "p.html")
    assert [model["name"] for model in found.data["models"]] == ["w4 (1)", "w4 (2)"]


def test_one_window_has_no_interval_and_neither_has_the_difference(tmp_path: Path) -> None:
    alone = evaluation(ratio_interval95=None, kl_interval95=None, top1_interval95=None)
    folders = [pages.folder(tmp_path / name, quantization(1), alone) for name in "ab"]
    assert "KL, nats per token +0 - no interval: one window" in written(folders, tmp_path / "p.html").text


# One file that asks for nothing


def test_the_page_of_32_layers_is_small_and_holds_vega(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "javascript", VEGA)
    folder = pages.folder(tmp_path / "m", pages.record(32, bits=8), pages.judged(), everything=True)
    file = write_report(folder, output=tmp_path / "m.html")
    assert file.stat().st_size < MOST_BYTES
    found = parsed(file.read_text(encoding="utf-8"))
    assert len(found.data["models"][0]["layers"]) == 224
    bundle = found.scripts[1]
    assert "vegaEmbed" in bundle
    assert len(bundle) > 500_000
    require_closed(found)


def require_closed(found: Parsed) -> None:
    """Nothing but the page's own scripts runs, and nothing is fetched."""
    assert found.tags <= TAGS, found.tags - TAGS
    assert [each for each in found.attributes if each[1].startswith("on")] == []
    fetched = {"src", "srcset", "action", "formaction", "data", "poster", "background", "ping"}
    assert [each for each in found.attributes if each[1] in fetched] == []
    assert {value for _, name, value in found.attributes if name == "href" and not str(value).startswith("#")} == set()
    assert len(found.scripts) == 3
    policy = next(str(value) for tag, name, value in found.attributes if tag == "meta" and "default-src" in str(value))
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found.scripts[1:]]
    assert policy.startswith("default-src 'none'; script-src " + " ".join(f"'sha256-{each}'" for each in hashes) + ";")
    assert "<" not in found.scripts[0]


def test_the_style_fetches_nothing_and_has_dark_and_paper() -> None:
    style = (page.TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style
    for needed in ("prefers-color-scheme: dark", "@media print", ":focus-visible"):
        assert needed in style


def test_no_torch_is_imported_for_a_page(tmp_path: Path) -> None:
    folder = pages.folder(tmp_path / "m", quantization(1), evaluation())
    code = f"""
import sys
import zeropoint
from zeropoint.report import charts
charts.javascript = lambda: ""
zeropoint.write_report({str(folder)!r}, output={str(tmp_path / "m.html")!r})
print("torch" in sys.modules, "numpy" in sys.modules)
"""
    assert run_python(code).startswith("False")


# Hostile files

KEPT_WORDS = ("result", "verdict", "kept", "activations", "stage", "role")
"""Keys whose texts are a closed choice, or a tag: other texts are refused when they are read."""


def poisoned(value: object, key: str = "") -> object:
    """The document with every text replaced by a hostile one that still tells where it stood."""
    match value:
        case str() if key not in KEPT_WORDS:
            return f"{key}{pages.HOSTILE}"
        case dict():
            return {f"{name}": poisoned(item, name) for name, item in value.items()}
        case list():
            return [poisoned(item, key) for item in value]
        case _:
            return value


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = pages.folder(tmp_path / "<img src=x onerror=alert(1)>", pages.record(2), pages.judged(), everything=True)
    for name in (RECORD, RESULTS, BENCH, BUDGET, MANIFEST):
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(poisoned(document)), encoding="utf-8")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    for index, each in enumerate(record["layers"]):
        each["name"] = f"model.layers.{index}.{pages.HOSTILE}"
    record["recipe"] |= {pages.HOSTILE: pages.HOSTILE, "__proto__": {"x": [None]}}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_hostile_files_become_text(hostile: Path, tmp_path: Path) -> None:
    file = write_report([hostile, hostile], output=tmp_path / "p.html")
    content = file.read_text(encoding="utf-8")
    found = parsed(content)
    require_closed(found)
    assert "<img" not in content
    assert "<!--" not in content
    assert content.count("</script>") == 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202e]", content)
    assert "{{7*7}}" in found.text
    assert "49{% x %}" not in found.text
    assert "</script><img src=x onerror=alert(1)>{{7*7}}" in found.text
    names = found.data["models"][0]["layers"]
    assert sorted(names) == sorted(f"model.layers.{index}.{pages.HOSTILE}" for index in range(14))


def test_json_in_a_script_ends_nothing_and_says_the_same() -> None:
    text = page.as_json({pages.HOSTILE: [pages.HOSTILE, 1.5, None]})
    assert not set("<>&\u2028\u2029\x00") & set(text)
    assert json.loads(text) == {pages.HOSTILE: [pages.HOSTILE, 1.5, None]}


def test_numbers_that_make_no_sense_make_no_page_fail(tmp_path: Path) -> None:
    record = pages.record(1)
    nothing = msgspec.structs.replace(record.size, **dict.fromkeys(("total_bytes", "linear_bytes", "code_bytes"), 0))
    bars = (Bar(low=5.0, high=-5.0, count=-3), Bar(low=0.0, high=0.0, count=0))
    spread = msgspec.structs.replace(pages.spreading(), weights=bars, codes=(), clipped_error=-1.0, rounded_error=0.0)
    rows = tuple(
        msgspec.structs.replace(each, spreading=spread, output_error=-1.0, sqnr_db=1e300) for each in record.layers
    )
    record = msgspec.structs.replace(record, size=nothing, source_bytes=0, layers=rows, elapsed_s=-1e300)
    found = pages.judged(perplexity_ratio=0.0, ratio_interval95=(-1.0, 0.0), kl_mean=-1e300, size=nothing)
    found = msgspec.structs.replace(found, kl_bars=bars, size_reference=nothing)
    folders = [pages.folder(tmp_path / name, record, found, everything=True) for name in "ab"]
    require_closed(written(folders, tmp_path / "p.html"))


# What is refused


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        write_report(tmp_path / "nowhere", output=tmp_path / "p.html")
    with pytest.raises(InputError, match="no folder is given"):
        write_report([], output=tmp_path / "p.html")


def test_a_folder_without_a_record_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no zeropoint\.json; a report is of a folder"):
        write_report(tmp_path, output=tmp_path / "p.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [RECORD, RESULTS, BENCH, BUDGET, MANIFEST])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"result": "other"}', b"\xff\xfe", b'{"a": "\\ud800"}'])
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    folder = pages.folder(tmp_path / "m", quantization(1), evaluation(), everything=True)
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(name)}: .*make it again"):
        write_report(folder, output=tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_a_page_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    folder, file = pages.folder(tmp_path / "m", quantization(1)), tmp_path / "p.html"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists; remove it"):
        write_report(folder, output=file)
    assert file.read_text(encoding="utf-8") == "mine"
    write_report(folder, output=file, overwrite=True)
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m", "p.html"]


@pytest.mark.parametrize(("output", "said"), [("m", "is a folder"), ("none/p.html", "is not there; make it")])
def test_a_page_has_to_be_a_file_in_a_folder(output: str, said: str, tmp_path: Path) -> None:
    folder = pages.folder(tmp_path / "m", quantization(1))
    with pytest.raises(OutputError, match=said):
        write_report(folder, output=tmp_path / output, overwrite=True)


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    folder = pages.folder(tmp_path / "m", quantization(1))
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OutputError, match="no space left"):
        write_report(folder, output=tmp_path / "p.html")
    assert [each.name for each in tmp_path.iterdir()] == ["m"]


# Figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (0.1234, "12.3 %"),
        (0.001, "0.10 %"),
        (0.0000213, "0.0021 %"),
        (1e-12, "1.0e-10 %"),
        (2.5, "250.0 %"),
        (-0.01, "-1.0 %"),
        (1e307, "1.0e+307 times"),
    ],
)
def test_a_share_has_two_digits_at_least(value: float, text: str) -> None:
    assert share(value) == text


def test_gaps_between_bars_are_bars_of_nothing() -> None:
    bars = (Bar(low=0.0, high=1.0, count=3), Bar(low=2.0, high=3.00001, count=4))
    assert steps(bars) == ([0.0, 1.0, 2.0, 3.0], [3, 0, 4])
    assert steps(()) == ([], [])


def test_a_token_shows_what_cannot_be_seen() -> None:
    assert token(" a\n\tb\x00\u202e") == "\u00b7a\u21b5\u21e5b\ufffd\ufffd"


def test_the_first_bar_of_a_logarithmic_axis_begins_a_step_lower() -> None:
    bars = (Bar(low=0.0, high=1e-4, count=1), Bar(low=1e-4, high=1e-3, count=3))
    values = next(iter(charts.of_divergence([("m", bars)])["datasets"].values()))
    assert [(value["low"], value["high"], value["share"]) for value in values] == [
        (pytest.approx(1e-5), 1e-4, 25.0),
        (1e-4, 1e-3, 75.0),
    ]


def test_several_distributions_are_lines_that_end_where_the_last_bar_does() -> None:
    bars = (Bar(low=1e-4, high=1e-3, count=1), Bar(low=1e-3, high=1e-2, count=3))
    values = next(iter(charts.of_divergence([("a", bars), ("b", bars)])["datasets"].values()))
    assert [(value["model"], value["low"]) for value in values] == [
        (model, low) for model in "ab" for low in (1e-4, 1e-3, 1e-2)
    ]
