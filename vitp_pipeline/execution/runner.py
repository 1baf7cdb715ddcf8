"""Run a stage over shards and parts, so that a kill costs at most a few minutes of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitp_pipeline.artifacts.partial_part import PartialPart, images_of, stale_files
from vitp_pipeline.artifacts.parts import ARRAYS_DIGEST, RUN, arrays_digest, sealed_index
from vitp_pipeline.artifacts.run import StageRun, require_same
from vitp_pipeline.errors import CorruptError, LockedError, PartialError, StorageError, partly_failed
from vitp_pipeline.runtime.progress import Progress, counted, progress, say
from vitp_pipeline.runtime.signals import finishing, interruptible, stop_wanted, stopped
from vitp_pipeline.storage.atomic_files import refusals, removals
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.fs_ops import make_folder, remove, rename, sync_folder
from vitp_pipeline.storage.layout import arrays_path, index_path, part_of_arrays, totals_path
from vitp_pipeline.storage.locks import Lock
from vitp_pipeline.storage.sealed import read_sealed, sealed
from vitp_pipeline.storage.temporaries import temporary

if TYPE_CHECKING:
    import pyarrow as pa


KEEP_EVERY = 300.0
"""Seconds after which the finished images of a part are kept in its partial part."""
KEEP_SHARE = 20.0
"""Least ratio of working time to the time of keeping a partial part: large arrays take a while to write."""


@dataclass(frozen=True)
class WorkBudget:
    """Time budget and progress of a part maker.

    Attributes:
        advance: called with the number of images finished since it was called last.
        until: when finished work should be returned, by `time.monotonic`.
    """

    advance: Callable[[int], None] = lambda count: None
    until: float = math.inf

    def over(self) -> bool:
        """True once finished work should be returned."""
        return stop_wanted() or time.monotonic() >= self.until


class PartMaker(Protocol):
    """Makes the results of one part. Built only when there is something to do: it may load a model."""

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, budget: WorkBudget) -> pa.Table:
        """Write the arrays of `images` to the file `arrays` (or nothing) and return their rows, in order.

        Rows have at least the columns `image_id`, `status` ("ok" or "failed") and `error`. `images` are those of the
        part that are not made yet. When the budget is spent, it may return early, after one or more of them; it is then
        called again with the others. Batches that go through a model must not depend on that.
        """
        ...


@dataclass
class Outcome:
    """Outcome of a stage, and its folder.

    Attributes:
        made, cached: images. failed: (image id, reason).
        unusable: why records of no known image were left out.
    """

    made: int = 0
    cached: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None
    fingerprint: str = ""
    unusable: list[str] = field(default_factory=list)

    def report(self, stage: str) -> None:
        """Print the outcome. Raises PartialError when images failed, or records of the input could not be used."""
        before = "tried" if self.failed else "done"
        if not self.made:
            say(f"{stage}: nothing to do, {counted(self.cached, 'image')} {_was(self.cached)} {before} before")
        else:
            kept = f", {self.cached} {_was(self.cached)} {before} before" if self.cached else ""
            say(f"{stage}: {counted(self.made, 'image')} in {self.seconds:.0f} s{kept}")
        for reason in self.unusable[:10]:
            say(f"  skipped: {reason}")
        if (more := len(self.unusable) - 10) > 0:
            say(f"  skipped: {more} more")
        if self.failed:
            for image_id, reason in self.failed[:10]:
                say(f"  failed: {image_id}: {reason}")
            if (more := len(self.failed) - 10) > 0:
                say(f"  failed: {more} more (`vitp status --json` lists them)")
            hint = "Fix the inputs, then re-run each failed stage with --retry-failed, the first one first"
            if len(self.failed) == self.made + self.cached:
                hint = "Fix the inputs or the settings, then run the command again, with --retry-failed"
            raise partly_failed(stage, len(self.failed), self.made + self.cached, hint)
        if self.unusable:
            records = counted(len(self.unusable), "record")
            raise PartialError(
                f"{stage}: {records} of unknown images skipped, the rest is done",
                "Correct the file, then import it into another --out",
            )


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def run_parts(
    run: StageRun,
    shards: Sequence[int],
    build: Callable[[], PartMaker],
    title: str,
    retry_failed: bool = False,
    conclude: Callable[[int], None] | None = None,
) -> Outcome:
    """Make every missing part of the shards, then each shard's done.json.

    A part's index file is the mark that it is committed; stale files of killed tasks are removed first.

    Args:
        conclude: writes the shard's aggregates over all parts, before its done.json.
    Raises:
        LockedError: another task is at work on one of the shards.
        StoppedError: a signal asked this task to end; what is finished of the part is kept in a partial part.
        StorageError: disk full or similar.
    """
    outcome, maker, began = Outcome(folder=run.folder, fingerprint=run.fingerprint), None, time.monotonic()
    if retry_failed:
        for shard in shards:
            _forget_failed(run, shard)
    open_shards = []
    for shard in shards:
        if run.finished(shard):
            outcome.cached += len(run.shard_images(shard))
            outcome.failed += failed_images(run, shard)
        else:
            open_shards.append(shard)
    if not open_shards:
        return outcome

    with finishing(), progress(title, sum(len(run.shard_images(s)) for s in open_shards)) as bar:
        for shard in open_shards:
            folder = run.shard_folder(shard)
            with run.store.locked(folder / "lock") as lock:
                if outcome.made + outcome.cached == len(outcome.failed):  # until then the run may be begun anew
                    require_same(run)
                if run.finished(shard):  # by another task, since it was looked at
                    outcome.failed += failed_images(run, shard)
                    outcome.cached += len(run.shard_images(shard))
                    bar.advance(len(run.shard_images(shard)))
                    continue
                for name in stale_files(run.store, folder):
                    run.store.remove(folder / name)
                run.store.remove(totals_path(folder))  # of the parts that there were
                for part, images in enumerate(run.parts(shard)):
                    if run.holds(shard, part):
                        outcome.cached += len(images)
                        bar.advance(len(images))
                        continue
                    if maker is None:
                        with interruptible(f"{bar.done} of {bar.total} images are done"):
                            maker = build()
                    made = _make_part(run, shard, part, maker, bar, lock)
                    outcome.made += made
                    outcome.cached += len(images) - made
                lock.check()
                if conclude is not None:
                    conclude(shard)
                outcome.failed += finish_shard(run, shard)
    outcome.seconds = time.monotonic() - began
    return outcome


def _make_part(run: StageRun, shard: int, part: int, maker: PartMaker, bar: Progress, lock: Lock) -> int:
    """Make and commit a part, or the rest of it; return the number of images made.

    Raises:
        StoppedError: before its end; what is finished lies in its partial part.
        LockedError: another task has taken the shard over meanwhile.
    """
    folder, images = run.shard_folder(shard), run.parts(shard)[part]
    arrays = temporary(folder / f"part-{part:04d}.zarr.zip")
    partial = PartialPart(run, shard, part)
    left, pause = partial.left, KEEP_EVERY
    if partial.images:
        bar.advance(len(partial.images))
    try:
        while True:
            if stop_wanted():
                raise stopped(f"{bar.done} of {bar.total} images are done")
            began = time.monotonic()
            made = maker.make(shard, part, partial.left, arrays, WorkBudget(bar.advance, began + pause))
            returned = time.monotonic()
            rows = partial.joined(made, arrays)
            lock.check()
            _log(run, shard, part, len(images_of(made)), returned - began)
            if images_of(rows) == images:
                break
            partial.keep(rows, arrays)
            pause = max(KEEP_EVERY, KEEP_SHARE * (time.monotonic() - returned))
        commit_part(run, shard, part, rows, arrays, lock)
    finally:
        remove(arrays)
    partial.remove()
    return len(left)


def commit_part(run: StageRun, shard: int, part: int, rows: pa.Table, arrays: Path, lock: Lock | None = None) -> None:
    """Publish a part: its arrays under a name that no other content has, then its index, unless there is one.

    So a task that was suspended and taken over, however late it wakes and however weak the file system's locks are,
    changes nothing that is committed.

    Args:
        arrays: a file whose content they are, which is moved; it need not exist.
    Raises:
        LockedError: another task has taken over.
    """
    store, folder, own = run.store, run.shard_folder(shard), None
    index, about = index_path(folder, part), {**(rows.schema.metadata or {}), RUN: run.digest.encode()}
    if arrays.exists():
        with removals(arrays, index), refusals(index):
            about[ARRAYS_DIGEST] = (digest := file_digest(arrays)).encode()
            own = arrays_path(folder, part, digest)
            make_folder(folder)
            rename(arrays, own)
            sync_folder(folder)
        store.publish(own)
    if lock is not None:
        lock.check()
    if not store.create(index, sealed_index(index, rows.replace_schema_metadata(about))):
        raise LockedError(f"{index}: another task has committed this part", "Run the same command again")
    if own is not None:
        if own.name not in store.list(folder):  # the task that took over removed it as stale
            store.remove(index)
            raise LockedError(f"{own}: another task has removed it", "Run the same command again")
        store.release(own)


def finish_shard(run: StageRun, shard: int) -> list[tuple[str, str]]:
    """Write done.json from the parts alone, so that it does not depend on interruptions."""
    stats = shard_stats(run, shard)
    done = run.shard_folder(shard) / "done.json"
    run.store.write(done, sealed(done, stats))
    return [(image_id, reason) for image_id, reason in stats["failed"]]


def shard_stats(run: StageRun, shard: int) -> dict[str, Any]:
    """Return the content of done.json for a shard whose parts all exist: its files, and the images that failed.

    Raises:
        CorruptError: a part cannot be read.
    """
    folder, failed = run.shard_folder(shard), []
    sizes, digests = run.store.list(folder), {}
    own = []
    for part in range(len(run.parts(shard))):
        rows = run.read_rows(shard, part, ["image_id", "status", "error"])
        failed += [[r["image_id"], r["error"]] for r in rows.to_pylist() if r["status"] != "ok"]
        index, digest = index_path(folder, part), arrays_digest(rows)
        digests[index.name] = file_digest(index)  # which `read_rows` has fetched
        own += [index.name, *([arrays_path(folder, part, digest).name] if digest else [])]
    if (totals := totals_path(folder)).name in sizes:
        digests[totals.name] = file_digest(run.store.fetch(totals))
    return {
        "run": run.digest,
        "images": len(run.shard_images(shard)),
        "parts": len(run.parts(shard)),
        "bytes": sum(sizes.get(name, 0) for name in own),
        "failed": failed,
        "files": digests,
    }


def forget_part(run: StageRun, shard: int, part: int) -> None:
    """Remove a part, its index first, which uncommits it; before that, the files derived from it.

    Raises:
        LockedError: a task is at work on its shard.
    """
    store, folder = run.store, run.shard_folder(shard)
    with store.locked(folder / "lock", wait=False):
        forget_end(run, shard)
        store.remove(index_path(folder, part))
        for name in store.list(folder):
            if part_of_arrays(name) == part:
                store.remove(folder / name)


def forget_end(run: StageRun, shard: int) -> None:
    """Remove the files derived from the parts of a shard, under its lock."""
    folder = run.shard_folder(shard)
    run.store.remove(folder / "done.json")
    run.store.remove(totals_path(folder))


def failed_images(run: StageRun, shard: int) -> list[tuple[str, str]]:
    """List (image id, reason) of a finished shard. Raises CorruptError when its done.json is damaged."""
    return [(image_id, reason) for image_id, reason in run.read_done(shard)["failed"]]


def _forget_failed(run: StageRun, shard: int) -> None:
    """Reopen finished parts so that only their failed images are processed again."""
    folder = run.shard_folder(shard)
    with run.store.locked(folder / "lock"):
        for part in range(len(run.parts(shard))):
            partial = PartialPart(run, shard, part)
            rows = run.read_rows(shard, part) if run.holds(shard, part) else None
            known = partial.rows if rows is None else rows
            if known is None or len(good := _that_worked(known)) == len(known):
                continue
            arrays = None
            if rows is not None:
                if digest := arrays_digest(rows):
                    arrays = run.store.fetch(arrays_path(folder, part, digest))
                run.store.remove(folder / "done.json")
                run.store.remove(index_path(folder, part))
            if len(good):
                partial.keep(good, arrays)
            else:
                partial.remove()


def _that_worked(rows: pa.Table) -> pa.Table:
    return rows.filter([status == "ok" for status in rows["status"].to_pylist()])


def _log(run: StageRun, shard: int, part: int, images: int, seconds: float) -> None:
    """Log timings, one entry each time a maker has worked on a part; outside of the run's identity. If they cannot be
    written, the work continues.
    """
    path = run.folder / "log" / f"shard-{shard:05d}.json"
    entry = {"part": part, "images": images, "seconds": round(seconds, 3), "time": round(time.time())}
    try:
        before = read_sealed(run.store.fetch(path))["parts"] if run.store.exists(path) else []
    except CorruptError as error:
        say(f"{error.message}; starting a new one")
        before = []
    try:
        run.store.write(path, sealed(path, {"shard": shard, "parts": [*before, entry]}))
    except StorageError as error:
        say(f"{error.message}; this part's timing is not kept")
