"""How a stage goes over shards and parts, so that being killed costs some minutes of work at most."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitp_pipeline.artifacts.files import read_json, refusals, write_json
from vitp_pipeline.artifacts.locks import Lock, locked
from vitp_pipeline.artifacts.parts import arrays_path, index_path, read_index, totals_path, write_index
from vitp_pipeline.artifacts.places import discard, files_in, publish, release, there
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.artifacts.spool import Spool, images_of, left_over
from vitp_pipeline.artifacts.temporaries import TEMPORARY
from vitp_pipeline.artifacts.writes import append, make_folder
from vitp_pipeline.errors import CorruptError, PartialError
from vitp_pipeline.fingerprint import file_digest
from vitp_pipeline.progress import Progress, counted, progress, say
from vitp_pipeline.stopping import finishing, interruptible, stop_wanted, stopped

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.artifacts.store_locks import StoreLock


ARRAYS_DIGEST = b"vitp_arrays_sha256"
"""Key of the index's metadata; runs of before it existed are checked by the CRCs inside their zip files alone."""


KEEP_EVERY = 300.0
"""Seconds after which what is finished of a part is kept in its spool."""
KEEP_SHARE = 20.0
"""How often as long as keeping takes a maker works at least before it is asked to again: large arrays take a while."""


@dataclass(frozen=True)
class Turn:
    """A maker's turn at a part.

    Attributes:
        advance: called with the number of images finished since it was called last.
        until: when what is finished shall be handed over, by `time.monotonic`.
    """

    advance: Callable[[int], None] = lambda count: None
    until: float = math.inf

    def over(self) -> bool:
        """Whether to return what is finished."""
        return stop_wanted() or time.monotonic() >= self.until


class PartMaker(Protocol):
    """Makes the results of one part. Built only when there is something to do: it may load a model."""

    def make(self, shard: int, part: int, images: Sequence[str], arrays: Path, turn: Turn) -> pa.Table:
        """Writes the arrays of `images` to the file `arrays` (or nothing) and returns their rows, in order.

        Rows have at least the columns `image_id`, `status` ("ok" or "failed") and `error`. `images` are those of the
        part that are not made yet. When the turn is over, it may return early, after one or more of them; it is then
        called anew with the others. What goes through a model together must not depend on that.
        """
        ...


@dataclass
class Outcome:
    """What a stage did, and in which folder. `made` and `cached` count images, `failed` are (image id, reason)."""

    made: int = 0
    cached: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None
    fingerprint: str = ""

    def report(self, stage: str) -> None:
        """Says how it ended. Raises PartialError when images failed."""
        if not self.made:
            good = self.cached - len(self.failed)
            say(f"{stage}: nothing to do, {counted(good, 'image')} {'is' if good == 1 else 'are'} done")
        else:
            kept = f", {self.cached} were done before" if self.cached else ""
            say(f"{stage}: {counted(self.made, 'image')} in {self.seconds:.0f} s{kept}")
        if self.failed:
            for image_id, reason in self.failed[:10]:
                say(f"  failed: {image_id}: {reason}")
            more = f" (and {len(self.failed) - 10} more)" if len(self.failed) > 10 else ""
            raise PartialError(
                f"{stage}: {counted(len(self.failed), 'image')} failed{more}, the rest is done",
                "Mend them and run again with --retry-failed",
            )


