"""Match the names of images with those of their label files, and make splits of what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from vitp_pipeline.datasets.layouts.folder import joined, patterns_of

LABEL_ENDINGS = (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Files that store labels without loss."""
VAL_EVERY = 5
"""Of a folder without splits every fifth image is `val`."""
NO_SPLIT = (
    f"there was no split: every {VAL_EVERY}th image is `val`, in the order of the names; where neighbors are alike "
    "(frames of a video) choose other ones, with `list` or by folders"
)


class Pair(NamedTuple):
    """A pattern of images and the path of their labels, and how many images have one."""

    images: str
    labels: str
    matched: int


def pair(image_folder: str, images: Sequence[str], label_folder: str, labels: Sequence[str]) -> Pair | None:
    """Find how label files are called by their images: alike, or with another beginning or end.

    Args:
        image_folder, label_folder: relative to the data root; they may be the same.
        images, labels: names of files.
    Returns:
        None where fewer than half of the label files belong to an image.
    """
    labels = [name for name in labels if name.lower().endswith(LABEL_ENDINGS)]
    best: Pair | None = None
    for ending in sorted({PurePosixPath(name).suffix for name in labels}):
        own = {PurePosixPath(name).stem for name in labels if name.endswith(ending)}
        found = _alike(image_folder, images, label_folder, own, ending) or _affixed(
            image_folder, images, label_folder, own, ending
        )
        if found and found.matched * 2 >= len(own) and (best is None or found.matched > best.matched):
            best = found
    return best


def _alike(image_folder: str, images: Sequence[str], label_folder: str, own: set[str], ending: str) -> Pair | None:
    paired = [name for name in images if PurePosixPath(name).stem in own]
    if image_folder == label_folder:
        paired = [name for name in paired if not name.endswith(ending)]
    if not paired:
        return None
    pattern = patterns_of(paired)[0]
    count = sum(name.endswith(pattern[1:]) for name in paired)
    return Pair(joined(image_folder, pattern), joined(label_folder, "{stem}" + ending), count)


def _affixed(image_folder: str, images: Sequence[str], label_folder: str, own: set[str], ending: str) -> Pair | None:
    """Match names like `001_image.png` and `001_mask.png`."""
    best: Pair | None = None
    stems = [PurePosixPath(name).stem for name in images]
    for suffix in sorted({PurePosixPath(name).suffix for name in images}):
        own_images = sorted(s for s, name in zip(stems, images, strict=True) if name.endswith(suffix))
        first = own_images[0]
        candidates = sorted(own, key=lambda label: (-len(shared_beginning(first, label)), label))[:8]
        for label in candidates:
            common = len(shared_beginning(first, label))
            if not common or (image_folder == label_folder and suffix == ending and common == len(first)):
                continue  # a pattern of the images would match the labels, too
            ours, theirs = first[common:], label[common:]
            ids = {stem[: len(stem) - len(ours)] for stem in own_images if stem.endswith(ours)}
            matched = sum(f"{word}{theirs}" in own for word in ids)
            if matched and (best is None or matched > best.matched):
                photos, masks = joined(image_folder, f"{{id}}{ours}{suffix}"), joined(label_folder, f"{{id}}{theirs}")
                best = Pair(photos, masks + ending, matched)
    return best


def shared_beginning(one: str, other: str) -> str:
    """Return the characters that both begin with."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def splits_of(found: Mapping[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Make `train` and `val` of what was found.

    Args:
        found: entries of [splits] by name, "" for a folder that no split is named after.
    Returns:
        (splits, remarks on them)
    """
    splits = {name: entry for name, entry in found.items() if name}
    if "train" in splits and "val" in splits:
        return splits, ()
    if "train" in splits and _labeled(splits.get("test", {})):
        return {**splits, "val": splits["test"]}, ("there is no `val`: it is the test split",)
    whole = found.get("", splits.get("train", splits.get("val", next(iter(found.values())))))
    cut = {"train": {**whole, "exclude_every": VAL_EVERY}, "val": {**whole, "every": VAL_EVERY}}
    others = {name: entry for name, entry in splits.items() if name not in cut}
    return {**cut, **others}, (NO_SPLIT,)


def _labeled(entry: Mapping[str, Any]) -> bool:
    return bool({"labels", "annotations"} & entry.keys())
