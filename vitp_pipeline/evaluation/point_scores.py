"""The classifier's scores of a part's masks; none where the generator alone is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vitp_pipeline.artifacts.parts import ArrayReader
from vitp_pipeline.artifacts.proposals import ProposalEntry, ProposalStore
from vitp_pipeline.artifacts.run import StageRun


@dataclass(frozen=True)
class PointScores:
    """Class scores of one part.

    Attributes:
        errors: the reason of every image without them, or without proposals where no classifier is read.
        arrays: None without a classifier.
    """

    errors: dict[str, str]
    arrays: ArrayReader | None

    def of(self, record: ProposalEntry) -> np.ndarray | None:
        """(Q, K) float32 logits of a view's masks; None without a classifier."""
        return None if self.arrays is None else self.arrays.read(f"point_logits/{record.key}")


@contextmanager
def open_scores(
    proposals: ProposalStore, class_scores: StageRun | None, shard: int, part: int
) -> Iterator[PointScores]:
    """Open the scores of a part. Raises CorruptError as `parts.ArrayReader`."""
    if class_scores is None:
        rows = proposals.rows(shard, part, ["image_id", "status", "error"])
        yield PointScores({r["image_id"]: f"no proposals: {r['error']}" for r in rows if r["status"] != "ok"}, None)
        return
    scored = class_scores.read_rows(shard, part)
    errors = {r["image_id"]: r["error"] for r in scored.to_pylist() if r["status"] != "ok"}
    with class_scores.open_arrays(shard, part, scored) as arrays:
        yield PointScores(errors, arrays)
