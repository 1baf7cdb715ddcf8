"""Where masks that other tools made lie: npz files, COCO's results, mmdetection's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.config.constraints import Fraction
from vitp_pipeline.config.validation import check_value
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.fingerprint import file_digest
from vitp_pipeline.foreign.logits import (
    ForeignMasks,
    logits_of_binary,
    logits_of_class_probabilities,
    logits_of_probabilities,
    logits_of_scores,
)
from vitp_pipeline.geometry import Size
from vitp_pipeline.progress import say

VOID_SHARE = 0.5


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
    """A folder with ID.npz or STEM.npz for every image.

    Each holds one of `mask_logits` (Q, h, w), `mask_probs` and `masks` (bool or 0 and 1), and one of `class_logits`
    (Q, K + 1), `class_probs` (Q, K) or (Q, K + 1), or `labels` (Q,) with `scores` (Q,).
    """

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
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # a damaged file fails in many ways
            raise InputError(f"{path}: cannot be read ({error})") from error
        try:
            return self._masks(arrays)
        except InputError as error:
            raise InputError(f"{path}: {error.message}", error.mend) from error

    def _masks(self, arrays: dict[str, np.ndarray]) -> ForeignMasks:
        (kind, masks), binary = _one_of(arrays, ("mask_logits", "mask_probs", "masks")), False
        if masks.ndim != 3 or (not masks.size and len(masks)):
            raise InputError(f"{kind} are {masks.shape}, not (Q, h, w)")
        if kind == "masks":
            if not np.isin(masks, (0, 1)).all():
                raise InputError("masks are not 0 and 1", "Give probabilities as mask_probs, logits as mask_logits")
            logits, binary = logits_of_binary(masks.astype(bool)), True
        else:
            logits = logits_of_probabilities(masks) if kind == "mask_probs" else masks.astype(np.float32)
        kind, scores = _one_of(arrays, ("class_logits", "class_probs", "labels"))
        if kind == "labels":
            if "scores" not in arrays:
                raise InputError("has labels, but no scores")
            scores = logits_of_scores(scores, arrays["scores"], self.classes, self.void_share)
        elif kind == "class_probs":
            scores = logits_of_class_probabilities(scores, self.classes)
        if scores.shape != (len(masks), self.classes + 1):
            raise InputError(f"{kind} are of {scores.shape}, for {len(masks)} masks of {self.classes} classes")
        return ForeignMasks(logits, scores.astype(np.float32), binary)


def _one_of(arrays: dict[str, np.ndarray], names: Sequence[str]) -> tuple[str, np.ndarray]:
    found = [name for name in names if name in arrays]
    if len(found) != 1:
        raise InputError(f"has {' and '.join(found) or 'none'} of {', '.join(names)}", "Exactly one is wanted")
    return found[0], arrays[found[0]]


class Detections:
    """Binary masks with a label and a score each, all images' in one file.

    Args:
        path: the file, for messages and identity.
        read: gives, per image as the file names it, lists of (class index, score, mask as COCO writes it).
    """

    def __init__(
        self,
        path: Path,
        format: str,
        read: Callable[[], dict[str, list[tuple[int, float, Any]]]],
        dataset: Dataset,
        void_share: float,
    ) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path, self.format, self.dataset, self.void_share = path, format, dataset, void_share
        self._read = read
        self._by_image: dict[str, list[tuple[int, float, Any]]] = {}  # by image id of the data set

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
        entries = self._by_image.get(sample.image_id, [])
        classes = len(self.dataset.spec.classes)
        masks = np.zeros((len(entries), *size), bool)
        for number, (_, _, segmentation) in enumerate(entries):
            masks[number] = decode(segmentation, size)
        labels = np.array([label for label, _, _ in entries], np.int64)
        scores = np.array([score for _, score, _ in entries], np.float64)
        return ForeignMasks(
            logits_of_binary(masks), logits_of_scores(labels, scores, classes, self.void_share), binary=True
        )


def names_of(sample: Sample) -> list[str]:
    """What other tools may call an image: its id, the number that the id is, its file's stem, and the stem's number."""
    names = [sample.image_id, sample.image.stem]
    return names + [str(int(name)) for name in names if name.isdecimal()]


def decode(segmentation: Any, size: Size) -> np.ndarray:
    """A mask as COCO writes it (compressed or plain run lengths, or polygons) as (H, W) bool.

    Raises:
        InputError: it is none, or of another size than the image.
    """
    from pycocotools import mask as coco

    height, width = size
    try:
        if isinstance(segmentation, list):
            rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, *segmentation["size"])
        else:
            rle = segmentation
        found = tuple(map(int, rle["size"]))
        if found != (height, width):
            raise InputError(f"a mask is {found[1]}×{found[0]}, its image {width}×{height}")
        mask: np.ndarray = coco.decode(rle).astype(bool)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a segmentation is no COCO mask ({error!r})") from error
    return mask


def read_coco(path: Path, dataset: Dataset) -> dict[str, list[tuple[int, float, Any]]]:
    """COCO results: a list of {image_id, category_id, segmentation, score}, or a data set whose annotations have scores
    and whose images have file names.

    Category ids are the manifest's label values.

    Raises:
        InputError: not such a file, or a category that the manifest does not have.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {}
        if isinstance(content, dict):
            files = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
            content = content["annotations"]
        index = {c.label: k for k, c in enumerate(dataset.spec.classes)}
        found: dict[str, list[tuple[int, float, Any]]] = {str(name): [] for name in files.values()}
        for entry in content:
            if entry["category_id"] not in index:
                raise InputError(
                    f"{path}: category {entry['category_id']} is none of manifest {dataset.spec.name!r}",
                    "Category ids are the `label` of the manifest's classes",
                )
            name = str(files.get(entry["image_id"], entry["image_id"]))
            found.setdefault(name, []).append((index[entry["category_id"]], entry["score"], entry["segmentation"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: no results as COCO has them ({error!r})",
            "A list of objects with image_id, category_id, segmentation and score",
        ) from error
    return found


def read_mmdet(path: Path, dataset: Dataset) -> dict[str, list[tuple[int, float, Any]]]:
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
    found, known = {}, {name for sample in dataset.samples for name in names_of(sample)}
    for entry in content:
        if "masks" not in entry.get("pred_instances", {}) or "img_id" not in entry:
            raise InputError(f"{path}: an image has no pred_instances.masks or img_id", "Test a model that has masks")
        instances = entry["pred_instances"]
        labels, scores = (np.asarray(instances[key]).tolist() for key in ("labels", "scores"))
        name = str(entry["img_id"])
        if name not in known:
            name = Path(entry.get("img_path") or name).stem
        found[name] = list(zip(labels, scores, instances["masks"], strict=True))
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
    read = read_coco if format == "coco" else read_mmdet
    return Detections(path, format, lambda: read(path, dataset), dataset, void_share)
