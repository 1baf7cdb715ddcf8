"""`vitp doctor` says which mmcv is here, and warns where two lie one on the other."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from vitp_pipeline.diagnostics.environment import findings


def put(folder: Path, name: str, number: str) -> None:
    """Lay the metadata of an installed distribution."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8")


def test_one_mmcv_is_named() -> None:
    found = dict(findings())
    assert found["mmcv-lite"] == version("mmcv-lite")
    assert "mmcv conflict" not in found and "mmcv" not in found


@pytest.mark.parametrize("name", ["mmcv", "onedl-mmcv"])
def test_two_are_a_conflict_with_its_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, name, "2.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = dict(findings())
    assert found[name] == "2.1.0"
    uninstall = " ".join(sorted(["mmcv-lite", name]))
    assert f"pip uninstall {uninstall}`" in found["mmcv conflict"]
