"""Tables of images in place of folders that are listed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitp_pipeline.datasets import ClassInfo, Dataset, DatasetSpec
from vitp_pipeline.datasets.identity import split_name
from vitp_pipeline.datasets.image_table import ImageTable, write_table
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.inference.image_files import find_pictures

NAMES = ("b/1.png", "a/2.x.png", "a/.hidden.png", "c.JPG")
CLASSES = (ClassInfo("x", 0, False, (0, 0, 0)), ClassInfo("y", 1, False, (9, 9, 9)))


def spec_of(images: str, labels: tuple[str, ...] = ("labels/{stem}.png",)) -> DatasetSpec:
    return DatasetSpec("two", CLASSES, "semantic-png", (), {"val": SplitSpec((images,), labels)})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in NAMES:
        for path in (tmp_path / "photos" / name, tmp_path / "labels" / f"{split_name(name)[0]}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 5), len(name) % 2, np.uint8)).save(path.with_suffix(".png"))
            path.with_suffix(".png").rename(path)
    (tmp_path / "photos/note.txt").touch()
    return tmp_path


def test_a_table_is_the_folder_that_it_was_made_of(data: Path) -> None:
    assert write_table(data / "images.parquet", data, "photos/**/*") == 4
    (data / "photos/note.txt").unlink()  # a pattern would take it
    listed, folder = (Dataset(spec_of(images), data, "val") for images in ("images.parquet", "photos/**/*"))
    assert sorted(listed.image_ids) == sorted(folder.image_ids) == [".hidden", "1", "2.x", "c"]
    for image_id in folder.image_ids:
        assert listed.sample(image_id) == folder.sample(image_id)
        assert (listed.read_semantic(listed.sample(image_id)) == folder.read_semantic(folder.sample(image_id))).all()
    with pytest.raises(InputError, match="no image with the id"):
        listed.sample("other")


def test_columns(data: Path) -> None:
    def table(**columns: list[str | None]) -> Path:
        pq.write_table(
            pa.table({name: pa.array(own, pa.string()) for name, own in columns.items()}), data / "t.parquet"
        )
        return data / "t.parquet"

    assert list(ImageTable(table(image=["a/1.png", "b/1.png"])).ids) == ["a/1", "b/1"]  # their names recur
    assert list(ImageTable(table(image=["a/1.png", "b/2.png"], id=["x", "y"])).ids) == ["x", "y"]
    table(image=["photos/b/1.png"], label=["labels/c.png"])
    (sample,) = Dataset(spec_of("t.parquet", ()), data, "val").samples
    assert sample.truth == data / "labels/c.png"
    assert Dataset(spec_of("t.parquet"), data, "val", limit=1).image_ids == ("1",)
    table(image=["../1.png"])
    with pytest.raises(InputError, match="leads out of the data root"):
        Dataset(spec_of("t.parquet"), data, "val").samples[0]
    table(image=["a/1.png", "a/1.png"])
    with pytest.raises(InputError, match="occurs twice"):
        Dataset(spec_of("t.parquet"), data, "val")
    for odd in (table(path=["a"]), table(image=[None]), table(image=["a.png", "b.png"], id=["a", None])):
        with pytest.raises(InputError, match=r"t\.parquet"):
            ImageTable(odd)
    (data / "t.parquet").write_bytes(b"text")
    with pytest.raises(InputError, match="not a table of images"):
        ImageTable(data / "t.parquet")
    with pytest.raises(InputError, match="list-images"):
        Dataset(spec_of("none.parquet"), data, "val")
    with pytest.raises(InputError, match="no image matches"):
        write_table(data / "none.parquet", data, "labels/*.jpg")


def test_a_split_of_a_table_may_lack_labels(data: Path) -> None:
    write_table(data / "images.parquet", data, "photos/**/*")
    spec = spec_of("images.parquet", ())
    assert all(sample.truth is None for sample in Dataset(spec, data, "val").samples)
    chosen = dataclasses.replace(spec, splits={"val": SplitSpec(("images.parquet",), (), list=("few.txt",))})
    (data / "few.txt").write_text("photos/c.JPG\n1\n")
    assert sorted(Dataset(chosen, data, "val").image_ids) == ["1", "c"]


def test_predict_takes_a_table_alone(data: Path, tmp_path: Path) -> None:
    write_table(data / "images.parquet", data / "photos")
    pictures = find_pictures([data / "images.parquet"], tmp_path / "out", data / "photos")
    assert [picture.name for picture in pictures] == ["a/.hidden", "a/2.x", "b/1", "c"]
    assert all(picture.path.is_file() for picture in pictures)
    with pytest.raises(UsageError, match="alone"):
        find_pictures([data / "images.parquet", data / "photos"], tmp_path / "out")
