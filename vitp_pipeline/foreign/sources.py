"""Where masks that other tools made lie: npz files, COCO's results, mmdetection's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.datasets.foreign_json import read_foreign_json
from vitp_pipeline.datasets.foreign_records import shown
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.fingerprint import file_digest
from vitp_pipeline.foreign.content import Detection, masks_of_detections, masks_of_npz
from vitp_pipeline.foreign.logits import ForeignMasks
from vitp_pipeline.geometry import Size
from vitp_pipeline.progress import say
from vitp_pipeline.validation.constraints import Fraction
from vitp_pipeline.validation.tables import check_value

VOID_SHARE = 0.5


Found = list[Detection] | InputError
"""The detections of an image, or why they cannot be used."""


class MaskSource(Protocol):
    """Masks by image."""

    def identity(self, digests: Digests) -> dict[str, Any]:
        """What they are, by content."""
        ...

    def open(self) -> None:
        """Reads what belongs to all images. Raises InputError when that cannot be read."""
        ...

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        """The masks of an image of (H, W). Raises InputError when there are none, or they do not fit it."""
        ...


class NpzFolder:
    """A folder with ID.npz or STEM.npz for every image; see `masks_of_npz` for what they hold."""

    def __init__(self, folder: Path, dataset: Dataset, void_share: float) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", "Give the folder that holds an .npz for every image")
        if next(folder.glob("*.npz"), None) is None:
            raise InputError(f"{folder}: no .npz file in this folder", "It must hold one for every image")
        self.folder, self.classes, self.void_share = folder, len(dataset.spec.classes), void_share

    def identity(self, digests: Digests) -> dict[str, Any]:
        content = hashlib.sha256()
        for file in sorted(self.folder.glob("*.npz")):
            content.update(f"{file.name}\0{file_digest(file)}\n".encode())
        return {"format": "npz", "masks": content.hexdigest()}

    def open(self) -> None:
        pass  # every image has its own file

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        candidates = [self.folder / f"{name}.npz" for name in (sample.image_id, sample.image.stem)]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise InputError(f"{candidates[0]}: no such file")
        return masks_of_npz(path, self.classes, self.void_share)


class Detections:
    """Binary masks with a label and a score each, all images' in one file.

    Args:
        path: the file, for messages and identity.
        classes: class indices by what the file calls them.
        read: gives its detections per image as the file names it, or why those of an image cannot be used.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        classes: Mapping[int, int],
        read: Callable[[], dict[str, Found]],
        dataset: Dataset,
        void_share: float,
    ) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path, self.format, self.dataset, self.void_share = path, format, dataset, void_share
        self._classes, self._read = classes, read
        self._by_image: dict[str, Found] = {}  # by image id of the data set

    def identity(self, digests: Digests) -> dict[str, Any]:
        return {"format": self.format, "masks": digests.of(self.path)}

    def open(self) -> None:
        """Raises InputError when the file cannot be read, or speaks of none of the images."""
        found = self._read()
        ids: dict[str, str] = {}
        for sample in self.dataset.samples:
            for name in names_of(sample):
                ids.setdefault(name, sample.image_id)
        known = {ids[name]: masks for name, masks in found.items() if name in ids}
        if not known:
            there = f", like {next(iter(found))!r}" if found else ""
            raise InputError(
                f"{self.path}: none of its {len(found)} images{there}, is in the split {self.dataset.split!r}, where "
                f"one is {self.dataset.samples[0].image_id!r}",
                "Images are told by their id, by its number or by their file's name",
            )
        if strangers := len(found) - len(known):
            say(f"{self.path}: {strangers} of its {len(found)} images are not in the split {self.dataset.split!r}")
        if empty := len(self.dataset) - len(known):
            say(f"{self.path}: has no mask for {empty} of {len(self.dataset)} images; they have no proposals")
        self._by_image = known

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        found = self._by_image.get(sample.image_id, [])
        if isinstance(found, InputError):
            raise found
        return masks_of_detections(self.path, found, size, self._classes, self.void_share)


def names_of(sample: Sample) -> list[str]:
    """What other tools may call an image: its id, the number that the id is, its file's stem, and the stem's number."""
    names = [sample.image_id, sample.image.stem]
    return names + [str(int(name)) for name in names if name.isdecimal()]


