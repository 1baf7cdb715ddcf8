"""Members of every family as a package of somebody else's adds them: only what docs/develop.md names is imported."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from vitp_pipeline.config.choices import FORMULAS
from vitp_pipeline.config.generate_proposals import POINT_POLICIES, PointPolicy
from vitp_pipeline.datasets.label_kinds.kind import LABEL_KINDS, LabelKind
from vitp_pipeline.datasets.label_kinds.truth import ClassMap
from vitp_pipeline.decoding.rle import encode_mask
from vitp_pipeline.interop.mask_import import MASK_FORMATS
from vitp_pipeline.interop.pseudo_logits import ForeignMasks, logits_of_scores
from vitp_pipeline.interop.result_formats import RESULT_FORMATS, ResultFormat
from vitp_pipeline.storage.atomic_files import write_whole


@FORMULAS.register("arithmetic")
def arithmetic(generator, classifier, alpha):
    """(1 − v) · ((1 − α) in + α out), and v."""
    probs = generator.softmax(-1)
    objectness = probs[:, :-1].sum(1, keepdim=True)
    mixed = (1 - alpha) * generator[:, :-1].softmax(-1) + alpha * classifier.softmax(-1)
    return objectness * mixed, probs[:, -1]


class Rectangles:
    """Masks from a JSON file: by image id, rectangles [top, left, bottom, right], each with a class index and score."""

    def __init__(self, path, dataset, no_object_share):
        self.path, self.no_object_share, self.unusable = path, no_object_share, []
        self.classes = len(dataset.spec.classes)

    def open(self):
        self.found = json.loads(self.path.read_text())

    def digest(self, sample):
        return hashlib.sha256(repr(self.found.get(sample.image_id)).encode()).hexdigest()

    def read(self, sample, size):
        rectangles = self.found[sample.image_id]
        masks = np.zeros((len(rectangles), *size), bool)
        for mask, (top, left, bottom, right, _, _) in zip(masks, rectangles, strict=True):
            mask[top:bottom, left:right] = True
        labels, scores = (np.array([entry[place] for entry in rectangles]) for place in (4, 5))
        logits = logits_of_scores(labels, scores, self.classes, self.no_object_share)
        return ForeignMasks(logits, [encode_mask(mask) for mask in masks], size)


MASK_FORMATS.add("rectangles", Rectangles)


def write_counts(spec, image, folder):
    """The number of pixels of every class, a line each, and all images' in one file."""
    counts = [int((image.semantic() == k).sum()) for k in range(len(spec.classes))]
    file = folder / f"{image.name}.txt"
    write_whole(file, "\n".join(map(str, counts)))
    return counts, [file]


RESULT_FORMATS.add(
    "counts",
    ResultFormat(
        write_counts,
        tasks=("semantic",),
        json=lambda spec, images, entries: {
            "all.json": dict(zip([i["file_name"] for i in images], entries, strict=True))
        },
    ),
)


def corners(masks, settings):
    """The first and the last pixel of the image, whatever the mask."""
    height, width = masks.view.original
    return np.tile(np.array([[0, 0], [height - 1, width - 1]], np.int32), (len(masks.logits), 1, 1))


POINT_POLICIES.add("corners", PointPolicy(corners, lambda settings: 2, "log-probabilities"))


def read_npy(dataset, sample, coarse):
    """(H, W) class indices, one array a file."""
    return ClassMap(np.load(sample.label).astype(np.int16))


LABEL_KINDS.add("npy", LabelKind(read_npy))
