"""How `make docs` builds the site: strictly, to be read from disk without a network."""

import re
from pathlib import Path

from docutils.nodes import document, raw
from sphinx.application import Sphinx

README = Path(__file__).parents[1] / "README.md"

project = "vitp"
copyright = "The vitp authors"
extensions = ["myst_parser"]
exclude_patterns = ["measured"]

myst_heading_anchors = 4  # called as GitHub calls them

html_theme = "furo"
html_title = "vitp"
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # excerpts are fetched, which browsers forbid pages opened from disk


def put_readme_in_front(app: Sphinx, name: str, source: list[str]) -> None:
    """`README.md` in index.md becomes the text of that file, its links seen from docs/."""
    if name == "index":
        app.env.note_dependency(str(README))
        text = re.sub(r"\]\((?!https?:|#)", "](../", README.read_text(encoding="utf-8"))
        text = (
            text.replace("](../docs/", "](")
            .replace("](../CHANGELOG.md", "](changelog.md")
            .replace("](../SECURITY.md", "](security.md")
        )
        source[0] = source[0].replace("README.md", text, 1)


def know_anchors(app: Sphinx, tree: document) -> None:
    """Let links lead to `<a id="…">` in tables, as on GitHub."""
    known = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for node in tree.findall(raw):
        for name in re.findall(r'<a id="([\w-]+)">', node.astext()):
            known[name] = (node.line, name, name)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", know_anchors)
    app.connect("source-read", put_readme_in_front)
