"""Speed of the metrics beside the tools that define them, from results in memory: panoptic quality, average precision.

    python -m benchmarks.metrics

`pq`: ids and segments of drawn maps (480×640, regions around 12 points; the prediction is made of the points moved,
some of them with other classes). Beside it the algorithm of panopticapi in mmdetection's copy, in one process, given
the maps where it would decode PNG files. Counts must be equal.

`ap`: 5,000 drawn images of 480×640 with boxes of 80 classes, eight true and sixteen found an image, as run lengths.
Beside it pycocotools' COCOeval, its indices ready. Precisions must be equal in every bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from benchmarks.paired import Comparison, compare

SIZE, CLASSES = (480, 640), 80


@dataclass
class Segment:
    id: int
    category: int
    iscrowd: bool = False


def drawn_maps(images: int, segments: int = 12) -> list[tuple]:
    """(predicted ids, predicted segments, true ids, true segments) of images."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)

    def ids_of(points: np.ndarray) -> np.ndarray:
        return np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in points], 0).astype(np.int32)

    cases = []
    for _ in range(images):
        points = random.random((segments + 1, 2)) * SIZE  # the last region is void, or nobody's
        moved = points + random.normal(0, 15, points.shape)
        names = random.integers(0, CLASSES, segments)
        numbers = np.append(random.choice(2**24 - 1, segments, replace=False) + 1, 0).astype(np.int32)
        truth = [Segment(int(i), int(k), bool(random.random() < 0.05)) for i, k in zip(numbers, names, strict=False)]
        names = np.where(random.random(segments) < 0.8, names, random.integers(0, CLASSES, segments))
        found = (ids_of(moved) + 1) % (segments + 1)
        there = set(np.unique(found).tolist())
        predicted = [Segment(i, int(k)) for i, k in enumerate(names, 1) if i in there]
        true = numbers[(ids_of(points) - 1) % (segments + 1)]
        cases.append((found.astype(np.int32), predicted, true, truth))
    return cases


def our_counts(cases: list[tuple]) -> np.ndarray:
    """(K, 4): true positives, false positives, false negatives, summed IoU."""
    from vitp_pipeline.metrics.panoptic import PanopticQuality

    quality = PanopticQuality(CLASSES, np.ones(CLASSES, bool))
    for case in cases:
        quality.update(*case)
    c = quality.counts
    return np.stack([c.tp, c.fp, c.fn, c.iou], 1)


class PanopticApi:
    """mmdetection's copy of panopticapi's `pq_compute_single_core`; maps come from memory, by their number."""

    def __init__(self, cases: list[tuple]) -> None:
        from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

        prepare_mmcv()
        from mmdet.evaluation.functional import panoptic_utils

        class Stat(dict):
            def __missing__(self, category: int) -> SimpleNamespace:
                return self.setdefault(category, SimpleNamespace(tp=0, fp=0, fn=0, iou=0.0))

        maps = {f"{i}/{kind}": case[at] for i, case in enumerate(cases) for kind, at in (("found", 0), ("true", 2))}
        panoptic_utils.PQStat, panoptic_utils.rgb2id = Stat, lambda ids: ids
        panoptic_utils.get = lambda path, **_: path.removeprefix("/")
        panoptic_utils.mmcv = SimpleNamespace(
            imfrombytes=lambda name, **_: maps[name], imread=lambda name, **_: maps[name.removeprefix("/")]
        )
        self.compute = panoptic_utils.pq_compute_single_core
        self.annotations = [
            tuple(
                {
                    "image_id": i,
                    "file_name": f"{i}/{kind}",
                    "segments_info": [
                        {
                            "id": s.id,
                            "category_id": s.category,
                            "iscrowd": int(s.iscrowd),
                            "area": int((ids == s.id).sum()),
                        }
                        for s in segments
                    ],
                }
                for kind, ids, segments in (("true", *case[2:]), ("found", *case[:2]))
            )
            for i, case in enumerate(cases)
        ]

    def counts(self) -> np.ndarray:
        stat = self.compute(0, self.annotations, "/", "/", range(CLASSES))
        return np.array([[getattr(stat[k], name) for name in ("tp", "fp", "fn", "iou")] for k in range(CLASSES)])


def panoptic(images: int, repeats: int) -> Comparison:
    """Raise AssertionError when counts differ."""
    cases = drawn_maps(images)
    peer = PanopticApi(cases)
    np.testing.assert_allclose(our_counts(cases), peer.counts(), rtol=1e-12)
    return compare(lambda: our_counts(cases), peer.counts, images, repeats)


