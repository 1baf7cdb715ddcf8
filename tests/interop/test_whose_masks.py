"""An import gives an image its own masks, none, or stops with both candidates named: for any ids and paths."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from tests.datasets import making
from tests.datasets.test_identity import SPLITS
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.identity import image_key
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding.rle import mask_area
from vitp_pipeline.errors import InputError
from vitp_pipeline.interop.mask_import import open_source

SIZE = (6, 8)
SPLIT = making.coco_spec(kind="coco-instances", splits={"val": SplitSpec("img", (), "val.json")})

Image = tuple[object, str]
"""Id as JSON has it, and file name."""


def mask(number: int) -> np.ndarray:
    """Tells images apart: `number` + 1 pixels."""
    return (np.arange(48) <= number).reshape(SIZE)


def dataset(root: Path, images: list[Image]) -> Dataset:
    listed = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in images]
    (root / "val.json").write_text(json.dumps({"images": listed, "annotations": [], "categories": []}))
    return Dataset(SPLIT, root, "val")


def entry(number: int, image_id: object) -> dict:
    rle = coco.encode(np.asfortranarray(mask(number), np.uint8))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {"image_id": image_id, "category_id": making.CATEGORIES[0], "score": 0.5, "segmentation": segmentation}


def write(root: Path, way: str, images: list[Image], theirs: list[int]) -> tuple[str, Path]:
    """What a tool that worked on `theirs` of the images writes: its format for --from and --masks."""
    if way.startswith("npz"):
        (root / "masks").mkdir()
        for number in theirs:
            image_id, name = images[number]
            key = {"npz by id": image_key(image_id), "npz by path": name, "npz by stem": name.rpartition(".")[0]}[way]
            file = root / "masks" / f"{key}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, masks=mask(number)[None], labels=[0], scores=[0.5])
        return "npz", root / "masks"
    if way == "mmdet":
        instances = [
            {"labels": np.array([0]), "scores": np.array([0.5]), "masks": [entry(n, 0)["segmentation"]]} for n in theirs
        ]
        found = [
            {"img_id": images[n][0], "img_path": f"/data/img/{images[n][1]}", "pred_instances": own}
            for n, own in zip(theirs, instances, strict=True)
        ]
        (root / "x.pkl").write_bytes(pickle.dumps(found))
        return "mmdet", root / "x.pkl"
    content: object = [entry(n, images[n][0]) for n in theirs]
    if way == "data set":
        listed = [{"id": 700 + n, "file_name": images[n][1]} for n in theirs]
        content = {"images": listed, "annotations": [entry(n, 700 + n) for n in theirs]}
    (root / "x.json").write_text(json.dumps(content))
    return "coco", root / "x.json"


WAYS = ["coco", "data set", "mmdet", "npz by id", "npz by path", "npz by stem"]


def whose(root: Path, way: str, images: list[Image], ours: list[int], theirs: list[int]) -> dict[int, int | None]:
    """By image of the split: whose masks it gets, None = none. Raises InputError when nothing is imported."""
    data = dataset(root, [images[n] for n in ours])
    format, path = write(root, way, images, theirs)
    source = open_source(format, path, data)
    source.open()
    given: dict[int, int | None] = {}
    for number, sample in zip(ours, data.samples, strict=True):
        try:
            masks = source.read(sample, SIZE).masks
        except InputError as error:
            assert way.startswith("npz") and "no such file" in str(error)
            masks = []
        assert len(masks) < 2
        given[number] = mask_area(masks[0]) - 1 if len(masks) else None
    return given


NUMBERED = sorted(f"{n}.png" for n in range(1, 13))
SETS: dict[str, list[Image]] = {
    "plain": [(139, "000000000139.jpg"), (285, "000000000285.jpg")],
    "counted in the order of names": [(n, name) for n, name in enumerate(NUMBERED, 1)],
    "counted from 0": [(n, f"{n + 1}.png") for n in range(4)],
    "sequences": [(1, "s1/0001.png"), (2, "s2/0001.png"), (3, "s2/0002.png")],
    "sequences by stem": [("s1/0001", "s1/0001.png"), ("s2/0001", "s2/0001.png")],
    "20 digits": [(10**19 + 7, "a.png"), (10**19 + 8, "b.png"), (2**63, "c.png"), (2**64, "d.png")],
    "text and zeros": [("01", "a.png"), ("1", "b.png"), ("1.0", "c.png"), ("001", "d.png")],
    "negative": [(-1, "a.png"), (1, "b.png"), ("--1", "c.png")],
    "views": [("a", "a.png"), ("a@1", "a@1.png"), ("a@1@1", "b.png")],
    "nested": [("s", "x.png"), ("s/c", "y.png"), ("s/c/0", "z.png")],
    "blanks": [(" 1", "a.png"), ("1 ", "b.png"), ("1", " c.png"), ("2", "c.png")],
    "unicode forms": [("é", "é.png"), ("e\u0301", "e\u0301.png"), ("١", "1.png"), ("2", "١.png")],
    "case": [("a", "a.png"), ("A", "A.png"), ("b", "A.PNG")],
    "names that are ids": [("a.png", "b.png"), ("b.png", "a.png")],
    "swapped": [("a", "b.png"), ("b", "a.png")],
    "endings": [("0", "0.png"), ("1", "0.png.png"), ("2", "0.jpg")],
    "floats": [(1.0, "a.png"), (2, "b.png"), ("3", "c.png")],
    "empty": [("", "a.png"), ("%", "b.png")],
    "minus zero": [("-0", "a.png"), ("0", "b.png"), ("+0", "c.png"), ("00", "d.png")],
    "written as reals": [("1", "a.png"), ("1e0", "b.png"), ("1.00", "c.png"), ("0x1", "d.png"), ("1_0", "e.png")],
    "controls": [("\x1b[31m", "a.png"), ("\n", "b.png"), ("\u202e1", "c.png"), ("1", "d.png"), ("\t1", "e.png")],
}
REFUSED = {
    ("counted in the order of names", "npz by id"), ("counted in the order of names", "npz by stem"),
    ("counted from 0", "npz by id"), ("counted from 0", "npz by stem"), ("names that are ids", "npz by id"),
    ("names that are ids", "npz by path"), ("swapped", "npz by id"), ("swapped", "npz by stem"),
    ("endings", "npz by id"), ("endings", "npz by stem"), ("case", "npz by id"), ("case", "npz by stem"),
    ("unicode forms", "npz by id"), ("unicode forms", "npz by stem"), ("endings", "npz by path"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SETS)
def test_images_get_their_own_masks(tmp_path: Path, name: str, way: str) -> None:
    images = SETS[name]
    everything = list(range(len(images)))
    try:
        given = whose(tmp_path, way, images, everything, everything)
    except InputError as error:
        assert (name, way) in REFUSED and "could mean image" in str(error), error
    else:
        assert (name, way) not in REFUSED
        assert given == dict(zip(everything, everything, strict=True))


@settings(max_examples=100, deadline=None)
@given(SPLITS, st.sampled_from(WAYS), st.data())
@example([("0", "1.png"), ("1", "2.png"), ("2", "3.png")], "npz by stem", None)
@example([("1", "s1/1.png"), ("2", "s2/1.png")], "data set", None)
def test_no_import_gives_an_image_anothers_masks(split: list[tuple[str, str]], way: str, data) -> None:
    """The split and what the tool worked on are any parts of the images."""
    images: list[Image] = [(i, p) for i, p in split if not {"..", ""} & set(p.split("/")) and ".." not in i]
    if way == "npz by id":
        images = [(i, p) for i, p in images if i.isprintable() and i and "/" not in i and i != "."]
    some = st.lists(st.sampled_from(range(len(images))), min_size=1, unique=True) if images else st.just([])
    ours, theirs = (data.draw(some), data.draw(some)) if data else (list(range(len(images))),) * 2
    # what nothing can tell apart: an image elsewhere that is called just as, in its folder, one of ours is
    names = {n: [f"/{i}", f"/{p}", f"/{p.rpartition('.')[0]}"] for n, (i, p) in enumerate(images)}
    foreign = [name for n in theirs if n not in ours for name in names[n]]
    assume(images and not any(own.endswith(name) for n in ours for own in names[n] for name in foreign))
    with tempfile.TemporaryDirectory() as folder:
        try:
            given = whose(Path(folder), way, images, ours, theirs)
        except InputError as error:
            assert any(word in str(error) for word in ("could mean", "both mean", "none of its", "but its img_path"))
            return
    assert all(got in (None, own) for own, got in given.items())
