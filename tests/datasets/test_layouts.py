"""Shipped manifests against their sources, and the layouts in which people have the datasets."""

from __future__ import annotations

import ast
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import making
from tests.decoding.test_archives import pack
from vitp_pipeline.datasets import IGNORE, Dataset, DatasetSpec, load_manifest
from vitp_pipeline.datasets.spec import LEFT_OUT


def metainfo(module: str, cls: str) -> dict[str, Any]:
    """The METAINFO of a dataset class of mmseg or mmdet, read from its source: importing them takes long."""
    library, *rest = module.split(".")
    spec = importlib.util.find_spec(library)
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], *rest).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == cls:
            for statement in node.body:
                if isinstance(statement, ast.Assign) and statement.targets[0].id == "METAINFO":  # type: ignore[attr-defined]
                    return _literal(statement.value)
    raise AssertionError(f"{module} has no {cls}")


def _literal(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    else:
        assert isinstance(node, ast.Dict)
        pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True)]  # type: ignore[union-attr]
    return {str(k): ast.literal_eval(v) for k, v in pairs if not isinstance(v, (ast.Name, ast.Constant))}


def names_and_colors(spec: DatasetSpec) -> tuple[list[str], list[list[int]]]:
    return list(spec.class_names), [list(c.color) for c in spec.classes]


@pytest.mark.parametrize(
    ("manifest", "module", "cls", "things"),
    [
        ("ade20k", "mmseg.datasets.ade", "ADE20KDataset", 100),
        ("cityscapes", "mmseg.datasets.cityscapes", "CityscapesDataset", 8),
        ("coco-stuff", "mmseg.datasets.coco_stuff", "COCOStuffDataset", 80),
        ("coco-panoptic", "mmdet.datasets.coco_panoptic", "CocoPanopticDataset", 80),
        ("coco-instances", "mmdet.datasets.coco", "CocoDataset", 80),
        ("ade20k-instance", "mmdet.datasets.ade20k", "ADE20KInstanceDataset", 100),
    ],
)
def test_names_order_and_palette_are_those_of_the_libraries(manifest: str, module: str, cls: str, things: int) -> None:
    spec, source = load_manifest(manifest), metainfo(module, cls)
    names, colors = names_and_colors(spec)
    assert names == [name.strip() for name in source["classes"]]
    if manifest == "ade20k-instance":  # mmdet has another gray for two classes
        ade = dict(zip(*names_and_colors(load_manifest("ade20k")), strict=True))
        assert [ade[name] for name in names] == colors
    else:
        assert colors == [list(color) for color in source["palette"]]
    assert sum(spec.things) == things
    if "thing_classes" in source:
        assert [n for n, t in zip(names, spec.things, strict=True) if t] == list(source["thing_classes"])


def test_ade20k_is_the_list_of_the_dataset(shared: Path) -> None:
    spec = load_manifest("ade20k")
    lines = (shared / "data/ADEChallengeData2016/objectInfo150.txt").read_text().splitlines()[1:]
    for info, line in zip(spec.classes, lines, strict=True):
        number, *_, names = line.split("\t")
        assert info.label == int(number)
        assert any(info.is_called(name) for name in (names, *names.split(","))), (info, names)


def test_ade20k_manifests_agree() -> None:
    semantic, panoptic, instance = (load_manifest(name) for name in ("ade20k", "ade20k-panoptic", "ade20k-instance"))
    assert semantic.class_names == panoptic.class_names and semantic.things == panoptic.things
    assert [c.label - 1 for c in semantic.classes] == [c.label for c in panoptic.classes] == list(range(150))
    assert [(c.name, c.label) for c in instance.classes] == [(c.name, c.label) for c in panoptic.classes if c.thing]
    theirs = metainfo("mmdet.datasets.ade20k", "ADE20KPanopticDataset")
    for name, thing in [(n, n in theirs["thing_classes"]) for n in theirs["classes"]]:
        assert [info.thing for info in panoptic.classes if info.is_called(name)].count(thing) == 1


def test_cityscapes_values_are_those_of_cityscapesscripts() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    for manifest in ("cityscapes", "cityscapes-panoptic"):
        spec = load_manifest(manifest)
        for info in spec.classes:
            (label,) = [one for one in labels if one.name == info.name]
            assert (label.id, label.trainId) == (info.label, spec.classes.index(info))
            assert label.hasInstances == info.thing and tuple(label.color) == info.color
    spec = load_manifest("cityscapes")
    rest = [label for label in labels if label.name not in spec.class_names]
    assert {label.name: label.id for label in rest} == spec.polygons
    assert set(spec.ignore) == {label.id for label in rest} - {LEFT_OUT}


