"""Clothing Co-Parsing as it is downloaded: .mat files and photographs, made into what the manifest reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.datasets import making
from tests.datasets.test_dataset import fails
from tests.datasets.test_prepare import bytes_below, read
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.datasets.prepare import PRODUCTS, prepare
from vitp_pipeline.datasets.prepare.clothing_co_parsing import fine_numbers, reduced, split_numbers
from vitp_pipeline.errors import PartialError

PHOTOS = {"0010": (700, 420), "0014": (1120, 840), "0001": (300, 200), "0004": (561, 560), "0005": (90, 600)}
"""Two of val, one held out, two of train, of which the last is in `fine`."""


def write_clone(root: Path) -> dict[str, np.ndarray]:
    """Photographs of colors that change slowly, labels in blocks of several types, and what else lies there."""
    random, labels = np.random.default_rng(0), {}
    for n, (name, (height, width)) in enumerate(PHOTOS.items()):
        rows, cols = np.mgrid[:height, :width]
        photo = np.stack([rows * 255 / height, cols * 255 / width, np.full(rows.shape, 40 * n)], -1).astype(np.uint8)
        making.write_png(root / f"photos/{name}.png", photo)
        Image.fromarray(photo).save(root / f"photos/{name}.jpg", quality=98, subsampling=0)
        (root / f"photos/{name}.png").unlink()
        labels[name] = random.integers(0, 59, (height // 10 + 1, width // 10 + 1)).repeat(10, 0).repeat(10, 1)
        labels[name] = labels[name][:height, :width]
        (root / "annotations/pixel-level").mkdir(parents=True, exist_ok=True)
        typed = labels[name].astype((np.uint8, np.float64, np.int32)[n % 3])
        savemat(root / f"annotations/pixel-level/{name}.mat", {"groundtruth": typed}, do_compression=n % 2 == 0)
    (root / "annotations/image-level").mkdir()
    savemat(root / "annotations/image-level/1005.mat", {"tags": np.arange(3)})
    savemat(root / "label_list.mat", {"label_list": np.array([["null", "accessories"]], object)})
    Image.new("RGB", (20, 30)).save(root / "photos/1005.jpg")
    return labels


def test_a_clone_becomes_what_the_manifest_reads(tmp_path: Path) -> None:
    root = tmp_path / "clothing-co-parsing"
    labels = write_clone(root)
    before = bytes_below(root)
    prepare("clothing-co-parsing", tmp_path, [], workers=2).report()
    made = sorted(set(bytes_below(root)) - set(before))
    assert len(made) == 2 * len(PHOTOS) + 1 and before.items() <= bytes_below(root).items()
    spec = load_manifest("clothing-co-parsing")
    ids = {split: Dataset(spec, tmp_path, split).image_ids for split in spec.splits}
    assert ids == {
        "train": ("0004", "0005"),
        "val": ("0010", "0014"),
        "held_out": ("0001",),
        "fine": ("0005",),
        "coarse_rest": ("0004",),
    }
    sizes = {"0010": (560, 336), "0014": (560, 420), "0001": (300, 200), "0004": (560, 559), "0005": (84, 560)}
    for split in ("train", "val", "held_out"):
        data = Dataset(spec, tmp_path, split)
        for sample in data.samples:
            image, found, whole = data.read_image(sample), data.read_semantic(sample), labels[sample.image_id]
            height, width = sizes[sample.image_id]
            assert image.shape == (height, width, 3) and found.shape == (height, width)
            rows = [int((row + 0.5) * whole.shape[0] / height) for row in range(height)]  # pixels with these centers
            cols = [int((col + 0.5) * whole.shape[1] / width) for col in range(width)]
            assert np.array_equal(found, whole[np.ix_(rows, cols)])
    halved = read(root / "photos/0014.jpg").astype(float).reshape(560, 2, 420, 2, 3).mean((1, 3))
    assert np.abs(read(root / "images/val/0014.jpg") - halved).max() < 6  # JPEG's loss, no shift


def test_a_second_run_makes_nothing_and_a_broken_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clone(tmp_path)
    folder = tmp_path / "annotations/pixel-level"
    good = (folder / "0010.mat").read_bytes()
    savemat(folder / "0010.mat", {"groundtruth": np.full((700, 420), 59)})
    savemat(folder / "0014.mat", {"groundtruth": np.zeros((5, 6))})
    savemat(folder / "0004.mat", {"groundtruth": np.full((561, 560), 0.5)})
    savemat(folder / "0005.mat", {"groundtruth": np.array([["x", 1]], object)})
    with fails(PartialError, "all 2 images failed", "labels train"):
        prepare("clothing-co-parsing", tmp_path, []).report()
    said = capsys.readouterr().err
    for words in (
        "0010.mat: it has label values",
        "0014.mat: is 6×5, its photograph 840×1120",
        "no classes",
        "0005.mat: the variable",
    ):
        assert words in said
    assert len(list(tmp_path.glob("images/*/*.jpg"))) == len(PHOTOS)
    assert [p.name for p in tmp_path.glob("annotations/*/*.png")] == ["0001.png"]
    (folder / "0010.mat").write_bytes(good)
    prepare("clothing-co-parsing", tmp_path, ["labels"], "val")
    assert (tmp_path / "annotations/val/0010.png").is_file()
    before = bytes_below(tmp_path)
    again = prepare("clothing-co-parsing", tmp_path, ["images", "lists"])
    assert [(p.written, p.kept) for p in again.products if p.kept] == [([], n) for n in (2, 1, 2, 1)]
    assert bytes_below(tmp_path) == before


def test_the_split_is_always_the_same() -> None:
    """By the digest of its numbers: another NumPy must not draw another one."""
    splits, fine = split_numbers(), fine_numbers()
    assert {name: len(numbers) for name, numbers in splits.items()} == {"val": 150, "held_out": 154, "train": 700}
    assert frozenset().union(*splits.values()) == frozenset(range(1, 1005)) and len(fine) == 250
    assert fine < splits["train"]
    text = ";".join(",".join(map(str, sorted(part))) for part in (splits["val"], splits["train"], fine))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "2620a6d3e0886027fe284b8df1d976459eb786988ece8a17494b34c4e5ebdd9a"
    )


def test_the_split_is_that_of_the_sample(shared: Path) -> None:
    folder = shared / "data/ccp"
    for split in ("train", "val"):
        assert {int(path.stem) for path in (folder / "images" / split).iterdir()} == split_numbers()[split]
    assert {int(line) for line in (folder / "fine.txt").read_text().split()} == fine_numbers()
    sizes = {Image.open(path).size[::-1] for path in folder.glob("images/val/*.jpg")}
    assert all(reduced(size) == size for size in sizes)


def test_its_products_can_be_asked_for_one_by_one(tmp_path: Path) -> None:
    write_clone(tmp_path)
    for name in PRODUCTS["clothing-co-parsing"]:
        for split in ("val", "train"):
            assert prepare("clothing-co-parsing", tmp_path, [name], split).products
    assert (tmp_path / "fine.txt").read_text() == "0005\n"
