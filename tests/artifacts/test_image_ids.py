"""Ids of many images as a column of text, in their file, and in a run whose run.json does not list them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp_pipeline.artifacts import run as runs
from vitp_pipeline.artifacts.image_ids import StoredIds, TextColumn, write_ids
from vitp_pipeline.artifacts.run import create_or_check, open_run
from vitp_pipeline.datasets.identity import first_twice
from vitp_pipeline.errors import CorruptError, IncompatibleError
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.storage.run_store import LocalStore

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=4), max_size=12)


@settings(deadline=None)  # the first one imports Arrow's functions
@given(TEXTS, st.integers(0, 12), st.integers(-13, 13), st.integers(-13, 13))
def test_a_column_is_a_sequence_of_strings(texts: list[str], cut: int, start: int, stop: int) -> None:
    pieces = pa.chunked_array([texts[:cut], texts[cut:]], pa.string())
    column = TextColumn(pieces)
    assert list(column) == texts and len(column) == len(texts) and column == texts == list(column[:])
    assert column[start:stop] == tuple(texts[start:stop]) and column[::2] == tuple(texts[::2])
    assert column.digest == TextColumn.of(texts).digest
    assert (first_twice(column) is None) == (len(set(texts)) == len(texts))
    if twice := first_twice(column):
        assert texts[twice[0]] == texts[twice[1]] and twice[0] < twice[1]
    else:
        assert [column.place(text) for text in texts] == list(range(len(texts)))
        assert column.place("not there") is None
    assert column != [*texts, "more"] and (not texts or column[-1] == texts[-1])


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_digests_tell_columns_apart(one: list[str], other: list[str]) -> None:
    """Also those whose joined texts are the same."""
    assert (TextColumn.of(one).digest == TextColumn.of(other).digest) == (one == other)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images are many."""
    monkeypatch.setattr(runs, "LISTED", 2)


def test_a_run_of_many_images(few: None, tmp_path: Path) -> None:
    store, folder, names = LocalStore(tmp_path), tmp_path / "proposals", tuple(f"i{n}" for n in range(5))
    made = create_or_check(store, folder, {"stage": "proposals"}, names, 2, 2)
    said = json.loads((folder / "run.json").read_text())
    assert said["images"] == {"count": 5, "sha256": TextColumn.of(names).digest} and said["format_version"] == 4
    found = open_run(store, folder)
    assert isinstance(found.images, StoredIds) and found.images == names and found.digest == made.digest
    assert [found.parts(shard) for shard in range(2)] == [[names[:2]], [names[2:4], names[4:]]]
    assert create_or_check(store, folder, {"stage": "proposals"}, names).shards == 2
    with pytest.raises(IncompatibleError, match=r"other images \(5 then, 5 now\)"):
        create_or_check(store, folder, {"stage": "proposals"}, (*names[:4], "other"))


def test_its_file_is_verified_and_made_again(few: None, tmp_path: Path) -> None:
    store, folder, names = LocalStore(tmp_path), tmp_path / "proposals", tuple(f"i{n}" for n in range(5))
    create_or_check(store, folder, {"stage": "proposals"}, names, 2, 2)
    assert not verify_run(tmp_path).damages
    (file,) = folder.glob("images-*.parquet")
    other = write_ids(store, tmp_path / "other", TextColumn.of(["a", "b", "c"])).path
    for content, reason in ((b"no table", "not a table"), (other.read_bytes(), "not those of run.json")):
        file.write_bytes(content)
        with pytest.raises(CorruptError, match=reason):
            _ = open_run(store, folder).images[0]
        (damage,) = verify_run(tmp_path).damages
        assert damage.path == file and damage.rerun and damage.fix is not None
        damage.fix()
        create_or_check(store, folder, {"stage": "proposals"}, names)  # as the stage does
        assert open_run(store, folder).images == names
