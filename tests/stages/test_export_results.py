"""Exported results, read back by the tools they are meant for: the figures must be those of `evaluate`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from tests.local_runs import write_index
from tests.stages.making import Project, make_project, make_run
from vitp_pipeline.artifacts.parts import read_index
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.identity import image_key
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.errors import InputError, MissingStageError, PartialError, UsageError
from vitp_pipeline.evaluation.summary import result_of
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, find_format
from vitp_pipeline.interop.results_cityscapes import CITYSCAPES
from vitp_pipeline.stages.export_results import Export, Labeling, export_shards, prepare


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


FILE_PER_IMAGE = [name for name in RESULT_FORMATS if RESULT_FORMATS[name].file_per_image]


def export(
    project: Project, out: Path, format: str, variant: str = "fused", shards=None, labeling=None, **settings
) -> Export:
    measures, points = project.recipe.stage(EvaluateSettings, **settings), project.recipe.stage(ClassifySettings)
    arguments = (project.recipe, measures, points, format, variant, project.root, out, ShardChoice())
    made = prepare(*arguments, labeling=labeling)
    export_shards(made, range(made.run.shards) if shards is None else shards)
    return made


def renamed(project: Project, names: tuple[str, ...], labels: tuple[int, ...] | None = None) -> Project:
    """The project with other names or label values of the classes, before its run is made."""
    infos = zip(project.recipe.manifest.classes, names, labels or making.CATEGORIES, strict=True)
    classes = tuple(dataclasses.replace(c, name=n, label=v) for c, n, v in infos)
    manifest = dataclasses.replace(project.recipe.manifest, classes=classes)
    path = project.root / "annotations" / "panoptic_val.json"
    data = json.loads(path.read_text())
    new = dict(zip(making.CATEGORIES, classes, strict=True))
    for category in data["categories"]:
        category["name"], category["id"] = new[category["id"]].name, new[category["id"]].label
    for annotation in data["annotations"]:
        for s in annotation["segments_info"]:
            s["category_id"] = new[s["category_id"]].label
    path.write_text(json.dumps(data))
    return Project(project.root, dataclasses.replace(project.recipe, manifest=manifest))


NAMINGS = {
    "plain": ([139, 146, 153, 160, 167], [f"{n:06d}.png" for n in (139, 146, 153, 160, 167)]),
    "20 digits": ([10**19 + 7, 10**19 + 3, 10**20, 5, -5], ["s1/1.png", "s2/1.png", "s1/2.png", "s3/1.png", "4.png"]),
    "padded": (["0998", "0999", "1000", "1001", "1"], [f"{n}.png" for n in "abcde"]),
    "text": (["b", "a/1", "", "a@1", "10.0"], ["b.png", "a.png", "b/1.png", "a/b/b.png", "..b.png"]),
}
STEMS = {
    "plain": [f"{n:06d}" for n in (139, 146, 153, 160, 167)],
    "20 digits": ["s1/1", "s2/1", "s1/2", "s3/1", "4"],
    "padded": list("abcde"),
    "text": ["b", "a", "b/1", "a/b/b", "..b"],
}


def called(project: Project, naming: str) -> Project:
    """The project with other ids and file names, before its run is made."""
    path = project.root / "annotations" / "panoptic_val.json"
    data = json.loads(path.read_text())
    for image, annotation, i, name in zip(data["images"], data["annotations"], *NAMINGS[naming], strict=True):
        (project.root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / "val" / image["file_name"]).rename(project.root / "val" / name)
        image["id"], image["file_name"], annotation["image_id"] = i, name, i
    path.write_text(json.dumps(data))
    return project


def quietly():
    return contextlib.redirect_stdout(io.StringIO())


@pytest.mark.parametrize("naming", NAMINGS)
def test_coco_panoptic(project: Project, tmp_path: Path, naming: str) -> None:
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as tool  # carries panopticapi's function

    project = called(project, naming)
    make_run(project, tmp_path / "run", 2, 2)
    figures = result_of(project.evaluate(tmp_path / "run"))["panoptic"]
    truth = json.loads((project.root / "annotations" / "panoptic_val.json").read_text())
    categories = {c["id"]: c for c in truth["categories"]}
    for variant in ("fused", "generator", "classifier"):
        results = export(project, tmp_path / "run", "coco-panoptic", variant).results
        found = json.loads((results / "panoptic.json").read_text())
        assert {c["id"]: c["name"] for c in found["categories"]} == {k: c["name"] for k, c in categories.items()}
        by_image = {a["image_id"]: a for a in found["annotations"]}
        assert [a["file_name"] for a in found["annotations"]] == [f"{stem}.png" for stem in STEMS[naming]]
        assert [i["id"] for i in found["images"]] == list(by_image) == NAMINGS[naming][0]
        pairs = []
        for annotation in truth["annotations"]:
            ids = np.asarray(Image.open(project.root / "panoptic_val" / annotation["file_name"])).astype(int)
            ids = ids[..., 0] + 256 * ids[..., 1] + 65536 * ids[..., 2]
            for s in annotation["segments_info"]:
                s["area"] = int((ids == s["id"]).sum())
            pairs.append((annotation, by_image[annotation["image_id"]]))
        with quietly():
            stat = tool.pq_compute_single_core(
                0, pairs, str(project.root / "panoptic_val"), str(results / "panoptic"), categories
            )
        expected, _ = stat.pq_average(categories, isthing=None)
        for key in ("PQ", "SQ", "RQ"):
            assert figures[variant]["all"][key] == pytest.approx(expected[key.lower()], abs=1e-12)
    # and it is a dataset that vitp reads
    split = dataclasses.replace(
        project.recipe.manifest.splits["val"], labels="panoptic", annotations="panoptic.json", images="."
    )
    again = Dataset(dataclasses.replace(project.recipe.manifest, splits={"val": split}), results, "val")
    ids, segments = again.read_panoptic(again.samples[0])
    assert len(again) == 5 and set(np.unique(ids)) - {0} == {s.id for s in segments}


@pytest.mark.parametrize("naming", NAMINGS)
def test_coco_results(project: Project, tmp_path: Path, naming: str) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    project, ids_there = called(project, naming), dict(zip(NAMINGS[naming][1], NAMINGS[naming][0], strict=True))
    make_run(project, tmp_path / "run", 2, 2)
    figures = result_of(project.evaluate(tmp_path / "run", tasks=("instance",)))["instance"]
    annotations, images = [], []
    for sample in project.dataset.samples:
        ids, segments = project.dataset.read_panoptic(sample)
        own = ids_there[sample.image.relative_to(project.root / "val").as_posix()]
        images.append({"id": own, "height": ids.shape[0], "width": ids.shape[1]})
        for s in segments:
            if making.THINGS[s.category]:
                rle = encode_mask(ids == s.id)
                rle["counts"] = rle["counts"].decode()
                about = {"id": len(annotations) + 1, "image_id": own, "iscrowd": int(s.iscrowd)}
                area = {"area": int((ids == s.id).sum()), "bbox": list(s.bbox)}
                annotations.append({**about, **area, "category_id": making.CATEGORIES[s.category], "segmentation": rle})
    for variant in ("fused", "generator"):
        results = export(project, tmp_path / "run", "coco-results", variant).results
        with quietly():
            coco = COCO()
            coco.dataset = {
                "info": {},
                "images": images,
                "annotations": annotations,
                "categories": [{"id": making.CATEGORIES[2], "name": "car"}],
            }
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(str(results / "results.json")), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ours = [figures[variant]["coco"][k] for k in ("AP", "AP50", "AP75")]
        assert ours == evaluation.stats[:3].tolist()  # every bit
        ids = {i["id"] for i in json.loads((results / "images.json").read_text())}
        assert ids == {i["id"] for i in images}


def test_cityscapes(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as instance
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as pixel

    # the tools find predictions by "city_sequence_frame"
    path = project.root / "annotations" / "panoptic_val.json"
    data = json.loads(path.read_text())
    for image in data["images"]:
        name = f"aachen_000000_{image['id']:06d}_leftImg8bit.png"
        (project.root / "val" / image["file_name"]).rename(project.root / "val" / name)
        image["file_name"] = name
    path.write_text(json.dumps(data))
    project = renamed(project, ("sky", "road", "car"))
    make_run(project, tmp_path / "run", 1, 2)
    settings = {"tasks": ("semantic", "instance"), "instance_ap": ("cityscapes",)}
    figures = result_of(project.evaluate(tmp_path / "run", **settings))
    results = export(project, tmp_path / "run", "cityscapes").results
    truths, semantic, instances = [], [], []
    for sample in project.dataset.samples:
        ids, segments = project.dataset.read_panoptic(sample)
        labels = np.zeros(ids.shape, np.uint16)  # 0: unlabeled, ignored
        for place, s in enumerate(segments):
            label = CITYSCAPES[project.recipe.manifest.classes[s.category].name]
            thing = making.THINGS[s.category] and not s.iscrowd
            labels[ids == s.id] = 1000 * label + place if thing else label
        stem = sample.image.stem.removesuffix("_leftImg8bit")
        truth = tmp_path / "gt" / f"{stem}_gtFine_instanceIds.png"
        making.write_png(truth, labels)
        making.write_png(
            tmp_path / "gt" / f"{stem}_gtFine_labelIds.png",
            np.where(labels >= 1000, labels // 1000, labels).astype(np.uint8),
        )
        truths.append(truth)
        semantic.append(results / "semantic" / f"{sample.image.stem}.png")
        instances.append(results / "instance" / f"{sample.image.stem}.txt")

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone since numpy 2.4
    monkeypatch.setattr(instance, "writeDict2JSON", lambda *_: None)  # does not know numpy's numbers
    for name, value in {
        "predictionPath": str(results / "instance"),
        "gtInstancesFile": str(tmp_path / "gtInstances.json"),
        "JSONOutput": False,
        "quiet": True,
    }.items():
        monkeypatch.setattr(instance.args, name, value)
    with quietly(), np.errstate(all="ignore"):
        found = instance.evaluateImgLists([str(p) for p in instances], [str(p) for p in truths], instance.args)
    expected = found["averages"]["classes"]["car"]
    ours = figures["instance"]["fused"]["cityscapes"]
    assert ours["AP"] == pytest.approx(float(expected["ap"]), abs=1e-12) and ours["AP"] > 0
    assert ours["AP50"] == pytest.approx(float(np.squeeze(expected["ap50%"])), abs=1e-12)

    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(pixel.args, name, value)
    labels = [str(p).replace("instanceIds", "labelIds") for p in truths]
    with quietly():
        found = pixel.evaluateImgLists([str(p) for p in semantic], labels, pixel.args)
    for name, iou in figures["semantic"]["fused"]["IoU"].items():
        assert iou == pytest.approx(found["classScores"][name], abs=1e-9)


@pytest.mark.parametrize("naming", ["plain", "20 digits"])
@pytest.mark.parametrize("format", ["ade20k", "label-png"])
def test_label_images(project: Project, tmp_path: Path, format: str, naming: str) -> None:
    """Read back as a label folder, their mIoU is that of `evaluate`."""
    from vitp_pipeline.datasets.label_files import read_label_file
    from vitp_pipeline.metrics.semantic import Confusion

    make_run(called(project, naming), tmp_path / "run", 2, 2)
    figures = result_of(project.evaluate(tmp_path / "run"))["semantic"]["fused"]
    results, confusion = export(project, tmp_path / "run", format).results, Confusion(3)
    index = {label: k for k, label in enumerate(making.CATEGORIES)}
    for sample, stem in zip(project.dataset.samples, STEMS[naming], strict=True):
        labels = read_label_file(results / f"{stem}.png").samples
        confusion.update(np.vectorize(index.__getitem__)(labels), project.dataset.read_semantic(sample))
        with Image.open(results / f"{stem}.png") as image:
            assert image.mode == ("P" if format == "label-png" else "L")
            if format == "label-png":
                colors = np.asarray(image.convert("RGB"))
                for k, info in enumerate(project.recipe.manifest.classes):
                    assert (colors[labels == making.CATEGORIES[k]] == info.color).all()
    assert confusion.miou() == figures["mIoU"] and confusion.mean_accuracy() == figures["mAcc"]
    assert len(list(results.rglob("*.png"))) == 5


def test_label_values_above_255_need_16_bits(project: Project, tmp_path: Path) -> None:
    project = renamed(project, making.NAMES, (1, 300, 65535))
    make_run(project, tmp_path / "run")
    results = export(project, tmp_path / "run", "label-png").results
    values = {int(v) for file in results.glob("*.png") for v in np.unique(np.asarray(Image.open(file)))}
    assert values <= {1, 300, 65535} and max(values) > 255


def test_shards_and_restarts_give_the_same_bytes(project: Project, tmp_path: Path) -> None:
    def contents(made: Export) -> dict[str, bytes]:
        return {p.relative_to(made.results).as_posix(): p.read_bytes() for p in made.results.rglob("*") if p.is_file()}

    make_run(project, tmp_path / "one", 1, 5)
    make_run(project, tmp_path / "many", 3, 1)
    for format in ("coco-panoptic", "coco-results"):
        whole = export(project, tmp_path / "one", format)
        for shard in (2, 0):
            parts = export(project, tmp_path / "many", format, shards=[shard])
            assert not list(parts.results.glob("*.json"))  # only when all are there
        parts = export(project, tmp_path / "many", format)
        assert contents(parts) == contents(whole)
        before = {p: p.stat().st_mtime_ns for p in parts.run.folder.rglob("*.png")}
        (parts.results / ("panoptic.json" if format == "coco-panoptic" else "results.json")).unlink()
        parts.run.shard_folder(1).joinpath("done.json").unlink()
        parts.run.shard_folder(1).joinpath("part-0000.parquet").unlink()  # as if killed in the second shard
        assert contents(export(project, tmp_path / "many", format)) == contents(whole)
        assert sum(p.stat().st_mtime_ns != t for p, t in before.items()) <= 1


def test_another_alpha_or_rule_lies_beside(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run")
    first = export(project, tmp_path / "run", "coco-panoptic")
    assert export(project, tmp_path / "run", "coco-panoptic", alpha=0.9).results != first.results
    assert export(project, tmp_path / "run", "coco-panoptic", tasks=("instance",)).results == first.results


def test_failed_images_are_left_out_and_told(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run", failed=("146",))
    measures, points = project.recipe.stage(EvaluateSettings), project.recipe.stage(ClassifySettings)
    arguments = (project.recipe, measures, points, "coco-panoptic", "fused", project.root, tmp_path / "run")
    made = prepare(*arguments, ShardChoice())
    with pytest.raises(PartialError, match="1 of 5 images failed, the other 4 are done"):
        export_shards(made, [0]).report("export-results")
    assert len(json.loads((made.results / "panoptic.json").read_text())["annotations"]) == 4


def test_what_a_manifest_lacks_is_said_in_one_line(project: Project) -> None:
    spec = project.recipe.manifest
    with pytest.raises(UsageError, match="'submarine' of manifest 'toy' is none of Cityscapes' 19 classes"):
        names = ("sky", "road", "submarine")
        classes = tuple(dataclasses.replace(c, name=n) for c, n in zip(spec.classes, names, strict=True))
        find_format("cityscapes", dataclasses.replace(spec, classes=classes))
    zero = tuple(dataclasses.replace(c, label=k) for k, c in enumerate(spec.classes))
    with pytest.raises(UsageError, match="1 to 255, those of manifest 'toy' are 0 to 2"):
        find_format("ade20k", dataclasses.replace(spec, classes=zero))
    stuff = tuple(dataclasses.replace(c, thing=False) for c in spec.classes)
    with pytest.raises(UsageError, match="has no things"):
        find_format("coco-results", dataclasses.replace(spec, classes=stuff))
    with pytest.raises(UsageError, match=r"no result format 'voc'\. Known are: ade20k, cityscapes"):
        find_format("voc", spec)


@pytest.mark.parametrize("format", FILE_PER_IMAGE)
def test_images_that_differ_in_their_ending_alone_keep_it(project: Project, tmp_path: Path, format: str) -> None:
    path = project.root / "annotations" / "panoptic_val.json"
    content = path.read_text().replace('"000146.png", "height"', '"000139.jpg", "height"')
    (project.root / "val/000146.png").rename(project.root / "val/000139.jpg")
    path.write_text(content)
    project = renamed(project, ("sky", "road", "car"))
    make_run(project, tmp_path / "run")
    folder = export(project, tmp_path / "run", format).results
    ending = ".txt" if format == "cityscapes" else ".png"
    names = {file.name for file in folder.rglob(f"*{ending}")}
    assert {f"000139.png{ending}", f"000139.jpg{ending}", f"000153.png{ending}"} <= names


@pytest.mark.parametrize(
    ("format", "lengths"), [(f, (245, 246) if f == "cityscapes" else (251,)) for f in FILE_PER_IMAGE]
)
def test_names_that_are_too_long_are_refused_before_anything_is_written(
    project: Project, tmp_path: Path, format: str, lengths: tuple[int, ...]
) -> None:
    project = renamed(project, ("sky", "road", "car"))
    path, before = project.root / "annotations" / "panoptic_val.json", "000146.png"
    content = path.read_text()
    for length in lengths:
        name = f"{'n' * length}.png"
        content = content.replace(f'"{before}", "height"', f'"{name}", "height"')
        (project.root / "val" / before).rename(project.root / "val" / name)
        path.write_text(content)
        run, before = tmp_path / str(length), name
        make_run(project, run)
        if length == lengths[0]:
            assert export(project, run, format).results.is_dir()
        else:
            with pytest.raises(InputError, match="its name is too long"):
                export(project, run, format)
            assert not (run / "exports").exists()


def test_names_need_the_proposals_of_all_shards(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run", 2, 2)
    (tmp_path / "run/proposals/shards/00001/done.json").unlink()
    with pytest.raises(MissingStageError, match="shard 1 of 2 is unfinished"):
        export(project, tmp_path / "run", "label-png", shards=[0])
    export(project, tmp_path / "run", "coco-results", shards=[0])
    assert [p.name.rpartition("-")[0] for p in (tmp_path / "run/exports").iterdir()] == ["coco-results"]


def test_an_index_names_no_file_elsewhere(project: Project, tmp_path: Path) -> None:
    make_run(project, tmp_path / "run", part_size=5)
    path = tmp_path / "run/proposals/shards/00000/part-0000.parquet"
    table = read_index(path)
    names = table["file_name"].to_pylist()
    write_index(path, table.set_column(1, "file_name", [["../../up.png", *names[1:]]]))
    with pytest.raises(InputError, match=r"'\.\./\.\./up\.png' leads out"):
        export(project, tmp_path / "run", "label-png")


def test_own_exports_come_back_as_they_were(project: Project, tmp_path: Path) -> None:
    """Results that are imported again belong to the images that they are of."""
    from vitp_pipeline.interop.mask_import import open_source

    project = called(project, "text")
    make_run(project, tmp_path / "run", 2, 2)
    results = export(project, tmp_path / "run", "coco-results").results / "results.json"
    dataset_file = export(project, tmp_path / "run", "coco-instances").results / "instances.json"
    counts = Counter(image_key(entry["image_id"]) for entry in json.loads(results.read_text()))
    for file in (results, dataset_file):
        source = open_source("coco", file, project.dataset)
        source.open()
        for sample in project.dataset.samples:
            found = source.read(sample, project.dataset.image_size(sample))
            assert len(found.masks) == counts[sample.image_id]


def test_cityscapes_ids_are_the_benchmarks() -> None:
    from cityscapesscripts.helpers.labels import labels

    assert {label.name: label.id for label in labels if not label.ignoreInEval} == CITYSCAPES


def test_coco_instances_are_read_by_supervision_and_pycocotools(project: Project, tmp_path: Path) -> None:
    import supervision
    from pycocotools.coco import COCO

    make_run(project, tmp_path / "run", 2, 2)
    results = json.loads((export(project, tmp_path / "run", "coco-results").results / "results.json").read_text())
    made = export(project, tmp_path / "run", "coco-instances").results / "instances.json"
    with quietly():
        coco = COCO(str(made))
        theirs = supervision.DetectionDataset.from_coco(str(project.root), str(made), force_masks=True)
    assert theirs.classes == [c.name for c in sorted(project.recipe.manifest.classes, key=lambda c: c.label)]
    read = {Path(path).name: detections for path, _, detections in theirs}
    total = 0
    for image in coco.dataset["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        found = [coco.anns[i] for i in coco.getAnnIds(image["id"])]
        assert [(a["category_id"], a["score"], a["segmentation"]) for a in found] == [
            (r["category_id"], r["score"], r["segmentation"]) for r in own
        ]
        detections = read[Path(image["file_name"]).name]
        assert len(detections) == len(own)
        for annotation, mask, (left, top, right, bottom) in zip(found, detections.mask, detections.xyxy, strict=True):
            assert np.array_equal(mask, coco.annToMask(annotation).astype(bool)) and annotation["area"] == mask.sum()
            rows, cols = np.nonzero(mask)
            if len(rows):
                assert (left, top, right, bottom) == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
        total += len(own)
    assert total == len(coco.anns) > 10


@pytest.mark.parametrize("order", ["disagreement", "entropy"])
def test_images_in_the_order_of_uncertainty(project: Project, tmp_path: Path, order: str) -> None:
    """Against the definition, with NumPy, from what the run stores."""
    make_run(project, tmp_path / "run", 2, 2)
    with quietly():
        found = export(project, tmp_path / "run", "coco-instances", labeling=Labeling(order))
    images = json.loads((found.results / "instances.json").read_text())["images"]
    values = [image["uncertainty"] for image in images]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    expected = {}
    for record in open_proposals(tmp_path / "run"):
        shard, part = next(
            (s, p)
            for s in range(found.class_scores.shards)
            for p, ids in enumerate(found.class_scores.parts(s))
            if record.image_id in ids
        )
        with found.class_scores.open_arrays(shard, part) as arrays:
            points = arrays.read(f"point_logits/{record.key}").astype(float)
        y = record.class_logits.astype(float)
        inside, outside = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (y[:, :-1], points))
        objectness = 1 - (np.exp(y) / np.exp(y).sum(1, keepdims=True))[:, -1]
        weights = objectness * (objectness > 0.5) if (objectness > 0.5).any() else objectness
        fused = inside ** (1 - found.alpha) * outside**found.alpha
        fused /= fused.sum(1, keepdims=True)
        of = {
            "disagreement": np.abs(inside - outside).sum(1) / 2,
            "entropy": -(fused * np.log(np.maximum(fused, 1e-300))).sum(1) / np.log(fused.shape[1]),
        }[order]
        expected[record.file_name] = (of * weights).sum() / weights.sum()
    assert {image["file_name"]: image["uncertainty"] for image in images} == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UsageError, match="Choose one of: disagreement, entropy"):
        export(project, tmp_path / "run", "coco-instances", labeling=Labeling("size"))
