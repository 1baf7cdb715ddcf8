"""`vitp verify`: check that committed files are still as they were written.

Which checksum covers which file:

    run.json, copies.json    their own SHA-256; the one for the other; every part and done.json names the plan's digest
    images-….parquet         SHA-256 of the ids, in run.json
    part-0000.parquet        its own SHA-256, inside it (artifacts/parts.py)
    part-0000-….zarr.zip     SHA-256 in the metadata of that index
    _totals.parquet          its own SHA-256, inside it
    done.json of a shard     its own SHA-256; it is a function of the parts, and none is missing where all of them are
    done.json of a training  its own SHA-256; it names those of all files that the training leaves
    results/ of an export    SHA-256 in the index (of an image's files) or in files.json
    results of predict       SHA-256 in the index of its shards
    result.json, files.json  their own SHA-256; copies.json holds them too, so one that is gone is missing
    masks.json, digests.json, log/, jobs/submitted.json, checkpoint.pt, report.html    their own SHA-256

Repairs are in `runs.repair`; nothing is removed on the evidence of an unverified file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitp_pipeline.artifacts.image_ids import StoredIds
from vitp_pipeline.artifacts.parts import arrays_digest, read_index
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.errors import CorruptError, InputError
from vitp_pipeline.execution.runner import shard_stats
from vitp_pipeline.execution.sharding import array_expression
from vitp_pipeline.runs.plan_file import Plan, read_plan
from vitp_pipeline.runs.repair import Damage, forgets_end, puts_back, remakes_part, removes, writes_end
from vitp_pipeline.runs.status import is_cache, stage_folders
from vitp_pipeline.runs.verify_training import check_training
from vitp_pipeline.runtime.output import show
from vitp_pipeline.runtime.progress import progress, say
from vitp_pipeline.storage.copies import COPIES, LAST, copies_in
from vitp_pipeline.storage.fingerprint import file_digest
from vitp_pipeline.storage.layout import PREDICT, arrays_path, index_path, totals_path
from vitp_pipeline.storage.open_store import Run, open_store
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import page_is_whole, read_sealed

READERS = 4
"""Files read at once: hashing leaves the interpreter free, and network file systems like company."""


@dataclass(frozen=True)
class Checked:
    """Number of parts read, and the damage found."""

    parts: int
    damages: list[Damage]


@dataclass(frozen=True)
class _Shard:
    """Findings in a shard.

    Attributes:
        parts: how many were read.
        good: files that were made for the plan in use.
        foreign: intact files that were made for another plan.
    """

    parts: int
    damages: list[Damage]
    good: int
    foreign: int


def verify_run(run: Run) -> Checked:
    """Read every committed file of a run.

    Raises:
        InputError: not a run directory.
    """
    store = open_store(run)
    store.look_again()
    parts, damages = 0, list(_of_the_run(store))
    work: list[tuple[Plan, int]] = []
    for folder in _folders(store):
        plan = read_plan(store, folder)
        damages += plan.damages
        if plan.run is None:
            continue
        if folder.parent.name == "classifier":
            damages += check_training(plan.run)
            continue
        if (bad := _images(plan.run)) is not None:  # which part has which images is then unknown
            damages.append(bad)
            continue
        work += [(plan, shard) for shard in range(plan.run.shards)]
        damages += _of_the_stage(store, plan)
    found: dict[Path, list[_Shard]] = {}
    with progress("verify", len(work), "shards") as bar, ThreadPoolExecutor(READERS) as readers:
        for (plan, _), shard in zip(work, readers.map(lambda item: _shard(*item), work), strict=True):
            found.setdefault(plan.folder, []).append(shard)
            bar.advance()
    for folder, shards in found.items():
        parts += sum(shard.parts for shard in shards)
        if sum(shard.foreign for shard in shards) > sum(shard.good for shard in shards):
            damages.append(Damage(folder / "run.json", "does not belong to the parts next to it", folder))
        else:
            damages += [damage for shard in shards for damage in shard.damages]
    return Checked(parts, damages)


def _folders(store: RunStore) -> list[Path]:
    exports = [store.folder / "exports" / name for name in store.folders(store.folder / "exports")]
    exports = [folder for folder in exports if store.exists(folder / "run.json") or store.exists(folder / COPIES)]
    try:
        return stage_folders(store) + exports
    except InputError:
        if exports:
            return exports
        raise


def _of_the_run(store: RunStore) -> Iterator[Damage]:
    """Check files next to the stages: caches, which may be removed."""
    run = store.folder
    yield from _sealed(store, run / "digests.json", run)
    yield from _sealed(store, run / "jobs" / "submitted.json", run)
    page = run / "report.html"
    try:
        if store.exists(page) and not page_is_whole(store.fetch(page)):
            yield Damage(page, "its checksum does not match", run, None, removes(store, page))
    except CorruptError as error:
        yield Damage.of(error, page, run)


def _images(run: StageRun) -> Damage | None:
    """Check the file of the ids of many images, which a rerun writes again."""
    if not isinstance(run.images, StoredIds):
        return None
    path = run.images.path
    try:
        _ = run.images.column
    except CorruptError as error:
        return Damage.of(error, path, run.folder, removes(run.store, path), rerun=True)
    return None


def _of_the_stage(store: RunStore, plan: Plan) -> Iterator[Damage]:
    folder, files = plan.folder, plan.folder / "files.json"
    copies = {} if plan.damages else copies_in(store, folder)
    yield from _sealed(store, folder / "masks.json", folder)
    damages = [damage for name in LAST for damage in _last(store, folder / name, copies)]
    yield from damages
    if store.exists(files) and not damages:
        for path, reason in _exported(store, folder / "results", read_sealed(store.fetch(files))["files"]):
            yield Damage(path, reason, folder, None, removes(store, path), True)
    for name in store.list(folder / "log"):
        if name.endswith(".json"):
            yield from _sealed(store, folder / "log" / name, folder)


def _last(store: RunStore, path: Path, copies: dict[str, str]) -> Iterator[Damage]:
    """Check a file derived from all shards: a copy proves that it existed."""
    fix = puts_back(store, path, copies)
    try:
        if store.exists(path) or fix is not None:
            read_sealed(store.fetch(path))
    except CorruptError as error:
        yield Damage.of(error, path, path.parent, fix or removes(store, path), rerun=fix is None)


def _sealed(store: RunStore, path: Path, folder: Path) -> Iterator[Damage]:
    """Check a sealed file that does not affect results."""
    try:
        if store.exists(path):
            read_sealed(store.fetch(path))
    except CorruptError as error:
        yield Damage.of(error, path, folder, removes(store, path))


def _shard(plan: Plan, shard: int) -> _Shard:
    assert plan.run is not None
    run, damages, read, good, foreign = plan.run, [], 0, 0, 0
    folder = run.shard_folder(shard)
    try:
        finished = run.finished(shard)
        for part, images in enumerate(run.parts(shard)):
            index = index_path(folder, part)
            if run.holds(shard, part):
                read += 1
                bad = _part(run, shard, part, images)
                if bad is None:
                    good += 1
                elif bad[1].endswith(OTHER_PLAN):
                    foreign += 1
            else:
                bad = (index, "is missing, though the shard is finished") if finished else None
            if bad is not None:
                fix, rerun = remakes_part(run, shard, part, without=bad[0]), not is_cache(run.folder)
                damages.append(Damage(*bad, run.folder, shard, fix, rerun))
        if not damages:
            damages += _end(run, shard) if finished else _lost_end(run, shard, good)
            good += finished and not damages
    except CorruptError as error:  # a link is in the place of a file or a folder
        damages.append(Damage.of(error, folder, run.folder, None, shard))
    return _Shard(read, damages, good, foreign)


OTHER_PLAN = "was made for another run.json"


def _part(run: StageRun, shard: int, part: int, images: tuple[str, ...]) -> tuple[Path, str] | None:
    """Return the damaged file of a part, and why; None when both are intact."""
    index = index_path(run.shard_folder(shard), part)
    try:
        rows = run.read_rows(shard, part)
    except CorruptError as error:
        return index, error.message.removeprefix(f"{index}: ")
    found = rows["image_id"].to_pylist()
    if tuple(dict.fromkeys(found)) != images:  # several views of an image are rows one after another
        return index, f"has {len(found)} rows, which do not match the {len(images)} images of this part"
    if "files" in rows.column_names:
        for files in filter(None, rows["files"].to_pylist()):
            for bad in _exported(run.store, files_of(run), json.loads(files)):
                return bad
    if not (digest := arrays_digest(rows)):
        return None
    arrays = arrays_path(run.shard_folder(shard), part, digest)
    if not run.store.exists(arrays):
        return arrays, "is missing"
    return None if file_digest(run.store.fetch(arrays)) == digest else (arrays, "its checksum does not match")


def files_of(run: StageRun) -> Path:
    """Return the folder of the files for other tools, which parts name."""
    return run.store.folder if run.folder.name == PREDICT else run.folder / "results"


def _exported(store: RunStore, folder: Path, digests: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """List the damaged files among those in a folder for other tools, and why."""
    for name, digest in digests.items():
        path = folder / name
        if not store.exists(path):
            yield path, "is missing"
        elif file_digest(store.fetch(path)) != digest:
            yield path, "its checksum does not match"


def _end(run: StageRun, shard: int) -> Iterator[Damage]:
    """Check done.json and the totals of a shard whose parts are all intact."""
    folder = run.shard_folder(shard)
    done, totals = folder / "done.json", totals_path(folder)
    try:
        if run.store.exists(totals):
            read_index(run.store.fetch(totals), [], run.digest)
    except CorruptError as error:
        yield Damage.of(error, totals, run.folder, forgets_end(run, shard), shard, True)
        return
    try:
        said = run.read_done(shard)
    except CorruptError as error:
        yield _bad_end(run, shard, error.message.removeprefix(f"{done}: "))
        return
    if totals.name in said["files"] and not run.store.exists(totals):
        reason = "is missing, though the shard is finished"
        yield Damage(totals, reason, run.folder, shard, forgets_end(run, shard), True)
    elif said != shard_stats(run, shard):
        yield _bad_end(run, shard, "disagrees with the parts")


def _lost_end(run: StageRun, shard: int, parts: int) -> Iterator[Damage]:
    """Report a missing done.json of a shard that has all parts and no lock: a running or killed task would have left
    its lock.
    """
    files = run.store.list(run.shard_folder(shard))
    if parts and parts == len(run.parts(shard)) and "lock" not in files and not run.finished(shard):
        yield _bad_end(run, shard, "is missing, though all parts of the shard are there")


def _bad_end(run: StageRun, shard: int, reason: str) -> Damage:
    """Check a done.json: it is derived from the parts, unless their totals have to be made first."""
    folder = run.shard_folder(shard)
    rerun = run.identity.get("stage") == "evaluation" and not run.store.exists(totals_path(folder))
    fix = forgets_end(run, shard) if rerun else writes_end(run, shard)
    return Damage(folder / "done.json", reason, run.folder, shard, fix, rerun)


def print_damages(damages: list[Damage]) -> None:
    """Print one line per damage, on standard output, with advice for what cannot be repaired here."""
    for damage in damages:
        show(f"{damage.path}: {damage.reason}{'' if damage.fix else f'. {damage.hint}'}")


def report(run: Run, checked: Checked, left: list[Damage] | None) -> None:
    """Print the outcome.

    Args:
        left: what `repair` could not repair; None = repair was not requested.
    Raises:
        CorruptError: something is damaged.
    """
    if not checked.damages:
        say(f"verify: {checked.parts} parts, all intact")
        return
    store = open_store(run)
    count = f"{len(checked.damages)} of {checked.parts} parts and other files"
    if left is None:
        raise CorruptError(
            f"{store.url}: {count} are damaged", f"`vitp verify {store.url} --repair` repairs what it can"
        )
    for stage in dict.fromkeys(d.stage for d in checked.damages if d not in left):
        shards = {d.shard for d in checked.damages if d.stage == stage and d.shard is not None and d not in left}
        which = f", shards {array_expression(shards)}" if shards else ""
        name = stage.relative_to(store.folder).as_posix()
        again = ": run that stage again" if any(d.rerun for d in checked.damages if d.stage == stage) else ""
        say(f"verify: repaired {'the run' if name == '.' else name}{which}{again}")
    if left:
        first = left[0]
        raise CorruptError(
            f"{first.path}: {first.reason}, which cannot be repaired ({len(left)} in all)",
            first.hint,
        )
