"""Lists the images of a split with the places of their labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitp_pipeline.datasets.annotations import Annotation, Annotations, GroundTruthSegment
from vitp_pipeline.datasets.places import Places, filled, words_of_file
from vitp_pipeline.datasets.spec import DatasetSpec, SplitSpec, alternatives
from vitp_pipeline.datasets.storage import check_inside, compiled, is_file
from vitp_pipeline.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One image of a split.

    Attributes:
        image: its file. Paths start with the data root; one that goes through an archive names a file in it.
        label: its label file; the annotation file where objects are not in images.
        coarse: its coarse label file, if the manifest names such files.
        annotation: what the annotation file says about it (COCO kinds).
    """

    image_id: str
    image: Path
    label: Path
    coarse: Path | None = None
    annotation: Annotation | None = field(default=None, repr=False, compare=False)

    @property
    def segments(self) -> tuple[GroundTruthSegment, ...] | None:
        """The segments of a panoptic ground truth, else None."""
        if self.annotation is None or self.annotation.file.spec.kind != "coco-panoptic":
            return None
        return self.annotation.segments


def list_samples(spec: DatasetSpec, root: Path, name: str) -> list[Sample]:
    """All images of a split, in an order that depends on their names or the annotation file alone.

    Raises:
        InputError: no images, an annotation file missing or broken, an image id twice.
    """
    places = Places(root, spec.roots)
    samples = [
        sample for part in spec.splits[name].of or (name,) for sample in _listed(spec, places, spec.splits[part])
    ]
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.image_id in seen:
            raise InputError(
                f"image id {sample.image_id!r} occurs twice: {seen[sample.image_id]} and {sample.image}",
                "Ids must be unique in a split",
            )
        seen[sample.image_id] = sample.image
    return samples


def _listed(spec: DatasetSpec, places: Places, split: SplitSpec) -> list[Sample]:
    samples = _by_pattern(places, split) if spec.kind == "semantic-png" else _by_annotations(spec, places, split)
    if not samples:
        raise places.nothing_there(alternatives(split.images), "Check --data-root and the manifest's split")
    return samples


def _by_pattern(places: Places, split: SplitSpec) -> list[Sample]:
    """Images by their names, labels by names made from them. An image's id is `{id}` of its pattern, or its stem."""
    found = places.images(alternatives(split.images))
    if not found:
        return []
    labels = places.beside(alternatives(split.labels))
    coarse = places.beside(alternatives(split.labels_coarse)) if split.labels_coarse else None
    samples = []
    for base, relative, words in found:
        check_inside(relative, base)
        words = words_of_file(relative) | words
        image_id = words.get("id", words["stem"])
        samples.append(
            Sample(image_id, base / relative, labels.of(words), coarse=None if coarse is None else coarse.of(words))
        )
    return samples


def _by_annotations(spec: DatasetSpec, places: Places, split: SplitSpec) -> list[Sample]:
    """Images as an annotation file lists them."""
    annotations = Annotations(places.file(alternatives(split.annotations)), spec)
    if not len(annotations):
        return []
    images = _ImageFinder(places, alternatives(split.images), annotations)
    if annotations.label_names:
        folders = alternatives(split.labels)
        first = places.file(tuple(f"{folder}/{annotations.label_names[0]}" for folder in folders))
        label_folder = Path(first.as_posix().removesuffix("/" + annotations.label_names[0]))
        labels = [label_folder / name for name in annotations.label_names]
    else:
        labels = [annotations.path] * len(annotations)
    return [
        Sample(image_id, images.of(number), labels[number], annotation=Annotation(annotations, number))
        for number, image_id in enumerate(annotations.image_ids)
    ]


def stray_labels(spec: DatasetSpec, root: Path, name: str, samples: list[Sample]) -> list[Path]:
    """Label files of a split that belong to none of its images (semantic-png; else there are none)."""
    if spec.kind != "semantic-png":
        return []
    places, used = Places(root, spec.roots), {sample.label for sample in samples}
    parts = [spec.splits[part] for part in spec.splits[name].of or (name,)]
    found = {path for split in parts for path in places.beside(alternatives(split.labels)).all()}
    return sorted(found - used)


class _ImageFinder:
    """The image files of an annotation file: a folder and its `file_name`, or a pattern with words in braces.

    Words are `file_name`, its parts `name`, `stem` and `parent` (the folder it lies in), and `id`. A pattern with `*`
    is looked up among the files that there are.
    """

    LOOKED_AT = 8

    def __init__(self, places: Places, images: tuple[str, ...], annotations: Annotations) -> None:
        self.annotations = annotations
        templates = [image if "{" in image else f"{image}/{{file_name}}" for image in images]
        self.known: dict[tuple[str, ...], Path] = {}
        step = -(-len(annotations) // self.LOOKED_AT)
        for self.template in templates:
            if "*" in self.template:
                fits = compiled(self.template)
                for base, relative, words in places.images((self.template,)):
                    self.known[tuple(words[word] for word in fits.groupindex)] = base / relative
                if self.known:
                    self.words = tuple(fits.groupindex)
                    return
                continue
            for number in range(0, len(annotations), step):
                relative = filled(self.template, self._words(number))
                found = places.file((relative,))
                if is_file(found):
                    self.base = Path(found.as_posix().removesuffix("/" + relative))
                    return
        self.template = next((t for t in templates if "*" not in t), templates[0])
        self.base = places.expected("")

    def of(self, number: int) -> Path:
        words = self._words(number)
        if self.known:
            path = self.known.get(tuple(words[word] for word in self.words))
            if path is not None:
                return path
            return self.annotations.path.parent / filled(self.template, words)
        return self.base / filled(self.template, words)

    def _words(self, number: int) -> dict[str, str]:
        file_name = self.annotations.file_names[number]
        words = words_of_file(file_name)
        parent = words["dir"].rpartition("/")[2]
        return {
            "file_name": file_name,
            "name": words["name"],
            "stem": words["stem"],
            "parent": parent,
            "id": self.annotations.image_ids[number],
        }
