"""The page about a run as a reader has it: in a browser, by mouse and by keyboard, on a phone and on paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2ialign.report import page as report
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
CSS = Path(report.__file__).parent / "templates" / "report.css"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, toy_spec, tmp_path_factory) -> Iterator:
    """One finished toy run's page; at the end, nothing was asked of a network and no script failed."""
    file = tmp_path_factory.getbasetemp() / "in-a-browser" / "spec" / "report.html"
    if not file.exists():
        path = toy_spec(
            run={"steps": 9, "out": str(file.parents[1])},
            reward=[{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}],
            evaluation={"every": 3, "images_per_prompt": 2},
            samples={"every": 3, "count": 3},
        )
        runner.start(specs.load(path), Display(quiet=True))
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    wrong, asked = [], []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert wrong == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def test_every_width_shows_everything_and_a_phone_has_cards(page):
    for width in (360, 800, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 360, "height": 800})
    cells = page.locator("#compared tbody tr").first.locator("td[data-label]")
    lefts = {round(cells.nth(i).bounding_box()["x"]) for i in range(cells.count())}
    assert len(lefts) == 1, "one under the other"
    label = cells.first.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert label == '"base"'
    assert all(box["width"] > 90 for box in map(_box, page.locator(".tiles:visible img").all()))


def test_a_picture_is_enlarged_by_mouse_and_by_keyboard(page):
    first = page.locator("#compared .pair img").first
    small = first.bounding_box()["width"]
    first.click()
    large = page.locator("dialog img")
    assert large.bounding_box()["width"] > 2 * small
    assert "base: red (toy-redness" in page.locator("dialog").inner_text()
    page.keyboard.press("ArrowRight")
    assert "tuned: red (toy-redness" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    assert not large.is_visible()
    page.keyboard.press("Enter")  # the focus is where the reader left
    assert "tuned: red" in page.locator("dialog").inner_text()
    page.locator("dialog").get_by_text("close").click()
    assert not large.is_visible()


def test_tuned_lies_over_base_as_far_as_the_slider_says(page):
    pair = page.locator(".pair").first
    base, tuned = pair.locator(".base"), pair.locator(".tuned")
    assert base.bounding_box()["x"] < tuned.bounding_box()["x"]
    page.get_by_text("lay tuned over base").click()
    assert base.bounding_box() == tuned.bounding_box()
    pair.locator("input").fill("30")
    assert tuned.evaluate("one => getComputedStyle(one).clipPath") == "inset(0px 0px 0px 30%)"
    page.emulate_media(media="print")
    assert base.bounding_box()["x"] < tuned.bounding_box()["x"], "paper has no slider"


def test_the_slider_shows_one_grid_below_the_base(page):
    grids = page.locator("#samples figure")
    assert [grid.is_visible() for grid in grids.all()] == [True, False, False, True]
    page.locator(".slider input").fill("0")
    assert [grid.is_visible() for grid in grids.all()] == [True, True, False, False]


def test_charts_are_read_zoomed_and_smoothed(page):
    chart = page.locator('svg[aria-label^="reward/toy-redness"]')
    output, plot = chart.locator("xpath=../figcaption/output"), chart.locator(".plot")
    whole, latest = plot.get_attribute("viewBox"), output.inner_text()
    chart.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert output.inner_text().startswith("step 8: ")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 40)
    page.mouse.up()
    other = page.locator('svg[aria-label^="evaluation/toy-redness"]')
    steps = [int(text) for text in chart.locator(".x-ticks text").all_text_contents()]
    assert 3 <= min(steps) <= max(steps) <= 8
    assert other.locator(".x-ticks text").all_text_contents() == [str(step) for step in steps], "all charts follow"
    assert float(plot.get_attribute("viewBox").split()[2]) < 0.6 * float(whole.split()[2])
    page.get_by_text("show all steps").click()
    assert plot.get_attribute("viewBox") == whole
    mean = chart.locator(".mean")
    before = mean.get_attribute("d")
    page.locator(".smoothing").fill("0")
    raw = chart.locator(".raw").get_attribute("d")
    numbers = [
        [float(n) for n in re.findall(r"[\d.]+", path.replace("h0", ""))] for path in (mean.get_attribute("d"), raw)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.3), "without smoothing the mean is the values"
    assert before != mean.get_attribute("d")
    chart.evaluate("one => one.blur()")
    page.mouse.move(0, 0)
    assert output.inner_text() == latest


def test_a_table_is_sorted_by_a_click_and_by_enter(page):
    head = page.locator("#compared thead th").nth(1)
    column = page.locator("#compared tbody tr td:nth-child(2)")
    values = [float(text) for text in column.all_inner_texts()]
    head.click()
    assert [float(text) for text in column.all_inner_texts()] == sorted(values, reverse=True)
    head.focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column.all_inner_texts()] == sorted(values)


def test_text_stands_out_from_its_ground_in_light_and_in_dark():
    """Contrast of at least 4.5 (WCAG 2.2, level AA)."""
    schemes = [
        dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", CSS.read_text(), re.S)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for text in ("ink", "soft", "accent", "second", "up", "down"):
            for ground in ("paper", "card"):
                light, dark = sorted(map(_luminance, (scheme[text], scheme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def _box(element) -> dict[str, float]:
    return element.bounding_box()


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (b / 255 for b in bytes.fromhex(digits))
    ]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
