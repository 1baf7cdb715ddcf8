"""Bookkeeping of many images: what it touches depends on shards and folders, never on images."""

from __future__ import annotations

import builtins
import io
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import reading, scale, two_tasks
from benchmarks.paired import Comparison
from vitp_pipeline.cluster.plan import Request, plan_chain
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.evaluation import totals
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.runs.status import run_status


class Touched:
    """Counts what is asked of the file system while it is held; a file object for an open descriptor asks nothing."""

    NAMES = ("stat", "lstat", "scandir", "open", "listdir")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.count = patch, 0

    def __enter__(self) -> Touched:
        for module, names in ((os, self.NAMES), (io, ("open",)), (builtins, ("open",))):
            for name in names:
                self.patch.setattr(module, name, self._counted(getattr(module, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def _counted(self, call):
        def counted(*args, **kwargs):
            self.count += not (call.__name__ == "open" and isinstance(args[0], int))
            return call(*args, **kwargs)

        return counted


def written(folder: Path, images: int, shards: int, part_size: int) -> scale.Project:
    project = scale.make_project(folder, images, shards, part_size)
    recipe, data, out = str(folder / "many-recipe.toml"), project.data, project.run
    plan_chain(Request(recipe, data, out, shards), begin=True)
    with scale.unsynced():
        scale.write_run(project)
    return project


def evaluation_of(project: scale.Project):
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
    from vitp_pipeline.execution.sharding import ShardChoice
    from vitp_pipeline.stages.evaluate import prepare

    recipe = load_recipe(project.folder / "many-recipe.toml")
    settings = recipe.stage(EvaluateSettings), recipe.stage(ClassifySettings)
    return prepare(recipe, *settings, (), project.data, project.run, ShardChoice())


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[scale.Project]:
    """Of as many shards and parts, one with four times the images."""
    folder = tmp_path_factory.mktemp("many")
    return [written(folder / str(n), n, 3, n // 6) for n in (30, 120)]


def test_what_is_touched_does_not_depend_on_the_images(
    projects: list[scale.Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, list[int]] = {"list": [], "status": [], "plan": [], "merge": []}
    for project in projects:
        spec = load_manifest(project.folder / "many.toml")
        work = {
            "list": lambda spec=spec, data=project.data: Dataset(spec, data, "val"),
            "status": lambda run=project.run: run_status(run),
            "plan": lambda p=project: plan_chain(
                Request(str(p.folder / "many-recipe.toml"), p.data, p.run, None), begin=True
            ),
            "merge": lambda p=project: result_of(evaluation_of(p)),
        }
        for name, call in work.items():
            (result,) = (project.run / "evaluation").glob("*")
            (result / "result.json").unlink(missing_ok=True)
            call()  # modules, and digests that are remembered
            (result / "result.json").unlink(missing_ok=True)
            with Touched(monkeypatch) as touched:
                call()
            counts[name].append(touched.count)
    for name, (few, many) in counts.items():
        assert few == many > 0, name
    # a shard of a stage costs four: its folder and done.json looked at for links, done.json and its log opened
    assert counts["status"][0] <= 3 * 3 * 4 + 36 and counts["list"][0] <= 20


def test_a_merge_reads_no_part(projects: list[scale.Project], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_parts(*_):
        raise AssertionError("a part was read")

    monkeypatch.setattr(totals, "shard_parts", no_parts)
    evaluation = evaluation_of(projects[1])
    (evaluation.run.folder / "result.json").unlink(missing_ok=True)
    result = result_of(evaluation)
    assert result["images"] == {"measured": 120, "of": 120, "failed": []}
    assert 0 < result["semantic"]["fused"]["mIoU"] < 1 and 0 < result["panoptic"]["fused"]["all"]["PQ"] < 1


@pytest.mark.slow
def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    sizes = ["--images", "40", "--shard-images", "20", "--part-size", "5", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--work", str(tmp_path), "--json", str(figures)])
    scale.main()
    (found,) = json.loads(figures.read_text())["sizes"]
    # 8 parts of 2 + 2 + 1 files; 2 shards of done.json and log in three stages, and sums in one; run.json, twice
    files = found["files"]
    assert files["proposals"] == files["class_scores"] == 8 * 2 + 2 * 2 + 2
    assert files["evaluation"] == 8 + 2 * 3 + 3  # and result.json
    assert all(row["processor"] > 0 and row["peak"] > 1e6 for row in found["commands"].values())
    assert found["commands"]["merge"]["peak"] < 400e6  # libraries that it does not need, such as torch, take more
    assert "| merge |" in capsys.readouterr().out
    monkeypatch.setattr(scale, "timed", lambda project, repeats: {"files": scale.count_files(project.run)})
    listed = scale.measure_table(40, 2, 5, 1, tmp_path)
    assert listed["table_bytes"] > 0 and listed["files"]["evaluation"] == files["evaluation"] - 1  # no result.json
    scale.draw({"sizes": [found, found]}, plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_reading_gives_what_the_codec_gives(tmp_path: Path) -> None:
    from time import perf_counter

    run = reading.draw_run(tmp_path / "run", 5, 2)
    found = reading.measure(run, 1, perf_counter)
    assert list(found) == ["codec", "single", "part", "all"]
    masks = 5 * 30 * 96 * 128 * 4
    assert all(row["images"] == 5 and masks < row["bytes"] <= masks + 5 * 30 * 12 * 4 for row in found.values())
    assert "| single |" in reading.report(found)


def test_two_tasks_report() -> None:
    options = two_tasks.argparse.Namespace(recipe="r", tasks=2, images=3, repeats=2)
    results = two_tasks.results_of(Comparison(6, (2.0, 2.0), (1.0, 2.0)), options)
    assert results["ours"] == 3 and results["ratio"] == pytest.approx(0.75)
    assert "0.750 (0.500, 1.000)" in two_tasks.report(results)
