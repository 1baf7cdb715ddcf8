"""Locate masks that other tools made: npz files, COCO's results, mmdetection's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.datasets.identity import Claims, first_twice, image_key
from vitp_pipeline.decoding.json_files import read_foreign_json
from vitp_pipeline.decoding.records import shown
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_content import Detection, masks_of_detections, masks_of_npz
from vitp_pipeline.interop.pseudo_logits import ForeignMasks
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.validation.constraints import Fraction
from vitp_pipeline.validation.tables import check_value

NO_OBJECT_SHARE = 0.5


Found = list[Detection] | InputError
"""The detections of an image, or why they cannot be used."""


class MaskSource(Protocol):
    """Masks by image.

    Attributes:
        unusable: why records of which nobody knows the image are left out.
    """

    format: str
    unusable: list[str]

    def open(self) -> None:
        """Read what belongs to all images. Raises InputError when that cannot be read."""
        ...

    def digest(self, sample: Sample) -> str:
        """Return a digest of what `read` decodes of an image; "" where there is nothing."""
        ...

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        """The masks of an image of (H, W). Raises InputError when there are none, or they do not fit it."""
        ...


class NpzFolder:
    """A folder with an .npz for every image, called by its id, file name or path (`ImageIndex.agreed`); see
    `masks_of_npz` for what they hold.
    """

    format = "npz"

    def __init__(self, folder: Path, dataset: Dataset, no_object_share: float) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", "Give the folder that holds an .npz for every image")
        self.files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.npz"))
        if not self.files:
            raise InputError(f"{folder}: no .npz file in this folder", "It must hold one for every image")
        self.folder, self.dataset, self.no_object_share = folder, dataset, no_object_share
        self._by_image: dict[str, Path] = {}
        self.unusable: list[str] = []

    def open(self) -> None:
        """Raise InputError when a file could be of two images, two are of one, or none is of any."""
        claims = Claims(self.dataset.index(self.folder))
        for name in self.files:
            key = name.removesuffix(".npz")
            claims.add(key, claims.index.agreed(key))
        say_strangers(claims, self.dataset)
        self._by_image = {image_id: self.folder / f"{key}.npz" for image_id, key in claims.known.items()}

    def digest(self, sample: Sample) -> str:
        path = self._by_image.get(sample.image_id)
        return "" if path is None else file_digest(path)

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        path = self._by_image.get(sample.image_id)
        if path is None:
            raise InputError(f"{self.folder / sample.image_id}.npz: no such file")
        return masks_of_npz(path, len(self.dataset.spec.classes), self.no_object_share)


class Detections:
    """Binary masks with a label and a score each, all images' in one file.

    Args:
        path: the file, for messages and identity.
        classes: class indices by what the file calls them.
        read: gives its detections by image id of the data set, or why those of an image cannot be used; what the file
            says of which image goes into the `Claims`.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        classes: Mapping[int, int],
        read: Callable[[Claims], dict[str, Found]],
        dataset: Dataset,
        no_object_share: float,
    ) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path, self.format, self.dataset, self.no_object_share = path, format, dataset, no_object_share
        self._classes, self._read = classes, read
        self._by_image: dict[str, Found] = {}
        self.unusable: list[str] = []

    def open(self) -> None:
        """Raise InputError when the file cannot be read, speaks of none of the images, or twice of one."""
        claims = Claims(self.dataset.index(self.path))
        self._by_image = self._read(claims)
        self.unusable = claims.odd
        if claims.odd and not claims.known and not claims.strangers:
            raise InputError(claims.odd[0], RESULTS if self.format == "coco" else "Test the model with mmdetection 3.x")
        say_strangers(claims, self.dataset)
        if empty := sum(not self._by_image.get(image_id) for image_id in self.dataset.image_ids):
            lost = "; masks that are left out may be theirs" if claims.odd else ""
            say(f"{self.path}: has no mask for {empty} of {len(self.dataset)} images; they have no proposals{lost}")

    def digest(self, sample: Sample) -> str:
        found = self._by_image.get(sample.image_id, [])
        if not found:
            return ""
        try:
            content = found.message if isinstance(found, InputError) else [record[1:] for record in found]
            text = json.dumps(content, skipkeys=True, default=repr)
        except (ValueError, RecursionError):  # numbers of thousands of digits, lists in lists: `read` refuses them
            text = "odd"
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        found = self._by_image.get(sample.image_id, [])
        if isinstance(found, InputError):
            raise found
        return masks_of_detections(self.path, found, size, self._classes, self.no_object_share)


