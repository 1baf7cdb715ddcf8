"""Convert another tool's masks of an image into proposals, for `import-proposals` and `predict`.

Binary masks stay run lengths. Their points are chosen, and their planes of logits made, one mask at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vitp_pipeline.artifacts.mask_codec import StoredMasks, keep_queries, store_masks
from vitp_pipeline.artifacts.parts import Planes
from vitp_pipeline.artifacts.proposals import ProposalEntry
from vitp_pipeline.config.generate_proposals import MasksOfView
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import Rle, decode_mask
from vitp_pipeline.geometry import Size, View
from vitp_pipeline.interop.pseudo_logits import BINARY_LOGIT, ForeignMasks, logits_of_binary
from vitp_pipeline.postprocess.point_policies import choose_points

PROTOCOL = "d2"
"""Masks are enlarged as logits."""


class ConvertedMasks(NamedTuple):
    """Proposals of an image as they are stored.

    Attributes:
        entry: geometry, kept queries and points.
        class_logits: (Q, K + 1) float32.
        masks: (M, h, w) logits of the kept queries; of binary masks planes that are made while they are read, once.
    """

    entry: ProposalEntry
    class_logits: np.ndarray
    masks: np.ndarray | Planes


def convert_masks(
    found: ForeignMasks, size: Size, settings: ProposalSettings, spec: DatasetSpec, image_id: str, file_name: str
) -> ConvertedMasks:
    """Choose the points of masks, and drop and round masks as a generator's.

    Args:
        size: (H, W) of the image.
        settings: keys of [generate-proposals] for points and stored masks.
    Raises:
        InputError: a point policy does not apply to binary masks.
    """
    import torch

    from vitp_pipeline.generators.base import Proposals
    from vitp_pipeline.stages.generate_proposals import make_record

    view = View(size, size, size, found.size)
    if isinstance(found.masks, list):
        return _convert_binary(found.masks, found.class_logits, view, settings, image_id, file_name)
    proposals = Proposals(torch.from_numpy(found.masks), torch.from_numpy(found.class_logits), view)
    record = make_record(proposals, PROTOCOL, settings, spec, image_id, file_name)
    return ConvertedMasks(record.entry, record.class_logits, record.masks)


def _convert_binary(
    rles: list[Rle], class_logits: np.ndarray, view: View, settings: ProposalSettings, image_id: str, file_name: str
) -> ConvertedMasks:
    import torch

    from vitp_pipeline.postprocess.upsample import source_reach

    each: dict[str, list[np.ndarray]] = {policy: [np.zeros((0, 2), np.int32)] for policy in settings.points}
    for query, rle in enumerate(rles):
        logits = torch.from_numpy(logits_of_binary(decode_mask(rle)[None]))
        masks = MasksOfView(logits, view, PROTOCOL, image_id, first=query, binary=True)
        for policy, points in choose_points(masks, settings).items():
            each[policy].append(points)

    codec, ring = settings.codec, source_reach(view)
    objectness = 1 - torch.softmax(torch.from_numpy(class_logits).double(), dim=1)[:, -1].numpy()
    kept, dropped = keep_queries(objectness, codec.drop_below, codec.drop_threshold)
    codec = replace(codec, drop_below=0.0, drop_threshold=0.0)

    def stored(mask: np.ndarray) -> StoredMasks:
        return store_masks(torch.from_numpy(logits_of_binary(mask[None])), np.ones(1), codec, ring)

    loss = stored(np.array([[True, False]])).loss  # the same for all: the two logits are multiples of every step
    joined = {policy: np.concatenate(points) for policy, points in each.items()}
    entry = ProposalEntry(image_id, file_name, view, PROTOCOL, kept, dropped, joined, loss=loss)
    planes = (stored(decode_mask(rles[query])).masks[0] for query in kept)
    largest = max(BINARY_LOGIT, -codec.floor)
    return ConvertedMasks(
        entry, class_logits, Planes((len(kept), *view.mask), np.dtype(codec.mask_dtype), largest, planes)
    )
