"""Names of the results of photographs: for any folders and files that are given, one of its own for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitp_pipeline.inference.image_files import find_pictures

NAMES: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "a folder": (["p/1.jpg", "p/2.jpg"], ["p"], {"p/1.jpg": "1", "p/2.jpg": "2"}),
    "folders in it": (["p/a/1.jpg", "p/b/1.jpg"], ["p"], {"p/a/1.jpg": "a/1", "p/b/1.jpg": "b/1"}),
    "two files": (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"], {"a/1.jpg": "a/1", "b/1.jpg": "b/1"}),
    "two folders": (["a/1.jpg", "b/1.jpg"], ["a", "b"], {"a/1.jpg": "a/1", "b/1.jpg": "b/1"}),
    "two folders, no name twice": (["a/1.jpg", "b/2.jpg"], ["a", "b"], {"a/1.jpg": "1", "b/2.jpg": "2"}),
    "folders called alike": (
        ["a/v/1.jpg", "b/v/1.jpg"],
        ["a/v", "b/v"],
        {"a/v/1.jpg": "a/v/1", "b/v/1.jpg": "b/v/1"},
    ),
    "a file beside its folder": (["1.jpg", "a/1.jpg"], ["1.jpg", "a"], {"1.jpg": "1", "a/1.jpg": "a/1"}),
    "endings": (["p/1.jpg", "p/1.png"], ["p"], {"p/1.jpg": "1.jpg", "p/1.png": "1.png"}),
    "endings in two cases": (["p/1.jpg", "p/1.JPG"], ["p"], {"p/1.jpg": "1.jpg", "p/1.JPG": "1.JPG"}),
    "endings after endings": (
        ["p/1.jpg", "p/1.png", "p/1.jpg.png"],
        ["p"],
        {"p/1.jpg": "1.jpg", "p/1.png": "1.png", "p/1.jpg.png": "1.jpg.png"},
    ),
    "folders and endings": (
        ["a/1.jpg", "a/1.png", "b/1.jpg"],
        ["a", "b"],
        {"a/1.jpg": "a/1.jpg", "a/1.png": "a/1.png", "b/1.jpg": "b/1.jpg"},
    ),
    "dots": (["p/..jpg", "q/..jpg"], ["p", "q"], {"p/..jpg": "p/.", "q/..jpg": "q/."}),
    "three dots": (["p/...jpg", "q/...jpg"], ["p", "q"], {"p/...jpg": "p/..", "q/...jpg": "q/.."}),
    "the same one twice": (["p/1.jpg"], ["p", "p/1.jpg", "p/../p/1.jpg"], {"p/1.jpg": "1"}),
    "odd characters": (["a/\n.jpg", "b/\n.jpg"], ["a", "b"], {"a/\n.jpg": "a/\n", "b/\n.jpg": "b/\n"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_results_are_called_by_paths(tmp_path: Path, name: str) -> None:
    files, given, expected = NAMES[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    found = find_pictures([tmp_path / path for path in given], tmp_path / "out")
    assert {picture.path.resolve().relative_to(tmp_path.resolve()).as_posix(): picture.name for picture in found} == (
        expected
    )


def test_links_are_called_by_their_own_names(tmp_path: Path) -> None:
    for file in ("store/x.jpg", "store/y.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    for link, file in (("a/1.jpg", "store/x.jpg"), ("b/1.jpg", "store/y.jpg"), ("b/2.jpg", "store/x.jpg")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / file)
    found = find_pictures([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert [picture.name for picture in found] == ["a/1", "b/1"]  # what b/2.jpg is has been named
