"""Pre-annotations for tools that people label with, read back by the tools' own libraries, and labels from them.

The libraries come from an environment of their own (`make readers`): they want other versions than vitp.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitp_pipeline.datasets import ClassInfo, Dataset, DatasetSpec
from vitp_pipeline.datasets.spec import SplitSpec
from vitp_pipeline.decoding.brush_rle import decode_brush, encode_brush
from vitp_pipeline.decoding.rle import decode_mask, encode_mask, split_components
from vitp_pipeline.errors import InputError
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ImageResult

OWN = Path(os.environ.get("VITP_READERS", Path(__file__).parents[2] / ".venv-readers"))
SIZE = (24, 33)
CLASSES = (ClassInfo("cat", 3, True, (255, 0, 0)), ClassInfo("a & b", 8, True, (0, 255, 0)))


def spec_of(kind: str, annotations: str, images: str = "images") -> DatasetSpec:
    return DatasetSpec("two", CLASSES, kind, (), {"val": SplitSpec((images,), (), (annotations,))})


def read_by(package: str, program: str, *arguments: object):
    """What a program prints as JSON, run by the Python that has the package; the test is skipped without."""
    if not any(OWN.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"{package} is not installed: make readers")
    home = {"HOME": str(OWN), "FIFTYONE_DO_NOT_TRACK": "true", "DATUMARO_TELEMETRY": "0"}
    words = [str(OWN / "bin/python"), "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **home}, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def masks_of(count: int = 3) -> list[np.ndarray]:
    """Disjoint masks, one of them of two pieces."""
    found = [np.zeros(SIZE, bool) for _ in range(count)]
    found[0][2:9, 3:12] = True
    found[1][12:20, 1:9] = True
    found[1][10:15, 20:30] = True
    found[2][20:23, 12:19] = True
    return found


def write(folder: Path, format: str) -> list[Path]:
    """The files of one image with three masks, as `vitp export-results` writes them."""
    masks, spec, made = masks_of(), spec_of("coco-instances", ""), RESULT_FORMATS[format]

    def instances():
        return [encode_mask(mask) for mask in masks], np.array([0, 1, 0]), np.array([0.9, 0.6, 0.3], np.float32)

    image = ImageResult(7, "a.png", "a", SIZE, lambda: None, lambda: None, instances)  # type: ignore[arg-type,return-value]
    entry, _ = made.write(spec, image, folder)
    about = {"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1], "uncertainty": 0.25}
    files = []
    for name, content in made.json(spec, [about], [entry]).items():
        files.append(folder / name)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for place in ("images", "images/default"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / place / "a.png")
    return files


BRUSH = """
import json, sys
from label_studio_converter.brush import decode_rle, mask2rle
import numpy as np
task, = json.load(open(sys.argv[1]))
found = []
for r in task["predictions"][0]["result"]:
    shape = r["original_height"], r["original_width"], 4
    mask = decode_rle(r["value"]["rle"]).reshape(shape)[..., 3]
    found.append({"labels": r["value"]["brushlabels"], "mask": (mask > 0).astype(int).tolist(),
                  "again": mask2rle(mask)})
print(json.dumps(found))
"""


def test_label_studios_converter_reads_the_masks(tmp_path: Path) -> None:
    tasks, config = write(tmp_path, "label-studio")
    found = read_by("label_studio_converter", BRUSH, tasks)
    assert [r["labels"] for r in found] == [["cat"], ["a & b"], ["cat"]]
    for own, mask in zip(found, masks_of(), strict=True):
        assert np.array_equal(np.array(own["mask"], bool), mask)
        assert np.array_equal(decode_brush(own["again"], SIZE), mask)  # as the converter writes it
    assert 'value="a &amp; b" background="#00ff00"' in config.read_text()
    (task,) = json.loads(tasks.read_text())
    assert task["data"] == {"image": "a.png", "file_name": "a.png", "image_id": 7, "uncertainty": 0.25}


DATUMARO = """
import json, sys
from datumaro import Dataset
data = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [c.name for c in next(iter(data.categories().values())).items]
masks = [a for item in data for a in item.annotations if hasattr(a, "image")]
found = [[names[a.label], a.image.astype(int).tolist()] for a in sorted(masks, key=lambda a: a.id)]
print(json.dumps(found))
"""


def test_datumaro_reads_cvats_format(tmp_path: Path) -> None:
    """Datumaro is what CVAT reads COCO 1.0 with."""
    write(tmp_path, "cvat")
    found = read_by("datumaro", DATUMARO, tmp_path, "coco_instances")
    assert [name for name, _ in found] == ["cat", "a & b", "cat"]
    for (_, own), mask in zip(found, masks_of(), strict=True):
        assert np.array_equal(np.array(own, bool), mask)


FIFTYONE = """
import json, sys
import fiftyone.utils.coco as coco
read = coco.COCODetectionDatasetImporter(data_path=sys.argv[2], labels_path=sys.argv[1], label_types="segmentations")
with read:
    for path, meta, label in read:
        found = [[d.label, d.bounding_box, d.mask.astype(int).tolist(), d.confidence] for d in label.detections]
