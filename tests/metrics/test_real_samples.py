"""Real ground truth, disturbed, against the benchmarks' own tools: counts equal, ratios to 1e-9."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.metrics.test_cityscapes import Segment, same_panoptic_quality
from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.datasets.prepare import prepare
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.evaluation.instances import true_instances
from vitp_pipeline.metrics import cityscapes
from vitp_pipeline.metrics.instances import Detections
from vitp_pipeline.metrics.semantic import Confusion

SAMPLES = {
    "camvid": ("camvid", 12),
    "cityscapes": ("cityscapes", 1),
    "coco-panoptic": ("coco", 12),
    "ade20k": ("ADEChallengeData2016", 3),
    "coco-stuff": ("coco_stuff164k", 4),
}


@pytest.mark.parametrize("manifest", SAMPLES)
def test_semantic_counts_are_mmsegs(shared: Path, manifest: str) -> None:
    importlib.import_module("vitp_pipeline.generators.openmmlab.mmcv_stub").prepare_mmcv()
    IoUMetric = importlib.import_module("mmseg.evaluation.metrics").IoUMetric
    folder, count = SAMPLES[manifest]
    dataset = Dataset(load_manifest(manifest), shared / "data" / folder, "val", count)
    classes, rng = len(dataset.spec.classes), np.random.default_rng(0)
    assert len(dataset) == count
    ours, theirs = Confusion(classes), []
    for sample in dataset.samples:
        truth = dataset.read_semantic(sample)
        pred = np.roll(truth, tuple(rng.integers(-9, 10, 2)), (0, 1))
        wrong, right = rng.choice(np.unique(pred), 2)
        pred = np.where((pred == IGNORE) | (pred == wrong), max(right, 0), pred)
        ours.update(pred, truth)
        label = torch.from_numpy(np.where(truth == IGNORE, 255, truth))
        theirs.append(IoUMetric.intersect_and_union(torch.from_numpy(pred), label, classes, 255))
    inter, union, predicted, labeled = (sum(x.double() for x in column) for column in zip(*theirs, strict=True))
    assert np.array_equal(ours.areas(), torch.stack([inter, labeled, predicted], 1).numpy())
    figures = IoUMetric.total_area_to_metrics(inter, union, predicted, labeled)
    np.testing.assert_allclose(ours.ious(), figures["IoU"], rtol=0, atol=1e-9)
    assert ours.miou("union") == pytest.approx(np.nanmean(figures["IoU"]), abs=1e-9)
    assert ours.mean_accuracy() == pytest.approx(np.nanmean(figures["Acc"]), abs=1e-9)
    assert ours.pixel_accuracy() == pytest.approx(float(figures["aAcc"]), abs=1e-9)
    assert 0.2 < ours.pixel_accuracy() < 1


@pytest.fixture(scope="module")
def frames(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The Cityscapes val frame with the panoptic labels that `vitp prepare` makes."""
    folder = tmp_path_factory.mktemp("cityscapes")
    for kind in ("leftImg8bit", "gtFine"):
        shutil.copytree(shared / "data/cityscapes" / kind / "val", folder / kind / "val")
    prepare("cityscapes", folder, ["panoptic"], "val", 1)
    return Dataset(load_manifest("cityscapes-panoptic"), folder, "val")


def disturbed(dataset: Dataset, rng: np.random.Generator) -> list[tuple]:
    """Of every image a prediction that is the ground truth moved, some classes changed, and the ground truth."""
    cases = []
    for sample in dataset.samples:
        ids, segments = dataset.read_panoptic(sample)
        pred = np.roll(ids, tuple(rng.integers(-4, 5, 2)), (0, 1))
        classes = len(dataset.spec.classes)
        found = [
            Segment(s.id, s.category if rng.random() < 0.8 else int(rng.integers(classes)))
            for s in segments
            if (pred == s.id).any()
        ]
        cases.append((pred, found, ids, segments))
    return cases


def test_panoptic_counts_are_panopticapis(shared: Path, frames: Dataset, tmp_path: Path) -> None:
    coco = Dataset(load_manifest("coco-panoptic"), shared / "data/coco", "val")
    crowded = sorted(coco.samples, key=lambda s: -sum(segment.iscrowd for segment in s.segments))[:8]
    assert crowded[0].segments and any(segment.iscrowd for segment in crowded[0].segments)
    coco.samples = crowded
    for number, dataset in enumerate((coco, frames)):
        folder = tmp_path / str(number)
        folder.mkdir()
        cases = disturbed(dataset, np.random.default_rng(number))
        quality = same_panoptic_quality(cases, list(dataset.spec.things), folder)
        assert 0.2 < quality.summary()["all"].pq < 1


def test_instances_of_a_cityscapes_frame_are_the_benchmarks(
    frames: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `gtFine_instanceIds.png`, groups and void as they are, by evalInstanceLevelSemanticLabeling."""
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as tool

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone since numpy 2.4
    (sample,) = frames.samples
    (file,) = (frames.root / "gtFine/val").glob("*/*_instanceIds.png")
    ids, segments = frames.read_panoptic(sample)
    things, spec = np.array(frames.spec.things), frames.spec
    rng = np.random.default_rng(1)
    wanted = [s for s in segments if things[s.category]]
    masks = [np.roll(ids == s.id, tuple(rng.integers(-2, 3, 2)), (0, 1)) for s in wanted]
    classes = np.array([s.category if rng.random() < 0.8 else rng.choice(np.flatnonzero(things)) for s in wanted])
    found = Detections(np.arange(len(masks)), classes, np.round(rng.random(len(masks)), 1).astype(np.float32))

    truth = true_instances((ids, segments), frames.read_semantic(sample), things)
    at = cityscapes.MaskCounts([encode_mask(m) for m in masks], truth)
    row = cityscapes.match(found, at, truth)
    counts = cityscapes.true_counts(truth, at.true_areas, len(things))
    mine = cityscapes.average_precision(row.categories, row.scores, row.hit, row.ignored, counts)

    info = {}
    for number, (mask, category, score) in enumerate(zip(masks, classes, found.scores, strict=True)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        info[str(path)] = {"labelID": spec.classes[category].label, "conf": float(score)}
    names = [c.name for c in spec.classes if c.thing]
    monkeypatch.setattr(tool.args, "instLabels", names)
    with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        gt = next(iter(tool.instances2dict([str(file)]).values()))
        truths, preds = tool.assignGt2Preds(gt, Image.open(file), info, tool.args)
        values = tool.evaluateMatches({"frame": {"groundTruth": truths, "prediction": preds}}, tool.args)
        averages = tool.computeAverages(values, tool.args)
    np.testing.assert_allclose(mine[things], values[0], rtol=0, atol=1e-9)
    assert cityscapes.figures(mine)["AP"] == pytest.approx(averages["allAp"], abs=1e-9)
    assert 0.1 < averages["allAp"] < 1 and len(masks) > 10
