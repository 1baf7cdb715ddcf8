"""Decide if an image is rotated by its EXIF orientation: it is read to match its labels.

Where the labels have the size of the upright image it is turned, where they have that of the stored pixels it is not.
Where both sizes are the same, the label file or the manifest says which it is; nothing is guessed.
"""

from __future__ import annotations

from vitp_pipeline.datasets.images import ImageFile
from vitp_pipeline.errors import InputError
from vitp_pipeline.geometry import Size


def is_read_upright(image: ImageFile, labels: Size | None, said: str = "") -> bool:
    """Decide whether an image that states an orientation is turned by it.

    Args:
        labels: (H, W) of its labels; None = they do not tell.
        said: `upright` or `stored`, by the manifest or the label file; "" = neither says.
    Raises:
        InputError: it is not stated, and labels of this size fit both.
    """
    if image.orientation in (None, 1):
        return True
    if said:
        return said == "upright"
    fits = image.upright_size == labels, image.size == labels
    if fits[0] != fits[1]:
        return fits[0]
    if labels is not None and not any(fits):
        return True  # the later comparison of sizes reports the difference
    raise InputError(  # the fix is part of the message: reasons of failed images have no other
        f"{image.path}: its EXIF orientation {image.orientation} rotates it, but it is unknown whether its labels "
        'match the rotated image: set orientation = "upright" (they do) or "stored" (they do not) under [labels] in '
        "the manifest"
    )
