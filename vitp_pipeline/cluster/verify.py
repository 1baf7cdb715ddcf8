"""Whether what was committed is still what was written: `vitp verify`.

What vouches for what:

    part-0000.parquet    its own SHA-256, inside it (artifacts/parts.py)
    part-0000.zarr.zip   SHA-256 in the metadata of that index; in older parts a CRC per zip entry
    _totals.parquet      its own SHA-256, inside it
    done.json            is a function of the parts
    run.json             its fingerprint is a function of its identity
    model.safetensors    SHA-256 in RUN/digests.json, once a stage has read it
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitp_pipeline.artifacts.array_names import array_name
from vitp_pipeline.artifacts.digests import Digests
from vitp_pipeline.artifacts.files import read_json
from vitp_pipeline.artifacts.locks import locked
from vitp_pipeline.artifacts.parts import arrays_path, index_path, is_sealed, read_index, totals_path
from vitp_pipeline.artifacts.places import discard, look_anew, there
from vitp_pipeline.artifacts.run import StageRun, open_run
from vitp_pipeline.errors import CorruptError, LockedError, UserError
from vitp_pipeline.fingerprint import file_digest, fingerprint
from vitp_pipeline.progress import progress, say
from vitp_pipeline.runtime.output import show
from vitp_pipeline.shard import array_expression
from vitp_pipeline.stages.driver import ARRAYS_DIGEST, shard_stats
from vitp_pipeline.stages.status import stage_folders

READERS = 4
"""Files read at once: hashing leaves the interpreter free, and network file systems like company."""


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        run: the stage it belongs to.
        shard, part: where `--repair` puts it right: with both, that part is removed; with a shard alone, its done.json;
            with neither, `path` where `removable`.
    """

    path: Path
    reason: str
    run: StageRun
    shard: int | None = None
    part: int | None = None
    removable: bool = False


@dataclass(frozen=True)
class Checked:
    """How much was read, and what was found bad."""

    parts: int
    damages: list[Damage]


def verify_run(run: Path) -> Checked:
    """Reads every committed file of a run.

    Raises:
        InputError: no run lies there.
        CorruptError: a run.json cannot be read, so that nothing can be said about what lies beside it.
    """
    look_anew(run)
    damages: list[Damage] = []
    work: list[tuple[StageRun, int]] = []
    for folder in stage_folders(run):
        stage = open_run(folder)
        damages += _identity(stage)
        if folder.parent.name == "classifier":
            damages += _classifier(stage, run)
        else:
            work += [(stage, shard) for shard in range(stage.shards)]
            damages += _result(stage)
    parts = 0
    with progress("verify", len(work), "shards") as bar, ThreadPoolExecutor(READERS) as readers:
        for count, found in readers.map(lambda item: _shard(*item), work):
            parts, damages = parts + count, damages + found
            bar.advance()
    return Checked(parts, damages)


def _identity(run: StageRun) -> Iterator[Damage]:
    path = run.folder / "run.json"
    if read_json(path).get("fingerprint") != fingerprint(run.identity):
        yield Damage(path, "its fingerprint is not that of its identity", run)


def _classifier(run: StageRun, root: Path) -> Iterator[Damage]:
    folder = run.folder
    if not there(folder / "done.json"):
        return
    model = folder / "model.safetensors"
    there(model)
    try:
        with model.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 1 << 28 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = bool(ends) and 8 + length + max(ends) == model.stat().st_size
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        yield Damage(model, "is not whole", run)
    elif (known := Digests(root).remembered(model)) is not None and known != file_digest(model):
        yield Damage(model, "its checksum does not fit", run)


def _result(run: StageRun) -> Iterator[Damage]:
    path = run.folder / "result.json"
    if there(path):
        try:
            read_json(path)
        except CorruptError as error:
            yield Damage(path, error.message.removeprefix(f"{path}: "), run, removable=True)


def _shard(run: StageRun, shard: int) -> tuple[int, list[Damage]]:
    """(parts read, what is bad)."""
    folder, damages, read = run.shard_folder(shard), [], 0
    finished = run.finished(shard)
    for part, images in enumerate(run.parts(shard)):
        index = index_path(folder, part)
        if there(index):
            read += 1
            bad = _part(run, shard, part, images)
        else:
            bad = (index, "is missing, though the shard is finished") if finished else None
        if bad is not None:
            damages.append(Damage(*bad, run, shard, part))
    if finished and not damages:
        path = folder / "done.json"
        try:
            fits = read_json(path) == json.loads(json.dumps(shard_stats(run, shard)))
        except UserError:
            fits = False
        if not fits:
            damages.append(Damage(path, "does not say what the parts say", run, shard))
        if there(totals := totals_path(folder)):
            damages += _totals(run, totals, shard)
    return read, damages