def test_coco_stuff_values_are_those_of_mmseg() -> None:
    spec = importlib.util.find_spec("mmseg")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], ".mim/tools/dataset_converters/coco_stuff164k.py")
    if not path.is_file():
        pytest.skip("this mmseg has no converters")
    (table,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "clsID_to_trID"  # type: ignore[attr-defined]
    ]
    manifest = load_manifest("coco-stuff")
    assert {info.label: k for k, info in enumerate(manifest.classes)} == {v: k for v, k in table.items() if k != 255}
    assert set(manifest.ignore) == {v for v, k in table.items() if k == 255}


def test_objects365_is_mmdets_list() -> None:
    source = metainfo("mmdet.datasets.objects365", "Objects365V2Dataset")
    spec = load_manifest("objects365")
    assert [info.name for info in spec.classes] == [name.strip() for name in source["classes"]]
    assert [info.label for info in spec.classes] == list(range(1, 366))


# ---- layouts --------------------------------------------------------------------------------------------------------

IMAGE, LABEL = np.full((6, 8, 3), 90, np.uint8), np.full((6, 8), 7, np.uint8)


def tree(root: Path, images: list[str], labels: list[str]) -> None:
    for name in images:
        making.write_png(root / name, IMAGE)
    for name in labels:
        making.write_png(root / name, LABEL)


LAYOUTS = [
    # manifest, split, data root below the folder, images, labels, class name of the value 7
    ("ade20k", "train", "", "images/training/A.jpg", "annotations/training/A.png", "road"),
    ("ade20k", "val", "", "ADEChallengeData2016/images/validation/A.jpg",
     "ADEChallengeData2016/annotations/validation/A.png", "road"),
    ("ade20k", "val", "data", "data/ade/ADEChallengeData2016/images/validation/A.jpg",
     "data/ade/ADEChallengeData2016/annotations/validation/A.png", "road"),
    ("cityscapes", "train", "", "leftImg8bit/train/bonn/bonn_0_1_leftImg8bit.png",
     "gtFine/train/bonn/bonn_0_1_gtFine_labelIds.png", "road"),
    ("cityscapes", "val", "", "cityscapes/leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png",
     "cityscapes/gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png", "road"),
    ("cityscapes", "train_extra", "", "leftImg8bit/train_extra/bonn/bonn_0_1_leftImg8bit.png",
     "gtCoarse/train_extra/bonn/bonn_0_1_gtCoarse_labelIds.png", "road"),
    ("coco-stuff", "train", "", "images/train2017/1.jpg", "stuffthingmaps/train2017/1.png", "truck"),
    ("coco-stuff", "train", "data", "data/coco_stuff164k/images/train2017/1.jpg",
     "data/coco_stuff164k/annotations/train2017/1.png", "truck"),
    ("coco-stuff", "val", "", "coco/val2017/1.jpg", "coco/stuffthingmaps/val2017/1.png", "truck"),
    ("coco-stuff", "val", "", "val2017/1.jpg", "val2017/1.png", "truck"),
    ("camvid", "val", "", "images/val/1.jpg", "annotations/val/1.png", "fence"),
    ("clothing-co-parsing", "held_out", "", "ccp/images/held_out/7.jpg", "ccp/annotations/held_out/7.png", "boots"),
]  # fmt: skip


@pytest.mark.parametrize(("manifest", "split", "below", "image", "label", "name"), LAYOUTS)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_that_people_have(
    tmp_path: Path, manifest: str, split: str, below: str, image: str, label: str, name: str, packed: bool
) -> None:
    tree(tmp_path, [image], [label])
    root = tmp_path / below
    if packed:
        tops = sorted({path.name for path in root.iterdir()})
        pack(root, root / "download.zip", tops)
    dataset = Dataset(load_manifest(manifest), root, split)
    assert len(dataset) == 1 and dataset.read_image(dataset.samples[0]).shape == (6, 8, 3)
    labels = dataset.read_semantic(dataset.samples[0])
    assert (labels == dataset.spec.class_names.index(name)).all()


