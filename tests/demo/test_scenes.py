from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp_pipeline.demo import scenes

COUNT = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    scenes.draw_scenes(root, "val", COUNT, seed=3)
    return root


@pytest.fixture(scope="module")
def document(dataset: Path) -> dict:
    return json.loads((dataset / "annotations" / "panoptic_val.json").read_text())


def panoptic_ids(path: Path) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(Image.open(path)).astype(np.int64), -1, 0)
    return red + 256 * green + 256**2 * blue


def test_same_arguments_same_bytes(dataset: Path, tmp_path: Path) -> None:
    scenes.draw_scenes(tmp_path, "val", COUNT, seed=3)
    files = sorted(path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file())
    assert len(files) == 2 * COUNT + 1
    for file in files:
        assert (tmp_path / file).read_bytes() == (dataset / file).read_bytes()


def test_a_scene_does_not_depend_on_how_many_are_drawn(dataset: Path) -> None:
    scene = scenes.draw_scene(3, "val", 5)
    assert np.array_equal(scene.image, np.asarray(Image.open(dataset / "images" / "val" / "000005.png")))


def test_seed_split_and_index_each_change_the_scene() -> None:
    first = scenes.draw_scene(0, "train", 0).image
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert not np.array_equal(first, scenes.draw_scene(*other).image)


def test_annotations_agree_with_the_pngs(dataset: Path, document: dict) -> None:
    assert [entry["image_id"] for entry in document["annotations"]] == [i["id"] for i in document["images"]]
    known = {category["id"] for category in document["categories"]}
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        assert Image.open(dataset / "images" / "val" / image["file_name"]).size == (image["width"], image["height"])
        ids = panoptic_ids(dataset / "panoptic_val" / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        listed = [segment["id"] for segment in annotation["segments_info"]]
        assert len(set(listed)) == len(listed)
        assert set(listed) == set(np.unique(ids).tolist()) - {0}
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            left, top, width, height = segment["bbox"]
            assert segment["area"] == len(rows) >= scenes.MIN_AREA
            assert (top, left) == (rows.min(), columns.min())
            assert (top + height - 1, left + width - 1) == (rows.max(), columns.max())
            assert segment["category_id"] in known
            assert segment["iscrowd"] == 0


def test_stuff_has_one_segment_per_class_and_things_may_have_several(document: dict) -> None:
    things = {category["id"] for category in document["categories"] if category["isthing"]}
    repeated = 0
    for annotation in document["annotations"]:
        classes = [segment["category_id"] for segment in annotation["segments_info"]]
        stuff = [c for c in classes if c not in things]
        assert len(stuff) == len(set(stuff)) >= 1
        assert len(stuff) < len(classes)
        repeated += len(classes) > len(set(classes))
    assert repeated > COUNT // 3


def test_every_class_and_some_void_occur() -> None:
    drawn = [scenes.draw_scene(0, "train", index) for index in range(40)]
    seen = {segment.category.id for scene in drawn for segment in scene.segments}
    assert seen == {category.id for category in scenes.CATEGORIES}
    void = [np.mean(scene.ids == scenes.VOID_ID) for scene in drawn]
    assert 0 < np.count_nonzero(np.array(void) > 0.005) < len(void)
    assert max(void) < 0.2


@pytest.mark.parametrize("name", sorted(scenes.TEXTURES))
def test_textures_are_equally_strong_and_leave_the_color_alone(name: str) -> None:
    y, x = np.mgrid[:64, :64].astype(np.float32)
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = scenes.texture(name, y, x, rng)
        assert drawn.dtype == np.float32
        # Only nearly so for the peaked one: four samples per period cannot carry all of its overtones.
        assert abs(drawn.mean()) < 0.03
        assert drawn.std() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("name", sorted(scenes.TEXTURES))
def test_textures_fade_at_half_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "JITTER", 0.0)
    y, x = np.mgrid[:64, :64].astype(np.float32)
    drawn = scenes.texture(name, y, x, np.random.default_rng(0))
    assert drawn.reshape(32, 2, 32, 2).mean((1, 3)).std() < 1e-3


def test_the_generator_config_names_the_classes_of_the_scenes() -> None:
    names = [category.name for category in scenes.CATEGORIES]
    text = Path(scenes.__file__).with_name("generator_config.py").read_text()
    values: dict = {}
    exec(compile(text, "generator_config.py", "exec"), values)
    assert list(values["dataset_meta"]["classes"]) == names
    assert values["dataset_meta"]["palette"] == [list(category.color) for category in scenes.CATEGORIES]
    assert values["num_classes"] == len(names)


def test_another_size() -> None:
    scene = scenes.draw_scene(0, "val", 0, size=(96, 160))
    assert scene.image.shape == (96, 160, 3)
    assert scene.ids.shape == (96, 160)
