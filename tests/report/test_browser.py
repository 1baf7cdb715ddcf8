"""The pages in a real browser: Chromium, from disk, with everything but the disk forbidden."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.test_nothing import CASES, evaluated
from vitp_pipeline.report.compare import compare, write_comparison
from vitp_pipeline.report.loaded_evaluation import open_evaluation
from vitp_pipeline.report.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]  # the module's pages are made once
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    found = os.environ.get("VITP_BROWSER") or next((p for p in map(shutil.which, NAMES) if p), None)
    if found is None:
        pytest.skip("needs Chromium (apt-get install chromium), or VITP_BROWSER naming one")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page opened from disk; what it complained of and asked for."""

    def __init__(self, browser, path: Path, **device: object) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | device)
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def see(self, selector: str) -> None:
        self.page.locator(selector).first.scroll_into_view_if_needed()

    def draw_everything(self) -> None:
        """Scrolls to every chart and waits until it is drawn."""
        for chart in self.page.locator(".chart:visible").all():
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for()

    def background(self) -> list[int]:
        """RGB of the page."""
        color = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return [int(v) for v in color.removeprefix("rgb(").rstrip(")").split(",")]

    def check(self) -> None:
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith(("file://", "data:", "blob:"))] == []

    def close(self) -> None:
        self.check()
        self.page.context.close()


@pytest.fixture(scope="module")
def opened(browser, page: Path) -> Iterator[Visit]:
    """The page, opened once: what a test changes the next one must not mind."""
    visit = Visit(browser, page)
    yield visit
    visit.close()


@pytest.fixture
def visit(opened: Visit) -> Iterator[Visit]:
    yield opened
    opened.check()


@pytest.mark.slow
def test_charts_are_drawn_and_classes_ordered(visit: Visit) -> None:
    visit.draw_everything()
    page = visit.page
    assert page.locator(".chart .main-svg").count() >= 10

    def order() -> list[str]:
        return page.evaluate("document.getElementById('class-bars').layout.yaxis.categoryarray")

    page.select_option("#order", "name")
    assert order() == ["car", "road", "sky"]
    page.select_option("#order", "manifest")
    assert order() == ["sky", "road", "car"]
    page.select_option("#measure", "PQ")
    assert page.evaluate("document.getElementById('class-bars').dataset.chart") == "classes:PQ"
    gains = page.evaluate("DATA.classes.measures.PQ.fused.map((f, i) => f - DATA.classes.measures.PQ.generator[i])")
    page.select_option("#order", "gain")
    names = ["sky", "road", "car"]
    assert order() == [names[i] for i in sorted(range(3), key=lambda i: -gains[i])]


@pytest.mark.slow
def test_tables_sort_both_ways_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.select_option("#measure", "IoU")
    page.locator("#classes summary").click()
    table = page.locator("#classes [data-measure=IoU] table")
    button = table.locator("th button").nth(3)
    button.focus()

    def values() -> list[float]:
        return [float(t) for t in table.locator("tbody td:nth-child(4)").all_inner_texts()]

    page.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True) and len(values()) == 3
    assert table.locator("th").nth(3).get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    assert table.locator("th").nth(3).get_attribute("aria-sort") == "ascending"


def test_gallery_loads_filters_and_explains(visit: Visit) -> None:
    page = visit.page
    cards = page.locator("article.card")
    assert cards.count() == 7
    visit.see("#gallery")
    page.locator("article.card[data-loaded]").first.wait_for()
    assert page.locator("#shown").inner_text() == "7 of 7 images"

    kinds = page.evaluate("DATA.gallery.map((card) => card.kind)")
    page.check("input[name=kind][value=improved]")
    assert page.locator("article.card:visible").count() == kinds.count("improved")
    page.check("input[name=kind][value=all]")
    page.check("#only-changed")
    for index in page.evaluate("[...document.querySelectorAll('#by-class option')].slice(1).map((o) => o.value)"):
        page.select_option("#by-class", index)
        wanted = page.evaluate(f"DATA.gallery.filter((card) => card.changed.includes({index})).length")
        assert page.locator("article.card:visible").count() == wanted
        assert page.locator("#shown").inner_text() == f"{wanted} of 7 images"
    page.select_option("#by-class", "")

    # a mask that changed, at a pixel where it lies on top
    spot = page.evaluate(
        """async () => {
          for (const [n, content] of DATA.gallery.entries()) {
            const card = new Card(content);
            await card.load();
            const m = content.masks.findIndex(changedMask), i = card.planes.top.indexOf(m);
            if (m >= 0 && i >= 0) return {n, mask: content.masks[m],
              x: ((i % card.width) + 0.5) / card.width, y: (Math.floor(i / card.width) + 0.5) / card.height};
          }
        }"""
    )
    view = cards.nth(spot["n"]).locator(".pane.fused .view")
    view.scroll_into_view_if_needed()
    page.locator("article.card[data-loaded]").nth(0).wait_for()
    cards.nth(spot["n"]).locator("canvas.map").first.wait_for()
    box = view.bounding_box()
    page.mouse.move(box["x"] + spot["x"] * box["width"], box["y"] + spot["y"] * box["height"])
    page.locator("#tip:visible").wait_for()
    said, names = page.locator("#tip").inner_text(), ["sky", "road", "car"]
    (before, score), (after, other) = spot["mask"]["generator"][0], spot["mask"]["fused"][0]
    assert f"mask {spot['mask']['query']}: {names[before]} → {names[after]}" in said
    assert (
        f"before (generator): {names[before]} {score:.2f}" in said
        and f"after (fused): {names[after]} {other:.2f}" in said
    )
    page.mouse.move(2, 2)
    page.locator("#tip").wait_for(state="hidden")


