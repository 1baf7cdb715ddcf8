"""RUN/proposals from masks that other tools made: stage one without a generator, with the same shards and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.places import there
from vitp_pipeline.artifacts.proposals import ProposalRecord, failed_row, schema, write_record
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.config.keys import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.foreign.sources import VOID_SHARE, MaskSource, open_source
from vitp_pipeline.shard import ShardChoice
from vitp_pipeline.stages.driver import Outcome, Turn, run_parts
from vitp_pipeline.stages.proposals import settled

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
    out: Path,
    shard: ShardChoice,
    void_share: float = VOID_SHARE,
    retry_failed: bool = False,
) -> Outcome:
    """Writes RUN/proposals from the masks of a split.

    Args:
        settings: of [generate-proposals] what is about the split, points, and what is kept.
        format, masks, void_share: see `foreign.sources`.
    Raises:
        UserError: any of its kinds.
    """
    if settings.mirror or len(settings.scales) > 1 or any(settings.window):
        raise UsageError("imported masks have one view of an image", "Leave out scales, mirror and window")
    begun = there(out / "proposals" / "run.json")
    settings = settled(settings, out)
    dataset = Dataset(recipe.manifest, data_root, settings.split, settings.limit or None)
    source = open_source(format, masks, dataset, void_share)
    identity = {
        "stage": "proposals",
        "manifest": recipe.manifest.identity(),
        "generator": {"library": "imported", **source.identity(Digests(out)), "void_share": void_share},
        "settings": identity_of(settings),
    }
    if not begun:
        shard.for_new_run()
    images = dataset.image_ids
    run = create_or_check(out / "proposals", identity, images, shard.count, settings.part_size)
    shards = shard.within(run.shards)
    return run_parts(run, shards, lambda: ImportMaker(run, dataset, source, settings), "proposals", retry_failed)


class ImportMaker:
    """Makes parts of proposals from a source of masks."""

    def __init__(self, run: StageRun, dataset: Dataset, source: MaskSource, settings: ProposalSettings) -> None:
        self.run, self.dataset, self.source, self.settings = run, dataset, source, settings
        source.open()
        self.schema = schema(run.fingerprint, dataset.spec.class_names)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, turn: Turn) -> pa.Table:
        import pyarrow as pa

        writer = ArrayWriter(arrays, {"fingerprint": self.run.fingerprint, "shard": shard, "part": part})
        rows: list[dict[str, Any]] = []
        try:
            for image_id in images:
                sample = self.dataset.sample(image_id)
                file_name = sample.image.relative_to(self.dataset.root).as_posix()
                try:
                    rows.append(write_record(writer, self._record(sample, file_name)))
                except InputError as error:
                    rows.append(failed_row(image_id, file_name, error.message))
                turn.advance(1)
                if turn.over():
                    break
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _record(self, sample: Sample, file_name: str) -> ProposalRecord:
        import torch

        from vitp_pipeline.generators.base import Proposals
        from vitp_pipeline.geometry import View
        from vitp_pipeline.stages.proposals import make_record

        size = self.dataset.image_size(sample)
        found = self.source.read(sample, size)
        view = View(size, size, size, found.mask_logits.shape[1:])
        masks = torch.from_numpy(found.mask_logits)
        proposals = Proposals(masks, torch.from_numpy(found.class_logits), view)
        if found.binary and "peaks" in self.settings.points:
            raise InputError("binary masks have no peaks", "Leave peaks out of `points`, or import logits")
        spec, binary = self.dataset.spec, found.binary
        return make_record(proposals, PROTOCOL, self.settings, spec, sample.image_id, file_name, binary=binary)
