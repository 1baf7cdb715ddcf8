from __future__ import annotations

import contextlib
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.local_runs import create_or_check
from tests.run_files import arrays_of
from vitp_pipeline.artifacts.mask_codec import keep_queries
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import (
    ProposalRecord,
    failed_row,
    open_proposals,
    points_of,
    schema,
    write_record,
)
from vitp_pipeline.errors import CorruptError, InputError, MissingStageError
from vitp_pipeline.execution.runner import commit_part
from vitp_pipeline.geometry import View

MASSES = st.lists(st.floats(0, 1), min_size=0, max_size=12)


@given(MASSES, st.floats(0.001, 2))
def test_kept_queries_respect_the_budget_and_are_as_few_as_can_be(masses: list[float], budget: float) -> None:
    objectness = np.array(masses)
    kept, dropped = keep_queries(objectness, budget)
    assert kept.dtype == np.int32 and (np.diff(kept) > 0).all()
    rest = np.setdiff1d(np.arange(len(objectness)), kept)
    assert dropped == pytest.approx(objectness[rest].sum(), abs=1e-12)
    assert dropped <= budget
    if len(kept):  # no set with one more query fits into the budget
        fewest = np.sort(objectness)[: len(rest) + 1].sum()
        assert fewest > budget - 1e-12
    if len(kept) and len(rest):
        assert objectness[kept].min() >= objectness[rest].max()


@given(MASSES)
def test_no_budget_keeps_all(masses: list[float]) -> None:
    kept, dropped = keep_queries(np.array(masses), 0)
    assert kept.tolist() == list(range(len(masses))) and dropped == 0


def test_kept_queries_against_trying_everything() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        objectness = rng.random(6) ** 3
        budget = float(rng.random())
        kept, _ = keep_queries(objectness, budget)
        most = max(n for n in range(7) for c in combinations(range(6), n) if objectness[list(c)].sum() <= budget)
        assert 6 - len(kept) == most


def test_ties_keep_the_lower_index() -> None:
    """Few values, each many times: an unstable sort of so many mixes them."""
    objectness = np.random.default_rng(0).integers(1, 4, 400) / 1000
    for budget in (0.05, 0.2, 0.3, 0.5):
        kept, dropped = keep_queries(objectness, budget)
        expected = sorted(range(400), key=lambda q: -objectness[q])[: len(kept)]
        assert kept.tolist() == sorted(expected) and 0 < len(kept) < 400
        assert budget - 0.003 < dropped <= budget


def record(image_id: str, masks: int, queries: int = 4, dtype: str = "float16") -> ProposalRecord:
    rng = np.random.default_rng(int(image_id))
    return ProposalRecord(
        image_id,
        f"images/{image_id}.jpg",
        View((30, 40), (60, 80), (64, 96), (16, 24)),
        "mmseg1",
        np.sort(rng.permutation(queries)[:masks]).astype(np.int32),
        0.005,
        {
            "max": rng.integers(0, 30, (queries, 2)).astype(np.int32),
            "random": rng.integers(0, 30, (queries, 2)).astype(np.int32),
        },
        rng.normal(size=(queries, 4)).astype(np.float32),
        rng.normal(size=(masks, 16, 24)).astype(dtype),
    )


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[ProposalRecord]]:
    records = [record("1", 2), record("2", 0), record("4", 4)]
    classes = [["a", 0, False], ["b", 1, True], ["c", 2, True]]
    manifest = {"name": "abc", "kind": "semantic-png", "ignore": [255], "classes": classes}
    identity = {"manifest": manifest, "settings": {}}
    run = create_or_check(tmp_path / "proposals", identity, ("1", "2", "3", "4"), 1, 3)
    for part, images in enumerate([records[:2], records[2:]]):
        writer = ArrayWriter(run.folder / "made.zarr.zip", run.about(0, part))
        rows = [write_record(writer, r) for r in images]
        if part == 0:
            rows.append(failed_row("3", "images/3.jpg", "truncated"))
        writer.close()
        import pyarrow as pa

        table = pa.Table.from_pylist(rows, schema=schema(run.fingerprint, "abc", policies=("max", "random")))
        commit_part(run, 0, part, table, writer.path)
    return tmp_path, records


def test_store_round_trip(stored: tuple[Path, list[ProposalRecord]]) -> None:
    folder, records = stored
    store = open_proposals(folder)
    assert len(store) == 4 and store.classes == ("a", "b", "c")
    found = list(store)
    assert [r.image_id for r in found] == ["1", "2", "4"]  # the failed one has no proposals
    for a, b in zip(found, records, strict=True):
        assert (a.file_name, a.view, a.protocol, a.dropped_mass) == (b.file_name, b.view, b.protocol, b.dropped_mass)
        assert set(a.points) == {"max", "random"}
        for x, y in [
            (a.kept, b.kept),
            (a.masks, b.masks),
            (a.class_logits, b.class_logits),
            (a.points["max"], b.points["max"]),
        ]:
            assert x.dtype == y.dtype and np.array_equal(x, y)
    assert [(r["image_id"], r["status"], r["error"]) for r in store.rows(0, 0)][2] == ("3", "failed", "truncated")


def test_points_without_masks_need_no_arrays(stored: tuple[Path, list[ProposalRecord]]) -> None:
    folder, records = stored
    store = open_proposals(folder)
    arrays_of(store.run.shard_folder(0), 0).unlink()
    found = list(store.read_index(0, 0))
    assert [repr(entry) for entry in found] == [repr(record.entry) for record in records[:2]]
    assert np.array_equal(points_of(found[0], "max"), records[0].points["max"])
    with pytest.raises(InputError, match=r"no 'center' points, only max, random"):
        points_of(found[0], "center")
    with pytest.raises(CorruptError, match=r"part-0000-\w+.zarr.zip: is missing"):
        list(store.read_part(0, 0))


def test_no_proposals_yet(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="vitp generate-proposals"):
        open_proposals(tmp_path)


def open_positions(folder: Path) -> dict[str, int]:
    """Where this process stands in the files that it has open below a folder."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().is_relative_to(folder):
                found[link.name] = os.lseek(int(link.name), 0, os.SEEK_CUR)
    return found


def test_a_store_reads_alike_in_threads_and_other_processes(stored: tuple[Path, list[ProposalRecord]]) -> None:
    path, records = stored
    store = open_proposals(path)
    ids = [record.image_id for record in records] * 20
    before = [store.read(image_id).masks for image_id in ids]  # its parts are open from here on
    positions = open_positions(path)
    forked = get_context("fork").Process(target=lambda: store.read(ids[0]))  # nothing is pickled
    forked.start()
    forked.join()
    assert forked.exitcode == 0 and positions
    assert open_positions(path) == positions  # it moved in files of its own
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, get_context("fork")) as processes:
        for found in (threads.map(store.read, ids), processes.map(store.read, ids, chunksize=5)):
            assert all(np.array_equal(one.masks, masks) for one, masks in zip(found, before, strict=True))