def say_strangers(claims: Claims, dataset: Dataset) -> None:
    """Say how many images of a file are not in the split.

    Raises:
        InputError: none of them is.
    """
    strangers, index = list(dict.fromkeys(claims.strangers)), claims.index
    total, split = len(strangers) + len(claims.known), f"the split {dataset.split!r}"
    near = index.near(strangers[0]) if strangers else ""
    if not claims.known:
        like = f", like {strangers[0]!r}," if strangers else ""
        raise InputError(
            f"{index.where}: none of its {total} images{like} is in {split}, where one is {index.describe(0)}"
            + (f"; {near}" if near else ""),
            "Images are told by their id, by their path below the data root, or by their file name alone",
        )
    if strangers:
        like = f" ({near})" if near else f", like {strangers[0]!r}"
        say(f"{index.where}: {len(strangers)} of its {total} images are not in {split}{like}")


def read_coco(path: Path, classes: Mapping[int, int], claims: Claims) -> dict[str, Found]:
    """COCO results: a list of {image_id, category_id, segmentation, score}, or a data set whose annotations have scores
    and whose images have file names, by which they are known: its ids are its own.

    Raises:
        InputError: not such a file, two claims on one image, or categories that are all others than the manifest's.
    """
    content = read_foreign_json(path, "file of results")
    what, images = "result", claims.index
    meant: dict[str, str | None] = {}  # ids of the split by the file's
    own_ids = isinstance(content, dict)
    if own_ids:
        meant = _images_of_data_set(path, _list_of(path, content, "images"), claims)
        what, content = "annotation", _list_of(path, content, "annotations")
    elif not isinstance(content, list):
        raise InputError(f"{path}: is {shown(content)}, no results as COCO has them", RESULTS)
    found: dict[str, Found] = {}
    categories: list[Any] = []
    for number, entry in enumerate(content):
        key = _key_in(entry, "image_id", f"{path}: {what} {number}", claims)
        if key is None:
            continue
        if key not in meant:
            if own_ids:
                claims.odd.append(f"{path}: {what} {number}: its image {shown(entry['image_id'])} is not listed")
                continue
            meant[key] = claims.add(key, images.by_id_or_path(key))
        categories.append(entry.get("category_id"))
        own = Detection(
            f"{what} {number} (image {shown(entry['image_id'])})",
            categories[-1],
            entry.get("score"),
            entry.get("segmentation"),
        )
        if (image_id := meant[key]) is not None:
            found.setdefault(image_id, []).append(own)  # type: ignore[union-attr]
    if categories and not any(isinstance(category, int | float) and category in classes for category in categories):
        raise InputError(
            f"{path}: none of its categories, like {shown(categories[0])}, is one of the manifest",
            "Category ids are the `label` of the manifest's classes",
        )
    return found


RESULTS = "A list of objects with image_id, category_id, segmentation and score"


