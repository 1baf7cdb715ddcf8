"""Content of an image's card in the gallery: a small photograph, maps of class indices, and its masks."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord
from vitp_pipeline.datasets import IGNORE
from vitp_pipeline.evaluation.point_scores import open_scores
from vitp_pipeline.geometry import Size
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.report.mask_statistics import class_scores, mask_areas, objectness_of, scored

LONG_SIDE = 384
NOTHING = 65535
"""In a map: no label, or no mask."""
NAMES_SHOWN = 3


def card_content(stored: StoredEvaluation, image_id: str) -> dict[str, Any]:
    """Pictures and masks of an image.

    Returns:
        size: [height, width] of the pictures.
        photo: base64 of a JPEG; None without a data root.
        maps: base64 of zlib over uint16 little-endian planes of that size: class indices of the ground truth (without a
            data root all `NOTHING`), of the map of each of `Evaluation.compared`, and the index in `masks` of the mask
            that lies on top, `NOTHING` being none.
        classes: the class indices that occur in the maps.
        masks: of those with 1 − v > 0.5: query, objectness, area, label (or None), points [[row, col] as shares of the
            image], and per source the likeliest [class, probability given that it is an object].
    Raises:
        InputError: image or label cannot be read.
    """
    ((_, record, scores),) = read_shown(stored, [image_id])
    return draw_card(stored, record, scores)


def draw_card(stored: StoredEvaluation, record: ProposalRecord, scores: np.ndarray | None) -> dict[str, Any]:
    """Make the content of a card from what is stored of its image, as `card_content`; may run in any thread."""
    image_id = record.image_id
    size = thumbnail_size(record.view.original)
    view = scored(stored, record, scores)
    record, found = replace(record, protocol=view.record.protocol), class_scores(stored, view)
    own = [list(found).index(name) for name in stored.evaluation.compared]  # others are not shown: no maps of them
    of_maps = replace(view, probs=view.probs[own], no_object=view.no_object[own])
    maps = [shrunk(every, size) for every in stored.evaluation.segmenter.semantic([of_maps])]
    objectness = objectness_of(record.class_logits)
    shown = np.flatnonzero(objectness[record.kept] > 0.5)
    truth, photo = np.full(size, IGNORE, np.int16), None
    if stored.has_data:
        dataset = stored.evaluation.dataset
        sample = dataset.sample(image_id)
        truth, photo = shrunk(dataset.read_semantic(sample), size), _jpeg(dataset.read_image(sample), size)
    top = top_masks(record, shown, objectness, size)
    planes = np.stack([truth, *maps, top]).astype(np.int64)
    planes = np.where(planes < 0, NOTHING, planes).astype("<u2")
    classes = np.setdiff1d(planes[:-1], [NOTHING])
    return {
        "size": list(size),
        "photo": photo,
        "maps": base64.b64encode(zlib.compress(planes.tobytes())).decode(),
        "classes": classes.tolist(),
        "masks": _masks(stored, record, shown, objectness, found),
    }


def thumbnail_size(original: Size) -> Size:
    """(height, width), the longer being at most LONG_SIDE."""
    scale = min(1.0, LONG_SIDE / max(original))
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def shrunk(labels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) → `size`: of every cell the value at its center, so that no class appears that is not there."""
    row, col = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, labels.shape, strict=True))
    small: np.ndarray = labels[row[:, None], col[None]]
    return small


def top_masks(record: ProposalRecord, shown: np.ndarray, objectness: np.ndarray, size: Size) -> np.ndarray:
    """(size) int64: of the masks `shown` (places among the kept) that claim a pixel (probability ≥ 0.5) the place in
    `shown` of the one with the largest (1 − v) · probability; −1 where none does.
    """
    import torch

    from vitp_pipeline.postprocess.upsample import iter_mask_probabilities

    best, top = np.zeros(size), np.full(size, -1)
    view = replace(record.view, original=size)
    for place, mask in enumerate(record.each_mask(shown)):
        (plane,) = iter_mask_probabilities(torch.from_numpy(mask)[None].float(), view, record.protocol)
        probability = plane.numpy()
        score = np.where(probability >= 0.5, probability * objectness[record.kept[shown[place]]], 0.0)
        top[score > best] = place
        best = np.maximum(best, score)
    return top


def read_shown(
    stored: StoredEvaluation, images: Collection[str]
) -> Iterator[tuple[str, ProposalRecord, np.ndarray | None]]:
    """Read the proposals of some images and the scores of their points, part by part: every part is opened once."""
    evaluation, proposals, left = stored.evaluation, stored.evaluation.proposals, set(images)
    for shard in range(proposals.run.shards):
        for part, those in enumerate(proposals.run.parts(shard)):
            if wanted := left.intersection(those):
                with open_scores(proposals, evaluation.class_scores, shard, part) as scores:
                    for record in proposals.read_part(shard, part, wanted, grouped=True):
                        yield record.image_id, record, scores.of(record)


def _masks(
    stored: StoredEvaluation,
    record: ProposalRecord,
    shown: np.ndarray,
    objectness: np.ndarray,
    found: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    rows, number = stored.rows.columns["masks"], stored.rows.images.index(record.image_id)
    own = rows["image"] == number
    labels = dict(zip(rows["query"][own].tolist(), rows["label"][own].tolist(), strict=True))
    policy = stored.evaluation.run.identity["points"]
    policy = policy if policy in record.points else "max"
    points = record.points[policy].reshape(len(objectness), -1, 2) / np.array(record.view.original)
    areas = mask_areas(record.masks[shown], record.view, record.groups)
    entries = []
    for area, query in zip(areas.tolist(), record.kept[shown].tolist(), strict=True):
        classes = {source: _likeliest(probs[query]) for source, probs in found.items()}
        entries.append(
            {
                "query": query,
                "objectness": round(float(objectness[query]), 4),
                "area": round(area, 5),
                "label": labels.get(query),
                "points": np.round(points[query], 4).tolist(),
                **classes,
            }
        )
    return entries


def _likeliest(probs: np.ndarray) -> list[list[float]]:
    order = np.argsort(-probs, kind="stable")[:NAMES_SHOWN]
    return [[int(k), round(float(probs[k]), 4)] for k in order]


def _jpeg(image: np.ndarray, size: Size) -> str:
    from PIL import Image

    content = io.BytesIO()
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
    small.save(content, "JPEG", quality=80, optimize=True)
    return base64.b64encode(content.getvalue()).decode()
