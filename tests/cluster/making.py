"""Chains and runs without any model behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.parts import ArrayWriter
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.cluster.plan import Chain, Job
from vitp_pipeline.execution.runner import WorkBudget, run_parts


def make_chain(
    shards: int,
    proposals: Iterable[int] | None = None,
    scores: Iterable[int] | None = None,
    counts: Iterable[int] | None = None,
    training: bool = True,
) -> Chain:
    """A chain as `plan_chain` makes it; None = all shards."""
    every = range(shards)
    arrays = [tuple(sorted(every if s is None else s)) for s in (proposals, scores, counts)]
    jobs = [
        Job("generate-proposals", ("generate-proposals", "r.toml"), arrays[0]),
        Job("train-classifier", ("train-classifier", "r.toml")) if training else None,
        Job("classify", ("classify", "r.toml"), arrays[1], "generate-proposals", "train-classifier"),
        Job("evaluate", ("evaluate", "r.toml"), arrays[2], "classify"),
        Job("merge", ("evaluate", "r.toml"), all_of="evaluate"),
    ]
    return Chain(shards, tuple(j for j in jobs if j is not None and j.shards != ()))


class Maker:
    """Makes an array and a row an image; `bad` images fail."""

    def __init__(self, run: StageRun, bad: Sequence[str] = ()) -> None:
        self.run, self.bad = run, bad

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        writer = ArrayWriter(arrays, self.run.about(shard, part))
        for image in images:
            if image not in self.bad:
                writer.add(f"masks/{image}", np.full((2, 3), int(image[1:])), ["y", "x"])
            budget.advance(1)
        writer.close()
        rows = [{"image_id": i, "status": "failed" if i in self.bad else "ok", "error": None} for i in images]
        return pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in ("image_id", "status", "error")]))


def new_run(root: Path, count: int = 7, shards: int = 2, part_size: int = 2) -> StageRun:
    """The stage `proposals` of a run."""
    images = tuple(f"i{n}" for n in range(count))
    return create_or_check(root / "proposals", {"stage": "proposals"}, images, shards, part_size)


def work(run: StageRun, shards: Sequence[int] | None = None, bad: Sequence[str] = ()) -> None:
    run_parts(run, range(run.shards) if shards is None else shards, lambda: Maker(run, bad), "test")


def content(run: StageRun) -> dict[str, bytes]:
    """Everything but the logs and what is for people."""
    files = [
        p
        for p in run.folder.rglob("*")
        if p.is_file() and p.parent.name != "log" and p.name not in ("run.json", "copies.json")
    ]
    return {p.relative_to(run.folder).as_posix(): p.read_bytes() for p in files}