def read_coco(path: Path, classes: Mapping[int, int]) -> dict[str, Found]:
    """COCO results: a list of {image_id, category_id, segmentation, score}, or a data set whose annotations have scores
    and whose images have file names.

    Raises:
        InputError: not such a file, or one whose categories are all others than the manifest's.
    """
    content = read_foreign_json(path, "file of results")
    what, files = "result", {}
    try:
        if isinstance(content, dict):
            files = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
            what, content = "annotation", content["annotations"]
        found: dict[str, Found] = {str(name): [] for name in files.values()}
        known = False
        for number, entry in enumerate(content):
            name = str(files.get(entry["image_id"], entry["image_id"]))
            category = entry.get("category_id")
            known = known or (isinstance(category, int | float) and category in classes)
            own = Detection(
                f"{what} {number} (image {shown(entry['image_id'])})",
                category,
                entry.get("score"),
                entry.get("segmentation"),
            )
            found.setdefault(name, []).append(own)  # type: ignore[union-attr]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: no results as COCO has them ({error!r})",
            "A list of objects with image_id, category_id, segmentation and score",
        ) from error
    if content and not known:
        raise InputError(
            f"{path}: none of its categories, like {shown(content[0].get('category_id'))}, is one of the manifest",
            "Category ids are the `label` of the manifest's classes",
        )
    return found


def read_mmdet(path: Path, dataset: Dataset) -> dict[str, Found]:
    """What `tools/test.py --out FILE.pkl` of mmdetection 3.x writes, read without running what the pickle asks for.

    Labels are class indices, in the order of the model's classes, which the file does not name.

    Raises:
        InputError: not such a file, one without masks, or one of mmdetection 2.x, which does not name its images.
    """
    from vitp_pipeline.generators.numpy_pickle import read_result_pickle

    content = read_result_pickle(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(
            f"{path}: not what mmdetection 3.x writes; files of 2.x do not say which image is which",
            "Write COCO's results with it (--format-only) and import those with --from coco",
        )
    if not any(isinstance(e.get("pred_instances"), dict) and "masks" in e["pred_instances"] for e in content):
        raise InputError(f"{path}: no image has pred_instances.masks", "Test a model that has masks")
    found: dict[str, Found] = {}
    known = {name for sample in dataset.samples for name in names_of(sample)}
    for number, entry in enumerate(content):
        if "img_id" not in entry:
            raise InputError(f"{path}: entry {number} has no img_id", "Test the model with mmdetection 3.x")
        name = str(entry["img_id"])
        if name not in known:
            name = Path(entry.get("img_path") or name).stem
        try:
            instances = entry["pred_instances"]
            labels, scores = (np.asarray(instances[key]).tolist() for key in ("labels", "scores"))
            columns = zip(labels, scores, instances["masks"], strict=True)
            found[name] = [Detection(f"mask {n} of image {shown(name)}", *column) for n, column in enumerate(columns)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            mend = "It needs masks, labels and scores, as many of each"
            found[name] = InputError(
                f"{path}: image {shown(name)}: no pred_instances as mmdetection writes ({error!r})", mend
            )
    return found


FORMATS = ("npz", "coco", "mmdet")


def open_source(format: str, path: Path, dataset: Dataset, void_share: float = VOID_SHARE) -> MaskSource:
    """Masks of a format.

    Args:
        format: one of `FORMATS`.
        void_share: see `logits_of_scores`.
    Raises:
        UsageError: unknown format, or no share. InputError: nothing lies there.
    """
    if format not in FORMATS:
        raise UsageError(f"--from {format!r}", f"Choose one of: {', '.join(FORMATS)}")
    check_value("--void-share", void_share, Fraction)
    if format == "npz":
        return NpzFolder(path, dataset, void_share)
    if format == "mmdet":
        indices = {k: k for k in range(len(dataset.spec.classes))}
        return Detections(path, format, indices, lambda: read_mmdet(path, dataset), dataset, void_share)
    labels = {c.label: k for k, c in enumerate(dataset.spec.classes)}
    return Detections(path, format, labels, lambda: read_coco(path, labels), dataset, void_share)
