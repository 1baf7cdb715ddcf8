"""Convert another tool's masks of an image into proposals, for `import-proposals` and `predict`.

Binary masks stay run lengths. Their points are chosen, and their logits made, one mask at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vitp_pipeline.artifacts.mask_codec import MaskCodec, MaskLoss, keep_queries, store_masks, within
from vitp_pipeline.artifacts.parts import Planes
from vitp_pipeline.artifacts.pixel_groups import MaskPart
from vitp_pipeline.artifacts.proposals import ProposalEntry
from vitp_pipeline.config.generate_proposals import POINT_POLICIES, MasksOfView
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.decoding.rle import Rle, decode_box, decode_mask
from vitp_pipeline.errors import UsageError
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
        masks: (M, h, w) logits of the kept queries, or binary masks.
    """

    entry: ProposalEntry
    class_logits: np.ndarray
    masks: np.ndarray | BinaryMasks

    @property
    def stored(self) -> np.ndarray | Planes:
        """The masks as `write_entry` takes them; planes of binary masks are made while they are written."""
        return self.masks.planes if isinstance(self.masks, BinaryMasks) else self.masks


@dataclass(frozen=True)
class BinaryMasks:
    """Logits of binary masks, made one mask at a time as `store_masks` makes them.

    Attributes:
        rles: of the M kept queries.
        size: (h, w).
        codec: which logits stand for inside and outside.
        ring: of `store_masks`.
    """

    rles: list[Rle]
    size: Size
    codec: MaskCodec
    ring: int

    def parts(self) -> Iterator[MaskPart]:
        """Yield the masks by their bounding boxes."""
        import torch

        reach = self.ring + 1
        for rle in self.rles:
            top, left, inside_box = decode_box(rle)
            first = max(0, top - reach), max(0, left - reach)
            stop = top + inside_box.shape[0], left + inside_box.shape[1]
            last = min(self.size[0], stop[0] + reach), min(self.size[1], stop[1] + reach)
            mask = np.zeros((last[0] - first[0], last[1] - first[1]), bool)
            mask[top - first[0] : stop[0] - first[0], left - first[1] : stop[1] - first[1]] = inside_box
            codes = 2 * mask.view(np.uint8)
            if self.levels[1] != self.levels[0]:
                near = within(torch.from_numpy(mask)[None], self.ring, torch.logical_or)[0].numpy()
                np.maximum(codes, near.view(np.uint8), out=codes)
            yield MaskPart(*first, codes, self.levels)

    @property
    def dense(self) -> np.ndarray:
        """The masks, (M, h, w)."""
        each = [part.plane(self.size) for part in self.parts()]
        return np.stack(each) if each else np.zeros((0, *self.size), np.float32)

    @property
    def planes(self) -> Planes:
        """The masks as arrays (h, w) to be written."""
        largest = max(BINARY_LOGIT, -self.codec.floor)
        return Planes((len(self.rles), *self.size), np.dtype(self.codec.mask_dtype), largest, self._planes())

    def _planes(self) -> Iterator[np.ndarray]:
        """Make the masks one after another in the same memory."""
        plane = np.full(self.size, self.levels[0])
        for part in self.parts():
            plane[part.box] = self.levels.take(part.codes)
            yield plane
            plane[part.box] = self.levels[0]

    @cached_property
    def levels(self) -> np.ndarray:
        """(3,) logits: far from a mask, beside it, inside. The first two differ where the background is floored."""
        far, near = self._logits(np.zeros((1, 1), bool)), self._logits(np.array([[True, False]]))
        return np.array([far[0, 0], near[0, 1], near[0, 0]])

    @cached_property
    def loss(self) -> MaskLoss:
        """Error bound of every mask: both logits are multiples of every step."""
        return self._store(np.array([[True, False]]))[1]

    def _logits(self, mask: np.ndarray) -> np.ndarray:
        return self._store(mask)[0]

    def _store(self, mask: np.ndarray) -> tuple[np.ndarray, MaskLoss]:
        import torch

        stored = store_masks(torch.from_numpy(logits_of_binary(mask[None])), np.ones(1), self.codec, self.ring)
        return stored.masks[0], stored.loss


def refuse_views(settings: ProposalSettings) -> None:
    """Raise UsageError when the settings ask for several views of an image."""
    if settings.flip or len(settings.scales) > 1 or any(settings.window):
        raise UsageError("imported masks have one view of an image", "Leave out scales, flip and window")


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
        for policy, points in _points(rle, view, settings, image_id, query).items():
            each[policy].append(points)

    codec = settings.codec
    objectness = 1 - torch.softmax(torch.from_numpy(class_logits).double(), dim=1)[:, -1].numpy()
    kept, dropped = keep_queries(objectness, codec.drop_below, codec.drop_threshold)
    codec = replace(codec, drop_below=0.0, drop_threshold=0.0)
    stored = BinaryMasks([rles[query] for query in kept], view.mask, codec, source_reach(view))
    joined = {policy: np.concatenate(points) for policy, points in each.items()}
    entry = ProposalEntry(image_id, file_name, view, PROTOCOL, kept, dropped, joined, loss=stored.loss)
    return ConvertedMasks(entry, class_logits, stored)


def _points(rle: Rle, view: View, settings: ProposalSettings, image_id: str, query: int) -> dict[str, np.ndarray]:
    """Choose the points of a binary mask: inside its bounding box by those policies that need no more."""
    import torch

    def chosen(mask: np.ndarray, view: View, names: Sequence[str]) -> dict[str, np.ndarray]:
        logits = torch.from_numpy(logits_of_binary(mask[None]))
        masks = MasksOfView(logits, view, PROTOCOL, image_id, first=query, binary=True)
        return choose_points(masks, settings, names)

    found: dict[str, np.ndarray] = {}
    top, left, inside = decode_box(rle)
    if inside.size and view.mask == view.original:
        size = inside.shape[0], inside.shape[1]
        local = [name for name in settings.points if POINT_POLICIES[name].local]
        in_box = chosen(inside, View(size, size, size, size), local)
        found = {name: points + np.array([top, left], points.dtype) for name, points in in_box.items()}
    others = [name for name in settings.points if name not in found]
    return {**found, **chosen(decode_mask(rle), view, others)} if others else found
