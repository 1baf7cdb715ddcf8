"""Masks in files that Segment Anything's own code wrote come back as they were, or one line says what is wrong."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from scipy.ndimage import distance_transform_edt

from tests.datasets import making
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.decoding.rle import decode_mask
from vitp_pipeline.errors import InputError, MissingDataError
from vitp_pipeline.execution.sharding import choose_shard
from vitp_pipeline.interop.mask_import import open_source
from vitp_pipeline.stages.import_proposals import import_proposals

FORMS = ("coco_rle", "uncompressed_rle", "npy", "npz", "png", "sa1b", "sa1b by file name", "tar")
Record = dict[str, Any]


class Known:
    """In the place of SAM's network: three logit maps for each point of a grid, with predicted IoUs; none are alike."""

    def __init__(self, size: tuple[int, int], seed: int, points: int = 2) -> None:
        random = np.random.default_rng(seed)
        rows, cols = np.mgrid[: size[0], : size[1]]
        self.points = (np.arange(points)[:, None] + 0.5) / points * [1, 1]
        centers = random.uniform(0, 1, (3 * points, 2)) * size
        radii = np.stack(np.broadcast_arrays(random.uniform(0.1, 0.6, (3 * points, 1)) * min(size), [1.0, 0.7]), -1)[
            :, 0
        ]
        away = [np.hypot((rows - r) / a, (cols - c) / b) for (r, c), (a, b) in zip(centers, radii, strict=True)]
        self.logits = (6 * (1 - np.stack(away))).astype(np.float32)
        self.ious = random.permutation(np.linspace(0.6, 1.02, 3 * points)).astype(np.float32)

    def by_iou(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, H, W) bool and (Q,) predicted IoU × stability, in the order in which SAM lists them."""
        order = np.argsort(-self.ious)
        stability = (self.logits > 1).sum((1, 2)) / (self.logits > -1).sum((1, 2))
        return self.logits[order] > 0, (self.ious.clip(0, 1) * stability)[order]

    def records(self, output_mode: str) -> list[Record]:
        """What `SamAutomaticMaskGenerator.generate` of the library makes of it."""
        sam = pytest.importorskip("segment_anything")
        model = SimpleNamespace(image_encoder=SimpleNamespace(img_size=64), mask_threshold=0.0, device="cpu")
        generator = sam.SamAutomaticMaskGenerator(
            *(model, None, 64, 0.0, 0.0), box_nms_thresh=1.0, point_grids=[self.points], output_mode=output_mode
        )
        logits = torch.from_numpy(self.logits).reshape(len(self.points), 3, *self.logits.shape[1:])
        generator.predictor = SimpleNamespace(
            model=model,
            device="cpu",
            set_image=lambda image: None,
            reset_image=lambda: None,
            transform=SimpleNamespace(apply_coords=lambda points, size: points),
            predict_torch=lambda *_, **__: (logits, torch.from_numpy(self.ious).reshape(-1, 3), None),
        )
        found: list[Record] = generator.generate(np.zeros((*self.logits.shape[1:], 3), np.uint8))
        assert len(found) == len(self.ious)
        return found


def write_masks_to_folder(records: list[Record], folder: Path) -> None:
    """As scripts/amg.py does, which is no part of the package: PNG files and a list of all other values."""
    folder.mkdir(parents=True)
    columns = ["id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"]
    columns += ["predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"]
    lines = [",".join(columns)]
    for number, own in enumerate(records):
        cv2.imwrite(str(folder / f"{number}.png"), own["segmentation"] * 255)
        values = [number, own["area"], *own["bbox"], *own["point_coords"][0]]
        values += [own["predicted_iou"], own["stability_score"], *own["crop_box"]]
        lines.append(",".join(map(str, values)))
    (folder / "metadata.csv").write_text("\n".join(lines))


def without_masks(records: list[Record]) -> list[Record]:
    return [{key: value for key, value in own.items() if key != "segmentation"} for own in records]


class World:
    """A data set of images, and what SAM finds in each."""

    def __init__(self, root: Path, count: int = 3) -> None:
        self.root, self.spec = root, making.write_semantic(root / "data", count)
        self.dataset = Dataset(self.spec, root / "data", "train")
        self.sizes = [self.dataset.image_size(sample) for sample in self.dataset.samples]
        self.known = {i: Known(s, n) for n, (i, s) in enumerate(zip(self.dataset.image_ids, self.sizes, strict=True))}
        self.masks = root / "masks"
        self.masks.mkdir()

    def write(self, form: str) -> Path:
        """Write the masks of all images, and return what --masks names."""
        for number, (image_id, known) in enumerate(self.known.items()):
            file = self.masks / f"{image_id}.json"
            if form == "png":
                write_masks_to_folder(known.records("binary_mask"), self.masks / image_id)
            elif form in ("npy", "npz"):
                records = known.records("binary_mask")
                planes = np.stack([own["segmentation"] for own in records])
                if form == "npy":
                    np.save(file.with_suffix(".npy"), planes)
                else:
                    np.savez_compressed(file.with_suffix(".npz"), masks=planes.astype(np.uint8) * 255)
                file.write_text(json.dumps(without_masks(records)))
            else:
                mode = form if form.endswith("rle") else "coco_rle"
                content: Any = known.records(mode)
                if form.startswith("sa1b"):
                    height, width = self.sizes[number]
                    image = {"image_id": 900 + number, "width": width, "height": height, "file_name": f"{image_id}.png"}
                    content = {"image": image, "annotations": [{"id": 7 + n, **own} for n, own in enumerate(content)]}
                if form == "sa1b by file name":
                    file = self.masks / f"sa_{900 + number}.json"
                file.write_text(json.dumps(content))
        if form == "tar":
            with tarfile.open(self.root / "masks.tar", "w") as tar:
                for path in self.masks.iterdir():
                    tar.add(path, f"./{path.name}")
            return self.root / "masks.tar"
        return self.masks

    def run(self, masks: Path | None, format: str = "sam", **settings: Any):
        chosen = ProposalSettings(config="(imported)", split="train", **{"masks": "lossless"} | settings)
        recipe = Recipe(self.root / "r.toml", {}, "toy", self.spec)
        return import_proposals(
            recipe, chosen, format, masks, self.root / "data", self.root / "run", choose_shard(None, {})
        )

    def read(self, masks: Path, number: int = 0):
        """Read one image's masks."""
        source = open_source("sam", masks, self.dataset)
        source.open()
        return source.read(self.dataset.samples[number], self.sizes[number])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_the_librarys_files_come_back(world: World, form: str) -> None:
    outcome = world.run(world.write(form))
    assert outcome.made == 3 and not outcome.failed and not outcome.unusable
    for record in open_proposals(world.root / "run"):
        masks, objectness = world.known[record.image_id].by_iou()
        assert np.array_equal(record.masks > 0, masks)
        probs = torch.from_numpy(record.class_logits).double().softmax(1).numpy()
        assert np.allclose(1 - probs[:, -1], objectness, atol=1e-6)
        assert (np.ptp(probs[:, :-1], axis=1) == 0).all()
        for mask, point in zip(masks, record.points["max"], strict=True):
            depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            assert tuple(point) == np.unravel_index(depth.argmax(), depth.shape)
    assert world.run(world.masks if form != "tar" else world.root / "masks.tar").cached == 3


