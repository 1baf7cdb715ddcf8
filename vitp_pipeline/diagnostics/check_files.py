"""Check every file of a split: readability, label values that occur, classes covered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp_pipeline.datasets.dataset import Dataset
from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.label_kinds.kind import Finding, Sample
from vitp_pipeline.datasets.samples import stray_labels
from vitp_pipeline.diagnostics.duplicates import SplitPixels, digest_of_pixels
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size


@dataclass
class SplitCheck:
    """Properties of a split. Values are label values or category ids, as `Finding` has them.

    Attributes:
        label_readings: label files by (storage form, reading).
        palettes: the different palettes of label images.
        orientations: images by (EXIF orientation, handling). label_orientations: label images by orientation.
        listed: images of the split.
        checked: those looked at.
        unlabeled: why the split has no ground truth, or "".
        unknown: images by unknown label value (neither a class nor ignored).
        value_images: images by label value.
        unlabeled_images: ids of images in which nothing has a class.
        stray: label files without an image.
        pixels: digests of the images, to find those of other splits.
    """

    name: str
    listed: int
    checked: int = 0
    unlabeled: str = ""
    sizes: Counter[Size] = field(default_factory=Counter)
    image_modes: Counter[str] = field(default_factory=Counter)
    label_modes: Counter[str] = field(default_factory=Counter)
    label_readings: Counter[tuple[str, str]] = field(default_factory=Counter)
    palettes: set[bytes] = field(default_factory=set)
    orientations: Counter[tuple[int, str]] = field(default_factory=Counter)
    label_orientations: Counter[int] = field(default_factory=Counter)
    values: Counter[int] = field(default_factory=Counter)
    value_images: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    void: int = 0
    unknown: Counter[int] = field(default_factory=Counter)
    broken: list[tuple[str, Path, str]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    unlabeled_images: list[str] = field(default_factory=list)
    stray: list[Path] = field(default_factory=list)
    pixels: SplitPixels = field(default_factory=SplitPixels)

    def add(self, found: Finding, classes: set[int], ignored: set[int]) -> None:
        self.checked += 1
        if found.pixels is not None:
            self.pixels.add(found.image_id, found.pixels)
        if found.size is not None:
            self.sizes[found.size] += 1
            self.image_modes[found.image_mode] += 1
        if found.label_mode:
            self.label_modes[found.label_mode] += 1
        if found.reading:
            self.label_readings[found.label_mode, found.reading] += 1
        if found.palette:
            self.palettes.add(found.palette)
        if found.orientation != 1:
            self.orientations[found.orientation, found.turned] += 1
        if found.label_orientation != 1:
            self.label_orientations[found.label_orientation] += 1
        self.values += found.values
        self.value_images.update(found.values.keys() | found.objects.keys())
        self.objects += found.objects
        self.void += found.void
        self.unknown.update(set(found.values) - classes - ignored)
        self.broken += [(found.image_id, path, reason) for path, reason in found.broken]
        self.odd += [(found.image_id, reason) for reason in found.odd]
        if found.labeled and not found.broken and not classes & (set(found.values) | set(found.objects)):
            self.unlabeled_images.append(found.image_id)


def check_split(
    dataset: Dataset, limit: int = 0, workers: int = 1, advance: Callable[[], None] = lambda: None
) -> SplitCheck:
    """Examine the images of a split. Of an image its id and 8 bytes stay in memory.

    Args:
        limit: number of images to check, evenly spread; 0 = all.
        workers: threads.
        advance: called after every image.
    """
    chosen = spread(dataset.samples, limit)
    check = SplitCheck(dataset.split, len(dataset), unlabeled=dataset.samples.unlabeled)
    classes, ignored = {info.label for info in dataset.spec.classes}, set(dataset.spec.ignore)
    ahead = 4 * workers
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(chosen), ahead):
            for found in pool.map(lambda sample: examine(dataset, sample), chosen[start : start + ahead]):
                check.add(found, classes, ignored)
                advance()
    check.stray = stray_labels(dataset.spec, dataset.root, dataset.split, dataset.samples)
    return check


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Select `count` evenly spaced samples, including the first; all for 0."""
    if not count or count >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]


def examine(dataset: Dataset, sample: Sample) -> Finding:
    """Read an image and its labels. Faults go into the finding; nothing is raised."""
    found = Finding(sample.image_id)
    try:
        image = open_image(sample.image)
        found.image_mode, found.orientation, found.turned = image.mode, image.orientation or 1, "refused"
        pixels = dataset.pixels_of(sample, image)
        found.size, found.pixels = (pixels.shape[0], pixels.shape[1]), digest_of_pixels(pixels)
        found.turned = "upright" if dataset.is_upright(sample, image) else "stored"
    except InputError as error:
        found.broken.append((sample.image, error.message))
    if sample.truth is None:
        found.labeled = False
        return found
    try:
        dataset.kind.look(dataset, sample, found)
    except InputError as error:
        found.broken.append((sample.truth, error.message))
    return found


def as_dict(check: SplitCheck, dataset: Dataset) -> dict[str, Any]:
    """Convert a split's check to JSON types. `classes` are all of the manifest's; `missing` those that no image has."""
    spec, listed = dataset.spec, dataset.kind.has_segments or dataset.kind.has_objects
    classes = [
        {
            "name": info.name,
            "label": info.label,
            "pixels": check.values[info.label],
            "objects": check.objects[info.label] if listed else None,
            "images": check.value_images[info.label],
        }
        for info in spec.classes
    ]
    pixels = sum(check.values.values()) + check.void
    ignored = sum(check.values[value] for value in spec.ignore) + check.void
    return {
        "split": check.name,
        "images": check.listed,
        "checked": check.checked,
        "ground_truth": not check.unlabeled,
        "sizes": {f"{width}x{height}": count for (height, width), count in check.sizes.most_common()},
        "image_modes": dict(check.image_modes),
        "label_modes": dict(check.label_modes),
        "label_readings": [
            {"stored": form, "read": reading, "files": count}
            for (form, reading), count in sorted(check.label_readings.items())
        ],
        "label_forms_elsewhere": _forms_elsewhere(check, dataset),
        "label_palettes": len(check.palettes),
        "image_orientations": [
            {"orientation": orientation, "read": turned, "images": count}
            for (orientation, turned), count in sorted(check.orientations.items())
        ],
        "label_orientations": {
            str(orientation): count for orientation, count in sorted(check.label_orientations.items())
        },
        "classes": classes,
        "missing": [c["name"] for c in classes if not c["images"]],
        "ignored_share": ignored / pixels if pixels else None,
        "unknown": {
            str(value): {"images": count, "pixels": check.values[value]}
            for value, count in sorted(check.unknown.items())
        },
        "broken": [{"image_id": i, "file": str(path), "reason": reason} for i, path, reason in check.broken],
        "odd": [{"image_id": i, "reason": reason} for i, reason in check.odd],
        "unlabeled": check.unlabeled_images,
        "labels_without_image": [str(path) for path in check.stray],
    }


def _forms_elsewhere(check: SplitCheck, dataset: Dataset) -> list[str]:
    """Forms of other label images of the dataset, those of other splits mostly, in ways that this check met none
    of: the same rule reads all of them.
    """
    if not check.label_readings or check.unlabeled:
        return []
    return sorted(dataset.labels.survey.forms - set(check.label_modes))
