"""The rows of an evaluation: part by part, or all at once where single images are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vitp_pipeline.evaluation.definition import Evaluation
from vitp_pipeline.metrics.bootstrap import sparse_areas
from vitp_pipeline.storage.layout import index_path

if TYPE_CHECKING:
    import pyarrow as pa

STATES = ("image_id", "status", "error")
Pieces = dict[str, list[dict[str, np.ndarray]]]
"""Entries of each column, part by part, not yet concatenated."""


@dataclass
class Rows:
    """Rows in the images' order, as flat arrays with the number of the image beside every entry."""

    images: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def read_parts(evaluation: Evaluation) -> Iterator[pa.Table]:
    """The parts of the shards that are finished, in the images' order."""
    for shard in range(evaluation.run.shards):
        if evaluation.run.finished(shard):
            yield from shard_parts(evaluation, shard)


def shard_parts(evaluation: Evaluation, shard: int) -> Iterator[pa.Table]:
    """The parts of a shard that has all of them."""
    parts = range(len(evaluation.run.parts(shard)))
    evaluation.run.store.fetch_all(index_path(evaluation.run.shard_folder(shard), part) for part in parts)
    for part in parts:
        yield evaluation.run.read_rows(shard, part)


def missing_shards(evaluation: Evaluation) -> list[int]:
    """List the unfinished shards."""
    run = evaluation.run
    run.store.fetch_all(run.shard_folder(shard) / "done.json" for shard in range(run.shards))
    return [shard for shard in range(run.shards) if not run.finished(shard)]


def failures(part: pa.Table) -> list[tuple[str, str]]:
    """(image, reason) of the images of a part that could not be measured."""
    states = zip(*(part[name].to_pylist() for name in STATES), strict=True)
    return [(image, error) for image, status, error in states if status != "ok"]


def entries_of(part: pa.Table, name: str) -> dict[str, np.ndarray]:
    """A list column of a part as flat arrays; `image` is the number of the image in the part."""
    column = part[name].combine_chunks()
    flat = column.flatten()
    entries = {f.name: flat.field(f.name).to_numpy(zero_copy_only=False) for f in flat.type}
    lengths = np.diff(column.offsets.to_numpy())
    return {**entries, "image": np.repeat(np.arange(len(lengths)), lengths)}


def read_rows(
    evaluation: Evaluation, names: Sequence[str] | None = None, variants: Sequence[int] | None = None
) -> Rows:
    """Read all parts; shards that are not finished are listed, not read.

    Args:
        names: only these columns, of those that there are.
        variants: only entries of these variants.
    """
    rows = Rows(missing=missing_shards(evaluation))
    pieces: Pieces = {}
    for part in read_parts(evaluation):
        there = part.column_names[len(STATES) :]
        add_part(rows, pieces, part, [name for name in there if names is None or name in names], variants)
    return joined(rows, pieces)


def add_part(
    rows: Rows,
    pieces: Pieces,
    part: pa.Table,
    names: Sequence[str],
    variants: Sequence[int] | None = None,
) -> None:
    """Append columns of a part to those collected so far; `joined` concatenates them."""
    for name in names:
        entries = entries_of(part, name)
        if variants is not None and "variant" in entries:
            chosen = np.isin(entries["variant"], variants)
            entries = {field: values[chosen] for field, values in entries.items()}
        pieces.setdefault(name, []).append({**entries, "image": len(rows.images) + entries["image"]})
    rows.images += part["image_id"].to_pylist()
    rows.failed += failures(part)


def joined(rows: Rows, pieces: Pieces) -> Rows:
    """Return the rows with their columns concatenated."""
    for name, found in pieces.items():
        rows.columns[name] = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
    return rows


def image_areas(evaluation: Evaluation, rows: Rows, variant: int) -> np.ndarray:
    """(images, K, 3) int64 pixels of a variant: intersection, ground truth, predicted; what a bootstrap resamples."""
    return areas_of(rows.columns["semantic"], variant, len(rows.images), len(evaluation.dataset.spec.classes))


def areas_of(semantic: dict[str, np.ndarray], variant: int, images: int, classes: int) -> np.ndarray:
    """(images, K, 3) int64 of the entries of a variant."""
    chosen = semantic["variant"] == variant
    image, truth, predicted, pixels = (semantic[name][chosen] for name in ("image", "truth", "predicted", "pixels"))
    return sparse_areas(image, truth, predicted, pixels, images, classes)
