"""Semantic, panoptic and instance evaluation together, beside OpenMMLab's own of the same logits.

    python -m benchmarks.coco_tasks --images 6

Images are as COCO's: 640×480, 133 classes of which 80 are things, 100 queries, masks of 160×120 cells. A drawn image
has twelve regions; as many queries have them, moved by some pixels, some with another class, two more queries repeat
regions, the others are blobs that are probably nothing.

`ours` is what `evaluate` does for one variant: read the stored masks (preset `bounded`) and the labels, score, label
map and confusion, panoptic map and matches, instances and their matches; then PQ, AP and mIoU. `theirs`, from logits in
memory: upsampling, MaskFormerFusionHead's panoptic_postprocess and instance_postprocess, CocoPanopticMetric (which
writes and reads its PNG files) and CocoMetric of mmdetection; class scores as in mmsegmentation's MaskFormer head, and
its IoUMetric, whose labels are in memory.

Before anything is timed the figures of both, ours from masks stored `lossless`, must be equal: PQ, SQ and RQ to 1e-9
points, AP and mIoU to the digits that theirs are rounded to. They agree where every pixel has a label and the panoptic
rule is mmdetection's without `filter_low_score`. Elsewhere they do not: a detection on unlabeled pixels is ignored by
vitp and wrong for CocoMetric, and IoUMetric averages the classes that labels or predictions hold (`mIoU_union`), where
vitp's headline counts those of the labels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.paired import Comparison, compare

SIZE, GRID, QUERIES, REGIONS = (480, 640), (120, 160), 100, 12
STEEP = 0.25  # logits a pixel across a border


@dataclass(frozen=True)
class Scene:
    """ids: (H, W) int32 from 1; categories: (R,) of the ids; masks: (Q, h, w), logits: (Q, K + 1) float32."""

    ids: np.ndarray
    categories: np.ndarray
    masks: np.ndarray
    logits: np.ndarray


def drawn_scenes(images: int, classes: int, things: int) -> Iterator[Scene]:
    """Yield scenes; stuff regions of one class have one id, as in COCO."""
    import torch

    random = np.random.default_rng(0)

    def distances(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(regions, h, w) from each point, in pixels of the image."""
        step = SIZE[0] / size[0]
        rows, columns = ((np.arange(side, dtype=np.float32) + 0.5) * step for side in size)
        return np.hypot(rows[:, None] - points[:, :1, None], columns - points[:, 1:, None])

    for _ in range(images):
        points = random.random((REGIONS, 2)) * SIZE
        categories = np.append(random.integers(0, things, REGIONS // 2), random.integers(things, classes, REGIONS // 2))
        owner = distances(points, SIZE).argmin(0)
        first = np.array([np.flatnonzero(categories == k)[0] if k >= things else i for i, k in enumerate(categories)])
        ids = (first + 1)[owner].astype(np.int32)
        away = distances(points + random.normal(0, 12, points.shape), GRID)
        best = np.sort(away, 0)[:2]
        own = np.where(away == best[0], best[1], best[0]) - away
        cells = torch.from_numpy(random.normal(0, 1, (QUERIES - REGIONS - 2, 1, *(side // 8 for side in GRID)))).float()
        blobs = 5 * torch.nn.functional.interpolate(cells, GRID, mode="bicubic")[:, 0].numpy() - 8
        masks = np.concatenate([np.clip(STEEP * own, -12, 12), np.clip(STEEP * own[:2] - 1, -12, 12), blobs])
        masks = (masks + random.normal(0, 0.2, masks.shape)).astype(np.float32)
        logits = random.normal(0, 1, (QUERIES, classes + 1)).astype(np.float32)
        called = np.where(random.random(REGIONS) < 0.85, categories, random.integers(0, classes, REGIONS))
        logits[np.arange(REGIONS), called] += 10
        logits[[REGIONS, REGIONS + 1], categories[:2]] += 7
        logits[REGIONS + 2 :, -1] += 7
        present = np.unique(ids)
        yield Scene(ids, categories[present - 1], masks, logits)


class Work:
    """Drawn scenes as a dataset in COCO's panoptic form and a run of proposals, below a folder."""

    def __init__(self, root: Path, images: int) -> None:
        import torch
        from PIL import Image

        from vitp_pipeline.config.settings import EvaluateSettings
        from vitp_pipeline.datasets import Dataset, load_manifest
        from vitp_pipeline.geometry import View
        from vitp_pipeline.postprocess.segmenter import Segmenter

        self.root, self.spec = root, load_manifest("coco-panoptic")
        self.things = np.asarray(self.spec.things)
        self.view = View(SIZE, SIZE, SIZE, GRID)
        self.scenes = list(drawn_scenes(images, len(self.things), int(self.things.sum())))
        self.logits = [(torch.from_numpy(s.masks), torch.from_numpy(s.logits)) for s in self.scenes]
        numbers = [entry.label for entry in self.spec.classes]
        self.labels, listed, boxes = [], [], []
        for folder in ("val2017", "annotations/panoptic_val2017"):
            (root / folder).mkdir(parents=True)
        for number, scene in enumerate(self.scenes, 1):
            name = f"{number:012d}"
            (root / f"val2017/{name}.jpg").touch()
            colors = np.stack([scene.ids % 256, scene.ids // 256, np.zeros_like(scene.ids)], 2).astype(np.uint8)
            Image.fromarray(colors).save(root / f"annotations/panoptic_val2017/{name}.png")
            present, areas = np.unique(scene.ids, return_counts=True)
            segments = []
            for own, category, area in zip(present.tolist(), scene.categories.tolist(), areas.tolist(), strict=True):
                about = {"category_id": numbers[category], "iscrowd": 0, "area": area, "bbox": [0, 0, 1, 1]}
                segments.append({"id": own, **about})
                if self.things[category]:
                    mask = _encode(scene.ids == own)
                    boxes.append({"id": len(boxes) + 1, "image_id": number, "segmentation": mask, **about})
            listed.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
            of_id = np.zeros(present.max() + 1, np.int64)
            of_id[present] = scene.categories
            self.labels.append(torch.from_numpy(of_id[scene.ids]))
        pictures = [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in range(1, images + 1)
        ]
        classes = [{"id": entry.label, "name": entry.name, "isthing": int(entry.thing)} for entry in self.spec.classes]
        self.panoptic_file, self.instance_file = (
            root / f"annotations/{kind}_val2017.json" for kind in ("panoptic", "instances")
        )
        for file, entries in ((self.panoptic_file, listed), (self.instance_file, boxes)):
            file.write_text(json.dumps({"images": pictures, "categories": classes, "annotations": entries}))
        self.dataset = Dataset(self.spec, root, "val")
        settings = EvaluateSettings(alpha=0.0, panoptic_rule="mmdet", device="cpu")
        self.segmenter = Segmenter(settings, self.things)

    def stored(self, preset: str):
        """The run's proposals, with masks of a preset."""
        import pyarrow as pa

        from vitp_pipeline.artifacts.mask_codec import PRESETS, MaskCodec, store_masks
        from vitp_pipeline.artifacts.parts import ArrayWriter
        from vitp_pipeline.artifacts.proposals import ProposalRecord, open_proposals, schema, write_record
        from vitp_pipeline.artifacts.run import create_or_check
        from vitp_pipeline.execution.runner import commit_part, finish_shard
        from vitp_pipeline.postprocess.upsample import source_reach
        from vitp_pipeline.storage.run_store import LocalStore

        out, ids = self.root / preset, self.dataset.image_ids
        identity = {"stage": "proposals", "manifest": self.spec.identity(), "settings": {"split": "val"}}
        run = create_or_check(LocalStore(out), out / "proposals", identity, tuple(ids), 1, len(ids))
        arrays, rows = ArrayWriter(run.folder / "made.zarr.zip", run.about(0, 0)), []
        for image_id, (masks, logits) in zip(ids, self.logits, strict=True):
            objectness = 1 - logits.double().softmax(1)[:, -1].numpy()
            kept = store_masks(masks, objectness, MaskCodec(**PRESETS[preset]), source_reach(self.view))
            points = {"max": np.zeros((len(masks), 2), np.int32)}
            about = image_id, f"val2017/{image_id}.jpg", self.view, "mmdet", kept.kept, kept.dropped_mass, points
            record = ProposalRecord(*about, logits.numpy(), kept.masks, loss=kept.loss)
            rows.append(write_record(arrays, record))
        arrays.close()
        table = pa.Table.from_pylist(rows, schema=schema(run.fingerprint, self.spec.class_names))
        commit_part(run, 0, 0, table, arrays.path)
        finish_shard(run, 0)
        return open_proposals(out)

    def ours(self, proposals) -> dict[str, float]:
        """PQ, SQ, RQ, AP and mIoU, in percent."""
        from vitp_pipeline.evaluation.instances import true_instances
        from vitp_pipeline.metrics.instances import (
            AREAS,
            Detections,
            average_precision,
            match,
            overlaps,
            true_counts,
        )
        from vitp_pipeline.metrics.panoptic import PanopticQuality
        from vitp_pipeline.metrics.semantic import Confusion

        classes = len(self.things)
        confusion, quality = Confusion(classes), PanopticQuality(classes, self.things)
        rows, counts = [], np.zeros((classes, len(AREAS)), np.int64)
        for record in proposals.read_part(0, 0):
            sample = self.dataset.sample(record.image_id)
            read = self.dataset.read_truth(sample)
            truth, segments = read.semantic(), self.dataset.panoptic_of(read)
            objects = true_instances(segments, truth, self.things)
            view = self.segmenter.score(record, None)
            confusion.update(self.segmenter.semantic([view])[0], truth)
            ((ids, found),) = self.segmenter.panoptic(view)
            quality.update(ids, found, *segments)
            instances = self.segmenter.instances(view)
            (detected,) = instances.variants
            at = overlaps([mask.rle for mask in instances.masks], objects)
            rows.append(match(Detections(detected.masks, detected.categories, detected.scores), at, objects))
            counts += true_counts(objects, at.true_areas, classes)
        names = ("categories", "scores", "hit", "ignored")
        columns = (np.concatenate([getattr(r, name) for r in rows]) for name in names)
        precision = average_precision(*columns, counts).precision[..., 0]
        scores = quality.summary()["all"]
        found_precision = precision[precision > -1]
        return {
            **{name.upper(): 100 * getattr(scores, name) for name in ("pq", "sq", "rq")},
            "AP": 100 * float(found_precision.mean()),
            "mIoU": 100 * confusion.miou("union"),
        }


class Peer:
    """mmdetection's fusion head and metrics, mmsegmentation's formula and metric."""

    def __init__(self, work: Work) -> None:
        from vitp_pipeline.generators.openmmlab.mmcv_stub import prepare_mmcv

        prepare_mmcv()
        import mmcv
        from mmdet.evaluation.functional import panoptic_utils
        from mmdet.evaluation.metrics import coco_panoptic_metric
        from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
        from mmengine.fileio import get
        from mmengine.logging import MMLogger

        # what they take from panopticapi, which PyPI does not have; `benchmarks.metrics` puts readers of its own there
        panoptic_utils.PQStat = coco_panoptic_metric.PQStat = PanopticStatistics
        panoptic_utils.rgb2id = coco_panoptic_metric.rgb2id = _numbers
        panoptic_utils.mmcv, panoptic_utils.get = mmcv, get
        coco_panoptic_metric.id2rgb, coco_panoptic_metric.VOID, coco_panoptic_metric.panopticapi = _colors, 0, True
        MMLogger.get_current_instance().setLevel("ERROR")
        things = int(work.things.sum())
        config = {"panoptic_on": True, "instance_on": True, "max_per_image": 100, "filter_low_score": False}
        self.head = MaskFormerFusionHead(things, len(work.things) - things, test_cfg=config)
        names = tuple(entry.name for entry in work.spec.classes)
        self.work, self.meta = work, {"classes": names, "thing_classes": names[:things]}

    def figures(self) -> dict[str, float]:
        import torch
        from mmdet.evaluation.metrics import CocoMetric, CocoPanopticMetric
        from mmdet.structures import DetDataSample
        from mmseg.evaluation.metrics import IoUMetric
        from torch.nn import functional as F

        work = self.work
        folder = str(work.root / "annotations/panoptic_val2017")
        with contextlib.redirect_stdout(io.StringIO()):
            panoptic = CocoPanopticMetric(ann_file=str(work.panoptic_file), seg_prefix=folder)
            instances = CocoMetric(ann_file=str(work.instance_file), metric="segm")
            semantic = IoUMetric()
            for metric in (panoptic, instances, semantic):
                metric.dataset_meta = self.meta
            for number, ((masks, logits), labels) in enumerate(zip(work.logits, work.labels, strict=True), 1):
                with torch.inference_mode():
                    up = F.interpolate(masks[None], SIZE, mode="bilinear", align_corners=False)
                    about = DetDataSample(metainfo={"img_shape": SIZE, "ori_shape": SIZE})
                    found = self.head.predict(logits[None], up, [about], rescale=True)[0]
                    scores = torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], up[0].sigmoid())
                    classes = scores.argmax(0)
                sample = {
                    "img_id": number,
                    "img_path": f"{number:012d}.jpg",
                    "ori_shape": SIZE,
                    "pred_panoptic_seg": {"sem_seg": found["pan_results"].sem_seg},
                    "pred_instances": found["ins_results"],
                    "pred_sem_seg": {"data": classes[None]},
                    "gt_sem_seg": {"data": labels[None]},
                }
                for metric in (panoptic, instances, semantic):
                    metric.process({}, [sample])
            scores = panoptic.compute_metrics(panoptic.results)
            precision = instances.compute_metrics(instances.results)["segm_mAP"]
            overlap = semantic.compute_metrics(semantic.results)["mIoU"]
        return {name: scores[name] for name in ("PQ", "SQ", "RQ")} | {"AP": 100 * precision, "mIoU": float(overlap)}


class PanopticStatistics(dict):
    """Counts by category and their averages, as mmdetection asks panopticapi's PQStat for them."""

    def __missing__(self, category: int) -> SimpleNamespace:
        return self.setdefault(category, SimpleNamespace(tp=0, fp=0, fn=0, iou=0.0))

    def __iadd__(self, other: PanopticStatistics) -> PanopticStatistics:
        for category, counts in other.items():
            for name, value in vars(counts).items():
                setattr(self[category], name, getattr(self[category], name) + value)
        return self

    def pq_average(self, categories: dict, isthing: bool | None) -> tuple[dict, dict]:
        quality = []
        for number, category in categories.items():
            c = self[number]
            if isthing in (None, category["isthing"] == 1) and c.tp + c.fp + c.fn:
                recognition = c.tp / (c.tp + 0.5 * c.fp + 0.5 * c.fn)
                segmentation = c.iou / c.tp if c.tp else 0.0
                quality.append((segmentation * recognition, segmentation, recognition))
        means = np.mean(quality, 0) if quality else np.zeros(3)
        return dict(zip(("pq", "sq", "rq"), means.tolist(), strict=True)) | {"n": len(quality)}, {}


def _numbers(colors: np.ndarray) -> np.ndarray:
    red, green, blue = (colors[..., i].astype(np.int32) for i in range(3))
    return red + 256 * green + 65536 * blue


def _colors(numbers: np.ndarray) -> np.ndarray:
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)


def _encode(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def check_equal(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Raise AssertionError where figures differ by more than theirs are rounded."""
    rounding = {"PQ": 1e-9, "SQ": 1e-9, "RQ": 1e-9, "AP": 0.0501, "mIoU": 0.00501}
    for name, bound in rounding.items():
        assert abs(ours[name] - theirs[name]) <= bound, f"{name}: {ours[name]} is not {theirs[name]}"


def measure(images: int, repeats: int) -> tuple[Comparison, dict[str, float]]:
    """The comparison, and our figures from lossless masks. Raise AssertionError when they are not theirs."""
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), images)
        peer, figures = Peer(work), work.ours(work.stored("lossless"))
        check_equal(figures, peer.figures())
        bounded = work.stored("bounded")
        return compare(lambda: work.ours(bounded), peer.figures, images, repeats), figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    found, figures = measure(options.images, options.repeats)
    low, high = found.ratios
    print("| ours, images/s | theirs, images/s | ratio (lowest, highest of a pair) | of processor time |")
    print("|---:|---:|---:|---:|")
    speeds = f"{found.ours_per_second:.2f} | {found.bare_per_second:.2f}"
    print(f"| {speeds} | {found.ratio:.2f} ({low:.2f}, {high:.2f}) | {found.cpu_ratio:.2f} |")
    print("equal figures:", ", ".join(f"{name} {value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
