from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import making
from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.datasets.samples import stray_labels
from vitp_pipeline.errors import InputError, UsageError, UserError
from vitp_pipeline.shipped import shipped


@pytest.fixture
def semantic(tmp_path: Path) -> Dataset:
    return Dataset(making.write_semantic(tmp_path), tmp_path, "train")


@pytest.fixture
def coco(tmp_path: Path) -> Dataset:
    return Dataset(making.write_coco(tmp_path)[0], tmp_path, "val")


def fails(kind: type[UserError], *words: str):
    """The error is of that kind, on one line, and holds every word."""

    class Check:
        def __enter__(self):
            self.context = pytest.raises(kind)
            self.info = self.context.__enter__()

        def __exit__(self, *exc):
            done = self.context.__exit__(*exc)
            text = str(self.info.value)
            assert "\n" not in text
            for word in words:
                assert word in text, text
            return done

    return Check()


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_semantic_labels_are_mapped_and_ordered(semantic: Dataset) -> None:
    assert [s.image_id for s in semantic.samples] == ["a0", "a1", "a2", "a3"]
    for sample in semantic.samples:
        raw = np.asarray(Image.open(sample.label)).astype(int)
        labels = semantic.read_semantic(sample)
        assert labels.dtype == np.int16
        assert np.array_equal(labels, np.where(raw == 255, IGNORE, raw - 1))
        # the drawing's color says the class
        image = semantic.read_image(sample)
        known = labels != IGNORE
        assert np.array_equal(image[known], making.COLORS[labels[known]])
    with pytest.raises(InputError):
        semantic.read_panoptic(semantic.samples[0])


def test_coco_ids_segments_and_semantics_agree(coco: Dataset) -> None:
    assert [s.image_id for s in coco.samples] == ["139", "146", "153", "160"]
    for sample in coco.samples:
        ids, segments = coco.read_panoptic(sample)
        semantic, image = coco.read_semantic(sample), coco.read_image(sample)
        assert ids.max() > 65535 and semantic[0, 0] == IGNORE and ids[0, 0] == 0
        for segment in segments:
            assert (semantic[ids == segment.id] == segment.category).all()
            assert (image[ids == segment.id] == making.COLORS[segment.category]).all()
    assert [s.iscrowd for s in coco.samples[1].segments] == [False, False, True]


def test_regions_agree_with_segments_and_classes(coco: Dataset, semantic: Dataset) -> None:
    for dataset in (coco, semantic):
        for sample in dataset.samples:
            numbers, classes = dataset.read_regions(sample)
            assert numbers.dtype == np.int16 and numbers.max() == len(classes) - 1
            labels = np.append(classes, IGNORE)[numbers]
            assert np.array_equal(labels, dataset.read_semantic(sample))  # these drawings have no crumbs
    ids, segments = coco.read_panoptic(coco.samples[0])
    numbers, _ = coco.read_regions(coco.samples[0])
    assert all((numbers[ids == s.id] == n).all() for n, s in enumerate(segments))


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    assert [s.image_id for s in Dataset(spec, tmp_path, "train", 2).samples] == ["a0", "a1"]
    assert len(Dataset(spec, tmp_path, "train", 99)) == 4


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_label_modes_read_the_same(tmp_path: Path, mode: str) -> None:
    spec = making.write_semantic(tmp_path, 1)
    data = Dataset(spec, tmp_path, "train")
    before = data.read_semantic(data.samples[0])
    raw = np.asarray(Image.open(tmp_path / "labels/a0.png"))
    if mode == "P":
        image = Image.fromarray(raw, "P")
        image.putpalette(list(range(256)) * 3)
    else:
        image = Image.fromarray(raw.astype({"L": np.uint8, "I;16": np.uint16}[mode]))
    image.save(tmp_path / "labels/a0.png")
    data = Dataset(spec, tmp_path, "train")
    assert np.array_equal(data.read_semantic(data.samples[0]), before)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_8_bit_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    gray = np.full((6, 5, 3), 77, np.uint8)
    path = tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(gray).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    from vitp_pipeline.datasets.images import read_rgb

    found = read_rgb(path)
    assert found.shape == (6, 5, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - 77).max() <= 1


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_sixteen_bit_image_is_refused_not_clipped(tmp_path: Path, semantic: Dataset) -> None:
    Image.fromarray(np.full((28, 36), 4000, np.uint16)).save(tmp_path / "images/a1.png")
    with fails(InputError, "a1.png", "8 bits"):
        semantic.read_image(semantic.samples[1])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_truncated_image(tmp_path: Path, ending: str, share: float) -> None:
    spec = making.write_semantic(tmp_path, 2)
    path = tmp_path / f"images/a1.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "images/a1.png").unlink()
    Image.fromarray(noise).save(path)
    making.truncate(path, share)
    data = Dataset(spec, tmp_path, "train")
    data.read_image(data.samples[0])
    with fails(InputError, str(path)):
        data.read_image(data.samples[1])


