"""Record the masks that an import was made from: only those of failed images may be corrected later.

A run's identity holds one digest of all masks, as they were when it was started (`masks.json` next to `run.json` has
them image by image), and the row of every image holds the digest of its own. So finished results never change, and a
corrected file does not need another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitp_pipeline.artifacts.partial_part import partial_paths
from vitp_pipeline.artifacts.parts import read_index
from vitp_pipeline.artifacts.run import StageRun, holds_nothing, is_begun, open_run
from vitp_pipeline.errors import CorruptError, IncompatibleError
from vitp_pipeline.storage.layout import index_path
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed, sealed

COLUMN = "masks_sha256"
"""Of the index: the digest of what the image's masks were read from."""

Digests = Mapping[str, str]
"""By image id; "" where there is nothing to read."""


def digest_of(digests: Digests) -> str:
    """Return the digest of all, 64 hex digits."""
    text = json.dumps(dict(digests), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def agreed_digest(
    store: RunStore, folder: Path, format: str, digests: Digests, shard: int | None, retry_failed: bool
) -> str:
    """Return the digest for the identity of a run: that of its first masks, if only permitted changes were made.

    Args:
        folder: of the stage, where a run may have been started.
        format, digests: of the masks as they are now.
        shard: the only one that is worked on; the others are looked at where the masks are not those of the beginning.
        retry_failed: whether the user says that masks were corrected: then those of images that were never made may
            differ, too.
    Raises:
        IncompatibleError: the masks of an image differ that was made from others.
    """
    own = digest_of(digests)
    if not is_begun(store, folder):
        return own
    run = open_run(store, folder)
    generator = run.identity.get("generator", {})
    begun = generator.get("masks")
    first = digests if begun == own else _begun_with(run)
    if generator.get("format") != format or first is None or digest_of(first) != begun:
        return own  # where it is another than the run's, that is said with the other settings
    made = _made(run, [n for n in range(run.shards) if begun != own or shard in (None, n)])
    others = [image for image in run.images if made.get(image) not in (None, digests.get(image, ""))]
    if others:
        raise IncompatibleError(
            f"{folder}: the masks of {_named(others)} are not those that were imported",
            "Choose another --out; only images that failed can be imported again, with --retry-failed",
        )
    unmade = [image for image in run.images if image not in made and first.get(image) != digests.get(image)]
    if unmade and not retry_failed:
        if holds_nothing(run):
            return own
        raise IncompatibleError(
            f"{folder}: the masks of {_named(unmade)} changed since the run was started",
            "Add --retry-failed if they were corrected, or choose another --out",
        )
    return str(begun)


def keep_digests(run: StageRun, digests: Digests) -> None:
    """Store the digests of the masks that a run is started with, once."""
    path = run.folder / "masks.json"
    if run.identity["generator"]["masks"] == digest_of(digests) and not run.store.exists(path):
        run.store.write(path, sealed(path, {"images": dict(digests)}))


def _begun_with(run: StageRun) -> Digests | None:
    """Read the digests of the run's first masks; None if they cannot be read."""
    path = run.folder / "masks.json"
    try:
        return dict(read_sealed(run.store.fetch(path))["images"]) if run.store.exists(path) else None
    except CorruptError:
        return None


def _made(run: StageRun, shards: Sequence[int]) -> dict[str, str | None]:
    """List the digests of the images that have a row, committed or in a partial part; None for a failed one."""
    found: dict[str, str | None] = {}
    for shard in shards:
        folder = run.shard_folder(shard)
        for part in range(len(run.parts(shard))):
            files = (index_path(folder, part), partial_paths(folder, part)[0])
            file = next((file for file in files if run.store.exists(file)), None)
            for row in read_index(run.store.fetch(file), ["image_id", "status", COLUMN]).to_pylist() if file else ():
                found[row["image_id"]] = row[COLUMN] if row["status"] == "ok" else None
    return found


def _named(images: list[str]) -> str:
    more = f" (and {len(images) - 1} more)" if len(images) > 1 else ""
    return f"image {images[0]!r}{more}"
