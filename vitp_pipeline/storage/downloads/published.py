"""The digests of the paper's files, as far as they are known: `[[files]]` of stages/paper/rows.toml.

They were not known when the recipes were written; `python tools/reproduce.py --note-digests` fills in those of files
that have been fetched, and from then on every fetch is held against them.
"""

from __future__ import annotations

from functools import cache

from vitp_pipeline.shipped import read_toml, shipped


@cache
def _digests() -> dict[str, str]:
    path = shipped("stages") / "paper" / "rows.toml"
    if not path.is_file():
        return {}
    return {file["name"]: file.get("sha256", "") for file in read_toml(path).get("files", [])}


def published_digest(name: str) -> str:
    """Return the SHA-256 that a file of the paper must have; "" for other files, and where it is not known."""
    return _digests().get(name, "")
