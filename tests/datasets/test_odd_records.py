"""An odd record of an annotation file costs its own image, with a reason that names it; the other images go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from pycocotools import mask as coco

from tests.datasets import making
from tests.datasets.slow_masks import slow_mask
from tests.datasets.test_objects import instances_spec
from tests.decoding.test_records import anything
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.decoding import json_files
from vitp_pipeline.diagnostics.check_files import check_split
from vitp_pipeline.errors import InputError

SIZE = (10, 14)
NAN = float("nan")


def write_instances(root: Path, count: int = 3) -> dict[str, Any]:
    """Images 1, 2, … of 10×14 with two objects each; all kinds of segmentations."""
    images, annotations = [], []
    for number in range(1, count + 1):
        making.write_png(root / f"val/{number}.png", np.full((*SIZE, 3), number, np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[2:7, number : number + 5] = 1
        rle = coco.encode(mask)
        outlines = [{**rle, "counts": rle["counts"].decode()}, [[3.0, 3.0, 9.0, 3.0, 9.0, 8.5]]]
        for category, outline in zip(making.CATEGORIES, outlines, strict=False):
            about = {"image_id": number, "category_id": category, "iscrowd": 0, "area": 20.5, "bbox": [1, 2, 5, 5]}
            annotations.append({"id": 10 * number + category, "segmentation": outline, **about})
    categories = [{"id": c, "name": n} for c, n in zip(making.CATEGORIES, making.NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def instances(root: Path, data: dict[str, Any]) -> Dataset:
    (root / "instances.json").write_text(json.dumps(data))
    return Dataset(instances_spec(), root, "val")


def panoptic(root: Path, data: dict[str, Any]) -> Dataset:
    making.write_annotations(root, data)
    return Dataset(making.coco_spec(), root, "val")


def change(key: str, value: Any) -> Callable[[dict], None]:
    return lambda record: record.update({key: value})


def lack(key: str) -> Callable[[dict], None]:
    return lambda record: record.pop(key)


ODD_ANNOTATIONS: dict[str, tuple[Callable[[dict], None], str]] = {
    "no id": (lack("id"), "`id`"),
    "id null": (change("id", None), "`id` is None"),
    "id text": (change("id", "17"), "`id` is '17'"),
    "id huge": (change("id", 10**30), "`id`"),
    "id list": (change("id", [1]), "`id`"),
    "category null": (change("category_id", None), "`category_id` is None"),
    "category list": (change("category_id", [3]), "`category_id`"),
    "category text": (change("category_id", "3"), "'3'"),
    "category boolean": (change("category_id", True), "True"),
    "category of nobody": (change("category_id", 4711), "category id 4711 is not a class"),
    "no category": (lack("category_id"), "no `category_id`"),
    "crowd text": (change("iscrowd", "yes"), "`iscrowd` is 'yes'"),
    "crowd 2": (change("iscrowd", 2), "neither 0 nor 1"),
    "area nan": (change("area", NAN), "`area` is nan"),
    "area text": (change("area", "large"), "`area`"),
    "area huge": (change("area", 10**400), "`area`"),
    "box null": (change("bbox", None), "`bbox` is None"),
    "box of three": (change("bbox", [1, 2, 3]), "not four numbers"),
    "box of eight": (change("bbox", [1, 2, 3, 4] * 2), "not four numbers"),
    "box of text": (change("bbox", ["1", "2", "3", "4"]), "`bbox`"),
    "box of booleans": (change("bbox", [1, 2, 3, True]), "`bbox`"),
    "box with nan": (change("bbox", [1, 2, NAN, 4]), "nan"),
    "box in a box": (change("bbox", [[1, 2, 3, 4]]), "`bbox`"),
    "box of huge": (change("bbox", [1, 2, 3, 10**400]), "`bbox`"),
    "box empty": (change("bbox", []), "not four numbers"),
}


@pytest.mark.parametrize("name", ODD_ANNOTATIONS)
@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_an_odd_annotation_costs_its_image(tmp_path: Path, name: str, kind: str) -> None:
    make, words = ODD_ANNOTATIONS[name]
    if kind == "instances":
        data = write_instances(tmp_path)
        make(data["annotations"][2])
        dataset, file_name, named = instances(tmp_path, data), "2.png", "annotation "
    else:
        data = making.write_coco(tmp_path)[1]
        make(data["annotations"][1]["segments_info"][0])
        dataset, file_name, named = panoptic(tmp_path, data), "000146.png", "segment "
    readers = [dataset.read_semantic, dataset.read_instances, lambda s: dataset.read_boxes(s, SIZE)]
    for number, sample in enumerate(dataset.samples):
        for read in readers:
            if number != 1:
                read(sample)
                continue
            with pytest.raises(InputError) as found:
                read(sample)
            text = str(found.value)
            assert f".json: {named}" in text and file_name in text and words in text and text.isprintable(), text
    broken = check_split(dataset).broken
    assert [image_id for image_id, *_ in broken] == [dataset.image_ids[1]] and words in broken[0][2]


ODD_IMAGES: dict[str, tuple[Callable[[dict], None], str]] = {
    "height text": (change("height", "10"), "`height` is '10'"),
    "width nan": (change("width", NAN), "`width` is nan"),
    "width list": (change("width", [14]), "`width`"),
    "negative": (change("height", -10), "-10"),
    "no pixels": (change("height", 0), "0"),
    "huge": (change("width", 10**9), "1000000000"),
    "half a pixel": (change("width", 13.5), "13.5"),
    "boolean": (change("width", True), "True"),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_size_costs_its_image(tmp_path: Path, name: str) -> None:
    make, words = ODD_IMAGES[name]
    data = write_instances(tmp_path)
    make(data["images"][1])
    dataset = instances(tmp_path, data)
    assert [dataset.image_size(sample) for sample in dataset.samples] == [SIZE] * 3  # as the file of the image says
    with pytest.raises(InputError, match=r"instances\.json: image 2\.png: ") as found:
        dataset.read_instances(dataset.samples[1])
    assert words in str(found.value)
    assert len(dataset.read_instances(dataset.samples[2])) == 2


@pytest.mark.parametrize("size", [{}, {"height": None, "width": None}, {"height": 10.0, "width": 14.0}])
def test_sizes_that_are_not_said(tmp_path: Path, size: dict) -> None:
    data = write_instances(tmp_path)
    whole = instances(tmp_path, data).read_semantic(instances(tmp_path, data).samples[0])
    for image in data["images"]:
        image.pop("height"), image.pop("width")
        image.update(size)
    dataset = instances(tmp_path, data)
    assert np.array_equal(dataset.read_semantic(dataset.samples[0]), whole)


ODD_PANOPTIC: dict[str, tuple[Callable[[list], Any], str]] = {
    "no annotation": (lambda a: a.pop(1), "it has no annotation"),
    "no file name": (lambda a: a[1].pop("file_name"), "`file_name` is None"),
    "file name number": (lambda a: a[1].update(file_name=7), "`file_name` is 7"),
    "file name leads out": (lambda a: a[1].update(file_name="../x.png"), "leads out of the data root"),
    "file name absolute": (lambda a: a[1].update(file_name="/x.png"), "is not a relative path"),
    "file name empty": (lambda a: a[1].update(file_name=""), "is not a relative path"),
    "file name of Windows": (lambda a: a[1].update(file_name="a\\x.png"), "is a path of Windows"),
    "file name too long": (lambda a: a[1].update(file_name="n" * 300), "is not a file name"),
    "no segments": (lambda a: a[1].pop("segments_info"), "`segments_info` is None"),
    "segments null": (lambda a: a[1].update(segments_info=None), "`segments_info` is None"),
    "segments object": (lambda a: a[1].update(segments_info={"id": 1}), "`segments_info`"),
    "segments of numbers": (lambda a: a[1].update(segments_info=[1, 2]), "`segments_info`"),
    "first without annotation": (lambda a: a.pop(0), "it has no annotation"),
}


@pytest.mark.parametrize("name", ODD_PANOPTIC)
def test_an_odd_panoptic_annotation_costs_its_image(tmp_path: Path, name: str) -> None:
    make, words = ODD_PANOPTIC[name]
    data = making.write_coco(tmp_path)[1]
    make(data["annotations"])
    dataset = panoptic(tmp_path, data)
    odd = 0 if name.startswith("first") else 1
    for number, sample in enumerate(dataset.samples):
        if number == odd:
            with pytest.raises(InputError, match=r"panoptic_val\.json: .*image 0001(39|46)\.png: ") as found:
                dataset.read_panoptic(sample)
            assert words in str(found.value)
        else:
            assert dataset.read_panoptic(sample)[1]
    assert [image_id for image_id, *_ in check_split(dataset).broken] == [dataset.image_ids[odd]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything)
def test_any_json_value_in_place_of_a_segmentation_or_box(tmp_path: Path, value: Any) -> None:
    """The image has the right masks, or fails with a reason; its neighbors are as they were."""
    for key in ("segmentation", "bbox"):
        data = write_instances(tmp_path)
        data["annotations"][2][key] = value
        dataset = instances(tmp_path, data)
        try:
            masks = [found.mask for found in dataset.read_instances(dataset.samples[1])]
            dataset.read_boxes(dataset.samples[1], SIZE)
        except InputError as error:
            assert "annotation 23 of" in str(error) and "2.png" in str(error) and str(error).isprintable()
        else:
            outlines = [a["segmentation"] for a in data["annotations"][2:4]]
            assert all(np.array_equal(m, slow_mask(o, SIZE)) for m, o in zip(masks, outlines, strict=True))
        assert len(dataset.read_instances(dataset.samples[0])) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_annotation_files_of_any_unicode(tmp_path: Path, encoding: str) -> None:
    data = write_instances(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(data, ensure_ascii=False), encoding=encoding)
    dataset = Dataset(instances_spec(), tmp_path, "val")
    assert len(dataset.read_instances(dataset.samples[0])) == 2


@pytest.mark.parametrize(("folder", "images"), [("val2017", "val2017"), ("", "{file_name}"), ("", "{parent}/{name}")])
def test_lvis_names_files_by_their_address(tmp_path: Path, folder: str, images: str) -> None:
    """LVIS has no `file_name`: folder and name are the end of `coco_url`. A manifest's folder may be that folder."""
    from dataclasses import replace

    data = write_instances(tmp_path)
    (tmp_path / "val").rename(tmp_path / "val2017")
    for image in data["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    (tmp_path / "instances.json").write_text(json.dumps(data))
    spec = instances_spec()
    spec = replace(spec, splits={"val": replace(spec.splits["val"], images=images)})
    dataset = Dataset(spec, tmp_path, "val")
    assert [sample.image for sample in dataset.samples] == [tmp_path / f"val2017/{n}.png" for n in (1, 2, 3)]
    assert dataset.read_image(dataset.samples[2]).max() == 3


@pytest.mark.parametrize("flipped", [[], [0], [2], [0, 1, 2]])
def test_things_that_the_manifest_takes_for_stuff_are_said(tmp_path: Path, capsys, flipped: list[int]) -> None:
    data = making.write_coco(tmp_path)[1]
    for number in flipped:
        data["categories"][number]["isthing"] = 1 - data["categories"][number]["isthing"]
    dataset = panoptic(tmp_path, data)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(flipped) and dataset.spec.things == making.THINGS
    if flipped == [2]:
        assert "category 90 'car' is stuff there and a thing in manifest 'toy'; the manifest counts" in lines[0]
    elif flipped:
        more = " (and 2 more categories)" if len(flipped) > 1 else ""
        assert f"category 3 'sky' is a thing there and stuff in manifest 'toy'{more};" in lines[0]


BOMBS = {
    "lists": "[[]" + ",[]" * 4_000_000 + "]",
    "objects": "[{}" + ",{}" * 4_000_000 + "]",
    "nested": "[1" + ",[[[[[]]]]]" * 1_500_000 + "]",
    "texts": '["a"' + ',"ab"' * 4_000_000 + "]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(json_files, "memory_limit", lambda: 128 * 2**20)
    monkeypatch.setattr(json_files.json, "loads", None)
    (tmp_path / "x.json").write_text(BOMBS[name])
    with pytest.raises(InputError, match=r"x\.json: (would take some .* GB of memory|has .* GB, more than)"):
        json_files.read_foreign_json(tmp_path / "x.json", "annotation file")
