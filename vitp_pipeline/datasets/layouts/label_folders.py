"""Images and label PNGs in folders beside each other, whatever these are called: images and annotations, x and y."""

from __future__ import annotations

from typing import Any

from vitp_pipeline.datasets.layouts.class_names import class_names
from vitp_pipeline.datasets.layouts.folder import Folder, split_called
from vitp_pipeline.datasets.layouts.labeled import labeled_layout
from vitp_pipeline.datasets.layouts.layout import Layout
from vitp_pipeline.datasets.layouts.pairing import Pair, pair

WORDS = (
    *("annotation", "label", "mask", "segmentation", "groundtruth", "ground_truth", "ground-truth", "truth"),
    *("gt", "seg", "semantic", "anno", "ann", "target", "lbl"),
)
"""Beginnings of what folders of labels are called, or of a part of it."""


def detect(folder: Folder) -> Layout | None:
    """See pairs of folders, or one folder whose names say which files are labels."""
    found: dict[str, list[tuple[str, str, Pair]]] = {}
    for labels in (f for f in folder.files if _is_called_labels(f) and folder.files[f]):
        best: tuple[int, int, str, Pair] | None = None
        for images, names in folder.images.items():
            if _is_called_labels(images) or _split(images) != _split(labels):
                continue
            made = pair(images, names, labels, folder.files[labels])
            if made is None:
                continue
            near = len({*images.split("/")} & {*labels.split("/")})
            if best is None or (made.matched, near) > best[:2]:
                best = (made.matched, near, images, made)
        if best is not None:
            found.setdefault(_split(labels), []).append((best[2], labels, best[3]))
    if not found:
        for images, names in folder.images.items():
            if (made := pair(images, names, images, names)) is not None and made.matched * 3 >= len(names):
                found.setdefault(_split(images), []).append((images, images, made))
    entries = {split: entry for split, pairs in found.items() if (entry := _joint(pairs)) is not None}
    return labeled_layout("label images", folder, entries, class_names(folder)) if entries else None


def _is_called_labels(folder: str) -> bool:
    parts = [part.lower() for part in folder.split("/")]
    return any(
        part.startswith(WORDS) or part.endswith(("_gt", "_mask", "_masks", "_labels", "_label")) for part in parts
    )


def _split(folder: str) -> str:
    return next(filter(None, map(split_called, folder.split("/"))), "")


def _joint(pairs: list[tuple[str, str, Pair]]) -> dict[str, Any] | None:
    """Make one entry of the pairs of a split: of several, where one folder of their paths differs alike."""
    images, labels, first = max(pairs, key=lambda entry: entry[2].matched)
    if len(pairs) == 1:
        return {"images": first.images, "labels": first.labels}
    ours, theirs = images.split("/"), labels.split("/")
    for i, part in enumerate(ours):
        if part in theirs and part:
            at = theirs.index(part)
            names = {p[0].split("/")[i] for p in pairs if len(p[0].split("/")) == len(ours)}
            if len(names) == len(pairs):
                pattern = "/".join([*ours[:i], "{part}", *ours[i + 1 :], first.images.rpartition("/")[2]])
                below = "/".join([*theirs[:at], "{part}", *theirs[at + 1 :], first.labels.rpartition("/")[2]])
                return {"images": pattern, "labels": below}
    return {"images": first.images, "labels": first.labels}
