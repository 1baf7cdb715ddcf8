from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import making
from tests.datasets.test_dataset import fails
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding.archives import is_file, listing, read_bytes
from vitp_pipeline.errors import InputError


def pack(
    folder: Path, archive: Path, names: list[str], prefix: str = "", compression: int = zipfile.ZIP_DEFLATED
) -> None:
    """Moves what lies in `folder` into an archive, and removes it there."""
    files = [path for name in names for path in sorted((folder / name).rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", compression) as target:
            for path in files:
                target.write(path, prefix + path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, {".tar": "w", ".gz": "w:gz"}[archive.suffix]) as target:
            for path in files:
                target.add(path, prefix + path.relative_to(folder).as_posix())
    for path in files:
        path.unlink()
    for name in names:
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir()
        (folder / name).rmdir()


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.parametrize("prefix", ["", "./", "whole/"])
def test_an_archive_reads_as_the_folder_it_was(tmp_path: Path, ending: str, prefix: str) -> None:
    spec = making.write_semantic(tmp_path)
    if prefix == "whole/":
        spec = making.semantic_spec(roots=("", "whole"))
    folder = Dataset(spec, tmp_path, "train")
    before = [(folder.read_image(s), folder.read_semantic(s)) for s in folder.samples]
    pack(tmp_path, tmp_path / f"a.{ending}", ["images", "labels"], prefix)
    data = Dataset(spec, tmp_path, "train")
    assert [s.image_id for s in data.samples] == [s.image_id for s in folder.samples]
    assert all(f"a.{ending}" in s.image.as_posix() for s in data.samples)
    with ThreadPoolExecutor(4) as pool:  # read at once, as training does
        after = list(pool.map(lambda s: (data.read_image(s), data.read_semantic(s)), list(data.samples) * 5))
    for (image, labels), (image_, labels_) in zip(before * 5, after, strict=True):
        assert np.array_equal(image, image_) and np.array_equal(labels, labels_)


def test_images_and_labels_in_different_archives_or_one_of_them_unpacked(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    plain = Dataset(spec, tmp_path, "train")
    before = [plain.read_semantic(s) for s in plain.samples]
    pack(tmp_path, tmp_path / "labels_only.zip", ["labels"])
    data = Dataset(spec, tmp_path, "train")
    assert data.samples[0].image == plain.samples[0].image
    assert all(np.array_equal(data.read_semantic(s), b) for s, b in zip(data.samples, before, strict=True))
    pack(tmp_path, tmp_path / "images_only.tar", ["images"])
    data = Dataset(spec, tmp_path, "train")
    assert [data.read_image(s).shape[:2] for s in data.samples] == [b.shape for b in before]


def test_images_spread_over_several_archives(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    plain = Dataset(spec, tmp_path, "train")
    before = [plain.read_semantic(s) for s in plain.samples]
    for part, names in (("one", ("a0", "a3")), ("two", ("a1", "a2"))):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as target:
            for name in names:
                for kind in ("images", "labels"):
                    target.write(tmp_path / kind / f"{name}.png", f"{kind}/{name}.png")
    for path in [*(tmp_path / "images").iterdir(), *(tmp_path / "labels").iterdir()]:
        path.unlink()
    data = Dataset(spec, tmp_path, "train")
    assert [s.image_id for s in data.samples] == ["a0", "a1", "a2", "a3"]
    assert all(np.array_equal(data.read_semantic(s), b) for s, b in zip(data.samples, before, strict=True))


def test_the_data_root_may_be_an_archive_and_a_path_may_go_through_one(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    pack(tmp_path, tmp_path / "a.zip", ["images", "labels"])
    data = Dataset(spec, tmp_path / "a.zip", "train")
    assert len(data) == 4 and data.samples[0].image.relative_to(data.root).as_posix() == "images/a0.png"
    split = SplitSpec("a.zip/images/*.png", "a.zip/labels/{stem}.png")
    through = Dataset(making.semantic_spec(splits={"train": split}), tmp_path, "train")
    assert np.array_equal(through.read_semantic(through.samples[1]), data.read_semantic(data.samples[1]))


def test_coco_layout_in_archives(tmp_path: Path) -> None:
    spec, _ = making.write_coco(tmp_path)
    plain = Dataset(spec, tmp_path, "val")
    before = [plain.read_panoptic(s)[0] for s in plain.samples]
    for name in ("val", "panoptic_val", "annotations"):
        pack(tmp_path, tmp_path / f"{name}.zip", [name])
    data = Dataset(spec, tmp_path, "val")
    assert all(np.array_equal(data.read_panoptic(s)[0], b) for s, b in zip(data.samples, before, strict=True))
    assert data.read_image(data.samples[0]).shape[:2] == before[0].shape


def test_compressed_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    spec = making.write_semantic(tmp_path)
    pack(tmp_path, tmp_path / "all.tar.gz", ["images", "labels"])
    with fails(InputError, "all.tar.gz", "compressed", ".tar or .zip"):
        Dataset(spec, tmp_path, "train")
    (tmp_path / "all.tar.gz").rename(tmp_path / "all.tar")
    with fails(InputError, "all.tar", "compressed"):
        Dataset(spec, tmp_path, "train")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_damaged_archive_or_member_is_an_input_error(tmp_path: Path, ending: str) -> None:
    spec = making.write_semantic(tmp_path)
    archive = tmp_path / f"a.{ending}"
    pack(tmp_path, archive, ["images", "labels"], compression=zipfile.ZIP_STORED)
    data = Dataset(spec, tmp_path, "train")
    content = bytearray(archive.read_bytes())
    at = content.index(b"IDAT") + 8  # of the first image, in the middle of its pixels
    for offset in range(0, 40):
        content[at + offset] ^= 255
    archive.write_bytes(content)
    with fails(InputError, f"a.{ending}/images/a0.png"):
        data.read_image(data.samples[0])
    making.truncate(archive, 0.3)
    if ending == "zip":
        with fails(InputError, "a.zip", "damaged"):
            Dataset(spec, tmp_path, "train")
    archive.unlink()
    with fails(InputError, "a.", "does not exist"):
        data.read_image(data.samples[1])


def test_patterns_find_what_pathlib_finds(tmp_path: Path) -> None:
    names = ["a.png", "b.jpg", "x/a.png", "x/b.png", "x/y/c.png", "x/y/d.jpg", "z/y/c.png", "x/._a.png", "[q]/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as target:
        for name in names:
            if "._" not in name:
                target.write(tmp_path / name, name)
    for pattern in (
        "*.png",
        "x/*.png",
        "x/?.png",
        "*/y/*.png",
        "**/*.png",
        "x/**/*.jpg",
        "x/y/c.png",
        "[xz]/y/*",
        "n/*",
    ):
        expected = {
            path.relative_to(tmp_path).as_posix()
            for path in tmp_path.glob(pattern)
            if path.is_file() and path.suffix != ".zip" and "._" not in path.name
        }
        assert set(listing(tmp_path, pattern)) - {"all.zip"} == expected, pattern
        assert set(listing(tmp_path / "all.zip", pattern)) == expected, pattern
    assert set(listing(tmp_path, "{a}/y/{b}.png")) == {"x/y/c.png", "z/y/c.png"}
    assert read_bytes(tmp_path / "all.zip/x/a.png") == b"1" and not is_file(tmp_path / "all.zip/x/q.png")


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    root = tmp_path / "data.zip"
    spec = making.write_semantic(root)
    data = Dataset(spec, root, "train")
    assert len(data) == 4 and data.read_semantic(data.samples[0]).shape == (28, 36)


TWICE: dict[str, tuple[list[str], str]] = {
    "other content": (["x", "x"], "x"),
    "by two spellings": (["./x", "x"], "x"),
    "three times": (["x", "x", "x"], "x"),
    "in a folder": (["a/x", "b/x", "a/x"], "a/x"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_that_two_members_of_a_zip_have(tmp_path: Path, name: str) -> None:
    """Programs differ in which one they take."""
    members, twice = TWICE[name]
    for same in (True, False):
        archive = tmp_path / f"{same}.zip"
        with zipfile.ZipFile(archive, "w") as target, warnings.catch_warnings(action="ignore"):
            for number, member in enumerate([*members, "other"]):
                target.writestr(member, b"same" if same else str(number))
        assert read_bytes(archive / "other") == (b"same" if same else str(len(members)).encode())
        if same:
            assert read_bytes(archive / twice) == b"same"
        else:
            with fails(InputError, f"{twice}: is in its archive twice, with different content"):
                read_bytes(archive / twice)


OUTSIDE = ["/images/x.png", "../images/x.png", "images/../../x.png", "images/../images/x.png", "a/../../images/x.png"]
OUTSIDE += ["//images/x.png", "images\\x.png", "..\\images\\x.png", "C:/images/x.png", "images/x.png/", "images/", ""]


@pytest.mark.parametrize("member", OUTSIDE)
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_members_that_lead_elsewhere_are_no_images(tmp_path: Path, ending: str, member: str) -> None:
    spec = making.write_semantic(tmp_path / "data")
    archive, png = tmp_path / f"data/a.{ending}", (tmp_path / "data/images/a0.png").read_bytes()
    (tmp_path / "x.png").write_bytes(png)
    pack(tmp_path / "data", archive, ["images", "labels"])
    if ending == "zip":
        with zipfile.ZipFile(archive, "a") as target:
            target.writestr(member or "?", png)
    else:
        with tarfile.open(archive, "a") as tar:
            info = tarfile.TarInfo(member)
            info.size = len(png)
            tar.addfile(info, io.BytesIO(png))
    try:
        data = Dataset(making.semantic_spec(splits={"train": SplitSpec("**/*.png")}), tmp_path / "data", "train")
    except InputError as error:
        assert any(words in str(error) for words in ("leads out", "not a relative path", "occurs twice"))
    else:
        assert all(".." not in sample.image.parts for sample in data.samples)
    data = Dataset(spec, tmp_path / "data", "train")
    assert data.image_ids == ("a0", "a1", "a2", "a3")
    assert all(data.read_image(sample).shape[2] == 3 for sample in data.samples)