def test_any_damaged_byte_of_an_image_is_read_or_refused(tmp_path: Path) -> None:
    """Decoders fail in many ways; none may escape as anything but InputError, else one image would end a shard."""
    from vitp_pipeline.datasets.images import read_rgb

    rng = np.random.default_rng(5)
    noise = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        path = tmp_path / f"x.{ending}"
        Image.fromarray(noise).save(path)
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for at in rng.integers(0, min(len(good), 200), 2):
                bad[at] = int(rng.integers(256))
            path.write_bytes(bad)
            try:
                assert read_rgb(path).shape[2] == 3
            except InputError as error:
                assert str(path) in str(error)


def test_missing_label_and_missing_image(tmp_path: Path, semantic: Dataset) -> None:
    (tmp_path / "labels/a2.png").unlink()
    with fails(InputError, "labels/a2.png", "does not exist"):
        semantic.read_semantic(semantic.samples[2])
    (tmp_path / "images/a2.png").unlink()
    with fails(InputError, "images/a2.png", "does not exist"):
        semantic.read_image(semantic.samples[2])


@pytest.mark.parametrize("value", [4, 77, 254])
def test_unknown_label_value(tmp_path: Path, semantic: Dataset, value: int) -> None:
    raw = np.asarray(Image.open(tmp_path / "labels/a0.png")).copy()
    raw[5, 6] = value
    making.write_png(tmp_path / "labels/a0.png", raw)
    with fails(InputError, "labels/a0.png", f"value {value} "):
        semantic.read_semantic(semantic.samples[0])


def test_label_value_beyond_every_known_one(tmp_path: Path, semantic: Dataset) -> None:
    Image.fromarray(np.full((28, 36), 40000, np.uint16)).save(tmp_path / "labels/a0.png")
    with fails(InputError, "labels/a0.png", "value 40000 "):
        semantic.read_semantic(semantic.samples[0])


def test_color_label(tmp_path: Path, semantic: Dataset) -> None:
    making.write_png(tmp_path / "labels/a0.png", np.full((28, 36, 3), (1, 2, 3), np.uint8))
    with fails(InputError, "labels/a0.png", "RGB", "color-png"):
        semantic.read_semantic(semantic.samples[0])


def test_image_and_label_of_different_size(tmp_path: Path, semantic: Dataset) -> None:
    from vitp_pipeline.classifier.training.data import read_pair

    making.write_png(tmp_path / "labels/a0.png", np.ones((28, 35), np.uint8))
    with fails(InputError, "labels/a0.png", "35×28", "36×28"):
        read_pair(semantic, semantic.samples[0])


