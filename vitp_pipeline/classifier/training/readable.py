"""Refuse a training whose images or labels mostly cannot be read: labels that do not fit, a wrong folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from vitp_pipeline.classifier.training.annotations import read_truth
from vitp_pipeline.classifier.training.sampling import NO_LABEL
from vitp_pipeline.config.settings import TrainSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import size_of

MOST_UNREADABLE = 0.05
"""Largest share of a training's images that may be unreadable; a single one is never too many."""
LOOKED_AT = 32
"""Images, evenly spread, that are read before a training begins. Where too many of these fail, all are read."""


class UnreadableError(InputError):
    """Too many images of a training cannot be read, or have labels that cannot."""


def require_readable(left_out: Mapping[str, str], images: int, dataset: Dataset) -> None:
    """Raise UnreadableError when more than `MOST_UNREADABLE` of a training's images cannot be used.

    Args:
        left_out: reason by image id; images without any label do not count.
        images: number of the training's images.
    """
    unreadable = [reason for reason in list(left_out.values()) if reason != NO_LABEL]
    if len(unreadable) <= max(1, MOST_UNREADABLE * images):
        return
    raise UnreadableError(
        f"train-classifier: labels do not fit: {len(unreadable)} of {images} images of split {dataset.split!r} cannot "
        f"be used (at most {MOST_UNREADABLE:.0%} may be left out), the first: {unreadable[0]}",
        "`vitp check-dataset` lists all; correct the manifest or the files, or name them in the split's `exclude`",
    )


def check_annotations(dataset: Dataset, samples: Sequence[Sample], settings: TrainSettings) -> None:
    """Read some of a training's images and labels, and all where too many of these fail.

    Raises:
        UnreadableError: too many of all fail. Reading ends once that is certain.
    """
    some = samples[:: -(-len(samples) // LOOKED_AT)]
    try:
        require_readable(dict(_faults(dataset, some, settings)), len(some), dataset)
    except UnreadableError:
        found: dict[str, str] = {}
        for image_id, reason in _faults(dataset, samples, settings):
            found[image_id] = reason
            require_readable(found, len(samples), dataset)


def _faults(dataset: Dataset, samples: Sequence[Sample], settings: TrainSettings) -> Iterator[tuple[str, str]]:
    """Yield (image id, reason) of the images that cannot be read as the training would."""

    def fault(sample: Sample) -> str:
        try:
            size = size_of(dataset.read_image(sample))
            for kind in settings.mixture.kinds if settings.fit != "localize" else ():
                read_truth(dataset, sample, size, kind, settings.sampling, settings.coarse_erosion)
        except InputError as error:
            return error.message
        return ""

    ahead = 4 * max(1, settings.workers)
    with ThreadPoolExecutor(max(1, settings.workers)) as pool:
        for start in range(0, len(samples), ahead):
            chosen = samples[start : start + ahead]
            for sample, reason in zip(chosen, pool.map(fault, chosen), strict=True):
                if reason:
                    yield sample.image_id, reason
