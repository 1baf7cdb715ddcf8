"""RUN/proposals from masks that other tools made: stage one without a generator, with the same shards and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.mask_codec import StoredMasks, keep_queries, store_masks
from vitp_pipeline.artifacts.parts import ArrayWriter, Planes
from vitp_pipeline.artifacts.proposals import (
    ProposalEntry,
    agnostic_identity,
    failed_row,
    schema,
    write_entry,
    write_record,
)
from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun
from vitp_pipeline.config.generate_proposals import MasksOfView
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.decoding.rle import Rle, decode_mask
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import View
from vitp_pipeline.interop.mask_import import NO_OBJECT_SHARE, MaskSource, open_source
from vitp_pipeline.interop.mask_origins import COLUMN, Digests, agreed_digest, keep_digests
from vitp_pipeline.interop.pseudo_logits import BINARY_LOGIT, logits_of_binary
from vitp_pipeline.postprocess.point_policies import choose_points
from vitp_pipeline.storage.open_store import Run, open_store

if TYPE_CHECKING:
    import pyarrow as pa

PROTOCOL = "d2"
"""Masks are enlarged as logits."""


def import_proposals(
    recipe: Recipe,
    settings: ProposalSettings,
    format: str,
    masks: Path,
    data_root: Path,
    out: Run,
    shard: ShardChoice,
    no_object_share: float = NO_OBJECT_SHARE,
    retry_failed: bool = False,
) -> Outcome:
    """Write RUN/proposals from the masks of a split.

    Args:
        settings: keys of [generate-proposals] for the split, points, and stored masks.
        format, masks, no_object_share: see `interop.mask_import`.
    Raises:
        UserError: any of its kinds.
    """
    if settings.flip or len(settings.scales) > 1 or any(settings.window):
        raise UsageError("imported masks have one view of an image", "Leave out scales, flip and window")
    store = open_store(out)
    folder = store.folder / "proposals"
    begun = is_begun(store, folder)
    dataset = Dataset(recipe.manifest, data_root, settings.split, settings.limit or None)
    source = open_source(format, masks, dataset, no_object_share)
    source.open()  # an unreadable file must not begin a run
    digests = {sample.image_id: source.digest(sample) for sample in dataset.samples}
    digest = agreed_digest(store, folder, format, digests, shard.index, retry_failed)
    identity = {
        "stage": "proposals",
        "manifest": recipe.manifest.identity(),
        "generator": {"library": "imported", "format": format, "masks": digest, "no_object_share": no_object_share},
        "settings": identity_of(settings),
        **agnostic_identity(getattr(source, "class_agnostic", False)),
    }
    if not begun:
        shard.for_new_run()
    images = dataset.image_ids
    run = create_or_check(store, folder, identity, images, shard.count, settings.part_size)
    keep_digests(run, digests)
    shards = shard.within(run.shards)
    maker = ImportMaker(run, dataset, source, digests, settings)
    outcome = run_parts(run, shards, lambda: maker, "proposals", retry_failed)
    outcome.unusable = source.unusable
    return outcome


class ImportMaker:
    """Make parts of proposals from a source of masks."""

    def __init__(
        self, run: StageRun, dataset: Dataset, source: MaskSource, digests: Digests, settings: ProposalSettings
    ) -> None:
        self.run, self.dataset, self.source, self.digests, self.settings = run, dataset, source, digests, settings

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        own = schema(self.run.fingerprint, self.dataset.spec.class_names, policies=self.settings.points)
        own = own.append(pa.field(COLUMN, pa.string()))
        writer = ArrayWriter(arrays, {"fingerprint": self.run.fingerprint, "shard": shard, "part": part})
        rows: list[dict[str, Any]] = []
        try:
            for image_id in images:
                sample = self.dataset.sample(image_id)
                file_name = sample.image.relative_to(self.dataset.root).as_posix()
                try:
                    row = self._row(writer, sample, file_name)
                except InputError as error:
                    row = failed_row(image_id, file_name, error.message)
                rows.append({**row, COLUMN: self.digests[image_id]})
                budget.advance(1)
                if budget.over():
                    break
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return pa.Table.from_pylist(rows, schema=own)

    def _row(self, writer: ArrayWriter, sample: Sample, file_name: str) -> dict[str, Any]:
        """Store the proposals of an image, and return its index row."""
        import torch

        from vitp_pipeline.generators.base import Proposals
        from vitp_pipeline.stages.generate_proposals import make_record

        size = self.dataset.image_size(sample)
        found = self.source.read(sample, size)
        view = View(size, size, size, found.size)
        if isinstance(found.masks, list):
            entry, planes = self._binary(sample.image_id, file_name, view, found.masks, found.class_logits)
            return write_entry(writer, entry, found.class_logits, planes)
        proposals = Proposals(torch.from_numpy(found.masks), torch.from_numpy(found.class_logits), view)
        record = make_record(proposals, PROTOCOL, self.settings, self.dataset.spec, sample.image_id, file_name)
        return write_record(writer, record)

    def _binary(
        self, image_id: str, file_name: str, view: View, rles: list[Rle], class_logits: np.ndarray
    ) -> tuple[ProposalEntry, Planes]:
        """Choose the points of binary masks, mask by mask; their planes are made when they are written."""
        import torch

        from vitp_pipeline.postprocess.upsample import source_reach

        each: dict[str, list[np.ndarray]] = {policy: [np.zeros((0, 2), np.int32)] for policy in self.settings.points}
        for query, rle in enumerate(rles):
            logits = torch.from_numpy(logits_of_binary(decode_mask(rle)[None]))
            masks = MasksOfView(logits, view, PROTOCOL, image_id, first=query, binary=True)
            for policy, points in choose_points(masks, self.settings).items():
                each[policy].append(points)

        codec, ring = self.settings.codec, source_reach(view)
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
        return entry, Planes((len(kept), *view.mask), np.dtype(codec.mask_dtype), largest, planes)
