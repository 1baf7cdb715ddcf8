"""Locate masks of other tools. Each format is a module; the code shared by formats that list detections is here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vitp_pipeline.datasets import DatasetSpec, Sample
from vitp_pipeline.datasets.identity import Claims, ImageIndex, image_key
from vitp_pipeline.decoding.records import shown
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_content import Detection, masks_of_detections
from vitp_pipeline.interop.pseudo_logits import ForeignMasks
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.validation.constraints import Fraction
from vitp_pipeline.validation.registry import Registry
from vitp_pipeline.validation.tables import check_value

NO_OBJECT_SHARE = 0.5


Found = list[Detection] | InputError
"""The detections of an image, or why they cannot be used."""


class ImageSet(Protocol):
    """The images that masks are sought for: a split of a dataset, or photographs.

    Attributes:
        where: "in the split 'val'" or the like, for messages.
    """

    @property
    def spec(self) -> DatasetSpec: ...
    @property
    def image_ids(self) -> Sequence[str]: ...
    @property
    def where(self) -> str: ...
    def __len__(self) -> int: ...
    def index(self, where: object) -> ImageIndex:
        """Build an index to find the images by keys of a foreign file, which messages name."""
        ...


class MaskSource(Protocol):
    """Masks by image.

    Attributes:
        unusable: why records of unknown images are left out.
        class_agnostic: whether the masks have no class scores, see `logits_of_objectness`; known after `open`. A source
            without it has scores.
    """

    unusable: list[str]

    @property
    def class_agnostic(self) -> bool: ...

    def open(self) -> None:
        """Read the data shared by all images. Raises InputError when that cannot be read."""
        ...

    def digest(self, sample: Sample) -> str:
        """Return a digest of what `read` decodes for an image; "" if there is nothing."""
        ...

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        """Read the masks of an image of (H, W). Raises InputError when there are none, or they do not fit it."""
        ...


Importer = Callable[[Any, Any, float], MaskSource]
"""Finds masks of a format: from a path, for an `ImageSet`, with `no_object_share` (see `logits_of_scores`). Nothing is
read yet. Raises InputError where nothing lies there. One with the attribute `needs_path = False` gets None instead of a
path where none is given.
"""

MASK_FORMATS: Registry[Importer] = Registry(
    "format of masks",
    "vitp_pipeline.interop.masks_npz",
    "vitp_pipeline.interop.masks_coco",
    "vitp_pipeline.interop.masks_mmdet",
    "vitp_pipeline.interop.masks_sam",
    "vitp_pipeline.interop.masks_ground_truth",
)


def open_source(
    format: str, path: Path | None, dataset: ImageSet, no_object_share: float = NO_OBJECT_SHARE
) -> MaskSource:
    """Open masks of a format, one of `MASK_FORMATS`.

    Raises:
        UsageError: unknown format, no share, or no path where one is needed. InputError: nothing lies there.
    """
    find = MASK_FORMATS[format]
    if path is None and getattr(find, "needs_path", True):
        raise UsageError(f"--from {format} needs --masks", "Name the folder or file that holds them")
    check_value("--no-object-share", no_object_share, Fraction)
    return find(path, dataset, no_object_share)


class Detections:
    """Binary masks with a label and a score each, all images' in one file.

    Args:
        path: the file, for messages and identity.
        hint: advice if the file names no image at all.
        classes: class indices by their names in the file.
        read: gives its detections by image id of the data set, or why those of an image cannot be used; what the file
            says of which image goes into the `Claims`.
    """

    def __init__(
        self,
        path: Path,
        hint: str,
        classes: Mapping[int, int],
        read: Callable[[Claims], dict[str, Found]],
        dataset: ImageSet,
        no_object_share: float,
    ) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path, self.hint, self.dataset, self.no_object_share = path, hint, dataset, no_object_share
        self._classes, self._read = classes, read
        self._by_image: dict[str, Found] = {}
        self.unusable: list[str] = []
        self.class_agnostic = False

    def open(self) -> None:
        """Raise InputError when the file cannot be read, speaks of none of the images, or twice of one."""
        claims = Claims(self.dataset.index(self.path))
        self._by_image = self._read(claims)
        self.unusable = claims.odd
        if claims.odd and not claims.known and not claims.strangers:
            raise InputError(claims.odd[0], self.hint)
        say_strangers(claims, self.dataset)
        if empty := sum(not self._by_image.get(image_id) for image_id in self.dataset.image_ids):
            lost = "; skipped records may be theirs" if claims.odd else ""
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


def say_strangers(claims: Claims, dataset: ImageSet) -> None:
    """Say how many images of a file are none of the images.

    Raises:
        InputError: none of them is.
    """
    strangers, index = list(dict.fromkeys(claims.strangers)), claims.index
    total, where = len(strangers) + len(claims.known), dataset.where
    near = index.near(strangers[0]) if strangers else ""
    if not claims.known:
        like = f", like {strangers[0]!r}," if strangers else ""
        raise InputError(
            f"{index.where}: none of its {total} images{like} is {where}, where one is {index.describe(0)}"
            + (f"; {near}" if near else ""),
            "Images are matched by their id, by their path, or by their file name alone",
        )
    if strangers:
        like = f" ({near})" if near else f", like {strangers[0]!r}"
        say(f"{index.where}: {len(strangers)} of its {total} images are not {where}{like}")


def image_id_in(record: Any, name: str, where: str, claims: Claims) -> str | None:
    """Read the image id of a record; None if it has none, with the reason in the claims."""
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
