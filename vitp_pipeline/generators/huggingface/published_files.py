"""Settings that published OneFormer and Mask2Former files do not contain: dilations and test sizes.

Neither has parameters: a model with wrong values loads silently and is just worse. They are known by the authors' file
names; for a renamed file the user must give them.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from vitp_pipeline.errors import UsageError

Dilations = tuple[tuple[int, ...], ...]
"""Of every attention layer of a DiNAT, a list a level."""

DILATIONS: dict[str, Dilations] = {
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
SAY_DILATIONS = f"Give them with --dilations: {', '.join(DILATIONS)}, or lists as in 1,20,1/1,5,1,10/…"

_TEST_SIZES = {  # (shortest, longest edge): names of files, of Mask2Former's the last letters
    (640, 2560): """
        250_16_swin_l_oneformer_ade20k_160k 250_16_convnext_l_oneformer_ade20k_160k
        250_16_convnext_xl_oneformer_ade20k_160k 250_16_dinat_l_oneformer_ade20k_160k
        503e96 7e47bf 6b4a3a e0c58e 92dae9
    """,
    (896, 3584): """
        896x896_250_16_swin_l_oneformer_ade20k_160k 896x896_250_16_dinat_l_oneformer_ade20k_160k
        896x896_250_16_intern_image_h_oneformer_ade20k_160k
        coco_pretrain_896x896_250_16_intern_image_h_oneformer_ade20k_160k
    """,
    (1280, 5120): """
        1280x1280_250_16_swin_l_oneformer_ade20k_160k 1280x1280_250_16_dinat_l_oneformer_ade20k_160k
        coco_pretrain_1280x1280_150_16_dinat_l_oneformer_ade20k_160k
    """,
    (512, 2048): "5274a6 011c6d",
    (1024, 2048): """
        250_16_swin_l_oneformer_cityscapes_90k 250_16_dinat_l_oneformer_cityscapes_90k
        250_16_convnext_l_oneformer_cityscapes_90k mapillary_pretrain_250_16_convnext_l_oneformer_cityscapes_90k
        250_16_convnext_xl_oneformer_cityscapes_90k mapillary_pretrain_250_16_convnext_xl_oneformer_cityscapes_90k
        250_16_intern_image_h_oneformer_cityscapes_90k
        2d58d4 fa26ae 1c6b65 17c1ee ceba0f 23efb7 fa840f 064788 6a63f8 974824 7a3b6d dfa862
    """,
    (800, 1333): """
        150_16_swin_l_oneformer_coco_100ep 150_16_dinat_l_oneformer_coco_100ep
        250_16_intern_image_h_oneformer_coco_100ep_1024
        9fd0ae a407fd 9d7f02 54b88a f07440 86143f 1e7f22 f6e0f6 83d103 e5f453
    """,
    (2048, 2048): """
        250_16_swin_l_oneformer_mapillary_300k 250_16_convnext_l_oneformer_mapillary_300k
        250_16_dinat_l_oneformer_mapillary_300k 250_16_intern_image_h_oneformer_mapillary_300k_1024
    """,
}
_SIZE_OF_FILE = {name: size for size, names in _TEST_SIZES.items() for name in names.split()}


def edges_of(file: PurePath) -> tuple[int, int] | None:
    """Look up shortest and longest edge of a published file's test images; None for any other name."""
    zoo = re.fullmatch(r"model_final_([0-9a-f]{6})", file.stem)
    return _SIZE_OF_FILE.get(zoo[1] if zoo else file.stem)


def dilations_of(file: PurePath) -> Dilations | None:
    """Look up the dilations of a published OneFormer with DiNAT-L; None for any other name."""
    if "dinat_l" not in file.stem or file.stem not in _SIZE_OF_FILE:
        return None
    if "cityscapes" in file.stem:
        return DILATIONS["dinat-l-cityscapes"]
    return DILATIONS["dinat-l-1280" if "1280x1280" in file.stem else "dinat-l"]


def parse_dilations(text: str) -> Dilations:
    """Parse a key of DILATIONS, or a list per level: "1,20,1/1,5,1,10/…". Raises UsageError for anything else."""
    if text in DILATIONS:
        return DILATIONS[text]
    try:
        found = tuple(tuple(int(number) for number in level.split(",")) for level in text.split("/"))
    except ValueError:
        found = ()
    if not found or min(number for level in found for number in level) < 1:
        raise UsageError(f"--dilations '{text}' is neither a name nor lists of positive numbers", hint=SAY_DILATIONS)
    return found
