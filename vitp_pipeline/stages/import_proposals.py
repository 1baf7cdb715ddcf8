"""RUN/proposals from masks that other tools made: stage one without a generator, with the same shards and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import agnostic_identity, failed_row, schema, write_entry
from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ProposalSettings
from vitp_pipeline.datasets import Dataset, Sample
from vitp_pipeline.errors import InputError
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.interop.mask_import import NO_OBJECT_SHARE, MaskSource, open_source
from vitp_pipeline.interop.mask_origins import COLUMN, Digests, agreed_digest, keep_digests
from vitp_pipeline.stages.convert_masks import convert_masks, refuse_views
from vitp_pipeline.storage.open_store import Run, open_store

if TYPE_CHECKING:
    import pyarrow as pa


def import_proposals(
    recipe: Recipe,
    settings: ProposalSettings,
    format: str,
    masks: Path | None,
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
    refuse_views(settings)
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
        size = self.dataset.image_size(sample)
        found = self.source.read(sample, size)
        made = convert_masks(found, size, self.settings, self.dataset.spec, sample.image_id, file_name)
        return write_entry(writer, made.entry, made.class_logits, made.stored)
