"""The sums that a finished shard keeps beside its parts: what they say is what the parts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.making import Project, make_project, make_run
from vitp_pipeline.errors import CorruptError
from vitp_pipeline.evaluation import totals
from vitp_pipeline.evaluation.summary import read_result_totals, summarize
from vitp_pipeline.metrics import bootstrap
from vitp_pipeline.runs.repair import repair
from vitp_pipeline.runs.verify import verify_run
from vitp_pipeline.storage.layout import totals_path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("toy"), 7)


def figures(evaluation) -> dict:
    result = summarize(evaluation, read_result_totals(evaluation), True)
    result.pop("provenance")
    return result


def no_parts(*_):
    raise AssertionError("a part was read")


@pytest.mark.parametrize("blocks", [False, True])
def test_figures_of_kept_sums_are_those_of_the_parts(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: bool
) -> None:
    if blocks:
        monkeypatch.setattr(totals, "SINGLE", 2)
        monkeypatch.setattr(bootstrap, "BLOCKS", 3)
    failed = sorted(project.dataset.image_ids)[4]
    make_run(project, tmp_path, shards=3, failed=(failed,))
    settings = {"boundary_iou": True, "certain": True}
    evaluation = project.evaluate(tmp_path, **settings)
    with monkeypatch.context() as patched:
        patched.setattr(totals, "shard_parts", no_parts)
        kept = figures(evaluation)
    assert kept["images"] == {"measured": 6, "of": 7, "failed": [[failed, "torn"]]}
    assert kept["semantic"]["bootstrap"].get("blocks") == (3 if blocks else None)
    for shard in range(3):
        totals_path(evaluation.run.shard_folder(shard)).unlink()
    assert figures(evaluation) == kept


def test_sums_go_when_a_part_is_made_anew(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(project, tmp_path, shards=2)
    evaluation = project.evaluate(tmp_path)
    path, before = totals_path(evaluation.run.shard_folder(1)), figures(evaluation)
    done = path.with_name("done.json")
    content = path.read_bytes()
    done.unlink()
    with monkeypatch.context() as patched:  # stopped before the sums are written
        patched.setattr("vitp_pipeline.evaluation.summary.keep_shard_totals", no_parts)
        with pytest.raises(AssertionError):
            project.evaluate(tmp_path)
    assert not path.exists() and not done.exists()
    project.evaluate(tmp_path)
    assert path.read_bytes() == content and figures(evaluation) == before


def test_damaged_sums_are_noticed_and_made_anew(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path, shards=2)
    evaluation = project.evaluate(tmp_path)
    path, before = totals_path(evaluation.run.shard_folder(0)), figures(evaluation)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"_totals\.parquet"):
        figures(evaluation)
    ours = [d for d in verify_run(tmp_path).damages if d.path == path]
    assert len(ours) == 1 and repair(ours) == []
    project.evaluate(tmp_path)
    assert figures(evaluation) == before and not [d for d in verify_run(tmp_path).damages if d.path == path]


def test_detections_are_read_from_the_parts(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path, shards=2)
    evaluation = project.evaluate(tmp_path, tasks=("semantic", "instance"))
    assert not totals_path(evaluation.run.shard_folder(0)).exists()
    assert figures(evaluation)["instance"]["detections"]["of"] > 0
