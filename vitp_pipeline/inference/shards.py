"""`vitp predict` over shards, as the stages do it: restartable, in an array job, on an object store.

    OUT/predict-run/run.json     networks, settings, images, number of shards
    OUT/predict-run/shards/      which images are done, and the digests of their files

The results lie where they lie without shards, and are the same. A shard's list of images is fixed by the first command;
an image that has its results is not made again, whatever part it is in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitp_pipeline.artifacts.run import StageRun, create_or_check, is_begun
from vitp_pipeline.errors import InputError
from vitp_pipeline.execution.runner import Outcome, WorkBudget, run_parts
from vitp_pipeline.execution.sharding import ShardChoice
from vitp_pipeline.inference.batch import PredictJob, begin, is_finished, make_each
from vitp_pipeline.inference.image_files import Picture, by_name, names_of
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.layout import PREDICT
from vitp_pipeline.storage.run_store import LocalStore, RunStore

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.inference.predictor import Predictor

PART_SIZE = 1000
"""Images of a part. What is done of one does not depend on it: the results are looked at."""


def goes_in_shards(store: RunStore, shard: str | None) -> bool:
    """Tell if a predict runs over shards: the user says so, an earlier command did, or the results go to a store."""
    return shard is not None or not isinstance(store, LocalStore) or is_begun(store, store.folder / PREDICT)


@dataclass(frozen=True)
class ShardedPredict:
    """A predict run that is begun."""

    run: StageRun
    job: PredictJob
    find: Callable[[str], Picture]

    def shards(self, shards: Sequence[int], build: Callable[[], Predictor], retry_failed: bool = False) -> Outcome:
        """Make the results of some shards' images. Raises as `run_parts`."""
        return run_parts(self.run, shards, lambda: PictureMaker(build(), self.job, self.find), "predict", retry_failed)


def begin_shards(pictures: Sequence[Picture], job: PredictJob, shard: ShardChoice) -> ShardedPredict:
    """Make OUT/predict-run/run.json, or check that the one there says the same.

    Raises:
        IncompatibleError: other networks, settings or images than the run was begun with.
        UsageError: another number of shards; none for a new run, though the shard is given.
    """
    folder = job.out / PREDICT
    if not is_begun(job.store, folder):
        shard.for_new_run()
    made = {"tasks": list(job.tasks), "overlay": job.overlay, **job.identity}
    identity = {"stage": "predict", "predict": made}
    run = create_or_check(job.store, folder, identity, names_of(pictures), shard.count, PART_SIZE)
    return ShardedPredict(run, job, by_name(pictures))


class PictureMaker:
    """Make parts of a predict run: results of images, and rows with the digests of their files; no arrays."""

    def __init__(self, predictor: Predictor, job: PredictJob, find: Callable[[str], Picture]) -> None:
        self.predictor, self.job, self.find = predictor, job, find
        begin(predictor, job)

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        import pyarrow as pa

        text = pa.string()
        schema = pa.schema([(name, text) for name in ("image_id", "status", "error", "files")])
        rows, waiting = {}, []
        for picture in map(self.find, images):
            if self._is_done(picture):
                rows[picture.name] = _row(self._digests(picture))
            else:
                waiting.append(picture)
        budget.advance(len(rows))
        for picture, made in make_each(self.predictor, waiting, self.job):
            rows[picture.name] = _row(made)
            budget.advance(1)
            if budget.over():
                break
        return pa.Table.from_pylist([{"image_id": n, **rows[n]} for n in images if n in rows], schema=schema)

    def _is_done(self, picture: Picture) -> bool:
        """Tell if all files of an image are there; `vitp verify --repair` removes damaged ones."""
        others = self.job.files(picture)[:-1]
        return is_finished(self.job, picture) and all(map(self.job.store.exists, others))

    def _digests(self, picture: Picture) -> dict[str, str]:
        """Read the files of an image whose task was killed before its part was committed."""
        store, digests = self.job.store, {}
        for file in self.job.files(picture):
            digests[file.relative_to(self.job.out).as_posix()] = file_digest(store.fetch(file))
            store.release(file)
        return digests


def _row(made: dict[str, str] | InputError) -> dict[str, str]:
    if isinstance(made, InputError):
        return {"status": "failed", "error": made.message}
    return {"status": "ok", "files": json.dumps(made)}
