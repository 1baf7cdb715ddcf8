"""The identity of a stage's results: `run.json`, made once, checked by every task.

    RUN/proposals/                    one set of masks and class scores
    RUN/classifier/NAME/              a trained classifier
    RUN/class_scores/FINGERPRINT/     that classifier's scores for the points of these proposals
    RUN/evaluation/FINGERPRINT/       metrics of these proposals, scores and settings

What a user names is checked against what exists; what only follows from other results lies under its own
fingerprint, so another classifier or another α never overwrites anything.

Which files belong to a stage follows from run.json, so it is kept twice (`copies.json`), and every part holds the
digest of the plan it was made for: nothing is judged by a run.json that is not proven (`runs.verify`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.artifacts.image_ids import StoredIds, TextColumn, ids_path, write_ids
from vitp_pipeline.artifacts.run_schema import ShardEnd, TrainingEnd, check_end, check_identity, check_provenance
from vitp_pipeline.errors import CorruptError, IncompatibleError, MissingStageError, UsageError
from vitp_pipeline.runtime.progress import say
from vitp_pipeline.storage.copies import COPIES, keep_copies
from vitp_pipeline.storage.downloads.cache import used_files
from vitp_pipeline.storage.fingerprint import difference, fingerprint
from vitp_pipeline.storage.layout import arrays_path, index_path
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import damaged, of_older_version, read_sealed, read_text, sealed
from vitp_pipeline.storage.temporaries import TEMPORARY, tidy

if TYPE_CHECKING:
    import pyarrow as pa

    from vitp_pipeline.artifacts.parts import ArrayReader

FORMAT_VERSION = 3
FORMAT_OF_MANY = 4
"""Of a run.json whose images are in a file."""
LISTED = 100_000
"""Most images whose ids run.json lists."""


@dataclass(frozen=True)
class StageRun:
    """A stage's folder and what its run.json says.

    Attributes:
        store: the run's.
        folder: where the results lie.
        identity: what decides the results (JSON).
        images: ids of all images, in order (empty for training); of more than `LISTED` a `TextColumn`.
        shards: number of shards N.
        part_size: images in a part.
        provenance: as `provenance()` gave it, for people.
    """

    store: RunStore = field(compare=False, repr=False)
    folder: Path
    identity: dict[str, Any]
    images: Sequence[str]
    shards: int
    part_size: int
    provenance: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @cached_property
    def digest(self) -> str:
        """Return the digest of the plan, 64 hex digits: the identity, and which images lie in which shard and part."""
        plan = {
            "identity": self.identity,
            "images": images_of_plan(self.images),
            "shards": self.shards,
            "part_size": self.part_size,
        }
        return fingerprint(plan)

    def shard_images(self, shard: int) -> tuple[str, ...]:
        """Return the image ids of a shard: a contiguous range; shard sizes differ by at most one."""
        return tuple(self.images[self.first_image(shard) : self.first_image(shard + 1)])

    def first_image(self, shard: int) -> int:
        """Return the number of a shard's first image."""
        return shard * len(self.images) // self.shards

    def parts(self, shard: int) -> list[tuple[str, ...]]:
        """Return the image ids of a shard's parts: a function of manifest and settings, never of earlier work."""
        images = self.shard_images(shard)
        return [images[i : i + self.part_size] for i in range(0, len(images), self.part_size)]

    def shard_folder(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}"

    def read_rows(self, shard: int, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows of a committed part; None = all columns. Raises CorruptError as `parts.read_index`."""
        from vitp_pipeline.artifacts.parts import read_index

        return read_index(self.store.fetch(index_path(self.shard_folder(shard), part)), columns, self.digest)

    def open_arrays(self, shard: int, part: int, rows: pa.Table | None = None) -> ArrayReader:
        """Open the arrays of a committed part.

        Args:
            rows: the part's, where they are read already: they name their arrays.
        Raises:
            CorruptError: as `parts.ArrayReader`.
        """
        from vitp_pipeline.artifacts.parts import ArrayReader, arrays_digest

        rows = self.read_rows(shard, part, []) if rows is None else rows
        arrays = arrays_path(self.shard_folder(shard), part, arrays_digest(rows))
        return ArrayReader(self.store.fetch(arrays), self.about(shard, part))

    def about(self, shard: int, part: int) -> dict[str, Any]:
        """Return the attributes of a part's arrays."""
        return {"fingerprint": self.fingerprint, "shard": shard, "part": part}

    def read_done(self, shard: int | None = None) -> dict[str, Any]:
        """Read done.json of a finished shard, or of a training that has ended; `files` are digests by name.

        Raises:
            CorruptError: it is damaged, or was made for another plan.
        """
        path = (self.folder if shard is None else self.shard_folder(shard)) / "done.json"
        return self.end_of(read_sealed(self.store.fetch(path)), path, shard)

    def end_of(self, content: dict[str, Any], path: Path, shard: int | None = None) -> dict[str, Any]:
        """Return the content of a done.json that lies, or belongs, at `path`. Raises as `read_done`."""
        try:
            said = check_end(TrainingEnd if shard is None else ShardEnd, content)
        except ValueError as error:
            raise damaged(path, f"damaged ({error})") from error
        if said["run"] != self.digest:
            raise damaged(path, "was made for another run.json")
        return said

    def finished(self, shard: int) -> bool:
        return self.store.exists(self.shard_folder(shard) / "done.json")

    def holds(self, shard: int, part: int) -> bool:
        """Tell if a part is committed."""
        return self.store.exists(index_path(self.shard_folder(shard), part))


def create_or_check(
    store: RunStore,
    folder: Path,
    identity: dict[str, Any],
    images: Sequence[str] = (),
    shards: int | None = None,
    part_size: int = 1,
    instead: str = "Choose another --out",
    classifier: str = "",
    generator: str = "",
) -> StageRun:
    """Make a stage's run.json, or check that the one there says the same. One that says otherwise, but holds nothing
    (`holds_nothing`), is replaced: its first attempt failed, and this is the corrected one.

    Args:
        shards: asked for by the user; None = as the run has it, or 1 for a new one.
        instead: advice for a user who wants other settings.
        classifier: file that a user named, for people: it goes into the provenance.
        generator: name of the generator for people; likewise.
    Raises:
        IncompatibleError: the folder was made with other settings; the message says which.
        UsageError: another number of shards than the run was started with.
    """
    path = folder / "run.json"
    tidy(folder)
    images = TextColumn.of(images) if len(images) > LISTED else tuple(images)
    plan = StageRun(store, folder, identity, images, shards or 1, part_size)
    named = {"classifier": classifier, "generator": generator}
    content = {
        "format_version": FORMAT_VERSION if isinstance(images, tuple) else FORMAT_OF_MANY,
        "identity": identity,
        "fingerprint": plan.fingerprint,
        "images": images_of_plan(images),
        "shards": plan.shards,
        "part_size": part_size,
        "provenance": provenance() | {name: text for name, text in named.items() if text},
    }
    if isinstance(images, TextColumn):
        write_ids(store, folder, images)
    if not is_begun(store, folder):
        store.create(path, sealed(path, content))
    run = open_run(store, folder)
    if (run.identity, run.images) != (identity, images) and clear(run):
        say(f"{folder}: made with other settings, but it holds nothing: begun anew")
        store.create(path, sealed(path, content))
        run = open_run(store, folder)
    if store.list(folder).keys().isdisjoint((COPIES, "done.json")):  # of a finished training more is copied
        keep_copies(store, folder, ["run.json"])
    if run.identity != identity:
        changes = "; ".join(difference(identity, run.identity)[:4])
        raise IncompatibleError(
            f"{folder}: made with other settings ({changes})",
            f"{instead}, or restore the old settings",
        )
    if run.images != images:
        raise IncompatibleError(
            f"{folder}: made for other images ({len(run.images)} then, {len(images)} now)",
            "Choose another --out for the changed dataset",
        )
    if shards is not None and shards != run.shards:
        raise UsageError(
            f"{folder}: this run has {run.shards} shards, not {shards}",
            f"Use --shard I/{run.shards}: the number is fixed by the first command on a run",
        )
    return replace(run, images=images)  # which are read already


def images_of_plan(images: Sequence[str]) -> list[str] | dict[str, Any]:
    """Return what run.json says of the images: their ids, or of many the number and the digest."""
    if isinstance(images, TextColumn):
        return {"count": len(images), "sha256": images.digest}
    return list(images)


def _stored_images(store: RunStore, folder: Path, said: Any) -> Sequence[str]:
    """Return the images of a plan. Raises KeyError, TypeError or ValueError for what is none."""
    if isinstance(said, dict):
        count, digest = said["count"], said["sha256"]
        if type(count) is not int or count < 0 or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"images = {said}")
        return StoredIds(store, ids_path(folder, digest), count, digest)
    images = tuple(said)
    if not all(isinstance(image, str) for image in images):
        raise TypeError("its values have the wrong types")
    return images


