"""TOML files as editors on any system write them: one reader, for recipes, manifests, presets and profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitp_pipeline.cluster.profile import load_profile
from vitp_pipeline.config.recipe import load_recipe, manifest_of
from vitp_pipeline.datasets import load_manifest
from vitp_pipeline.errors import InputError
from vitp_pipeline.shipped import read_toml

MANIFEST = """
name = "ä"
classes = [ { name = "a", label = 0, thing = false } ]
[labels]
kind = "semantic-png"
[splits.val]
images = "images/*.png"
labels = "labels/{stem}.png"
"""


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_with_or_without_a_byte_order_mark(tmp_path: Path, start: bytes, end: bytes) -> None:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(start + text.strip().replace("\n", end.decode()).encode())
        return path

    manifest = write("m.toml", MANIFEST)
    recipe = write("r.toml", 'manifest = "m.toml"')
    assert load_manifest(manifest).name == "ä" and load_recipe(recipe).manifest.name == "ä"
    assert manifest_of(str(manifest))[0].name == manifest_of(str(recipe))[0].name == "ä"
    assert load_profile(str(write("p.toml", "gpus = 1")))["classify"].gpus == 1
    assert read_toml(write("x.toml", "a = 1")) == {"a": 1}


BROKEN = {
    "deep": b"a = " + b"[" * 5000,
    "deeper": b"a = " + b"{a=" * 50_000,
    "not ended": b"a = [1",
    "twice": b"a = 1\na = 2",
    "two marks": b"\xef\xbb\xbf\xef\xbb\xbfa = 1",
    "UTF-16": "a = 1".encode("utf-16"),
    "Latin": b"a = '\xe4'",
    "zeros": bytes(100),
    "a picture": b"\x89PNG\r\n\x1a\n",
    "huge digits": b"a = " + b"9" * 10_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_none_is_said_in_a_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(BROKEN[name])
    for read in (read_toml, load_manifest, load_recipe, load_profile, manifest_of):
        with pytest.raises(InputError, match=r"x\.toml: not a TOML file") as found:
            read(str(path)) if read is not read_toml else read(path)
        assert "\n" not in str(found.value)
