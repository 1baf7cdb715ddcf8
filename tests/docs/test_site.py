"""The site builds without a warning: every page in a menu, every link and anchor followed. And it needs no network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import FENCE, PAGES, ROOT, read
from tests.report.test_browser import browser  # noqa: F401  (a fixture)

needs_sphinx = pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "myst_parser", "furo"))), reason="needs the packages of vitp-pipeline[docs]"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")  # built once: its tests are of one group
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr
    return out


class References(HTMLParser):
    """What a page names, and which names it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.ids.add(given.get("id", ""))
        if tag in ("script", "img", "link") and (target := given.get("src") or given.get("href")):
            self.loaded.append(target)
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])


@pytest.mark.slow
@needs_sphinx
@pytest.mark.xdist_group("browser")
def test_nothing_comes_from_elsewhere_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: References(path) for path in site.rglob("*.html")}
    assert len(pages) >= len(PAGES) - 1
    for path, page in pages.items():
        for target in page.loaded:
            assert not urlsplit(target).netloc, (path, target)
            assert (path.parent / unquote(urlsplit(target).path)).exists(), (path, target)
        for target in page.linked:
            parts = urlsplit(target)
            if not parts.scheme and not parts.netloc:
                other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert other.exists(), (path, target)
                assert not parts.fragment or other.suffix != ".html" or unquote(parts.fragment) in pages[other].ids, (
                    path,
                    target,
                )

    for sheet in (*site.rglob("*.css"), *site.glob("_static/*.js")):
        assert not re.search(r"@import|url\([\"']?(https?:)?//|import\([\"']http", sheet.read_text("utf-8")), sheet


@pytest.mark.slow
@needs_sphinx
@pytest.mark.xdist_group("browser")
def test_the_front_page_leads_to_what_one_wants_to_do(site: Path) -> None:
    """Its table, and the menu, which has every page once under eight headings."""
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "What do you want to do?" in page and 'src="_images/architecture.svg"' in page
    menu = re.findall(r'<p class="caption"[^>]*><span class="caption-text">(.*?)</span>', page)
    assert menu == ["Start", "My data", "My generator", "Train", "Measure", "Scale", "Reference", "Change vitp"]
    entries = re.findall(r'<li class="toctree-l1[^>]*><a class="reference internal" href="(.*?)"', page)
    assert len(set(entries)) == len(entries) == len(PAGES) - 2  # README.md and the front page itself


def test_pictures_of_the_readme_are_small() -> None:
    """Two megabytes in all; none comes from elsewhere."""
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", read("README.md"))
    assert pictures and sum((ROOT / picture).stat().st_size for picture in pictures) <= 2_000_000


@needs_sphinx
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](b.md)", "b.md"),
        ("[a](numbers.md#nowhere)", "nowhere"),
        ("[a](../stages/none.toml)", "none.toml"),
        ("![a](images/none.png)", "none.png"),
        ("alone", "toctree"),
    ],
)
@pytest.mark.slow
def test_a_fault_is_an_error(text: str, complaint: str, tmp_path: Path) -> None:
    """With the settings of the site."""
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(ROOT / "docs/conf.py", source)
    (tmp_path / "README.md").write_text("words\n", encoding="utf-8")
    (source / "index.md").write_text("# Title\n\n```{toctree}\nnumbers\n```\n", encoding="utf-8")
    (source / "numbers.md").write_text(f"# Numbers\n\n{text}\n", encoding="utf-8")
    if text == "alone":
        (source / "other.md").write_text("# Other\n", encoding="utf-8")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0 and complaint in done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_form_and_files_are_there(page: str) -> None:
    """Without the packages, too. Addresses elsewhere are https and name a host."""
    for link in LINK.findall(FENCE.sub("", read(page))):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
        elif parts.path:
            assert ((ROOT / page).parent / unquote(parts.path)).exists(), link


def test_the_picture_shows_what_its_source_says() -> None:
    """It is made of it by Graphviz; labels that were changed in one alone are noticed."""
    source = (ROOT / "docs/images/architecture.dot").read_text(encoding="utf-8")
    drawn = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    words = [line for label in re.findall(r'label = "(.*?)"', source) for line in label.split(r"\n")]
    shown = [unquote_xml(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", drawn)]
    assert sorted(word.strip() for word in words) == sorted(text.strip() for text in shown)
    edges = re.findall(r"^ +(\w+) -> (\w+)", source, re.MULTILINE)
    assert len(edges) == drawn.count('class="edge"') > 10


def unquote_xml(text: str) -> str:
    return unescape(text).replace("\N{NO-BREAK SPACE}", " ")


CONTRAST = """() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const over = (front, back) => [0, 1, 2].map(i => front[i] * (front[3] ?? 1) + back[i] * (1 - (front[3] ?? 1)))
  const light = color => color.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05)
  const behind = node => {
    if (!node) return [255, 255, 255]
    const own = numbers(getComputedStyle(node).backgroundColor)
    return (own[3] ?? 1) === 1 ? own.slice(0, 3) : over(own, behind(node.parentElement))
  }
  const faint = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement, style = getComputedStyle(node)
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility({visibilityProperty: true})) continue
    const back = behind(node), pair = [light(over(numbers(style.color), back)), light(back)].sort((a, b) => b - a)
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700
    if (pair[0] / pair[1] < (large ? 3 : 4.5)) faint.push(texts.currentNode.textContent.trim().slice(0, 40))
  }
  return faint
}"""
"""Texts of less contrast than WCAG 2 AA asks for."""


@pytest.mark.slow
@needs_sphinx
@pytest.mark.browser
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_pages_fit_a_phone_and_are_legible(site: Path, browser, colors: str) -> None:  # noqa: F811
    """No page is wider than 390 pixels (wide tables scroll by themselves), in colors that follow the system's."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=colors)
    page, faint = context.new_page(), {}
    looked_at = ("index", "settings", "datasets", "search")
    for path in sorted(site.rglob("*.html")):
        if colors == "dark" and path.stem not in looked_at:
            continue  # as wide as in the light
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        if path.stem in looked_at:
            assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
                colors == "light"
            )
            faint[path.stem] = page.evaluate(CONTRAST)
    assert not any(faint.values()), faint
    context.close()


@pytest.mark.slow
@needs_sphinx
@pytest.mark.browser
@pytest.mark.xdist_group("browser")
def test_it_opens_from_disk(site: Path, browser) -> None:  # noqa: F811
    """The picture is drawn, the search finds, nothing is asked of the network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((site / "architecture.html").as_uri())
    picture = page.locator('img[src*="architecture"]')
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 300
    assert complaints == []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    for word, title in {"fingerprint": "", "alpha": "All settings", "object_threshold": "All settings"}.items():
        page.goto((site / "search.html").as_uri() + f"?q={word}")
        page.locator("#search-results li", has_text=title).first.wait_for()
    page.goto((site / "settings.html").as_uri() + "#train-classifier-lr")
    assert page.locator("tr:has(:target)").first.inner_text().split()[0] == "lr"
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert complaints == [] and all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
