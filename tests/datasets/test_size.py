"""A large dataset is listed in seconds: nothing is opened, and nothing is asked of the file system file by file."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import making
from vitp_pipeline.datasets import Dataset, load_manifest
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding import archives

IMAGES, SEGMENTS = 20_000, 4
LIMIT = 10.0
"""Seconds of this process's own time; it takes about one."""


def names() -> list[str]:
    return [f"{n:012d}" for n in range(IMAGES)]


@pytest.mark.parametrize("packed", [False, True])
def test_folder_of_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    spec = making.semantic_spec(splits={"train": SplitSpec("train/{id}.jpg", "labels/{id}.png")})
    if packed:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
            for name in names():
                target.writestr(f"train/{name}.jpg", b"")
            target.writestr(f"labels/{names()[0]}.png", b"")
    else:
        (tmp_path / "labels").mkdir()
        listed = {"train": [f"{name}.jpg" for name in names()], "labels": [f"{name}.png" for name in names()]}
        # 20,000 files take longer to make than to list
        monkeypatch.setattr(archives, "_names", lambda folder, folders: iter(() if folders else listed[folder.name]))
    began = time.process_time()
    data = Dataset(spec, tmp_path, "train")
    assert time.process_time() - began < LIMIT
    assert [s.image_id for s in data.samples] == names()
    assert data.sample("000000019999").label.name == "000000019999.png"


def test_annotation_file_of_many_images(tmp_path: Path) -> None:
    spec = load_manifest("coco-panoptic")
    label = [c.label for c in spec.classes]
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 2**24, (IMAGES, SEGMENTS)).tolist()
    data = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in range(IMAGES)],
        "annotations": [
            {
                "image_id": n,
                "file_name": f"{n:012d}.png",
                "segments_info": [
                    {"id": i, "category_id": label[i % 133], "iscrowd": 0, "bbox": [1, 2, 3, 4]} for i in ids[n]
                ],
            }
            for n in range(IMAGES)
        ],
        "categories": [{"id": c.label, "name": c.name} for c in spec.classes],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/panoptic_train2017.json").write_text(json.dumps(data))
    began = time.process_time()
    dataset = Dataset(spec, tmp_path, "train")
    assert time.process_time() - began < LIMIT
    assert len(dataset) == IMAGES
    last = dataset.sample("19999").segments
    assert last is not None and [s.id for s in last] == ids[-1]
    assert [s.category for s in last] == [i % 133 for i in ids[-1]] and last[0].bbox == (1.0, 2.0, 3.0, 4.0)