def _list_of(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise InputError(f"{path}: has no list of `{key}`, as a data set of COCO has", RESULTS)
    found: list[Any] = content[key]
    return found


def _key_in(record: Any, name: str, where: str, claims: Claims) -> str | None:
    """The image id in a record. Where it has none, None: the claims then have the reason."""
    reason = f"{where} is {shown(record)}, not an object"
    if isinstance(record, dict):
        if name in record:
            try:
                return image_key(record[name])
            except ValueError as error:
                reason = f"{where}: its `{name}`: {error}"
        else:
            reason = f"{where} has no `{name}`"
    claims.odd.append(reason)
    return None


def _images_of_data_set(path: Path, images: list[Any], claims: Claims) -> dict[str, str | None]:
    """Ids of the split by those that a data set gives to its images. Raises InputError where one occurs twice."""
    keys, names = [], []
    for number, image in enumerate(images):
        where = f"{path}: image {number}"
        if (key := _key_in(image, "id", where, claims)) is None:
            continue
        if isinstance(name := image.get("file_name"), str):
            keys.append(key)
            names.append(name)
        else:
            claims.odd.append(f"{where}: its `file_name` is {shown(name)}, not a name")
    for one, other, kind in ((keys, names, "image id"), (names, keys, "file name")):
        if twice := first_twice(one):
            first, second = (other[place] for place in twice)
            raise InputError(f"{path}: {kind} {one[twice[0]]!r} occurs twice: {first!r} and {second!r}")
    return {key: claims.add(name, claims.index.by_path(name)) for key, name in zip(keys, names, strict=True)}


def read_mmdet(path: Path, claims: Claims) -> dict[str, Found]:
    """Read the output of `tools/test.py --out FILE.pkl` of mmdetection 3.x, without running what the pickle asks for.

    Labels are class indices, in the order of the model's classes, which the file does not name.

    Raises:
        InputError: not such a file, two claims on one image, one without masks, or one of mmdetection 2.x, which does
            not name its images.
    """
    from vitp_pipeline.generators.safe_pickle import read_result_pickle

    content = read_result_pickle(path)
    if not isinstance(content, list) or not any(isinstance(entry, dict) for entry in content):
        raise InputError(
            f"{path}: not what mmdetection 3.x writes; files of 2.x do not say which image is which",
            "Write COCO's results with it (--format-only) and import those with --from coco",
        )
    instances_of = [entry.get("pred_instances") if isinstance(entry, dict) else None for entry in content]
    if not any(isinstance(instances, dict) and "masks" in instances for instances in instances_of):
        raise InputError(f"{path}: no image has pred_instances.masks", "Test a model that has masks")
    found: dict[str, Found] = {}
    for number, (entry, instances) in enumerate(zip(content, instances_of, strict=True)):
        where = f"{path}: entry {number}"
        if (name := _key_in(entry, "img_id", where, claims)) is None:
            continue
        if (image_id := _image_of(name, str(entry.get("img_path") or ""), where, claims)) is None:
            continue
        if image_id in found:
            raise InputError(f"{where} is of image {shown(name)} again")
        try:
            labels, scores = (np.asarray(instances[key]).tolist() for key in ("labels", "scores"))  # type: ignore[index]
            columns = zip(labels, scores, instances["masks"], strict=True)  # type: ignore[index]
            found[image_id] = [
                Detection(f"mask {n} of image {shown(name)}", *column) for n, column in enumerate(columns)
            ]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            hint = "It needs masks, labels and scores, as many of each"
            found[image_id] = InputError(
                f"{path}: image {shown(name)}: no pred_instances as mmdetection writes ({error!r})", hint
            )
    return found


def _image_of(key: str, file: str, where: str, claims: Claims) -> str | None:
    """The image of the split that an entry's img_id means, or else its img_path."""
    index = claims.index
    place, named = index.by_id(key), index.by_path(file)
    if place is not None and named is not None and place != named:
        raise InputError(
            f"{where}: its img_id {key!r} is {index.describe(place)}, but its img_path {file!r} is "
            f"{index.describe(named)}",
            "Test the model on the data set's own annotation file",
        )
    return claims.add(key, named if place is None else place)


FORMATS = ("npz", "coco", "mmdet")


def open_source(format: str, path: Path, dataset: Dataset, no_object_share: float = NO_OBJECT_SHARE) -> MaskSource:
    """Masks of a format.

    Args:
        format: one of `FORMATS`.
        no_object_share: see `logits_of_scores`.
    Raises:
        UsageError: unknown format, or no share. InputError: nothing lies there.
    """
    if format not in FORMATS:
        raise UsageError(f"--from {format!r}", f"Choose one of: {', '.join(FORMATS)}")
    check_value("--no-object-share", no_object_share, Fraction)
    if format == "npz":
        return NpzFolder(path, dataset, no_object_share)
    if format == "mmdet":
        indices = {k: k for k in range(len(dataset.spec.classes))}
        return Detections(path, format, indices, lambda claims: read_mmdet(path, claims), dataset, no_object_share)
    labels = {c.label: k for k, c in enumerate(dataset.spec.classes)}
    return Detections(path, format, labels, lambda claims: read_coco(path, labels, claims), dataset, no_object_share)
