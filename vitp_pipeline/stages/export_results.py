"""Export results as files for other tools: restartable, in shards, like a stage.

    RUN/exports/FORMAT-FINGERPRINT/results/     files for the other tool
    RUN/exports/FORMAT-FINGERPRINT/shards/      finished images, their entries of the JSON files, and the digests of
                                                their own files
    RUN/exports/FORMAT-FINGERPRINT/files.json   digests of the JSON files

It needs proposals and class scores, neither images nor ground truth, so it also works on a test split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitp_pipeline.artifacts.proposals import ProposalRecord, ProposalStore, open_proposals
from vitp_pipeline.artifacts.run import StageRun, create_or_check
from vitp_pipeline.config.recipe import Recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import DatasetSpec
from vitp_pipeline.datasets.identity import json_ids, result_names
from vitp_pipeline.decoding.archives import check_inside
from vitp_pipeline.decoding.rle import Rle, split_components
from vitp_pipeline.errors import InputError, MissingStageError, UsageError
from vitp_pipeline.evaluation.certainty import check_codec
from vitp_pipeline.evaluation.definition import map_settings, settle_alpha
from vitp_pipeline.evaluation.point_scores import open_scores
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.interop.result_formats import ImageResult, ResultFormat, find_format
from vitp_pipeline.stages.classify import (
    check_manifest,
    class_scores_run,
    classifier_file,
    require_proposals,
    require_shards,
)
from vitp_pipeline.storage.atomic_files import as_json
from vitp_pipeline.storage.copies import write_last
from vitp_pipeline.storage.fingerprint import file_digest, fingerprint
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.temporaries import NAME_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.postprocess.segmenter import FusedView

VARIANTS = ("fused", "generator", "classifier")


@dataclass(frozen=True)
class Labeling:
    """Options of labeling tools beside the format.

    Attributes:
        order: of the images in JSON files, one of `uncertainty.ORDERS`, the highest first; "" = that of the split.
        components: write every connected piece of a mask as an object of its own.
        url_prefix: before the images' file names in Label Studio's tasks.
    """

    order: str = ""
    components: bool = False
    url_prefix: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        return {"labeling": {k: v for k, v in vars(self).items() if v}} if self != Labeling() else {}

    def check(self, class_agnostic: bool, classified: bool) -> None:
        """Raise UsageError for an order that does not exist, or that needs class scores which are not there.

        Args:
            class_agnostic: the generator's masks have none. classified: the classifier's are read.
        """
        from vitp_pipeline.metrics.uncertainty import ORDERS

        if self.order and self.order not in ORDERS:
            raise UsageError(f"--order {self.order!r}", f"Choose one of: {', '.join(ORDERS)}")
        if self.order == "disagreement" and class_agnostic:
            raise UsageError("--order disagreement: the generator's masks have no class scores", "Use --order entropy")
        if self.order == "disagreement" and not classified:
            raise UsageError("--order disagreement: without a classifier there is none", "Use --order entropy")


@dataclass(frozen=True)
class Export:
    """An export's folder and inputs.

    Attributes:
        names: of images' files by image id, where the format has such.
    """

    run: StageRun
    proposals: ProposalStore
    class_scores: StageRun | None
    spec: DatasetSpec
    settings: EvaluateSettings
    format: ResultFormat
    alpha: float
    names: dict[str, str]
    labeling: Labeling = Labeling()

    @property
    def results(self) -> Path:
        return self.run.folder / "results"


def prepare(
    recipe: Recipe,
    settings: EvaluateSettings,
    classify: ClassifySettings,
    format: str,
    variant: str,
    data_root: Path,
    out: Run,
    shard: ShardChoice,
    asked: Sequence[float] = (),
    labeling: Labeling | None = None,
) -> Export:
    """Find the inputs and make the export's folder.

    Args:
        format: one of `interop.result_formats.RESULT_FORMATS`.
        variant: class scores: fused (as `evaluate` reports it), generator or classifier.
        asked: α if the user gave one other than by the recipe, see `settle_alpha`.
        labeling: order and pieces, None = as the split and the masks are.
    Raises:
        UsageError: unknown format, variant or order, or the manifest lacks the ids that the format needs; masks have no
            class scores, and α or the generator's classes are asked for.
        MissingStageError: proposals or scores are not there; names of files need the proposals of all shards.
        InputError: files of two images would have one name.
    """
    files = find_format(format, recipe.manifest)
    if variant not in VARIANTS:
        raise UsageError(f"--variant {variant!r}", f"Choose one of: {', '.join(VARIANTS)}")
    store = open_store(out)
    proposals = open_proposals(store)
    check_manifest(proposals, recipe)
    require_shards(proposals, shard)
    settings = settle_alpha(settings, proposals.class_agnostic, recipe, asked)
    if proposals.class_agnostic and variant == "generator":
        raise UsageError("--variant generator: masks without class scores: the classifier alone names them")
    proposals.require_one_view("exported files")
    labeling = labeling or Labeling()
    check_codec(proposals.codec, settings, files.tasks)
    alpha = {"generator": 0.0, "classifier": 1.0}.get(variant, settings.alpha)
    class_scores = None
    if alpha:
        class_scores = class_scores_run(proposals, classifier_file(recipe, classify, data_root, store), classify)
    labeling.check(proposals.class_agnostic, class_scores is not None)
    names = _file_names(proposals, files) if files.file_per_image else {}
    identity = {
        "stage": "export",
        "format": format,
        "variant": variant,
        "proposals": proposals.run.fingerprint,
        **({"class_scores": class_scores.fingerprint} if class_scores else {}),
        "settings": map_settings(settings),
        **files.identity(recipe.manifest),
        **labeling.identity,
    }
    folder = store.folder / "exports" / f"{format}-{fingerprint(identity)[:12]}"
    run = create_or_check(store, folder, identity, proposals.run.images, proposals.run.shards, proposals.run.part_size)
    return Export(run, proposals, class_scores, recipe.manifest, settings, files, alpha, names, labeling)


def _file_names(proposals: ProposalStore, format: ResultFormat) -> dict[str, str]:
    """Map image ids to file names. Raises InputError when a name is too long for file systems."""
    require_proposals(proposals, range(proposals.run.shards))
    files: dict[str, str] = {}
    for shard in range(proposals.run.shards):
        for part in range(len(proposals.run.parts(shard))):
            for row in proposals.rows(shard, part, ["image_id", "file_name"]):
                files[row["image_id"]] = check_inside(row["file_name"], proposals.run.folder)
    names = dict(zip(files, result_names(list(files.values())), strict=True))
    room = NAME_BYTES - len(format.ending)
    for image_id, name in names.items():
        if len(os.fsencode(name.rpartition("/")[2])) > room:
            raise InputError(f"{files[image_id]}: its name is too long for its result files", "Rename it")
    return names


def export_shards(export: Export, shards: Sequence[int], retry_failed: bool = False) -> Outcome:
    """Write the files of some shards' images; the JSON files when all shards are done.

    Raises:
        MissingStageError: a shard's proposals or scores are not finished.
    """
    require_proposals(export.proposals, shards)
    class_scores = export.class_scores
    if class_scores and (missing := [s for s in shards if not class_scores.finished(s)]):
        raise MissingStageError(
            f"{class_scores.folder}: shard {missing[0]} is not classified", "Run `vitp classify` for it first"
        )
    outcome = run_parts(export.run, shards, lambda: ResultMaker(export), "export-results", retry_failed)
    if all(export.run.finished(s) for s in range(export.run.shards)):
        _write_json_files(export)
    return outcome


def _write_json_files(export: Export) -> None:
    found, ids = [], json_ids(export.run.images)
    for shard in range(export.run.shards):
        for part in range(len(export.run.parts(shard))):
            for row in export.run.read_rows(shard, part).to_pylist():
                if row["status"] != "ok":
                    continue
                height, width = row["size"]
                about = {"file_name": row["file_name"], "height": height, "width": width}
                if export.labeling.order:
                    about["uncertainty"] = row["uncertainty"]
                if export.labeling.url_prefix:
                    about["url_prefix"] = export.labeling.url_prefix
                found.append(({"id": ids[row["image_id"]], **about}, json.loads(row["entry"])))
    if export.labeling.order:
        found.sort(key=lambda pair: -pair[0]["uncertainty"])  # of equal ones the first remains the first
    images, entries = [about for about, _ in found], [entry for _, entry in found]
    digests = {}
    for name, content in export.format.json(export.spec, images, entries).items():
        export.run.store.write(export.results / name, content if isinstance(content, str) else as_json(content))
        digests[name] = file_digest(export.results / name)
    write_last(export.run.store, export.run.folder / "files.json", {"files": digests})


class ResultMaker:
    """Writes the files of parts; their rows carry what enters the JSON files."""

    def __init__(self, export: Export) -> None:
        from vitp_pipeline.postprocess.segmenter import Segmenter

        self.export = export
        self.segmenter = Segmenter(export.settings, export.spec.things)
        self.json_ids = json_ids(export.run.images)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        proposals, rows = self.export.proposals, dict[str, dict[str, Any]]()
        with open_scores(proposals, self.export.class_scores, shard, part) as scores:
            for record in proposals.read_part(shard, part, images, grouped=True):
                if rows and budget.over():
                    images = images[: images.index(record.image_id)]
                    break
                if record.image_id not in scores.errors:
                    rows[record.image_id] = self._row(record, scores.of(record))
                    budget.advance(1)
        text = pa.string()
        fields = [("image_id", text), ("status", text), ("error", text), ("file_name", text)]
        schema = pa.schema([*fields, ("size", pa.list_(pa.int32())), ("entry", text), ("files", text)])
        if self.export.labeling.order:
            schema = schema.append(pa.field("uncertainty", pa.float64()))
        failed = {"status": "failed"}
        table = [(rows.get(i) or {**failed, "error": scores.errors[i]}) | {"image_id": i} for i in images]
        budget.advance(len(images) - len(rows))
        return pa.Table.from_pylist(table, schema=schema)

    def _row(self, record: ProposalRecord, point_logits: np.ndarray | None) -> dict[str, Any]:
        image, uncertainty = self._result(record, point_logits)
        results = self.export.results
        entry, files = self.export.format.write(self.export.spec, image, results)
        for file in files:
            self.export.run.store.publish(file)
        digests = {file.relative_to(results).as_posix(): file_digest(file) for file in files}
        about = {"file_name": image.file_name, "size": list(image.size)}
        done = {"status": "ok", "error": None, **about, "entry": json.dumps(entry), "files": json.dumps(digests)}
        return done | ({"uncertainty": uncertainty} if self.export.labeling.order else {})

    def _result(self, record: ProposalRecord, point_logits: np.ndarray | None) -> tuple[ImageResult, float]:
        view = self.segmenter.score(record, point_logits, (self.export.alpha,))

        def instances() -> tuple[list[Rle], np.ndarray, np.ndarray]:
            found = self.segmenter.instances(view)
            rles, categories, scores = found.rles(), found.variants[0].categories, found.variants[0].scores
            if not self.export.labeling.components:
                return rles, categories, scores
            pieces = [split_components(rle) for rle in rles]
            times = [len(own) for own in pieces]
            return [piece for own in pieces for piece in own], categories.repeat(times), scores.repeat(times)

        image = ImageResult(
            self.json_ids[record.image_id],
            record.file_name,
            self.export.names.get(record.image_id, ""),
            record.view.original,
            lambda: self.segmenter.semantic([view])[0],
            lambda: self.segmenter.panoptic(view)[0],
            instances,
        )
        return image, self._uncertainty(record, point_logits, view)

    def _uncertainty(self, record: ProposalRecord, point_logits: np.ndarray | None, view: FusedView) -> float:
        import torch

        from vitp_pipeline.metrics.uncertainty import disagreement, entropy

        if self.export.labeling.order == "disagreement" and point_logits is not None:
            value = disagreement(torch.from_numpy(record.class_logits), torch.from_numpy(point_logits))
        elif self.export.labeling.order == "entropy":
            value = entropy(view.probs[0], view.no_object[0])
        else:
            return 0.0
        return round(value, 6)
