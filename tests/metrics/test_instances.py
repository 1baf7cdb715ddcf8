"""Average precision against pycocotools and faster-coco-eval."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.metrics.making import Scene, coco_files, scenes
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import IncompatibleError
from vitp_pipeline.metrics.boundary import boundary_width
from vitp_pipeline.metrics.instances import (
    AveragePrecision,
    Detections,
    Matches,
    TrueInstances,
    average_precision,
    boundary_overlaps,
    match,
    overlaps,
    true_counts,
)

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def ours(images: list[Scene], classes: int, boundary: bool = False) -> AveragePrecision:
    rows, counts = [], np.zeros((classes, 4), np.int64)
    for image in images:
        truth = image.truth
        at = overlaps(image.rles, truth)
        if boundary:
            at = boundary_overlaps(image.rles, truth, at, boundary_width(image.ids.shape))
        rows.append(match(image.found, at, truth))
        counts += true_counts(truth, at.true_areas, classes)
    return average_precision(*columns(rows), counts)


def columns(rows: list[Matches]) -> list[np.ndarray]:
    names = ("categories", "scores", "hit", "ignored")
    return [np.concatenate([getattr(r, n) for r in rows]) for n in names]


def theirs(tool: str, truth: dict, results: list[dict], kind: str = "segm") -> tuple[np.ndarray, np.ndarray]:
    """(the first six of COCOeval's figures, its precisions (T, R, K, A))."""
    if tool == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)  # both tools write into what they read
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = Evaluation(coco, coco.loadRes(results) if results else COCO(), kind)
        if not results:
            evaluation.cocoDt.dataset = {**truth, "annotations": []}
            evaluation.cocoDt.createIndex()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats[:6]), evaluation.eval["precision"][..., -1]


def same(found: AveragePrecision, stats: np.ndarray, precision: np.ndarray | None) -> None:
    mine = np.array([-1.0 if math.isnan(found.figures()[n]) else found.figures()[n] for n in NAMES])
    if precision is not None:
        assert np.array_equal(found.precision, precision)  # every bit
        assert np.array_equal(mine, stats)
    np.testing.assert_allclose(mine, stats, rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_pycocotools(seed: int) -> None:
    images = scenes(seed, side=[4, 12, 40][seed % 3])
    same(ours(images, 3), *theirs("pycocotools", *coco_files(images, 3)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_faster_coco_eval(seed: int) -> None:
    images = scenes(seed)
    truth, results = coco_files(images, 3)
    if truth["annotations"] and results:
        stats, _ = theirs("faster", truth, results)
        same(ours(images, 3), stats, None)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_boundary_ap_equal_to_faster_coco_eval(seed: int) -> None:
    images = scenes(seed, side=20)
    truth, results = coco_files(images, 3)
    if truth["annotations"] and results:
        stats, _ = theirs("faster", truth, results, "boundary")
        same(ours(images, 3, boundary=True), stats, None)


def test_more_than_a_hundred_detections_of_a_class() -> None:
    """Only the best hundred of an image and class count; here the right one is the 101st."""
    ids = np.zeros((20, 20), np.int32)
    ids[:10] = 7
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 20)) < 0.1 for _ in range(100)] + [ids == 7]
    for last, expected in ((0.0, 0.0), (0.99, 1.0)):
        scores = np.concatenate([np.full(100, 0.5), [last]]).astype(np.float32)
        found = Detections(np.arange(101), np.zeros(101, np.int64), scores)
        images = [Scene(ids, [(7, 0, False)], masks, found)]
        result = ours(images, 1)
        assert result.figures()["AP"] == pytest.approx(expected, abs=1e-12)
        same(result, *theirs("pycocotools", *coco_files(images, 1)))


def test_by_hand() -> None:
    ids = np.repeat([[1] * 4 + [0] * 4 + [2] * 4], 4, 0).astype(np.int32)
    segments = [(1, 0, False), (2, 1, True)]
    masks = [ids == 1, ids == 2, (ids == 1) & (np.arange(12) < 3)]
    found = Detections(np.array([2, 0, 1]), np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7], np.float32))
    image = Scene(ids, segments, masks, found)
    result = ours([image], 2)
    # the sure detection has IoU 0.75: right at six thresholds; else the next one is right with precision 1/2
    np.testing.assert_allclose(result.figures()["AP"], (6 * 1 + 4 * 0.5) / 10)
    assert result.figures()["AP50"] == pytest.approx(1, abs=1e-12) and np.isnan(
        result.per_class()[1]
    )  # only a crowd: nothing to find
    assert math.isnan(result.figures()["AP_large"]) and result.figures()["AP_small"] == result.figures()["AP"]


def test_nothing_at_all() -> None:
    void = encode_mask(np.zeros((2, 2), bool))
    empty = Detections(*(np.zeros(0, t) for t in (np.int64, np.int64, np.float32)))
    truth = TrueInstances([], np.zeros(0, np.int64), np.zeros(0, bool), void)
    rows = match(empty, overlaps([], truth), truth)
    assert math.isnan(average_precision(*columns([rows]), np.zeros((2, 4), np.int64)).figures()["AP"])
    mask = encode_mask(np.ones((2, 2), bool))
    one = TrueInstances([mask], np.zeros(1, np.int64), np.zeros(1, bool), void)
    counts = true_counts(one, np.array([4]), 2)
    assert average_precision(*columns([match(empty, overlaps([], one), one)]), counts).figures()["AP"] == 0
    with pytest.raises(IncompatibleError, match="differ in size"):
        overlaps([encode_mask(np.ones((2, 3), bool))], one)


def test_the_coco_sample(shared) -> None:
    """Ground truth of the sample's val images, disturbed; equal figures and AP of exactly 1 undisturbed."""
    folder = shared / "data" / "coco"
    data = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    things = [c["id"] for c in data["categories"] if c["isthing"]]
    rng, disturbed, exact = np.random.default_rng(0), [], []
    for annotation in sorted(data["annotations"], key=lambda a: a["image_id"]):
        rgb = np.asarray(Image.open(folder / "panoptic_val2017" / annotation["file_name"]).convert("RGB"), np.int32)
        ids = (rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])[::2, ::2]
        segments = [
            (s["id"], things.index(s["category_id"]), bool(s["iscrowd"]))
            for s in annotation["segments_info"]
            if s["category_id"] in things
        ]
        for out, shift in ((disturbed, 3), (exact, 0)):
            moves = [rng.integers(-shift, shift + 1, 2) for _ in segments]
            masks = [np.roll(ids == s[0], tuple(m), (0, 1)) for s, m in zip(segments, moves, strict=True)]
            count = len(segments)
            scores = rng.random(count).astype(np.float32)
            names = np.array([s[1] if not shift or rng.random() < 0.8 else rng.integers(80) for s in segments])
            found = Detections(np.arange(count), names.astype(np.int64), scores)
            out.append(Scene(ids.astype(np.int32), segments, masks, found))
    assert ours(exact, 80).figures()["AP"] == pytest.approx(1, abs=1e-12)  # pycocotools adds np.spacing(1) as well
    files = coco_files(disturbed, 80)
    result = ours(disturbed, 80)
    same(result, *theirs("pycocotools", *files))
    same(result, theirs("faster", *files)[0], None)
    assert 0.1 < result.figures()["AP"] < 0.9
    boundary = ours(disturbed, 80, boundary=True)
    same(boundary, theirs("faster", *files, "boundary")[0], None)
    assert boundary.figures()["AP"] < result.figures()["AP"]
