"""The page of `zeropoint report` in Chromium: read, clicked through, used with the keyboard, printed.

Run by `make browser`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unit.report import pages
from zeropoint.report.page import write_report

pytestmark = pytest.mark.browser

A4_WIDTH = 718
"""Pixels between the margins of a sheet."""

SERIOUS = ("serious", "critical")
SCREENS = [("full", width, scheme) for width in (390, 1600) for scheme in ("light", "dark")]
SCREENS += [("both", 390, "dark"), ("both", 1600, "light"), ("bare", 390, "light"), ("hostile", 1600, "dark")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    full = pages.folder(root / "four", pages.record(30), pages.judged(), everything=True)
    short = pages.folder(root / "short", pages.record(8), pages.judged())
    three = pages.folder(root / "three", pages.record(8, bits=3, seed=2), pages.judged(verdict="DEGRADED"))
    bare = pages.folder(root / "bare")
    worst = pages.folder(root / "<img src=x onerror=alert(1)>", pages.poisoned(2), pages.judged())
    folders = {"full": [full], "both": [short, three], "bare": [bare], "hostile": [worst, short]}
    return {name: write_report(given, output=root / f"{name}.html") for name, given in folders.items()}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


Opens = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, files: dict[str, Path]) -> Iterator[Opens]:
    """Open a page; at the end of the test: the console was silent, and nothing but the page was asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(name: str, *, width: int = 1600, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(files[name].as_uri())
        return page

    yield open_page
    allowed = {file.as_uri() for file in files.values()}
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= allowed


def settled(page: Any) -> None:
    page.wait_for_function(
        "!document.querySelector('#divergence:not([hidden])') || document.querySelector('#divergence svg')"
    )


def open_layer(page: Any, layer: str) -> None:
    tile = page.locator(f'.tile[aria-label*="{layer}:"]').first
    tile.click()
    number = tile.get_attribute("data-layer")
    page.wait_for_function("number => document.getElementById('layer').dataset.drawn === number", arg=number)


@pytest.mark.parametrize(("name", "width", "scheme"), SCREENS)
def test_a_page_fits_its_screen_and_is_accessible(
    name: str, width: int, scheme: str, opened: Opens, tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(name, width=width, scheme=scheme)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    found = Axe().run(page).response["violations"]
    page.locator(".tile").first.click()
    page.wait_for_function("document.getElementById('layer').dataset.drawn !== undefined")
    assert page.evaluate("document.getElementById('layer').scrollWidth <= document.getElementById('layer').clientWidth")
    page.screenshot(path=tmp_path / "layer.png")
    found += Axe().run(page, context="#layer").response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS] == []


def test_every_link_leads_to_its_section(opened: Opens) -> None:
    page = opened("both")
    for link in page.locator("nav a").all():
        link.click()
        target = link.get_attribute("href")
        page.wait_for_function(
            "id => Math.abs(document.querySelector(id).getBoundingClientRect().top) < 900", arg=target
        )
        assert page.locator(target).is_visible()


def test_a_place_opens_its_layer_with_charts_and_closes(opened: Opens) -> None:
    page = opened("full")
    layer = "model.layers.3.mlp.down_proj"
    open_layer(page, layer)
    dialog = page.locator("#layer")
    assert dialog.locator("h2").inner_text() == layer
    assert dialog.locator("svg").count() == 3
    assert "minmax, as the recipe's rule for *.down_proj says" in dialog.inner_text()
    assert dialog.locator("svg .mark-rect path").count() > 100
    dialog.locator(".close").click()
    assert not dialog.is_visible()


def test_two_models_show_a_layer_side_by_side(opened: Opens) -> None:
    page = opened("both")
    open_layer(page, "model.layers.0.self_attn.q_proj")
    assert page.locator("#layer h3").all_inner_texts() == ["short", "three"]
    assert page.locator("#layer svg").count() == 6
    first, second = (part.bounding_box() for part in page.locator("#layer-body > div").all())
    assert first["y"] == second["y"]


def test_a_layer_without_histograms_says_so(opened: Opens) -> None:
    page = opened("bare")
    page.locator(".tile").first.click()
    assert "SQNR of the weight" in page.locator("#layer").inner_text()


def test_the_distribution_is_drawn_and_one_that_is_not_there_leaves_no_hole(opened: Opens) -> None:
    page = opened("full")
    settled(page)
    heights = page.locator("#divergence .mark-rect path").evaluate_all("all => all.map(each => each.getBBox().height)")
    assert len(heights) == 16
    assert max(heights) > 100
    assert min(heights) >= 0
    assert not opened("bare").locator("#divergence").is_visible()


def test_a_table_is_sorted_up_and_down_by_its_numbers(opened: Opens) -> None:
    page = opened("full")
    page.locator("summary", has_text="Every layer").click()
    table = page.locator("table", has=page.locator("caption", has_text="Every layer"))
    head = table.locator("th", has_text="output error")
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        values = [float(cell.get_attribute("data-v")) for cell in table.locator("tbody tr td:nth-child(7)").all()]
        assert len(values) == 210
        assert values == sorted(values, reverse=reverse)
    table.locator("thead button", has_text="layer").first.click()
    names = table.locator("tbody th").all_inner_texts()
    assert names.index("model.layers.2.mlp.up_proj") < names.index("model.layers.10.mlp.up_proj")
    assert table.locator("[aria-sort]").count() == 1


def test_all_can_be_done_with_the_keyboard(opened: Opens) -> None:
    page = opened("full")
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.className") == "skip"
    page.keyboard.press("Enter")
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(f"{focused}.matches('.tile')"):
            break
        stops.append(page.evaluate(f"{focused}.tagName"))
    else:
        raise AssertionError(f"no place of the map was reached: {stops}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # there is nothing above
    assert page.evaluate(f"{focused}.ariaLabel").count("model.layers.1.self_attn.q_proj:") == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('layer').open")
    assert page.locator("#h-layer").inner_text() == "model.layers.1.self_attn.k_proj"
    page.keyboard.press("Escape")
    assert not page.locator("#layer").is_visible()
    assert page.evaluate(f"{focused}.ariaLabel").count("model.layers.1.self_attn.k_proj:") == 1
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the summary of the table of layers
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("layer")


def test_hostile_names_stay_text_when_they_are_opened(opened: Opens) -> None:
    page = opened("hostile")
    settled(page)
    for tile in page.locator(".map").first.locator(".tile").all():
        tile.click()
        page.wait_for_function("document.getElementById('layer').open")
        assert "onerror=alert(1)" in page.locator("#h-layer").inner_text()
        page.locator("#layer .close").click()
    assert page.locator("img").count() == 0
    assert page.evaluate("Object.prototype.x === undefined")


def test_what_is_injected_would_be_stopped_by_the_policy(opened: Opens, chromium: Any, files: dict[str, Path]) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(files["bare"].as_uri())
    stopped: list[str] = []
    page.on("console", lambda message: stopped.append(message.text))
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in text for text in stopped)
    context.close()


def test_paper_is_light_and_shows_what_is_folded(opened: Opens, tmp_path: Path) -> None:
    page = opened("full", scheme="dark")
    settled(page)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    assert not page.locator("nav").is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.set_viewport_size({"width": A4_WIDTH, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_WIDTH
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    pdf = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert pdf.startswith(b"%PDF")


def test_without_scripts_the_tables_are_there(chromium: Any, files: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["full"].as_uri())
    assert "Scripts are off" in page.locator("noscript").inner_text()
    assert page.locator("table").count() > 12
    context.close()
