"""Tables of the pages that tools make of measured figures."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest

from tests.docs.pages import ROOT, read


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of tools/, which finds its neighbors there."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tools")])
    return importlib.import_module(f"tools.{name}")


@pytest.mark.parametrize(
    ("page", "name", "measured"),
    [
        ("docs/official.md", "official_differences", "official"),
        ("docs/training-data.md", "augmentation_differences", "augmentation"),
    ],
)
def test_the_table_is_that_of_the_figures(page: str, name: str, measured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads(read(f"docs/measured/{measured}.json"))
    assert "\n".join(tool(name, monkeypatch).table(results)) in read(page)