def test_classes_and_images_are_reached_from_the_top(visit: Visit) -> None:
    page = visit.page
    visit.see("#class-bars")
    link = page.locator("#class-bars .ytick a").first
    link.wait_for()
    address = link.evaluate("(a) => a.getAttribute('href') ?? a.getAttribute('xlink:href')")
    link.click()
    index = address.removeprefix("#class-")
    assert page.locator("#by-class").input_value() == index
    wanted = page.evaluate(f"DATA.gallery.filter((card) => card.classes.includes({index})).length")
    assert page.locator("article.card:visible").count() == wanted > 0
    assert page.evaluate("document.activeElement.id") == "by-class"

    first = page.locator("#summary a[href^='#image-']").first
    first.focus()
    page.keyboard.press("Enter")
    number = first.get_attribute("href").removeprefix("#")
    page.locator(f"#{number}:focus").wait_for()
    assert page.locator("#by-class").input_value() == ""
    page.locator("#by-class").select_option(index)
    first.focus()
    page.keyboard.press("Enter")  # the same address once more
    assert page.locator("#by-class").input_value() == ""
    page.locator(f"#{number}[data-loaded]").wait_for()


def test_table_heads_stay_on_one_line(visit: Visit) -> None:
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    lines = page.locator("thead th:visible").evaluate_all(
        """(heads) => heads.map((th) => {
          const range = document.createRange();
          range.selectNodeContents(th);
          const rects = [...range.getClientRects()].sort((a, b) => a.top - b.top);
          let count = 0, bottom = -Infinity; // a new line begins below the one before it
          for (const r of rects) if (r.top > bottom - 4) { count++; bottom = r.bottom; }
          return [th.innerText, count];
        })"""
    )
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
    assert len(lines) > 20 and [text for text, count in lines if count > 1] == []


CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(e).backgroundColor);
      if (a === undefined || a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const e of document.querySelectorAll("main *, header *, nav *, footer *")) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
    const ink = rgba(svg ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(svg ? e.ownerSVGElement.parentElement : e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${e.tagName} ${e.textContent.trim().slice(0, 30)}`);
  }
  return [...poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.wait_for_timeout(200)
    visit.draw_everything()
    poor = visit.page.evaluate(CONTRAST)
    visit.page.emulate_media(color_scheme="light")
    assert poor == []


def test_a_card_can_be_read_by_keyboard(visit: Visit) -> None:
    page = visit.page
    visit.see("#gallery")
    card = page.locator("article.card:has(tbody tr)").first
    card.scroll_into_view_if_needed()
    card.locator("summary").focus()
    page.keyboard.press("Enter")
    row = card.locator("tbody tr").first
    row.focus()
    assert row.evaluate("(row) => row === document.activeElement")
    assert len(row.locator("td").all_inner_texts()) == 7
    assert card.evaluate("(element) => typeof element.dataset.loaded") == "string"


def test_light_dark_and_the_button(visit: Visit) -> None:
    page = visit.page
    visit.see("[data-chart=reliability]")
    text = page.locator("[data-chart=reliability] .xtick text").first

    def is_dark() -> bool:
        ink = text.evaluate("(t) => getComputedStyle(t).fill").removeprefix("rgb(").rstrip(")").split(",")
        charts_are = sum(map(int, ink)) > 380
        assert (max(visit.background()) < 60) == charts_are == (min(visit.background()) < 200)
        return charts_are

    assert not is_dark()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert is_dark()
    for theme, dark in {"light": False, "dark": True, "auto": True}.items():
        page.click("#theme")
        assert page.locator("#theme").inner_text() == f"Theme: {theme}"
        visit.see("[data-chart=reliability]")
        assert is_dark() == dark
    page.emulate_media(color_scheme="light")


@pytest.mark.slow
def test_phone_width_needs_no_sideways_scrolling(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        for section in page.locator("main > section").all():
            section.scroll_into_view_if_needed()
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            box = section.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        page.evaluate("scrollTo(0, 0)")
        assert len(page.screenshot(path=str(tmp_path / f"phone-{scheme}.png"))) > 10_000
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.slow
def test_fingers(browser, page: Path) -> None:
    phone = Visit(browser, page, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.see("#gallery")
    card = phone.page.locator("article.card[data-loaded]").first
    card.locator(".pane.fused .view").tap()
    phone.page.wait_for_timeout(300)  # the finger has left
    assert phone.page.locator("#tip:visible").count() == 1
    phone.page.locator("#gallery h2").tap()
    phone.page.locator("#tip").wait_for(state="hidden")
    targets = phone.page.locator("a:visible, button:visible, select:visible, summary:visible, label:visible")
    heights = targets.evaluate_all("(all) => all.filter((e) => e.className !== 'skip').map((e) => e.offsetHeight)")
    assert len(heights) > 20 and min(heights) >= 44
    phone.close()


@pytest.mark.slow
def test_printing_draws_every_picture_first(browser, page: Path) -> None:
    visit = Visit(browser, page, viewport={"width": 1280, "height": 300})
    loaded = "document.querySelectorAll('article.card[data-loaded]').length"
    assert visit.page.evaluate(loaded) < 7  # those that are far away
    visit.page.evaluate(
        f"""void (window.print = () => {{
          const images = [...document.querySelectorAll('article.card img')];
          window.printed = [{loaded}, images.length, images.every((i) => i.complete && i.naturalWidth)];
          document.body.dataset.printed = "yes";
        }})"""
    )
    visit.page.locator("#print").click()
    visit.page.locator("body[data-printed]").wait_for()  # the page lets no string be evaluated while one waits
    assert visit.page.evaluate("window.printed") == [7, 35, True]
    visit.page.evaluate("scrollTo(0, 0)")
    visit.page.locator("article.card:not([data-loaded])").first.wait_for(state="attached")  # let go again
    visit.page.emulate_media(media="print")
    assert visit.page.locator("#gallery .printed").is_visible() and not visit.page.locator("#print").is_visible()
    visit.close()


@pytest.mark.slow
def test_without_data_root(browser, folders: list[Path], tmp_path: Path) -> None:
    from vitp_pipeline.report.report import write_report

    write_report(open_evaluation(folders[0]), tmp_path / "bare.html")
    bare = Visit(browser, tmp_path / "bare.html")
    bare.see("#gallery")
    bare.page.locator("article.card[data-loaded]").first.wait_for()
    assert bare.page.locator("article.card").first.locator(".pane").count() == 3
    assert bare.page.locator(".pane img").count() == 0
    assert "No data root was given" in bare.page.locator("#gallery").inner_text()
    bare.close()


@pytest.mark.slow
def test_a_comparison(browser, folders: list[Path], tmp_path: Path) -> None:
    runs = [open_evaluation(folder) for folder in (*folders, folders[0])]
    result = compare(runs)
    write_comparison(runs, result, tmp_path / "compare.html")
    visit = Visit(browser, tmp_path / "compare.html")
    visit.draw_everything()
    page, second = visit.page, result["labels"][2]
    page.locator("#classes select").select_option(second)
    assert page.locator("#images select").input_value() == second
    shown = page.locator("#images [data-other]:visible")
    assert shown.count() == 1 and shown.get_attribute("data-other") == second
    page.locator("#classes .chart:visible .main-svg").first.wait_for()
    visit.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all pixels ignored, every task", "no mask", "nothing measured by any task or rule"])
def test_pages_of_nothing_are_drawn(browser, tmp_path: Path, name: str) -> None:
    """Dashes in the tables, charts without a point, and nothing that the browser complains of."""
    project, out, _ = evaluated(CASES[name], tmp_path)
    shutil.copytree(out, tmp_path / "other")
    runs = [open_evaluation(path, project.root, str(project.recipe.path)) for path in (out, tmp_path / "other")]
    write_report(runs[0], tmp_path / "report.html")
    write_comparison(runs, compare(runs), tmp_path / "compare.html")
    for page in ("report.html", "compare.html"):
        visit = Visit(browser, tmp_path / page)
        visit.draw_everything()
        shown = visit.page.locator("main").inner_text()
        assert not re.search(r"\b(nan|null|undefined|Infinity)\b", shown, re.IGNORECASE)
        assert ("does not exist" in shown) == (name != "no mask") and "–" in shown
        if page == "report.html":
            for order in ("gain", "harm", "upper_bound", "fused"):
                visit.page.select_option("#order", order)
            visit.see("#gallery")
            if visit.page.locator("article.card").count():  # there is none of images without masks
                visit.page.locator("article.card[data-loaded]").first.wait_for()
        visit.close()