_BEGUN = {"run.json", COPIES, "masks.json", "lock"}
"""Files of a stage that has made nothing yet."""


def holds_nothing(run: StageRun) -> bool:
    """Tell if no image of a stage was made and no task is at work on it: a first attempt that failed at once, or on
    every image, and which the corrected one may replace.
    """
    from vitp_pipeline.artifacts.parts import read_index

    store = run.store
    store.look_again(run.folder)  # what else was fetched, such as the classifier, is in use
    own = store.list(run.folder)
    if any(name not in _BEGUN and not name.endswith(TEMPORARY) for name in own):
        return False
    folders = [run.folder / "shards" / name for name in store.folders(run.folder / "shards")]
    files = {folder: store.list(folder) for folder in (run.folder, *folders)}
    if any("lock" in names and store.is_locked(folder / "lock") for folder, names in files.items()):
        return False
    rows = (folder / name for folder, names in files.items() for name in names if name.endswith(".parquet"))
    try:
        return not any("ok" in read_index(store.fetch(path), ["status"])["status"].to_pylist() for path in rows)
    except (CorruptError, KeyError):  # `vitp verify` has the say on it
        return False


def clear(run: StageRun) -> bool:
    """Remove the files of a stage that holds nothing; False, and nothing is removed, where it holds something.

    A task that begins at the same moment either holds its lock before run.json is gone, which is seen here, or finds
    another run.json once it holds it, and ends (`require_same`).
    """
    if not holds_nothing(run):
        return False
    store, path = run.store, run.folder / "run.json"
    text = read_text(store.fetch(path))
    store.remove(run.folder / COPIES)
    store.remove(path)
    if not holds_nothing(run):
        store.create(path, text)
        return False
    for folder in (
        *(run.folder / "shards" / name for name in store.folders(run.folder / "shards")),
        run.folder / "log",
    ):
        for name in store.list(folder):
            if name != "lock":
                store.remove(folder / name)
    store.remove(run.folder / "masks.json")
    return True


