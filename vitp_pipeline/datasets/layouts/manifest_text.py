"""Write a layout as a manifest, with comments: a TOML file that people go on editing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vitp_pipeline.datasets.layouts.layout import Layout, SeenClass
from vitp_pipeline.runtime.escaping import escape


def manifest_text(name: str, layout: Layout) -> str:
    """Write the manifest of a layout that has classes and splits.

    Args:
        name: of the dataset.
    """
    by_color = layout.kind == "color-png"
    lines = [comment(f"A dataset, as `vitp init` saw it: {layout.title}. All keys: docs/datasets.md.")]
    lines += [comment(f"* {remark}") for remark in layout.remarks]
    lines += [f"name = {toml(name)}", ""]
    what = "`color` is that of its pixels" if by_color else "`label` is its value in the labels"
    lines.append(f"# In the order of the generator's classes. {what}; `thing` = its objects can be counted.")
    if layout.guessed:
        lines.append("# The names are made up, as nothing tells them: give each its own.")
    lines.append("classes = [")
    lines += [f"  {{ {_class(info, by_color)} }}," for info in layout.classes]
    lines += ["]", "", "[labels]", f"kind = {toml(layout.kind)}"]
    if by_color:
        lines.append(f"ignore_colors = {toml([list(c) for c in layout.ignore_colors])}   # colors without a class")
    elif layout.kind == "semantic-png":
        lines.append(f"ignore = {toml(layout.ignore)}   # values of pixels without a class")
    for split, entry in layout.splits.items():
        lines += ["", f"[splits.{split}]", *(f"{key} = {toml(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _class(info: SeenClass, by_color: bool) -> str:
    fields: dict[str, Any] = {"name": info.name, "label": info.label, "thing": info.thing}
    if by_color:
        del fields["label"]
    if info.color is not None:
        fields["color"] = list(info.color)
    if info.aliases:
        fields["aliases"] = list(info.aliases)
    return ", ".join(f"{key} = {toml(value)}" for key, value in fields.items())


def toml(value: str | bool | int | float | Sequence[Any]) -> str:
    """Write a value as TOML: text, numbers, truth values, and lists of these."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def comment(text: str) -> str:
    """Write a line of comment: names in it may come from the data, and must not end it."""
    return f"# {escape(text)}"
