"""AP where the ground truth is a COCO instances file: polygons and run lengths that overlap, areas as the file says."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.datasets import making
from tests.datasets.test_objects import instances_spec, write_instances
from tests.metrics.test_instances import NAMES, columns
from tests.stages.making import RECIPE, Project, make_run
from tests.stages.test_export_results import export
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import UsageError
from vitp_pipeline.evaluation.instances import listed_instances
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.metrics.instances import Detections, average_precision, match, overlaps, true_counts

MANIFEST = (
    making.COCO_MANIFEST.replace("coco-panoptic", "coco-instances")
    .replace("panoptic_val.json", "instances.json")
    .replace('labels = "panoptic_val"\n', "")
    .replace("thing = false", "thing = true")
)


def segmentation(rng: np.random.Generator, mask: np.ndarray) -> Any:
    """Polygons with corners between pixels, run lengths, or run lengths in plain numbers."""
    height, width = mask.shape
    kind = rng.integers(3)
    if kind == 0:
        rows, cols = np.nonzero(mask)
        center, reach = (cols.mean(), rows.mean()), 0.6 * max(np.ptp(rows), np.ptp(cols), 2)
        angles = np.sort(rng.random(7)) * 2 * np.pi
        corners = np.stack([center[0] + reach * np.cos(angles), center[1] + reach * np.sin(angles)], 1)
        return [np.round(corners, 2).ravel().tolist(), [1.5, 1.5, 6.0, 1.5, 6.0, 4.25]]
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if kind == 1:
        return {"size": [height, width], "counts": runs["counts"].decode()}
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int)])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": [height, width], "counts": np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()}


def make_project(folder: Path, seed: int, count: int = 5) -> Project:
    """`making.write_coco`'s images with an instances file: objects overlap, some are crowds, areas are anything."""
    making.write_coco(folder / "data", count)
    (folder / "toy.toml").write_text(making.COCO_MANIFEST)
    panoptic = Dataset(load_manifest(folder / "toy.toml"), folder / "data", "val")
    rng, annotations, images = np.random.default_rng(seed), [], []
    for sample in panoptic.samples:
        ids, segments = panoptic.read_panoptic(sample)
        height, width = ids.shape
        number = int(sample.image_id)
        images.append({"id": number, "file_name": sample.image.name, "height": height, "width": width})
        for s in [*segments, *segments[: rng.integers(2)]]:
            mask = np.roll(ids == s.id, tuple(rng.integers(-2, 3, 2)), (0, 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": making.CATEGORIES[s.category],
                    "iscrowd": int(rng.random() < 0.2),
                    "area": round(float(rng.choice([12.5, 1023.9, 1024.0, 1024.5, 9216.0, 20000.0])), 2),
                    "bbox": [0, 0, 5, 5],
                    "segmentation": segmentation(rng, mask),
                }
            )
    categories = [{"id": c, "name": n} for c, n in zip(making.CATEGORIES, making.NAMES, strict=True)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "data/annotations/instances.json").write_text(json.dumps(content))
    (folder / "toy.toml").write_text(MANIFEST)
    (folder / "r.toml").write_text(RECIPE)
    return Project(folder / "data", load_recipe(folder / "r.toml"))


