"""Masks in a folder of npz files."""

from __future__ import annotations

from pathlib import Path

from vitp_pipeline.datasets import Sample
from vitp_pipeline.datasets.identity import Claims
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size
from vitp_pipeline.interop.mask_content import masks_of_npz, names_classes
from vitp_pipeline.interop.mask_import import MASK_FORMATS, ImageSet, say_strangers
from vitp_pipeline.interop.pseudo_logits import ForeignMasks
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.fingerprint import file_digest


@MASK_FORMATS.register("npz")
class NpzFolder:
    """A folder with an .npz for every image, named by its id, file name or path (`ImageIndex.agreed`); see
    `masks_of_npz` for what they hold.
    """

    def __init__(self, folder: Path, dataset: ImageSet, no_object_share: float) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", "Give the folder that holds an .npz for every image")
        self.files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.npz"))
        if not self.files:
            raise InputError(f"{folder}: no .npz file in this folder", "It must hold one for every image")
        self.folder, self.dataset, self.no_object_share = folder, dataset, no_object_share
        self._by_image: dict[str, Path] = {}
        self.unusable: list[str] = []
        self.class_agnostic = False

    def open(self) -> None:
        """Raise InputError when a file could be of two images, two are of one, or none is of any.

        Most files decide whether the masks have class scores, equal numbers that they have; the others fail alone.
        """
        claims = Claims(self.dataset.index(self.folder))
        for name in self.files:
            key = name.removesuffix(".npz")
            claims.add(key, claims.index.agreed(key))
        say_strangers(claims, self.dataset)
        self._by_image = {image_id: self.folder / f"{key}.npz" for image_id, key in claims.known.items()}
        sorts = [names_classes(path) for path in self._by_image.values()]
        with_classes, without = sorts.count(True), sorts.count(False)
        self.class_agnostic = without > with_classes
        if with_classes and without:
            odd = f"{with_classes} of {len(sorts)} files have" if self.class_agnostic else f"{without} have no"
            say(f"{self.folder}: {odd} class scores, unlike the others; these images have no proposals")

    def digest(self, sample: Sample) -> str:
        path = self._by_image.get(sample.image_id)
        return "" if path is None else file_digest(path)

    def read(self, sample: Sample, size: Size) -> ForeignMasks:
        path = self._by_image.get(sample.image_id)
        if path is None:
            raise InputError(f"{self.folder / sample.image_id}.npz: no such file")
        if names_classes(path) is self.class_agnostic:
            own, others = ("class", "no class") if self.class_agnostic else ("no class", "class")
            raise InputError(
                f"{path}: has {own} scores, and most files here have {others} scores",
                "Import them as a run of their own",
            )
        return masks_of_npz(path, len(self.dataset.spec.classes), self.no_object_share)
