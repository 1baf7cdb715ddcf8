"""How `make docs` builds the site: strictly, to be read from disk without a network."""

import re

from docutils.nodes import document, raw
from sphinx.application import Sphinx

project = "vitp"
copyright = "The vitp authors"
extensions = ["myst_parser"]
exclude_patterns = ["measured"]

myst_heading_anchors = 4  # called as GitHub calls them

html_theme = "furo"
html_title = "vitp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # excerpts are fetched, which browsers forbid pages opened from disk


def know_anchors(app: Sphinx, tree: document) -> None:
    """Let links lead to `<a id="…">` in tables, as on GitHub."""
    known = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for node in tree.findall(raw):
        for name in re.findall(r'<a id="([\w-]+)">', node.astext()):
            known[name] = (node.line, name, name)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", know_anchors)
