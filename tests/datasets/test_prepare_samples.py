"""CamVid and the COCO sample as they are downloaded, made into what the manifests read."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from tests.datasets import making
from tests.datasets.test_dataset import fails
from tests.datasets.test_prepare import bytes_below, read
from vitp_pipeline.datasets import IGNORE, Dataset, load_manifest
from vitp_pipeline.datasets.prepare import prepare
from vitp_pipeline.errors import InputError, PartialError

FRAMES = {"train": ("0001TP_006690", "0016E5_00390"), "val": ("0016E5_07959",), "test": ("Seq05VD_f00000",)}


def write_tutorial(root: Path) -> dict[str, np.ndarray]:
    """Write frames and labels as the SegNet tutorial's repository has them, and the lists beside them."""
    draw, labels = np.random.default_rng(0), {}
    rows, cols = np.mgrid[:36, :48]
    for split, names in FRAMES.items():
        for name in names:
            colors = np.stack([rows * 7, cols * 5, np.full(rows.shape, 20 * len(labels))], -1).astype(np.uint8)
            labels[name] = draw.integers(0, 12, (6, 8)).repeat(6, 0).repeat(6, 1).astype(np.uint8)
            making.write_png(root / f"CamVid/{split}/{name}.png", colors)
            making.write_png(root / f"CamVid/{split}annot/{name}.png", labels[name])
        (root / f"CamVid/{split}.txt").write_text(f"/SegNet/CamVid/{split}/{names[0]}.png\n")
    return labels


@pytest.mark.parametrize("inside", ["", "CamVid"])
def test_the_tutorials_frames_become_what_the_manifest_reads(tmp_path: Path, inside: str) -> None:
    labels = write_tutorial(tmp_path)
    before, root = bytes_below(tmp_path), tmp_path / inside
    prepare("camvid", root, [], workers=2).report()
    made = bytes_below(tmp_path)
    assert before.items() <= made.items() and len(made) - len(before) == 2 * 3
    spec = load_manifest("camvid")
    for split in ("train", "val"):
        data = Dataset(spec, root, split)
        assert data.image_ids == FRAMES[split]
        for sample in data.samples:
            stored = labels[sample.image_id]
            assert np.array_equal(read(root / f"annotations/{split}/{sample.image_id}.png"), stored)
            assert np.array_equal(data.read_semantic(sample), np.where(stored == 11, IGNORE, stored.astype(int)))
            frame = read(tmp_path / f"CamVid/{split}/{sample.image_id}.png").astype(int)
            assert np.abs(data.read_image(sample) - frame).max() < 9  # JPEG's loss
    again = prepare("camvid", root, [])
    assert [len(product.written) for product in again.products] == [0] * 4 and bytes_below(tmp_path) == made


def test_a_label_that_is_no_class_of_camvid_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tutorial(tmp_path)
    making.write_png(tmp_path / "CamVid/valannot/0016E5_07959.png", np.full((36, 48), 12, np.uint8))
    with fails(PartialError, "the only image failed", "labels val"):
        prepare("camvid", tmp_path, []).report()
    assert "0016E5_07959.png: it has label values" in capsys.readouterr().err
    assert not (tmp_path / "annotations/val").exists() and (tmp_path / "images/val/0016E5_07959.jpg").is_file()


def test_frames_are_written_as_those_of_the_sample(shared: Path, tmp_path: Path) -> None:
    """Names, sizes and how a JPEG is encoded, down to its header; its pixels need the repository's own PNG."""
    folder = shared / "data/camvid"
    for split in ("train", "val"):
        for path in sorted((folder / "images" / split).iterdir())[::40]:
            for kind, source in (("", path), ("annot", folder / f"annotations/{split}/{path.stem}.png")):
                making.write_png(tmp_path / f"CamVid/{split}{kind}/{path.stem}.png", read(source))
    prepare("camvid", tmp_path, []).report()
    made = sorted(tmp_path.glob("images/*/*.jpg"))
    assert len(made) == 13
    for path in made:
        theirs, name = folder / path.relative_to(tmp_path), f"annotations/{path.parent.name}/{path.stem}.png"
        heads = [file.read_bytes().partition(b"\xff\xda")[0] for file in (path, theirs)]
        assert heads[0] == heads[1]
        found, wanted = Image.open(path), Image.open(theirs)
        assert isinstance(found, JpegImagePlugin.JpegImageFile) and found.quantization == wanted.quantization
        assert np.array_equal(read(tmp_path / name), read(folder / name))
        assert Image.open(tmp_path / name).mode == Image.open(folder / name).mode == "L"


