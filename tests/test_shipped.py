"""TOML files: whatever is in them, a table or one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.cluster.profile import load_profile
from vitp_pipeline.config.recipe import load_preset, load_recipe, manifest_of
from vitp_pipeline.datasets import load_manifest
from vitp_pipeline.errors import UserError
from vitp_pipeline.shipped import read_toml

READERS: dict[str, Callable[[str], Any]] = {
    "manifest": load_manifest,
    "check-dataset": manifest_of,
    "recipe": load_recipe,
    "preset": load_preset,
    "profile": load_profile,
}
ODD = {
    "deep arrays": b"a = " + b"[" * 20_000,
    "deep tables": b"a = " + b"{b=" * 20_000,
    "a deep table in an array": b"a = " + b"[{b=" * 20_000,
    "not UTF-8": b"name = '\xff'",
    "UTF-16": "name = 'a'".encode("utf-16"),
    "binary": bytes(range(256)),
    "no value": b"name =",
    "twice": b"name = 'a'\nname = 'b'",
    "JSON": b'{"name": "a"}',
    "a lone surrogate": b'name = "\\ud800"',
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_an_odd_file_is_one_line(tmp_path: Path, reader: str, odd: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(ODD[odd])
    with pytest.raises(UserError) as caught:
        READERS[reader](str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60) | st.text("[]{}=.,'\"ab1\n# ", max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        assert isinstance(read_toml(path), dict)
    except UserError as error:
        assert str(path) in error.message


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbfname = 'a'")
    assert read_toml(tmp_path / "x.toml") == {"name": "a"}