def test_a_single_file_is_of_the_image_that_it_names(world: World, capsys: pytest.CaptureFixture) -> None:
    world.write("coco_rle")
    first, *others = world.dataset.image_ids
    outcome = world.run(world.masks / f"{first}.json")
    assert [i for i, _ in outcome.failed] == others and outcome.made == 3
    assert all("no JSON file and no metadata.csv of image" in reason for _, reason in outcome.failed)


def test_a_folder_of_pngs_is_of_the_image_that_it_is_named_after(world: World) -> None:
    world.write("png")
    first = world.dataset.image_ids[0]
    masks = [decode_mask(rle) for rle in world.read(world.masks / first).masks]
    assert np.array_equal(masks, world.known[first].by_iou()[0])


def test_scores_that_are_not_there_count_as_1_and_those_a_little_outside_are_clipped(world: World) -> None:
    size = world.sizes[0]
    segmentation = {"size": list(size), "counts": [0, size[0] * size[1]]}
    scores: list[tuple[Record, float]] = [
        ({}, 1.0),
        ({"predicted_iou": 0.5}, 0.5),
        ({"stability_score": 0.25}, 0.25),
        ({"predicted_iou": 1.0625, "stability_score": 0.75}, 0.75),
        ({"predicted_iou": -0.125, "stability_score": 0.75}, 0.0),
        ({"predicted_iou": 0.5, "stability_score": 0.5, "bbox": "nonsense", "area": -1, "crop_box": None}, 0.25),
    ]
    records = [{"segmentation": segmentation, **own} for own, _ in scores]
    (world.masks / "a0.json").write_text(json.dumps(records))
    probs = torch.from_numpy(world.read(world.masks).class_logits).double().softmax(1).numpy()
    assert np.allclose(1 - probs[:, -1], [expected for _, expected in scores], atol=1e-6)


