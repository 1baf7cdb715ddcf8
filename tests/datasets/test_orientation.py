"""Photographs that EXIF turns, and labels on the turned or on the stored pixels: each color meets its own label."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from tests.datasets.png_forms import RGB, write_png
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.images import open_image, read_rgb
from vitp_pipeline.diagnostics.check_files import as_dict, check_split
from vitp_pipeline.errors import InputError
from vitp_pipeline.inference.predictor import read_picture

SHAPES = {"wide": (20, 30), "square": (24, 24)}


def scene(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels 1..3 that no turn leaves as they are."""
    image, labels = making.draw(np.random.default_rng(3), *shape)
    return image, labels + 1


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """As the EXIF standard says it: which row and column of the picture the file's first row and column are."""
    if orientation >= 5:
        array = np.swapaxes(array, 0, 1)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return np.ascontiguousarray(array[::rows, ::columns])


def photograph(pixels: np.ndarray, orientation: int, form: str) -> bytes:
    if form == "png":
        return write_png(pixels, RGB, orientation=orientation)
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    options = {"compression": "tiff_lzw"} if form == "lzw" else {"lossless": True} if form == "webp" else {}
    Image.fromarray(pixels).save(content, "TIFF" if form == "lzw" else form, exif=exif, **options)
    return content.getvalue()


def semantic(root: Path, image: bytes, label: bytes, **says: str) -> Dataset:
    for folder, content in (("images", image), ("labels", label)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "a.png").write_bytes(content)
    return Dataset(making.semantic_spec(**says), root, "train")


def agree(data: Dataset) -> bool:
    image, labels = data.read_image(data.samples[0]), data.read_semantic(data.samples[0])
    return image.shape[:2] == labels.shape and np.array_equal(making.COLORS[labels], image)


@pytest.mark.parametrize("form", ["png", "tiff", "lzw", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path: Path, orientation: int, form: str) -> None:
    pixels, _ = scene((20, 30))
    (tmp_path / "x").write_bytes(photograph(pixels, orientation, form))
    assert np.array_equal(read_rgb(tmp_path / "x"), turned(pixels, orientation))
    assert np.array_equal(read_picture(tmp_path / "x"), turned(pixels, orientation))
    image = open_image(tmp_path / "x")
    assert np.array_equal(image.rgb(upright=False), pixels) and image.size == (20, 30)
    assert image.upright_size == turned(pixels, orientation).shape[:2]
    if form == "png":
        assert np.array_equal(cv2.imread(str(tmp_path / "x"))[..., ::-1], turned(pixels, orientation))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["png", "tiff"])
@pytest.mark.parametrize(("orientation", "drawn"), itertools.product(range(1, 9), ["upright", "stored", "stated"]))
def test_labels_lie_on_what_they_were_drawn_on(
    tmp_path: Path, orientation: int, drawn: str, form: str, shape: str
) -> None:
    pixels, stored = scene(SHAPES[shape])
    image = photograph(pixels, orientation, form)
    label = {
        "upright": write_png(turned(stored, orientation)),
        "stored": write_png(stored),
        "stated": write_png(stored, orientation=orientation),
    }[drawn]
    data = semantic(tmp_path, image, label)
    (found,) = as_dict(check_split(data), data)["image_orientations"] or [{"read": "upright"}]
    if orientation > 1 and drawn != "stated" and (orientation < 5 or shape == "square"):
        with pytest.raises(InputError, match=rf"orientation {orientation} rotates it, but it is unknown") as error:
            data.read_image(data.samples[0])
        assert 'set orientation = "upright"' in error.value.message and found["read"] == "refused"
        says = drawn
    else:
        assert agree(data) and data.image_size(data.samples[0]) == data.read_semantic(data.samples[0]).shape
        assert found["read"] == ("stored" if orientation > 1 and drawn == "stored" else "upright")
        says = "stored" if drawn == "stored" else "upright"
    assert agree(semantic(tmp_path, image, label, orientation=says))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_label_that_states_an_orientation_of_its_own(tmp_path: Path, orientation: int) -> None:
    """The photograph was turned and lost its EXIF data; and one whose label states that it is upright."""
    pixels, stored = scene((20, 30))
    upright = photograph(turned(pixels, orientation), 1, "png")
    assert agree(semantic(tmp_path, upright, write_png(stored, orientation=orientation)))
    label = write_png(turned(stored, orientation), orientation=1)
    assert agree(semantic(tmp_path, photograph(pixels, orientation, "png"), label))


@pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
@pytest.mark.parametrize(("orientation", "drawn"), itertools.product((3, 6), ["upright", "stored"]))
def test_annotation_files(tmp_path: Path, orientation: int, drawn: str, kind: str) -> None:
    pixels, labels = scene((20, 30))
    labels = turned(labels, orientation) if drawn == "upright" else labels
    image = {"id": 1, "file_name": "x.png", "height": labels.shape[0], "width": labels.shape[1]}
    (tmp_path / "val").mkdir()
    (tmp_path / "val/x.png").write_bytes(photograph(pixels, orientation, "png"))
    making.write_png(tmp_path / "panoptic_val/x.png", making.ids_to_rgb(labels.astype(np.int64)))
    segments = [{"id": n + 1, "category_id": c, "iscrowd": 0} for n, c in enumerate(making.CATEGORIES)]
    annotations: list[dict] = [{"image_id": 1, "file_name": "x.png", "segments_info": segments}]
    if kind == "coco-instances":
        from pycocotools import mask

        masks = [mask.encode(np.asfortranarray(labels == n + 1, np.uint8)) for n in range(3)]
        runs = [{"size": m["size"], "counts": m["counts"].decode()} for m in masks]
        annotations = [{**s, "image_id": 1, "segmentation": m} for s, m in zip(segments, runs, strict=True)]
    categories = [{"id": c, "name": n} for c, n in zip(making.CATEGORIES, making.NAMES, strict=True)]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    making.write_annotations(tmp_path, content)
    data = Dataset(making.coco_spec(kind=kind), tmp_path, "val")
    if orientation == 3:
        with pytest.raises(InputError, match="it is unknown"):
            data.read_image(data.samples[0])
        data = Dataset(making.coco_spec(kind=kind, orientation=drawn), tmp_path, "val")
    assert agree(data)
    if kind == "coco-instances":
        del image["height"]
        making.write_annotations(tmp_path, json.loads(json.dumps(content)))
        data = Dataset(making.coco_spec(kind=kind), tmp_path, "val")
        with pytest.raises(InputError, match="it is unknown"):
            data.image_size(data.samples[0])


def test_images_without_labels_are_upright(tmp_path: Path) -> None:
    pixels, labels = scene((20, 30))
    data = semantic(tmp_path, photograph(pixels, 3, "png"), write_png(labels))
    data.samples[0].label.unlink()
    assert np.array_equal(data.read_image(data.samples[0]), turned(pixels, 3))


def test_labels_of_neither_size(tmp_path: Path) -> None:
    pixels, labels = scene((20, 30))
    data = semantic(tmp_path, photograph(pixels, 6, "png"), write_png(labels[:5]))
    assert "is 30×5, its image is 20×30" in as_dict(check_split(data), data)["broken"][0]["reason"]