def by_pycocotools(file: Path, results: Path | list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results if isinstance(results, list) else str(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    project = make_project(tmp_path, seed)
    file = project.root / "annotations/instances.json"
    make_run(project, tmp_path / "run", shards=2)
    result = result_of(project.evaluate(tmp_path / "run", tasks=("semantic", "panoptic", "instance")))
    assert result["panoptic"] is None and result["semantic"]
    sizes = 0
    for variant in ("generator", "classifier", "fused"):
        made = export(project, tmp_path / "run", "coco-results", variant, tasks=("instance",))
        theirs = by_pycocotools(file, made.results / "results.json")
        figures = result["instance"][variant]["coco"]
        assert [-1 if figures[n] is None else figures[n] for n in NAMES] == theirs.stats[:6].tolist()
        for k, name in enumerate(making.NAMES):
            precision = theirs.eval["precision"][:, :, k, 0, -1]
            expected = precision[precision > -1].mean() if (precision > -1).any() else None
            assert figures["per_class"][name] == expected
        sizes += sum(theirs.stats[n] > 0 for n in (3, 4, 5))
    assert sizes > 3  # several ranges of area, which pixels alone would not give: images have about 1000


def test_bounds_and_approximation(tmp_path: Path) -> None:
    project = make_project(tmp_path, 0)
    make_run(project, tmp_path / "run")
    result = result_of(project.evaluate(tmp_path / "run", tasks=("instance",)))
    assert result["instance"]["upper_bound_mask"]["coco"]["AP"] > result["instance"]["generator"]["coco"]["AP"]
    assert any("AP is approximate" in note and "lossless" in note for note in result["notes"])
    pieces = result_of(project.evaluate(tmp_path / "run", tasks=("instance",), components=True))
    assert any("connected pieces" in note and "do not separate objects" not in note for note in pieces["notes"])


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    project = make_project(tmp_path, 0)
    make_run(project, tmp_path / "run")
    with pytest.raises(UsageError, match="have no segments"):
        project.evaluate(tmp_path / "run", tasks=("panoptic",))
    path = project.root / "annotations/instances.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"tasks = \['instance'\]"):
        project.evaluate(tmp_path / "run", tasks=("instance",))


def test_background_is_not_void(tmp_path: Path) -> None:
    """By Cityscapes' rule void forgives; an instances file says nothing about what lies outside its objects."""
    write_instances(tmp_path)
    data = Dataset(instances_spec(), tmp_path, "val")
    for sample in data.samples:
        found = listed_instances(data.read_instances(sample), data.image_size(sample), np.array([True, False, True]))
        assert coco_mask.area(found.void) == 0
    found = listed_instances(data.read_instances(data.samples[0]), (40, 60), np.array([True, False, True]))
    assert found.categories.tolist() == [2, 0] and found.areas.tolist() == [143.75, 300.0]


def test_the_coco_sample(tmp_path: Path, shared: Path) -> None:
    """The sample's val objects as polygons (the outlines of their pieces) with the polygons' area, disturbed masks."""
    import cv2

    folder = shared / "data/coco"
    panoptic = Dataset(load_manifest("coco-panoptic"), folder, "val")
    rng, images, annotations, moved = np.random.default_rng(0), [], [], {}
    for sample in panoptic.samples:
        number, (height, width) = int(sample.image_id), panoptic.image_size(sample)
        images.append({"id": number, "file_name": sample.image.name, "height": height, "width": width})
        moved[sample.image_id] = []
        for thing in panoptic.read_instances(sample):
            outlines, _ = cv2.findContours(thing.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            polygons = [o.ravel().tolist() for o in outlines if len(o) >= 3]
            area = float(sum(cv2.contourArea(o) for o in outlines if len(o) >= 3))
            if thing.iscrowd or not polygons:
                runs = coco_mask.encode(np.asfortranarray(thing.mask, np.uint8))
                polygons = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
            label = panoptic.spec.classes[thing.category].label
            about = {"image_id": number, "category_id": label, "iscrowd": int(thing.iscrowd), "bbox": [0, 0, 9, 9]}
            annotations.append({"id": len(annotations) + 1, **about, "area": area, "segmentation": polygons})
            moved[sample.image_id].append((label, np.roll(thing.mask, tuple(rng.integers(-4, 5, 2)), (0, 1))))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(folder / "val2017")
    names = {c.label: c.name for c in panoptic.spec.classes if c.thing}
    content = {"info": {}, "images": images, "annotations": annotations}
    content["categories"] = [{"id": label, "name": name} for label, name in names.items()]
    file = tmp_path / "annotations/instances_val2017.json"
    file.write_text(json.dumps(content))

    data = Dataset(load_manifest("coco-instances"), tmp_path, "val")
    assert data.has_instances and not data.has_segments
    index = {info.label: k for k, info in enumerate(data.spec.classes)}
    things, rows, counts, results = np.array(data.spec.things), [], np.zeros((80, 4), np.int64), []
    for sample in sorted(data.samples, key=lambda s: int(s.image_id)):
        truth = listed_instances(data.read_instances(sample), data.image_size(sample), things)
        guesses = moved[sample.image_id]
        rles, scores = [encode_mask(mask) for _, mask in guesses], rng.random(len(guesses)).astype(np.float32)
        found = Detections(np.arange(len(rles)), np.array([index[label] for label, _ in guesses], np.int64), scores)
        at = overlaps(rles, truth)
        rows.append(match(found, at, truth))
        counts += true_counts(truth, at.true_areas, 80)
        for (label, _), rle, score in zip(guesses, rles, scores, strict=True):
            text = {**rle, "counts": rle["counts"].decode()}
            about = {"image_id": int(sample.image_id), "category_id": label}
            results.append({**about, "segmentation": text, "score": float(score)})
    mine, theirs = average_precision(*columns(rows), counts), by_pycocotools(file, results)
    assert np.array_equal(mine.precision, theirs.eval["precision"][..., -1])
    assert [mine.figures()[n] for n in NAMES] == theirs.stats[:6].tolist()
    assert 0.2 < mine.figures()["AP"] < 0.95
