"""One HTML file that holds everything it shows: style, scripts, the chart library, numbers and pictures."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.errors import UsageError
from vitp_pipeline.figure import Figure, percent, signed
from vitp_pipeline.storage.atomic_files import write_whole
from vitp_pipeline.storage.sealed import seal_page

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "page"


def require_libraries() -> None:
    """Raise UsageError when the packages of the extra `report` are not there."""
    try:
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a report needs the package {error.name}", "pip install 'vitp-pipeline[report]'") from error


def points(value: Figure) -> str:
    """Format a difference for pages."""
    return signed(value).replace("-", "−")


@lru_cache(1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points}
    return environment


def write_page(path: Path, template: str, data: dict[str, Any], scripts: tuple[str, ...], **context: Any) -> None:
    """Render a template of `page/` and write it whole.

    Args:
        path: the file to write.
        template: its name.
        data: JSON for the scripts: {charts, …}.
        scripts: names of files in `page/`, in order.
        context: what the template asks for: title, about, sections and its own.
    Raises:
        UsageError: the libraries are not installed.
        StorageError: no room.
    """
    require_libraries()
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    # inside a script element only "<" could end it
    content = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = (
        _environment()
        .get_template(template)
        .render(
            css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            scripts=Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)),
            plotly=Markup(get_plotlyjs()),
            data=Markup(content),
            version=version("vitp-pipeline"),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **context,
        )
    )
    write_whole(path, seal_page(text))