@dataclass(frozen=True)
class Boxes:
    """An image's instances as run lengths. `found` are detections of `masks`."""

    masks: list
    found: object
    truth: object


def drawn_boxes(images: int, true: int = 8, found: int = 16) -> list[Boxes]:
    """Boxes and, of the first half of what is found, the same boxes moved; classes mostly correct."""
    from pycocotools import mask as coco

    from vitp_pipeline.metrics.instances import Detections, TrueInstances

    random = np.random.default_rng(0)
    height, width = SIZE

    def encoded(boxes: np.ndarray) -> list:
        corners = np.clip(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), 0, [width, height] * 2)
        x0, y0, x1, y1 = corners.T
        polygons = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], 1)
        return coco.frPyObjects([p.tolist() for p in polygons], height, width)

    drawn, void = [], coco.encode(np.zeros(SIZE, np.uint8, order="F"))
    for _ in range(images):
        boxes = np.concatenate([random.random((true, 2)) * [width, height] * 0.8, random.uniform(8, 200, (true, 2))], 1)
        names = random.integers(0, CLASSES, true)
        own = np.arange(found) % true
        moved = boxes[own] + random.normal(0, 1, (found, 4)) * np.where(np.arange(found) < true, 5, 40)[:, None]
        moved[:, 2:] = np.maximum(moved[:, 2:], 4)
        calls = np.where(random.random(found) < 0.8, names[own], random.integers(0, CLASSES, found))
        detections = Detections(np.arange(found), calls, random.random(found).astype(np.float32))
        truth = TrueInstances(encoded(boxes), names, random.random(true) < 0.02, void)
        drawn.append(Boxes(encoded(moved), detections, truth))
    return drawn


def our_precision(drawn: list[Boxes]) -> np.ndarray:
    """(T, R, K, A)"""
    from vitp_pipeline.metrics.instances import AREAS, average_precision, match, overlaps, true_counts

    rows, counts = [], np.zeros((CLASSES, len(AREAS)), np.int64)
    for image in drawn:
        at = overlaps(image.masks, image.truth)
        rows.append(match(image.found, at, image.truth))
        counts += true_counts(image.truth, at.true_areas, CLASSES)
    columns = (np.concatenate([getattr(r, name) for r in rows]) for name in ("categories", "scores", "hit", "ignored"))
    return average_precision(*columns, counts).precision


class CocoTools:
    """pycocotools on the same instances, indexed before."""

    def __init__(self, drawn: list[Boxes]) -> None:
        from pycocotools import mask as coco
        from pycocotools.coco import COCO

        true, found = [], []
        for number, image in enumerate(drawn, 1):
            for masks, names, into in (
                (image.truth.masks, image.truth.categories, true),
                (image.masks, image.found.categories, found),
            ):
                for rle, name, area in zip(masks, names, coco.area(masks), strict=True):
                    entry = {"image_id": number, "category_id": int(name) + 1, "segmentation": rle, "area": int(area)}
                    into.append({"id": len(into) + 1, "iscrowd": 0, "bbox": [0, 0, 1, 1], **entry})
            for entry, crowd in zip(true[-len(image.truth.masks) :], image.truth.crowd, strict=True):
                entry["iscrowd"] = int(crowd)
            for entry, score in zip(found[-len(image.masks) :], image.found.scores, strict=True):
                entry["score"] = float(score)
        images = [{"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(drawn))]
        categories = [{"id": k + 1, "name": str(k)} for k in range(CLASSES)]
        self.sides = []
        for entries in (true, found):
            side = COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": entries}
            with contextlib.redirect_stdout(io.StringIO()):
                side.createIndex()
            self.sides.append(side)

    def precision(self) -> np.ndarray:
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*self.sides, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., -1]


def instances(images: int, repeats: int) -> Comparison:
    """Raise AssertionError when a precision differs."""
    drawn = drawn_boxes(images)
    peer = CocoTools(drawn)
    np.testing.assert_array_equal(our_precision(drawn), peer.precision())
    return compare(lambda: our_precision(drawn), peer.precision, images, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=50, help="images for pq")
    parser.add_argument("--images", type=int, default=5000, help="for ap")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print("| figure | ours, images/s | peer, images/s | ratio (lowest, highest of a pair) |\n|---|---:|---:|---:|")
    for name, measure, images in (("pq", panoptic, options.maps), ("ap", instances, options.images)):
        found = measure(images, options.repeats)
        low, high = found.ratios
        speeds = f"{found.ours_per_second:.1f} | {found.bare_per_second:.1f}"
        print(f"| {name} | {speeds} | {found.ratio:.2f} ({low:.2f}, {high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
