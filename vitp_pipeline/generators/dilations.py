"""Dilations of the published DiNAT-L OneFormers (facts §2.5): no tensor of their files tells them."""

from __future__ import annotations

from pathlib import PurePath

from vitp_pipeline.errors import UsageError

Dilations = tuple[tuple[int, ...], ...]

PUBLISHED: dict[str, Dilations] = {
    "dinat-l": (
        (1, 20, 1),
        (1, 5, 1, 10),
        (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
        (1, 2, 1, 2, 1),
    ),
    "dinat-l-1280": (
        (1, 28, 1),
        (1, 7, 1, 14),
        (1, 3, 1, 5, 1, 5, 1, 7, 1, 3, 1, 5, 1, 5, 1, 7, 1, 7),
        (1, 3, 1, 3, 1),
    ),
    "dinat-l-cityscapes": (
        (1, 18, 1),
        (1, 5, 1, 9),
        (1, 2, 1, 3, 1, 4, 1, 2, 1, 3, 1, 4, 1, 2, 1, 3, 1, 4),
        (1, 2, 1, 2, 1),
    ),
}

_OF_FILE = {
    "250_16_dinat_l_oneformer_ade20k_160k": "dinat-l",
    "896x896_250_16_dinat_l_oneformer_ade20k_160k": "dinat-l",
    "1280x1280_250_16_dinat_l_oneformer_ade20k_160k": "dinat-l-1280",
    "coco_pretrain_1280x1280_150_16_dinat_l_oneformer_ade20k_160k": "dinat-l-1280",
    "250_16_dinat_l_oneformer_cityscapes_90k": "dinat-l-cityscapes",
    "150_16_dinat_l_oneformer_coco_100ep": "dinat-l",
    "250_16_dinat_l_oneformer_mapillary_300k": "dinat-l",
}

MEND = f"Say them with --dilations: {', '.join(PUBLISHED)}, or lists as in 1,20,1/1,5,1,10/…"


def dilations_of(file: PurePath) -> Dilations | None:
    """By the name that the authors gave the file; None for any other name."""
    name = _OF_FILE.get(file.stem)
    return None if name is None else PUBLISHED[name]


def parse_dilations(text: str) -> Dilations:
    """A key of PUBLISHED, or a list a level: "1,20,1/1,5,1,10/…". Raises UsageError for anything else."""
    if text in PUBLISHED:
        return PUBLISHED[text]
    try:
        found = tuple(tuple(int(number) for number in level.split(",")) for level in text.split("/"))
    except ValueError:
        found = ()
    if not found or min(number for level in found for number in level) < 1:
        raise UsageError(f"--dilations '{text}' is neither a name nor lists of positive numbers", mend=MEND)
    return found
