"""The page of settings by situation: its lines are read by the recipe's own parser, its table lists their keys."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import Block, blocks, read
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TABLES
from vitp_pipeline.validation.tables import toml

PAGE = "docs/which-settings.md"
BASE, *SNIPPETS = [block for block in blocks(PAGE) if block.language == "toml"]


def keys(block: Block) -> list[tuple[str, str]]:
    tables = tomllib.loads(block.text)
    return [
        pair
        for name, value in tables.items()
        for pair in ([(name, key) for key in value] if isinstance(value, dict) else [("", name)])
    ]


@pytest.mark.parametrize("block", SNIPPETS, ids=[f"line{block.line}" for block in SNIPPETS])
def test_lines_over_the_first_recipe_are_a_recipe(block: Block, tmp_path: Path) -> None:
    """At most six keys, all of them valid together with those of the first recipe; presets are found."""
    assert 1 <= len(keys(block)) <= 6
    given, base = tomllib.loads(block.text), tomllib.loads(BASE.text)
    lines = [f'manifest = "demo"\n{"".join(f"{k} = {toml(v)}" for k, v in given.items() if not isinstance(v, dict))}']
    for name in TABLES:
        table = {**base.get(name, {}), **given.get(name, {})}
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    (tmp_path / "r.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.toml")
    for name, kind in TABLES.items():
        settings = recipe.stage(kind)
        for key, value in given.get(name, {}).items():
            assert getattr(settings, key) == (tuple(value) if isinstance(value, list) else value)


def test_the_table_lists_the_situations_and_their_keys() -> None:
    """In the order of the page; and every situation says where something was measured or explained."""
    text = read(PAGE)
    rows = re.findall(r"^\| \[(.*?)\]\(#.*?\) \| (.*) \|$", text, re.MULTILINE)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [title for title, _ in rows] == [section.partition("\n")[0] for section in sections] and len(rows) >= 12
    for (title, listed), section in zip(rows, sections, strict=True):
        inside = [block for block in SNIPPETS if block.text in section]
        used = {key for block in inside for _, key in keys(block)}
        assert set(re.findall(r"`(\w+)`", listed)) <= used and used, title
        assert re.search(r"\]\([\w-]+\.md", section), title


@pytest.mark.parametrize("page", ["ablations", "storage"])
def test_figures_stand_on_the_pages_they_are_taken_from(page: str) -> None:
    found = {
        "ablations": ("class_prior = 1 | 16.01 | +0.07 ≈ | 50.9 | -0.9",),
        "storage": ("56,450", "508,140", "576,037", "91,055", "1,053,893", "3,596,011"),
    }[page]
    text = read(f"docs/{page}.md").replace("\n", " ")
    assert [figure for figure in found if figure not in text] == []