def test_a_list_chooses_the_images_of_a_split(tmp_path: Path) -> None:
    """Ids or file names, in any order; the images keep theirs."""
    spec = making.write_semantic(tmp_path, 5)
    listed = replace(spec, splits={"train": replace(spec.splits["train"], list="lists/train.txt")})
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists/train.txt"
    file.write_text("a3\n\nimages/a1.png\n  a0.png \r\na3\n")
    dataset = Dataset(listed, tmp_path, "train")
    assert dataset.image_ids == ("a0", "a1", "a3")
    whole = Dataset(spec, tmp_path, "train")
    assert [dataset.sample(i) for i in dataset.image_ids] == [whole.sample(i) for i in dataset.image_ids]
    assert Dataset(listed, tmp_path, "train", limit=2).image_ids == ("a0", "a1")
    for content, words in (
        (b"a1\na9\n", "'a9' is not an image"),
        (b"\n", "names no image"),
        (b"\xff", "list of"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            Dataset(listed, tmp_path, "train")
    file.unlink()
    with pytest.raises(InputError, match=r"train\.txt: the list of images cannot be read"):
        Dataset(listed, tmp_path, "train")


def test_a_list_excludes_images_of_a_split(tmp_path: Path) -> None:
    """What a list chooses and what it excludes are the split; together both keys give their difference."""
    spec = making.write_semantic(tmp_path, 5)
    (tmp_path / "few.txt").write_text("a3\na1\n")
    (tmp_path / "most.txt").write_text("a0\na1\na2\na3\n")
    keys = {
        "rest": {"exclude": "few.txt"},
        "few": {"list": "few.txt"},
        "both": {"list": "most.txt", "exclude": "few.txt"},
    }
    train = spec.splits["train"]
    spec = replace(spec, splits={"train": train} | {name: replace(train, **lists) for name, lists in keys.items()})
    ids = {name: Dataset(spec, tmp_path, name).image_ids for name in spec.splits}
    assert ids["rest"] == ("a0", "a2", "a4") and ids["both"] == ("a0", "a2")
    assert sorted(ids["few"] + ids["rest"]) == sorted(ids["train"])
    assert stray_labels(spec, tmp_path, "rest", Dataset(spec, tmp_path, "rest").samples) == []
    for content, words in (("a9\n", "'a9' is not an image"), ("a0\na1\na2\na3\na4\n", "excludes every image")):
        (tmp_path / "few.txt").write_text(content)
        with pytest.raises(InputError, match=words):
            Dataset(spec, tmp_path, "rest")


def test_same_stem_twice(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    Image.fromarray(np.zeros((28, 36, 3), np.uint8)).save(tmp_path / "images/a1.jpg")
    with fails(InputError, "'a1' occurs twice", "a1.jpg", "a1.png"):
        Dataset(spec, tmp_path, "train")


def test_wrong_root_split_or_empty_folder(tmp_path: Path) -> None:
    spec = making.semantic_spec()
    with fails(InputError, "nowhere"):
        Dataset(spec, tmp_path / "nowhere", "train")
    with fails(UsageError, "'test'", "train"):
        Dataset(spec, tmp_path, "test")
    with fails(InputError, "no images"):
        Dataset(spec, tmp_path, "train")


def test_unknown_id_is_an_input_error(semantic: Dataset) -> None:
    assert semantic.sample("a3") == semantic.samples[3]
    with fails(InputError, "'zzz'"):
        semantic.sample("zzz")


def test_coco_annotation_file_missing_or_broken(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path)
    path = tmp_path / "annotations/panoptic_val.json"
    making.truncate(path)
    with fails(InputError, str(path), "not JSON"):
        Dataset(spec, tmp_path, "val")
    for content in (
        "[]",
        "{}",
        '{"images": 3, "annotations": 3, "categories": 3}',
        '{"categories": [{"id": "x", "name": 1}]}',
    ):
        path.write_text(content)
        with fails(InputError, str(path), "not a COCO panoptic file"):
            Dataset(spec, tmp_path, "val")
    path.unlink()
    with fails(InputError, str(path), "does not exist"):
        Dataset(spec, tmp_path, "val")


def _image_twice(data: dict) -> None:
    data["images"].append(data["images"][1])


def _annotated_twice(data: dict) -> None:
    data["annotations"].append(data["annotations"][1])


def _other_category(data: dict) -> None:
    data["categories"].append({"id": 5, "name": "sea"})
    data["annotations"][1]["segments_info"][0]["category_id"] = 5


def _renamed(data: dict) -> None:
    data["categories"][1]["name"] = "street"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_image_twice, ["'146' occurs twice"]),
        (_annotated_twice, ["two annotations"]),
        (_other_category, ["category id 5", "'toy'", "the manifest of this dataset"]),
        (_renamed, ["category 7", "'street'", "'road'"]),
    ],
)
def test_coco_annotations_that_do_not_agree(tmp_path: Path, change, words: list[str]) -> None:
    spec, data = making.write_coco(tmp_path)
    change(data)
    making.write_annotations(tmp_path, data)
    with fails(InputError, *words):
        Dataset(spec, tmp_path, "val")


def test_coco_segment_id_that_is_not_listed(tmp_path: Path, coco: Dataset) -> None:
    ids, _ = coco.read_panoptic(coco.samples[2])
    ids[3, 3] = 123456
    making.write_png(tmp_path / "panoptic_val/000153.png", making.ids_to_rgb(ids))
    with fails(InputError, "panoptic_val/000153.png", "123456"):
        coco.read_panoptic(coco.samples[2])
    with fails(InputError, "panoptic_val/000153.png", "123456"):
        coco.read_semantic(coco.samples[2])


def test_coco_segment_id_listed_twice_spoils_one_image_only(tmp_path: Path) -> None:
    spec, data = making.write_coco(tmp_path)
    data["annotations"][0]["segments_info"][1]["id"] = data["annotations"][0]["segments_info"][0]["id"]
    making.write_annotations(tmp_path, data)
    dataset = Dataset(spec, tmp_path, "val")
    with fails(InputError, "000139.png", "twice"):
        dataset.read_panoptic(dataset.samples[0])
    dataset.read_panoptic(dataset.samples[1])