def test_an_image_without_masks_is_no_failure(world: World) -> None:
    world.write("coco_rle")
    (world.masks / "a1.json").write_text("[]")
    assert not world.run(world.masks).failed


def pixels(world: World) -> int:
    height, width = world.sizes[0]
    return height * width


def changed(**values: Any) -> Callable[[World], Any]:
    """Change the second record of the first image."""

    def change(world: World) -> Any:
        records = json.loads((world.masks / "a0.json").read_text())
        records[1] |= {k: v(world) if callable(v) else v for k, v in values.items()}
        records[1] = {k: v for k, v in records[1].items() if v != "left out"}
        return records

    return change


def runs(counts: Any, size: Any = None) -> Callable[[World], Record]:
    return lambda world: {"size": list(size or world.sizes[0]), "counts": counts(world) if callable(counts) else counts}


ODD: dict[str, tuple[Any, str]] = {
    "no segmentation": (changed(segmentation="left out"), "mask 1 has no `segmentation`"),
    "segmentation null": (changed(segmentation=None), "mask 1 has no `segmentation`"),
    "segmentation text": (changed(segmentation="PPY"), "mask 1: its segmentation is 'PPY'"),
    "rows of booleans": (changed(segmentation=[[True, False]]), "mask 1: .*not a finite number"),
    "no size": (changed(segmentation={"counts": [4]}), "mask 1: the `size` .* None"),
    "no counts": (changed(segmentation=runs(None)), "mask 1: the `counts` .* None"),
    "other size": (changed(segmentation=runs([4], (2, 2))), "mask 1: a segmentation of 2×2 pixels, not"),
    "turned": (
        changed(segmentation=lambda w: runs([pixels(w)], w.sizes[0][::-1])(w)),
        "mask 1: a segmentation of 28×36",
    ),
    "one run less": (changed(segmentation=runs(lambda w: [pixels(w) - 1])), "mask 1: .* add up to 1007 pixels"),
    "one run more": (changed(segmentation=runs(lambda w: [5, pixels(w)])), "mask 1: .* add up to 1013 pixels"),
    "huge counts": (changed(segmentation=runs([2**31, 2**31])), "mask 1: .* 2147483648"),
    "counts beyond 32 bits": (changed(segmentation=runs([2**70])), "mask 1: .*not a run length"),
    "negative counts": (changed(segmentation=runs([-3, 9])), "mask 1: .* -3"),
    "text counts cut": (changed(segmentation=runs("0")), "mask 1: .* add up to 0 pixels"),
    "text counts odd": (changed(segmentation=runs("\u00e9")), "mask 1: .* no compressed run lengths"),
    "iou nan": (changed(predicted_iou=float("nan")), "mask 1: its `predicted_iou` is nan"),
    "iou infinite": (changed(predicted_iou=float("inf")), "mask 1: its `predicted_iou` is inf"),
    "iou null": (changed(predicted_iou=None), "mask 1: its `predicted_iou` is None"),
    "iou in percent": (changed(predicted_iou=97.5), "mask 1: its `predicted_iou` is 97.5, far outside"),
    "stability text": (changed(stability_score="0.9"), "mask 1: its `stability_score` is '0.9'"),
    "record null": (lambda w: [None], "mask 0 is None, not an object"),
    "record list": (lambda w: [[1]], "mask 0 is .*, not an object"),
    "a number": (lambda w: 7, "neither a list of masks nor `annotations`"),
    "an object": (lambda w: {"masks": []}, "neither a list of masks nor `annotations`"),
    "annotations null": (lambda w: {"image": {}, "annotations": None}, "neither a list"),
    "image of other width": (lambda w: {"image": {"width": 9}, "annotations": []}, "is of an image of width 9, not 36"),
    "image of half height": (lambda w: {"image": {"height": 2.5}, "annotations": []}, "not a whole number"),
    "image text": (lambda w: {"image": "a0.png", "annotations": []}, "its `image` is 'a0.png'"),
    "image of another name": (
        lambda w: {"image": {"file_name": "a1.png"}, "annotations": []},
        "is named as image 'a0' .* `file_name` is that of image 'a1'",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_costs_its_image_alone(world: World, name: str) -> None:
    world.write("coco_rle")
    content, words = ODD[name]
    (world.masks / "a0.json").write_text(json.dumps(content(world)))
    outcome = world.run(world.masks)
    assert [image_id for image_id, _ in outcome.failed] == ["a0"] and outcome.made == 3
    with pytest.raises(InputError, match=words) as found:
        world.read(world.masks)
    message = str(found.value)
    assert message.startswith(f"{world.masks / 'a0.json'}: ") and message.replace("\n", "").isprintable()
    assert outcome.failed[0][1] == found.value.message
    world.write("coco_rle")
    assert not world.run(world.masks).made  # what failed stays, until it is asked for


def rewritten(change: Callable[[list[list[str]]], Any]) -> Callable[[Path], None]:
    """Change the rows of a metadata.csv."""

    def write(folder: Path) -> None:
        rows = list(csv.reader((folder / "metadata.csv").open()))
        change(rows)
        (folder / "metadata.csv").write_text("\n".join(",".join(row) for row in rows))

    return write


def painted(array: np.ndarray, name: str = "1.png") -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(array).save(folder / name)


ODD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "PNG missing": (lambda f: (f / "2.png").unlink(), r"2\.png: does not exist"),
    "row missing": (rewritten(lambda rows: rows.pop()), r"5\.png: has no row in metadata\.csv"),
    "rows missing": (rewritten(lambda rows: rows.__delitem__(slice(1, None))), r"0\.png: has no row"),
    "row cut": (rewritten(lambda rows: rows[-1].pop()), r"metadata\.csv: line 7 has 13 values for 14 columns"),
    "empty": (lambda f: (f / "metadata.csv").write_bytes(b""), "names no column `id`"),
    "no header": (rewritten(lambda rows: rows.pop(0)), "names no column `id`"),
    "binary": (lambda f: (f / "metadata.csv").write_bytes(b"\xff\x00\xfe"), "cannot be read"),
    "nul": (lambda f: (f / "metadata.csv").write_bytes(b"id\n\x000"), "cannot be read|not a number"),
    "id twice": (rewritten(lambda rows: rows[2].__setitem__(0, "0")), "line 3: its `id` 0 occurs twice"),
    "id a path": (rewritten(lambda rows: rows[1].__setitem__(0, "../../0")), "line 2: its `id` is '../../0'"),
    "id negative": (rewritten(lambda rows: rows[1].__setitem__(0, "-1")), "line 2: its `id` is '-1'"),
    "score nan": (rewritten(lambda rows: rows[1].__setitem__(8, "nan")), "line 2: its `predicted_iou` is nan"),
    "score text": (rewritten(lambda rows: rows[1].__setitem__(9, "good")), "line 2: its `stability_score` is 'good'"),
    "score empty": (rewritten(lambda rows: rows[1].__setitem__(9, "")), "line 2: its `stability_score` is ''"),
    "other size": (painted(np.zeros((4, 6), np.uint8)), r"1\.png: a mask of 6×4 pixels, not 36×28"),
    "gray": (painted(np.arange(28 * 36, dtype=np.uint8).reshape(28, 36)), r"1\.png: holds more than two values"),
    "colors": (painted(np.eye(28, 36, dtype=np.uint8)[..., None] * np.uint8([9, 0, 0])), r"1\.png: .*colors"),
    "no PNG": (lambda f: (f / "1.png").write_bytes(b"no"), r"1\.png: .*cannot be read"),
    "a JPEG": (lambda f: Image.new("L", (36, 28)).save(f / "1.png", format="JPEG"), r"1\.png: .*JPEG"),
}


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_an_odd_folder_costs_its_image_alone(world: World, name: str) -> None:
    world.write("png")
    change, words = ODD_FOLDERS[name]
    change(world.masks / "a0")
    with pytest.raises(InputError, match=words) as found:
        world.read(world.masks)
    assert str(found.value).startswith(str(world.masks / "a0"))
    assert [image_id for image_id, _ in world.run(world.masks).failed] == ["a0"]


ODD_ARRAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (lambda f: f.with_suffix(".npy").unlink(), "no array of this name"),
    "two": (lambda f: np.savez(f.with_suffix(".npz"), masks=[1]), "two arrays of this name"),
    "a mask less": (
        lambda f: np.save(f.with_suffix(".npy"), np.zeros((5, 28, 36), bool)),
        r"a0\.npy: is \(5, 28, 36\)",
    ),
    "turned": (lambda f: np.save(f.with_suffix(".npy"), np.zeros((6, 36, 28), bool)), r"a0\.npy: is \(6, 36, 28\)"),
    "probabilities": (
        lambda f: np.save(f.with_suffix(".npy"), np.random.default_rng(0).uniform(0, 1, (6, 28, 36))),
        r"a0\.npy: mask 0: .*not binary",
    ),
    "nan": (lambda f: np.save(f.with_suffix(".npy"), np.full((6, 28, 36), np.nan)), "not binary"),
    "objects": (lambda f: np.save(f.with_suffix(".npy"), np.array([{}], object)), "not of numbers"),
    "cut": (lambda f: f.with_suffix(".npy").write_bytes(f.with_suffix(".npy").read_bytes()[:-9]), "holds"),
    "text": (lambda f: f.with_suffix(".npy").write_bytes(b"no"), "no header of numpy's"),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_an_odd_array_costs_its_image_alone(world: World, name: str) -> None:
    world.write("npy")
    change, words = ODD_ARRAYS[name]
    change(world.masks / "a0.json")
    with pytest.raises(InputError, match=words):
        world.read(world.masks)
    assert [image_id for image_id, _ in world.run(world.masks).failed] == ["a0"]


def test_two_files_of_one_image_end_the_import(world: World) -> None:
    world.write("coco_rle")
    write_masks_to_folder([], world.masks / "a1")
    with pytest.raises(InputError, match=r"'a1.json' and 'a1/metadata.csv' both mean image 'a1'"):
        world.run(world.masks)
    assert not (world.root / "run/proposals").exists()


def test_files_of_other_images_are_counted_and_files_that_are_not_json_reported(world: World, capsys) -> None:
    world.write("coco_rle")
    (world.masks / "b7.json").write_text("[]")
    (world.masks / "sa_9.json").write_text(json.dumps({"image": {"file_name": "sa_9.jpg"}, "annotations": []}))
    (world.masks / "notes.json").write_text("{")
    outcome = world.run(world.masks)
    assert outcome.made == 3 and len(outcome.unusable) == 1 and "notes.json: not JSON" in outcome.unusable[0]
    assert "2 of its 5 images are not in the split" in capsys.readouterr().err


def test_what_is_not_there(world: World) -> None:
    for path, words in ((world.root / "nothing", "no such file"), (world.masks, "no JSON file and no metadata.csv in")):
        with pytest.raises((InputError, MissingDataError), match=words):
            world.run(path)
    (world.masks / "b7.json").write_text("[]")
    with pytest.raises(InputError, match=r"none of its 1 images, like 'b7', is in the split 'train'"):
        world.run(world.masks)


def test_masks_of_an_image_that_failed_are_corrected_in_their_run(world: World) -> None:
    """What an image was read from has a digest, so that a correction is told from other masks."""
    world.write("png")
    mask = world.masks / "a0/1.png"
    content = mask.read_bytes()
    mask.unlink()
    assert len(world.run(world.masks).failed) == 1
    mask.write_bytes(content)
    source = open_source("sam", world.masks, world.dataset)
    source.open()
    before = source.digest(world.dataset.samples[0])
    Image.fromarray(np.zeros((28, 36), np.uint8)).save(mask)
    assert source.digest(world.dataset.samples[0]) != before


def test_more_masks_than_any_image_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitp_pipeline.interop import mask_content

    world.write("coco_rle")
    monkeypatch.setattr(mask_content, "MOST_MASKS", 5)
    with pytest.raises(InputError, match="6 masks of one image, more than 5"):
        world.read(world.masks)


def test_run_lengths_as_bytes_of_pycocotools(world: World) -> None:
    """SA-1B's counts are pycocotools' own."""
    mask = np.zeros(world.sizes[0], np.uint8)
    mask[3:9, 4:30] = 1
    encoded = coco.encode(np.asfortranarray(mask))
    own = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    (world.masks / "a0.json").write_text(json.dumps([{"segmentation": own}]))
    assert np.array_equal(decode_mask(world.read(world.masks).masks[0]), mask)