def _totals(run: StageRun, path: Path, shard: int) -> Iterator[Damage]:
    try:
        if not is_sealed(path):
            yield Damage(path, "has no checksum", run, shard)
        read_index(path)
    except CorruptError as error:
        yield Damage(path, error.message.removeprefix(f"{path}: "), run, shard)


def _part(run: StageRun, shard: int, part: int, images: tuple[str, ...]) -> tuple[Path, str] | None:
    """The bad file of a part, and why; None when both are good."""
    index, arrays = (name(run.shard_folder(shard), part) for name in (index_path, arrays_path))
    try:
        rows = read_index(index)
    except CorruptError as error:
        return index, error.message.removeprefix(f"{index}: ")
    if not is_sealed(index):
        return index, "has no checksum"
    found = rows["image_id"].to_pylist()
    if tuple(dict.fromkeys(found)) != images:  # several views of an image are rows one after another
        return index, f"has {len(found)} rows, and not those of the {len(images)} images that belong there"
    digest = (rows.schema.metadata or {}).get(ARRAYS_DIGEST)
    if digest is None and run.identity.get("stage") not in STAGES_WITH_ARRAYS:
        return None
    if not there(arrays):
        return arrays, "is missing"
    if digest is not None:
        return None if file_digest(arrays).encode() == digest else (arrays, "its checksum does not fit")
    stored = [i for i, status in zip(found, rows["status"].to_pylist(), strict=True) if status == "ok"]
    return _arrays_by_crc(arrays, stored)


STAGES_WITH_ARRAYS = ("proposals", "classes")


def _arrays_by_crc(path: Path, stored: list[str]) -> tuple[Path, str] | None:
    """Every entry against its CRC, and every group for an array of each image that has any."""
    try:
        with zipfile.ZipFile(path) as file:
            if (bad := file.testzip()) is not None:
                return path, f"its entry {bad} is damaged"
            names = set(file.namelist())
    except Exception as error:  # a damaged directory fails in many ways
        return path, f"damaged ({error})"
    groups = {name.split("/")[0] for name in names if name.count("/") > 1}
    for group in groups:
        for image_id in stored:
            if f"{group}/{array_name(image_id)}/zarr.json" not in names:
                return path, f"has no {group} of image {image_id}"
    return None if groups or not stored else (path, "has no arrays")


def repair(damages: list[Damage]) -> list[Damage]:
    """Removes bad parts, and what follows from them, so that a rerun makes them anew. Returns what it could not mend.

    Of a part first the index goes, which uncommits it; a shard that a task is at work on is left alone.
    """
    left = []
    for damage in damages:
        if damage.shard is None:
            if damage.removable:
                discard(damage.path)
            else:
                left.append(damage)
            continue
        folder = damage.run.shard_folder(damage.shard)
        try:
            with locked(folder / "lock", wait=False):
                if damage.part is not None:
                    discard(index_path(folder, damage.part))
                    discard(arrays_path(folder, damage.part))
                discard(folder / "done.json")
        except LockedError as error:
            say(str(error))
            left.append(damage)
    return left


def print_damages(damages: list[Damage]) -> None:
    """A line for each, on standard output."""
    for damage in damages:
        show(f"{damage.path}: {damage.reason}")


def report(run: Path, checked: Checked, left: list[Damage] | None) -> None:
    """Says how it ended.

    Args:
        left: what `repair` could not mend of what was found; None = it was not asked to.
    Raises:
        CorruptError: something is damaged.
    """
    if not checked.damages:
        say(f"verify: {checked.parts} parts, all as they were written")
        return
    count = f"{len(checked.damages)} of {checked.parts} parts and marks"
    if left is None:
        raise CorruptError(f"{run}: {count} are damaged", f"`vitp verify {run} --repair` removes them")
    for stage in dict.fromkeys(d.run.folder for d in checked.damages if d not in left):
        shards = {d.shard for d in checked.damages if d.run.folder == stage and d.shard is not None and d not in left}
        which = f", shards {array_expression(shards)}" if shards else ""
        say(f"verify: removed the bad parts of {stage.relative_to(run)}{which}: run that stage again")
    if left:
        first = left[0]
        raise CorruptError(
            f"{first.path}: {first.reason}, and that cannot be mended here ({len(left)} such)",
            "Remove that stage's folder and run it again; one that is being worked on: verify again later",
        )
