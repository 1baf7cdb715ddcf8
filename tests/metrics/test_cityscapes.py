"""Cityscapes' AP and panoptic quality, against cityscapesScripts."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.metrics.making import Scene, scenes
from vitp_pipeline.metrics import cityscapes
from vitp_pipeline.metrics.panoptic import PanopticQuality

LABELS = {0: ("car", 26), 1: ("person", 24), 2: ("bus", 28)}
reusing = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ours(images: list[Scene]) -> np.ndarray:
    rows, counts = [], np.zeros((3, 1), np.int64)
    for image in images:
        truth = image.truth
        at = cityscapes.MaskCounts(image.rles, truth)
        rows.append(cityscapes.match(image.found, at, truth))
        counts += cityscapes.true_counts(truth, at.true_areas, 3)
    names = ("categories", "scores", "hit", "ignored")
    return cityscapes.average_precision(*(np.concatenate([getattr(r, n) for r in rows]) for n in names), counts)


def theirs(images: list[Scene], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, dict]:
    """(K, T) values and the averages of evalInstanceLevelSemanticLabeling, from files in its layout."""
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as tool

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone since numpy 2.4
    monkeypatch.setattr(tool.args, "instLabels", [name for name, _ in LABELS.values()])
    matches = {}
    for number, image in enumerate(images):
        file = folder / f"{number}_instanceIds.png"
        truth = np.zeros(image.ids.shape, np.uint16)
        for place, (segment, category, crowd) in enumerate(image.segments):
            label = LABELS[category][1]
            truth[image.ids == segment] = label if crowd else 1000 * label + place
        Image.fromarray(truth).save(file)
        info = {}
        pairs = zip(image.found.mask, image.found.categories, image.found.scores, strict=True)
        for place, (mask, category, score) in enumerate(pairs):
            path = folder / f"{number}_{place}.png"
            Image.fromarray(image.masks[mask].astype(np.uint8) * 255).save(path)
            info[str(path)] = {"labelID": LABELS[int(category)][1], "conf": float(score)}
        found = tool.instances2dict([str(file)])
        gt = next(iter(found.values()))
        truths, preds = tool.assignGt2Preds(gt, Image.open(file), info, tool.args)
        matches[number] = {"groundTruth": truths, "prediction": preds}
    with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        values = tool.evaluateMatches(matches, tool.args)
        return values[0], tool.computeAverages(values, tool.args)


def one_crowd_a_class(image: Scene) -> bool:
    """Several groups of a class would be one region in Cityscapes' label image, and one crowd in panopticapi."""
    crowds = [c for _, c, crowd in image.segments if crowd]
    return len(set(crowds)) == len(crowds)


@pytest.mark.filterwarnings("ignore")
@reusing
@given(st.integers(0, 2**32 - 1))
def test_equal_to_cityscapesscripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    images = [s for s in scenes(seed, side=12, cell=[1, 6, 15][seed % 3]) if one_crowd_a_class(s)]
    if not any(len(s.found) for s in images):
        return
    try:
        values, averages = theirs(images, tmp_path, monkeypatch)
    except IndexError:  # all of a class are ignored: the tool has no last element to look at
        return
    mine = ours(images)
    np.testing.assert_allclose(mine, values, rtol=0, atol=1e-12)
    figures = cityscapes.figures(mine)
    np.testing.assert_allclose(
        [figures["AP"], figures["AP50"]], [averages["allAp"], averages["allAp50%"]], rtol=0, atol=1e-12
    )


def test_small_instances_groups_and_doubles_by_hand() -> None:
    ids = np.zeros((20, 40), np.int32)
    ids[:, :10], ids[:9, 10:20], ids[:, 20:30] = 1, 2, 3  # 200, 90 (too small) and a group of 200 pixels
    segments = [(1, 0, False), (2, 0, False), (3, 0, True)]
    from vitp_pipeline.metrics.instances import Detections

    names = np.zeros(5, np.int64)
    masks = [ids == 1, ids == 1, ids == 2, ids == 3, ids == 0]
    found = Detections(np.arange(5), names, np.array([0.9, 0.8, 0.95, 0.95, 0.95], np.float32))
    # only the double is false, and it comes after the true one
    assert cityscapes.figures(ours([Scene(ids, segments, masks, found)])) == {"AP": 1.0, "AP50": 1.0}
    found = Detections(np.arange(2), names[:2], np.array([0.9, 0.9], np.float32))
    # of equal scores one is true: a single point of precision 1/2, recall 1, and half of the area toward (0, 1)
    figures = cityscapes.figures(ours([Scene(ids, segments, masks[:2], found)]))
    assert figures["AP"] == pytest.approx(0.75)


@reusing
@given(st.integers(0, 2**32 - 1))
def test_panoptic_quality_equal_to_the_benchmarks_tool(tmp_path: Path, seed: int) -> None:
    cases = []
    for image in [s for s in scenes(seed) if one_crowd_a_class(s)]:
        pred, found = np.zeros(image.ids.shape, np.int32), []
        for place, category in zip(image.found.mask, image.found.categories, strict=True):
            free = image.masks[place] & (pred == 0)
            if free.any():
                found.append(Segment(2**24 - 1 - len(found), int(category)))
                pred[free] = found[-1].id
        truth = [Segment(*s) for s in image.segments if s[0] < 2**24]
        ids = np.where(image.ids < 2**24, image.ids, 0)  # three bytes hold less
        cases.append((pred, found, ids, truth))
    same_panoptic_quality(cases, [True, True, False], tmp_path)


def same_panoptic_quality(cases: list[tuple], things: list[bool], folder: Path) -> PanopticQuality:
    """Holds ours against Cityscapes' panoptic evaluation, which carries panopticapi's `pq_compute` as it is.

    Args:
        cases: of every image predicted ids and segments, true ids and segments.
    """
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as tool

    quality, pairs = PanopticQuality(len(things), things), []
    for number, (pred, found, ids, truth) in enumerate(cases):
        quality.update(pred, found, ids, truth)
        entries = []
        for name, array, segments in (("gt", ids, truth), ("pred", pred, found)):
            rgb = np.stack([array % 256, array // 256 % 256, array // 65536], -1).astype(np.uint8)
            file = f"{name}{number}.png"
            Image.fromarray(rgb).save(folder / file)
            info = [Segment(s.id, s.category, getattr(s, "iscrowd", False)).json(array) for s in segments]
            entries.append({"image_id": number, "file_name": file, "segments_info": info})
        pairs.append(tuple(entries))
    categories = {k: {"id": k, "isthing": int(thing)} for k, thing in enumerate(things)}
    with contextlib.redirect_stdout(io.StringIO()):
        stat = tool.pq_compute_single_core(0, pairs, str(folder), str(folder), categories)
    for k in range(len(things)):
        counts = [int(getattr(quality.counts, name)[k]) for name in ("tp", "fp", "fn")]
        assert counts == [stat[k].tp, stat[k].fp, stat[k].fn]
    summary = quality.summary()
    for group, isthing in (("all", None), ("things", True), ("stuff", False)):
        if summary[group].classes:
            average, _ = stat.pq_average(categories, isthing=isthing)
            expected = [average["pq"], average["sq"], average["rq"]]
            scores = [summary[group].pq, summary[group].sq, summary[group].rq]
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    return quality


class Segment:
    def __init__(self, id: int, category: int, crowd: bool = False) -> None:
        self.id, self.category, self.iscrowd = id, category, crowd

    def json(self, ids: np.ndarray) -> dict:
        area = int((ids == self.id).sum())
        return {"id": self.id, "category_id": self.category, "iscrowd": int(self.iscrowd), "area": area}
