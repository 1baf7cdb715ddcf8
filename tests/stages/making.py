"""A run whose proposals and class scores are drawn, written through the real writers: what `evaluate` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from tests.datasets import making
from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.mask_codec import keep_queries
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.proposals import ProposalRecord, failed_row, schema, write_record
from vitp_pipeline.config.flags import parse_alphas
from vitp_pipeline.config.recipe import Recipe, load_recipe
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.datasets import Dataset
from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.execution.runner import commit_part, finish_shard
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.geometry import View
from vitp_pipeline.stages.classify import class_scores_run, classifier_file
from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
from vitp_pipeline.storage.sealed import write_sealed

RECIPE = """
manifest = "toy.toml"
[generate-proposals]
config = "x.py"
[evaluate]
alpha = 0.4
object_threshold = 0.4
overlap_threshold = 0.5
"""
QUERIES = 8


@dataclass
class Project:
    """A toy dataset in COCO's layout and its recipe."""

    root: Path
    recipe: Recipe

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.recipe.manifest, self.root, "val")

    def evaluate(
        self, out: Path, alphas: str = "0,0.4,1", shards: list[int] | None = None, retry: bool = False, **settings
    ) -> Evaluation:
        measures, points = self.recipe.stage(EvaluateSettings, **settings), self.recipe.stage(ClassifySettings)
        evaluation = prepare(self.recipe, measures, points, parse_alphas(alphas), self.root, out, ShardChoice())
        evaluate_shards(evaluation, measures, points, range(evaluation.run.shards) if shards is None else shards, retry)
        return evaluation


def make_project(folder: Path, count: int = 5) -> Project:
    making.write_coco(folder / "data", count)
    (folder / "toy.toml").write_text(making.COCO_MANIFEST)
    (folder / "r.toml").write_text(RECIPE)
    return Project(folder / "data", load_recipe(folder / "r.toml"))


def seed(image_id: str) -> int:
    return int(image_id) if image_id.isdecimal() else crc32(image_id.encode())


def drawn(dataset: Dataset, image_id: str) -> tuple[ProposalRecord, np.ndarray]:
    """Proposals that follow the ground truth with errors, at half resolution; and the scores of their points."""
    sample = dataset.sample(image_id)
    truth = dataset.read_semantic(sample)
    rng = np.random.default_rng(seed(image_id))
    half = truth[::2, ::2]
    classes = rng.integers(0, 3, QUERIES)
    masks = np.where(half[None] == classes[:, None, None], 4.0, -4.0) + rng.normal(0, 2.5, (QUERIES, *half.shape))
    logits = rng.normal(0, 1, (QUERIES, 4))
    logits[np.arange(QUERIES), (classes + (rng.random(QUERIES) < 0.4)) % 3] += 3
    logits[:2, 3] += 6  # two are nothing
    points = np.stack([rng.integers(0, s, QUERIES) for s in truth.shape], 1).astype(np.int32)
    scores = rng.normal(0, 1, (QUERIES, 3))
    scores[np.arange(QUERIES), classes] += 2
    objectness = 1 - np.exp(logits[:, 3]) / np.exp(logits).sum(1)
    kept, dropped = keep_queries(objectness, 0.01)
    view = View(truth.shape, truth.shape, truth.shape, half.shape)
    record = ProposalRecord(
        image_id,
        sample.image.relative_to(dataset.root).as_posix(),
        view,
        "mmseg1",
        kept,
        dropped,
        {"max": points},
        logits.astype(np.float32),
        masks[kept].astype(np.float16),
    )
    return record, scores.astype(np.float32)


def make_run(
    project: Project,
    out: Path,
    shards: int = 1,
    part_size: int = 2,
    failed: tuple[str, ...] = (),
    without: tuple[int, ...] = (),
    weights: bytes = b"weights",
    draw: Callable[[Dataset, str], tuple[ProposalRecord, np.ndarray]] | None = None,
) -> None:
    """Writes proposals and class scores as `draw` (`drawn`) gives them; `failed` images have none, the shards `without`
    are not classified. Other `weights` give other scores.
    """
    dataset = project.dataset
    identity = {"stage": "proposals", "manifest": project.recipe.manifest.identity(), "settings": {}}
    images = tuple(s.image_id for s in dataset.samples)
    run = create_or_check(out / "proposals", identity, images, shards, part_size)
    model = out / "classifier/default/model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(weights)
    write_sealed(model.with_suffix(".json"), {"sha256": hashlib.sha256(weights).hexdigest()})
    from vitp_pipeline.artifacts.proposals import open_proposals

    settings = project.recipe.stage(ClassifySettings)
    class_scores = class_scores_run(
        open_proposals(out), classifier_file(project.recipe, settings, project.root, out), settings, create=True
    )
    text = pa.string()
    columns = pa.schema([("image_id", text), ("status", text), ("error", text)])
    for shard in range(shards):
        for part, ids in enumerate(run.parts(shard)):
            writer, other = (
                ArrayWriter(stage.folder / "made.tmp", stage.about(shard, part)) for stage in (run, class_scores)
            )
            rows, states, policies = [], [], ("max",)
            for image_id in ids:
                bad = image_id in failed
                states.append(
                    {"image_id": image_id, "status": "failed" if bad else "ok", "error": "torn" if bad else None}
                )
                if bad:
                    rows.append(failed_row(image_id, f"val/{image_id}.png", "torn"))
                    continue
                record, scores = (draw or drawn)(dataset, image_id)
                if weights != b"weights":
                    scores = scores + np.random.default_rng([seed(image_id), *weights]).normal(0, 2, scores.shape)
                rows.append(write_record(writer, record))
                policies = tuple(record.points)
                other.add(f"point_logits/{record.key}", scores.astype(np.float32), ("query", "class"))
            writer.close()
            other.close()
            table = pa.Table.from_pylist(rows, schema=schema(run.fingerprint, "abc", policies=policies))
            commit_part(run, shard, part, table, writer.path)
            commit_part(class_scores, shard, part, pa.Table.from_pylist(states, schema=columns), other.path)
        for stage in (run, class_scores):
            if stage is run or shard not in without:
                finish_shard(stage, shard)
