from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.local_runs import create_or_check, open_run, write_index
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError, IncompatibleError, MissingStageError, UsageError
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import read_sealed, sealed, write_sealed

IDENTITY = {"stage": "x", "settings": {"seed": 1}, "colors": [["a", 0, True]]}
IMAGES = ("a", "b", "c")


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 9))
def test_shards_and_parts_partition_the_images(count: int, shards: int, part_size: int) -> None:
    images = tuple(f"i{n}" for n in range(count))
    run = StageRun(LocalStore(Path()), Path(), {}, images, shards, part_size)
    sizes = [len(run.shard_images(s)) for s in range(shards)]
    assert max(sizes) - min(sizes) <= 1
    parts = [run.parts(s) for s in range(shards)]
    assert tuple(i for shard in parts for part in shard for i in part) == images
    for shard in parts:
        assert all(len(part) == part_size for part in shard[:-1]) and all(shard)


def test_created_once_then_the_same(tmp_path: Path) -> None:
    first = create_or_check(tmp_path / "p", IDENTITY, IMAGES, 2, 5)
    before = (tmp_path / "p/run.json").read_bytes()
    again = create_or_check(tmp_path / "p", IDENTITY, IMAGES, None, 5)
    assert first == again == open_run(tmp_path / "p") and first.shards == 2
    assert (tmp_path / "p/run.json").read_bytes() == before
    assert create_or_check(tmp_path / "q", IDENTITY).shards == 1
    content = json.loads(before)
    assert content["fingerprint"] == first.fingerprint and content["provenance"]["python"]


def test_other_settings_images_or_shards_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    run = create_or_check(folder, IDENTITY, IMAGES, 2)
    write_index(index_path(run.shard_folder(0), 0), pa.table({"status": ["ok"]}))
    before = (folder / "run.json").read_bytes()
    with pytest.raises(IncompatibleError, match=r"settings.seed: 1 → 2") as info:
        create_or_check(folder, {**IDENTITY, "settings": {"seed": 2}}, IMAGES)
    assert str(folder) in str(info.value) and "--out" in str(info.value)
    with pytest.raises(IncompatibleError, match=r"settings.seed: 1 → \(default\)"):
        create_or_check(folder, {**IDENTITY, "settings": {}}, IMAGES)
    with pytest.raises(IncompatibleError, match=r"other images \(3 then, 2 now\)"):
        create_or_check(folder, IDENTITY, IMAGES[:2])
    with pytest.raises(IncompatibleError, match="other images"):
        create_or_check(folder, IDENTITY, IMAGES[::-1])
    with pytest.raises(UsageError, match="has 2 shards, not 3"):
        create_or_check(folder, IDENTITY, IMAGES, 3)
    assert (folder / "run.json").read_bytes() == before


def test_missing_newer_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="vitp generate-proposals"):
        open_run(tmp_path / "proposals", "generate-proposals")
    create_or_check(tmp_path, IDENTITY, IMAGES)
    path = tmp_path / "run.json"
    good, content = path.read_text(), read_sealed(path)
    write_sealed(path, {**content, "format_version": 99})
    with pytest.raises(IncompatibleError, match="newer"):
        open_run(tmp_path)
    for old in (0, 1, 2):
        for text in (sealed(path, {**content, "format_version": old}), json.dumps({"format_version": 1}, indent=2)):
            path.write_text(text)
            with pytest.raises(IncompatibleError, match=r"run\.json: written by vitp 0\.1") as info:
                open_run(tmp_path)
            assert "\n" not in str(info.value) and "--out" in str(info.value)
    for bad in ({}, {**content, "images": None}, {**content, "format_version": "x"}, {**content, "shards": 0}):
        write_sealed(path, bad)
        with pytest.raises(CorruptError, match=r"run.json"):
            open_run(tmp_path)
    for text in ("", "{", "[]", "3", "{}", json.dumps(content), good[:-1], good.replace('"b"', '"d"')):
        path.write_text(text)
        with pytest.raises(CorruptError, match=r"run.json"):
            open_run(tmp_path)
    path.unlink()
    with pytest.raises(CorruptError, match=r"run.json: is missing"):  # for its copy is there
        create_or_check(tmp_path, IDENTITY, IMAGES)