def write_release(root: Path, sizes: dict[str, int], packed: bool) -> dict[str, list[int]]:
    """Write `images` and `panoptic_segmentation` as coco128_yolo releases them: entries in no order, more images."""
    ids = {}
    for split, count in sizes.items():
        of_split = ids[split] = [7 * n + len(split) for n in range(count + 3)]
        images, entries = [], []
        for n in of_split:
            name = f"{n:012d}"
            making.write_png(root / f"images/{split}2017/{name}.png", np.full((4, 6, 3), n % 256, np.uint8))
            (root / f"images/{split}2017/{name}.png").rename(root / f"images/{split}2017/{name}.jpg")
            folder = f"panoptic_segmentation/annotations/panoptic_{split}2017"
            making.write_png(root / f"{folder}/{name}.png", np.full((4, 6, 3), (n % 256, 0, 0), np.uint8))
            images.append({"id": n, "file_name": f"{name}.jpg", "height": 4, "width": 6})
            box = {"id": n % 256, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 6, 4], "area": 24}
            entries.append({"image_id": n, "file_name": f"{name}.png", "segments_info": [box] if n % 256 else []})
        random.Random(0).shuffle(images)
        spec = load_manifest("coco-panoptic")
        categories = [{"id": c.label, "name": c.name, "isthing": int(c.thing)} for c in spec.classes]
        content = {"info": {}, "images": images, "annotations": entries, "categories": categories}
        (root / f"{folder}.json").write_text(json.dumps(content))
        shutil.copy(root / f"images/{split}2017/{name}.jpg", root / f"images/{split}2017/{10**11:012d}.jpg")
    for folder in ("images", "panoptic_segmentation") if packed else ():
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for path in sorted((root / folder).rglob("*")):
                archive.write(path, path.relative_to(root))
        shutil.rmtree(root / folder)
    return ids


@pytest.mark.parametrize("packed", [False, True])
def test_the_release_becomes_the_sample(tmp_path: Path, packed: bool) -> None:
    ids = write_release(tmp_path, {"train": 100, "val": 50}, packed)
    prepare("coco-sample", tmp_path, [], workers=2).report()
    spec = load_manifest("coco-panoptic")
    for split, count in (("train", 100), ("val", 50)):
        data = Dataset(spec, tmp_path, split)
        assert [int(name) for name in data.image_ids] == ids[split][:count]
        assert len(list((tmp_path / f"{split}2017").iterdir())) == count
        assert len(list((tmp_path / f"panoptic_{split}2017").iterdir())) == count
        some = data.samples[5]
        assert (data.read_semantic(some) == 0).all() and data.read_image(some).shape == (4, 6, 3)
    made = bytes_below(tmp_path)
    assert [len(product.written) for product in prepare("coco-sample", tmp_path, []).products] == [0] * 6
    assert bytes_below(tmp_path) == made


def test_what_a_release_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fails(InputError, "has no panoptic_segmentation/annotations/panoptic_train2017.json"):
        prepare("coco-sample", tmp_path, [])
    ids = write_release(tmp_path, {"val": 50}, packed=False)
    (tmp_path / f"images/val2017/{ids['val'][1]:012d}.jpg").unlink()
    with fails(PartialError, "1 of 50 images failed", "images val"):
        prepare("coco-sample", tmp_path, [], "val").report()
    assert f"images/val2017/{ids['val'][1]:012d}.jpg: missing" in capsys.readouterr().err
    (tmp_path / "panoptic_segmentation/annotations/panoptic_val2017.json").write_text('{"images": [{}]}')
    with fails(InputError, "not an annotation file of COCO panoptic"):
        prepare("coco-sample", tmp_path, ["annotations"], "val")


def test_the_sample_is_made_again(shared: Path, tmp_path: Path) -> None:
    """The same files, from the release's layout."""
    folder = shared / "data/coco"
    for split in ("train", "val"):
        shutil.copytree(folder / f"{split}2017", tmp_path / f"images/{split}2017")
        inside = tmp_path / "panoptic_segmentation/annotations"
        shutil.copytree(folder / f"panoptic_{split}2017", inside / f"panoptic_{split}2017")
        content = json.loads((folder / f"annotations/panoptic_{split}2017.json").read_text())
        random.Random(1).shuffle(content["images"])
        random.Random(2).shuffle(content["annotations"])
        later = {**content["images"][0], "id": 10**9, "file_name": "1000000000.jpg"}
        content["images"].append(later)
        content["annotations"].append({**content["annotations"][0], "image_id": 10**9, "file_name": "1000000000.png"})
        (inside / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    prepare("coco-sample", tmp_path, []).report()
    made = {name: data for name, data in bytes_below(tmp_path).items() if "2017" in name.partition("/")[0]}
    wanted = {name: data for name, data in bytes_below(folder).items() if not name.startswith("annotations/")}
    assert made == wanted
    for split in ("train", "val"):
        name = f"annotations/panoptic_{split}2017.json"
        assert json.loads((tmp_path / name).read_text()) == json.loads((folder / name).read_text())
