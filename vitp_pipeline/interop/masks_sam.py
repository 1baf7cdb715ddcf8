"""Masks in files of Segment Anything, which name no classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from vitp_pipeline.datasets import Sample
from vitp_pipeline.datasets.identity import Claims, ImageIndex
from vitp_pipeline.decoding.archives import is_archive, listing, read_bytes
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_import import MASK_FORMATS, ImageSet, say_strangers
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_objectness
from vitp_pipeline.interop.sam_files import METADATA, masks_of_json, masks_of_pngs, named_image, parts_of

WHERE = "Give the folder that amg.py wrote, of SA-1B, or one of their JSON files"


@MASK_FORMATS.register("sam")
class SamMasks:
    """A folder or archive with a JSON file for every image, or a folder of PNG files with a metadata.csv; or one JSON
    file. They are named by the image's id, file name or path (`ImageIndex.agreed`); a JSON file that is not is matched
    by the `file_name` in it, as SA-1B has it.

    Args:
        no_object_share: unused: masks have no class whose score would leave something over.
    """

    class_agnostic = True

    def __init__(self, path: Path, dataset: ImageSet, no_object_share: float) -> None:
        if path.is_dir() or is_archive(path):
            self.folder = path
            self.files = sorted(name for pattern in ("*.json", METADATA) for name in listing(path, f"**/{pattern}"))
        elif path.is_file():
            self.folder, self.files = path.parent, [path.name]
        else:
            raise InputError(f"{path}: no such file or folder", WHERE)
        if not self.files:
            raise InputError(f"{path}: no JSON file and no {METADATA} in this folder", WHERE)
        self.path, self.dataset = path, dataset
        self._index = dataset.index(path)
        self._by_image: dict[str, Path] = {}
        self.unusable: list[str] = []

    def open(self) -> None:
        """Raise InputError when a file could be of two images, two are of one, or none is of any."""
        claims = Claims(self._index)
        for name in self.files:
            key = self._key(name)
            place = self._index.agreed(key)
            if place is None and not name.endswith(METADATA):
                try:
                    place = self._named(named_image(self.folder / name))
                except InputError as error:
                    claims.odd.append(error.message)
                    continue
            claims.add(key if place is None else name, place)
        if claims.odd and not claims.known and not claims.strangers:
            raise InputError(claims.odd[0], WHERE)
        say_strangers(claims, self.dataset)
        self.unusable = claims.odd
        self._by_image = {image_id: self.folder / name for image_id, name in claims.known.items()}

    def _key(self, name: str) -> str:
        """Return what the place of a file says about its image: the path without ending, or the folder of PNG files."""
        if name == METADATA:
            return self.folder.resolve().name
        return name.removesuffix(f"/{METADATA}").removesuffix(".json")

    def _named(self, file_name: str | None) -> int | None:
        return None if file_name is None else self._index.by_path(file_name)

    def digest(self, sample: Sample) -> str:
        path = self._by_image.get(sample.image_id)
        if path is None:
            return ""
        digest = hashlib.sha256()
        try:
            for part in parts_of(path):
                digest.update(part.name.encode() + hashlib.sha256(read_bytes(part)).digest())
        except (InputError, OSError) as error:  # `read` raises it again, for this image alone
            digest.update(str(error).encode())
        return digest.hexdigest()

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        path = self._by_image.get(sample.image_id)
        if path is None:
            raise InputError(f"{self.path}: no JSON file and no {METADATA} of image {sample.image_id!r}", WHERE)
        if path.name == METADATA:
            masks, scores = masks_of_pngs(path, size)
        else:
            (masks, scores), named = masks_of_json(path, size)
            _check_same(self._index, named, sample, path)
        logits = logits_of_objectness(np.array(scores, np.float64), len(self.dataset.spec.classes))
        return ForeignMasks(logits, masks, size)


def _check_same(index: ImageIndex, named: str | None, sample: Sample, path: Path) -> None:
    """Raise InputError where a file that is named after one image says inside that it is of another."""
    try:
        place = None if named is None else index.by_path(named)
    except InputError:  # a bare name that several folders have: then the file's own name decides
        return
    if place is not None and index.image_ids[place] != sample.image_id:
        raise InputError(
            f"{path}: is named as {index.describe(index.by_id(sample.image_id) or 0)}, but its `file_name` is that of "
            f"{index.describe(place)}",
            "Rename it, or correct its `file_name`",
        )
