"""What `check-dataset` says that stage one will need, against the formula and against stage one itself."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.run_files import arrays_of
from vitp_pipeline.cli.app import app
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.demo.scenes import draw_scenes
from vitp_pipeline.diagnostics.dry_run import FLOPS, MEASURED, Trial, TrialGenerator
from vitp_pipeline.diagnostics.flops import generator_cost, product_speed
from vitp_pipeline.diagnostics.storage_estimate import estimate, lines_of
from vitp_pipeline.errors import UsageError
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.stages.generate_proposals import generate_proposals
from vitp_pipeline.storage.layout import index_path

BOUNDED = ProposalSettings("").settled(begun=False)
TRIED = Trial(MEASURED, "some.py", "cpu, 1 thread", 3, 20, 2.0, 100.0, start=10.0, seconds=0.5, stored=1000.0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, "val", 3, 0)
    return folder


@pytest.fixture(scope="module")
def demo() -> Recipe:
    return load_recipe("demo")


def tried(scenes: Path, demo: Recipe, how: str, **keys) -> tuple[Trial, Dataset, ProposalSettings]:
    settings = demo.stage(ProposalSettings, **keys).settled(begun=False)
    dataset = Dataset(demo.manifest, scenes, "val")
    trial = TrialGenerator(demo, settings, demo.manifest, scenes, how).tried(dataset, dataset.samples)
    return trial, dataset, settings


def test_storage_is_the_formula() -> None:
    report = {"images": 2000, "sizes": {"683x512": 3, "100x40": 1}}
    # Mask2Former with InternImage-H on ADE20K: 200 masks of 224×299, about 26.8 MB an image
    found = estimate(report, 150, 200, (224, 299), BOUNDED, tasks=3)
    assert found["bytes_per_image"] == 200 * 224 * 299 * 2 + 200 * 151 * 4
    assert found["bytes"] == 2000 * found["bytes_per_image"] and found["mask_dtype"] == "int16"
    assert found["images_per_shard"] == 667 and found["bytes_per_shard"] == 667 * found["bytes_per_image"]
    lossless = ProposalSettings("", masks="lossless", mask_dtype="float32", drop_below=0.0)
    found = estimate(report, 150, 100, None, lossless)
    assert found["bytes_per_image"] == 100 * 4 * (3 * 171 * 128 + 25 * 10) / 4 + 100 * 151 * 4


def test_a_trial_stands_for_all_images() -> None:
    found = estimate({"images": 10, "sizes": {}}, 4, 999, None, BOUNDED, tasks=4, trial=TRIED)
    assert found["bytes_per_image"] == 2 * (20 * 100 * 2 + 20 * 5 * 4)  # two views
    trial = found["trial"]
    assert trial["seconds"] == 10 + 10 * 0.5 and trial["seconds_per_shard"] == 10 + 3 * 0.5
    assert trial["stored"] == 10_000 and trial["stored_per_shard"] == 3000
    storage, time_, tasks = lines_of(found)
    assert "at most 88 kB" in storage and "20 masks of 100 cells in 2 views" in storage
    assert "an estimate: about 15 s" in time_ and "0.5 s an image" in time_ and "10 kB as stored" in time_
    assert "some.py on cpu, 1 thread, run on 3 images" in time_
    assert "4 tasks at once, a shard of 3 images each: 11.5 s and about 3 kB a shard" in tasks
    json.dumps(found)


def test_counted_operations_are_a_lower_bound_and_say_so() -> None:
    counted = dataclasses.replace(TRIED, how=FLOPS, stored=None, seconds=2.0, flops=4e12, speed=2e12)
    found = estimate({"images": 3600, "sizes": {}}, 4, 1, None, BOUNDED, tasks=2, trial=counted)
    _, time_, tasks = lines_of(found)
    assert "at least 2 h" in time_ and "4000 GFLOPs an image" in time_ and "2000 GFLOP/s" in time_
    assert "1 h and at most 15.8 MB" in tasks and "stored" not in found["trial"]


def test_a_measured_trial_stores_what_stage_one_stores(scenes: Path, demo: Recipe, tmp_path: Path) -> None:
    trial, dataset, settings = tried(scenes, demo, MEASURED)
    began = time.perf_counter()
    generate_proposals(demo, settings, scenes, tmp_path / "run", ShardChoice())
    whole = time.perf_counter() - began
    shard = tmp_path / "run/proposals/shards/00000"
    size = sum(path(shard, 0).stat().st_size for path in (index_path, arrays_of))
    assert trial.stored * len(dataset) == pytest.approx(size, rel=0.02)
    assert 0 < trial.seconds * len(dataset) < 20 * whole and trial.images == 3 and trial.views == 1
    assert (trial.queries, trial.cells) == (30, 24 * 32)


def test_a_counted_trial_counts_every_view(scenes: Path, demo: Recipe) -> None:
    trial, dataset, settings = tried(scenes, demo, FLOPS, mirror=True, checkpoint="nowhere.pth")
    generator = TrialGenerator(demo, settings, demo.manifest, scenes, FLOPS).generator
    image = dataset.read_image(dataset.samples[0])
    assert trial.flops == 2 * generator_cost(generator, generator.resize(image).shape[:2]).flops
    assert trial.views == 2 and trial.seconds == trial.flops / trial.speed and trial.stored is None


def test_speed_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter([0.0, 0.1, 0.05, 0.1, 0.1, 0.1, 0.1])  # the first one warms up
    monkeypatch.setattr(torch, "mm", lambda left, right: time.sleep(next(pauses)))
    assert 0.3 < product_speed(torch.device("cpu"), 0.12) / (2 * 1024**3 / 0.05) <= 1


def test_command(scenes: Path) -> None:
    words = ["check-dataset", "demo", "--data-root", str(scenes), "--split", "val"]
    result = CliRunner().invoke(app, [*words, "--time", "measured", "--tried", "1", "--tasks", "3", "--json"])
    assert result.exit_code == 0
    need = json.loads(result.stdout)["splits"][0]["stage_one"]
    assert need["queries"] == 30 and need["trial"]["images"] == 1 and need["images_per_shard"] == 1
    assert "for its time, too, give --time measured" in CliRunner().invoke(app, words).stdout
    with pytest.raises(UsageError, match="of which generator"):
        CliRunner().invoke(
            app, ["check-dataset", "ade20k", "--data-root", "x", "--time", "flops"], catch_exceptions=False
        )
