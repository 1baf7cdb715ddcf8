"""A record that does not say of which image it is costs itself: the others are imported, and the code is 7."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interop.test_mask_origins import World
from tests.interop.test_whose_masks import SIZE, dataset, entry
from vitp_pipeline.datasets.identity import image_key
from vitp_pipeline.decoding.rle import mask_area
from vitp_pipeline.errors import InputError, PartialError
from vitp_pipeline.interop.mask_import import open_source

ABSENT = object()
NO_IDS: dict[str, tuple[Any, str]] = {
    "absent": (ABSENT, "has no `{key}`"),
    "null": (None, "'None' is not an image id"),
    "true": (True, "'True' is not an image id"),
    "a fraction": (1.5, "'1.5' is not an image id"),
    "NaN": (math.nan, "'nan' is not an image id"),
    "infinite": (math.inf, "'inf' is not an image id"),
    "beyond what floats hold": (1e300, "is not an image id"),
    "a list": ([139], "is not an image id"),
    "an object": ({"id": 139}, "is not an image id"),
    "half of a character": ("\ud800", "is not UTF-8"),
}
NO_RECORDS: dict[str, Any] = {"null": None, "a number": 139, "text": "139", "a list": [139, 3], "nothing": []}


def write(world: World, odd: list[Any], way: str) -> Path:
    """The masks of all images but the last, with odd records in the third place."""
    masks = world.masks()
    masks.pop(world.ids[4])
    file = world.write(masks)
    if way == "mmdet":
        content = pickle.loads(file.read_bytes())
        file.write_bytes(pickle.dumps([*content[:2], *odd, *content[2:]]))
        return file
    content = json.loads(file.read_text())
    records: Any = [*content[:2], *odd, *content[2:]]
    if way == "data set":
        listed = [{"id": int(i), "file_name": f"{int(i):06d}.png"} for i in world.ids]
        records = {"images": listed, "annotations": records}
    file.write_text(json.dumps(records))
    return file


def record(world: World, way: str, value: Any) -> dict[str, Any]:
    key = "img_id" if way == "mmdet" else "image_id"
    rest = {"category_id": 3, "score": 0.9, "segmentation": []}
    return rest if value is ABSENT else {**rest, key: value}


@pytest.mark.parametrize("way", ["coco", "data set", "mmdet"])
def test_a_record_without_an_image_costs_itself_alone(
    tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, "mmdet" if way == "mmdet" else "coco")
    assert not world.run(write(world, [], way)).unusable
    expected, key = world.stored(), "img_id" if way == "mmdet" else "image_id"
    cases = {f"id: {name}": (record(world, way, value), reason) for name, (value, reason) in NO_IDS.items()}
    cases |= {f"record: {name}": (value, "not an object") for name, value in NO_RECORDS.items()}
    if way == "data set":
        cases["not listed"] = (record(world, way, 140), "its image 140 is not listed")
    what = {"coco": "result", "data set": "annotation", "mmdet": "entry"}[way]
    for number, (name, (odd, reason)) in enumerate(cases.items()):
        capsys.readouterr()
        outcome = world.run(write(world, [odd], way), out=tmp_path / str(number))
        assert len(outcome.unusable) == 1 and f"{what} 2" in outcome.unusable[0], name
        assert reason.format(key=key) in outcome.unusable[0], (name, outcome.unusable)
        assert world.stored(tmp_path / str(number)) == expected and not outcome.failed, name
        said = capsys.readouterr().err
        assert "no mask for 1 of 5 images" in said and "skipped records may be theirs" in said, name
        with pytest.raises(PartialError, match="1 record of unknown images skipped, the rest is done"):
            outcome.report("proposals")
        assert f"skipped: {outcome.unusable[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["coco", "mmdet"])
def test_a_file_of_nothing_but_such_records_begins_no_run(tmp_path: Path, way: str) -> None:
    world = World(tmp_path, way)
    file = write(world, [], way)
    odd = [record(world, way, None), record(world, way, ABSENT)]
    for each in odd:
        each["pred_instances"] = {"masks": [], "labels": [], "scores": []}
    file.write_bytes(pickle.dumps(odd)) if way == "mmdet" else file.write_text(json.dumps(odd))
    with pytest.raises(InputError, match=r"(result|entry) 0: its `(image_id|img_id)`: 'None' is not an image id"):
        world.run(file)
    assert not world.out.exists()


def test_images_of_a_data_set_that_say_no_name(tmp_path: Path) -> None:
    """Their annotations go with them, each with a reason."""
    world = World(tmp_path, "coco")
    content = json.loads(write(world, [], "data set").read_text())
    world.run(write(world, [], "data set"))
    expected = world.stored()
    odd: list[Any] = [None, 7, [], {}, {"id": 5}, {"file_name": "x.png"}, {"id": True, "file_name": "x.png"}]
    odd += [{"id": 6, "file_name": None}, {"id": 7, "file_name": 7}, {"id": 1.5, "file_name": "x.png"}]
    content["images"] = odd + content["images"]
    content["annotations"].append({"image_id": 5, "category_id": 3, "score": 1, "segmentation": []})
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(content))
    outcome = world.run(file, out=tmp_path / "odd")
    assert world.stored(tmp_path / "odd") == expected and len(outcome.unusable) == len(odd) + 1
    assert all(f"image {n}" in reason for n, reason in enumerate(outcome.unusable[:-1]))
    assert "annotation 4: its image 5 is not listed" in outcome.unusable[-1]


numbers = st.integers(-3, 9) | st.floats() | st.integers()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["1", "2", "a.png", "img/b.png", ""]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = st.sampled_from(["image_id", "category_id", "score", "segmentation", "id"])
RECORDS = st.lists(values | st.dictionaries(KEYS, values, max_size=5), max_size=5)


def image_of(record: Any) -> str | None:
    """Id or name of the image that a record is of; None where it names none."""
    try:
        return image_key(record["image_id"]) if isinstance(record, dict) else None
    except (KeyError, ValueError):
        return None


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(RECORDS, RECORDS)
def test_any_json_value_in_place_of_a_record(before: list[Any], after: list[Any]) -> None:
    """Images that no odd record is of keep their masks; each odd one has a reason."""
    records = [*before, entry(0, 1), entry(1, 2), *after]
    with tempfile.TemporaryDirectory() as folder:
        data = dataset(Path(folder), [(1, "a.png"), (2, "b.png"), (3, "c.png")])
        file = Path(folder, "results.json")
        file.write_text(json.dumps(records))
        source = open_source("coco", file, data)
        try:
            source.open()
        except InputError as error:
            assert "both mean image" in str(error)  # two writings of one
            return
        odd = [image_of(record) for record in [*before, *after]]
        assert len(source.unusable) == odd.count(None)
        for number, (sample, names) in enumerate(zip(data.samples, ("a.png", "b.png", "c.png"), strict=True)):
            if not {sample.image_id, names, f"img/{names}"} & set(odd):
                masks = source.read(sample, SIZE).masks
                assert [mask_area(mask) - 1 for mask in masks] == ([number] if number < 2 else [])