def require_same(run: StageRun) -> None:
    """Raise IncompatibleError where another command has replaced the stage meanwhile. The caller holds its lock."""
    path = run.folder / "run.json"
    run.store.look_again(run.folder)
    if not run.store.exists(path) or open_run(run.store, run.folder).digest != run.digest:
        raise IncompatibleError(
            f"{run.folder}: another command has begun it anew, with other settings", "Choose another --out"
        )


def is_begun(store: RunStore, folder: Path) -> bool:
    """Tell if a folder holds a stage. Raises CorruptError when its run.json existed and is gone."""
    if store.exists(folder / "run.json"):
        return True
    if store.exists(folder / COPIES):
        raise damaged(folder / "run.json", "is missing")
    return False


def open_run(store: RunStore, folder: Path, stage: str = "") -> StageRun:
    """Open the stage that lies in a folder.

    Raises:
        MissingStageError: there is no stage; `stage` names the command that would make it.
        IncompatibleError: written by a newer version of vitp, or by 0.1.
        CorruptError: run.json is damaged.
    """
    if not is_begun(store, folder):
        raise MissingStageError(f"{folder}: not there yet", f"Run `vitp {stage}` first" if stage else "")
    return stage_of(store, folder, read_sealed(store.fetch(folder / "run.json")))


def stage_of(store: RunStore, folder: Path, content: dict[str, Any]) -> StageRun:
    """Parse the stage in a folder from the content of its run.json. Raises as `open_run`."""
    path = folder / "run.json"
    try:
        if (version := content["format_version"]) > FORMAT_OF_MANY:
            raise IncompatibleError(
                f"{path}: written by a newer vitp (format {version}, this one knows {FORMAT_OF_MANY})", "Update vitp"
            )
        if version < FORMAT_VERSION:
            raise of_older_version(path)
        identity, made = check_identity(content["identity"]), check_provenance(content["provenance"])
        images = _stored_images(store, folder, content["images"])
        run = StageRun(store, folder, identity, images, content["shards"], content["part_size"], made)
        sizes = (run.shards, run.part_size)
        if not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
            raise ValueError(f"shards, part_size = {sizes}")
        return run
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"damaged ({error!r})") from error


@lru_cache(1)
def _versions() -> dict[str, str]:
    versions = {}
    for package in ("vitp-pipeline", "torch", "timm", "numpy", "zarr", "mmsegmentation", "mmdet", "mmengine"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def provenance() -> dict[str, Any]:
    """Return time, versions, command line and the digests of fetched files: for people, never compared."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "versions": dict(_versions()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "fetched": used_files(),
    }