def test_cityscapes_archives_as_downloaded(tmp_path: Path) -> None:
    images, fine, coarse = [], [], []
    for split, city in (("train", "bonn"), ("val", "ulm"), ("train_extra", "mainz")):
        stem = f"{city}_000000_000019"
        images.append(f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        if split != "train_extra":
            fine.append(f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png")
        coarse.append(f"gtCoarse/{split}/{city}/{stem}_gtCoarse_labelIds.png")
    archives = {
        "leftImg8bit_trainvaltest.zip": images[:2],
        "leftImg8bit_trainextra.zip": images[2:],
        "gtFine_trainvaltest.zip": fine,
        "gtCoarse.zip": coarse,
    }
    tree(tmp_path, images, fine + coarse)
    for archive, names in archives.items():
        with zipfile.ZipFile(tmp_path / archive, "w") as target:
            target.writestr("README", "")
            for name in names:
                target.write(tmp_path / name, name)
                (tmp_path / name).unlink()
    spec = load_manifest("cityscapes")
    both = Dataset(spec, tmp_path, "train_and_extra")
    assert [s.image_id for s in both.samples] == ["bonn_000000_000019", "mainz_000000_000019"]
    assert both.has_coarse and "gtFine" in str(both.samples[0].label) and "gtCoarse" in str(both.samples[1].label)
    for sample in both.samples:
        for coarse_too in (False, True):
            assert (both.read_semantic(sample, coarse_too) == 0).all()
    assert len(Dataset(spec, tmp_path, "val")) == 1


def panoptic_json(path: Path, entries: list[tuple[str, str, str]], category: int, name: str) -> None:
    """(image id, file name, PNG name); all of one segment 5."""
    segment = {"id": 5, "category_id": category, "iscrowd": 0, "bbox": [0, 0, 8, 6], "area": 48}
    data = {
        "images": [{"id": i, "file_name": f, "height": 6, "width": 8} for i, f, _ in entries],
        "annotations": [{"image_id": i, "file_name": p, "segments_info": [segment]} for i, _, p in entries],
        "categories": [{"id": category, "name": name, "isthing": 0}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("packed", [False, True])
def test_cityscapes_panoptic_finds_images_by_their_id(tmp_path: Path, packed: bool) -> None:
    ids = np.full((6, 8), 5)
    for city, frame in (("ulm", "ulm_000000_000019"), ("bonn", "bonn_000001_000019")):
        making.write_png(tmp_path / f"leftImg8bit/val/{city}/{frame}_leftImg8bit.png", IMAGE)
        making.write_png(
            tmp_path / f"gtFine/cityscapes_panoptic_val/{frame}_gtFine_panoptic.png", making.ids_to_rgb(ids)
        )
    entries = [
        (frame, f"{frame}_gtFine_leftImg8bit.png", f"{frame}_gtFine_panoptic.png")
        for frame in ("ulm_000000_000019", "bonn_000001_000019")
    ]
    panoptic_json(tmp_path / "gtFine/cityscapes_panoptic_val.json", entries, 7, "road")
    if packed:
        pack(tmp_path, tmp_path / "a.zip", ["gtFine"])
        pack(tmp_path, tmp_path / "b.zip", ["leftImg8bit"])
    data = Dataset(load_manifest("cityscapes-panoptic"), tmp_path, "val")
    assert [s.image_id for s in data.samples] == ["ulm_000000_000019", "bonn_000001_000019"]
    assert [s.image.parent.name for s in data.samples] == ["ulm", "bonn"]
    assert data.read_image(data.samples[1]).shape == (6, 8, 3)
    assert (data.read_semantic(data.samples[0]) == 0).all()


@pytest.mark.parametrize("place", ["", "annotations/"])
def test_coco_panoptic_pngs_beside_or_below_the_annotations(tmp_path: Path, place: str) -> None:
    making.write_png(tmp_path / "coco/val2017/000000000001.png", IMAGE)
    making.write_png(tmp_path / f"coco/{place}panoptic_val2017/000000000001.png", making.ids_to_rgb(np.full((6, 8), 5)))
    entries = [(1, "000000000001.png", "000000000001.png")]
    panoptic_json(tmp_path / "coco/annotations/panoptic_val2017.json", entries, 1, "person")
    data = Dataset(load_manifest("coco-panoptic"), tmp_path, "val")
    assert (data.read_semantic(data.samples[0]) == 0).all() and data.samples[0].image_id == "1"
    if place:  # as the official download holds it: a zip that lies in another
        pack(tmp_path / "coco/annotations", tmp_path / "coco/annotations/panoptic_val2017.zip", ["panoptic_val2017"])
        data = Dataset(load_manifest("coco-panoptic"), tmp_path / "coco", "val")
        assert (data.read_semantic(data.samples[0]) == 0).all()


@pytest.mark.parametrize("layout", ["train/patch3", "images/train/patch3", "images/train", "train"])
def test_objects365_boxes(tmp_path: Path, layout: str) -> None:
    making.write_png(tmp_path / layout / "objects365_v1_7.jpg", IMAGE)
    data = {
        "images": [{"id": 7, "file_name": "images/v1/patch3/objects365_v1_7.jpg", "height": 6, "width": 8}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 365, "iscrowd": 0, "bbox": [1, 2, 3, 9.5], "area": 28.5},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 1, "bbox": [0, 0, 3, 3], "area": 9},
        ],
        "categories": [{"id": 365, "name": "Table Tennis "}, {"id": 1, "name": "Person"}],
    }
    (tmp_path / "zhiyuan_objv2_train.json").write_text(json.dumps(data))
    dataset = Dataset(load_manifest("objects365"), tmp_path, "train")
    (sample,) = dataset.samples
    assert dataset.read_image(sample).shape == (6, 8, 3) and not dataset.has_masks and not dataset.has_segments
    edges, classes = dataset.read_boxes(sample, (6, 8))
    assert edges.tolist() == [[2, 1, 6, 4]] and classes.tolist() == [364]


def test_real_samples(shared: Path) -> None:
    """The six samples, each from its own folder and from the one that they all lie in."""
    data = shared / "data"
    expected = {
        ("ade20k", "ADEChallengeData2016"): (6, 3),
        ("cityscapes", "cityscapes"): (4, 1),
        ("coco-stuff", "coco_stuff164k"): (13, 4),
        ("coco-panoptic", "coco"): (100, 50),
        ("camvid", "camvid"): (367, 101),
        ("clothing-co-parsing", "ccp"): (700, 150),
    }
    for (manifest, folder), counts in expected.items():
        spec = load_manifest(manifest)
        for root in (data / folder, data) if spec.roots != ("",) else (data / folder,):
            splits = [Dataset(spec, root, split) for split in ("train", "val")]
            assert tuple(map(len, splits)) == counts
        for split in splits:
            labels = split.read_semantic(split.samples[0])
            assert labels.shape == split.read_image(split.samples[0]).shape[:2] and (labels != IGNORE).mean() > 0.8


def test_real_clothes(shared: Path) -> None:
    """Two parts of the training images, and the generator's classes; class 0 is the background, most of an image."""
    spec, root = load_manifest("clothing-co-parsing"), shared / "data/ccp"
    ids = {split: Dataset(spec, root, split).image_ids for split in ("train", "fine", "coarse_rest")}
    assert [len(ids[split]) for split in ids] == [700, 250, 450]
    assert sorted(ids["fine"] + ids["coarse_rest"]) == list(ids["train"])
    text = (shared / "weights/mask2former-efficientnet_lite0-ccp.py").read_text(encoding="utf-8")
    classes = next(ast.literal_eval(k.value) for k in ast.walk(ast.parse(text)) if getattr(k, "arg", "") == "classes")
    assert tuple(classes) == spec.class_names
    data = Dataset(spec, root, "val")
    labels = np.concatenate([data.read_semantic(sample).ravel() for sample in data.samples[:5]])
    assert labels.min() == 0 and 0.6 < (labels == 0).mean() < 0.9


def test_real_coco_stuff_and_coco_panoptic_agree_on_things(shared: Path) -> None:
    """The four val images that are in both: two annotations of the same pixels, read by two manifests."""
    stuff = Dataset(load_manifest("coco-stuff"), shared / "data/coco_stuff164k", "val")
    panoptic = Dataset(load_manifest("coco-panoptic"), shared / "data/coco", "val")
    assert stuff.spec.class_names[:80] == panoptic.spec.class_names[:80]
    for sample in stuff.samples:
        one = stuff.read_semantic(sample)
        other = panoptic.read_semantic(panoptic.sample(str(int(sample.image_id))))
        both = (one != IGNORE) & (other != IGNORE) & ((one < 80) | (other < 80))
        assert one.shape == other.shape and both.any() and (one[both] == other[both]).mean() > 0.98


def test_real_coco_stuff_and_coco_panoptic_agree_on_stuff(shared: Path) -> None:
    """Every pixel that is stuff in both: COCO's panoptic classes are its stuff classes, some of them merged."""
    stuff = Dataset(load_manifest("coco-stuff"), shared / "data/coco_stuff164k", "val")
    panoptic = Dataset(load_manifest("coco-panoptic"), shared / "data/coco", "val")
    merged = {"floor-stone": "pavement", "fog": "sky-other", "wall-concrete": "wall-other", "ceiling-other": "ceiling"}
    seen = set()
    for sample in stuff.samples:
        one = stuff.read_semantic(sample)
        other = panoptic.read_semantic(panoptic.sample(str(int(sample.image_id))))
        both = (one != IGNORE) & (other >= 80)
        for mine, theirs in np.unique(np.stack([one[both], other[both]], 1), axis=0):
            name = stuff.spec.class_names[mine]
            assert merged.get(name, name) == panoptic.spec.class_names[theirs].removesuffix("-merged")
            seen.add(name)
    assert len(seen) == 22 and set(merged) <= seen
