"""Generate the reference of all keys from their declarations: JSON Schema, `--help`, and docs/settings.md.

python -m vitp_pipeline.config.reference > docs/settings.md
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.validation.keys import DRAFT, keys_of, schema_of
from vitp_pipeline.validation.tables import takes_of, toml


def recipe_schema() -> dict[str, Any]:
    """Make the JSON Schema of recipes."""
    tables = {name: {**schema_of(kind), "title": name} for name, kind in TABLES.items()}
    for table in tables.values():
        table.pop("required", None)  # flags and presets may give it
    text = {"type": "string"}
    return {
        "$schema": DRAFT,
        "title": "vitp recipe",
        "type": "object",
        "properties": {
            "title": {**text, "description": "Title of reports."},
            "manifest": {**text, "description": "Dataset: the name of a shipped manifest, or the path of a TOML file."},
            "preset": {
                **text,
                "description": "Preset of a whole recipe, in stages/presets/, which gives the keys not set here: "
                "official-oneformer, official-internimage.",
            },
            **tables,
        },
        "required": ["manifest"],
        "additionalProperties": False,
    }


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the reference: one key."""

    key: str
    takes: str
    unit: str
    default: str
    help: str
    identity: str


def rows_of(kind: type) -> Iterator[Row]:
    """List every key of a table."""
    found = schema_of(kind)["properties"]
    for field in dataclasses.fields(kind):
        key, schema = keys_of(kind)[field.name], found[field.name]
        default = "required" if field.default is dataclasses.MISSING else f"`{toml(field.default)}`"
        yield Row(field.name, takes_of(schema), key.unit, default, key.help, ENTERS[key.enters])


ENTERS = {"value": "yes", "content": "by its content", "keys": "by its keys", "not": "no"}

MARK = "<!-- made by `python -m vitp_pipeline.config.reference docs/settings.md` from here on -->\n"


def with_tables(page: str) -> str:
    """Render a Markdown page with the tables of all keys after its marker."""
    parts = [page[: page.index(MARK)] + MARK]
    for name, kind in TABLES.items():
        heads = ("key", "takes", "unit", "default", "what it does", "changes results")
        parts += [f"\n## [{name}]\n", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in rows_of(kind):
            cells = (f"`{row.key}`", row.takes, row.unit, row.default, row.help, row.identity)
            parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_tables(place.read_text(encoding="utf-8")), encoding="utf-8")