print(json.dumps(found))
"""


def test_fiftyone_reads_instances(tmp_path: Path) -> None:
    (file,) = write(tmp_path, "coco-instances")
    found = read_by("fiftyone", FIFTYONE, file, tmp_path / "images")
    assert [name for name, *_ in found] == ["cat", "a & b", "cat"]
    for (_, box, own, _), mask in zip(found, masks_of(), strict=True):
        left, top = round(box[0] * SIZE[1]), round(box[1] * SIZE[0])
        whole, inside = np.zeros(SIZE, bool), np.array(own, bool)
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        assert np.array_equal(whole, mask)
    assert [score for *_, score in found] == pytest.approx([0.9, 0.6, 0.3])


@pytest.mark.parametrize("format", ["cvat", "coco-instances"])
def test_corrected_masks_come_back_as_a_split(tmp_path: Path, format: str) -> None:
    (file,) = write(tmp_path, format)
    data = json.loads(file.read_text())
    data["annotations"].pop()  # somebody removed it, and drew another class
    data["annotations"][0]["category_id"] = 8
    file.write_text(json.dumps(data))
    dataset = Dataset(spec_of("coco-instances", file.relative_to(tmp_path).as_posix()), tmp_path, "val")
    found = dataset.read_instances(dataset.samples[0])
    assert [instance.category for instance in found] == [1, 1]
    for instance, mask in zip(found, masks_of(), strict=False):
        assert np.array_equal(instance.mask, mask)


def export_of(tmp_path: Path) -> list[dict]:
    """What Label Studio exports when somebody has accepted the prediction of a task."""
    tasks, _ = write(tmp_path, "label-studio")
    (task,) = json.loads(tasks.read_text())
    result = [{**r, "origin": "prediction-changed"} for r in task["predictions"][0]["result"]]
    own = {"id": 1, "was_cancelled": False, "updated_at": "2026-01-02T00:00:00Z", "result": result}
    old = {**own, "updated_at": "2026-01-01T00:00:00Z", "result": []}
    return [
        {"id": 5, "data": task["data"], "annotations": [old, own], "predictions": []},
        {"id": 6, "data": {"image": "/data/local-files/?d=photos/b.png"}, "annotations": []},
    ]


def label_studio(tmp_path: Path, tasks: list[dict]) -> Dataset:
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return Dataset(spec_of("label-studio", "export.json"), tmp_path, "val")


def test_label_studios_export_is_a_split(tmp_path: Path) -> None:
    tasks = export_of(tmp_path)
    polygon = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["a & b"]}
    frame = {"original_width": SIZE[1], "original_height": SIZE[0]}
    tasks[0]["annotations"][1]["result"] += [
        {"type": "polygonlabels", "value": polygon, **frame},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    dataset = label_studio(tmp_path, tasks)
    assert dataset.image_ids == ("7",)  # the other task is not labeled yet
    found = dataset.read_instances(dataset.samples[0])
    assert [instance.category for instance in found] == [0, 1, 0, 1]
    for instance, mask in zip(found, masks_of(), strict=False):
        assert np.array_equal(instance.mask, mask)
    assert found[3].mask[: SIZE[0] // 2, : SIZE[1] // 2].all() and found[3].area == 12 * 17
    assert dataset.read_semantic(dataset.samples[0]).max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[0].pop("annotations"), "no `annotations`"),
        (lambda t: t[0].pop("data"), "no `data`"),
        (lambda t: t[0]["annotations"][1]["result"][0]["value"].update(brushlabels=["dog"]), "not a class"),
        (lambda t: t[0]["annotations"][1]["result"][0]["value"].update(brushlabels=[]), "not one"),
        (lambda t: t[0]["annotations"][1]["result"][0]["value"].update(rle=[1, 2]), "run lengths are not of"),
        (lambda t: t[0]["annotations"][1]["result"][0].update(original_width=10**9), r"pixels|limit|large"),
        (lambda t: t[0]["annotations"][1].update(result={}), "no `result`"),
        (lambda t: t[0]["data"].update(file_name="../a.png"), "leads out"),
    ],
    ids=["annotations", "data", "class", "classes", "run lengths", "size", "result", "path"],
)
def test_what_is_wrong_is_said(tmp_path: Path, change, message: str) -> None:
    tasks = export_of(tmp_path)
    change(tasks)
    with pytest.raises(InputError, match=message):
        label_studio(tmp_path, tasks)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_brush_masks(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    code = encode_brush(mask)
    assert np.array_equal(decode_brush(code, mask.shape), mask)
    for cut in range(len(code)):
        with pytest.raises(ValueError, match=r"are not|end too early"):
            decode_brush(code[:cut], mask.shape)


def test_long_runs_are_written_in_pieces() -> None:
    mask = np.zeros((300, 400), bool)
    mask[10:290, 5:395] = True
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)
    assert not decode_brush(encode_brush(np.zeros((300, 400), bool)), (300, 400)).any()
    with pytest.raises(ValueError, match="values of 32 bits"):
        decode_brush([0, 0, 0, 4, 0b11111000, 0, 0, 0, 0], (1, 1))


def test_pieces_of_a_mask() -> None:
    masks = masks_of()
    assert [len(split_components(encode_mask(mask))) for mask in masks] == [1, 2, 1]
    pieces = [decode_mask(piece) for piece in split_components(encode_mask(masks[1]))]
    assert np.array_equal(pieces[0] | pieces[1], masks[1]) and not (pieces[0] & pieces[1]).any()
    assert split_components(encode_mask(np.zeros(SIZE, bool))) == []
