"""Several views of an image through all stages, stored and streamed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.conftest import Project, snapshot
from tests.run_files import arrays_of
from vitp_pipeline.artifacts.parts import ArrayReader, read_index
from vitp_pipeline.artifacts.proposals import by_image, open_proposals
from vitp_pipeline.classifier.inference import point_logits
from vitp_pipeline.classifier.preprocess import prepare_image
from vitp_pipeline.classifier.weights import load_classifier
from vitp_pipeline.config.flags import parse_alphas
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.errors import IncompatibleError, UsageError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.geometry import normalize_points
from vitp_pipeline.report.loaded_evaluation import open_evaluation
from vitp_pipeline.stages.stream import Stream
from vitp_pipeline.storage.layout import index_path

VIEWS = {"scales": (0.75, 1.0), "flip": True, "window": (80, 96), "stride": (60, 64), "limit": 3}
SEMANTIC = {"tasks": ("semantic",)}


def stream(project: Project, out: Path, shard: str | None = None, evaluate: dict | None = None, **settings) -> Stream:
    recipe, choice = load_recipe(project.recipe), choose_shard(shard, {})
    generate = recipe.stage(ProposalSettings, **settings)
    kinds = recipe.stage(ClassifySettings), recipe.stage(EvaluateSettings, **(evaluate or {}))
    made = Stream(recipe, generate, *kinds, parse_alphas("0,0.4,1"), project.data, out, choice)
    made.shards(choice.within(made.evaluation.run.shards))
    return made


def figures(result: dict) -> dict:
    return {k: v for k, v in result.items() if k != "provenance"}


def close(ours, theirs, path: str = "") -> None:
    """Equal figures, but for float rounding of single pixels."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key in theirs:
            close(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            close(a, b, f"{path}[{i}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=2e-4), path
    else:
        assert ours == theirs, path


@pytest.fixture(scope="module")
def viewed(project: Project, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many views of three images, and the classifier of the finished run."""
    out = tmp_path_factory.mktemp("views") / "run"
    project.run("generate-proposals", out, **VIEWS)
    shutil.copytree(finished / "classifier", out / "classifier")
    project.run("classify", out)
    project.run("evaluate", out, **SEMANTIC)
    return out


def test_rows_and_arrays_of_every_view(project: Project, viewed: Path) -> None:
    proposals = open_proposals(viewed)
    assert proposals.several_views
    groups = list(by_image(proposals))
    assert [views[0].image_id for views in groups] == list(proposals.run.images)
    for views in groups:
        assert [v.number for v in views] == list(range(len(views)))
        frames = list(dict.fromkeys((v.view.resized, v.view.flip) for v in views))
        assert len(frames) == 4 and len(views) > 8  # two scales, each plain and flipped, in windows
        for view in views:
            points = view.points["max"]
            assert (points >= 0).all() and (points < view.view.original).all()
            assert view.masks.shape == (len(view.kept), *view.view.mask)
    rows = proposals.rows(0, 0)
    assert {"view", "window", "flip"} <= rows[0].keys()
    with ArrayReader(arrays_of(proposals.run.shard_folder(0), 0)) as arrays:
        first = groups[0][0].image_id
        assert arrays.read(f"masks/{first}@3").shape == groups[0][3].masks.shape


def test_one_whole_view_is_stored_as_ever(finished: Path) -> None:
    proposals = open_proposals(finished)
    assert not proposals.several_views
    assert all(r.key == r.image_id and r.number == 0 and r.view.whole for r in proposals)
    rows = proposals.rows(0, 0)
    assert all((row["view"], row["window"], row["flip"]) == (0, None, False) for row in rows)


def test_the_classifier_sees_the_whole_upright_image(project: Project, viewed: Path) -> None:
    """Scores of a flipped window are those of its points on the original image."""
    model = load_classifier(viewed / "classifier/default/model.safetensors")
    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val")
    (folder,) = (viewed / "class_scores").iterdir()
    import torch

    with ArrayReader(arrays_of(folder / "shards/00000", 0)) as arrays:
        record = next(r for r in open_proposals(viewed) if r.view.flip and r.view.window)
        image = prepare_image(dataset.read_image(dataset.sample(record.image_id)), model.image_size)
        points = torch.from_numpy(normalize_points(record.points["max"], record.view.original))
        expected = point_logits(model, torch.from_numpy(image)[None], points[None])[0]
        found = torch.from_numpy(arrays.read(f"point_logits/{record.key}"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_stream_gives_the_figures_of_the_stored_views(project: Project, viewed: Path, tmp_path: Path) -> None:
    shutil.copytree(viewed / "classifier", tmp_path / "run/classifier")
    streamed = stream(project, tmp_path / "run", evaluate=SEMANTIC, **VIEWS)
    evaluation, _ = project.run("evaluate", viewed, **SEMANTIC)
    theirs = result_of(evaluation)
    assert theirs["semantic"]["fused"]["mIoU"] > 0.2 and theirs["panoptic"] is None
    close(figures(result_of(streamed.evaluation)), figures(theirs))
    assert not (tmp_path / "run/proposals").exists() and not (tmp_path / "run/class_scores").exists()
    assert not list((tmp_path / "run/evaluation").rglob("*.zarr.zip"))


@pytest.mark.slow
def test_the_stream_gives_the_figures_of_the_authors_frames(project: Project, finished: Path, tmp_path: Path) -> None:
    """Frames made of frames, and every view classified in its own picture: stage by stage as in one process."""
    text = project.recipe.read_text(encoding="utf-8")
    (tmp_path / "r.toml").write_text(f'preset = "official-oneformer"\n{text}[classify]\nchunk = 9\n', encoding="utf-8")
    own = replace(project, recipe=tmp_path / "r.toml")
    for name in ("stored", "streamed"):
        shutil.copytree(finished / "classifier", tmp_path / name / "classifier")
    views = {"scales": (0.75, 1.0), "flip": True, "limit": 3, "masks": "bounded"}
    own.run("generate-proposals", tmp_path / "stored", **views)
    assert all(record.view.through for record in open_proposals(tmp_path / "stored"))
    own.run("classify", tmp_path / "stored")
    evaluation, _ = own.run("evaluate", tmp_path / "stored", **SEMANTIC)
    streamed = stream(own, tmp_path / "streamed", evaluate=SEMANTIC, **views)
    close(figures(result_of(streamed.evaluation)), figures(result_of(evaluation)))


def test_the_stream_gives_the_figures_of_one_stored_view(project: Project, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "classifier", tmp_path / "run/classifier")
    evaluation, _ = project.run("evaluate", finished)
    theirs = result_of(evaluation)
    assert theirs["panoptic"] is not None
    close(figures(result_of(stream(project, tmp_path / "run").evaluation)), figures(theirs))


def test_the_stream_restarts_and_shards_like_a_stage(project: Project, finished: Path, tmp_path: Path) -> None:
    settings = {"limit": 4, "part_size": 1, "flip": True, "evaluate": SEMANTIC}
    for name in ("whole", "pieces"):
        shutil.copytree(finished / "classifier", tmp_path / name / "classifier")
    whole = stream(project, tmp_path / "whole", "0/2", **settings)
    stream(project, tmp_path / "whole", "1/2", **settings)
    torn = stream(project, tmp_path / "pieces", "1/2", **settings).evaluation.run.shard_folder(1)
    (torn / "done.json").unlink()
    index_path(torn, 1).unlink()  # killed before its last part
    kept = index_path(torn, 0).stat().st_mtime_ns
    again = stream(project, tmp_path / "pieces", **settings)  # all shards: the other, and what is missing of this
    assert index_path(torn, 0).stat().st_mtime_ns == kept
    assert snapshot(tmp_path / "pieces") == snapshot(tmp_path / "whole")
    assert figures(result_of(again.evaluation)) == figures(result_of(whole.evaluation))


def test_an_image_that_cannot_be_read_fails_alone(project: Project, finished: Path, tmp_path: Path) -> None:
    data = shutil.copytree(project.data, tmp_path / "data")
    shutil.copytree(finished / "classifier", tmp_path / "run/classifier")
    dataset = Dataset(load_recipe(project.recipe).manifest, data, "val")
    dataset.samples[1].image.write_bytes(b"no picture")
    made = stream(replace(project, data=data), tmp_path / "run", limit=2, flip=True, evaluate=SEMANTIC)
    result = result_of(made.evaluation, allow_missing=True)
    assert result["images"]["measured"] == 1 and result["images"]["failed"][0][0] == dataset.samples[1].image_id


def test_what_views_cannot_give_is_refused(project: Project, viewed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"panoptic figures need one view.*tasks = "):
        project.run("evaluate", viewed)
    shutil.copytree(viewed / "classifier", tmp_path / "run/classifier")
    with pytest.raises(UsageError, match="panoptic figures need one view"):
        stream(project, tmp_path / "run", **VIEWS)
    with pytest.raises(UsageError, match="Strides lie between"):
        project.run("generate-proposals", tmp_path / "none", window=(4, 4), stride=(5, 5))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="a stride without a window"):
        project.run("generate-proposals", tmp_path / "other", stride=(4, 4))
    with pytest.raises(IncompatibleError, match="several views per image, but mask prompts need a single"):
        open_proposals(viewed).require_one_view("mask prompts")
    with pytest.raises(IncompatibleError, match="several views per image, but reports need a single"):
        open_evaluation(viewed)
    with pytest.raises(IncompatibleError, match="was streamed, so there are no masks"):
        open_evaluation(stream(project, tmp_path / "run", limit=1).evaluation.run.folder)


def test_an_image_has_one_row_and_its_masks_are_numbered_through_all_views(project: Project, viewed: Path) -> None:
    many, _ = project.run("evaluate", viewed, **SEMANTIC)
    table = read_index(index_path(many.run.shard_folder(0), 0))
    assert table["image_id"].to_pylist() == list(many.run.images[: table.num_rows])
    queries = [m["query"] for m in table["masks"].to_pylist()[0]]
    assert len(set(queries)) == len(queries) and max(queries) > 100


def test_opaque_masks_need_one_view(project, viewed: Path) -> None:
    """Masks of several views have no common order, so only the sum is averaged."""
    with pytest.raises(UsageError, match="overlap = 'smallest-on-top' needs one view of an image"):
        project.run("evaluate", viewed, tasks=("semantic",), overlap="smallest-on-top")
