from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.config.generate_proposals import POINT_POLICIES
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS
from vitp_pipeline.interop.mask_import import MASK_FORMATS
from vitp_pipeline.interop.result_formats import RESULT_FORMATS
from vitp_pipeline.validation.registry import load_plugins

REGISTRIES = (LABEL_KINDS, FORMULAS, POINT_POLICIES, MASK_FORMATS, RESULT_FORMATS)


def write_package(folder: Path, name: str, code: str) -> None:
    """Write a package as pip installs it: a module, and beside it what names it as a plugin of vitp."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[vitp.plugins]\nmine = {name}\n")
    (folder / f"{name}.py").write_text(code)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a package that is a plugin, as if this process had been started afterwards."""
    for registry in REGISTRIES:
        list(registry)
        monkeypatch.setattr(registry, "_members", dict(registry._members))
    installed = []

    def install(code: str, name: str = "somebody_elses") -> None:
        write_package(tmp_path / name, name, code)
        monkeypatch.syspath_prepend(tmp_path / name)
        load_plugins.cache_clear()
        for registry in REGISTRIES:
            monkeypatch.setattr(registry, "_looked", False)
        installed.append(name)

    yield install
    for name in installed:
        sys.modules.pop(name, None)
    load_plugins.cache_clear()


@pytest.fixture
def plugin(install: Callable[[str], None]) -> None:
    """Installs `plugin.py`, which adds a member to every family."""
    install(Path(__file__).with_name("plugin.py").read_text())