def test_coco_16_bit_panoptic_png(tmp_path: Path, coco: Dataset) -> None:
    making.write_png(tmp_path / "panoptic_val/000139.png", np.zeros((28, 36), np.uint16))
    with fails(InputError, "000139.png", "three channels"):
        coco.read_panoptic(coco.samples[0])


# ---- manifests ------------------------------------------------------------------------------------------------------


def test_shipped_manifests() -> None:
    found = {p.stem: load_manifest(p.stem) for p in shipped("manifests").glob("*.toml")}
    assert len(found["camvid"].classes) == 11 and "val" in found["camvid"].splits
    coco = found["coco-panoptic"]
    assert (len(coco.classes), sum(coco.things)) == (133, 80)
    assert [c.label for c in coco.classes] == sorted(c.label for c in coco.classes)
    for spec in found.values():
        json.dumps(spec.identity())  # JSON types only
        assert all(len(c.color) == 3 and all(0 <= v <= 255 for v in c.color) for c in spec.classes)


GOOD = """
name = "x"
classes = [ { name = "a", label = 0, thing = false }, { name = "b", label = 1, thing = true } ]
[labels]
kind = "semantic-png"
ignore = [255]
[splits.val]
images = "images/*.png"
labels = "labels/{stem}.png"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "x"', "", ["needs the key 'name'"]),
        ('name = "x"', 'name = "x"\ncolour = 1', ["'colour'"]),
        ("thing = true", "thing = true, hue = 3", ["class 1", "'hue'"]),
        ('"b"', '"a"', ["class name 'a'", "twice"]),
        ("label = 1", "label = 0", ["label value 0", "twice"]),
        ("[255]", "[1]", ["label value 1", "twice"]),
        ("[255]", "[-1]", ["-1", "outside"]),
        ("label = 1", "label = 70000", ["70000", "outside"]),
        ("semantic-png", "semantic", ['kind = "semantic"', "coco-panoptic"]),
        ("semantic-png", "coco-panoptic", ["splits.val", "annotations"]),
        ("{stem}", "{stam}", ["{stem}", "stam"]),
        ("[splits.val]", '[splits.val]\nlabels_coarse = "{stam}.png"', ["labels_coarse knows {stem}", "stam"]),
        ('kind = "semantic-png"', "kind = ", ["not a TOML file"]),
        # types as they are written: "false" is not false, 1.5 not a label
        ("thing = true", 'thing = "false"', ["class 1 thing", "true or false"]),
        ("thing = true", "thing = 0", ["class 1 thing", "true or false"]),
        ("label = 1", "label = 1.5", ["class 1 label = 1.5", "whole number"]),
        ("label = 1", 'label = "1"', ["class 1 label", "whole number"]),
        ("label = 1", "label = true", ["class 1 label", "whole number"]),
        ("label = 1", "label = nan", ["class 1 label = nan", "whole number"]),
        ("label = 1", f"label = {2**70}", ["class 1 label", "outside [0, 2147483647]"]),
        ("[255]", "[255.5]", ["ignore = [255.5]", "whole numbers"]),
        ("[255]", "[255, 255]", ["ignore", "twice"]),
        ("[255]", "255", ["ignore = 255", "a list"]),
        ('name = "x"', "name = 5", ["name = 5", "text"]),
        ('name = "x"', 'name = "x"\nroots = ["../other"]', ["roots", "leads out"]),
        ("thing = true", "thing = true, color = [1, 2, 256]", ["class 1 color", "256 is outside [0, 255]"]),
        ("thing = true", 'thing = true, aliases = "c"', ["class 1 aliases", "a list"]),
        ('"labels/{stem}.png"', "3", ["[splits.val] labels = 3", "a list of words"]),
        ("[labels]", "[labels]\nvalues = 'seen'", ["[labels] values", "stored, shown"]),
    ],
)
def test_broken_manifests_name_file_and_reason(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = tmp_path / "m.toml"
    path.write_text(GOOD)
    load_manifest(path)
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with fails(InputError, str(path), *words):
        load_manifest(path)


def test_manifest_not_found_lists_the_shipped_ones(tmp_path: Path) -> None:
    with fails(InputError, "nope", "camvid"):
        load_manifest("nope")
    (tmp_path / "mine.toml").write_text(GOOD)
    assert load_manifest("mine.toml", beside=tmp_path).name == "x"


def test_colors_and_paths_do_not_change_a_manifests_identity(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(GOOD)
    first = load_manifest(path).identity()
    path.write_text(GOOD.replace("thing = true", "thing = true, color = [1, 2, 3]").replace("images/*", "pictures/*"))
    assert load_manifest(path).identity() == first
    path.write_text(GOOD.replace("thing = true", "thing = false"))
    assert load_manifest(path).identity() != first
