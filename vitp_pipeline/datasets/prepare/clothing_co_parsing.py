"""Clothing Co-Parsing: make images, label PNGs and lists from a clone of bearpaw/clothing-co-parsing.

Of its 2,098 photographs, `photos/NNNN.jpg`, the first 1,004 have `annotations/pixel-level/NNNN.mat`, whose variable
`groundtruth` is the class 0..58 of every pixel. The dataset declares no split; `split_numbers` draws one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.prepare.work import Source, Work, class_numbers, jpeg, png
from vitp_pipeline.decoding.mat_files import read_mat_array
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size

LONGER_SIDE = 560
"""Of images and labels, in pixels; smaller photographs stay as they are."""
QUALITY = 88
ANNOTATED, SEED = 1004, 7
SIZES = {"val": 150, "held_out": 154, "train": 700}
FINE = 250
PHOTOS, LABELS = "photos/{id}.jpg", "annotations/pixel-level/{id}.mat"


def images(work: Work) -> None:
    """Make `images/SPLIT/*.jpg`: reduced by averaging areas."""
    sources = _sources(work, PHOTOS)

    def make(source: Source) -> None:
        def smaller() -> bytes:
            rgb = open_image(source.path).rgb(upright=False)
            height, width = reduced(rgb.shape[:2])
            image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)
            return jpeg(np.asarray(image), QUALITY, "4:2:0")

        work.write(source, f"images/{work.split}/{source.words['id']}.jpg", smaller)

    work.each(sources, make)


def labels(work: Work) -> None:
    """Make `annotations/SPLIT/*.png`: a pixel is the class 0..58 of the nearest pixel of the original."""
    sources = _sources(work, LABELS)

    def make(source: Source) -> None:
        def smaller() -> bytes:
            classes = class_numbers(_integers(source), work.spec, source.path)
            photo = open_image(work.file(PHOTOS.format(**source.words)), decode=False)
            if classes.shape != photo.size:
                raise InputError(f"{source.path}: is {_size(classes.shape)}, its photograph {_size(photo.size)}")
            height, width = reduced(photo.size)
            return png(np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)))

        work.write(source, f"annotations/{work.split}/{source.words['id']}.png", smaller)

    work.each(sources, make)


def lists(work: Work) -> None:
    """Make `fine.txt`, the training images of the generator, a number a line; it says nothing of other splits."""
    sources, fine = _sources(work, LABELS), fine_numbers()
    lines = sorted(source.words["id"] for source in sources if int(source.words["id"]) in fine)
    if work.split == "train" and lines:
        work.write(sources[0], "fine.txt", lambda: "".join(f"{line}\n" for line in lines).encode())


def reduced(size: Size) -> Size:
    """Compute the (H, W) to reduce an image to, which keeps its shape to rounding."""
    scale = min(1.0, LONGER_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


@cache
def split_numbers() -> dict[str, frozenset[int]]:
    """Draw the photographs' numbers 1..1004 of every split: a permutation by PCG64, cut in the order of SIZES."""
    return _draw()[0]


@cache
def fine_numbers() -> frozenset[int]:
    """Draw 250 of the training images, by the same generator's next permutation, of the sorted numbers."""
    return _draw()[1]


def _draw() -> tuple[dict[str, frozenset[int]], frozenset[int]]:
    random = np.random.default_rng(SEED)
    numbers = (1 + random.permutation(ANNOTATED)).tolist()
    splits, start = {}, 0
    for name, count in SIZES.items():
        splits[name], start = frozenset(numbers[start : start + count]), start + count
    train = sorted(splits["train"])
    return splits, frozenset(train[n] for n in random.permutation(len(train))[:FINE].tolist())


def _sources(work: Work, pattern: str) -> list[Source]:
    """List the split's files that a pattern names by number."""
    numbers = split_numbers()[work.split]
    found = ((source, source.words["id"]) for source in work.sources(pattern))
    return [source for source, name in found if name.isascii() and name.isdecimal() and int(name) in numbers]


def _integers(source: Source) -> np.ndarray:
    """Read (H, W) int64 values. Raises InputError unless all are whole numbers from 0, of one image."""
    values = read_mat_array(source.path, "groundtruth")
    if values.ndim != 2 or not values.size:
        raise InputError(f"{source.path}: groundtruth is of shape {values.shape}, not (rows, columns)")
    if not ((values >= 0) & (values < 2**31) & (values == np.floor(values))).all():
        raise InputError(f"{source.path}: groundtruth holds values that are no classes")
    return values.astype(np.int64)


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]}"