def run_parts(
    run: StageRun,
    shards: Sequence[int],
    build: Callable[[], PartMaker],
    title: str,
    retry_failed: bool = False,
    conclude: Callable[[int], None] | None = None,
) -> Outcome:
    """Makes every part of the shards that is not there yet, then each shard's done.json.

    A part's index file is the mark that it is committed; leavings of killed tasks are removed first.

    Args:
        conclude: writes what follows from all parts of a shard, before its done.json.
    Raises:
        LockedError: another task is at work on one of the shards.
        StoppedError: a signal asked this task to end; what is finished of the part is kept in a spool.
        StorageError: disk full and its kin.
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
            with locked(folder / "lock") as lock:
                if run.finished(shard):  # by another task, since it was looked at
                    outcome.failed += failed_images(run, shard)
                    outcome.cached += len(run.shard_images(shard))
                    bar.advance(len(run.shard_images(shard)))
                    continue
                for leaving in (*folder.glob(f"*{TEMPORARY}"), *left_over(folder)):
                    discard(leaving)
                discard(totals_path(folder))  # of the parts that there were
                for part, images in enumerate(run.parts(shard)):
                    if there(index_path(folder, part)):
                        outcome.cached += len(images)
                        bar.advance(len(images))
                        continue
                    if maker is None:
                        with interruptible(f"{bar.done} of {bar.total} images are done"):
                            maker = build()
                    made = _make_part(run, shard, part, maker, bar, lock)
                    outcome.made += made
                    outcome.cached += len(images) - made
                if conclude is not None:
                    conclude(shard)
                outcome.failed += _finish(run, shard)
    outcome.seconds = time.monotonic() - began
    return outcome


def _make_part(run: StageRun, shard: int, part: int, maker: PartMaker, bar: Progress, lock: Lock | StoreLock) -> int:
    """Makes and commits a part, or what is left of it; how many images that were.

    Raises:
        StoppedError: before its end; what is finished lies in its spool.
        LockedError: another task has taken the shard over meanwhile.
    """
    folder, images = run.shard_folder(shard), run.parts(shard)[part]
    arrays, spool = arrays_path(folder, part), Spool(folder, part, run.fingerprint, images)
    left, pause = spool.left, KEEP_EVERY
    if spool.images:
        bar.advance(len(spool.images))
    while True:
        if stop_wanted():
            raise stopped(f"{bar.done} of {bar.total} images are done")
        began = time.monotonic()
        made = maker.make(shard, part, spool.left, arrays, Turn(bar.advance, began + pause))
        returned = time.monotonic()
        rows = spool.joined(made, arrays)
        lock.check()
        _log(run, shard, part, len(images_of(made)), returned - began)
        if images_of(rows) == images:
            break
        spool.keep(rows, arrays)
        pause = max(KEEP_EVERY, KEEP_SHARE * (time.monotonic() - returned))
    if arrays.exists():
        publish(arrays)
    write_index(index_path(folder, part), _sealed(rows, arrays))
    spool.remove()
    release(arrays)
    return len(left)


def _sealed(rows: pa.Table, arrays: Path) -> pa.Table:
    """The rows with the digest of the part's arrays in their metadata: the index vouches for both files."""
    if not arrays.exists():
        return rows
    return rows.replace_schema_metadata({**(rows.schema.metadata or {}), ARRAYS_DIGEST: file_digest(arrays)})


def _finish(run: StageRun, shard: int) -> list[tuple[str, str]]:
    """Writes done.json from what the parts say, so that it does not depend on interruptions."""
    stats = shard_stats(run, shard)
    write_json(run.shard_folder(shard) / "done.json", stats)
    return list(stats["failed"])


def shard_stats(run: StageRun, shard: int) -> dict[str, Any]:
    """What done.json says of a shard whose parts are all there. Raises CorruptError when one cannot be read."""
    folder, failed, size = run.shard_folder(shard), [], 0
    files = files_in(folder)
    for part in range(len(run.parts(shard))):
        rows = read_index(index_path(folder, part), ["image_id", "status", "error"]).to_pylist()
        failed += [(r["image_id"], r["error"]) for r in rows if r["status"] != "ok"]
        size += sum(files.get(path(folder, part).name, 0) for path in (index_path, arrays_path))
    return {"images": len(run.shard_images(shard)), "parts": len(run.parts(shard)), "bytes": size, "failed": failed}


def failed_images(run: StageRun, shard: int) -> list[tuple[str, str]]:
    """(image id, reason) of a finished shard. Raises CorruptError when its done.json is damaged."""
    path = run.shard_folder(shard) / "done.json"
    try:
        return [(image_id, reason) for image_id, reason in read_json(path)["failed"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: damaged ({error!r})", "Remove this file, then run the stage again") from error


def _forget_failed(run: StageRun, shard: int) -> None:
    """Makes spools, without the failed images, of the parts that hold some: only those are then made anew."""
    folder = run.shard_folder(shard)
    with locked(folder / "lock"):
        for part, images in enumerate(run.parts(shard)):
            index, arrays = index_path(folder, part), arrays_path(folder, part)
            spool = Spool(folder, part, run.fingerprint, images)
            committed = there(index)
            rows = read_index(index) if committed else spool.rows
            if rows is None or len(good := _that_worked(rows)) == len(rows):
                continue
            if committed:
                there(arrays)
                discard(folder / "done.json")
                discard(index)
            if len(good):
                spool.keep(good, arrays if committed else None)
            else:
                spool.remove()


def _that_worked(rows: pa.Table) -> pa.Table:
    return rows.filter([status == "ok" for status in rows["status"].to_pylist()])


def _log(run: StageRun, shard: int, part: int, images: int, seconds: float) -> None:
    """Timings go beside what is compared, one JSON line a part."""
    line = {"shard": shard, "part": part, "images": images, "seconds": round(seconds, 3), "time": round(time.time())}
    path = run.folder / "log" / f"shard-{shard:05d}.jsonl"
    with refusals(path):
        make_folder(path.parent)
        there(path)
        append(path, json.dumps(line))
    publish(path)
